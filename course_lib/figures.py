"""Every picture of the course: functions that take data and draw it on a Matplotlib figure.

Each draws on the figure it is given, in the language in use, with one colour per role; none keeps
state or needs ``pyplot``. A :class:`Picture` shows itself in a notebook, also where nothing runs.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import io
import itertools
import math
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Affine2D, Bbox, TransformedBbox

from .language import language, text
from .recorder import Phase, Role

if TYPE_CHECKING:
    from .memory import MemoryTrace

Words = str | tuple[str, str]  # the same in both languages, or (zh, en)

# Checked in the tests: any two differ by at least 20 in CIELAB for normal and for each kind of
# colour-blind sight, and checkpoint, activation and recomputed by at least 40.
COLOURS: dict[Role, str] = {
    Role.PARAMETER: "#343a42",
    Role.BUFFER: "#e0e3e8",
    Role.INPUT: "#757a82",
    Role.OPTIMIZER_STATE: "#a3461a",
    Role.GRADIENT: "#8f50ab",
    Role.CHECKPOINT: "#0b45d9",
    Role.ACTIVATION: "#d98c14",
    Role.RECOMPUTED: "#17c694",
    Role.TEMPORARY: "#9fc2fb",
    Role.WORKSPACE: "#f8dc3c",
    Role.RANDOM_STATE: "#4b0f73",
}
STACK = tuple(COLOURS)  # from the bottom up: what stays first, what comes and goes above it
ROLE_NAMES: dict[Role, tuple[str, str]] = {role: role.names for role in STACK}
PHASE_NAMES: dict[Phase, tuple[str, str]] = {
    "forward": ("前向传播", "forward"),
    "backward": ("反向传播", "backward"),
    "optimizer step": ("参数更新阶段", "optimizer step"),
}
PHASE_IN_A_SENTENCE: dict[Phase, tuple[str, str]] = {
    "forward": ("前向传播", "the forward pass"),
    "backward": ("反向传播", "the backward pass"),
    "optimizer step": ("参数更新阶段", "the optimizer step"),
}
_PHASE_TINTS = {"forward": "#fbfaf6", "backward": "#f4f0e6", "optimizer step": "#ebe6d8"}
INK, FAINT, GRID = "#22262b", "#6b7178", "#d5d9de"
# Two sides of a comparison, which are no roles. Checked like the roles, and against them.
COMPARED = ("#f06060", "#541800")
CURVE_COLOURS = (INK, *COMPARED, FAINT)

SIZE = (8.2, 4.2)  # inches; with DPI, the width of a notebook
DPI = 110
STEPS = 800  # a timeline has no more columns than this: more than it has pixels
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


# --- words and numbers --------------------------------------------------------------------------


def said(words: Words, between: str = " · ") -> str:
    """``words`` in the language in use."""
    return words if isinstance(words, str) else text(zh=words[0], en=words[1], between=between)


def yes_or_no(answer: bool) -> tuple[str, str]:
    """A truth value as a table shows it: (zh, en)."""
    return ("是", "yes") if answer else ("否", "no")


def size_text(size: float) -> str:
    """A number of bytes to read: ``5,056 B``, exact below 10 KiB; else three digits, ``1.25 MiB``.

    Zeros at the end are shown where they are rounded, left out where they are exact.
    """
    sign = "−" if size < 0 else ""
    size = abs(size)
    if size < 10 * 1024 and size == int(size):
        return f"{sign}{int(size):,} B"
    power = min(len(UNITS) - 1, max(0, int(math.log(size, 1024))))
    if power + 1 < len(UNITS) and round(size / 1024**power) >= 1024:
        power += 1
    value = size / 1024**power
    shortest = f"{value:.3g}"
    if value >= 100:
        return f"{sign}{value:,.0f} {UNITS[power]}"
    if float(shortest) == value:
        return f"{sign}{shortest} {UNITS[power]}"
    return f"{sign}{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {UNITS[power]}"


SCATTER = 0.5  # of the time of a step: rounds that lie further apart tell no number


def more_time_in_words(low: float, middle: float, high: float) -> tuple[str, str]:
    """What timings say of the extra time, or that they say nothing: (zh, en).

    ``low``, ``middle``, ``high``: the least, the median and the greatest extra time of some rounds,
    as shares. A number is told where all rounds agree whether the step got slower, and lie no
    further apart than ``SCATTER``.
    """
    span = f"{low:+.0%}", f"{high:+.0%}"
    if low < 0 < high:
        return (
            f"时间：看不出快慢，各轮从 {span[0]} 到 {span[1]}",
            f"time: cannot be told, rounds scatter from {span[0]} to {span[1]}",
        )
    if high - low > SCATTER:
        zh, en = ("更慢", "slower") if low >= 0 else ("更快", "faster")
        return (
            f"时间：{zh}，多少说不准，各轮从 {span[0]} 到 {span[1]}",
            f"time: {en}, but by how much cannot be told, rounds scatter from {span[0]} "
            f"to {span[1]}",
        )
    return (
        f"时间 {middle:+.0%}（{span[0]} 到 {span[1]}）",
        f"time {middle:+.0%} ({span[0]} to {span[1]})",
    )


def _unit_for(most: float) -> tuple[str, int]:
    """The unit in which an axis up to ``most`` bytes is labelled, and its bytes."""
    power = min(len(UNITS) - 1, max(0, int(math.log(most, 1024)))) if most > 1 else 0
    return UNITS[power], 1024**power


def _round_numbers(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``, ``about`` as many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _width(words: str, points: float) -> float:
    """About how wide ``words`` are at a font size of ``points``, in inches."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in words)
    return (wide + 0.56 * (len(words) - wide)) * points / 72


