"""The museum as the learner walks through it: one exhibit at a time, first a guess, then the truth.

The widget only binds; what it shows is made by :func:`label` and :func:`revelation` from an
exhibit's inspection, so it can be read without a browser.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from typing import Any

import ipywidgets

from ...language import Table, bilingual_html, on_change, text
from ...notebook.answers import remember, remembered
from .collection import EXHIBITS, catalogue, number_of
from .exhibit import LOUDNESS, Exhibit, Inspection

INK, RIGHT, WRONG = "#22262b", "#c9f2e2", "#fbd5d1"
_CODE_STYLE = (
    f"background:#f5f6f8;color:{INK};border-radius:8px;padding:10px 14px;margin:6px 0;"
    "line-height:1.45;font-size:13px;overflow-x:auto;white-space:pre;"
    "box-sizing:border-box;width:0;min-width:100%;"  # scrolls by itself, not its surroundings
    "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
)
_LINE = "max-width:44em;line-height:1.5;overflow-wrap:break-word"  # of an explanation
# By name: those to see first, in this order. One raises, one warns, three keep silent.
FIRST = ("frozen-input", "batch-norm", "weight-changed", "late-binding", "fewer-tensors")
_CHANGED_STYLE = f"background:{RIGHT};color:{INK};display:inline-block;min-width:100%"


def code_html(source: str, before: str | None = None) -> str:
    """The code, set as code; lines that ``before`` does not have are marked."""
    known = {line.strip() for line in (before or source).splitlines()}
    lines = []
    for line in source.rstrip().splitlines():
        words = html.escape(line) or " "
        new = line.strip() and line.strip() not in known
        lines.append(f'<span style="{_CHANGED_STYLE}">{words}</span>' if new else words)
    return f'<pre style="{_CODE_STYLE}">' + "\n".join(lines) + "</pre>"


def label(exhibit: Exhibit) -> str:
    """Number, title and code, without the answer."""
    zh, en = exhibit.title
    zh, en = (f"<b>№ {number_of(exhibit)}　{html.escape(title)}</b>" for title in (zh, en))
    heading = bilingual_html(zh, en, markup=True)
    return f'<div style="{_LINE}">{heading}</div>' + code_html(exhibit.code)


def revelation(exhibit: Exhibit, before: Inspection, after: Inspection) -> str:
    """What happened when it ran, what ``same_gradients`` says, why, and the cure that cured it."""
    zh, en = LOUDNESS[before.loudness]
    parts = [bilingual_html(f"<b>{zh}</b>", f"<b>{en}</b>", markup=True)]
    for words in filter(None, [before.error, *before.warned]):
        words = html.escape(_shortened(words))
        style = f"{_CODE_STYLE};white-space:pre-wrap;overflow-wrap:anywhere"
        parts.append(f'<pre lang="en-US" style="{style}">{words}</pre>')  # as it was said
    parts.append(_row("same_gradients", before.agreement.zh, before.agreement.en))
    parts += _measured(before)
    parts.append(_row(("为什么", "why"), *exhibit.why))
    parts.append(_row(("治疗", "cure"), *exhibit.remedy))
    parts.append(code_html(exhibit.cure, exhibit.code))
    parts.append(_row("same_gradients", after.agreement.zh, after.agreement.en))
    parts += _measured(after)
    if exhibit.issues:
        links = ", ".join(_link(issue) for issue in exhibit.issues)
        parts.append(f"<div>{bilingual_html('讨论', 'discussed in', tag='span')} {links}</div>")
    return "".join(parts)


def _shortened(words: str, most: int = 420) -> str:
    """The first paragraph, or as much of it as is to be read here."""
    first = words.split("\n\n")[0]
    return first if len(first) <= most else first[:most].rsplit(" ", 1)[0] + " …"


def _row(name: str | tuple[str, str], zh: str, en: str) -> str:
    names = (name, name) if isinstance(name, str) else name
    lines = [
        f'<span style="opacity:.65">{html.escape(head)}</span>&ensp;{html.escape(words)}'
        for head, words in zip(names, (zh, en), strict=True)
    ]
    return f'<div style="margin:5px 0;{_LINE}">{bilingual_html(*lines, markup=True)}</div>'


def _measured(found: Inspection) -> list[str]:
    """What a measured step says, if one was: its peak where that is in question, and FLOPs."""
    if found.peaks is None or found.flops is None:
        return []
    plain, checkpointed = (f"{peak:,}" for peak in found.peaks)
    change, more = (f"{two / one - 1:+.0%}" for one, two in (found.peaks, found.flops))
    if found.judge == "operations":
        return [_row("FLOPs", f"与普通的一步相比 {more}", f"{more} against the plain step")]
    return [
        _row(
            ("峰值", "peak"),
            f"普通 {plain} 字节，有检查点 {checkpointed} 字节（{change}）；FLOPs {more}",
            f"plain {plain} bytes, with checkpoints {checkpointed} bytes ({change}); FLOPs {more}",
        )
    ]


def issue_url(issue: str) -> str:
    """Where ``owner/repository#number`` is discussed."""
    repository, _, number = issue.partition("#")
    return f"https://github.com/{repository}/issues/{number}"


