"""Lesson 05: where to put checkpoints, and its puzzles."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .board import PuzzleBoard
    from .budgets import budget_explorer, plan_budgets
    from .checkers import check_best_count, check_puzzle, show_puzzle
    from .checkpoint_counts import chain_counts_explorer, dropout_explorer, sweep_counts
    from .layer_costs import layers_table
    from .placement import Placement
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
        ".budgets": "budget_explorer plan_budgets",
        ".checkers": "check_best_count check_puzzle show_puzzle",
        ".checkpoint_counts": "chain_counts_explorer dropout_explorer sweep_counts",
        ".layer_costs": "layers_table",
        ".placement": "Placement",
        ".played_plan": "nested_player",
        ".survivors": "survivors_explorer",
    },
)