# --- the figure itself --------------------------------------------------------------------------


FONT = Path(__file__).parent.parent / "assets" / "fonts" / "CourseSansSC-Regular.otf"


@functools.cache
def _families() -> list[str]:
    """The bundled font and, for what it lacks, Matplotlib's own; registered on first use."""
    font_manager.fontManager.addfont(FONT)
    return ["Course Sans SC", "DejaVu Sans"]


@functools.cache
def _in_font() -> frozenset[str]:
    """The characters that the bundled font has."""
    return frozenset(map(chr, font_manager.get_font(str(FONT)).get_charmap()))


_drawing = threading.RLock()


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for the course, for as long as the ``with`` lasts.

    One thread at a time: Matplotlib's settings are everybody's, and JupyterLab moves sliders on
    another thread than the one that runs cells.
    """
    settings: Any = {
        "font.family": _families(),
        "font.size": 9.5,
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.labelpad": 5,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": True,
        "axes.axisbelow": True,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "figure.titlesize": 12,
    }
    with _drawing, matplotlib.rc_context(settings):
        yield


class Picture(Figure):
    """A figure on an opaque white panel, readable on light and dark themes.

    A notebook shows it with its title as alternative text, which is its plain text too; what reads
    no HTML gets the PNG. ``size``: inches.
    """

    def __init__(self, size: tuple[float, float] = SIZE):
        super().__init__(figsize=size, dpi=DPI, facecolor="white")
        FigureCanvasAgg(self)

    def clear(self, keep_observers: bool = False) -> None:
        """Empty the figure. Axes are dropped as they are: emptying them first takes 5 ms."""
        for axes in list(self.axes):
            self.delaxes(axes)
        super().clear(keep_observers)

    def draw(self, renderer: Any) -> None:
        # An Axes makes its tick labels as late as here; without one there is nothing to set.
        with style() if self.axes else contextlib.nullcontext():
            super().draw(renderer)

    def png(self) -> bytes:
        """The picture as it is now."""
        from PIL import Image

        canvas = self.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        # 256 colours take a third of the bytes and half of the time.
        few = picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        palette = few.getpalette()
        assert palette is not None
        few.putpalette(_with_our_colours(palette))
        file = io.BytesIO()
        few.save(file, "png", compress_level=1)
        return file.getvalue()

    def __str__(self) -> str:
        return self.get_suptitle().replace("\n", " · ") or super().__str__()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        png = base64.b64encode(self.png()).decode()
        width, height = (round(length) for length in self.bbox.size)
        shown = image_html(png, str(self), (width, height))
        return {"text/html": shown, "image/png": png, "text/plain": str(self)}


def image_html(
    png: str, words: str, size: tuple[int, int] | None = None, beside: int | None = None
) -> str:
    """A picture with ``words`` as its alternative text; where it gets too narrow, it scrolls.

    ``png``: base64. ``size``, ``beside``: pixels, see :func:`picture_widths`.
    """
    shape, width = "", "max-width:100%"
    if size:
        least, most = picture_widths(size, beside)
        shape, width = (
            f'width="{size[0]}" height="{size[1]}" ',
            f"min-width:{least};max-width:{most}",
        )
    return (
        '<div style="overflow-x:auto;width:0;min-width:100%">'
        f'<img src="data:image/png;base64,{png}" alt="{html.escape(words)}" {shape}'
        f'decoding="sync" style="{width};height:auto;border-radius:8px"></div>'
    )


LEAST_WIDTH = 680  # pixels at which the words of a picture of SIZE can still be read


def picture_widths(size: tuple[int, int], beside: int | None = None) -> tuple[str, str]:
    """The least and the greatest width of a picture, in the words of CSS.

    ``size``: its pixels. ``beside``: pixels of the window's height that it leaves to other things;
    below 400 pixels it does not get lower, because some places (Colab) tell nothing useful of the
    window. A reader who zooms in gets a smaller window, in which it has to stay as wide as it was;
    on a phone, which is narrower still, it takes what there is.
    """
    width, height = size
    least = f"min({min(width, LEAST_WIDTH)}px,80vw)"
    if beside is None:
        return least, "100%"
    return least, f"min(100%,calc({width / height:.4f} * max(400px,100vh - {beside}px)))"


def _with_our_colours(palette: list[int]) -> list[int]:
    """The palette with colours that are almost one of ours, or white, set to just that."""
    ours = ["#ffffff", *COLOURS.values(), *COMPARED, *_PHASE_TINTS.values()]
    exact = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in ours])
    shades = np.array(palette).reshape(-1, 3)
    apart = np.abs(shades[:, None] - exact).max(2)
    nearest = apart.argmin(1)
    close = apart[np.arange(len(shades)), nearest] <= 3
    shades[close] = exact[nearest[close]]
    return shades.ravel().tolist()


class Panel:
    """A rectangle of a figure with coordinates of its own.

    It does what the lessons need of Matplotlib's ``Axes``, in a third of the time; a slider's
    picture has to be drawn in some 30 ms. ``box``: left, bottom, right, top in inches from the
    figure's lower left corner. ``x``, ``y``: the coordinates at its ends.
    """

    def __init__(
        self, figure: Figure, box: tuple[float, float, float, float],
        x: tuple[float, float], y: tuple[float, float],
    ):  # fmt: skip
        self.figure, self.box, self.x, self.y = figure, box, x, y
        left, bottom, right, top = box
        self.width, self.height = right - left, top - bottom
        self._scale = self.width / (x[1] - x[0]), self.height / (y[1] - y[0])
        data = Affine2D().translate(-x[0], -y[0]).scale(*self._scale).translate(left, bottom)
        self.transform = data + figure.dpi_scale_trans

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point of the panel in inches."""
        return (
            self.box[0] + (x - self.x[0]) * self._scale[0],
            self.box[1] + (y - self.y[0]) * self._scale[1],
        )

    def areas(self, shapes: Sequence[Any], colours: Sequence[Any], layer: float = 2) -> None:
        """Filled polygons, given by their corners; a later one covers an earlier."""
        self.figure.add_artist(
            PolyCollection(shapes, facecolors=colours, edgecolors="none", linewidths=0,
                           transform=self.transform, zorder=layer)
        )  # fmt: skip

    def line(self, x: Any, y: Any, colour: str, layer: float = 3, **look: Any) -> None:
        """A line through the points; ``look``: what ``Line2D`` takes."""
        self.figure.add_artist(
            Line2D(x, y, color=colour, transform=self.transform, zorder=layer, **look)
        )

    def line_inside(self, x: Any, y: Any, colour: str, **look: Any) -> None:
        """A line that ends where it leaves the panel."""
        line = Line2D(x, y, color=colour, transform=self.transform, zorder=3, **look)
        self.figure.add_artist(line)
        box = Bbox.from_extents(*self.box)
        line.set_clip_box(TransformedBbox(box, self.figure.dpi_scale_trans))

    def lines(self, segments: Sequence[Any], colour: str, width: float, layer: float) -> None:
        """Straight lines, each from one point to another."""
        self.figure.add_artist(
            LineCollection(segments, colors=colour, linewidths=width, transform=self.transform,
                           zorder=layer, capstyle="butt")
        )  # fmt: skip

    def words(self, x: float, y: float, words: str, dx: float = 0, dy: float = 0,
              **look: Any) -> None:  # fmt: skip
        """Text beside a point of the panel, ``dx`` and ``dy`` inches away."""
        left, bottom = self.place(x, y)
        write(self.figure, left + dx, bottom + dy, words, **look)

    def y_ruler(self, numbers: Sequence[float], labels: Sequence[str], name: str) -> None:
        """Lines across the panel with figures at their left ends; ``name``: upright, beside."""
        for number, label in zip(numbers, labels, strict=True):
            self.words(self.x[0], number, label, -0.07, ha="right", va="center_baseline")
        self.lines([[(self.x[0], n), (self.x[1], n)] for n in numbers], GRID, 0.6, 1)
        self._frame()
        middle = self.box[1] + self.height / 2
        write(self.figure, 0.2, middle, name, ha="center", va="center", rotation=90)

    def x_ruler(self, numbers: Sequence[float], labels: Sequence[str], name: str,
                across: bool = False) -> None:  # fmt: skip
        """Ticks with figures below, or lines ``across`` the panel; ``name``: below the figures."""
        low, high = self.y
        tick = low - 0.045 / self._scale[1]
        for number, label in zip(numbers, labels, strict=True):
            self.words(number, low, label, 0, -0.09, ha="center", va="top")
        self.lines([[(n, tick), (n, low)] for n in numbers], FAINT, 0.8, 1)
        if across:
            self.lines([[(n, low), (n, high)] for n in numbers], GRID, 0.6, 1)
        self._frame()
        below = -0.11 - (0.2 if numbers else 0)
        middle = (self.x[0] + self.x[1]) / 2
        self.words(middle, low, name, 0, below, ha="center", va="top", linespacing=1.35)

    def _frame(self) -> None:
        (x, end), (y, top) = self.x, self.y
        self.lines([[(x, y), (x, top)], [(x, y), (end, y)]], FAINT, 0.8, 2.5)


