"""What each budget costs: the best plan beside even spacing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ...figures.palette import COMPARED, FAINT
from ...figures.panel import Panel, round_numbers, title_above, unit_for, write
from ...figures.picture import is_narrow
from ...figures.words import in_language, size_text
from ...language import text
from ...notebook.explorers import Control, Explorer, progress
from ...plans.plan import Chain, Plan, Prediction, predict
from ...plans.planners import Best, best_plan, even_plan, keep_all, smallest_peak
from .plan_strip import draw_strip, strip_legend

EVEN, BEST = COMPARED


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
            draw_strip(panel, plan, budgets.chain)
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
