"""Checkpoints around blocks of a model, put in and taken out again: :func:`checkpoint_blocks`."""

from typing import TYPE_CHECKING

from ..lazily import loading

if TYPE_CHECKING:
    from .blocks import checkpoint_blocks

__all__ = [
    "checkpoint_blocks",
]

__getattr__ = loading(
    __name__,
    {
        ".blocks": "checkpoint_blocks",
    },
)
