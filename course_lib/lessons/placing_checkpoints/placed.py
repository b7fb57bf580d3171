"""A plan beside a budget and the best plan: the picture of a placement, and its sentence."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from ...figures.palette import INK
from ...figures.panel import Panel, byte_ruler, title_above
from ...figures.picture import is_narrow
from ...figures.words import size_text
from ...language import text
from ...notebook.bar_buttons import STRIP
from ...plans.plan import Chain, Plan, Prediction, predict
from ...plans.planners import Best, keep_all
from .plan_strip import AGAIN, KEPT, REST, Words, draw_strip, strip_legend

WITHOUT_NESTING: Words = ("不嵌套的最优方案", "the best plan without nesting")
PLACED = (8.2, 4.4)  # inches, of the picture


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
    draw_strip(strip, placed.plan, placed.chain)
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
