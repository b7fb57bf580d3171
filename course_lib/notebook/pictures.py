"""Pictures and tables of measurements, as lessons show them: they follow the language switch."""

from __future__ import annotations

from collections.abc import Mapping

from ..figures.bars import draw_bars
from ..figures.timeline import draw_side_by_side, draw_timeline
from ..figures.words import PHASE_IN_A_SENTENCE, PHASE_NAMES, size_text
from ..language import Bilingual, Table
from ..memory.trace import MemoryTrace, Role
from .explorers import Explorer, show


def show_timeline(trace: MemoryTrace, limit: int | None = None) -> Explorer:
    """Memory over one step, stacked by role; ``limit``: bytes at the top of the axis."""
    zh, en = PHASE_NAMES[trace.peak_phase]
    source = _SOURCES.get(trace.source, (trace.source, trace.source))
    peak, then = size_text(trace.peak), size_text(sum(trace.kept.values()))
    caption = (
        f"前向传播结束时 {then}，峰值 {peak}（{zh}），数据来源：{source[0]}",
        f"{then} at the end of forward, peak {peak} ({en}); source: {source[1]}",
    )

    return show(lambda figure, data: draw_timeline(figure, data, limit=limit), trace, caption)


def show_side_by_side(traces: Mapping[tuple[str, str], MemoryTrace]) -> Explorer:
    """The timelines of two steps beside each other, each with an axis of its own.

    ``traces``: by (zh, en), two of them. Raises ``ValueError`` for another number.
    """
    if len(traces) != 2:
        raise ValueError(f"two traces are shown beside each other, not {len(traces)}")
    named = list(traces.items())
    told = [(name, size_text(trace.peak), PHASE_NAMES[trace.peak_phase]) for name, trace in named]
    caption = (
        "；".join(f"{name[0]}：峰值 {size}（{phase[0]}）" for name, size, phase in told),
        "; ".join(f"{name[1]}: peak {size} ({phase[1]})" for name, size, phase in told),
    )
    return show(draw_side_by_side, named, caption)


def peak_in_words(trace: MemoryTrace) -> Bilingual:
    """How high the peak is, and in which phase it falls, as a sentence."""
    zh, en = PHASE_IN_A_SENTENCE[trace.peak_phase]
    peak = size_text(trace.peak)
    return Bilingual(zh=f"峰值 {peak}，落在{zh}。", en=f"The peak, {peak}, falls in {en}.")


_SOURCES = {
    "cpu allocator": ("CPU 分配器", "the CPU allocator"),
    "cuda allocator": ("CUDA 分配器", "the CUDA allocator"),
    "simulated": ("模拟张量", "simulated tensors"),
}


def show_bars(
    traces: Mapping[str | tuple[str, str], MemoryTrace | Mapping[Role, int]],
    title: tuple[str, str] | str = "",
    heading: tuple[str, str] | str = "",
) -> Explorer:
    """The peaks of several steps beside each other, stacked by role.

    ``traces``: by name, or by (zh, en); bytes by role do as well.
    ``title``: what to see; the lowest peak if there is none. ``heading``: what the names are.
    """
    rows = list(traces.items())
    sizes = [(name, size_text(_peak(trace))) for name, trace in rows]
    words = [
        "；".join(f"{_named(name, 0)}：{size}" for name, size in sizes),
        "; ".join(f"{_named(name, 1)}: {size}" for name, size in sizes),
    ]
    height = 1.6 + 0.42 * len(rows)
    if not title and rows:
        name, least = min(rows, key=lambda row: _peak(row[1]))
        size, (zh, en) = size_text(_peak(least)), (_named(name, 0), _named(name, 1))
        if heading:
            zh, en = f"{_named(heading, 0)}：{zh}", f"{_named(heading, 1)}: {en}"
        title = f"最低的峰值是 {size}（{zh}）", f"The lowest peak is {size} ({en})"
    return show(
        lambda figure, data: draw_bars(figure, data, title=title, heading=heading),
        rows,
        (f"峰值：{words[0]}", f"peaks: {words[1]}"),
        size=(8.2, max(height, 2.9)),
    )


def _named(name: str | tuple[str, str], language: int) -> str:
    return (name if isinstance(name, str) else name[language]).replace("\n", " · ")


def _peak(trace: MemoryTrace | Mapping[Role, int]) -> int:
    return sum(trace.values()) if isinstance(trace, Mapping) else trace.peak


def roles_table(trace: MemoryTrace) -> Table:
    """The bytes of each role at the peak; they add up to the peak."""
    rows: list[list] = [
        [role.names, f"{size:,}", f"{size / trace.peak:.1%}"]
        for role, size in trace.at_peak.items()
        if size
    ]
    rows.append([("合计 = 峰值", "total = peak"), f"{trace.peak:,}", "100.0%"])
    return Table([("用途", "role"), ("字节", "bytes"), ("占比", "share")], rows)
