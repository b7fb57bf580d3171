"""Lesson 05's explorers: how many checkpoints, which budget, and a placement of one's own.

What they show is predicted from a chain that was measured once, see :mod:`plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from ...figures.curves import Curve, draw_curves
from ...figures.palette import COLOURS, COMPARED, FAINT, INK
from ...figures.panel import (
    Panel,
    byte_ruler,
    legend_below,
    round_numbers,
    title_above,
    unit_for,
    write,
)
from ...figures.picture import is_narrow
from ...figures.words import in_language, size_text
from ...language import Table, text
from ...memory.trace import Role
from ...notebook.bar_buttons import STRIP, BarButtons
from ...notebook.explorers import Control, Explorer, progress
from ...plans.plan import Chain, Plan, Prediction, predict
from ...plans.planners import Best, best_plan, even_plan, keep_all, smallest_peak

Words = tuple[str, str]  # (zh, en)
KEPT, AGAIN = COLOURS[Role.ACTIVATION], COLOURS[Role.RECOMPUTED]
CHECKPOINT = COLOURS[Role.CHECKPOINT]
EVEN, BEST = COMPARED
REST = "#b9bec6"  # of several roles, so the colour of none


def layers_table(chain: Chain) -> Table:
    """What each layer of a chain costs."""
    return Table(
        [
            ("序号", "number"),
            ("层", "layer"),
            ("保留时占用", "memory if kept"),
            ("输出", "output"),
            ("参数梯度", "gradients"),
            ("前向 FLOPs", "forward FLOPs"),
        ],
        [
            [
                str(i),
                layer.name,
                size_text(layer.kept),
                size_text(layer.boundary),
                size_text(layer.gradient),
                f"{layer.flops / 1e9:,.1f} G",
            ]
            for i, layer in enumerate(chain.layers)
        ],
    )


# --- how many checkpoints -----------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """Even spacing with every number of checkpoints; ``formula``: bytes, drawn beside the peak."""

    found: Mapping[int, Prediction]
    formula: Callable[[int], float] | None = None

    def __getitem__(self, count: int) -> Prediction:
        return self.found[count]

    @property
    def best(self) -> int:
        """The number with the lowest peak."""
        return min(self.found, key=lambda count: self.found[count].peak)


def sweep_counts(
    chain: Chain, counts: Sequence[int], formula: Callable[[int], float] | None = None
) -> Counts:
    """Predict even spacing with each number of checkpoints."""
    found = {
        count: predict(even_plan(chain, count), chain)
        for count in progress(counts, zh="逐个预测检查点数量", en="Each number of checkpoints")
    }
    return Counts(found, formula)


def chain_counts_explorer(counts: Counts, start: int) -> Explorer:
    """A slider over the number of checkpoints, evenly spread."""
    control = Control(
        "checkpoints", "检查点数量", "number of checkpoints", tuple(counts.found), start
    )
    return Explorer([control], lambda checkpoints: (counts, checkpoints), _draw_counts, _say_counts)


FLATTENING = 6  # times the lowest peak: a position above that would make all others look alike


def dropout_explorer(by_dropout: Mapping[float, Counts], start: int) -> Explorer:
    """The same over ``dropout``, which decides how attention on a CPU is computed.

    With dropout it writes out its square matrices, without it is fused and keeps next to nothing.
    Counts below ``start`` are left out: few long segments would flatten the picture.
    """
    ways = Control("dropout", "dropout 概率", "dropout", tuple(by_dropout), next(iter(by_dropout)))
    counts = tuple(k for k in next(iter(by_dropout.values())).found if k >= start)
    control = Control("checkpoints", "检查点数量", "number of checkpoints", counts, start)
    shown = {
        dropout: Counts({k: one.found[k] for k in counts}, one.formula)
        for dropout, one in by_dropout.items()
    }
    return Explorer(
        [ways, control],
        lambda dropout, checkpoints: (shown[dropout], checkpoints),
        _draw_counts,
        _say_counts,
    )


def _draw_counts(figure: Figure, data: tuple[Counts, int]) -> None:
    counts, chosen = data
    along = list(counts.found)
    found = list(counts.found.values())
    curves = [
        Curve(("峰值", "peak"), [one.peak for one in found], INK),
        Curve(("前向结束时保存", "kept after forward"), [one.kept for one in found], CHECKPOINT),
        Curve(("一次重算出的", "recomputed at a time"), [one.recomputed for one in found], AGAIN),
    ]
    if counts.formula:
        curves.insert(1, Curve("k + n/k", [counts.formula(k) for k in along], EVEN))
    best = counts.best
    title = (
        f"{best} 个检查点时峰值最低：{size_text(counts[best].peak)}",
        f"The peak is lowest with {best} checkpoints: {size_text(counts[best].peak)}",
    )
    draw_curves(
        figure,
        along,
        curves,
        mark=along.index(chosen),
        title=title,
        top=FLATTENING * counts[best].peak,
        x_name=("检查点数量，均匀分布", "number of checkpoints, evenly spread"),
    )


def _say_counts(data: tuple[Counts, int]) -> tuple[str, str]:
    counts, chosen = data
    one = counts[chosen]
    sizes = [size_text(size) for size in (one.peak, one.kept, one.recomputed)]
    layers, again = one.recomputed_layers, one.recomputed_flops
    # A chain of pointwise operators has no FLOPs as they are counted: only matrix products are.
    flops = f", FLOPs {again / (one.flops - again):+.1%}" if one.flops > again else ""
    return (
        f"{chosen} 个检查点：峰值 {sizes[0]}，前向结束时保存 {sizes[1]}，"
        f"一次最多重算出 {sizes[2]}；共重算 {layers} 层{flops.replace(', ', '，')}",
        f"{chosen} checkpoint{'s' * (chosen != 1)}: peak {sizes[0]}, "
        f"kept after forward {sizes[1]}, at most {sizes[2]} recomputed at a time; "
        f"{layers} layers run again{flops}",
    )


# --- a budget -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budgets:
    """The best plan and the best even spacing for each of some budgets (bytes)."""

    chain: Chain
    best: Mapping[int, Best]
    even: Mapping[int, tuple[Plan, Prediction] | None]

    def share(self, prediction: Prediction) -> float:
        """Recomputed FLOPs as a share of the step without checkpoints."""
        return prediction.recomputed_flops / max(self.chain.flops, 1)


def plan_budgets(chain: Chain, count: int = 41) -> Budgets:
    """Plan for ``count`` budgets, from the smallest that can be met to what no plan needs."""
    low = smallest_peak(chain).prediction.peak
    high = predict(keep_all(chain), chain).peak
    evens = [even_plan(chain, k) for k in range(len(chain) + 1)]
    known = [(plan, predict(plan, chain)) for plan in evens]
    best, even = {}, {}
    budgets = [low + (high - low) * i // (count - 1) for i in range(count)]
    for budget in progress(
        budgets, zh="逐个求各预算的最优方案", en="The best plan for each budget"
    ):
        best[budget] = best_plan(chain, budget)
        fitting = [one for one in known if one[1].peak <= budget]
        even[budget] = min(fitting, key=lambda one: one[1].recomputed_flops, default=None)
    return Budgets(chain, best, even)


def budget_explorer(budgets: Budgets) -> Explorer:
    """A slider over the budget; the best plan beside even spacing."""
    values = tuple(budgets.best)
    control = Control("budget", "预算", "budget", values, values[len(values) // 3], size_text)
    return Explorer(
        [control], lambda budget: (budgets, budget), _draw_budget, _say_budget, size=(8.2, 5.4)
    )


def _draw_budget(figure: Figure, data: tuple[Budgets, int]) -> None:
    budgets, budget = data
    best, even = budgets.best[budget], budgets.even[budget]
    width = figure.get_figwidth()
    found = f"{budgets.share(best.prediction):+.1%}"
    if even is None:
        title = (
            f"预算 {size_text(budget)}：不嵌套的最优方案 FLOPs {found}，均匀分段放不下",
            f"Budget {size_text(budget)}: FLOPs {found} at best without nesting; "
            "even spacing does not fit",
        )
    else:
        other = f"{budgets.share(even[1]):+.1%}"
        title = (
            f"预算 {size_text(budget)}：不嵌套的最优方案 FLOPs {found}，均匀分段 {other}",
            f"Budget {size_text(budget)}: FLOPs {found} at best without nesting, "
            f"{other} with even spacing",
        )
    top = title_above(figure, title)
    narrow = is_narrow(figure)
    first, apart = (1.7, 0.88) if narrow else (1.35, 0.78)
    _draw_frontier(figure, budgets, budget, top, bottom=first + 1.3)
    strips = [(("最优", "best"), best.plan), (("均匀", "even"), even[0] if even else None)]
    for i, (name, plan) in enumerate(strips):
        low = first - apart * i
        panel = Panel(figure, (0.85, low, width - 0.25, low + 0.6), (0, len(budgets.chain)), (0, 1))
        write(figure, 0.75, low + 0.2, in_language(name, between="\n"), ha="right", va="center")
        if plan is None:
            write(
                figure,
                1.0,
                low + 0.2,
                text(zh="放不下", en="does not fit"),
                va="center",
                color=FAINT,
            )
        else:
            _draw_strip(panel, plan, budgets.chain)
    strip_legend(figure, 0.85, 0.2)


def _draw_frontier(
    figure: Figure, budgets: Budgets, budget: int, top: float, bottom: float
) -> None:
    """Recomputed FLOPs over the budget, for the best plan and for even spacing."""
    width = figure.get_figwidth()
    values = list(budgets.best)
    best = [budgets.share(budgets.best[b].prediction) for b in values]
    even = [(b, budgets.share(one[1])) for b in values if (one := budgets.even[b]) is not None]
    most = max([*best, *(share for _, share in even)]) * 1.1 or 1
    panel = Panel(figure, (0.85, bottom, width - 1.45, top), (values[0], values[-1]), (0, most))
    ticks = [share for share in (0, 0.1, 0.2, 0.3, 0.4, 0.5) if share <= most]
    panel.y_ruler(
        ticks,
        [f"{share:.0%}" for share in ticks],
        text(zh="多做的 FLOPs", en="FLOPs added", between=" "),
    )
    unit, size = unit_for(values[0])
    marks = round_numbers(values[0] / size, values[-1] / size, 6)
    name = text(zh=f"内存预算（{unit}）", en=f"memory budget ({unit})", between=" ")
    panel.x_ruler([mark * size for mark in marks], [f"{mark:,g}" for mark in marks], name)
    if even:
        panel.line(*_stairs([b for b, _ in even], [share for _, share in even]), EVEN, linewidth=2)
    panel.line(*_stairs(values, best), BEST, linewidth=2.4)
    panel.line([budget, budget], panel.y, FAINT, 2.5, linewidth=1, linestyle=(0, (3, 3)))
    chosen = budgets.share(budgets.best[budget].prediction)
    panel.line([budget], [chosen], BEST, 5, marker="o", markersize=8, markeredgecolor="white")
    for i, (key, colour) in enumerate([(("最优", "best"), BEST), (("均匀", "even"), EVEN)]):
        y = top - 0.12 - 0.24 * i
        figure_panel = Panel(
            figure, (width - 1.3, y - 0.05, width - 1.12, y + 0.05), (0, 1), (0, 1)
        )
        figure_panel.line([0, 1], [0.5, 0.5], colour, linewidth=2.4)
        write(figure, width - 1.05, y, in_language(key, between=" "), va="center_baseline")


def _stairs(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """The line that keeps each value until the next position."""
    along, levels = [], []
    for i in range(len(x)):
        along += [x[i], x[i + 1] if i + 1 < len(x) else x[i]]
        levels += [y[i], y[i]]
    return along, levels


def _draw_strip(panel: Panel, plan: Plan, chain: Chain) -> None:
    """One bar per layer, as high as what it keeps; a line where a segment begins."""
    most = max(layer.kept for layer in chain.layers) or 1
    again = {layer for part in plan.parts if isinstance(part, tuple) for layer in layers_of(part)}
    shapes, colours = [], []
    for i, layer in enumerate(chain.layers):
        high = 0.12 + 0.88 * layer.kept / most
        shapes.append([(i + 0.06, 0), (i + 0.06, high), (i + 0.94, high), (i + 0.94, 0)])
        colours.append(AGAIN if i in again else KEPT)
    panel.areas(shapes, colours)
    starts = [_first(segment) for segment in plan.segments]
    panel.lines([[(s, -0.08), (s, 1.1)] for s in starts], CHECKPOINT, 2.6, 4)
    every = 1 if len(chain) <= (10 if is_narrow(panel.figure) else 24) else 10
    if every > 1 and len(chain) <= 24:
        every = 2
    for i in range(0, len(chain), every):
        panel.words(i + 0.5, 0, str(i), 0, -0.04, ha="center", va="top", fontsize=7.5, color=FAINT)


def layers_of(part: Any) -> list[int]:
    """The layers of a plan's part, whatever stands inside it."""
    return [part] if isinstance(part, int) else [i for item in part for i in layers_of(item)]


