"""Bars of memory by role, side by side."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..language import text
from ..memory.trace import MemoryTrace, Role
from .palette import COLOURS, FAINT, INK, STACK
from .panel import (
    Panel,
    byte_ruler,
    legend,
    legend_room,
    role_entries,
    titled_panel,
    width_of_words,
)
from .picture import is_narrow
from .words import Words, in_language, size_text


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
    bars = [(in_language(name, between="\n"), _by_role(value)) for name, value in rows]
    roles = [role for role in STACK if any(bar.get(role) for _, bar in bars)]
    entries = role_entries(roles)
    head = in_language(heading, between="\n")
    names = [line for name, _ in bars for line in name.split("\n")]
    longest = max((width_of_words(line, 10) for line in [*names, *head.split("\n")]), default=0)
    known = [name for name, _ in entries]
    narrow = is_narrow(figure)
    left = 0.12 if narrow else longest + 0.35  # each name stands above its bar, or left of it
    right = 0.12 if narrow else legend_room(known)
    share = 0.8 / (figure.get_figwidth() - left - right)  # of the width, for the total at the end
    sums = [sum(bar.values()) for _, bar in bars]
    most = max([limit or 0, budget or 0, *sums, *outlines, 1]) / (1 - share)
    panel = titled_panel(
        figure,
        title,
        (0, most),
        (max(len(bars), 1) - 0.4, -0.6),
        left=left,
        names=known,
        strip=max(0.22 if budget else 0.0, 0.21 * len(head.splitlines())),
    )
    numbers, labels, unit = byte_ruler(most)
    name = text(zh=f"内存（{unit}）", en=f"memory ({unit})", between=" ")
    panel.x_ruler(numbers, labels, name, across=True)
    if head:
        panel.words(
            0,
            panel.y[1],
            head,
            0 if narrow else -0.1,
            0.04,
            va="bottom",
            color=FAINT,
            ha="left" if narrow else "right",
            linespacing=1.35,
        )
    _draw_outlines(panel, outlines)
    for place, (name, bar) in enumerate(bars):
        if narrow:
            panel.words(0, place - 0.02, name.replace("\n", " · "), 0.03, 0.05)
        else:
            panel.words(
                0, place, name, -0.1, ha="right", va="center", fontsize=10, linespacing=1.35
            )
        _draw_bar(panel, place, [(role, bar[role]) for role in roles if bar.get(role)])
    if budget is not None:
        _draw_budget(panel, budget)
    legend(panel, entries)


def _by_role(value: Mapping[Role, int] | MemoryTrace) -> Mapping[Role, int]:
    return value if isinstance(value, Mapping) else value.at_peak


def _draw_bar(panel: Panel, place: int, parts: Sequence[tuple[Role, int]]) -> None:
    ends = list(itertools.accumulate((size for _, size in parts), initial=0))
    low, high = place - (0.02 if is_narrow(panel.figure) else 0.31), place + 0.31
    panel.areas(
        [[(a, low), (a, high), (b, high), (b, low)] for a, b in itertools.pairwise(ends)],
        [COLOURS[role] for role, _ in parts],
    )
    middle = (low + high) / 2
    panel.words(ends[-1], middle, size_text(ends[-1]), 0.07, va="center_baseline", fontsize=10)


def _draw_outlines(panel: Panel, sizes: Sequence[int]) -> None:
    """A dashed frame round where each bar would be if it had that size."""
    for place, size in enumerate(sizes):
        x = [0, size, size, 0]
        low = place - (0.08 if is_narrow(panel.figure) else 0.37)
        y = [low, low, place + 0.37, place + 0.37]
        panel.line(x, y, FAINT, 1.5, linewidth=1, linestyle=(0, (4, 3)))


def _draw_budget(panel: Panel, budget: int) -> None:
    """A dashed line at the memory there is, its size above it."""
    panel.line([budget] * 2, panel.y, INK, 4, linewidth=1.2, linestyle=(0, (4, 3)))
    words = text(zh="预算", en="budget", between=" ") + " " + size_text(budget)
    panel.words(budget, panel.y[1], words, 0, 0.05, ha="center")
