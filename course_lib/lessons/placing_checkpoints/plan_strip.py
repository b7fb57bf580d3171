"""A plan as a strip of bars: what each layer keeps, what is run again, where segments begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ...figures.palette import COLOURS, FAINT
from ...figures.panel import Panel, legend_below, write
from ...figures.picture import is_narrow
from ...figures.words import in_language
from ...memory.trace import Role
from ...plans.plan import Chain, Plan

Words = tuple[str, str]  # (zh, en)
KEPT, AGAIN = COLOURS[Role.ACTIVATION], COLOURS[Role.RECOMPUTED]
CHECKPOINT = COLOURS[Role.CHECKPOINT]
REST = "#b9bec6"  # of several roles, so the colour of none


def draw_strip(panel: Panel, plan: Plan, chain: Chain) -> None:
    """One bar per layer, as high as what it keeps; a line where a segment begins."""
    most = max(layer.kept for layer in chain.layers) or 1
    again = {layer for part in plan.parts if isinstance(part, tuple) for layer in layers_of(part)}
    shapes, colours = [], []
    for i, layer in enumerate(chain.layers):
        high = 0.12 + 0.88 * layer.kept / most
        shapes.append([(i + 0.06, 0), (i + 0.06, high), (i + 0.94, high), (i + 0.94, 0)])
        colours.append(AGAIN if i in again else KEPT)
    panel.areas(shapes, colours)
    starts = [_first(segment) for segment in plan.segments]
    panel.lines([[(s, -0.08), (s, 1.1)] for s in starts], CHECKPOINT, 2.6, 4)
    every = 1 if len(chain) <= (10 if is_narrow(panel.figure) else 24) else 10
    if every > 1 and len(chain) <= 24:
        every = 2
    for i in range(0, len(chain), every):
        panel.words(i + 0.5, 0, str(i), 0, -0.04, ha="center", va="top", fontsize=7.5, color=FAINT)


def layers_of(part: Any) -> list[int]:
    """The layers of a plan's part, whatever stands inside it."""
    return [part] if isinstance(part, int) else [i for item in part for i in layers_of(item)]


def _first(part: Any) -> int:
    while isinstance(part, tuple):
        part = part[0]
    return part


def strip_legend(
    figure: Figure,
    left: float,
    low: float,
    more: Sequence[tuple[Words, str]] = (),
    blue: Words = ("检查点：一段的开头", "checkpoint: where a segment begins"),
) -> None:
    """What the colours mean, in one line, or on a phone in as many as it takes."""
    entries = [
        *more,
        (("保留", "kept"), KEPT),
        (("重算", "recomputed"), AGAIN),
        (blue, CHECKPOINT),
    ]
    if is_narrow(figure):
        known = [(in_language(name, between=" "), colour) for name, colour in entries]
        return legend_below(figure, known)
    for name, colour in entries:
        words = in_language(name, between=" ")
        square = Panel(figure, (left, low - 0.06, left + 0.13, low + 0.07), (0, 1), (0, 1))
        square.areas([[(0, 0), (0, 1), (1, 1), (1, 0)]], [colour])
        write(figure, left + 0.2, low, words, va="center_baseline", fontsize=9)
        wide = sum(2 if ord(letter) > 0x2E80 else 1.05 for letter in words)
        left += 0.5 + wide * 0.066