def _link(issue: str) -> str:
    return (
        f'<a href="{issue_url(issue)}" target="_blank" rel="noopener" '
        f'style="text-decoration:underline">{html.escape(issue)}</a>'
    )


class Museum(ipywidgets.VBox):
    """Go from one exhibit to the next, guess whether it raises, warns or keeps silent, and see.

    ``guesses``: exhibit name to what the learner said, in this kernel or in one before. Nothing
    runs before the guess. ``tour``: the exhibits' places in the order in which the buttons lead
    through them: those of ``FIRST`` first.
    """

    def __init__(self, exhibits: Sequence[Exhibit] = EXHIBITS):
        self.exhibits = tuple(exhibits)
        self.guesses: dict[str, str] = {}
        self._truths: dict[str, str] = {}  # what the exhibits guessed so far do
        self._found: dict[str, tuple[Inspection, Inspection]] = {}
        self._recall()
        names = [exhibit.name for exhibit in self.exhibits]
        first = [names.index(name) for name in FIRST if name in names]
        self._first = len(first)
        self.tour = first + [place for place in range(len(names)) if place not in first]
        self._pick = ipywidgets.Dropdown(
            layout={"width": "auto", "max_width": "640px"},
            style={"description_width": "initial"},
        )
        self._moves = {by: ipywidgets.Button(layout={"width": "auto"}) for by in (-1, 1)}
        for by, button in self._moves.items():
            button.on_click(lambda _, by=by: self.move(by))
        self._place = ipywidgets.HTML()
        self._buttons = {
            loudness: ipywidgets.Button(layout={"width": "auto"}) for loudness in LOUDNESS
        }
        self._question, self._label = ipywidgets.HTML(), ipywidgets.HTML()
        self._answer, self._score = ipywidgets.HTML(), ipywidgets.HTML()
        for loudness, button in self._buttons.items():
            button.on_click(lambda _, loudness=loudness: self.guess(loudness))
        bar = ipywidgets.HBox(
            [self._question, *self._buttons.values(), self._score],
            layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0.5em"},
        )
        way = ipywidgets.HBox(
            [*self._moves.values(), self._place],
            layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0.5em"},
        )
        super().__init__([self._pick, way, self._label, bar, self._answer])
        self.add_class("course-museum")
        self._speak()
        self._pick.value = self.tour[0]
        self._show()
        self._pick.observe(lambda _: self._show(), "value")
        on_change(self._speak)

    @property
    def exhibit(self) -> Exhibit:
        """The one on show."""
        return self.exhibits[self._pick.value or 0]

    def go_to(self, name: str) -> None:
        """Show the exhibit of that name."""
        self._pick.value = [exhibit.name for exhibit in self.exhibits].index(name)

    def move(self, by: int) -> None:
        """Go on by so many exhibits of the tour, or back; stay where it ends."""
        stop = self.tour.index(self._pick.value or 0) + by
        self._pick.value = self.tour[min(max(stop, 0), len(self.tour) - 1)]

    def guess(self, loudness: str) -> None:
        """Say what this exhibit does; it is then run, and the truth shown. First guesses count."""
        exhibit = self.exhibit
        if exhibit.name not in self._found:
            self._found[exhibit.name] = exhibit.inspect(), exhibit.inspect(cured=True)
        self.guesses.setdefault(exhibit.name, loudness)  # not before: a stop leaves it unguessed
        self._truths[exhibit.name] = self._found[exhibit.name][0].loudness
        remember("guess", exhibit.name, [self.guesses[exhibit.name], self._truths[exhibit.name]])
        self._speak()

    def _recall(self) -> None:
        """Take up the guesses of earlier kernels."""
        names = {exhibit.name for exhibit in self.exhibits}
        for name, kept in remembered("guess").items():
            if name in names and isinstance(kept, list) and len(kept) == 2:
                self.guesses[name], self._truths[name] = kept

    @property
    def right(self) -> int:
        """How many first guesses were right."""
        return sum(self._truths[name] == loudness for name, loudness in self.guesses.items())

    def _speak(self) -> None:
        chosen = self._pick.value
        options = []
        for place, exhibit in enumerate(self.exhibits):
            mark = "　"
            if exhibit.name in self.guesses:
                hit = self._truths[exhibit.name] == self.guesses[exhibit.name]
                mark = "✓" if hit else "✗"
            title = text(zh=exhibit.title[0], en=exhibit.title[1])
            star = " ★" if exhibit.name in FIRST else ""
            options.append((f"{mark} № {number_of(exhibit)}{star}  {title}", place))
        self._pick.options = options
        self._pick.description = text(zh="展品", en="exhibit", between=" ")
        self._moves[-1].description = text(zh="← 上一件", en="← previous")
        self._moves[1].description = text(zh="下一件 →", en="next →")
        self._pick.value = chosen or 0
        for loudness, button in self._buttons.items():
            zh, en = LOUDNESS[loudness]
            button.description = text(zh=zh, en=en, between=" ")
        self._question.value = bilingual_html(
            "先猜：它会怎样？", "Guess first: what will it do?", tag="span"
        )
        self._show()

    def _show(self) -> None:
        exhibit = self.exhibit
        self._label.value = label(exhibit)
        found = self._found.get(exhibit.name)
        guess = self.guesses.get(exhibit.name)
        again = (
            bilingual_html(
                "这一件以前猜过。按任何一个按钮，再运行一次，看看为什么；分数不变。",
                "You guessed this one before. Press any button to run it again and see why; "
                "the score stays.",
            )
            if guess
            else ""
        )
        self._answer.value = revelation(exhibit, *found) if found else again
        for loudness, button in self._buttons.items():
            # ipywidgets' own colours for right and wrong leave white words too faint.
            true = loudness == self._truths.get(exhibit.name)
            colour = RIGHT if true else WRONG if loudness == guess else None
            button.icon = "" if colour is None else "check" if true else "times"
            button.style.button_color, button.style.text_color = colour, colour and INK
        seen, right, all_of_them = len(self.guesses), self.right, len(self.exhibits)
        self._score.value = bilingual_html(
            f"猜了 {seen} / {all_of_them} 件，猜中 {right} 件",
            f"guessed {seen} of {all_of_them}, {right} of them right",
            tag="span",
        )
        stop = self.tour.index(self._pick.value or 0)
        self._moves[-1].disabled, self._moves[1].disabled = stop == 0, stop == len(self.tour) - 1
        self._place.value = bilingual_html(*self._stop_in_words(stop), tag="span")

    def _stop_in_words(self, stop: int) -> tuple[str, str]:
        """Where on the tour this is: (zh, en)."""
        first, rest = self._first, len(self.tour) - self._first
        if stop < first:
            zh, en = f"先看这 {first} 件（★）", f"these {first} first (★)"
            return f"{zh}：第 {stop + 1} 件", f"{en}: {stop + 1} of {first}"
        return f"其余：第 {stop - first + 1} / {rest} 件", f"the rest: {stop - first + 1} of {rest}"

    def __str__(self) -> str:
        rows = [[number_of(exhibit), exhibit.title] for exhibit in self.exhibits]
        return str(Table([("№", "№"), ("展品", "exhibit")], rows))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        drawers = []
        for exhibit in self.exhibits:
            title = bilingual_html(*exhibit.title, tag="span")
            code = f"<pre>{html.escape(exhibit.code.rstrip())}</pre>"
            drawers.append(
                f"<details><summary>№ {number_of(exhibit)} {title}</summary>{code}</details>"
            )
        return {**bundle, "text/plain": str(self), "text/html": "".join(drawers)}


