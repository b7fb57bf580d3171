"""The recorder's stream, with the watching's marks among it, sorted into a record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ...memory.log import (
    END,
    Accumulated,
    Aside,
    Entry,
    Found,
    Freed,
    Held,
    Operator,
    Recording,
    Remark,
    Resized,
)
from ...memory.ranks import across_ranks, comes_from_ranks
from ...memory.trace import Phase, Role
from .record import STATIC, Call, MomentKind, Operation, Record, ScoreMoment, Slot, Storage


@dataclass(frozen=True, slots=True)
class Mark(Remark):
    """What the watching writes among the recorder's entries."""

    kind: str
    what: int = 0
    addresses: tuple[int, ...] = ()
    flops: int = 0
    more: Any = None


_RANDOM = {"aten.rand", "aten.bernoulli", "aten.bernoulli_", "aten.uniform_", "aten.randint"}
_FEW = 64  # bytes


def record_of(recording: Recording, held_as_they_are: int = 0) -> Record:
    """What a recording says; ``held_as_they_are``: how many saved tensors had no stand-in."""
    return _Sorting(recording).record(held_as_they_are)


class _Sorting:
    """Sorts the source's stream and the marks into a record."""

    def __init__(self, recording: Recording):
        self.recording = recording
        self.moments: list[ScoreMoment] = []
        self.phases: list[Phase] = []
        self.storages: list[Storage] = []
        self.slots: list[Slot] = []
        self.calls: list[Call] = []
        self.operations: list[Operation] = []
        self.open: list[int] = []
        self.freed_before: list[tuple[int, int, Role]] = []
        self.alive: dict[int, int] = {}  # address -> storage
        self.private: dict[int, tuple[int, list[int] | None]] = {}  # address -> slot, its read
        self.phase: Phase = "forward"
        self.ran_backward = False
        self.few_random = self.drew = False
        self.existing = dict(self.recording.before)
        self.all_before = list(self.recording.before.values())
        self._replay()

    def _note(self, kind: MomentKind, what: int) -> int:
        self.moments.append(ScoreMoment(kind, what))
        self.phases.append(self.phase)
        return len(self.moments) - 1

    def _make(self, address: int, size: int, maker: Operator | None) -> None:
        self._drop(address)  # if its end went unreported
        number = len(self.storages)
        at = self._note("make", number)
        place = maker.place if maker is not None else None
        name = maker.name if maker is not None else None
        again = maker is not None and maker.recomputing
        made = Storage(size, at, -1, self.phase, name, place, again, sent=comes_from_ranks(maker))
        self.storages.append(made)
        self.alive[address] = number

    def _drop(self, address: int) -> None:
        if address in self.private:
            slot, read = self.private.pop(address)
            if slot >= 0 and read is not None:
                read[2] = self._note("used", slot)
            return
        number = self.alive.pop(address, None)
        if number is not None:
            self.storages[number].dropped = self._note("drop", number)
        elif address in self.existing:
            role, size = self.existing.pop(address)
            self.freed_before.append((len(self.moments), size, role))
            self._note("drop", STATIC)

    def _show(self, across_ranks: Role, addresses: Iterable[int]) -> None:
        if across_ranks is Role.GATHERED:
            self._hold(Role.GATHERED, addresses)
        else:
            for number in (self.alive[a] for a in addresses if a in self.alive):
                self.storages[number].sent = True

    def _hold(self, role: Role, addresses: Iterable[int]) -> None:
        for address in addresses:
            number = self.alive.get(address)
            if number is not None and self.storages[number].role is None:
                self.storages[number].role = role

    def _replay(self) -> None:
        log: list[Entry] = self.recording.entries
        open_operators: list[Operator] = []
        repeated: list[int] = []
        aside = False
        private: int | None = None
        read: list[int] | None = None
        for happening in self.recording.stream:
            address, size = happening.address, happening.size
            if aside and happening.kind != "mark":
                continue
            if happening.kind == "allocate":
                if private is not None:
                    self.private[address] = private, read
                    continue
                if repeated and repeated[0] == size:
                    repeated.pop(0)
                    continue
                maker = open_operators[-1] if open_operators else None
                if maker is not None and maker.continues(address, self.alive):
                    self.alive[address] = self.alive.pop(maker.reads[0])
                    continue
                self._make(address, size, maker)
                continue
            if happening.kind == "free":
                self._drop(address)
                continue
            entry = log[address]
            if isinstance(entry, Mark):
                if entry.kind == "private":
                    private = entry.what
                elif entry.kind == "public":
                    private = None
                else:
                    read = self._marked(entry)
            elif isinstance(entry, Operator):
                self.phase = entry.phase
                self.ran_backward |= entry.phase == "backward"
                repeated = list(entry.numbers) if self.recording.source.sees_numbers else []
                open_operators.append(entry)
                for role, addresses in across_ranks(entry):
                    self._show(role, addresses)
            elif isinstance(entry, Held):
                self._hold(entry.role, entry.addresses)
            elif isinstance(entry, Accumulated):
                self._hold(Role.GRADIENT, entry.addresses)
                for became in (self.alive[a] for a in entry.addresses if a in self.alive):
                    self.storages[became].accumulated = len(self.moments)
            elif isinstance(entry, Found):
                if entry.just_made:
                    self._make(entry.address, entry.size, None)
                    self.storages[-1].role = entry.role
                elif entry.address not in self.alive and entry.address not in self.private:
                    self.existing[entry.address] = entry.role, entry.size
                    self.all_before.append((entry.role, entry.size))
            elif isinstance(entry, Resized):
                if entry.at_first in self.recording.before:
                    self._hold(self.recording.before[entry.at_first][0], (entry.address,))
                elif self.recording.in_a_group and not open_operators:
                    self._hold(Role.GATHERED, (entry.address,))
            elif isinstance(entry, Freed):
                self._drop(entry.address)
            elif isinstance(entry, Aside):
                aside = True
            elif entry is END and aside:
                aside = False
            elif entry is END:
                operator = open_operators.pop()
                repeated = []
                self._look_for_chance(operator)
                for made in operator.made:
                    if (number := self.alive.get(made)) is not None:
                        self.storages[number].is_tensor = True

    def _look_for_chance(self, operator: Operator) -> None:
        """Random numbers, a few only, whose value the forward pass then asks for: LayerDrop."""
        if operator.name == "aten._local_scalar_dense" and operator.phase == "forward":
            self.drew |= self.few_random
        elif operator.name in _RANDOM:
            drawn = operator.made or operator.reads
            sizes = [self.storages[self.alive[a]].size for a in drawn if a in self.alive]
            self.few_random |= bool(sizes) and max(sizes) <= _FEW

    def _marked(self, mark: Mark) -> list[int] | None:
        if mark.kind == "enter":
            given = tuple(dict.fromkeys(self.alive[a] for a in mark.addresses if a in self.alive))
            first = self.alive.get(mark.addresses[0], STATIC) if mark.addresses else STATIC
            path, follows = mark.more
            call = Call(path, self._note("enter", mark.what), tuple(self.open), mark.flops, given,
                        follows=follows, input=first, tensors=len(mark.addresses))  # fmt: skip
            self.calls.append(call)
            self.open.append(mark.what)
        elif mark.kind == "exit":
            self.calls[mark.what].end = self._note("exit", mark.what)
            self.open.remove(mark.what)
        elif mark.kind == "save":
            storage = self.alive.get(mark.addresses[0], STATIC)
            if storage != STATIC and self.storages[storage].role is Role.GATHERED:
                storage = STATIC  # FSDP2 takes its memory away, whoever holds it
            at = self._note("save", mark.what)
            self.slots.append(Slot(storage, at, tuple(self.open), mark.flops, -1))
            for running_call in self.open:
                self.calls[running_call].slots.append(mark.what)
        elif mark.kind == "read":
            at = self._note("read", mark.what)
            read = [at, mark.more, at]
            self.slots[mark.what].reads.append(read)
            return read
        elif mark.kind == "forget":
            self.slots[mark.what].forgotten = self._note("forget", mark.what)
        elif mark.kind == "operator":
            at = self._note("operator", mark.what)
            self.operations.append(Operation(mark.more, tuple(self.open), at, mark.flops))
        elif mark.kind == "result":
            done = self.operations[mark.what]
            done.end = self._note("result", mark.what)
            done.flops = mark.flops - done.flops
            done.results = tuple(self.alive.get(a, STATIC) for a in mark.addresses)
        return None

    def record(self, held_as_they_are: int) -> Record:
        end = len(self.moments)
        for storage in self.storages:
            if storage.dropped < 0:
                storage.dropped = end
        for slot in self.slots:
            if slot.forgotten < 0:
                slot.forgotten = end
        sums: dict[Role, int] = {}
        for role, size in self.all_before:
            sums[role] = sums.get(role, 0) + size
        return Record(
            sum(sums.values()), sums, self.moments, self.phases, self.storages, self.slots,
            self.calls, self.freed_before, self.recording.flops,
            self.recording.source.name, self.recording.built_a_graph, self.ran_backward,
            tuple(sorted(self.recording.uncounted)), held_as_they_are,
            drew=self.drew, operations=self.operations,
            random_state=0 if self.recording.source.simulated else torch.get_rng_state().nbytes,
        )  # fmt: skip
