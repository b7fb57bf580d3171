"""Axes of one's own: areas, lines, words and rulers, placed by numbers."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Affine2D, Bbox, TransformedBbox

from ..memory.trace import Role
from .palette import COLOURS, FAINT, GRID, INK, ROLE_NAMES
from .picture import LEAST_POINTS, font_families, is_narrow, letters_in_font
from .words import UNITS, Words, in_language


def unit_for(most: float) -> tuple[str, int]:
    """The unit in which an axis up to ``most`` bytes is labelled, and its bytes."""
    power = min(len(UNITS) - 1, max(0, int(math.log(most, 1024)))) if most > 1 else 0
    return UNITS[power], 1024**power


def round_numbers(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``, ``about`` as many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def width_of_words(words: str, points: float) -> float:
    """About how wide ``words`` are at a font size of ``points``, in inches."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in words)
    return (wide + 0.56 * (len(words) - wide)) * points / 72


def wrapped(words: str, inches: float, points: float) -> str:
    """``words`` in lines no wider than that; Chinese breaks anywhere but before punctuation."""
    lines = []
    for line in words.split("\n"):
        lines.append("")
        for piece in _PIECES.findall(line):
            if lines[-1] and width_of_words((lines[-1] + piece).rstrip(), points) > inches:
                lines[-1] = lines[-1].rstrip()
                lines.append("")
            lines[-1] += piece
        lines[-1] = lines[-1].rstrip()
    return "\n".join(lines)


# A Chinese letter with the punctuation behind it, or a word with the space behind it.
_PIECES = re.compile(
    r"（?[\u2e80-\u9fff][，。；：、）！？”]*|[^\s\u2e80-\u9fff]+[，。；：、）！？”]*\s*|\s+"
)


class Panel:
    """A rectangle of a figure with coordinates of its own.

    It does what the lessons need of Matplotlib's ``Axes``, in less than half the time: a position
    that is not drawn yet is waited for with the hand on the slider, and the web edition draws all
    of them. ``box``: left, bottom, right, top in inches from the
    figure's lower left corner. ``x``, ``y``: the coordinates at its ends.
    """

    def __init__(
        self,
        figure: Figure,
        box: tuple[float, float, float, float],
        x: tuple[float, float],
        y: tuple[float, float],
    ):
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
            PolyCollection(
                shapes,
                facecolors=colours,
                edgecolors="none",
                linewidths=0,
                transform=self.transform,
                zorder=layer,
            )
        )

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
            LineCollection(
                segments,
                colors=colour,
                linewidths=width,
                transform=self.transform,
                zorder=layer,
                capstyle="butt",
            )
        )

    def words(
        self, x: float, y: float, words: str, dx: float = 0, dy: float = 0, **look: Any
    ) -> None:
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

    def x_ruler(
        self, numbers: Sequence[float], labels: Sequence[str], name: str, across: bool = False
    ) -> None:
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
        if is_narrow(self.figure):
            name = wrapped(name, self.figure.get_figwidth() - 0.3, LEAST_POINTS)
            middle = self.figure.get_figwidth() / 2
            return write(
                self.figure,
                middle,
                self.box[1] + below,
                name,
                ha="center",
                va="top",
                linespacing=1.35,
            )
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
    families = font_families()
    return families[:1] if letters_in_font().issuperset(words.replace("\n", "")) else families


def titled_panel(
    figure: Figure,
    title: Words,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    left: float,
    names: Sequence[str],
    bottom: float = 0.58,
    strip: float = 0.0,
) -> Panel:
    """A panel below the title on the emptied figure, with margins in inches.

    ``names``: of the legend, for which there is room beside the panel, or below it where the figure
    is narrow. ``strip``: room left free above the panel.
    """
    figure.clear()
    width = figure.get_figwidth()
    top = title_above(figure, title) - strip
    right = legend_room(names)
    if is_narrow(figure):
        right, bottom = 0.12, bottom + 0.17 + ROW * legend_rows(figure, names)
    return Panel(figure, (left, bottom, width - right, top), x, y)


