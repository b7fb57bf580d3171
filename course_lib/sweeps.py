"""Sweeps of lesson 03: the segments of ``checkpoint_sequential``, and kinds of models.

The first is measured on real tensors and put behind a slider. The second asks what checkpoints
save and cost for models of different kinds: bytes and FLOPs with simulated tensors, at sizes too
large to run here; wall time on real ones, small enough for any machine.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from .explorers import Control, Explorer, progress
from .figures import COLOURS, COMPARED, FAINT, GRID, INK, Panel, said, size_text, write
from .language import Table
from .memory import MemoryTrace, Role, measure, simulated
from .models import Block, Sizes

MIB = 2**20

# --- segments -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segmented:
    """What ``checkpoint_sequential`` did with one number of segments.

    ``calls``: how often each layer's forward ran. ``kept``, ``peak``: bytes, None after an error.
    ``error``: what it raised.
    """

    segments: int
    calls: tuple[int, ...]
    kept: int | None = None
    peak: int | None = None
    error: str | None = None

    def lengths(self) -> list[int]:
        """Layers in each segment, the last one included."""
        size = len(self.calls) // self.segments
        return [size] * (self.segments - 1) + [len(self.calls) - size * (self.segments - 1)]


def linear_gelu_linear(width: int, inside: int | None = None) -> nn.Sequential:
    """A block with something inside: Linear, GELU, Linear."""
    inside = inside or 4 * width
    return nn.Sequential(nn.Linear(width, inside), nn.GELU(), nn.Linear(inside, width))


def measure_segments(model: nn.Sequential, x: Tensor, counts: Sequence[int]) -> list[Segmented]:
    """Run and measure ``checkpoint_sequential(model, segments, x)`` for each number of segments."""
    bar = progress(counts, zh="逐个测量段数", en="Measuring each number of segments")
    return [_measure_segmented(model, x, segments) for segments in bar]


def _measure_segmented(model: nn.Sequential, x: Tensor, segments: int) -> Segmented:
    calls = [0] * len(model)
    handles = [
        layer.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, layer in enumerate(model)
    ]

    def step() -> None:
        y = checkpoint_sequential(model, segments, x, use_reentrant=False)
        y.square().mean().backward()

    for parameter in model.parameters():
        parameter.grad = None
    try:
        trace = measure(step, model, inputs=x)
    except ValueError as error:
        return Segmented(segments, tuple(calls), error=f"ValueError: {error}")
    finally:
        for handle in handles:
            handle.remove()
    return Segmented(segments, tuple(calls), kept_for_backward(trace), trace.peak)


def kept_for_backward(trace: MemoryTrace) -> int:
    """Bytes kept at the end of the forward pass for the backward pass."""
    roles = (Role.ACTIVATION, Role.CHECKPOINT, Role.RANDOM_STATE)
    return sum(trace.kept.get(role, 0) for role in roles)


def segments_explorer(found: Sequence[Segmented]) -> Explorer:
    """A slider over the number of segments: which layers run twice, what is kept, the peak."""
    by_count = {one.segments: one for one in found}

    def frame(segments: int) -> tuple[Segmented, Sequence[Segmented]]:
        return by_count[segments], found

    control = Control("segments", "段数", "segments", tuple(by_count), found[1].segments)
    return Explorer([control], frame, _draw_segments, _say_segments, size=(8.2, 4.5))


def _draw_segments(figure: Figure, data: tuple[Segmented, Sequence[Segmented]]) -> None:
    chosen, found = data
    figure.clear()
    width, height = figure.get_size_inches()
    words = said(_segments_title(chosen), between="\n")
    write(figure, 0.2, height - 0.15, words, ha="left", va="top", fontsize=12, linespacing=1.35)
    top = height - 0.3 - 0.24 * (words.count("\n") + 1)
    layers = len(chosen.calls)
    _draw_layers(
        Panel(figure, (0.75, top - 0.7, width - 0.2, top), (-0.1, layers + 0.1), (0, 1)), chosen
    )
    most = 1.12 * max(one.peak or 0 for one in found) / MIB
    box = 0.75, 0.7, width - 0.2, top - 0.85
    _draw_sizes(Panel(figure, box, (0.4, found[-1].segments + 0.6), (0, most)), chosen, found)


def _draw_sizes(panel: Panel, chosen: Segmented, found: Sequence[Segmented]) -> None:
    """Peak, and the part of it that is kept, for every number of segments."""
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50) if panel.y[1] / step <= 8)
    numbers = [step * i for i in range(int(panel.y[1] / step) + 1)]
    panel.y_ruler(numbers, [f"{number:g}" for number in numbers], "MiB")
    panel.x_ruler(
        [one.segments for one in found], [str(one.segments) for one in found],
        said(("段数。宽条是峰值，里面的窄条是前向结束时保存的",
              "segments. Wide bars: the peak; narrow ones: kept at the end of forward")),
    )  # fmt: skip
    shapes, colours = [], []
    for one in found:
        shade = INK if one is chosen else FAINT
        if one.peak is None or one.kept is None:
            panel.words(one.segments, 0, "✗", 0, 0.05, ha="center", fontsize=13, color=shade)
            continue
        for value, wide, colour in ((one.peak, 0.36, COMPARED[0]), (one.kept, 0.21, COMPARED[1])):
            shapes.append(_rectangle(one.segments - wide, 0, one.segments + wide, value / MIB))
            colours.append(colour if one is chosen else _paler(colour))
        panel.words(one.segments, one.peak / MIB, f"{one.peak / MIB:.1f}", 0, 0.04, ha="center",
                    fontsize=9, color=shade)  # fmt: skip
    panel.areas(shapes, colours)


def _draw_layers(panel: Panel, chosen: Segmented) -> None:
    """The layers as boxes: green ones run twice, orange ones once; blue bars are checkpoints."""
    shapes, colours = [], []
    for i, calls in enumerate(chosen.calls):
        role = Role.RECOMPUTED if calls > 1 else Role.ACTIVATION
        shapes.append(_rectangle(i + 0.1, 0.12, i + 0.9, 0.74))
        colours.append(GRID if chosen.error else COLOURS[role])
        words = "✗" if chosen.error else f"×{calls}"
        panel.words(i + 0.5, 0.43, words, ha="center", va="center_baseline", fontsize=10)
    panel.areas(shapes, colours, layer=1)
    if chosen.error or chosen.segments == 1:
        return
    starts = itertools.accumulate(chosen.lengths()[:-2], initial=0)
    bars = [[(start, 0.02), (start, 0.86)] for start in starts]
    panel.lines(bars, COLOURS[Role.CHECKPOINT], 3.5, 3)


def _rectangle(left: float, bottom: float, right: float, top: float) -> list[tuple[float, float]]:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _paler(colour: str) -> str:
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.38 * (255 - part)):02x}" for part in parts)


def _segments_title(chosen: Segmented) -> tuple[str, str]:
    count, n = chosen.segments, len(chosen.calls)
    if chosen.error:
        return f"{n} 层分成 {count} 段：报错", f"{n} layers in {count} segments: an error"
    twice = sum(calls > 1 for calls in chosen.calls)
    if not twice:
        return f"{n} 层 1 段：没有一层做了检查点", f"{n} layers, 1 segment: nothing is checkpointed"
    return (
        f"{n} 层分成 {count} 段：{twice} 层算两遍，最后 {n - twice} 层没有检查点",
        f"{n} layers in {count} segments: {twice} run twice, the last {n - twice} only once",
    )


def _say_segments(data: tuple[Segmented, Sequence[Segmented]]) -> tuple[str, str]:
    chosen, _ = data
    if chosen.error:
        return chosen.error, chosen.error
    lengths = " + ".join(map(str, chosen.lengths()))
    kept, peak = size_text(chosen.kept or 0), size_text(chosen.peak or 0)
    return (
        f"段长 {lengths}；保存 {kept}，峰值 {peak}。蓝线是检查点，绿色的层算两遍，橙色的只算一遍。",
        f"Segments of {lengths}; kept {kept}, peak {peak}. Blue bars are checkpoints, green layers "
        "run twice, orange ones once.",
    )


# --- kinds of models ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One kind of model. ``make(blocks)``: its blocks; ``shape``: of the first block's input.

    ``name``: (zh, en). Sizes are given twice: ``large`` for simulated tensors, ``small`` for real.
    """

    name: tuple[str, str]
    large: Callable[[], tuple[nn.Sequential, tuple[int, ...]]]
    small: Callable[[], tuple[nn.Sequential, tuple[int, ...]]]