class Answers(ipywidgets.VBox):
    """All the exhibits' answers behind a button: they are found out when it is pressed.

    So a lesson does not store them for everybody to read, and neither does running its cells show
    them to a learner who is still guessing.
    """

    def __init__(self) -> None:
        self._button = ipywidgets.Button(layout={"width": "auto", "align_self": "flex-start"})
        self._table = ipywidgets.HTML()
        self._button.on_click(lambda _: self.press())
        super().__init__([self._button, self._table])
        self._speak()
        on_change(self._speak)

    @functools.cached_property
    def table(self) -> Table:
        """What :func:`catalogue` finds; all exhibits run, the first time that it is asked for."""
        return catalogue()

    @property
    def unfolded(self) -> bool:
        return bool(self._table.value)

    def press(self) -> None:
        """Unfold the answers, or fold them again."""
        self._table.value = "" if self.unfolded else self.table._repr_mimebundle_()["text/html"]
        self._speak()

    def _speak(self) -> None:
        zh, en = ("收起答案", "fold the answers") if self.unfolded else _UNFOLD
        self._button.description = text(zh=zh, en=en)

    def __str__(self) -> str:
        return text(
            zh=f"答案折叠着：在 JupyterLab 里运行这个单元格，再按“{_UNFOLD[0]}”。",
            en=f"The answers are folded: run this cell in JupyterLab and press “{_UNFOLD[1]}”.",
            between="\n",
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        return {**bundle, "text/plain": str(self)}


_UNFOLD = ("看全部答案", "show all answers")
