"""Lesson 01: what a training step is made of, for any size."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .block_map import block_explorer, formula_table, measure_blocks
    from .checkers import Wasteful, check_kept_bytes, check_thrifty
    from .step_sizes import families, measure_batches, share_explorer, sizes_explorer

__all__ = [
    "Wasteful",
    "block_explorer",
    "check_kept_bytes",
    "check_thrifty",
    "families",
    "formula_table",
    "measure_batches",
    "measure_blocks",
    "share_explorer",
    "sizes_explorer",
]

__getattr__ = loading(
    __name__,
    {
        ".block_map": "block_explorer formula_table measure_blocks",
        ".checkers": "Wasteful check_kept_bytes check_thrifty",
        ".step_sizes": "families measure_batches share_explorer sizes_explorer",
    },
)
