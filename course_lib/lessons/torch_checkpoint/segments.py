"""``checkpoint_sequential`` with every number of segments: what is kept, and the peak."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from ...counting import order_of_calls
from ...figures.palette import COLOURS, COMPARED, FAINT, GRID, INK
from ...figures.panel import Panel, title_above
from ...figures.words import in_language, size_text
from ...memory.measurement import measure
from ...memory.trace import Role
from ...notebook.explorers import Control, Explorer, progress

MIB = 2**20


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
    def step() -> None:
        y = checkpoint_sequential(model, segments, x, use_reentrant=False)
        y.square().mean().backward()

    for parameter in model.parameters():
        parameter.grad = None
    trace, failed = None, None
    with order_of_calls(model) as order:
        try:
            trace = measure(step, model, inputs=x)
        except ValueError as error:
            failed = f"ValueError: {error}"
    calls = tuple(order.count(place) for place in range(len(model)))
    if trace is None:
        return Segmented(segments, calls, error=failed)
    return Segmented(segments, calls, trace.kept_for_backward(), trace.peak)


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
    width = figure.get_figwidth()
    top = title_above(figure, _segments_title(chosen))
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
        [one.segments for one in found],
        [str(one.segments) for one in found],
        in_language(
            (
                "段数。宽条是峰值，里面的窄条是前向结束时保存的",
                "segments. Wide bars: the peak; narrow ones: kept at the end of forward",
            )
        ),
    )
    shapes, colours = [], []
    for one in found:
        shade = INK if one is chosen else FAINT
        if one.peak is None or one.kept is None:
            panel.words(one.segments, 0, "✗", 0, 0.05, ha="center", fontsize=13, color=shade)
            continue
        for value, wide, colour in ((one.peak, 0.36, COMPARED[0]), (one.kept, 0.21, COMPARED[1])):
            shapes.append(_rectangle(one.segments - wide, 0, one.segments + wide, value / MIB))
            colours.append(colour if one is chosen else _paler(colour))
        panel.words(
            one.segments,
            one.peak / MIB,
            f"{one.peak / MIB:.1f}",
            0,
            0.04,
            ha="center",
            fontsize=9,
            color=shade,
        )
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
        return f"{n} 层 1 段：没有一层加了检查点", f"{n} layers, 1 segment: nothing is checkpointed"
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
