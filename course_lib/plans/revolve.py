"""Revolve: nested recomputation of equal layers when only so many inputs may be kept.

Source: Griewank & Walther 2000, ACM TOMS 799.
"""

from __future__ import annotations

import math

from ..language import text
from .plan import Plan


def nested_steps(layers: int, snapshots: int) -> int:
    """How many layers' forward passes are done again by :func:`nested_plan`.

    ``snapshots``: inputs kept at once, that of the first layer not among them. With the smallest
    r for which C(snapshots + 1 + r, r) ≥ layers it is r·layers − C(snapshots + 1 + r, r − 1)
    (Griewank & Walther 2000).
    """
    s, r = snapshots + 1, 0
    while math.comb(s + r, s) < layers:
        r += 1
    return r * layers - math.comb(s + r, s + 1)


def nested_plan(layers: int, snapshots: int) -> Plan:
    """Revolve: the fewest steps for equal layers when only ``snapshots`` inputs may be kept.

    Segments within segments; the input of the whole chain comes for free. Raises ``ValueError``
    for fewer than one layer or a negative number of snapshots.
    """
    if layers < 1 or snapshots < 0:
        raise ValueError(
            text(
                zh=f"层数至少是 1，保留的输入数至少是 0，现在是 {layers} 和 {snapshots}。",
                en="At least 1 layer and 0 stored inputs are needed, not "
                f"{layers} and {snapshots}.",
            )
        )
    return Plan(_nested(0, layers, min(snapshots, layers - 1)))


def _nested(begin: int, end: int, snapshots: int) -> tuple:
    """The parts of these layers, whose input is there, with so many more inputs to keep."""
    parts: list = []
    while end - begin > 1:
        if not snapshots:
            parts.append(_nested(begin, end - 1, 0))
            begin = end - 1
            break
        size = min(
            range(1, end - begin),
            key=lambda m: (
                m + nested_steps(end - begin - m, snapshots - 1) + nested_steps(m, snapshots)
            ),
        )
        parts.append(_nested(begin, begin + size, snapshots))
        begin, snapshots = begin + size, snapshots - 1
    return (*parts, begin)
