"""A button per operator: store its result or make it again, and what either costs at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ...figures.palette import COLOURS, FAINT, INK
from ...figures.panel import Panel, legend_below, title_above, write
from ...figures.picture import is_narrow
from ...figures.words import size_text
from ...language import text
from ...memory.trace import Role
from ...notebook.bar_buttons import STRIP, BarButtons
from ...notebook.explorers import Control, Explorer
from ...plans.selective import Choice, Of, Prediction, Score
from .plane import BEST, MINE, added, landmarks, ruled, size_of, span, stairs

STORED, AGAIN = COLOURS[Role.ACTIVATION], COLOURS[Role.RECOMPUTED]
DRAWN = (8.2, 5.2)  # inches, of the picture
BUDGETS: dict[Of, tuple[str, str]] = {
    "kept": ("前向结束时保留着", "kept after forward"),
    "peak": ("峰值", "peak"),
}


@dataclass(frozen=True)
class Stored:
    """A choice, beside the best ones; ``budget``: bytes of ``of``, None if there is none."""

    score: Score
    prediction: Prediction
    budget: int | None = None
    of: Of = "peak"

    @property
    def added(self) -> float:
        return added(self.score, self.prediction.flops)

    def best(self, of: Of) -> float | None:
        """FLOPs added by the best choice with no more bytes; those of the budget, if it is that."""
        room = size_of(self.prediction, of)
        if self.budget is not None and of == self.of:
            room = self.budget
        fitting = [o for o in self.score.frontier(of) if size_of(o, of) <= room]
        return added(self.score, fitting[-1].flops) if fitting else None


class Storing(BarButtons):
    """A button per operator of a block, over its bar; below, two planes: bytes kept, and peak.

    ``start``: numbers of the results that are stored at first. ``budget``: bytes, of the peak or,
    with ``of="kept"``, of what the forward pass leaves behind; drawn as a line.
    """

    def __init__(
        self, score: Score, start: Iterable[int] = (), budget: int | None = None, of: Of = "peak"
    ):
        self.score, self.budget, self.of = score, budget, of
        self.stored = set(score.checked(start))
        picture = Explorer((), self._frame, draw_stored, say_stored, size=DRAWN)
        super().__init__((choice.number for choice in score.choices), picture)

    def press(self, number: int) -> None:
        """Store a result that was made again, or the reverse, as a click does.

        Results with random numbers in them go together with all that draw after them.
        """
        draw = [choice.number for choice in self.score.choices if choice.random]
        if number in self.stored:
            self.stored -= {number, *(n for n in draw if number in draw and n <= number)}
        else:
            self.stored |= {number, *(n for n in draw if number in draw and n >= number)}
        self._name_buttons()
        self.picture.move()

    def _name_buttons(self) -> None:
        for choice, button in zip(self.score.choices, self._buttons, strict=True):
            stored = choice.number in self.stored
            button.description = str(choice.number)
            button.style.button_color = STORED if stored else AGAIN
            button.style.text_color = INK
            state = text(zh="保留", en="stored") if stored else text(zh="重算", en="made again")
            button.tooltip = f"{choice.number} {choice.label}, {size_text(choice.size)}: {state}"

    def _frame(self) -> Stored:
        return Stored(self.score, self.score.predict(self.stored), self.budget, self.of)

    @property
    def on_a_page(self) -> Explorer:
        """What stands in its place where there is no kernel."""
        return choices_explorer(self.score, self.budget, self.of)


# --- the same along a row -----------------------------------------------------------------------


def frontier_explorer(score: Score, of: Of = "peak") -> Explorer:
    """A slider along the exact frontier, from the fewest bytes to the fewest FLOPs."""
    front = score.frontier(of)
    values = tuple(range(len(front)))
    control = Control(
        "choice", "沿最优边界", "along the frontier", values, 0,
        lambda at: f"{added(score, front[at].flops):+.1%}",
    )  # fmt: skip
    return Explorer(
        [control], lambda choice: Stored(score, front[choice]), draw_stored, say_stored, size=DRAWN
    )


def choices_explorer(score: Score, budget: int | None = None, of: Of = "peak") -> Explorer:
    """A slider through choices worth comparing: usual policies, each result alone, the best."""
    numbers = frozenset(choice.number for choice in score.choices)
    dear = frozenset(c.number for c in score.choices if c.flops)
    needed = frozenset(c.number for c in score.choices if c.saved)
    usual = {
        ("什么都不保留", "store nothing"): frozenset[int](),
        ("全部保留", "store everything"): numbers,
        ("只存反向要用的", "what backward needs"): needed,
        ("存矩阵乘法和注意力", "products of matrices"): dear,
        ("只存不做矩阵乘法的", "all but products"): numbers - dear,
    }
    choices = {}
    for name, stored in usual.items():
        try:
            choices[name] = score.predict(stored)
        except ValueError:  # random numbers would differ
            continue
    for choice in score.choices:
        if not choice.random:
            which = f"{choice.number} {choice.label}"
            choices[f"只存 {which}", f"only {which}"] = score.predict([choice.number])
    for at, one in enumerate(score.frontier(of)[1:], 1):
        choices[f"最优边界 {at}", f"frontier, point {at}"] = one
    names = tuple(choices)
    control = Control(
        "choice", "保留什么", "what is stored", names, names[0],
        lambda name: text(zh=name[0], en=name[1]),
    )  # fmt: skip
    return Explorer(
        [control],
        lambda choice: Stored(score, choices[choice], budget, of),
        draw_stored,
        say_stored,
        size=DRAWN,
    )


# --- drawn and said -----------------------------------------------------------------------------


def draw_stored(figure: Figure, data: Stored) -> None:
    width, narrow = figure.get_figwidth(), is_narrow(figure)
    top = title_above(figure, _title(data))
    left, right = STRIP
    strip = Panel(
        figure,
        (left, top - 0.8, width - right, top - 0.12),
        (0, len(data.score.choices)),
        (0, 1),
    )
    _draw_bars(strip, data)
    names = 0.5 if narrow else 0.62 if _upright(figure, data.score.choices) else 0.28
    most = added(data.score, data.score.nothing.flops)
    y = (-0.06 * (most or 1), 1.15 * (most or 1))
    low, high = 0.95, top - 0.8 - names - 0.2
    middle = (width - right + left) / 2
    if narrow:
        half = (high - low - 0.6) / 2
        boxes = [(left, high - half, width - 0.15, high), (left, low, width - 0.15, low + half)]
    else:
        boxes = [(left, low, middle - 0.15, high), (middle + 0.35, low, width - right, high)]
    for box, of in zip(boxes, BUDGETS, strict=True):
        more = [data.budget] if data.budget is not None and of == data.of else []
        here = size_of(data.prediction, of)
        panel = Panel(figure, box, span(data.score, of, here, *more), y)
        ruled(panel, BUDGETS[of], of == "kept")
        stairs(panel, data.score, of)
        landmarks(panel, data.score, of)
        if more:
            panel.line([more[0]] * 2, panel.y, INK, 4, linewidth=1.3, linestyle=(0, (4, 3)))
        panel.line([here], [data.added], MINE, 5, marker="o", markersize=9, markeredgecolor="white")
    legend_below(
        figure,
        [
            (text(zh="保留", en="stored", between=" "), STORED),
            (text(zh="重算", en="made again", between=" "), AGAIN),
            (text(zh="你的选择", en="your choice", between=" "), MINE),
            (text(zh="最优边界", en="the frontier", between=" "), BEST),
        ],
    )  # fmt: skip


def _draw_bars(strip: Panel, data: Stored) -> None:
    """One bar per operator, as high as the bytes of its result; its name below."""
    choices = data.score.choices
    most = max(choice.size for choice in choices)
    shapes = [
        [(i + 0.06, 0), (i + 0.06, h), (i + 0.94, h), (i + 0.94, 0)]
        for i, choice in enumerate(choices)
        for h in [0.06 + 0.94 * choice.size / most]
    ]
    stored = data.prediction.stored or ()
    strip.areas(shapes, [STORED if choice.number in stored else AGAIN for choice in choices])
    words = text(zh="字节", en="bytes", between=" ")
    write(strip.figure, 0.75, strip.box[1] + 0.3, words, ha="right", va="center", fontsize=8.5)
    upright = _upright(strip.figure, choices)
    for i, choice in enumerate(choices):
        strip.words(
            i + 0.5, 0, _short(choice), 0, -0.05,
            ha="center", va="top", fontsize=7.5, color=FAINT, rotation=90 if upright else 0,
        )  # fmt: skip


def _upright(figure: Figure, choices: Sequence[Choice]) -> bool:
    """Whether the names are too many to stand beside each other."""
    return is_narrow(figure) or len(choices) > 15


def _short(choice: Choice) -> str:
    """A name for the room below a bar."""
    name = choice.module.split(".")[-1] if choice.flops and choice.module else choice.name
    name = {"native_layer_norm": choice.module.split(".")[-1] or "norm"}.get(choice.name, name)
    if "attention" in name and "scaled" in name:
        name = "attention"
    return name.strip("_")[:9]


def _title(data: Stored) -> tuple[str, str]:
    mine = f"{data.added:+.1%}"
    of, one = data.of, data.prediction
    name = BUDGETS[of]
    if data.budget is not None:
        over = size_of(one, of) - data.budget
        if over > 0:
            return f"{name[0]}超出预算 {size_text(over)}", f"{size_text(over)} over the budget"
    best = data.best(of)
    if best is not None and best < data.added - 1e-12:
        return (
            f"FLOPs {mine}；{name[0]}不超过这么多，最少可以是 {best:+.1%}",
            f"FLOPs {mine}; with no more bytes ({name[1]}), {best:+.1%} will do",
        )
    more = _cheaper(data)
    if data.budget is None and more is not None:
        return (
            f"FLOPs {mine}；同样的 FLOPs，{name[0]}可以再少 {size_text(more)}",
            f"FLOPs {mine}; the same FLOPs are to be had with {size_text(more)} less ({name[1]})",
        )
    return f"FLOPs {mine}：在最优边界上，没有更好的", f"FLOPs {mine}: on the frontier, none better"


def _cheaper(data: Stored) -> int | None:
    """How many bytes fewer need no more FLOPs; None if none do."""
    mine = size_of(data.prediction, data.of)
    front = data.score.frontier(data.of)
    least = min(size_of(o, data.of) for o in front if o.flops <= data.prediction.flops)
    return mine - least if least < mine else None


def say_stored(data: Stored) -> tuple[str, str]:
    one = data.prediction
    numbers = ", ".join(map(str, sorted(one.stored or ())))
    kept, peak, mine = size_text(one.kept), size_text(one.peak), f"{data.added:+.1%}"
    stored = f"保留 {numbers}" if numbers else "什么都不保留"
    zh = f"{stored}：前向结束时保留着 {kept}，峰值 {peak}，FLOPs {mine}"
    stored = f"stored: {numbers}" if numbers else "nothing stored"
    en = f"{stored}. Kept after forward {kept}, peak {peak}, FLOPs {mine}"
    if data.budget is not None:
        name = BUDGETS[data.of]
        zh += f"；预算是{name[0]} {size_text(data.budget)}"
        en += f"; the budget is a {name[1]} of {size_text(data.budget)}" if data.of == "peak" else (
            f"; the budget is {size_text(data.budget)} kept"
        )  # fmt: skip
    return zh, en
