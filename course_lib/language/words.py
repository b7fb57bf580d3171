"""Words in both languages: plain, as HTML that the switch can hide, and as what a cell shows."""

from __future__ import annotations

import html
from typing import Any

from .choice import language

BETWEEN = '<span class="course-between"> · </span>'  # hidden with either language


def text(*, zh: str, en: str, between: str = " · ") -> str:
    """``zh`` or ``en``, whichever is in use; with ``both``, the two joined by ``between``."""
    chosen = language()
    if chosen == "both":
        return BilingualText(zh if zh == en else f"{zh}{between}{en}", zh, en)
    return BilingualText(zh if chosen == "zh" else en, zh, en)


class BilingualText(str):
    """Words in the language in use that know both: an error keeps what it says in the other."""

    zh: str
    en: str

    def __new__(cls, shown: str, zh: str = "", en: str = "") -> BilingualText:
        both = super().__new__(cls, shown)
        both.zh, both.en = zh or shown, en or shown
        return both


class Bilingual:
    """A sentence that a notebook shows in the chosen language, also after a later switch.

    Its HTML holds both languages and the switch hides one; its plain text is the language in use.
    ``zh`` and ``en`` are plain text, or HTML if ``markup`` is true.
    """

    def __init__(self, *, zh: str, en: str, markup: bool = False, plain: str | None = None):
        self.zh, self.en, self.markup, self.plain = zh, en, markup, plain

    def __str__(self) -> str:
        return self.plain or text(zh=self.zh, en=self.en, between="\n")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/plain": str(self),
            "text/html": bilingual_html(self.zh, self.en, markup=self.markup),
        }


def bilingual_html(zh: str, en: str, *, markup: bool = False, tag: str = "div") -> str:
    """HTML that holds both languages, each in an element the switch can hide.

    What stands on one line, ``span``, has a separator between them. Words that are the same in
    both stand once, and are never hidden.
    """
    if not markup:
        zh, en = (html.escape(part).replace("\n", "<br>") for part in (zh, en))
    if zh == en:
        return f"<{tag}>{zh}</{tag}>"
    between = BETWEEN if tag == "span" and zh and en else ""
    return f'<{tag} lang="zh">{zh}</{tag}>{between}<{tag} lang="en">{en}</{tag}>'


def say(*, zh: str, en: str) -> None:
    """Show one message under the cell, in the language in use and after any later switch."""
    from IPython.display import display

    display(Bilingual(zh=zh, en=en))
