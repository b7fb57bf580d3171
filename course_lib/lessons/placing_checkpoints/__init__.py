"""Lesson 05: where to put checkpoints, and its puzzles."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .board import PuzzleBoard
    from .checkers import check_best_count, check_puzzle, show_puzzle
    from .placement import (
        Placement,
        budget_explorer,
        chain_counts_explorer,
        dropout_explorer,
        layers_table,
        plan_budgets,
        sweep_counts,
    )
    from .played_plan import nested_player
    from .survivors import survivors_explorer

__all__ = [
    "Placement",
    "PuzzleBoard",
    "budget_explorer",
    "chain_counts_explorer",
    "check_best_count",
    "check_puzzle",
    "dropout_explorer",
    "layers_table",
    "nested_player",
    "plan_budgets",
    "show_puzzle",
    "survivors_explorer",
    "sweep_counts",
]

__getattr__ = loading(
    __name__,
    {
        ".board": "PuzzleBoard",
        ".checkers": "check_best_count check_puzzle show_puzzle",
        ".played_plan": "nested_player",
        ".placement": "Placement budget_explorer chain_counts_explorer dropout_explorer "
        "layers_table plan_budgets sweep_counts",
        ".survivors": "survivors_explorer",
    },
)
