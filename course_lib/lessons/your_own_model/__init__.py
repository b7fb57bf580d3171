"""Lesson 07: from an error message to a model that fits, whatever the model."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .checkers import check_lora_bytes, check_prepared, check_yours
    from .error_message import read_error
    from .needed import quiet, require
    from .switches import compare_switches
    from .what_fits import Sizes, fits_explorer, sweep_sizes

__all__ = [
    "Sizes",
    "check_lora_bytes",
    "check_prepared",
    "check_yours",
    "compare_switches",
    "fits_explorer",
    "quiet",
    "read_error",
    "require",
    "sweep_sizes",
]

__getattr__ = loading(
    __name__,
    {
        ".checkers": "check_lora_bytes check_prepared check_yours",
        ".error_message": "read_error",
        ".needed": "quiet require",
        ".switches": "compare_switches",
        ".what_fits": "Sizes fits_explorer sweep_sizes",
    },
)
