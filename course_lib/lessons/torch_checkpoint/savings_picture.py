"""What checkpoints leave of each model's memory, in two columns: what is kept, and the peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ...figures.palette import COMPARED, FAINT
from ...figures.panel import Panel, legend_below, title_above, write
from ...figures.picture import is_narrow
from ...figures.words import in_language
from ...notebook.explorers import Explorer, show
from .savings import Saving

Words = tuple[str, str]  # (zh, en)
COLUMNS: tuple[tuple[str, Words], ...] = (
    ("kept", ("前向结束时保存", "kept after forward")),
    ("peak", ("整步的峰值", "peak of the whole step")),
)
WAYS: tuple[tuple[int, Words], ...] = (
    (1, ("每块一个检查点", "a checkpoint per block")),
    (2, ("每 2 块一个", "one per 2 blocks")),
)


def shares(found: Sequence[Saving]) -> dict[Words, dict[tuple[str, int], float]]:
    """By model, and by column and blocks per checkpoint: the share that is left, 0 to 1 or more."""
    plain = {one.kind.name: one for one in found if one.each == 0}
    left: dict[Words, dict[tuple[str, int], float]] = {name: {} for name in plain}
    for one in found:
        for column, _ in COLUMNS:
            base = getattr(plain[one.kind.name], column)
            left[one.kind.name][column, one.each] = getattr(one, column) / base
    return left


def show_savings(found: Sequence[Saving]) -> Explorer:
    """Bars in per cent of the step without checkpoints, which the dashed lines stand for."""
    left = shares(found)
    lowest = {column: min(row[column, 1] for row in left.values()) for column, _ in COLUMNS}
    highest = {column: max(row[column, 1] for row in left.values()) for column, _ in COLUMNS}
    (kept, peak) = (f"{lowest[c]:.0%}–{highest[c]:.0%}" for c, _ in COLUMNS)
    caption = (
        f"每块一个检查点：保存的剩 {kept}，整步峰值剩 {peak}",
        f"with a checkpoint per block, {kept} of what is kept is left, and {peak} of the peak",
    )
    return show(_draw, left, caption, size=(8.2, 3.9))


def _draw(figure: Figure, left: dict[Words, dict[tuple[str, int], float]]) -> None:
    title = (
        "保存的大减，整步峰值未必",
        "What is kept drops sharply; the peak of the step need not",
    )
    top, width = title_above(figure, title) - 0.25, figure.get_figwidth()
    narrow = is_narrow(figure)
    names = 0.1 if narrow else 2.15  # inches for the names, which on a phone stand above the bars
    gap, low = 0.55, 0.85
    wide = (width - names - 2 * gap) / 2
    most = max(1.0, *(share for row in left.values() for share in row.values()))
    for place, (column, words) in enumerate(COLUMNS):
        begin = names + (wide + gap) * place
        box = (begin, low, begin + wide, top)
        panel = Panel(figure, box, (0, most), (len(left) - 0.4, -0.6))
        panel.x_ruler([0, 0.5, 1], ["0%", "50%", "100%"], "")
        panel.line([1, 1], panel.y, FAINT, 4, linewidth=1, linestyle=(0, (4, 3)))
        write(figure, begin, top + 0.08, in_language(words, between="\n"), fontsize=10)
        for row, (name, found) in enumerate(left.items()):
            if not place:
                at: dict[str, Any] = (
                    {"ha": "left", "va": "bottom"} if narrow else {"ha": "right", "va": "center"}
                )
                y = row - 0.3 if narrow else row
                panel.words(0, y, in_language(name, between="\n"), 0.02 if narrow else -0.1, **at)
            for i, (each, _) in enumerate(WAYS):
                share = found[column, each]
                high, down = row - 0.3 + 0.3 * i, row - 0.02 + 0.3 * i
                panel.areas(
                    [[(0, high), (0, down), (share, down), (share, high)]], [COMPARED[1 - i]]
                )
                panel.words(share, (high + down) / 2, f"{share:.0%}", 0.05,
                            va="center_baseline", fontsize=8.5)  # fmt: skip
    entries = [(in_language(w, between=" "), COMPARED[1 - i]) for i, (_, w) in enumerate(WAYS)]
    legend_below(figure, entries)
