"""One model, every number of checkpoints: measured once each, then moved through by a slider."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from torch import nn
from torch.optim import Optimizer

from ...counting import seconds_in_turns
from ...figures.timeline import draw_timeline
from ...figures.words import more_time_in_words, size_text
from ...memory.measurement import measure
from ...memory.trace import MemoryTrace, Role
from ...notebook.explorers import Control, Explorer, progress


@dataclass(frozen=True)
class Counted:
    """What was measured with one number of checkpoints.

    ``seconds``: wall times of whole steps that nobody watched.
    """

    checkpoints: int
    trace: MemoryTrace
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def recomputed(self) -> int:
        """The most that was held at once of what was made again, bytes."""
        return self.trace.peak_of(Role.RECOMPUTED)


def measure_counts(
    step: Callable[[int], Any],
    counts: Sequence[int],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    inputs: Any = (),
    rounds: int = 3,
) -> list[Counted]:
    """Measure ``step(count)`` for each count, and time it ``rounds`` times.

    The rounds are interleaved, so that a slow moment of the machine touches all counts alike.
    A first step, not measured, brings optimizer state and gradients into being.
    """
    step(counts[0])
    traces: dict[int, MemoryTrace] = {}
    steps = [functools.partial(step, count) for count in counts]
    for count, one in progress(
        list(zip(counts, steps, strict=True)),
        zh="逐个测量检查点数量",
        en="Measuring each number of checkpoints",
    ):
        traces[count] = measure(one, model, optimizer, inputs)
    turns = progress(range(rounds), zh="轮流计时", en="Timing them in turns")
    seconds = dict(zip(counts, seconds_in_turns(steps, turns), strict=True))
    return [Counted(count, traces[count], tuple(seconds[count])) for count in counts]


@dataclass(frozen=True)
class Choice:
    """What the explorer shows for one number of checkpoints; ``plain``: that for none."""

    chosen: Counted
    plain: Counted
    highest: int  # bytes, of all positions' peaks

    @property
    def more_flops(self) -> float:
        return self.chosen.trace.flops / self.plain.trace.flops - 1

    @property
    def more_time(self) -> tuple[float, float, float]:
        """Wall time against that without checkpoints: lowest, median, highest of the rounds."""
        ratios = sorted(
            chosen / plain - 1
            for chosen, plain in zip(self.chosen.seconds, self.plain.seconds, strict=True)
        )
        return ratios[0], statistics.median(ratios), ratios[-1]


def counts_explorer(positions: Sequence[Counted], start: int = 0) -> Explorer:
    """A slider over the number of checkpoints, which begins at ``start``.

    The first position must be that without any; its curve stays behind the others as an outline.
    """
    by_count = {position.checkpoints: position for position in positions}
    highest = max(position.trace.peak for position in positions)

    def frame(checkpoints: int) -> Choice:
        return Choice(by_count[checkpoints], positions[0], highest)

    control = Control(
        "checkpoints",
        "检查点数量",
        "number of checkpoints",
        tuple(by_count),
        start,
    )
    return Explorer([control], frame, _draw, _caption)


def _draw(figure: Figure, choice: Choice) -> None:
    trace, plain = choice.chosen.trace, choice.plain.trace
    count, share = choice.chosen.checkpoints, trace.peak / plain.peak
    title = (
        f"{count} 个检查点：峰值 {size_text(trace.peak)}，是不用检查点时的 {share:.0%}",
        f"{count} checkpoint{'s' * (count != 1)}: the peak is {size_text(trace.peak)}, "
        f"{share:.0%} of the peak without",
    )
    outline = None if choice.chosen is choice.plain else plain
    name = ("不用检查点", "without checkpoints")
    draw_timeline(figure, trace, title=title, limit=choice.highest, outline=outline, outlined=name)


def _caption(choice: Choice) -> tuple[str, str]:
    chosen = choice.chosen
    kept = chosen.trace.kept_for_backward()
    sizes = [size_text(size) for size in (chosen.trace.peak, kept, chosen.recomputed)]
    flops = f"{choice.more_flops:+.1%}"
    time = ("", "")
    if chosen is not choice.plain:
        zh, en = more_time_in_words(*choice.more_time)
        time = f"；{zh}", f"; {en}"
    return (
        f"峰值 {sizes[0]}；前向传播结束时保存 {sizes[1]}；一次最多重算出 {sizes[2]}；"
        f"FLOPs {flops}{time[0]}",
        f"peak {sizes[0]}; kept at the end of forward {sizes[1]}; at most {sizes[2]} "
        f"recomputed at a time; FLOPs {flops}{time[1]}",
    )