def _first(part: Any) -> int:
    while isinstance(part, tuple):
        part = part[0]
    return part


def strip_legend(
    figure: Figure,
    left: float,
    low: float,
    more: Sequence[tuple[Words, str]] = (),
    blue: Words = ("检查点：一段的开头", "checkpoint: where a segment begins"),
) -> None:
    """What the colours mean, in one line, or on a phone in as many as it takes."""
    entries = [
        *more,
        (("保留", "kept"), KEPT),
        (("重算", "recomputed"), AGAIN),
        (blue, CHECKPOINT),
    ]
    if is_narrow(figure):
        known = [(in_language(name, between=" "), colour) for name, colour in entries]
        return legend_below(figure, known)
    for name, colour in entries:
        words = in_language(name, between=" ")
        square = Panel(figure, (left, low - 0.06, left + 0.13, low + 0.07), (0, 1), (0, 1))
        square.areas([[(0, 0), (0, 1), (1, 1), (1, 0)]], [colour])
        write(figure, left + 0.2, low, words, va="center_baseline", fontsize=9)
        wide = sum(2 if ord(letter) > 0x2E80 else 1.05 for letter in words)
        left += 0.5 + wide * 0.066


def _say_budget(data: tuple[Budgets, int]) -> tuple[str, str]:
    budgets, budget = data
    best, even = budgets.best[budget], budgets.even[budget]
    layers = best.prediction.recomputed_layers
    share = f"{budgets.share(best.prediction):+.1%}"
    zh = f"预算 {size_text(budget)}：最优方案重算 {layers} 层，FLOPs {share}"
    en = f"budget {size_text(budget)}: the best plan runs {layers} layers again, FLOPs {share}"
    if even is None:
        return f"{zh}；均匀分段放不下", f"{en}; even spacing does not fit"
    share = f"{budgets.share(even[1]):+.1%}"
    segments = len(even[0].segments)
    return (
        f"{zh}；均匀分 {segments} 段，FLOPs {share}",
        f"{en}; with {segments} even segments FLOPs {share}",
    )


