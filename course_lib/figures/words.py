"""Numbers and phases in words, in both languages."""

from __future__ import annotations

import math

from ..language import text
from ..memory.trace import Phase

Words = str | tuple[str, str]  # the same in both languages, or (zh, en)


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


UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def in_language(words: Words, between: str = " · ") -> str:
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
