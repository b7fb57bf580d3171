"""The allocator's stream laid over what was noted: every block's life, and from all, the trace."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .kernels import differing
from .log import END, Accumulated, Aside, Found, Freed, Held, Operator, Recording, Resized
from .ranks import ONLY_IN_A_GROUP, across_ranks
from .roles import Lifetime
from .trace import Event, MemoryBlock, MemoryTrace, Phase, Role


@dataclass(slots=True)
class _Change:
    """A life's begin (``sign`` +1) or end (-1)."""

    time: float | None
    sign: int
    life: Lifetime
    phase: Phase


def trace_of(recording: Recording) -> MemoryTrace:
    """The trace of what was recorded."""
    return _Replay(recording).trace()


class _Replay:
    """Goes through the stream beside the entries, and follows every block's life."""

    def __init__(self, recording: Recording):
        self.recording = recording
        self.changes: list[_Change] = []
        self.forward_ends: list[int] = []  # how many changes had happened by then
        self.alive = {
            address: Lifetime(size, known=role)
            for address, (role, size) in (recording.before | self._found()).items()
        }
        self.existing = list(self.alive.values())
        self.phase: Phase = "forward"
        self.running: list[Operator] = []
        # In x * 2, PyTorch makes a tensor of the 2 and calls the operator. The recorder, which is
        # handed the 2 itself, calls it again: that makes another, which the bare step never had.
        self.repeated: list[int] = []
        self.undated: list[_Change] = []  # made outside of operators: preparing for the next one
        self._replay()

    def _found(self) -> dict[int, tuple[Role, int]]:
        """What the step read without having made it: it existed before, if unmentioned."""
        made_inside: set[int] = set()
        found = {}
        for event in self.recording.stream:
            if event.kind == "allocate":
                made_inside.add(event.address)
            elif event.kind == "free":
                made_inside.discard(event.address)
            else:
                entry = self.recording.entries[event.address]
                if not isinstance(entry, Found) or entry.just_made:
                    continue
                if entry.address not in made_inside:
                    found[entry.address] = (entry.role, entry.size)
        return found

    def _replay(self) -> None:
        aside = False
        for event in self.recording.stream:
            if event.kind == "mark":
                entry = self.recording.entries[event.address]
                if isinstance(entry, Aside):
                    aside = True
                elif aside and entry is END:
                    aside = False
                else:
                    self._noted(entry, event.time)
            elif not aside and event.kind == "allocate":
                self._allocated(event.address, event.size, event.time)
            elif not aside:
                self._freed(event.address, event.time)

    def _noted(self, entry: Any, time: float | None) -> None:
        match entry:
            case Operator():
                self._begins(entry)
            case None:  # END
                self._mark_tensors(self.running.pop().made)
                self.repeated = []
            case Accumulated(addresses):
                self._hold(Role.GRADIENT, addresses)
            case Held(role, addresses):
                self._hold(role, addresses)
                self._no_mere_bucket(role, addresses)
            case Found(just_made=True):
                self._allocate(entry.address, entry.size, time, None).life.known = entry.role
            case Resized(address, at_first):
                self._mark_tensors((address,))
                if at_first in self.recording.before:
                    self._hold(self.recording.before[at_first][0], (address,))
                elif self.recording.in_a_group and not self.running:  # by no operator: by FSDP2
                    self._show((address,), Role.GATHERED)
            case Freed(address):
                self._freed(address, time)

    def _begins(self, operator: Operator) -> None:
        if operator.phase == "backward" and self.phase == "forward":
            self.forward_ends.append(len(self.changes))
        self.phase = operator.phase
        for change in self.undated:
            change.phase = change.life.phase = self.phase
        self.undated.clear()
        self.repeated = list(operator.numbers) if self.recording.source.sees_numbers else []
        self.running.append(operator)
        self._mark_tensors(operator.reads)
        for address in operator.reads:
            if (life := self.alive.get(address)) is not None:
                life.read_by_recomputation |= operator.recomputing
                life.read_by_backward |= operator.phase == "backward" and not operator.recomputing
        for role, addresses in across_ranks(operator):
            self._show(addresses, role)

    def _mark_tensors(self, addresses: Iterable[int]) -> None:
        for address in addresses:
            if (life := self.alive.get(address)) is not None:
                life.is_tensor = True

    def _hold(self, role: Role, addresses: Iterable[int]) -> None:
        for address in addresses:
            life = self.alive.get(address)
            if life is not None and life.known is None:
                life.known = role

    def _show(self, addresses: Iterable[int], across_ranks: Role) -> None:
        for address in addresses:
            if (life := self.alive.get(address)) is not None:
                life.across_ranks = across_ranks

    def _no_mere_bucket(self, role: Role, addresses: Iterable[int]) -> None:
        """A bucket that gradients are views of is met before it is seen to be held as those."""
        for address in addresses:
            life = self.alive.get(address)
            if life is not None and life.known is Role.COMMUNICATION:
                life.known = role

    def _allocated(self, address: int, size: int, time: float | None) -> None:
        if self.repeated and self.repeated[0] == size:
            self.repeated.pop(0)
            return
        maker = self.running[-1] if self.running else None
        if maker is not None and maker.continues(address, self.alive):
            self.alive[address] = self.alive.pop(maker.reads[0])
            return
        change = self._allocate(address, size, time, maker)
        if maker is None:
            self.undated.append(change)

    def _allocate(
        self, address: int, size: int, time: float | None, maker: Operator | None
    ) -> _Change:
        self._freed(address, time)  # if its end went unreported
        life = self.alive[address] = Lifetime(size, maker=maker, phase=self.phase)
        self.changes.append(_Change(time, +1, life, self.phase))
        return self.changes[-1]

    def _freed(self, address: int, time: float | None) -> None:
        life = self.alive.pop(address, None)
        if life is not None:  # else something that the step never touched
            self.changes.append(_Change(time, -1, life, self.phase))

    # --- and then the trace ---

    def trace(self) -> MemoryTrace:
        blocks = {life: life.block() for life in self.existing}
        events: list[Event] = []
        total = peak = sum(life.size for life in self.existing)
        peak_index = -1
        for change in self.changes:
            block = blocks.get(change.life)
            if block is None:
                block = blocks[change.life] = change.life.block()
            size = change.sign * block.size
            total += size
            events.append(
                Event(
                    change.time,
                    size,
                    total,
                    change.phase,
                    block.role,
                    block.operator,
                    block.module,
                    block.line,
                )
            )
            if total > peak:
                peak, peak_index = total, len(events) - 1
        at_peak = [blocks[life] for life in self._alive_after(peak_index + 1)]
        # Before the first change the total is that of what existed.
        totals = [sum(life.size for life in self.existing), *(event.total for event in events)]
        fullest = max(self.forward_ends or [len(events)], key=totals.__getitem__)
        recording = self.recording
        return MemoryTrace(
            peak=peak,
            at_peak=self._by_role(at_peak),
            peak_phase=events[peak_index].phase if peak_index >= 0 else "forward",
            kept=self._by_role([blocks[life] for life in self._alive_after(fullest)]),
            before=self._by_role([blocks[life] for life in self.existing]),
            flops=recording.flops,
            source=recording.source.name,
            peak_index=peak_index,
            alive_at_peak=tuple(sorted(at_peak, key=lambda block: -block.size)),
            events=tuple(events),
            otherwise=tuple(sorted(recording.otherwise)),
            doubtful=self._doubtful(),
            uncounted=tuple(sorted(recording.uncounted)),
        )

    def _doubtful(self) -> tuple[str, ...]:
        if not self.recording.source.simulated:
            return ()
        return differing(e.name for e in self.recording.entries if isinstance(e, Operator))

    def _alive_after(self, changes: int) -> list[Lifetime]:
        alive = dict.fromkeys(self.existing)
        for change in self.changes[:changes]:
            if change.sign > 0:
                alive[change.life] = None
            else:
                del alive[change.life]
        return list(alive)

    def _by_role(self, blocks: Iterable[MemoryBlock]) -> dict[Role, int]:
        unseen: tuple[Role, ...] = (
            () if self.recording.source.sees_workspace else (Role.WORKSPACE, Role.RANDOM_STATE)
        )
        unseen += () if self.recording.in_a_group else ONLY_IN_A_GROUP
        if not any(change.life.known is Role.OFFLOADED for change in self.changes):
            unseen += (Role.OFFLOADED,)
        sums = {role: 0 for role in Role if role not in unseen}
        for block in blocks:
            sums[block.role] += block.size
        return sums
