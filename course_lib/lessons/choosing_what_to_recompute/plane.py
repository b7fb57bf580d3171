"""The plane that choices lie in: bytes across, FLOPs upwards, the best of all as a line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ...figures.palette import COMPARED, FAINT, INK
from ...figures.panel import Panel, round_numbers, titled_panel, unit_for, width_of_words
from ...figures.picture import is_narrow
from ...figures.words import in_language, size_text
from ...language import text
from ...memory.trace import MemoryTrace
from ...notebook.explorers import Explorer, show
from ...plans.selective import Of, Prediction, Score

Names = str | tuple[str, str]
MINE, BEST = COMPARED


def size_of(one: Prediction, of: Of) -> int:
    return one.kept if of == "kept" else one.peak


def added(score: Score, flops: int) -> float:
    """FLOPs beyond those of the step without checkpoints, as a share of them."""
    return flops / score.plain.flops - 1 if score.plain.flops else 0.0


def span(score: Score, of: Of, *more: int) -> tuple[float, float]:
    """Both ends of the axis of bytes, with a margin."""
    sizes = [size_of(one, of) for one in (*score.frontier("peak"), *score.frontier("kept"))]
    sizes += [size_of(score.plain, of), size_of(score.everything, of), *more]
    low, high = min(sizes), max(sizes)
    margin = 0.06 * (high - low) or 1
    return max(0, low - margin), high + margin


def ruled(panel: Panel, name: tuple[str, str], first: bool) -> None:
    """Bytes below, FLOPs at the left; only the ``first`` panel says what they are."""
    unit, size = unit_for(panel.x[1])
    marks = round_numbers(panel.x[0] / size, panel.x[1] / size, 5)
    words = text(zh=f"{name[0]}（{unit}）", en=f"{name[1]} ({unit})", between=" ")
    panel.x_ruler([m * size for m in marks], [f"{mark:,g}" for mark in marks], words)
    ticks = [share for share in round_numbers(0, panel.y[1], 5) if share >= 0]
    labels = [f"{share:+.0%}" if share else "0" for share in ticks]
    title = text(zh="多做的 FLOPs", en="FLOPs added", between=" ") if first else ""
    panel.y_ruler(ticks, labels, title)


def stairs(panel: Panel, score: Score, of: Of) -> None:
    """The exact frontier: a dot for each of the best choices, joined."""
    points = [(size_of(one, of), added(score, one.flops)) for one in score.frontier(of)]
    x, y = [points[0][0]], [points[0][1]]
    for (_, before), (size, share) in itertools.pairwise(points):
        x += [size, size]
        y += [before, share]
    panel.line(x, y, BEST, linewidth=1.2, alpha=0.55)
    across, up = [size for size, _ in points], [share for _, share in points]
    panel.line(across, up, BEST, 3.5, marker="o", markersize=4.5, linestyle="none")


def landmarks(panel: Panel, score: Score, of: Of) -> None:
    """No checkpoint, and every result stored."""
    for one, mark, side, name in (
        (score.plain, "D", "left", text(zh="不用检查点", en="no checkpoint", between="\n")),
        (score.everything, "s", "right", text(zh="全部保留", en="all stored", between="\n")),
    ):
        place = size_of(one, of), added(score, one.flops)
        look: dict[str, Any] = {"ha": side, "va": "bottom", "fontsize": 8, "color": FAINT}
        panel.words(*place, name, -0.06 if side == "left" else 0.1, 0.1, **look)
        panel.line(
            [place[0]],
            [place[1]],
            FAINT,
            3.2,
            marker=mark,
            markersize=6,
            linestyle="none",
        )


# --- policies that were measured ----------------------------------------------------------------


def show_policies(traces: Mapping[Names, MemoryTrace], score: Score) -> Explorer:
    """Each measured policy as a point: peak and FLOPs; behind them the best of all choices."""
    plain, names = score.plain.flops, list(traces)
    least = min(names, key=lambda name: traces[name].peak)
    most = max(names, key=lambda name: traces[name].peak)
    zh, en = (
        "；".join(f"{_word(n, 0)} {size_text(traces[n].peak)}，FLOPs "
                 f"{traces[n].flops / plain - 1:+.1%}" for n in names),
        "; ".join(f"{_word(n, 1)} {size_text(traces[n].peak)}, FLOPs "
                  f"{traces[n].flops / plain - 1:+.1%}" for n in names),
    )  # fmt: skip
    title = (
        f"峰值最低的是“{_word(least, 0)}”，最高的是“{_word(most, 0)}”",
        f"Lowest peak: {_word(least, 1)}; highest: {_word(most, 1)}",
    )
    return show(lambda figure, data: _draw_policies(figure, data, score, title), traces, (zh, en))


def _word(name: Names, language: int) -> str:
    return name if isinstance(name, str) else name[language]


def _draw_policies(
    figure: Figure,
    traces: Mapping[Names, MemoryTrace],
    score: Score,
    title: tuple[str, str],
) -> None:
    points = [(trace.peak, added(score, trace.flops)) for trace in traces.values()]
    top = max([share for _, share in points] + [added(score, score.nothing.flops)]) * 1.15 or 1
    x = span(score, "peak", *(peak for peak, _ in points))
    panel = titled_panel(figure, title, x, (-0.06 * top, top), left=0.85, names=[])
    ruled(panel, ("峰值", "peak"), True)
    stairs(panel, score, "peak")
    # Each name right of its point, left where there is no room, and no two on one another.
    taken: list[tuple[float, float, float]] = []
    small = 8 if is_narrow(figure) else 9
    for name, (peak, share) in zip(traces, points, strict=True):
        panel.line([peak], [share], MINE, 5, marker="o", markersize=8, markeredgecolor="white")
        words = in_language(name, between=" ")
        wide = width_of_words(words, small) + 0.1
        x0, y0 = panel.place(peak, share)
        left = x0 + wide + 0.12 > panel.box[2]
        start = x0 - wide - 0.1 if left else x0 + 0.1
        y0 = _free(taken, start, start + wide, y0 + 0.1, 0.17)
        taken.append((start, start + wide, y0))
        figure.text(
            start + (wide if left else 0), y0, words, transform=figure.dpi_scale_trans,
            ha="right" if left else "left", va="center_baseline", fontsize=small, color=INK,
            zorder=6, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip
    name = text(zh="精确的最优边界", en="the exact frontier", between=" ")
    panel.words(x[0], -0.06 * top, name, 0.1, 0.08, color=BEST, fontsize=small)


def _free(
    taken: Sequence[tuple[float, float, float]], start: float, end: float, y: float, line: float
) -> float:
    """The height nearest to ``y``, upwards, at which words do not lie on others."""
    while any(a < end and start < b and abs(y - at) < line for a, b, at in taken):
        y += 0.03
    return y
