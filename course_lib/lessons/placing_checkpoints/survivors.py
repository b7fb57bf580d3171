"""Dynamic programming drawn: ways through the first layers, and which of them are discarded.

A way is judged by two numbers alone: bytes kept and FLOPs to be run again. The planner
(:mod:`plans.search`) checks besides whether each segment fits while it is recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ...figures.palette import COMPARED, INK
from ...figures.panel import byte_ruler, round_numbers, titled_panel
from ...language import text
from ...notebook.explorers import Control, Explorer
from ...plans.plan import Chain, Part
from .board import written_plan


@dataclass(frozen=True)
class Way:
    """A way through the layers so far: what it keeps, bytes, and what it runs again, FLOPs."""

    parts: tuple[Part, ...]
    kept: int
    again: int

    def beats(self, other: Way) -> bool:
        """At least as good on both counts, and better on one."""
        mine, theirs = (self.kept, self.again), (other.kept, other.again)
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]


@dataclass(frozen=True)
class Stage:
    """After so many layers: the ways that are left, and those that have just been discarded."""

    left: tuple[Way, ...]
    beaten: tuple[Way, ...]


def stages(chain: Chain, layers: Sequence[int]) -> list[Stage]:
    """One stage before the first of ``layers`` and one after each, numbered from 0 again.

    A layer is kept with what is inside it, or begins or ends a segment, of which only the input is
    kept. Of ways that are equal on both counts the first stays.
    """
    costs = [chain.layers[i] for i in layers]
    found = [Stage((Way((), 0, 0),), ())]
    for end in range(1, len(costs) + 1):
        ways = [
            Way((*way.parts, end - 1), way.kept + costs[end - 1].kept, way.again)
            for way in found[end - 1].left
        ]
        for begin in range(end):
            inside = range(begin, end)
            source = chain.layers[layers[begin] - 1].boundary if layers[begin] else 0
            flops = sum(costs[i].flops for i in inside)
            ways += [
                Way((*way.parts, tuple(inside)), way.kept + source, way.again + flops)
                for way in found[begin].left
            ]
        left: list[Way] = []
        for way in sorted(ways, key=lambda one: (one.kept, one.again)):
            if not left or way.again < left[-1].again:
                left.append(way)
        found.append(Stage(tuple(left), tuple(way for way in ways if way not in left)))
    return found


def survivors_explorer(chain: Chain, layers: Sequence[int]) -> Explorer:
    """A slider from the first of ``layers`` to the last: ways as points, beaten ones crossed."""
    known = stages(chain, layers)
    most = known[-1].left + known[-1].beaten
    edge = max(way.kept for way in most), max(way.again for way in most)
    counts = tuple(range(1, len(known)))
    control = Control("layers", "走到第几层", "layers gone through", counts, counts[0])
    return Explorer([control], lambda layers: (known[layers], layers, edge), _draw, say_stage)


Shown = tuple[Stage, int, tuple[int, int]]


def _draw(figure: Figure, data: Shown) -> None:
    stage, count, (widest, highest) = data
    zh, en = f"走过 {count} 层", f"After {count} layer{'s' * (count > 1)}"
    left, beaten = len(stage.left), len(stage.beaten)
    title = (
        f"{zh}：留下 {left} 种走法，淘汰 {beaten} 种",
        f"{en}: {left} ways are left, {beaten} discarded",
    )
    panel = titled_panel(
        figure, title, (-0.3 * widest, widest * 1.3), (-0.08 * highest, highest * 1.12),
        left=0.85, names=[],
    )  # fmt: skip
    steps = round_numbers(0, highest / 1e9, 5)
    panel.y_ruler(
        [step * 1e9 for step in steps],
        [f"{step:g}" for step in steps],
        text(zh="要重算的 FLOPs（G）", en="FLOPs to be run again (G)", between=" "),
    )
    numbers, labels, unit = byte_ruler(widest)
    panel.x_ruler(numbers, labels, text(zh=f"保留的（{unit}）", en=f"kept ({unit})", between=" "))
    for way in stage.beaten:
        panel.line(
            [way.kept], [way.again], COMPARED[0], 5, marker="x", markersize=8, linestyle="none"
        )
    x, y = [way.kept for way in stage.left], [way.again for way in stage.left]
    panel.line(x, y, COMPARED[1], 4, linewidth=1.4, marker="o", markersize=7)
    for i, way in enumerate(stage.left):
        words = written_plan(way.parts)
        if i % 2:  # neighbours have their names on either side
            look, dx, dy = {"ha": "right", "va": "top"}, -0.09, -0.05
        else:
            look, dx, dy = {"ha": "left", "va": "bottom"}, 0.09, 0.05
        panel.words(way.kept, way.again, words, dx, dy, fontsize=8.5, color=INK, zorder=5, **look)


def say_stage(data: Shown) -> tuple[str, str]:
    """The ways that are left."""
    stage, count, _ = data
    ways = "，".join(written_plan(way.parts) for way in stage.left)
    return (
        f"走过 {count} 层，留下：{ways}",
        f"after {count} layer{'s' * (count > 1)}, left: {ways.replace('，', '; ')}",
    )
