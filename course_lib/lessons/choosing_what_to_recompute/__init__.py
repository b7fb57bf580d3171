"""Lesson 06: which operators' results a checkpointed block stores, and which it makes again."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .checkers import check_policy, check_repaired, check_stored, puzzle, show_puzzle
    from .plane import show_policies
    from .storing import Storing, frontier_explorer
    from .tables import not_needed_table, operators_table

__all__ = [
    "Storing",
    "check_policy",
    "check_repaired",
    "check_stored",
    "frontier_explorer",
    "not_needed_table",
    "operators_table",
    "puzzle",
    "show_policies",
    "show_puzzle",
]

__getattr__ = loading(
    __name__,
    {
        ".checkers": "check_policy check_repaired check_stored puzzle show_puzzle",
        ".plane": "show_policies",
        ".storing": "Storing frontier_explorer",
        ".tables": "not_needed_table operators_table",
    },
)
