"""Memory over one training step, stacked by role."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from ..language import language, text
from ..memory.trace import MemoryTrace, Phase, Role
from .palette import COLOURS, FAINT, INK, PHASE_TINTS, STACK
from .panel import (
    ROW,
    Panel,
    byte_ruler,
    legend,
    legend_room,
    legend_rows,
    role_entries,
    round_numbers,
    titled_panel,
    width_of_words,
    write,
)
from .picture import Picture, is_narrow
from .words import PHASE_IN_A_SENTENCE, PHASE_NAMES, Words, in_language, size_text

STEPS = 800  # a timeline has no more columns than this: more than it has pixels


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
    outline: MemoryTrace | None = None,
    outlined: Words = "",
) -> None:
    """Draw memory over one step, stacked by role, phases shaded, the peak marked.

    ``outline``: another step, whose total is a line behind it, phase over phase; ``outlined``: what
    it is called.

    ``title``: what to see; the peak and its phase if None. ``limit``: bytes at the top of the
    axis, to keep it still between pictures. ``over``: allocations and frees in their order, or
    seconds; ``ValueError`` for seconds that a simulation does not have.
    """
    crumb = _crumb(trace)
    columns = _columns(trace, over, crumb)
    entries = role_entries(reversed(columns.sums))
    begin, end = columns.moments[0], columns.moments[-1]
    most = max(limit or 0, trace.peak, outline.peak if outline else 0, 1) * 1.16
    panel = titled_panel(
        figure,
        _peak_title(trace) if title is None else title,
        (begin, max(end, begin + 1e-9)),
        (0, most),
        left=0.72,
        names=[name for name, _ in entries],
        strip=0.26,
        bottom=0.58 if over == "time" or language() == "both" else 0.42,
    )
    panel.y_ruler(*byte_ruler(most))
    _time_ruler(panel, over, crumb)
    _shade_phases(panel, trace, columns.moments)
    if outline is not None:
        _outline(panel, trace, columns, outline, in_language(outlined, between=" "))
    _stack(panel, columns)
    _mark_peak(panel, trace, columns.middle(trace.peak_index))
    legend(panel, entries)


def _time_ruler(panel: Panel, over: str, crumb: int) -> None:
    """Seconds get figures; the order of events has none that would tell anything."""
    if over == "time":
        numbers = round_numbers(*panel.x, 6)
        name = text(zh="秒", en="seconds", between=" ")
        panel.x_ruler(numbers, [f"{number:g}" for number in numbers], name)
        return
    zh, en = "分配与释放，按先后顺序", "allocations and frees in order"
    if crumb:
        zh += f"（小于 {size_text(crumb)} 的按大小变窄）"
        en += f" (those under {size_text(crumb)} drawn narrower)"
    if is_narrow(panel.figure):  # the caption has room for more
        zh, en = "分配与释放，按先后顺序", "allocations and frees in order"
    panel.x_ruler([], [], text(zh=zh, en=en, between="\n"))


def _peak_title(trace: MemoryTrace) -> Words:
    peak = size_text(trace.peak)
    zh, en = PHASE_IN_A_SENTENCE[trace.peak_phase]
    if trace.peak_index < 0:
        return f"峰值就是开始时的 {peak}", f"Memory never rises above the {peak} it started from"
    return f"峰值 {peak}，出现在{zh}中", f"The peak, {peak}, falls in {en}"


def draw_side_by_side(figure: Figure, named: Sequence[tuple[Words, MemoryTrace]]) -> None:
    """Two steps, each with its own axis: beside each other, or on a phone above each other."""
    figure.clear()
    width, height = figure.get_size_inches()
    narrow = is_narrow(figure)
    crumbs = [_crumb(trace) for _, trace in named]
    every = [
        _columns(trace, "order", crumb) for (_, trace), crumb in zip(named, crumbs, strict=True)
    ]
    roles = [role for role in reversed(STACK) if any(role in one.sums for one in every)]
    entries = role_entries(roles)
    names = [name for name, _ in entries]
    right = 0.12 if narrow else legend_room(names)
    below = 0.2 + ROW * legend_rows(figure, names) if narrow else 0.3
    for i, ((name, trace), columns) in enumerate(zip(named, every, strict=True)):
        if narrow:
            high = (height - below) / 2
            box = (0.72, below + high * (1 - i) + 0.15, width - right, below + high * (2 - i) - 0.5)
        else:
            wide = (width - right) / 2
            box = (wide * i + 0.72, below, wide * (i + 1) - 0.1, height - 0.75)
        begin, end = columns.moments[0], columns.moments[-1]
        panel = Panel(figure, box, (begin, max(end, begin + 1e-9)), (0, max(trace.peak, 1) * 1.16))
        write(figure, box[0], box[3] + 0.36, in_language(name, between=" "), fontsize=12)
        numbers, labels, unit = byte_ruler(panel.y[1])
        panel.y_ruler(numbers, labels, "")
        write(figure, box[0] - 0.07, box[3] + 0.1, unit, ha="right", color=FAINT)
        _shade_phases(panel, trace, columns.moments)
        _stack(panel, columns)
        _mark_peak(panel, trace, columns.middle(trace.peak_index))
    legend(panel, entries)


def _outline(
    panel: Panel, trace: MemoryTrace, columns: _Columns, other: MemoryTrace, name: str
) -> None:
    """The total of another step as a line, each of its phases as wide as here."""
    theirs = _columns(other, "order", _crumb(other))
    total = list(theirs.sums.values())[-1]
    middles = (theirs.edges[:-1] + theirs.edges[1:]) / 2
    ends = dict[Phase, list[float]]()
    for key, moments, one in ((0, theirs.moments, other), (1, columns.moments, trace)):
        for phase, _, end in _phases(one):
            ends.setdefault(phase, [0.0, 0.0])[key] = float(moments[end])
    known = np.array([(0.0, 0.0), *(pair for pair in ends.values() if all(pair))])
    x = np.interp(middles, known[:, 0], known[:, 1])
    panel.line(x, total, FAINT, 1.6, linewidth=1.1, linestyle=(0, (3, 2)))
    at = int(np.argmax(total))
    side = "right" if x[at] > (panel.x[0] + panel.x[1]) / 2 else "left"
    look = {"ha": side, "va": "bottom", "fontsize": 9, "zorder": 5}
    panel.words(x[at], total[at], f"{name} {size_text(int(total[at]))}", 0, 0.04, **look)


def _stack(panel: Panel, columns: _Columns) -> None:
    """One area per role, each from zero: those drawn later cover it, so no seam shows."""
    x = np.repeat(columns.edges, 2)
    shapes = [
        np.column_stack([x, np.concatenate([[0], np.repeat(top, 2), [0]])])
        for top in columns.sums.values()
    ]
    panel.areas(shapes[::-1], [COLOURS[role] for role in columns.sums][::-1])


def _shade_phases(panel: Panel, trace: MemoryTrace, moments: np.ndarray) -> None:
    """A tint behind each phase, its name above the panel."""
    spans = [
        (phase, moments[begin + 1 if begin else 0], moments[end + 1])
        for phase, begin, end in _phases(trace)
    ]
    spans = [span for span in spans if span[1] < span[2]]
    high = panel.y[1]
    panel.areas(
        [[(begin, 0), (begin, high), (end, high), (end, 0)] for _, begin, end in spans],
        [PHASE_TINTS[phase] for phase, _, _ in spans],
        layer=0.5,
    )
    _name_phases(panel, spans)


def _name_phases(panel: Panel, spans: Sequence[tuple[Phase, float, float]]) -> None:
    """Names above their spans. A few narrow ones are moved aside; of many, the wide are named."""
    places: list[list[Any]] = []
    for phase, begin, end in spans:
        words = in_language(PHASE_NAMES[phase], between=" ")
        need = width_of_words(words, 9.5) + 0.16
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