def write(figure: Figure, x: float, y: float, words: str, **look: Any) -> None:
    """Text at ``x``, ``y`` inches; ``look``: what Matplotlib's ``Text`` takes."""
    look = {"fontsize": 9.5, "color": INK, "fontfamily": _families_for(words), **look}
    figure.text(x, y, words, transform=figure.dpi_scale_trans, **look)


def _families_for(words: str) -> list[str]:
    """The fonts that ``words`` need: one is quicker than a choice of two."""
    families = _families()
    return families[:1] if _in_font().issuperset(words.replace("\n", "")) else families


def _panel(
    figure: Figure, title: Words, x: tuple[float, float], y: tuple[float, float], *,
    left: float, right: float, bottom: float = 0.58, strip: float = 0.0,
) -> Panel:  # fmt: skip
    """A panel below the title on the emptied figure, with margins in inches.

    ``strip``: room left free above the panel.
    """
    figure.clear()
    width, height = figure.get_size_inches()
    words = said(title, between="\n")
    lines = words.count("\n") + 1 if words else 0
    if words:
        figure.suptitle(words, x=0.2 / width, y=1 - 0.15 / height, ha="left", va="top",
                        fontsize=12, linespacing=1.35, color=INK,
                        fontfamily=_families_for(words))  # fmt: skip
    top = 0.2 + 0.24 * lines + 0.08 + strip
    return Panel(figure, (left, bottom, width - right, height - top), x, y)


