"""Which operators' results a checkpointed block stores, and which it computes again.

:func:`score_of` watches a step once, ``score`` plays any choice from it, ``search`` finds all of
the best ones, :class:`Keeping` carries one out with torch's selective checkpoint.
"""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .policy import Keeping, keeping
    from .score import BudgetTooSmall, Choice, Of, Prediction, Score, score_of

__all__ = [
    "BudgetTooSmall",
    "Choice",
    "Keeping",
    "Of",
    "Prediction",
    "Score",
    "keeping",
    "score_of",
]

__getattr__ = loading(
    __name__,
    {
        ".policy": "Keeping keeping",
        ".score": "BudgetTooSmall Choice Of Prediction Score score_of",
    },
)
