"""Proof that two ways to compute the same thing leave the same gradients behind, bit for bit.

Read :mod:`same` first: it says what is run, :mod:`running` how, :mod:`comparing` what counts as a
difference.
"""

from typing import TYPE_CHECKING

from ..lazily import loading

if TYPE_CHECKING:
    from .agreement import Agreement, Difference, UnequalWork
    from .same import same_gradients

__all__ = ["Agreement", "Difference", "UnequalWork", "same_gradients"]

__getattr__ = loading(
    __name__,
    {
        ".agreement": "Agreement Difference UnequalWork",
        ".same": "same_gradients",
    },
)