def _legend(panel: Panel, entries: Sequence[tuple[str, str]], line: float = 0.225) -> None:
    """Names beside squares of their colours, right of the panel; ``entries``: (name, colour).

    Each takes ``line`` inches, less if the figure is too low for all.
    """
    figure = panel.figure
    height = figure.get_figheight()
    left, side = panel.box[2] + 0.17, 0.13
    top = max(panel.box[3], min(height - 0.12, 0.1 + line * len(entries)))
    line = min(line, (top - 0.1) / max(len(entries), 1))
    squares = []
    for i, (name, _) in enumerate(entries):
        y = top - i * line - 0.11
        low, high = y - side / 2, y + side / 2
        squares.append([(left, low), (left, high), (left + side, high), (left + side, low)])
        first, *value = name.split("\n")
        write(figure, left + side + 0.08, y, first, va="center_baseline")
        if value:
            write(figure, left + side + 0.08, y - 0.21, value[0], va="center_baseline", fontsize=11)
    figure.add_artist(
        PolyCollection(squares, facecolors=[colour for _, colour in entries], edgecolors=FAINT,
                       linewidths=0.4, transform=figure.dpi_scale_trans)
    )  # fmt: skip


def _legend_room(names: Iterable[str]) -> float:
    """Inches that :func:`_legend` needs on the right."""
    lines = (line for name in names for line in name.split("\n"))
    return max((_width(line, 9.5) for line in lines), default=0) + 0.52


