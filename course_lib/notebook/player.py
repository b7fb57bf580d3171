"""Step through one training step of a chain of layers: what is kept, made again, and dropped.

Nothing here is staged: every picture is read off the events of a measured run of the learner's own
``chain``. A chain of ``SiLU`` suits this, because such a layer keeps its input and nothing else,
and its backward pass needs no memory beside the gradients.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from torch import nn

from ..figures.palette import COLOURS, FAINT, INK
from ..figures.panel import Panel, legend_below, wrapped, write
from ..figures.picture import Picture, is_narrow, style
from ..figures.words import in_language
from ..language import text
from ..memory.measurement import measure
from ..memory.trace import Event, MemoryTrace, Role
from ..recompute import chain as reference_chain
from ..recompute import rerun_alike
from .explorers import Control, Explorer, progress

VALUE = 2**20  # bytes of each value in the chain
LAYERS = 10
INTERVAL = 450  # milliseconds from one moment to the next

Doing = Literal["start", "forward", "recompute", "backward", "end"]
Kind = Literal["checkpoint", "activation", "passing", "recomputed", "gradient"]

_KIND_COLOURS: dict[Kind, str] = {
    "checkpoint": COLOURS[Role.CHECKPOINT],
    "activation": COLOURS[Role.ACTIVATION],
    "passing": COLOURS[Role.TEMPORARY],
    "recomputed": COLOURS[Role.RECOMPUTED],
    "gradient": COLOURS[Role.GRADIENT],
}
_KIND_NAMES: dict[Kind, tuple[str, str]] = {
    "checkpoint": ("检查点", "checkpoint"),
    "activation": ("激活值", "activation"),
    "passing": ("临时量", "temporary"),
    "recomputed": ("重计算", "recomputed"),
    "gradient": ("梯度", "gradient"),
}
_ROWS = {"checkpoint": 2, "activation": 2, "passing": 2, "recomputed": 1, "gradient": 0}


@dataclass(frozen=True)
class Value:
    """A value of the chain that is in memory. ``place``: 0 for the input, i for layer i's output
    (or the gradient of that)."""

    place: int
    kind: Kind


@dataclass(frozen=True)
class Moment:
    """What is in memory right after something was made.

    ``layer``: the one at work, counted from 1; 0 at the start and at the end. ``event``: index of
    the event in the trace, -1 before the first. ``total``: bytes.
    """

    doing: Doing
    layer: int
    alive: tuple[Value, ...]
    event: int
    total: int

    def count(self, kind: Kind) -> int:
        """How many values of that kind are there."""
        return sum(value.kind == kind for value in self.alive)


@dataclass(frozen=True)
class Film:
    """One measured step of the chain, moment by moment.

    ``starts``: where segments begin, as places of the values that are their checkpoints.
    """

    layers: int
    segments: int
    trace: MemoryTrace
    moments: tuple[Moment, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Still:
    """What one picture shows: a film stopped at ``moment``; ``limit``: top of the axis, bytes."""

    film: Film
    moment: Moment
    limit: int


def film(
    chain: Callable[..., Any] = reference_chain,
    segments: int = 3,
    checkpoint: Callable[..., Any] = rerun_alike,
    layers: int = LAYERS,
) -> Film:
    """Measure one step of ``chain(layers, segments, x, checkpoint)`` and take it apart."""
    model = nn.ModuleList(nn.SiLU() for _ in range(layers))
    x = torch.linspace(-3, 3, VALUE // 4).requires_grad_()

    def step() -> None:
        chain(model, segments, x, checkpoint).sum().backward()

    trace = measure(step, model, inputs=x)
    moments = _moments(trace)
    kept = {v.place for moment in moments for v in moment.alive if v.kind == "checkpoint"}
    return Film(layers, segments, trace, moments, tuple(sorted(kept)))


def _moments(trace: MemoryTrace) -> tuple[Moment, ...]:
    """One for each value that was made, one before and one after them all."""
    alive = [Value(0, "checkpoint")]
    before = sum(trace.before.values())
    moments = [Moment("start", 0, tuple(alive), -1, before)]
    for index, event in enumerate(trace.events):
        if abs(event.size) < VALUE:
            continue  # random states, the loss
        value = _value(event)
        if event.size < 0:
            alive.remove(value)
            continue
        alive.append(value)
        layer = int(event.module or 0) + 1
        moments.append(Moment(_doing(value), layer, tuple(alive), index, event.total))
    last = trace.events[-1]
    return (*moments, Moment("end", 0, tuple(alive), len(trace.events) - 1, last.total))


def _value(event: Event) -> Value:
    layer = int(event.module or 0)
    if event.role is Role.RECOMPUTED:
        return Value(layer + 1, "recomputed")
    if event.operator is not None and event.operator.endswith("_backward"):
        return Value(layer, "gradient")
    kinds: dict[Role, Kind] = {Role.CHECKPOINT: "checkpoint", Role.ACTIVATION: "activation"}
    return Value(layer + 1, kinds.get(event.role, "passing"))


def _doing(value: Value) -> Doing:
    doing: dict[Kind, Doing] = {"recomputed": "recompute", "gradient": "backward"}
    return doing.get(value.kind, "forward")


# --- words --------------------------------------------------------------------------------------


def title(still: Still) -> tuple[str, str]:
    """What happens at this moment: (zh, en)."""
    layer, origin = still.moment.layer, _origin(still)
    before = layer - 1 or "x"
    place = ("输入", "the input") if origin == 0 else (f"检查点 {origin} ", f"checkpoint {origin}")
    return {
        "start": ("开始：内存里只有输入", "Start: only the input is there"),
        "forward": (f"前向传播：第 {layer} 层", f"Forward: layer {layer}"),
        "recompute": (f"重计算：第 {layer} 层再算一遍，从{place[0]}出发",
                      f"Recompute: layer {layer} again, from {place[1]}"),
        "backward": (f"反向传播：第 {layer} 层，由 {layer} 的梯度求 {before} 的梯度",
                     f"Backward: layer {layer}, from gradient {layer} to gradient {before}"),
        "end": ("结束：留下输入和它的梯度", "End: the input and its gradient are left"),
    }[still.moment.doing]  # fmt: skip


def _origin(still: Still) -> int:
    """The place of the checkpoint from which the layer at work is recomputed."""
    return max((start for start in still.film.starts if start < still.moment.layer), default=0)


def caption(still: Still) -> tuple[str, str]:
    """The sum of what is there now, and the peak of the whole step: (zh, en)."""
    moment, film = still.moment, still.film
    counts = [(moment.count(kind), _KIND_NAMES[kind]) for kind in _KIND_NAMES]
    there = [(count, names) for count, names in counts if count]
    zh = " + ".join(f"{count} 个{names[0].replace('重计算', '重算的值')}" for count, names in there)
    en = " + ".join(f"{count} {names[1]}{_plural(names[1], count)}" for count, names in there)
    now, peak = (f"{size / VALUE:.2f} MiB" for size in (moment.total, film.trace.peak))
    return (
        f"{film.segments} 个检查点。现在 {now}：{zh}，每个 1 MiB。整步的峰值是 {peak}。",
        f"{film.segments} checkpoint{'s' * (film.segments > 1)}. Now {now}: {en}, of 1 MiB each. "
        f"The peak of the whole step is {peak}.",
    )


def _plural(name: str, count: int) -> str:
    return "s" if count > 1 and name != "recomputed" else ""


# --- the picture --------------------------------------------------------------------------------

SIZE = (8.2, 5.3)
ROW_NAMES = (("梯度", "gradients"), ("重计算", "recomputed"), ("前向传播", "forward"))
EMPTY = "#c3c8cf"
SHOWN_AHEAD = 0.28  # opacity of what is still to come


def draw(figure: Figure, still: Still) -> None:
    """The chain above, with what is in memory; the memory curve of the whole step below."""
    width, height = figure.get_size_inches()
    narrow = is_narrow(figure)
    words, left, right = in_language(title(still), between="  ·  "), 0.95, width - 0.1
    chain_box, memory_box = (left, 2.62, right, 4.77), (left, 0.45, right, 2.36)
    if narrow:
        words = wrapped(words, width - 0.2, 11)
        chain_box = (0.06, height - 2.9, width - 0.06, height - 0.7)
        memory_box = (0.6, 0.75, right, height - 3.15)
    write(figure, 0.1 if narrow else 0.16, height - 0.18, words, va="top",
          fontsize=11 if narrow else 12)  # fmt: skip
    layers = still.film.layers
    lowest = -0.8 if narrow else -0.5
    chain = Panel(figure, chain_box, (-0.5, layers + 0.5), (lowest, 3.05))
    _draw_chain(chain, still)
    _draw_segments(chain, still.film)
    top = still.limit / VALUE * 1.09
    memory = Panel(figure, memory_box, (0, len(still.film.moments)), (0, top))
    _draw_memory(memory, still)
    _draw_legend(figure)


def _draw_chain(panel: Panel, still: Still) -> None:
    film, moment = still.film, still.moment
    for row, name in enumerate(ROW_NAMES):
        if is_narrow(panel.figure):  # below the row, not beside it
            panel.words(-0.28, row - 0.36, in_language(name, between=" "), va="top", color=FAINT)
        else:
            panel.words(-0.5, row, in_language(name, between="\n"), -0.08, ha="right",
                        va="center", fontsize=9)  # fmt: skip
    links = [[(layer - 0.7, 2), (layer - 0.3, 2)] for layer in range(1, film.layers + 1)]
    panel.lines(links, EMPTY, 1, 1)
    filled = {(value.place, _ROWS[value.kind]): value.kind for value in moment.alive}
    slots = [(place, row) for place in range(film.layers + 1) for row in range(3)]
    slots.remove((0, 1))  # the input is never made again
    _draw_squares(panel, [slot for slot in slots if slot not in filled], "white", EMPTY, 0.7,
                  [(0, (2, 2))])  # fmt: skip
    _draw_squares(panel, list(filled), [_KIND_COLOURS[k] for k in filled.values()], INK, 1, ["-"])
    for (place, row), kind in filled.items():
        panel.words(place, row, str(place) if place else "x", 0, -0.01, ha="center", va="center",
                    fontsize=9, color="white" if kind in ("checkpoint", "gradient") else INK,
                    zorder=4)  # fmt: skip
    _draw_arrow(panel, still)


def _draw_squares(
    panel: Panel, slots: Sequence[tuple[int, int]], colours: Any, edge: str, width: float,
    style: list,
) -> None:  # fmt: skip
    corners = ((-0.28, -0.31), (0.28, -0.31), (0.28, 0.31), (-0.28, 0.31))
    shapes = [[(place + dx, row + dy) for dx, dy in corners] for place, row in slots]
    panel.figure.add_artist(
        PolyCollection(shapes, facecolors=colours, edgecolors=edge, linewidths=width,
                       linestyles=style, transform=panel.transform, zorder=2)
    )  # fmt: skip


def _draw_arrow(panel: Panel, still: Still) -> None:
    """Where a layer is at work: what it reads and what it makes."""
    moment = still.moment
    row = {"forward": 2.0, "recompute": 1.0, "backward": 0.0}.get(moment.doing)
    if row is None:
        return
    left, right = (moment.layer - 0.72, row), (moment.layer - 0.28, row)
    if moment.doing == "recompute" and moment.layer == _origin(still) + 1:
        left, right = (moment.layer - 0.72, 1.69), (moment.layer - 0.29, 1.26)  # corner to corner
    begin, end = (right, left) if row == 0 else (left, right)
    panel.figure.add_artist(
        FancyArrowPatch(
            begin, end, arrowstyle="-|>", mutation_scale=13, linewidth=2, color=INK, shrinkA=0,
            shrinkB=0, transform=panel.transform, zorder=5,
        )
    )  # fmt: skip


def _draw_segments(panel: Panel, film: Film) -> None:
    """A bracket over the layers of each segment."""
    brackets = []
    for start, end in zip(film.starts, [*film.starts[1:], film.layers], strict=True):
        left, right, y = start + 0.36, end + 0.30, 2.58
        brackets.append([(left, y - 0.1), (left, y), (right, y), (right, y - 0.1)])
        layers = f"{start + 1}–{end}" if end > start + 1 else f"{end}"
        panel.words((left + right) / 2, y, layers, 0, 0.03, ha="center", va="bottom", fontsize=8,
                    color=FAINT)  # fmt: skip
    panel.lines(brackets, FAINT, 1, 1)


def _draw_memory(panel: Panel, still: Still) -> None:
    film, moment = still.film, still.moment
    now = next(i for i, shown in enumerate(film.moments) if shown is moment)
    shapes, colours = [], []
    for i, stack in enumerate(_columns(film.moments)):
        bottom = 0
        for kind, size in stack:
            top = bottom + size
            shapes.append([(i, bottom), (i + 1, bottom), (i + 1, top), (i, top)])
            colours.append(to_rgba(_KIND_COLOURS[kind], 1 if i <= now else SHOWN_AHEAD))
            bottom = top
    panel.areas(shapes, colours)
    peak, height = film.trace.peak / VALUE, moment.total / VALUE
    panel.line([now, now, now + 1, now + 1, now], [0, height, height, 0, 0], INK, 4, linewidth=1.6)
    panel.line(panel.x, [peak, peak], INK, linewidth=0.8, linestyle=(0, (4, 3)))
    longest = -(-film.layers // film.segments)
    panel.words(
        0, peak,
        f"{text(zh='峰值', en='peak', between=' ')} {peak:.2f} MiB     "
        f"k + n/k + 1 = {film.segments} + {longest} + 1",
        0.06, 0.03, va="bottom", fontsize=9,
    )  # fmt: skip
    numbers = range(0, int(panel.y[1]) + 1, 2)
    panel.y_ruler(numbers, [str(number) for number in numbers], "MiB")


def _draw_legend(figure: Figure) -> None:
    """What the colours mean, in one line at the bottom."""
    side, y = 0.13, 0.2
    kinds: tuple[Kind, ...] = ("checkpoint", "passing", "recomputed", "gradient")
    if is_narrow(figure):
        return legend_below(
            figure, [(in_language(_KIND_NAMES[k], between=" "), _KIND_COLOURS[k]) for k in kinds]
        )
    squares = []
    for i, kind in enumerate(kinds):
        left = 0.95 + 1.79 * i
        squares.append([(left, y - side / 2), (left, y + side / 2),
                        (left + side, y + side / 2), (left + side, y - side / 2)])  # fmt: skip
        write(figure, left + side + 0.08, y, in_language(_KIND_NAMES[kind], between=" "),
              va="center_baseline", fontsize=9)  # fmt: skip
    figure.add_artist(
        PolyCollection(squares, facecolors=[_KIND_COLOURS[kind] for kind in kinds],
                       edgecolors=FAINT, linewidths=0.4, transform=figure.dpi_scale_trans)
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _columns(moments: tuple[Moment, ...]) -> tuple[tuple[tuple[Kind, int], ...], ...]:
    """For each moment, how many values of each kind, from the bottom up."""
    return tuple(
        tuple((kind, moment.count(kind)) for kind in _KIND_NAMES if moment.count(kind))
        for moment in moments
    )


# --- the player ---------------------------------------------------------------------------------


class Player(Explorer):
    """An explorer with a slider for checkpoints, one for the moment, and buttons that move it."""

    more_rows = 1

    def __init__(self, films: Sequence[Film]):
        self.films = {film.segments: film for film in films}
        limit = max(film.trace.peak for film in films)
        longest = max(len(film.moments) for film in films)
        counts = tuple(self.films)
        first = self.films.get(3, films[0])
        peak = max(first.moments, key=lambda moment: moment.total)

        def frame(segments: int, moment: int) -> Still:
            film = self.films[segments]
            return Still(film, film.moments[min(moment, len(film.moments) - 1)], limit)

        controls = (
            Control("segments", "检查点", "checkpoints", counts, first.segments),
            Control("moment", "时刻", "moment", tuple(range(longest)), first.moments.index(peak)),
        )
        super().__init__(controls, frame, draw, caption, SIZE)
        self.played = {"slider": 1, "interval": INTERVAL}


def player(
    chain: Callable[..., Any] = reference_chain,
    checkpoint: Callable[..., Any] = rerun_alike,
    layers: int = LAYERS,
) -> Player:
    """Measure ``chain`` with every number of checkpoints, then move through the results."""
    counts = progress(
        range(1, layers + 1), zh="逐个测量检查点数量", en="Measuring each number of checkpoints"
    )
    return Player([film(chain, segments, checkpoint, layers) for segments in counts])


def export(path: Path, segments: int = 3, milliseconds: int = 550) -> None:
    """Write the film of the reference as an animation, GIF or WebP by the name's ending."""
    from PIL import Image

    shown = film(segments=segments)
    pictures = []
    for moment in shown.moments:
        picture = Picture(SIZE)
        with style():
            draw(picture, Still(shown, moment, shown.trace.peak))
        pictures.append(Image.open(io.BytesIO(picture.png())).convert("RGB"))
    times = [milliseconds] * len(pictures)
    times[0] = times[-1] = 4 * milliseconds
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)


if __name__ == "__main__":
    import sys

    export(Path(sys.argv[1]))