def title_above(figure: Figure, title: Words) -> float:
    """Write the title; inches from the figure's lower edge up to which there is room below it."""
    width, height = figure.get_size_inches()
    words, points = in_language(title, between="\n"), 12.0
    if is_narrow(figure):
        points = 11
        words = wrapped(words, width - 0.2, points)
    lines = words.count("\n") + 1 if words else 0
    if words:
        left = 0.1 if is_narrow(figure) else 0.2
        figure.suptitle(
            words,
            x=left / width,
            y=1 - 0.15 / height,
            ha="left",
            va="top",
            fontsize=points,
            linespacing=1.35,
            color=INK,
            fontfamily=_families_for(words),
        )
    return height - (0.28 + 0.02 * points * lines)


def legend(panel: Panel, entries: Sequence[tuple[str, str]], line: float = 0.225) -> None:
    """Names beside squares of their colours, right of the panel; ``entries``: (name, colour).

    Each takes ``line`` inches, less if the figure is too low for all.
    """
    figure = panel.figure
    if is_narrow(figure):
        return legend_below(figure, entries)
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
        PolyCollection(
            squares,
            facecolors=[colour for _, colour in entries],
            edgecolors=FAINT,
            linewidths=0.4,
            transform=figure.dpi_scale_trans,
        )
    )


ROW = 0.2  # inches, a line of a legend below


def legend_rows(figure: Figure, names: Iterable[str]) -> int:
    """How many lines a legend of these takes below, each of ``ROW`` inches."""
    return len(_rows(figure, names))


def _rows(figure: Figure, names: Iterable[str]) -> list[list[tuple[float, str]]]:
    """What stands in each line of a legend below the panel: (inches from the left, name)."""
    rows: list[list[tuple[float, str]]] = []
    end = math.inf
    for name in names:
        need = width_of_words(name, LEAST_POINTS) + 0.38
        if end + need > figure.get_figwidth():
            rows.append([])
            end = 0.1
        rows[-1].append((end, name))
        end += need
    return rows


def legend_below(figure: Figure, entries: Sequence[tuple[str, str]]) -> None:
    """Names beside squares of their colours, along the figure's lower edge."""
    rows = _rows(figure, [name.replace("\n", "  ") for name, _ in entries])
    colours = iter(colour for _, colour in entries)
    for i, row in enumerate(reversed(rows)):
        for left, name in row:
            y = 0.13 + ROW * i
            write(figure, left + 0.2, y, name, va="center_baseline", fontsize=LEAST_POINTS)
    squares = [
        [(left, y - 0.065), (left, y + 0.065), (left + 0.13, y + 0.065), (left + 0.13, y - 0.065)]
        for i, row in enumerate(rows)
        for left, _ in row
        for y in [0.13 + ROW * (len(rows) - 1 - i)]
    ]
    figure.add_artist(
        PolyCollection(
            squares,
            facecolors=list(colours),
            edgecolors=FAINT,
            linewidths=0.4,
            transform=figure.dpi_scale_trans,
        )
    )


def legend_room(names: Iterable[str]) -> float:
    """Inches that :func:`legend` needs on the right."""
    lines = (line for name in names for line in name.split("\n"))
    return max((width_of_words(line, 9.5) for line in lines), default=0) + 0.52


def byte_ruler(most: float) -> tuple[list[float], list[str], str]:
    """Round numbers of MiB (or what suits) up to ``most`` bytes: in bytes, as text; the unit."""
    unit, size = unit_for(most)
    numbers = round_numbers(0, most / size, 5)
    return [number * size for number in numbers], [f"{number:,g}" for number in numbers], unit


def role_entries(roles: Iterable[Role]) -> list[tuple[str, str]]:
    return [(in_language(ROLE_NAMES[role], between=" "), COLOURS[role]) for role in roles]