def _byte_ruler(most: float) -> tuple[list[float], list[str], str]:
    """Round numbers of MiB (or what suits) up to ``most`` bytes: in bytes, as text; the unit."""
    unit, size = _unit_for(most)
    numbers = _round_numbers(0, most / size, 5)
    return [number * size for number in numbers], [f"{number:,g}" for number in numbers], unit


def _role_entries(roles: Iterable[Role]) -> list[tuple[str, str]]:
    return [(said(ROLE_NAMES[role], between=" "), COLOURS[role]) for role in roles]


# --- memory over time ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """A timeline as steps, drawn from left to right.

    ``moments``: where on the axis the level before the first event begins, the one after each
    event, and the end. ``edges``: begin of each column and end of the last. ``sums[role]``: bytes
    of it and of all roles below it, in each column.
    """

    moments: np.ndarray
    edges: np.ndarray
    sums: dict[Role, np.ndarray]

    def middle(self, event: int) -> float:
        """The middle of the column that shows the level after ``event``; -1: before any."""
        column = np.searchsorted(self.edges, self.moments[event + 1], "right") - 1
        column = min(max(int(column), 0), len(self.edges) - 2)
        return float(self.edges[column] + self.edges[column + 1]) / 2


def _columns(trace: MemoryTrace, over: str, crumb: int) -> _Columns:
    """Stack the roles. Of moments too close to draw apart, the worst stands for all."""
    sizes = np.array([0, *map(attrgetter("size"), trace.events)], dtype=np.int64)
    roles = np.array([0, *map(id, map(attrgetter("role"), trace.events))])  # hashing them is slow
    moments = _moments(trace, over, sizes, crumb)
    begin, end = moments[0], moments[-1]
    places = np.floor((moments[:-1] - begin) * (STEPS / max(end - begin, 1e-12)))
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    worst = _worst(np.cumsum(sizes), starts)
    sums, below = {}, np.zeros(len(worst), dtype=np.int64)
    for role in STACK:
        own = np.cumsum(np.where(roles == id(role), sizes, 0))
        level = trace.before.get(role, 0) + own[worst]
        if level.any():
            below = sums[role] = below + level
    return _Columns(moments, np.append(moments[starts], end), sums)


def _worst(total: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The index of the first maximum of ``total`` in each of the groups that begin at starts."""
    highest = np.maximum.reduceat(total, starts)
    lengths = np.diff(starts, append=len(total))
    candidates = np.flatnonzero(total == np.repeat(highest, lengths))
    return candidates[np.searchsorted(candidates, starts)]


def _moments(trace: MemoryTrace, over: str, sizes: np.ndarray, crumb: int) -> np.ndarray:
    """See :class:`_Columns`. In order, an event moves on by 1, or less if below ``crumb``."""
    if over == "order":
        steps = np.minimum(1.0, np.abs(sizes[1:]) / max(crumb, 1))
        return np.concatenate([[0], np.cumsum(steps), [steps.sum() + 1]])
    times = [event.time for event in trace.events]
    if None in times:
        raise ValueError(
            text(
                zh="模拟张量没有真实的时间，时间线只能按事件顺序画：over='order'。",
                en="Simulated tensors take no real time: draw the timeline with over='order'.",
            )
        )
    return np.array([0.0, *times, times[-1] if times else 0.0], dtype=float)


def _crumb(trace: MemoryTrace) -> int:
    """Bytes below which an allocation is drawn narrower: a thousandth of the rise.

    An optimizer step makes thousands of tiny allocations that would leave no room for the rest.
    """
    return (trace.peak - sum(trace.before.values())) // 1000


def _phases(trace: MemoryTrace) -> list[tuple[Phase, int, int]]:
    """The phases in order: (phase, its first event, one past its last)."""
    spans: list[tuple[Phase, int, int]] = []
    begin = 0
    for phase, events in itertools.groupby(map(attrgetter("phase"), trace.events)):
        end = begin + len(list(events))
        spans.append((phase, begin, end))
        begin = end
    return spans


def timeline(trace: MemoryTrace, *, over: Literal["order", "time"] = "order") -> Picture:
    """Memory over one step, stacked by role, its peak marked. See :func:`draw_timeline`."""
    picture = Picture()
    draw_timeline(picture, trace, over=over)
    return picture


