"""The language a learner reads: Chinese, English, or both.

Prose cells, controls, figures and messages follow one choice. It starts from the machine's
locale, is remembered from one lesson to the next, and the environment variable ``COURSE_LANG``
(``zh``, ``en`` or ``both``) overrides it.
"""

from __future__ import annotations

import contextlib
import html
import locale
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

Language = Literal["zh", "en", "both"]
LANGUAGES: tuple[Language, ...] = ("zh", "en", "both")
SWITCH_WORDS = "中文 · English"  # what the switch is where no widget runs
BETWEEN = '<span class="course-between"> · </span>'  # hidden with either language

_chosen: Language | None = None
_listeners: list[Callable[[], None]] = []


def language() -> Language:
    """The language in use: ``COURSE_LANG``, else the one chosen last, else the locale's.

    Raises ``ValueError`` if ``COURSE_LANG`` holds anything but ``zh``, ``en`` or ``both``.
    """
    global _chosen
    if _chosen is None:
        forced = os.environ.get("COURSE_LANG")
        _chosen = _checked(forced) if forced else _remembered() or _from_locale()
    return _chosen


def choose(chosen: Language) -> None:
    """Use ``zh``, ``en`` or ``both`` from now on, redraw what listens, and remember the choice."""
    global _chosen
    _chosen = _checked(chosen)
    if "COURSE_LANG" not in os.environ:
        _remember(_chosen)
    with contextlib.ExitStack() as stack:  # one that raises does not keep the others from hearing
        for listener in reversed(_listeners):
            stack.callback(listener)


def on_change(listener: Callable[[], None]) -> Callable[[], None]:
    """Call ``listener`` after each change of language; the result takes it off again."""
    _listeners.append(listener)

    def stop() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return stop


def text(*, zh: str, en: str, between: str = " · ") -> str:
    """``zh`` or ``en``, whichever is in use; with ``both``, the two joined by ``between``."""
    chosen = language()
    if chosen == "both":
        return Said(zh if zh == en else f"{zh}{between}{en}", zh, en)
    return Said(zh if chosen == "zh" else en, zh, en)


class Said(str):
    """Words in the language in use that know both: an error keeps what it says in the other."""

    zh: str
    en: str

    def __new__(cls, shown: str, zh: str = "", en: str = "") -> Said:
        said = super().__new__(cls, shown)
        said.zh, said.en = zh or shown, en or shown
        return said


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
        return {"text/plain": str(self), "text/html": spoken(self.zh, self.en, markup=self.markup)}


def spoken(zh: str, en: str, *, markup: bool = False, tag: str = "div") -> str:
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
        heads = [spoken(zh, en, tag="span") for zh, en in self.headers]
        head = _html_row("th", styles, heads)
        body = "".join(_html_row("td", styles, map(_html_cell, row)) for row in self.rows)
        table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        return {"text/plain": str(self), "text/html": table}


def _html_row(tag: str, styles: Iterable[str], cells: Iterable[str]) -> str:
    row = "".join(
        f"<{tag}{style}>{cell}</{tag}>" for style, cell in zip(styles, cells, strict=True)
    )
    return f"<tr>{row}</tr>"


def _plain_cell(cell: Any) -> str:
    return text(zh=cell[0], en=cell[1]) if isinstance(cell, tuple) else str(cell)


def _html_cell(cell: Any) -> str:
    shown = spoken(*cell, tag="span") if isinstance(cell, tuple) else html.escape(str(cell))
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


def say(*, zh: str, en: str) -> None:
    """Show one message under the cell, in the language in use and after any later switch."""
    from IPython.display import display

    display(Bilingual(zh=zh, en=en))


def switch() -> Any:
    """The buttons 中文 · English · both shown at the top of a lesson, as an ipywidget.

    They act on prose cells (``<span lang="zh"></span>`` marks them), on everything that
    :func:`spoken` made, and, through :func:`on_change`, on figures and controls.
    """
    from .switch import make

    return make()


def _checked(value: str) -> Language:
    if value not in LANGUAGES:
        raise ValueError(
            f"语言只能是 zh、en 或 both，现在是 {value!r}。 "
            f"The language must be zh, en or both, not {value!r}."
        )
    return value


def memory_folder() -> Path:
    """Where the course remembers a learner's choices from one lesson to the next."""
    from platformdirs import user_config_path

    return user_config_path("gradient-checkpointing-course")


def _memory_file() -> Path:
    return memory_folder() / "language"


def _remembered() -> Language | None:
    try:
        kept = _memory_file().read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return kept if kept in LANGUAGES else None


def _remember(chosen: Language) -> None:
    try:
        file = _memory_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(chosen, encoding="utf-8")
    except OSError:
        pass  # a read-only home: the choice then lasts as long as this kernel


def _from_locale() -> Language:
    names = [os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE")]
    first = next((name for name in names if name), "") or (locale.getlocale()[0] or "")
    return "zh" if first.lower().startswith(("zh", "chinese")) else "en"
