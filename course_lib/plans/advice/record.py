"""What one watched training step did: the timeline that every option is played from.

:mod:`watch` writes it: what each call of a block makes, saves and holds. From it, any choice of
checkpointed blocks can be played without running anything (:mod:`score`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

from ...memory.source_lines import Place
from ...memory.trace import Phase, Role

STATIC = -1  # storage that exists before the step

MomentKind = Literal[
    "make", "drop", "save", "read", "used", "forget", "enter", "exit", "operator", "result"
]


@dataclass(slots=True)
class Storage:
    """Bytes that the step made: who made them, when they came, and when all but autograd let go.

    ``made``, ``dropped``: positions on the timeline; ``dropped`` is its end if nobody did.
    """

    size: int
    made: int
    dropped: int
    phase: Phase
    operator: str | None
    place: Place | None
    recomputed: bool = False
    role: Role | None = None  # said by the recorder
    is_tensor: bool = False
    sent: bool = False  # a collective was given it, or made it
    accumulated: int | None = None  # position at which it became a leaf's gradient

    @property
    def workspace(self) -> int:
        """Its bytes if no tensor was ever seen in it, else 0."""
        return 0 if self.is_tensor or self.role is not None else self.size


@dataclass(slots=True)
class Slot:
    """One tensor that autograd saved: which storage, in which calls, when, and until when.

    ``reads``: (position, number of the backward pass, position at which the node was done).
    ``forgotten``: position at which autograd let it go. ``calls``: of the watched modules that
    were running, the innermost last. ``flops``: operations done since the step began.
    """

    storage: int
    saved: int
    calls: tuple[int, ...]
    flops: int
    forgotten: int
    reads: list[list[int]] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """One call of a watched module while gradients are on, outside of any backward pass.

    ``begin``, ``end``: positions on the timeline. ``given``: storages that its arguments lie in.
    ``outer``: the calls it is inside of. ``slots``: saved within it, in order. ``follows``: the
    call whose result, and no other, is its first argument, with all others as that one had them,
    and no operator in between; -1 if there is none. ``input``: where its first argument lies.
    """

    path: str
    begin: int
    outer: tuple[int, ...]
    flops: int
    given: tuple[int, ...] = ()
    end: int = -1
    slots: list[int] = field(default_factory=list)
    follows: int = -1
    input: int = STATIC
    tensors: int = 0  # how many tensors its arguments hold


@dataclass(slots=True)
class Operation:
    """One operator of a watched call, where somebody asked for them.

    ``what``: what that one noted of it. ``begin``, ``end``: positions on the timeline. ``flops``:
    its own. ``results``: the storages of its results, STATIC for those that existed before.
    """

    what: Any
    calls: tuple[int, ...]
    begin: int
    flops: int
    end: int = -1
    results: tuple[int, ...] = ()


@dataclass(slots=True)
class ScoreMoment:
    """One thing that happens, at its position on the timeline; ``what`` depends on ``kind``."""

    kind: MomentKind
    what: int


@dataclass
class Record:
    """The timeline of one step. Sizes are bytes.

    ``before``: what existed. ``freed_before``: (position, bytes, role) of what existed and was
    freed. ``drew``: the forward pass read the value of a few random numbers, so that they may
    decide what runs. ``random_state``: bytes of what a checkpoint keeps to repeat random numbers.
    """

    before: int
    before_by_role: dict[Role, int]
    moments: list[ScoreMoment]
    phases: list[Phase]
    storages: list[Storage]
    slots: list[Slot]
    calls: list[Call]
    freed_before: list[tuple[int, int, Role]]
    flops: int
    source: str
    built_a_graph: bool
    ran_backward: bool
    uncounted: tuple[str, ...]
    held_as_they_are: int
    random_state: int = 0
    drew: bool = False
    operations: list[Operation] = field(default_factory=list)

    @functools.cached_property
    def saved_storages(self) -> frozenset[int]:
        """Numbers of the storages that autograd has saved."""
        return frozenset(slot.storage for slot in self.slots)