def _mlp(depth: int, width: int, batch: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    return nn.Sequential(*(linear_gelu_linear(width) for _ in range(depth))), (batch, width)


def _linears(depth: int, width: int, batch: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    blocks = (nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth))
    return nn.Sequential(*blocks), (batch, width)


class ConvBlock(nn.Module):
    """Two 3 × 3 convolutions with GroupNorm and ReLU round a residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


def _cnn(depth: int, channels: int, side: int, batch: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    blocks = nn.Sequential(*(ConvBlock(channels) for _ in range(depth)))
    return blocks, (batch, channels, side, side)


def _transformer(sizes: Sizes) -> tuple[nn.Sequential, tuple[int, ...]]:
    blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.depth)))
    return blocks, (sizes.batch, sizes.sequence, sizes.width)


KINDS: tuple[Kind, ...] = (
    Kind(("Transformer，批 32", "Transformer, batch 32"),
         lambda: _transformer(Sizes(4, 512, 8, 256, batch=32)),
         lambda: _transformer(Sizes(4, 128, 4, 64, batch=8))),
    Kind(("Transformer，批 1", "Transformer, batch 1"),
         lambda: _transformer(Sizes(4, 512, 8, 256, batch=1)),
         lambda: _transformer(Sizes(4, 128, 4, 64, batch=1))),
    Kind(("卷积网络", "convolutional net"),
         lambda: _cnn(6, 64, 64, 32), lambda: _cnn(6, 16, 16, 8)),
    Kind(("MLP，块里有 4 倍宽的一层", "MLP, 4 times as wide inside"),
         lambda: _mlp(6, 1024, 8192), lambda: _mlp(8, 128, 256)),
    Kind(("Linear + ReLU", "Linear + ReLU"),
         lambda: _linears(8, 1024, 8192), lambda: _linears(8, 256, 256)),
)  # fmt: skip


def run_in_checkpoints(blocks: nn.Sequential, x: Tensor, each: int) -> Tensor:
    """The blocks one after the other, ``each`` of them in one checkpoint; 0: no checkpoints."""
    if each == 0:
        return blocks(x)
    for start in range(0, len(blocks), each):
        x = checkpoint(blocks[start : start + each], x, use_reentrant=False)
    return x


def training_step(
    blocks: nn.Sequential, x: Tensor, optimizer: torch.optim.Optimizer, each: int
) -> None:
    """Forward, backward, update; gradients are freed first."""
    optimizer.zero_grad()
    run_in_checkpoints(blocks, x, each).square().mean().backward()
    optimizer.step()


@dataclass(frozen=True)
class Saving:
    """What one way of wrapping does to one kind of model. ``each``: blocks per checkpoint."""

    kind: Kind
    each: int
    kept: int
    peak: int
    flops: int


def measure_kinds(kinds: Sequence[Kind] = KINDS, every: Sequence[int] = (0, 1, 2)) -> list[Saving]:
    """Measure one AdamW training step of each kind, large, with simulated tensors.

    ``every``: blocks per checkpoint; 0: no checkpoints, -1: the whole model in one.
    """
    found = []
    for kind in progress(kinds, zh="逐个模拟", en="Simulating each"):
        with simulated():
            blocks, shape = kind.large()
            optimizer, x = torch.optim.AdamW(blocks.parameters()), torch.randn(shape)
            for parameter in blocks.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()  # Adam's moments come into being
            for each in every:
                count = len(blocks) if each < 0 else each
                trace = measure(
                    functools.partial(training_step, blocks, x, optimizer, count),
                    blocks, optimizer, x,
                )  # fmt: skip
                kept = kept_for_backward(trace)
                found.append(Saving(kind, each, kept, trace.peak, trace.flops))
    return found


def savings_table(found: Sequence[Saving]) -> Table:
    """Kept bytes, peak and FLOPs of each, against the same kind without checkpoints."""
    plain = {one.kind.name: one for one in found if one.each == 0}
    rows = []
    for one in found:
        base = plain[one.kind.name]
        rows.append(
            [one.kind.name, _each_in_words(one.each), size_text(one.kept),
             _change(one.kept, base.kept), size_text(one.peak), _change(one.peak, base.peak),
             _change(one.flops, base.flops)]
        )  # fmt: skip
    return Table(
        [("模型", "model"), ("检查点", "checkpoints"), ("保存", "kept"), ("变化", "change"),
         ("整步峰值", "peak of the step"), ("变化", "change"), ("FLOPs", "FLOPs")], rows,
    )  # fmt: skip


def _each_in_words(each: int) -> tuple[str, str]:
    if each == 0:
        return "不用", "none"
    if each < 0:
        return "整个模型一个", "one for the whole model"
    return (
        ("每块一个", "one per block")
        if each == 1
        else (f"每 {each} 块一个", f"one per {each} blocks")
    )


def _change(value: int, base: int) -> str:
    if value == base:
        return "0%"
    return f"{value / base - 1:+.1%}".replace("-", "−")


@dataclass(frozen=True)
class Slowdown:
    """Wall time of a step with a checkpoint per block, divided by that without, in each round."""

    kind: Kind
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def time_kinds(
    kinds: Sequence[Kind] = KINDS, rounds: int = 5, device: torch.device | str = "cpu"
) -> list[Slowdown]:
    """Time real steps of each kind, with and without a checkpoint per block.

    The two take turns, so that a slow moment of the machine touches both. Models are small on the
    CPU and large on a GPU, which would spend its time waiting for Python otherwise.
    """
    device = torch.device(device)
    found = []
    for kind in progress(kinds, zh="逐个计时", en="Timing each"):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            blocks, shape = kind.small() if device.type == "cpu" else kind.large()
            blocks, x = blocks.to(device), torch.randn(shape).to(device)
        optimizer = torch.optim.AdamW(blocks.parameters())
        seconds: dict[int, list[float]] = {0: [], 1: []}
        for number in range(-2, rounds):  # two rounds to warm up
            for each in seconds:
                begin = time.perf_counter()
                training_step(blocks, x, optimizer, each)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if number >= 0:
                    seconds[each].append(time.perf_counter() - begin)
        ratios = tuple(b / a for a, b in zip(seconds[0], seconds[1], strict=True))
        found.append(Slowdown(kind, ratios))
    return found


def _told(slowdown: Slowdown) -> str | tuple[str, str]:
    """The median, unless half of the rounds do not even agree on the sign."""
    low, high = slowdown.quartiles
    if low < 1 < high:
        return "说不准", "cannot be told"
    return f"{slowdown.median - 1:+.0%}"


def slowdown_table(
    found: Sequence[Slowdown], gpus: Mapping[str, Mapping[str, float]] = MappingProxyType({})
) -> Table:
    """Median and spread of the extra time of each kind.

    ``gpus``: by card, the medians of the large models, by the kind's English name.
    """
    rows = [
        [one.kind.name, _told(one),
         " … ".join(f"{quarter - 1:+.0%}" for quarter in one.quartiles),
         *(f"{medians[one.kind.name[1]] - 1:+.0%}" for medians in gpus.values())]
        for one in found
    ]  # fmt: skip
    return Table(
        [("模型（小）", "model (small)"), ("多用的时间，中位数", "extra time, median"),
         ("中间一半的轮次", "middle half of the rounds"),
         *((f"{card}，大模型", f"{card}, large model") for card in gpus)], rows,
    )  # fmt: skip
