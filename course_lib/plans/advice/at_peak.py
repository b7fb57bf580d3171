"""What a step's peak is made of, under any choice of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...memory.trace import Phase, Role
from .budget import readable
from .record import Record, Slot
from .score import Part, Score


@dataclass(frozen=True)
class Large:
    """A tensor alive at the peak: its bytes, role, operator, module and line of source."""

    size: int
    role: Role
    operator: str | None
    module: str | None
    line: str | None

    def __str__(self) -> str:
        return f"{readable(self.size)}  {self.operator}  {self.module or '—'}  {self.line or '—'}"


@dataclass(frozen=True)
class AtPeak:
    """``at``: the moment. ``before``: bytes of what existed before the step and still does.

    ``by_role``: bytes, which add up to ``peak``. ``alive``: numbers of the storages that the step
    has made; ``largest``: five of them, the largest first.
    """

    peak: int
    at: int
    phase: Phase
    before: int
    by_role: dict[Role, int]
    alive: tuple[int, ...]
    largest: tuple[Large, ...]

    def in_words(self) -> tuple[str, str]:
        """The five roles with the most bytes."""
        roles = sorted(((s, role) for role, s in self.by_role.items() if s), reverse=True)[:5]
        return (
            "、".join(f"{role.names[0]} {readable(size)}" for size, role in roles),
            ", ".join(f"{role.names[1]} {readable(size)}" for size, role in roles),
        )


def at_peak(score: Score, parts: Sequence[Part] = ()) -> AtPeak:
    """What is in memory at the peak with these parts checkpointed."""
    record = score.record
    told = score.foretell(parts)
    by_role = _before_at(record, told.at)
    before = sum(by_role.values())
    for_recomputing = {storage for part in parts for storage in part.held}
    ends, plain = score.ends(parts), {slot.storage for slot in _saved_outside(record, parts)}
    alive = [n for n, s in enumerate(record.storages) if s.made <= told.at < ends[n]]
    roles = {
        n: Role.CHECKPOINT if n in for_recomputing and n not in plain else role_of(record, n)
        for n in alive
    }
    for number, role in roles.items():
        by_role[role] = by_role.get(role, 0) + record.storages[number].size
    by_role[Role.RANDOM_STATE] = told.random_state
    again = told.peak - sum(by_role.values())
    inside = told.workspace - sum(record.storages[n].workspace for n in alive)
    by_role[Role.RECOMPUTED] = again - inside
    by_role[Role.WORKSPACE] = by_role.get(Role.WORKSPACE, 0) + inside
    largest = sorted(alive, key=lambda n: -record.storages[n].size)[:5]
    return AtPeak(
        told.peak, told.at, record.phases[min(told.at, len(record.phases) - 1)], before,
        {role: size for role, size in by_role.items() if size}, tuple(alive),
        tuple(_large(record, n, roles[n]) for n in largest),
    )  # fmt: skip


def role_of(record: Record, number: int) -> Role:
    """What a storage of the plain step is for."""
    storage = record.storages[number]
    if storage.role is not None:
        return storage.role
    if storage.workspace:
        return Role.WORKSPACE
    if number in record.saved_storages:
        return Role.ACTIVATION
    return Role.COMMUNICATION if storage.sent else Role.TEMPORARY


def _saved_outside(record: Record, parts: Sequence[Part]) -> Iterator[Slot]:
    chosen = {number for part in parts for number in part.calls}
    return (slot for slot in record.slots if not chosen.intersection(slot.calls))


def _before_at(record: Record, at: int) -> dict[Role, int]:
    by_role = dict(record.before_by_role)
    for when, size, role in record.freed_before:
        if when <= at:
            by_role[role] -= size
    return by_role


def _large(record: Record, number: int, role: Role) -> Large:
    storage = record.storages[number]
    place = storage.place
    return Large(
        storage.size, role, storage.operator,
        place.module if place is not None else None,
        place.describe() if place is not None else None,
    )  # fmt: skip
