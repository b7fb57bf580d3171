"""Tables whose headers and words are in both languages."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from .words import bilingual_html, text


class Table:
    """Rows of figures under bilingual headers; a notebook shows it as HTML, a terminal as text.

    ``headers``: (zh, en) for each column. ``rows``: cells are values, or (zh, en) for words.
    The first column is set flush left, so are words; figures are set flush right.
    """

    def __init__(self, headers: Sequence[tuple[str, str]], rows: Iterable[Sequence[Any]]):
        self.headers, self.rows = list(headers), [list(row) for row in rows]

    def __str__(self) -> str:
        lines = [[text(zh=zh, en=en) for zh, en in self.headers]]
        lines += [[_plain_cell(cell) for cell in row] for row in self.rows]
        widths = [max(map(columns, column)) for column in zip(*lines, strict=True)]
        right = self._of_figures()
        return "\n".join("  ".join(map(_padded, line, widths, right)).rstrip() for line in lines)

    def _of_figures(self) -> list[bool]:
        """Whether each column holds figures."""
        return [any(_is_figure(row[i]) for row in self.rows) for i in range(len(self.headers))]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        styles = [
            f' style="text-align:{"right" if figures else "left"};padding:0.3em 0.8em"'
            for figures in self._of_figures()
        ]
        heads = [bilingual_html(zh, en, tag="span") for zh, en in self.headers]
        head = _html_row("th", styles, heads)
        body = "".join(_html_row("td", styles, map(_html_cell, row)) for row in self.rows)
        table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        return {"text/plain": str(self), "text/html": table}


def shortened(words: str, letters: int) -> str:
    """``words``, cut where they have more than so many letters."""
    return words if len(words) <= letters else words[: letters - 1] + "…"


def one_below_another(*parts: Any) -> str:
    """HTML of several things that a notebook shows."""
    return "\n".join(part._repr_mimebundle_()["text/html"] for part in parts)


def _html_row(tag: str, styles: Iterable[str], cells: Iterable[str]) -> str:
    row = "".join(
        f"<{tag}{style}>{cell}</{tag}>" for style, cell in zip(styles, cells, strict=True)
    )
    return f"<tr>{row}</tr>"


def _plain_cell(cell: Any) -> str:
    return text(zh=cell[0], en=cell[1]) if isinstance(cell, tuple) else str(cell)


def _html_cell(cell: Any) -> str:
    shown = bilingual_html(*cell, tag="span") if isinstance(cell, tuple) else html.escape(str(cell))
    target = getattr(cell, "target", None)  # of a link
    return f'<a href="{target}">{shown}</a>' if target else shown


def _is_figure(cell: Any) -> bool:
    return isinstance(cell, (int, float)) or bool(_FIGURE.match(str(cell)))


# A number, perhaps with its unit or its spread behind it; no name that begins with one, 0.weight.
_FIGURE = re.compile(r"[+\-−×≈]?\s?\d[\d,]*(\.\d+)?([eE][+-]?\d+)?[x×]?(?![\w.])")


def columns(words: str) -> int:
    """How wide ``words`` are, counted in Latin letters; a Chinese one takes two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in words)


def _padded(words: str, width: int, right: bool) -> str:
    space = " " * (width - columns(words))
    return space + words if right else words + space
