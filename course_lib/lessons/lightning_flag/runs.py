"""Training runs with the flag off and on, compared: pictures, tables, a slider; no Lightning here.

Raises where two runs did not do the same work: only then may memory and time be compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor
from torch.optim import Optimizer

from ...counting import seconds_in_turns
from ...figures.palette import COMPARED, FAINT
from ...figures.picture import is_narrow
from ...figures.timeline import draw_timeline
from ...figures.words import more_time_in_words, size_text
from ...gradients import UnequalWork
from ...language import Table, text
from ...memory.measurement import measure
from ...memory.simulation import simulated
from ...memory.trace import MemoryTrace
from ...models import Block, Sizes, Transformer, random_tokens, step_without_passes
from ...notebook.explorers import Control, Explorer, show
from ...wrapping.blocks import checkpoint_blocks


@dataclass(frozen=True)
class Run:
    """A finished training: the loss and the seconds of each step, final weights, one watched step.

    ``seconds`` may hold the watched step, which takes longer; :attr:`pace` does not mind one.
    """

    losses: Sequence[float]
    seconds: Sequence[float]
    weights: Mapping[str, Tensor]
    trace: MemoryTrace

    @property
    def pace(self) -> float:
        """Steps per second, from the median step."""
        return 1 / statistics.median(self.seconds)


def _more_time(plain: Run, flagged: Run) -> tuple[float, float, float]:
    """Extra time per step, as shares: at the least, by the medians, and at the most.

    The runs come one after the other, so each is taken at its quartiles: the slow steps of one
    against the quick ones of the other.
    """
    (quick, slow), (low, high) = (
        np.percentile(run.seconds, (25, 75)).tolist() for run in (plain, flagged)
    )
    return low / slow - 1, plain.pace / flagged.pace - 1, high / quick - 1


def same_training(plain: Run, flagged: Run) -> None:
    """Raise :class:`UnequalWork` unless every loss and every final weight is bitwise equal."""
    if len(plain.losses) != len(flagged.losses):
        raise UnequalWork(
            text(
                zh=f"步数不同：{len(plain.losses)} 和 {len(flagged.losses)}。",
                en=f"The numbers of steps differ: {len(plain.losses)} and {len(flagged.losses)}.",
            )
        )
    for step, (one, other) in enumerate(zip(plain.losses, flagged.losses, strict=True)):
        if one != other:
            raise UnequalWork(
                text(
                    zh=f"第 {step} 步的损失不同：{one!r} 和 {other!r}。",
                    en=f"The losses of step {step} differ: {one!r} and {other!r}.",
                )
            )
    if plain.weights.keys() != flagged.weights.keys():
        raise UnequalWork(
            text(zh="两边的参数不是同一批。", en="The two have different parameters.")
        )
    for name, value in plain.weights.items():
        if not torch.equal(value, flagged.weights[name]):
            raise UnequalWork(text(zh=f"最后的 {name} 不同。", en=f"The final {name} differs."))


def runs_table(runs: Mapping[bool, Run]) -> Table:
    """Peak and FLOPs of a step with the flag off and on; refuses unequal work."""
    plain, flagged = runs[False], runs[True]
    same_training(plain, flagged)
    rows: list[list] = [
        [
            ("最后一步的损失", "last loss"),
            f"{plain.losses[-1]:.6f}",
            f"{flagged.losses[-1]:.6f}",
            ("逐位相同", "bitwise equal"),
        ],
        [
            ("峰值（字节）", "peak (bytes)"),
            f"{plain.trace.peak:,}",
            f"{flagged.trace.peak:,}",
            f"{flagged.trace.peak / plain.trace.peak - 1:+.1%}",
        ],
        [
            "FLOPs",
            f"{plain.trace.flops:,}",
            f"{flagged.trace.flops:,}",
            f"{flagged.trace.flops / plain.trace.flops - 1:+.1%}",
        ],
    ]
    return Table([("每一步", "each step"), ("关", "off"), ("开", "on"), ("变化", "change")], rows)


def show_runs(runs: Mapping[bool, Run]) -> Explorer:
    """Losses, peak and pace of the two, drawn together; refuses unequal work."""
    plain, flagged = runs[False], runs[True]
    same_training(plain, flagged)
    zh, en = more_time_in_words(*_more_time(plain, flagged))
    less = 1 - flagged.trace.peak / plain.trace.peak
    caption = (
        f"损失逐位相同；峰值从 {size_text(plain.trace.peak)} 降到 "
        f"{size_text(flagged.trace.peak)}（−{less:.0%}）；"
        f"每秒步数的中位数，关 {plain.pace:.1f}，开 {flagged.pace:.1f}；每步{zh}",
        f"losses are bitwise equal; the peak falls from {size_text(plain.trace.peak)} to "
        f"{size_text(flagged.trace.peak)} (−{less:.0%}); steps per second, by the median: "
        f"{plain.pace:.1f} off, {flagged.pace:.1f} on; per step, {en}",
    )
    return show(_draw_runs, (plain, flagged), caption, size=(8.2, 3.4))


_OFF, _ON = COMPARED


def _draw_runs(figure: Figure, runs: tuple[Run, Run]) -> None:
    plain, flagged = runs
    slower = _more_time(plain, flagged)[0] > 0  # else the timings do not tell
    figure.suptitle(
        text(
            zh="同样的损失，更少的内存" + "，更多的时间" * slower,
            en="The same losses, less memory" + ", more time" * slower,
            between="\n",
        ),
        x=0.025,
        y=0.965,
        ha="left",
        va="top",
        fontsize=12,
        linespacing=1.35,
    )
    top = 0.66 if "\n" in figure.get_suptitle() else 0.72
    places = [(0.075, 0.15, 0.36, top - 0.15), (0.52, 0.15, 0.19, top - 0.15),
              (0.79, 0.15, 0.19, top - 0.15)]  # fmt: skip
    if is_narrow(figure):  # two rows
        places = [(0.11, 0.54, 0.84, 0.24), (0.06, 0.08, 0.4, 0.26), (0.56, 0.08, 0.4, 0.26)]
    steps = range(len(plain.losses))
    losses = figure.add_axes(places[0])
    losses.plot(steps, plain.losses, color=_OFF, linewidth=4, solid_capstyle="round")
    losses.plot(steps, flagged.losses, color=_ON, linewidth=1.2, linestyle=(0, (4, 2)))
    losses.set_ylim(0)
    losses.set_xlim(0, len(steps))
    losses.grid(axis="y")
    losses.set_xlabel(text(zh="步", en="step", between=" "))
    _titled(losses, text(zh="损失", en="loss", between=" "))
    off, on = (text(zh=zh, en=en, between=" ") for zh, en in (("关", "off"), ("开", "on")))
    peaks = [run.trace.peak for run in runs]
    # fmt: off
    _pair(figure, places[1], peaks, (off, on), size_text,
          text(zh="峰值", en="peak", between=" "))
    _pair(figure, places[2], [1e3 / run.pace for run in runs], (off, on),
          lambda ms: f"{ms:.0f} ms", text(zh="每步时间", en="time per step", between=" "))
    # fmt: on


def _pair(
    figure: Figure,
    place: tuple,
    values: Sequence[float],
    names: Sequence[str],
    show: Callable[[float], str],
    title: str,
) -> None:
    axes = figure.add_axes(place)
    axes.bar([0, 1], values, width=0.6, color=[_OFF, _ON])
    for x, value in enumerate(values):
        axes.annotate(show(value), (x, value), (0, 4), textcoords="offset points", ha="center")
    axes.set_xticks([0, 1], names)
    axes.set_ylim(0, max(values) * 1.15)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda *_: ""))
    _titled(axes, title)


def _titled(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=FAINT, pad=8)


# --- every k-th block ---------------------------------------------------------------------------


@dataclass(frozen=True)
class EveryKth:
    """What the slider shows: the run with every k-th block checkpointed, beside that without."""

    every: int
    blocks: int  # how many that are
    run: Run
    plain: Run
    highest: int  # bytes, of all runs' peaks


def every_explorer(runs: Mapping[int, Run], depth: int) -> Explorer:
    """A slider over k. ``runs``: for 0, without checkpoints; for k, with every k-th block's.

    Refuses runs whose losses or weights differ.
    """
    plain = runs[0]
    for run in runs.values():
        same_training(plain, run)
    highest = max(run.trace.peak for run in runs.values())

    def frame(every: int) -> EveryKth:
        return EveryKth(every, depth // every, runs[every], plain, highest)

    values = tuple(sorted(every for every in runs if every))
    zh, en = "每 k 块加一个检查点，k", "checkpoint every k-th block, k"
    control = Control("every", zh, en, values, values[0])
    return Explorer([control], frame, _draw_every, _caption_every)


def _draw_every(figure: Figure, data: EveryKth) -> None:
    trace, share = data.run.trace, data.run.trace.peak / data.plain.trace.peak
    title = (
        f"k = {data.every}，{data.blocks} 个检查点：峰值 {size_text(trace.peak)}，"
        f"是不用检查点时的 {share:.0%}",
        f"k = {data.every}, {data.blocks} checkpoint{'s' * (data.blocks != 1)}: the peak is "
        f"{size_text(trace.peak)}, {share:.0%} of the peak without",
    )
    draw_timeline(figure, trace, title=title, limit=data.highest)


def _caption_every(data: EveryKth) -> tuple[str, str]:
    trace, plain = data.run.trace, data.plain.trace
    kept = size_text(trace.kept_for_backward())
    flops = f"{trace.flops / plain.flops - 1:+.1%}"
    saved = size_text(plain.peak - trace.peak)
    return (
        f"检查点 {data.blocks} 个；前向传播结束时保存 {kept}；峰值省下 {saved}；FLOPs {flops}",
        f"checkpoints: {data.blocks}; kept at the end of forward {kept}; peak lower by {saved}; "
        f"FLOPs {flops}",
    )


# --- a larger batch -----------------------------------------------------------------------------


def simulated_peaks(sizes: Sizes, flag: bool, batches: Iterable[int]) -> Iterator[int]:
    """The peak of one AdamW step, bytes, on simulated tensors, for each batch size in turn.

    Gradients go before the forward pass here; Lightning drops them after it.
    """
    with simulated():
        model, optimizer, step = _training(sizes, flag)
        step_without_passes(model, optimizer)  # Adam's moments come into being
        for batch in batches:
            tokens = random_tokens(replace(sizes, batch=batch))
            yield measure(partial(step, tokens), model, optimizer, tokens).peak


def largest_batch(sizes: Sizes, flag: bool, budget: int) -> int:
    """The largest batch whose simulated step stays within ``budget`` bytes; 0 if not even 1 does.

    The peak grows almost in proportion to the batch, so a few guesses along the line through the
    last two are enough.
    """
    peaks = {0: 0}
    fits, too_large = 0, None
    batch = 4

    def guesses() -> Iterator[int]:
        while too_large is None or too_large - fits > 1:
            yield batch

    for peak in simulated_peaks(sizes, flag, guesses()):
        peaks[batch] = peak
        if peak <= budget:
            fits = max(fits, batch)
        else:
            too_large = batch if too_large is None else min(too_large, batch)
        low, high = (fits, too_large) if too_large else sorted(peaks)[-2:]
        guess = low + int((budget - peaks[low]) / (peaks[high] - peaks[low]) * (high - low))
        batch = max(guess, fits + 1)
        if too_large is not None:
            batch = min(batch, too_large - 1)
    return fits


def sequences_per_second(
    sizes: Sizes, settings: Sequence[tuple[bool, int]], rounds: int = 5
) -> list[tuple[float, float, float]]:
    """How many sequences a real training works through in a second: least, median, greatest.

    ``settings``: flag and batch size of each training. They take turns, a step each, so that a
    machine that slows down for a while slows them all.
    """
    steps = [
        partial(_training(sizes, flag)[2], random_tokens(replace(sizes, batch=batch)))
        for flag, batch in settings
    ]
    # The first step allocates the optimizer's state.
    seconds = seconds_in_turns(steps, range(rounds + 1), warm_up=1)
    rates = [
        [batch / taken for taken in found]
        for found, (_, batch) in zip(seconds, settings, strict=True)
    ]
    return [(min(found), statistics.median(found), max(found)) for found in rates]


def _training(sizes: Sizes, flag: bool) -> tuple[Transformer, Optimizer, Callable[[Tensor], None]]:
    """A model, its optimizer, and one step of its training."""
    model = Transformer(sizes)
    if flag:
        checkpoint_blocks(model, Block)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(tokens: Tensor) -> None:
        optimizer.zero_grad()
        model.loss(tokens).backward()
        optimizer.step()

    return model, optimizer, step
