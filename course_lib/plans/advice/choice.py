"""The exact best choice of checkpointed blocks under a budget.

Blocks are decided one after the other, in the order in which they run. A partial choice is a
*state*: what it has cost, and how much memory it holds at each moment that is not settled yet.
Moments at which all decisions so far hold the same are one *group* with one number, so that for a
chain a state is two numbers. One that costs no less and holds no less anywhere than another one is
dropped: nothing that follows could make it better. Nothing else is dropped but what cannot fit or
cannot be cheaper than a choice already known, so what is left at the end is the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .record import STATIC
from .score import Part, Score


@dataclass(frozen=True)
class Choice:
    """For each block, which of its options was taken; ``peak`` in bytes, ``flops`` done again."""

    taken: tuple[int, ...]
    peak: int
    flops: int


Options = Sequence[tuple[Part, ...]]  # of one block: () leaves it plain


@dataclass
class _Option:
    profile: np.ndarray  # bytes at each segment of time
    ends: dict[int, int]  # shared storage -> position until which this option holds it
    flops: int


class Problem:
    """A score and the options of each block, as arrays.

    Raises ``ValueError`` if blocks run inside one another.
    """

    def __init__(self, score: Score, blocks: Sequence[Options]):
        self.score, self.blocks = score, [tuple(options) for options in blocks]
        self._check()
        order = [self._first(options) for options in self.blocks]
        self.order = sorted(range(len(order)), key=order.__getitem__)
        self._build()

    def _first(self, options: Options) -> int:
        calls = [number for option in options for part in option for number in part.calls]
        return min((self.score.record.calls[n].begin for n in calls), default=0)

    def _check(self) -> None:
        of: dict[int, int] = {}
        for b, options in enumerate(self.blocks):
            for option in options:
                for part in option:
                    of.update(dict.fromkeys(part.calls, b))
        for number, b in of.items():
            for outer in self.score.record.calls[number].outer:
                if of.get(outer, b) != b:
                    path = self.score.record.calls[number].path
                    raise ValueError(f"{path} runs inside another block")

    def _build(self) -> None:
        score, record = self.score, self.score.record
        size = record.storages
        block_of_call: dict[int, int] = {}
        for b, options in enumerate(self.blocks):
            for option in options:
                for part in option:
                    block_of_call.update(dict.fromkeys(part.calls, b))
        # Who holds what, until when: holders[b][o] is storage -> end.
        fixed: dict[int, int] = {}
        holders: list[list[dict[int, int]]] = [[{} for _ in o] for o in self.blocks]
        for s, slot in enumerate(record.slots):
            if slot.storage == STATIC:
                continue
            end = score._ends_of_slots[s]
            owner = next((block_of_call[c] for c in slot.calls if c in block_of_call), None)
            if owner is None:
                fixed[slot.storage] = max(end, fixed.get(slot.storage, 0))
                continue
            for o, option in enumerate(self.blocks[owner]):
                if not any(c in part.calls for part in option for c in slot.calls):
                    held = holders[owner][o]
                    held[slot.storage] = max(end, held.get(slot.storage, 0))
        for b, options in enumerate(self.blocks):
            for o, option in enumerate(options):
                held = holders[b][o]
                for part in option:
                    for storage, end in part.held.items():
                        held[storage] = max(end, held.get(storage, 0))
        count: dict[int, set[int]] = {}
        for b, of_options in enumerate(holders):
            for held in of_options:
                for storage in held:
                    count.setdefault(storage, set()).add(b)
        basic = {s: max(size[s].dropped, fixed.get(s, 0)) for s in range(len(size))}
        base = score._base.copy()
        np.add.at(base, score._made, score._sizes)
        for s, end in basic.items():
            base[end] -= size[s].size
        base = np.cumsum(base)[: score.end + 1]
        changes: list[list[dict[int, int]]] = []
        self.basic = basic
        ends: list[list[dict[int, int]]] = []
        cuts: set[int] = {0}
        for b, options in enumerate(self.blocks):
            changes.append([])
            ends.append([])
            for o, option in enumerate(options):
                change: dict[int, int] = {}

                def put(at: int, bytes_: int, change: dict[int, int] = change) -> None:
                    change[at] = change.get(at, 0) + bytes_

                shared: dict[int, int] = {}
                for storage, end in holders[b][o].items():
                    if end <= basic[storage]:
                        continue
                    if len(count[storage]) > 1:
                        shared[storage] = end
                        cuts.update((basic[storage], end))
                    else:
                        put(basic[storage], size[storage].size)
                        put(end, -size[storage].size)
                state = record.random_state
                for part in option:
                    for again in part.again:
                        put(again.at, again.peak + state)
                        put(again.at + 1, -again.peak - state)
                        for bytes_, end in again.found:
                            put(again.at + 1, bytes_)
                            put(max(end, again.at + 1), -bytes_)
                    for begin, end in part.random_state:
                        put(begin, state)
                        put(end, -state)
                changes[b].append({at: by for at, by in change.items() if by})
                ends[b].append(shared)
                cuts.update(changes[b][o])
        places = np.array(sorted(c for c in cuts if c <= score.end), dtype=np.int64)
        self.places = places
        self.base = np.maximum.reduceat(base, places)
        index = {int(place): i for i, place in enumerate(places)}
        self.index = index
        self.options: list[list[_Option]] = []
        for b in self.order:
            row = []
            for o, option in enumerate(self.blocks[b]):
                profile = np.zeros(len(places) + 1, dtype=np.int64)
                for at, by in changes[b][o].items():
                    profile[index.get(at, len(places))] += by
                profile = np.cumsum(profile)[: len(places)]
                row.append(_Option(profile, ends[b][o], sum(part.flops for part in option)))
            self.options.append(row)
        self.sizes = {s: size[s].size for shared in ends for one in shared for s in one}
        self._after_last()

    def _after_last(self) -> None:
        """For each shared storage, the last end that blocks from each one on may give it."""
        self.latest: list[dict[int, int]] = [{} for _ in range(len(self.options) + 1)]
        for k in range(len(self.options) - 1, -1, -1):
            latest = dict(self.latest[k + 1])
            for option in self.options[k]:
                for storage, end in option.ends.items():
                    latest[storage] = max(end, latest.get(storage, 0))
            self.latest[k] = latest

    def peak(self, taken: Sequence[int]) -> int:
        """The peak of one choice, options in the order of ``blocks``."""
        return self.score.foretell(self.parts(taken)).peak

    def parts(self, taken: Sequence[int]) -> list[Part]:
        """The parts that a choice checkpoints."""
        return [p for options, o in zip(self.blocks, taken, strict=True) for p in options[o]]

    def cheapest(self, budget: int) -> Choice | None:
        """The choice that does the fewest operations again and whose peak is within ``budget``.

        Among several, one with the lowest peak is not sought. None if no choice fits.
        """
        return _Search(self, budget).run()

    def lowest(self) -> Choice:
        """A choice whose peak is the lowest of all; among those, one with the fewest operations."""
        best = min(
            (self._uniform(o) for o in range(max(map(len, self.blocks), default=1))),
            key=lambda choice: choice.peak,
        )
        impossible = -1  # no choice is known to be above this
        while impossible + 1 < best.peak:
            budget = (impossible + best.peak) // 2
            found = _Search(self, budget, any_cost=True).run()
            if found is None:
                impossible = budget
            else:
                best = found
        return self.cheapest(best.peak) or best

    def _uniform(self, o: int) -> Choice:
        taken = tuple(min(o, len(options) - 1) for options in self.blocks)
        parts = self.parts(taken)
        return Choice(taken, self.score.foretell(parts).peak, sum(p.flops for p in parts))


_SETTLED = 2**62


@dataclass(slots=True)
class _States:
    """Many partial choices that leave shared storage in the same condition, a row each.

    ``sums``: bytes held at each group of moments. ``before``, ``row``, ``option``: what each came
    from, for the way back.
    """

    flops: np.ndarray
    sums: np.ndarray
    before: np.ndarray  # index into the parents' list of _States
    row: np.ndarray
    option: np.ndarray


class _Search:
    def __init__(self, problem: Problem, budget: int, any_cost: bool = False):
        self.problem, self.budget, self.any_cost = problem, budget, any_cost

    def run(self) -> Choice | None:
        problem = self.problem
        count = len(problem.places)
        blocks = len(problem.options)
        # What the blocks still to come hold at least, and whether they matter at all.
        least = np.zeros((blocks + 1, count), dtype=np.int64)
        most = np.zeros((blocks + 1, count), dtype=np.int64)
        for k in range(blocks - 1, -1, -1):
            profiles = np.stack([option.profile for option in problem.options[k]])
            least[k] = least[k + 1] + profiles.min(0)
            most[k] = most[k + 1] + profiles.max(0)
        for k in range(blocks + 1):
            for storage, end in problem.latest[k].items():
                at, until = problem.basic[storage], end
                i, j = self._span(at, until)
                most[k, i:j] += problem.sizes[storage]
        alive = np.flatnonzero(problem.base + most[0] > self.budget)
        if (problem.base + least[0] > self.budget).any():
            return None
        groups = np.zeros(len(alive), dtype=np.int64)
        zero = np.zeros(1, dtype=np.int64)
        states = {(): _States(zero, zero[None], zero, zero, zero - 1)}
        history = [list(states.values())]
        for k in range(blocks):
            states, alive, groups = self._decide(k, states, alive, groups, least, most)
            if not states:
                return None
            history.append(list(states.values()))
        return self._choice(history)

    def _span(self, begin: int, end: int) -> tuple[int, int]:
        places = self.problem.places
        return int(np.searchsorted(places, begin)), int(np.searchsorted(places, end))

    def _decide(
        self, k: int, states: dict[tuple, _States], alive: np.ndarray, groups: np.ndarray,
        least: np.ndarray, most: np.ndarray,
    ) -> tuple[dict[tuple, _States], np.ndarray, np.ndarray]:  # fmt: skip
        problem = self.problem
        options = problem.options[k]
        latest = problem.latest[k + 1]
        rises: dict[tuple, tuple[int, tuple]] = {}  # (key, option) -> row, new key
        rows: list[np.ndarray] = []
        for key in states:
            known = dict(key)
            for o, option in enumerate(options):
                row = option.profile[alive].copy()
                new = dict(known)
                for storage, end in option.ends.items():
                    now = known.get(storage, problem.basic[storage])
                    if end > now:
                        i, j = self._span(now, end)
                        low, high = np.searchsorted(alive, (i, j))
                        row[low:high] += problem.sizes[storage]
                        new[storage] = end
                # Held longer than any later block could: how long does not matter any more.
                still = tuple(sorted(
                    (s, e if latest[s] > e else _SETTLED) for s, e in new.items() if s in latest
                ))  # fmt: skip
                rises[key, o] = len(rows), still
                rows.append(row)
        table = np.stack([groups, *rows]) if rows else groups[None]
        columns, first, new_groups = _unique_columns(table)
        old_of_new = table[0, first]
        # In each new group, the moment that is fullest with what is still to come at least.
        base = problem.base[alive]
        tight = np.full(columns, np.iinfo(np.int64).min)
        np.maximum.at(tight, new_groups, base + least[k + 1, alive])
        # Moments at which the rest can no longer lift anything above the budget are settled.
        loosest = np.full(columns, np.iinfo(np.int64).min)
        np.maximum.at(loosest, new_groups, base + most[k + 1, alive])
        made: dict[tuple, list[_States]] = {}
        for number, (key, those) in enumerate(states.items()):
            for o, option in enumerate(options):
                row, new_key = rises[key, o]
                sums = those.sums[:, old_of_new] + rows[row][first]
                fit = np.flatnonzero((sums + tight <= self.budget).all(1))
                if len(fit):
                    more = 0 if self.any_cost else option.flops
                    made.setdefault(new_key, []).append(_States(
                        those.flops[fit] + more, sums[fit], np.full(len(fit), number), fit,
                        np.full(len(fit), o),
                    ))  # fmt: skip
        if not made:
            return {}, alive, groups
        highest = np.max([one.sums.max(0) for many in made.values() for one in many], axis=0)
        # Of these groups, moments that the rest does not touch were just checked.
        kept = (highest + loosest > self.budget)[new_groups]
        kept &= most[k + 1, alive] > least[k + 1, alive]
        keep_groups = np.zeros(columns, dtype=bool)
        keep_groups[new_groups[kept]] = True
        renumber = np.cumsum(keep_groups) - 1
        floor = self.budget - loosest[keep_groups]
        result = {}
        for key, many in made.items():
            joined = _States(
                *(np.concatenate([getattr(one, name) for one in many])
                  for name in ("flops", "sums", "before", "row", "option"))
            )  # fmt: skip
            # Below the floor, nothing that follows can exceed the budget: all the same.
            joined.sums = np.maximum(joined.sums[:, keep_groups], floor)
            result[key] = _undominated(joined)
        return result, alive[kept], renumber[new_groups[kept]]

    def _choice(self, history: list[list[_States]]) -> Choice:
        last = history[-1]
        number = min(range(len(last)), key=lambda i: int(last[i].flops.min()))
        row = int(last[number].flops.argmin())
        taken = [0] * len(self.problem.blocks)
        for k in range(len(history) - 1, 0, -1):
            states = history[k][number]
            taken[self.problem.order[k - 1]] = int(states.option[row])
            number, row = int(states.before[row]), int(states.row[row])
        parts = self.problem.parts(taken)
        told = self.problem.score.foretell(parts)
        assert told.peak <= self.budget, "the search and the play disagree"
        return Choice(tuple(taken), told.peak, sum(part.flops for part in parts))


def _unique_columns(table: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """How many different columns there are, where each occurs first, and each column's number."""
    if not table.shape[1]:
        return 0, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    rows = np.ascontiguousarray(table.T)
    raw = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, inverse = np.unique(raw, return_index=True, return_inverse=True)
    return len(first), first, inverse


def _undominated(states: _States) -> _States:
    """Those that no other one beats: costs no more, and holds no more anywhere."""
    flops, sums = states.flops, states.sums
    if not sums.shape[1]:
        keep = np.array([int(flops.argmin())])
    else:
        order = np.lexsort((sums.sum(1), flops))
        if sums.shape[1] == 1:
            column = sums[order, 0]
            lowest = np.minimum.accumulate(column)
            better = np.ones(len(column), dtype=bool)
            better[1:] = column[1:] < lowest[:-1]
            keep = order[better]
        else:
            kept = np.empty_like(sums)
            chosen: list[int] = []
            for i in order:
                if not (kept[: len(chosen)] <= sums[i]).all(1).any():
                    kept[len(chosen)] = sums[i]
                    chosen.append(int(i))
            keep = np.array(chosen)
    return _States(
        flops[keep], sums[keep], states.before[keep], states.row[keep], states.option[keep]
    )
