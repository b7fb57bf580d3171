"""What a step needs under any choice of checkpointed blocks, played from its record.

Storage lives from the moment it is made until its last holder lets go: Python, autograd (a saved
tensor), or a checkpoint (a call's arguments). Which of these there are, and until when, depends on
each block's own choice alone; only the last of them counts. So one step's memory is a sum: what no
choice changes, what each choice brings, and storage that several blocks hold. That makes
predictions exact and quick, and lets :mod:`choice` search without playing each choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .record import STATIC, Call, Record


@dataclass(frozen=True)
class Again:
    """One recomputation of a call: at ``at``, ``peak`` bytes for a moment, then ``found``.

    ``found``: (bytes, position until which they are held). ``flops``: done again. ``workspace``:
    how much of ``peak`` is inside operators.
    """

    at: int
    peak: int
    found: tuple[tuple[int, int], ...]
    flops: int
    workspace: int = 0


@dataclass
class Part:
    """A set of modules that are checkpointed together or not at all: a block, or part of one.

    ``plain``, ``held``: storage → position until which it is held, without and with checkpoints.
    """

    name: str
    paths: tuple[str, ...]
    calls: tuple[int, ...]
    plain: dict[int, int]
    held: dict[int, int]
    again: tuple[Again, ...]
    random_state: tuple[tuple[int, int], ...] = ()  # held from, until

    @property
    def flops(self) -> int:
        """Operations done again if it is checkpointed."""
        return sum(again.flops for again in self.again)


@dataclass(frozen=True)
class Foretold:
    """A choice's peak (bytes), where it falls, and its operations.

    ``random_state``, ``workspace``: how much of the peak they are; 0 for simulated tensors.
    """

    peak: int
    at: int
    flops: int
    random_state: int = 0
    workspace: int = 0


class Score:
    """A record, and what each of its calls would do if it were checkpointed."""

    def __init__(self, record: Record):
        self.record = record
        self.end = len(record.moments)
        self._agains: dict[int, tuple[Again, ...]] = {}
        self._base = self._without_named()
        # Held by autograd outside of any choice: until when.
        self.outside: dict[int, int] = {}
        self._parts: dict[tuple[str, ...], Part] = {}
        self._by_path: dict[str, list[int]] = {}
        for number, call in enumerate(record.calls):
            self._by_path.setdefault(call.path, []).append(number)
        self._made = np.array([s.made for s in record.storages], dtype=np.int64)
        self._sizes = np.array([s.size for s in record.storages], dtype=np.int64)
        self._dropped = np.array([s.dropped for s in record.storages], dtype=np.int64)
        self._ends_of_slots = [self.end_of(number) for number in range(len(record.slots))]

    def _without_named(self) -> np.ndarray:
        change = np.zeros(self.end + 2, dtype=np.int64)
        change[0] = self.record.before
        for at, size, _ in self.record.freed_before:
            change[at] -= size
        return change

    def end_of(self, number: int) -> int:
        """Until when autograd and the nodes that read it hold a slot's tensor."""
        slot = self.record.slots[number]
        return max([slot.forgotten, *(read[2] for read in slot.reads)])

    # --- one call ---------------------------------------------------------------------------

    def release(self, call: Call) -> int:
        """When a checkpoint around the call would let go of its arguments."""
        forgotten = (self.record.slots[s].forgotten for s in call.slots)
        return max([call.end, *forgotten])

    def agains(self, number: int) -> tuple[Again, ...]:
        """The call's recomputations: one for each backward pass that reads what it saved."""
        if number not in self._agains:
            self._agains[number] = self._agains_of(self.record.calls[number])
        return self._agains[number]

    def _agains_of(self, call: Call) -> tuple[Again, ...]:
        firsts: dict[int, int] = {}
        for slot in call.slots:
            for at, run, _ in self.record.slots[slot].reads:
                key = run if run >= 0 else -1 - at
                firsts[key] = min(at, firsts.get(key, at))
        return tuple(
            self._again(call, run, at) for run, at in sorted(firsts.items(), key=lambda f: f[1])
        )

    def _again(self, call: Call, run: int, at: int) -> Again:
        record = self.record
        holders: dict[int, int] = {}  # storage made again -> how many hold it
        local: dict[int, bool] = {}
        found: dict[int, list[int]] = {}  # storage -> slots that will be read from it
        left = len(call.slots)
        level = peak = inside = inside_at_peak = 0
        flops = 0

        def let_go(storage: int) -> None:
            nonlocal level, inside
            holders[storage] -= 1
            if not holders[storage]:
                level -= record.storages[storage].size
                inside -= record.storages[storage].workspace

        for position in range(call.begin, call.end + 1):
            moment = record.moments[position]
            what = moment.what
            if moment.kind == "make":
                holders[what], local[what] = 1, True
                level += record.storages[what].size
                inside += record.storages[what].workspace
                if level > peak:
                    peak, inside_at_peak = level, inside
            elif moment.kind == "drop":
                if local.get(what):
                    local[what] = False
                    let_go(what)
            elif moment.kind == "save":
                slot = record.slots[what]
                if holders.get(slot.storage):
                    holders[slot.storage] += 1
                    if slot.forgotten > at:
                        found.setdefault(slot.storage, []).append(what)
                left -= 1
                if not left:
                    flops = slot.flops - call.flops
                    break
            elif moment.kind == "forget":
                slot = record.slots[what]
                if slot.saved > call.begin and holders.get(slot.storage):
                    let_go(slot.storage)
        kept = tuple(
            (record.storages[s].size, max(self._read_end(slot, run) for slot in slots))
            for s, slots in found.items()
        )
        return Again(at, peak, kept, flops, inside_at_peak)

    def _read_end(self, number: int, run: int) -> int:
        """Until when one recomputation holds what it has made again for a slot."""
        slot = self.record.slots[number]
        for at, of, used in slot.reads:
            if (of if of >= 0 else -1 - at) == run:
                return used
        return slot.forgotten

    # --- modules ----------------------------------------------------------------------------

    def part(self, name: str, paths: Iterable[str]) -> Part:
        """The calls of these modules as one choice. None of them may run inside another."""
        key = tuple(paths)
        if key in self._parts:
            return self._parts[key]
        numbers = [n for path in key for n in self._by_path.get(path, ())]
        calls = [(self.record.calls[number], self.agains(number)) for number in numbers]
        self._parts[key] = part = self._together(name, key, numbers, calls)
        return part

    def segment(self, paths: Sequence[str]) -> Part:
        """Modules that run one after the other, as one checkpoint around each run of them.

        Each must hand on to the next, as those do that :func:`segments.chains_in` finds.
        """
        key = ("segment", *paths)
        if key in self._parts:
            return self._parts[key]
        runs = list(zip(*(self._by_path[path] for path in paths), strict=True))
        calls = [self._joined([self.record.calls[number] for number in run]) for run in runs]
        numbers = [number for run in runs for number in run]
        part = self._together(
            " + ".join(paths), tuple(paths), numbers, [(c, self._agains_of(c)) for c in calls]
        )
        self._parts[key] = part
        return part

    def _joined(self, run: list[Call]) -> Call:
        first, last = run[0], run[-1]
        slots = [slot for call in run for slot in call.slots]
        return Call(first.path, first.begin, first.outer, first.flops, first.given, last.end, slots)

    def _together(
        self, name: str, paths: tuple[str, ...], numbers: Sequence[int],
        calls: Iterable[tuple[Call, tuple[Again, ...]]],
    ) -> Part:  # fmt: skip
        plain: dict[int, int] = {}
        held: dict[int, int] = {}
        again: list[Again] = []
        states: list[tuple[int, int]] = []
        for call, agains in calls:
            release = self.release(call)
            for storage in call.given:
                held[storage] = max(release, held.get(storage, 0))
            for s in call.slots:
                slot = self.record.slots[s]
                if slot.storage == STATIC:
                    continue
                end = self._ends_of_slots[s]
                plain[slot.storage] = max(end, plain.get(slot.storage, 0))
                if self.record.storages[slot.storage].made < call.begin:
                    used = max((read[2] for read in slot.reads), default=0)
                    held[slot.storage] = max(used, held.get(slot.storage, 0))
            again += agains
            if self.record.random_state:
                states.append((call.begin, release))
        return Part(name, paths, tuple(numbers), plain, held, tuple(again), tuple(states))

    # --- playing ----------------------------------------------------------------------------

    def foretell(self, parts: Iterable[Part] = ()) -> Foretold:
        """Peak and operations with these parts checkpointed.

        Raises ``ValueError`` if a part runs inside another one of them.
        """
        parts = list(parts)
        curve = self.curve(parts)
        at = int(curve.argmax())
        flops = self.record.flops + sum(part.flops for part in parts)
        return Foretold(
            int(curve[at]), at, flops, self._random_state_at(at, parts),
            self._workspace_at(at, parts),
        )  # fmt: skip

    def curve(self, parts: Sequence[Part] = ()) -> np.ndarray:
        """Bytes after each moment."""
        change = self.changes(self.ends(parts))
        for part in parts:
            for again in part.again:
                add_again(change, again, self.record.random_state)
            for begin, end in part.random_state:
                change[begin] += self.record.random_state
                change[end] -= self.record.random_state
        return np.cumsum(change)[: self.end + 1]

    def changes(self, ends: np.ndarray) -> np.ndarray:
        """Bytes that come and go at each moment, if the storages are held until ``ends``."""
        change = self._base.copy()
        np.add.at(change, self._made, self._sizes)
        np.subtract.at(change, ends, self._sizes)
        return change

    def ends(self, parts: Sequence[Part] = ()) -> np.ndarray:
        """Until when each storage is held, whoever holds it last."""
        calls = self.record.calls
        chosen = {number for part in parts for number in part.calls}
        for number in chosen:
            if chosen.intersection(calls[number].outer):
                raise ValueError(f"{calls[number].path} runs inside another choice")
        ends = self._dropped.copy()
        for s, slot in enumerate(self.record.slots):
            if slot.storage != STATIC and not chosen.intersection(slot.calls):
                ends[slot.storage] = max(ends[slot.storage], self._ends_of_slots[s])
        for part in parts:
            for storage, end in part.held.items():
                ends[storage] = max(ends[storage], end)
        return ends

    def _random_state_at(self, at: int, parts: Sequence[Part]) -> int:
        """A checkpoint keeps the state; while it recomputes, the one meanwhile is put aside."""
        kept = sum(begin <= at < end for part in parts for begin, end in part.random_state)
        aside = sum(again.at == at for part in parts for again in part.again)
        return (kept + aside) * self.record.random_state

    def _workspace_at(self, at: int, parts: Sequence[Part]) -> int:
        storages = self.record.storages
        usual = sum(s.workspace for s in storages if s.made <= at < s.dropped)
        return usual + sum(a.workspace for part in parts for a in part.again if a.at == at)


def add_again(change: np.ndarray, again: Again, state: int = 0) -> None:
    """Write a recomputation into an array of changes.

    ``state``: bytes of the random state that is put aside meanwhile.
    """
    change[again.at] += again.peak + state
    change[again.at + 1] -= again.peak + state
    for size, end in again.found:
        change[again.at + 1] += size
        change[max(end, again.at + 1)] -= size