def draw_timeline(
    figure: Figure,
    trace: MemoryTrace,
    *,
    title: Words | None = None,
    limit: int | None = None,
    over: Literal["order", "time"] = "order",
) -> None:
    """Draw memory over one step, stacked by role, phases shaded, the peak marked.

    ``title``: what to see; the peak and its phase if None. ``limit``: bytes at the top of the
    axis, to keep it still between pictures. ``over``: allocations and frees in their order, or
    seconds; ``ValueError`` for seconds that a simulation does not have.
    """
    crumb = _crumb(trace)
    columns = _columns(trace, over, crumb)
    entries = _role_entries(reversed(columns.sums))
    begin, end = columns.moments[0], columns.moments[-1]
    most = max(limit or 0, trace.peak, 1) * 1.16
    panel = _panel(
        figure, _peak_title(trace) if title is None else title,
        (begin, max(end, begin + 1e-9)), (0, most),
        left=0.72, right=_legend_room(name for name, _ in entries), strip=0.26,
        bottom=0.58 if over == "time" or language() == "both" else 0.42,
    )  # fmt: skip
    panel.y_ruler(*_byte_ruler(most))
    _time_ruler(panel, over, crumb)
    _shade_phases(panel, trace, columns.moments)
    _stack(panel, columns)
    _mark_peak(panel, trace, columns.middle(trace.peak_index))
    _legend(panel, entries)


def _time_ruler(panel: Panel, over: str, crumb: int) -> None:
    """Seconds get figures; the order of events has none that would tell anything."""
    if over == "time":
        numbers = _round_numbers(*panel.x, 6)
        name = text(zh="秒", en="seconds", between=" ")
        panel.x_ruler(numbers, [f"{number:g}" for number in numbers], name)
        return
    zh, en = "分配与释放，按先后顺序", "allocations and frees in order"
    if crumb:
        zh += f"（小于 {size_text(crumb)} 的按大小变窄）"
        en += f" (those under {size_text(crumb)} drawn narrower)"
    panel.x_ruler([], [], text(zh=zh, en=en, between="\n"))


def _peak_title(trace: MemoryTrace) -> Words:
    peak = size_text(trace.peak)
    zh, en = PHASE_IN_A_SENTENCE[trace.peak_phase]
    if trace.peak_index < 0:
        return f"峰值就是开始时的 {peak}", f"Memory never rises above the {peak} it started from"
    return f"峰值 {peak}，出现在{zh}中", f"The peak, {peak}, falls in {en}"


def _stack(panel: Panel, columns: _Columns) -> None:
    """One area per role, each from zero: those drawn later cover it, so no seam shows."""
    x = np.repeat(columns.edges, 2)
    shapes = [np.column_stack([x, np.concatenate([[0], np.repeat(top, 2), [0]])])
              for top in columns.sums.values()]  # fmt: skip
    panel.areas(shapes[::-1], [COLOURS[role] for role in columns.sums][::-1])


def _shade_phases(panel: Panel, trace: MemoryTrace, moments: np.ndarray) -> None:
    """A tint behind each phase, its name above the panel."""
    spans = [(phase, moments[begin + 1 if begin else 0], moments[end + 1])
             for phase, begin, end in _phases(trace)]  # fmt: skip
    spans = [span for span in spans if span[1] < span[2]]
    high = panel.y[1]
    panel.areas(
        [[(begin, 0), (begin, high), (end, high), (end, 0)] for _, begin, end in spans],
        [_PHASE_TINTS[phase] for phase, _, _ in spans], layer=0.5,
    )  # fmt: skip
    _name_phases(panel, spans)


def _name_phases(panel: Panel, spans: Sequence[tuple[Phase, float, float]]) -> None:
    """Names above their spans. A few narrow ones are moved aside; of many, the wide are named."""
    places: list[list[Any]] = []
    for phase, begin, end in spans:
        words = said(PHASE_NAMES[phase], between=" ")
        need = _width(words, 9.5) + 0.16
        left, right = panel.place(begin, 0)[0], panel.place(end, 0)[0]
        if len(spans) <= 4 or need <= right - left:
            places.append([words, (left + right) / 2, need])
    edge = panel.box[2]  # from the right, so that a short last phase keeps its name inside
    for place in reversed(places):
        place[1] = min(place[1], edge - place[2] / 2)
        edge = place[1] - place[2] / 2
    edge = panel.box[0]
    for words, middle, need in places:
        middle = max(middle, edge + need / 2)
        edge = middle + need / 2
        write(panel.figure, middle, panel.box[3] + 0.08, words, ha="center", color=FAINT)