# --- a placement of one's own -------------------------------------------------------------------

WITHOUT_NESTING: Words = ("不嵌套的最优方案", "the best plan without nesting")
STATES = ("keep", "begin", "join")
PLACED = (8.2, 4.4)  # inches, of the picture


class Placement(BarButtons):
    """A button per layer: keep it, begin a segment with it, or add it to the segment before.

    Below, the peak against the budget and the FLOPs against the best plan. ``budget``: bytes.
    ``best``: another plan to be compared with; ``method``: what that one is called. ``changed``: to
    be called when the plan has changed.
    """

    def __init__(
        self, chain: Chain, budget: int, best: Best | None = None, method: Words = WITHOUT_NESTING
    ):
        self.chain, self.budget, self.method = chain, budget, method
        self.best = best_plan(chain, budget) if best is None else best
        self.states = ["keep"] * len(chain)
        self.changed: Callable[[], None] = lambda: None
        self._nested: Plan | None = None  # a plan that buttons cannot make
        picture = Explorer((), self._frame, draw_placement, say_placement, size=PLACED)
        super().__init__(range(len(chain)), picture)

    @property
    def plan(self) -> Plan:
        """The plan on show."""
        return self._of_buttons() if self._nested is None else self._nested

    def show(self, plan: Plan) -> None:
        """Show ``plan``, nested ones too; the buttons then tell only its outermost segments."""
        for part in plan.parts:
            segment = isinstance(part, tuple)
            for i, layer in enumerate(layers_of(part)):
                self.states[layer] = ("join" if i else "begin") if segment else "keep"
        self._nested = None if self._of_buttons() == plan else plan
        self._changed()

    def _of_buttons(self) -> Plan:
        parts: list = []
        for i, state in enumerate(self.states):
            if state == "keep":
                parts.append(i)
            elif state == "join" and parts and isinstance(parts[-1], tuple):
                parts[-1] += (i,)
            else:
                parts.append((i,))
        return Plan(tuple(parts))

    def press(self, layer: int) -> None:
        """Move one layer's button on to its next state, as a click does."""
        self._nested = None
        state = STATES.index(self.states[layer])
        self.states[layer] = STATES[(state + 1) % 3]
        if self.states[layer] == "join" and (layer == 0 or self.states[layer - 1] == "keep"):
            self.states[layer] = "keep"  # no segment to join
        for later in range(layer + 1, len(self.states)):  # nor for those after it
            if self.states[later] == "join" and self.states[later - 1] == "keep":
                self.states[later] = "begin"
        self._changed()

    def _changed(self) -> None:
        self._name_buttons()
        self.picture.move()
        self.changed()

    def _name_buttons(self) -> None:
        colours = {"keep": KEPT, "begin": AGAIN, "join": AGAIN}
        names = {
            "keep": text(zh="保留", en="kept"),
            "begin": text(zh="重算，从这里开始一段", en="recomputed, a segment begins here"),
            "join": text(zh="重算，与前一层同属一段", en="recomputed with the layer before"),
        }
        for i, (button, state) in enumerate(zip(self._buttons, self.states, strict=True)):
            button.description = f"┃{i}" if state == "begin" else str(i)
            button.style.button_color = colours[state]
            button.style.text_color = INK
            button.tooltip = f"{i} {self.chain.layers[i].name}: {names[state]}"

    def _frame(self) -> Placed:
        found = predict(self.plan, self.chain)
        return Placed(self.chain, self.budget, self.plan, found, self.best, self.method)


