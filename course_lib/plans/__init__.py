"""Where to put checkpoints: what a plan is, what it costs, and the best one.

``chain_of`` writes the score of a chain of layers, ``predict`` plays it under a plan, and the
planners search the best plan under a budget.
"""

from typing import TYPE_CHECKING

from ..lazily import loading

if TYPE_CHECKING:
    from .chains import Chain, Layer, chain_of
    from .nested import NothingFits, best_nested_plan
    from .plan import Plan, Planned, Prediction, Turn, apply, predict
    from .planners import (
        Best,
        BudgetTooSmall,
        best_plan,
        even_plan,
        frontier,
        keep_all,
        nested_plan,
        nested_steps,
        smallest_peak,
        sqrt_plan,
    )

__all__ = [
    "Best",
    "BudgetTooSmall",
    "Chain",
    "Layer",
    "NothingFits",
    "Plan",
    "Planned",
    "Prediction",
    "Turn",
    "apply",
    "best_nested_plan",
    "best_plan",
    "chain_of",
    "even_plan",
    "frontier",
    "keep_all",
    "nested_plan",
    "nested_steps",
    "predict",
    "smallest_peak",
    "sqrt_plan",
]

__getattr__ = loading(
    __name__,
    {
        ".chains": "Chain Layer chain_of",
        ".nested": "NothingFits best_nested_plan",
        ".plan": "Plan Planned Prediction Turn apply predict",
        ".planners": "Best BudgetTooSmall best_plan even_plan frontier keep_all nested_plan "
        "nested_steps smallest_peak sqrt_plan",
    },
)
