"""Does checkpointing help a model, where, and what does it cost? :func:`advise`.

``watch`` runs one step, ``record`` is what it did, ``score`` plays any choice of checkpoints from
it, ``choice`` finds the best one under a budget, ``diagnosis`` says what the peak is made of,
``advice`` puts it all together, ``code`` into lines to paste.
"""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .advice import advise, advising
    from .options import Option
    from .results import Advice, BudgetTooSmall

__all__ = [
    "Advice",
    "BudgetTooSmall",
    "Option",
    "advise",
    "advising",
]

__getattr__ = loading(
    __name__,
    {
        ".advice": "advise advising",
        ".options": "Option",
        ".results": "Advice BudgetTooSmall",
    },
)
