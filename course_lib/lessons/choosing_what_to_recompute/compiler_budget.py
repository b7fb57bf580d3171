"""What the compiler's memory budget does: bytes kept beside the measured peak, a point a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ...figures.curves import Curve, draw_curves
from ...figures.words import size_text
from ...memory.trace import MemoryTrace
from ...notebook.explorers import Control, Explorer


@dataclass(frozen=True)
class Point:
    """One budget: bytes kept for backward, the step's peak in bytes, and its FLOPs."""

    budget: float
    kept: int
    peak: int
    flops: int


def point(budget: float, trace: MemoryTrace) -> Point:
    """What a measured step of a model that was compiled with this budget says."""
    return Point(budget, trace.kept_for_backward(), trace.peak, trace.flops)


def budget_explorer(points: Sequence[Point], eager: MemoryTrace) -> Explorer:
    """A slider over budgets; kept bytes and peak as curves. ``eager``: the uncompiled step."""
    ordered = sorted(points, key=lambda one: one.budget)
    budgets = tuple(one.budget for one in ordered)
    control = Control(
        "budget",
        "编译器的内存预算",
        "the compiler's memory budget",
        budgets,
        budgets[-1],
        "{:g}".format,
    )
    return Explorer(
        [control], lambda budget: (ordered, eager, budget), _draw, _say, size=(8.2, 4.2)
    )


def lowest(points: Sequence[Point]) -> Point:
    """The point with the lowest peak."""
    return min(points, key=lambda one: one.peak)


def _draw(figure: Figure, data: tuple[Sequence[Point], MemoryTrace, float]) -> None:
    points, eager, budget = data
    best = lowest(points)
    draw_curves(
        figure,
        [one.budget for one in points],
        [
            Curve(("峰值", "peak"), [one.peak for one in points]),
            Curve(("为反向保存", "kept for backward"), [one.kept for one in points]),
            Curve(("峰值，不编译", "peak, not compiled"), [eager.peak] * len(points)),
        ],
        mark=[one.budget for one in points].index(budget),
        title=(
            f"保存的一路降，峰值到 {best.budget:g} 为止，再往下反而回升",
            f"What is kept falls all the way; the peak turns at {best.budget:g} and rises again",
        ),
        x_name=("activation_memory_budget", "activation_memory_budget"),
    )


def _say(data: tuple[Sequence[Point], MemoryTrace, float]) -> tuple[str, str]:
    points, eager, budget = data
    here = next(one for one in points if one.budget == budget)
    more = here.flops / eager.flops - 1
    change = here.peak / eager.peak - 1
    return (
        f"预算 {budget:g}：保存 {size_text(here.kept)}，峰值 {size_text(here.peak)}"
        f"（与不编译相比 {change:+.0%}），FLOPs {more:+.1%}。",
        f"Budget {budget:g}: {size_text(here.kept)} kept, peak {size_text(here.peak)} "
        f"({change:+.0%} against not compiling), FLOPs {more:+.1%}.",
    )
