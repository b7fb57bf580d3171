"""Chinese, English, or both: the choice, words that follow it, and tables of them.

Prose cells, controls, figures and messages follow one choice, made with :func:`switch`.
"""

from typing import TYPE_CHECKING

from ..lazily import loading
from .choice import (
    LANGUAGES,
    Language,
    choose,
    language,
    memory_folder,
    on_change,
    speaking,
)
from .table import Table, columns, one_below_another, shortened
from .words import BETWEEN, Bilingual, BilingualText, bilingual_html, say, text

if TYPE_CHECKING:
    from ..notebook.switch import switch

__all__ = [
    "BETWEEN",
    "LANGUAGES",
    "Bilingual",
    "BilingualText",
    "Language",
    "Table",
    "bilingual_html",
    "choose",
    "columns",
    "language",
    "memory_folder",
    "on_change",
    "one_below_another",
    "say",
    "shortened",
    "speaking",
    "switch",
    "text",
]

__getattr__ = loading(__name__, {"..notebook.switch": "switch"})  # which loads widgets