def _mark_peak(panel: Panel, trace: MemoryTrace, x: float) -> None:
    """A dot at the peak and its size above it, kept inside the panel."""
    share = (x - panel.x[0]) / (panel.x[1] - panel.x[0])
    side = "left" if share < 0.12 else "right" if share > 0.88 else "center"
    panel.line([x], [trace.peak], INK, 4, marker="o", markersize=4.5)
    words = text(zh="峰值", en="peak", between=" ") + " " + size_text(trace.peak)
    panel.words(x, trace.peak, words, 0, 0.09, ha=side, va="bottom", fontsize=10)


# --- comparisons --------------------------------------------------------------------------------


def draw_bars(
    figure: Figure,
    rows: Sequence[tuple[Words, Mapping[Role, int] | MemoryTrace]],
    *,
    title: Words = "",
    heading: Words = "",
    limit: int | None = None,
    budget: int | None = None,
    outlines: Sequence[int] = (),
) -> None:
    """Draw one horizontal bar per row, stacked by role, its total at the end.

    ``rows``: a name and bytes by role; of a trace, those at its peak. ``title``: what to see.
    ``heading``: what the names are. ``limit``: bytes at the right end of the axis. ``budget``:
    bytes, drawn as a line. ``outlines``: for each row, the bytes of another bar, drawn as a frame.
    """
    bars = [(said(name, between="\n"), _by_role(value)) for name, value in rows]
    roles = [role for role in STACK if any(bar.get(role) for _, bar in bars)]
    entries = _role_entries(roles)
    head = said(heading, between="\n")
    names = [line for name, _ in bars for line in name.split("\n")]
    longest = max((_width(line, 10) for line in [*names, *head.split("\n")]), default=0)
    left, right = longest + 0.35, _legend_room(name for name, _ in entries)
    share = 0.8 / (figure.get_figwidth() - left - right)  # of the width, for the total at the end
    sums = [sum(bar.values()) for _, bar in bars]
    most = max([limit or 0, budget or 0, *sums, *outlines, 1]) / (1 - share)
    panel = _panel(
        figure, title, (0, most), (max(len(bars), 1) - 0.4, -0.6),
        left=left, right=right, strip=max(0.22 if budget else 0.0, 0.21 * len(head.splitlines())),
    )  # fmt: skip
    numbers, labels, unit = _byte_ruler(most)
    name = text(zh=f"内存（{unit}）", en=f"memory ({unit})", between=" ")
    panel.x_ruler(numbers, labels, name, across=True)
    if head:
        panel.words(0, panel.y[1], head, -0.1, 0.04, ha="right", va="bottom", color=FAINT,
                    linespacing=1.35)  # fmt: skip
    _draw_outlines(panel, outlines)
    for place, (name, bar) in enumerate(bars):
        panel.words(0, place, name, -0.1, ha="right", va="center", fontsize=10, linespacing=1.35)
        _draw_bar(panel, place, [(role, bar[role]) for role in roles if bar.get(role)])
    if budget is not None:
        _draw_budget(panel, budget)
    _legend(panel, entries)


def _by_role(value: Mapping[Role, int] | MemoryTrace) -> Mapping[Role, int]:
    return value if isinstance(value, Mapping) else value.at_peak


def _draw_bar(panel: Panel, place: int, parts: Sequence[tuple[Role, int]]) -> None:
    ends = list(itertools.accumulate((size for _, size in parts), initial=0))
    low, high = place - 0.31, place + 0.31
    panel.areas(
        [[(a, low), (a, high), (b, high), (b, low)] for a, b in itertools.pairwise(ends)],
        [COLOURS[role] for role, _ in parts],
    )
    panel.words(ends[-1], place, size_text(ends[-1]), 0.07, va="center_baseline", fontsize=10)


def _draw_outlines(panel: Panel, sizes: Sequence[int]) -> None:
    """A dashed frame round where each bar would be if it had that size."""
    for place, size in enumerate(sizes):
        x = [0, size, size, 0]
        y = [place - 0.37, place - 0.37, place + 0.37, place + 0.37]
        panel.line(x, y, FAINT, 1.5, linewidth=1, linestyle=(0, (4, 3)))


def _draw_budget(panel: Panel, budget: int) -> None:
    """A dashed line at the memory there is, its size above it."""
    panel.line([budget] * 2, panel.y, INK, 4, linewidth=1.2, linestyle=(0, (4, 3)))
    words = text(zh="预算", en="budget", between=" ") + " " + size_text(budget)
    panel.words(budget, panel.y[1], words, 0, 0.05, ha="center")


@dataclass(frozen=True)
class Curve:
    """One line of :func:`draw_curves`: its name and its values, None where there is none."""

    name: Words
    values: Sequence[float | None]
    colour: str | None = None


