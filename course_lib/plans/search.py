"""Searching the cheapest plan without nesting: a shortest path with kept bytes as the resource.

A partial plan is a label: kept bytes, recomputed FLOPs. Followed in full, labels give the exact
optimum (:func:`follow_labels`). Where there are too many, :mod:`bounds` says which of them cannot
lead to anything better, and :func:`count_slots` finds a good plan without a proof.
"""

from __future__ import annotations

import math

import numpy as np

from .needs import Needs

NEVER = np.inf

Step = tuple[int, int, bool]  # from this unit to that, and whether as a segment


def limits_of(needs: Needs, room: int) -> np.ndarray:
    """The most that a partial plan may have kept so far, so that some way to go on still fits.

    By unit and state; negative where there is no way.
    """
    n = needs.n
    limits = np.full((n + 1, 2), -1, dtype=np.int64)
    limits[n] = room - needs.plain[:, n]
    for s in range(n - 1, -1, -1):
        first, need, _ = needs.segment(s)
        for held in range(2):
            more, state = needs.after_plain(s, held)
            plain = min(room - needs.plain[held, s], limits[s + 1, state] - more)
            cut = np.minimum(room - need[held], limits[first:, 0] - needs.source[s])
            limits[s, held] = max(plain, cut.max(initial=-1))
    return limits


def follow_labels(needs: Needs, room: int, limits: np.ndarray, limit: int) -> list[Step] | None:
    """The cheapest plan by following every non-dominated (kept bytes, FLOPs); None if too many."""
    n, total = needs.n, 0
    waiting: list[list[list[np.ndarray]]] = [[[], []] for _ in range(n + 1)]
    labels: dict[tuple[int, int], np.ndarray] = {}
    waiting[0][0].append(np.array([[0.0, 0.0, -1, 0, 0, 0]]))
    for s in range(n + 1):
        for held in range(2):
            if not waiting[s][held]:
                continue
            found = undominated(np.concatenate(waiting[s][held]))
            found = found[found[:, 0] <= limits[s, held]]
            waiting[s][held] = []
            labels[s, held] = found
            if s == n:
                continue
            fits = int(np.searchsorted(found[:, 0], room - needs.plain[held, s], "right"))
            more, state = needs.after_plain(s, held)
            _extend(waiting[s + 1][state], found[:fits], s, held, more, 0.0, segment=False)
            first, need, flops = needs.segment(s)
            fitting = np.searchsorted(found[:, 0], room - need[held], "right")
            total += int(fitting.sum()) + len(fitting)
            if total > limit:
                return None
            for i in np.flatnonzero(fitting):
                _extend(
                    waiting[first + i][0],
                    found[: fitting[i]],
                    s,
                    held,
                    needs.source[s],
                    flops[i],
                    segment=True,
                )
    steps = steps_to(needs, room, labels)
    assert steps is not None, "a plan that fits was found before"
    return steps


def steps_to(
    needs: Needs, room: int, labels: dict[tuple[int, int], np.ndarray]
) -> list[Step] | None:
    """The way to the cheapest label at the end with which the loss fits; None without one."""
    n, best, at = needs.n, NEVER, None
    for held in range(2):
        last = labels.get((n, held))
        if last is not None:
            for row in last[last[:, 0] + needs.plain[held, n] <= room]:
                if row[1] < best:
                    best, at = row[1], row
    if at is None:
        return None
    steps: list[Step] = []
    end = n
    while at[2] >= 0:
        begin, held, index, segment = (int(x) for x in at[2:])
        steps.append((begin, end, bool(segment)))
        end, at = begin, labels[begin, held][index]
    return steps[::-1]


def _extend(
    target: list[np.ndarray],
    found: np.ndarray,
    s: int,
    held: int,
    more: float,
    flops: float,
    *,
    segment: bool,
) -> None:
    """Labels are rows of kept bytes, FLOPs, and where they came from: unit, state, row, how."""
    if len(found):
        rows = np.empty((len(found), 6))
        rows[:, 0], rows[:, 1] = found[:, 0] + more, found[:, 1] + flops
        rows[:, 2], rows[:, 3], rows[:, 4], rows[:, 5] = s, held, np.arange(len(found)), segment
        target.append(rows)


def undominated(rows: np.ndarray) -> np.ndarray:
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    cheapest = np.minimum.accumulate(rows[:, 1])
    return rows[np.concatenate([[True], rows[1:, 1] < cheapest[:-1]])]


def common_unit(needs: Needs) -> int:
    """The largest size of which everything that a plan may keep is a multiple."""
    return math.gcd(*(int(x) for x in needs.inner), *(int(x) for x in needs.source))


def count_slots(needs: Needs, room: int, limits: np.ndarray, size: int) -> list[Step]:
    """The cheapest plan when of partial plans that keep about as much only one is followed.

    About as much: in the same slot of ``size`` bytes; that one is the cheapest of them. Sizes
    themselves are not rounded, and if they are all multiples of ``size``, the plan is the best.
    Nothing is followed beyond ``limits``, so that what is can always be completed.
    """
    n, count = needs.n, min(room, needs.most_kept) // size + 1
    cost = np.full((n + 1, 2, count), NEVER)
    kept = np.full((n + 1, 2, count), room + 1, dtype=np.int64)
    came = np.full((n + 1, 2, count, 3), -1, dtype=np.int32)  # unit, state, slot (~ if kept)
    cost[0, 0, 0] = kept[0, 0, 0] = 0
    for s in range(n):
        for held in range(2):
            row = cost[s, held]
            cheaper = np.concatenate([[NEVER], np.minimum.accumulate(row)[:-1]])
            labels = np.flatnonzero(row < cheaper)
            if not len(labels):
                continue
            memory, flops = kept[s, held, labels], row[labels]
            for segment in (False, True):
                if segment:
                    first, need, more_flops = needs.segment(s)
                    more, state = int(needs.source[s]), 0
                    ends = np.flatnonzero(need[held] <= room - memory.min())
                    limit, more_flops, ends = need[held][ends], more_flops[ends], first + ends
                else:
                    more, state = needs.after_plain(s, held)
                    ends, more_flops = np.array([s + 1]), np.zeros(1)
                    limit = needs.plain[held, [s]]
                after = memory + more
                slot = np.minimum(after // size, count - 1)
                offered = flops[None, :] + more_flops[:, None]
                fits = memory[None, :] <= room - limit[:, None]
                fits &= after[None, :] <= limits[ends, state][:, None]
                better = fits & (offered < cost[ends[:, None], state, slot[None, :]])
                rows, columns = np.nonzero(better)  # of two for one slot, the cheaper comes last
                to = ends[rows], state, slot[columns]
                cost[to] = offered[rows, columns]
                kept[to] = after[columns]
                mark = labels[columns]
                came[to] = np.stack(
                    [np.full(len(mark), s), np.full(len(mark), held), mark if segment else ~mark],
                    axis=-1,
                )
    final = np.where(kept[n] + needs.plain[:, [n]] <= room, cost[n], NEVER)
    held, at = (int(x) for x in np.unravel_index(final.argmin(), final.shape))
    steps: list[Step] = []
    end = n
    while end:
        begin, before, chosen = (int(x) for x in came[end, held, at])
        steps.append((begin, end, chosen >= 0))
        end, held, at = begin, before, max(chosen, ~chosen)
    return steps[::-1]
