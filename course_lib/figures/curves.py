"""Curves over what a control can be set to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .palette import CURVE_COLOURS, FAINT
from .panel import Panel, byte_ruler, legend, round_numbers, titled_panel
from .picture import is_narrow
from .words import Words, in_language, size_text


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
    colours = [
        curve.colour or CURVE_COLOURS[i % len(CURVE_COLOURS)] for i, curve in enumerate(curves)
    ]
    names = [in_language(curve.name, between=" ") for curve in curves]
    levels = [np.array(curve.values, dtype=float) for curve in curves]  # None becomes NaN
    most = max([limit or 0, *(float(np.nanmax(level, initial=0)) for level in levels)]) or 1
    beyond = top is not None and most > top
    most = min(most, top or most)
    along = np.log2(x) if log_x else np.array(x, dtype=float)
    values = " " * 16  # room for them
    known = [f"{name}  {values[:10]}" for name in names] if is_narrow(figure) else [*names, values]
    panel = titled_panel(
        figure, title, _with_margin(along), (0, most * 1.12), left=0.8, names=known
    )
    if y_name is None:
        panel.y_ruler(*byte_ruler(most * 1.12))
    else:
        numbers = round_numbers(0, most * 1.12, 5)
        panel.y_ruler(numbers, [f"{number:,g}" for number in numbers], in_language(y_name))
    _control_ruler(panel, in_language(x_name), log_x)
    dots: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(x) <= 40 else {}
    for level, colour in zip(levels, colours, strict=True):
        draw = panel.line_inside if beyond else panel.line
        draw(along, level, colour, linewidth=2, **dots)
    if beyond:
        _tell_the_highest(panel, x, along, levels, show)
    if mark is not None:
        marked = [min(level[mark], panel.y[1]) for level in levels]
        _mark_position(panel, along[mark], marked, colours)
        names = [
            f"{name}\n{_reading(level[mark], show)}"
            for name, level in zip(names, levels, strict=True)
        ]
    legend(panel, list(zip(names, colours, strict=True)), 0.225 if mark is None else 0.52)


def _tell_the_highest(
    panel: Panel,
    x: Sequence[float],
    along: np.ndarray,
    levels: Sequence[np.ndarray],
    show: Callable[[float], str],
) -> None:
    """Where a curve leaves the panel upwards: how far it goes, and at which position."""
    highest = np.nanmax(np.array(levels), axis=0)
    place = int(np.nanargmax(highest))
    words = f"↑ {x[place]:g}: {show(float(highest[place]))}"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    panel.words(
        float(along[place]),
        panel.y[1],
        words,
        0.35,
        -0.05,
        va="top",
        color=FAINT,
        zorder=6,
        bbox=box,
    )


def _control_ruler(panel: Panel, name: str, log: bool) -> None:
    """Round numbers, or with ``log`` powers of two, below the panel."""
    if not log:
        numbers = round_numbers(*panel.x, 7)
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