def draw_curves(
    figure: Figure,
    x: Sequence[float],
    curves: Sequence[Curve],
    *,
    mark: int | None = None,
    title: Words = "",
    x_name: Words = "",
    y_name: Words | None = None,
    limit: float | None = None,
    top: float | None = None,
    log_x: bool = False,
    show: Callable[[float], str] = size_text,
) -> None:
    """Draw quantities over a control, the chosen position marked and read off in the legend.

    ``x``: the control's values. ``mark``: the index of the chosen one. ``y_name``: what the
    quantities are, with their unit; None for bytes, which label themselves. ``limit``: what the
    axis reaches at least. ``top``: what it reaches at most; what is higher is told in figures, so
    that one position does not flatten all others. ``show``: how a value at the mark is written.
    """
    colours = [curve.colour or CURVE_COLOURS[i % len(CURVE_COLOURS)]
               for i, curve in enumerate(curves)]  # fmt: skip
    names = [said(curve.name, between=" ") for curve in curves]
    levels = [np.array(curve.values, dtype=float) for curve in curves]  # None becomes NaN
    most = max([limit or 0, *(float(np.nanmax(level, initial=0)) for level in levels)]) or 1
    beyond = top is not None and most > top
    most = min(most, top or most)
    along = np.log2(x) if log_x else np.array(x, dtype=float)
    panel = _panel(figure, title, _with_margin(along), (0, most * 1.12), left=0.8,
                   right=_legend_room([*names, " " * 16]))  # fmt: skip
    if y_name is None:
        panel.y_ruler(*_byte_ruler(most * 1.12))
    else:
        numbers = _round_numbers(0, most * 1.12, 5)
        panel.y_ruler(numbers, [f"{number:,g}" for number in numbers], said(y_name))
    _control_ruler(panel, said(x_name), log_x)
    dots: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(x) <= 40 else {}
    for level, colour in zip(levels, colours, strict=True):
        draw = panel.line_inside if beyond else panel.line
        draw(along, level, colour, linewidth=2, **dots)
    if beyond:
        _tell_the_highest(panel, x, along, levels, show)
    if mark is not None:
        marked = [min(level[mark], panel.y[1]) for level in levels]
        _mark_position(panel, along[mark], marked, colours)
        names = [f"{name}\n{_reading(level[mark], show)}"
                 for name, level in zip(names, levels, strict=True)]  # fmt: skip
    _legend(panel, list(zip(names, colours, strict=True)), 0.225 if mark is None else 0.52)


def _tell_the_highest(
    panel: Panel, x: Sequence[float], along: np.ndarray, levels: Sequence[np.ndarray],
    show: Callable[[float], str],
) -> None:  # fmt: skip
    """Where a curve leaves the panel upwards: how far it goes, and at which position."""
    highest = np.nanmax(np.array(levels), axis=0)
    place = int(np.nanargmax(highest))
    words = f"↑ {x[place]:g}: {show(float(highest[place]))}"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    panel.words(float(along[place]), panel.y[1], words, 0.35, -0.05, va="top", color=FAINT,
                zorder=6, bbox=box)  # fmt: skip


def _control_ruler(panel: Panel, name: str, log: bool) -> None:
    """Round numbers, or with ``log`` powers of two, below the panel."""
    if not log:
        numbers = _round_numbers(*panel.x, 7)
        panel.x_ruler(numbers, [f"{number:,g}" for number in numbers], name)
        return
    first, last = math.ceil(panel.x[0]), math.floor(panel.x[1])
    powers = range(first, last + 1, max(1, (last - first) // 8))
    panel.x_ruler(powers, [f"{2.0**power:,g}" for power in powers], name)


def _reading(value: float, show: Callable[[float], str]) -> str:
    return show(value) if np.isfinite(value) else "—"


def _with_margin(along: np.ndarray) -> tuple[float, float]:
    margin = float(along.max() - along.min()) * 0.03 or 0.5
    return float(along.min()) - margin, float(along.max()) + margin


def _mark_position(panel: Panel, x: float, values: Sequence[float], colours: Sequence[str]) -> None:
    """A line at ``x`` and a dot on each curve; the legend tells the values."""
    panel.line([x, x], panel.y, FAINT, 2.5, linewidth=1, linestyle=(0, (3, 3)))
    for value, colour in zip(values, colours, strict=True):
        panel.line([x], [value], colour, 5, marker="o", markersize=8, markeredgecolor="white")
