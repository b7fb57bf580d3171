"""Lesson 02: five ways to recompute, and what judges them."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .checkers import (
        check_by_hand,
        check_chain,
        check_function,
        check_hooks,
        check_random_state,
        yours_or_reference,
    )

__all__ = [
    "check_by_hand",
    "check_chain",
    "check_function",
    "check_hooks",
    "check_random_state",
    "yours_or_reference",
]

__getattr__ = loading(
    __name__,
    {
        ".checkers": "check_by_hand check_chain check_function check_hooks "
        "check_random_state yours_or_reference",
    },
)
