"""Bytes in words: ``"24 GiB"`` as a number, and numbers as words."""

from __future__ import annotations

import contextlib
import re

from ...language import text


def bytes_of(budget: int | str | None) -> int | None:
    """A budget in bytes: a number of bytes, or words such as ``"24 GiB"`` or ``"500 MB"``.

    Raises ``TypeError`` or ``ValueError`` for anything else, zero and less included.
    """
    if budget is None:
        return None
    amount: float | None = None
    if isinstance(budget, (int, float)) and not isinstance(budget, bool):
        amount = float(budget)
        if not amount.is_integer():
            amount = None
    elif isinstance(budget, str):
        found = re.fullmatch(r"\s*([\d.,_]+)\s*([KMGT]?i?B?|[kmgt]i?b?)\s*", budget)
        if found:
            with contextlib.suppress(ValueError):
                number = float(found[1].replace(",", "").replace("_", ""))
                unit = found[2].lower().removesuffix("b")
                amount = number * _UNITS[unit]
    if amount is None or not 1 <= amount < 2**80:
        raise ValueError(text(
            zh=f"budget 要字节数（正整数），或 \"24 GiB\" 这样的写法，现在是 {budget!r}。",
            en=f"budget must be a positive number of bytes, or words like \"24 GiB\", not "
            f"{budget!r}.",
        ))  # fmt: skip
    return int(amount)


_UNITS = {"": 1} | {
    letter + i: (1024 if i else 1000) ** power
    for power, letter in enumerate("kmgt", 1) for i in ("", "i")
}  # fmt: skip


def readable(size: int) -> str:
    """Bytes with a unit: ``1.50 GiB``."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(size) >= 2**power:
            return f"{size / 2**power:.2f} {unit}"
    return f"{size} B"
