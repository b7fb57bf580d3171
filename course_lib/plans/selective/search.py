"""All the best choices, exactly: fewest bytes at the worst moment against most FLOPs spared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Option:
    """One way to decide: which choices it stores, FLOPs spared, bytes added at each moment."""

    stored: tuple[int, ...]
    spared: int
    added: np.ndarray


def best_choices(base: np.ndarray, groups: Sequence[Sequence[Option]]) -> list[frozenset[int]]:
    """One option of each group, in every way that none beats: fewest bytes first.

    A way takes ``base`` plus what its options add, at the worst moment, and spares what they
    spare. Of ways that are equal in both, the one that stores the fewest results.

    Partial ways that are beaten at every moment are dropped: whatever follows, they stay beaten.
    Beforehand, moments are dropped that another is never below, whatever is chosen.
    """
    base, ways = _decisive(base, [_undominated(group, base.size) for group in groups])
    ways = [_undominated(group, base.size) for group in ways]
    ways.sort(key=lambda group: -max(option.spared for option in group))
    levels, spared, stored = base[None, :], np.zeros(1, np.int64), [frozenset[int]()]
    for group in ways:
        levels = np.concatenate([levels + option.added for option in group])
        spared = np.concatenate([spared + option.spared for option in group])
        stored = [one.union(option.stored) for option in group for one in stored]
        left = _front(levels, spared, stored)
        levels, spared, stored = levels[left], spared[left], [stored[i] for i in left]
    worst = levels.max(axis=1)[:, None]
    return [stored[i] for i in _front(worst, spared, stored)]


def _undominated(group: Sequence[Option], moments: int) -> list[Option]:
    levels = np.array([option.added for option in group]).reshape(len(group), moments)
    spared = np.array([option.spared for option in group], np.int64)
    return [group[i] for i in _front(levels, spared, [frozenset(o.stored) for o in group])]


def _decisive(
    base: np.ndarray, groups: list[list[Option]]
) -> tuple[np.ndarray, list[list[Option]]]:
    """Without the moments that are at most as high as another one under every choice."""
    options = [option for group in groups for option in group]
    added = np.array([option.added for option in options]).reshape(len(options), base.size)
    # Of moments to which every choice adds the same, only the highest counts.
    highest: dict[bytes, int] = {}
    for at in np.argsort(-base, kind="stable"):
        highest.setdefault(added[:, at].tobytes(), int(at))
    left = list(highest.values())
    decisive: list[int] = []
    for at in left:  # the highest first: those are the ones that others hide behind
        least = base[decisive] - base[at]
        for group in groups:
            ways = np.array([option.added[decisive] - option.added[at] for option in group])
            least = least + (ways.min(axis=0) if len(group) else 0)
        if not (least >= 0).any():
            decisive.append(at)
    narrowed = [
        [Option(option.stored, option.spared, option.added[decisive]) for option in group]
        for group in groups
    ]
    return base[decisive], narrowed


def _front(levels: np.ndarray, spared: np.ndarray, stored: Sequence[frozenset[int]]) -> list[int]:
    """Which rows no other one beats, fewest bytes at the worst moment first."""
    worst = levels.max(axis=1) if levels.shape[1] else np.zeros(len(levels), np.int64)
    order = sorted(
        range(len(levels)),
        key=lambda i: (worst[i], -spared[i], levels[i].sum(), len(stored[i]), sorted(stored[i])),
    )
    left: list[int] = []
    for i in order:
        if left:
            before = np.array(left)
            beaten = (spared[before] >= spared[i]) & (levels[before] <= levels[i]).all(axis=1)
            if beaten.any():
                continue
        left.append(i)
    return left
