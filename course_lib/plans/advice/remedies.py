"""What remedies that are no checkpoints would save, played from a step's score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...memory.trace import Role
from .score import Score

_KEPT = {Role.PARAMETER, Role.GRADIENT, Role.OPTIMIZER_STATE, Role.BUFFER, Role.INPUT}


def peak_if(score: Score, ends: Mapping[int, int], fewer: int = 0) -> int:
    """The plain step's peak if storages were freed at other positions, and ``fewer`` bytes
    existed before."""
    record = score.record
    changed = score.ends()
    for number, end in ends.items():
        changed[number] = min(end, changed[number])
    change = np.zeros(score.end + 2, dtype=np.int64)
    change[0] = record.before - fewer
    for at, size, _ in record.freed_before:
        change[at] -= size
    for number, storage in enumerate(record.storages):
        change[storage.made] += storage.size
        change[changed[number]] -= storage.size
    return int(np.cumsum(change)[: score.end + 1].max())


def lean_update(score: Score) -> int:
    """The peak if the optimizer made no temporaries, as a fused one does."""
    return peak_if(score, _of_the_update(score))


def no_state(score: Score) -> int:
    """The peak with an optimizer that has neither state nor temporaries, as plain SGD."""
    record = score.record
    gone = _of_the_update(score) | {
        n: s.made for n, s in enumerate(record.storages) if s.role is Role.OPTIMIZER_STATE
    }
    return peak_if(score, gone, record.before_by_role.get(Role.OPTIMIZER_STATE, 0))


def _of_the_update(score: Score) -> dict[int, int]:
    return {
        n: s.made for n, s in enumerate(score.record.storages)
        if s.phase == "optimizer step" and s.role not in _KEPT
    }  # fmt: skip


def gradients_in_buckets(score: Score) -> int:
    """The peak if each gradient were gone as soon as it is in its bucket."""
    made = enumerate(score.record.storages)
    ends = {n: s.accumulated for n, s in made if s.accumulated is not None}
    return peak_if(score, ends)