@dataclass(frozen=True)
class Placed:
    """A learner's plan beside the budget and the best plan."""

    chain: Chain
    budget: int
    plan: Plan
    prediction: Prediction
    best: Best
    method: Words = WITHOUT_NESTING

    def share(self, prediction: Prediction) -> str:
        return f"{prediction.recomputed_flops / max(self.chain.flops, 1):+.1%}"

    def reached(self, mine: str) -> tuple[str, str]:
        """What it means to need no more FLOPs than ``best``, which may be the optimum or not."""
        if self.best.exact:
            return (
                f"放得下，FLOPs {mine}，不嵌套的方案里没有更省的",
                f"It fits, FLOPs {mine}: no plan without nesting needs fewer",
            )
        return (
            f"放得下，FLOPs {mine}，与已知最好的方案一样",
            f"It fits, FLOPs {mine}, as few as the best plan known",
        )


def draw_placement(figure: Figure, placed: Placed) -> None:
    width = figure.get_figwidth()
    prediction = placed.prediction
    over = prediction.peak - placed.budget
    mine, best = placed.share(prediction), placed.share(placed.best.prediction)
    if over > 0:
        title = (f"超出预算 {size_text(over)}", f"{size_text(over)} over the budget")
    elif prediction.recomputed_flops <= placed.best.prediction.recomputed_flops:
        title = placed.reached(mine)
    else:
        title = (
            f"放得下，FLOPs {mine}；{placed.method[0]}是 {best}",
            f"It fits, FLOPs {mine}; {placed.method[1]} has {best}",
        )
    top = title_above(figure, title)
    left, right = STRIP
    strip = Panel(
        figure, (left, top - 0.75, width - right, top - 0.15), (0, len(placed.chain)), (0, 1)
    )
    _draw_strip(strip, placed.plan, placed.chain)
    strip_legend(figure, 0.85, 0.2, [(("其余", "the rest"), REST)])
    _draw_turns(figure, placed, low=1.15 if is_narrow(figure) else 0.8, high=top - 1.15)


