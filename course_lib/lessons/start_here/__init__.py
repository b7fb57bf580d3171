"""Lesson 00: one model, every number of checkpoints."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .checkers import check_cheapest, check_segments
    from .checkpoint_counts import counts_explorer, measure_counts
    from .first_step import measure_first

__all__ = [
    "check_cheapest",
    "check_segments",
    "counts_explorer",
    "measure_counts",
    "measure_first",
]

__getattr__ = loading(
    __name__,
    {
        ".checkers": "check_cheapest check_segments",
        ".checkpoint_counts": "counts_explorer measure_counts",
        ".first_step": "measure_first",
    },
)
