"""Pictures and tables of measurements, as lessons show them: they follow the language switch."""

from __future__ import annotations

from collections.abc import Mapping

from .explorers import Explorer, show
from .figures import PHASE_NAMES, draw_bars, draw_timeline, size_text
from .language import Table
from .memory import MemoryTrace


def show_timeline(trace: MemoryTrace, limit: int | None = None) -> Explorer:
    """Memory over one step, stacked by role; ``limit``: bytes at the top of the axis."""
    zh, en = PHASE_NAMES[trace.peak_phase]
    source = _SOURCES.get(trace.source, trace.source)
    peak, kept = size_text(trace.peak), size_text(sum(trace.kept.values()))
    caption = (
        f"前向传播结束时 {kept}，峰值 {peak}（{zh}），数据来源：{source}",
        f"{kept} at the end of forward, peak {peak} ({en}); source: {trace.source}",
    )

    return show(lambda figure, data: draw_timeline(figure, data, limit=limit), trace, caption)


_SOURCES = {
    "cpu allocator": "CPU 分配器",
    "cuda allocator": "CUDA 分配器",
    "simulated": "模拟张量",
}


def show_bars(
    traces: Mapping[str | tuple[str, str], MemoryTrace], title: tuple[str, str] | str = ""
) -> Explorer:
    """The peaks of several steps beside each other, stacked by role.

    ``traces``: by name, or by (zh, en).
    """
    rows = list(traces.items())
    words = [
        "；".join(f"{_named(name, 0)}：{size_text(trace.peak)}" for name, trace in rows),
        "; ".join(f"{_named(name, 1)}: {size_text(trace.peak)}" for name, trace in rows),
    ]
    height = 1.4 + 0.42 * len(rows)
    return show(
        lambda figure, data: draw_bars(figure, data, title=title),
        rows, (f"峰值：{words[0]}", f"peaks: {words[1]}"), size=(8.2, max(height, 2.9)),
    )  # fmt: skip


def _named(name: str | tuple[str, str], language: int) -> str:
    return name if isinstance(name, str) else name[language]


def roles_table(trace: MemoryTrace) -> Table:
    """The bytes of each role at the peak; they add up to the peak."""
    rows: list[list] = [
        [role.names, f"{size:,}", f"{size / trace.peak:.1%}"]
        for role, size in trace.at_peak.items() if size
    ]  # fmt: skip
    rows.append([("合计 = 峰值", "total = peak"), f"{trace.peak:,}", "100.0%"])
    return Table([("角色", "role"), ("字节", "bytes"), ("占比", "share")], rows)