def _draw_turns(figure: Figure, placed: Placed, low: float, high: float) -> None:
    """The memory of each turn, forward to the middle and backward from there; the budget."""
    moments = placed.prediction.moments
    plain = predict(keep_all(placed.chain), placed.chain).peak
    panel = Panel(
        figure, (0.85, low, figure.get_figwidth() - 0.25, high), (0, len(moments)), (0, plain * 1.1)
    )
    panel.y_ruler(*byte_ruler(plain * 1.1))
    panel.x_ruler(
        [],
        [],
        text(
            zh="一步里依次算到的层：先前向，后反向（夹着重算）",
            between="\n",
            en="layers in the order in which the step runs them: forward, then "
            "backward with recomputation",
        ),
    )
    shapes, colours = [], []
    for i, moment in enumerate(moments):
        rest = moment.memory - moment.kept - moment.recomputed
        level = 0
        for size, colour in ((rest, REST), (moment.kept, KEPT), (moment.recomputed, AGAIN)):
            if size > 0:
                shapes.append(
                    [(i, level), (i, level + size), (i + 1, level + size), (i + 1, level)]
                )
                colours.append(colour)
                level += size
    panel.areas(shapes, colours)
    panel.line([0, len(moments)], [placed.budget] * 2, INK, 4, linewidth=1.3, linestyle=(0, (4, 3)))
    words = text(zh="预算", en="budget", between=" ") + " " + size_text(placed.budget)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    look = {"ha": "right", "va": "bottom", "zorder": 5, "bbox": box}
    panel.words(len(moments), placed.budget, words, 0, 0.05, **look)


def say_placement(placed: Placed) -> tuple[str, str]:
    one, best = placed.prediction, placed.best.prediction
    mine, theirs = placed.share(one), placed.share(best)
    peak, budget = size_text(one.peak), size_text(placed.budget)
    return (
        f"峰值 {peak}，预算 {budget}；FLOPs {mine}，{placed.method[0]} {theirs}",
        f"peak {peak}, budget {budget}; FLOPs {mine}, {placed.method[1]} {theirs}",
    )
