"""How many checkpoints, evenly spread: predicted for every number from a chain measured once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ...figures.curves import Curve, draw_curves
from ...figures.palette import COMPARED, INK
from ...figures.words import size_text
from ...notebook.explorers import Control, Explorer, progress
from ...plans.plan import Chain, Prediction, predict
from ...plans.planners import even_plan
from .plan_strip import AGAIN, CHECKPOINT


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
        curves.insert(1, Curve("k + n/k", [counts.formula(k) for k in along], COMPARED[0]))
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
