"""Every picture of the course: functions that take data and draw it on a Matplotlib figure.

Each draws on the figure it is given, in the language in use, with one colour per role; none keeps
state or needs ``pyplot``. A :class:`~picture.Picture` shows itself in a notebook, also where
nothing runs.
"""

from typing import TYPE_CHECKING

from ..lazily import loading

if TYPE_CHECKING:
    from .palette import COLOURS
    from .words import PHASE_NAMES, size_text, yes_or_no

__all__ = [
    "COLOURS",
    "PHASE_NAMES",
    "size_text",
    "yes_or_no",
]

__getattr__ = loading(
    __name__,
    {
        ".palette": "COLOURS",
        ".words": "PHASE_NAMES size_text yes_or_no",
    },
)
