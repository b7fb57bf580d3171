"""What a recorder notes of a step: facts, in the order in which they happened.

Each entry has a mark in the allocator's stream, which tells what was allocated and freed between
any two of them. What a byte is for is not said here: :mod:`roles` judges that.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from .source_lines import Place
from .sources import AllocatorEvent, Source
from .trace import Phase, Role


@dataclass(slots=True)
class Operator:
    """One operator call: what it read and made, as storage addresses, and where it belongs.

    ``place``: for a gradient that the engine computes, that of the forward operator.
    ``recomputing``: forward work done during the backward pass. ``numbers``: the sizes of the
    tensors that PyTorch makes of Python numbers before it calls the operator. ``in_place``: the
    bare step would have added the second tensor to the first, whose memory therefore lives on.
    """

    name: str
    phase: Phase
    recomputing: bool
    place: Place
    reads: tuple[int, ...]
    made: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    in_place: bool = False

    def continues(self, address: int, alive: Container[int]) -> bool:
        """Whether what it got at ``address`` is, in the bare step, what it read first."""
        return self.in_place and self.made == (address,) and self.reads[0] in alive


@dataclass(frozen=True, slots=True)
class Accumulated:
    """The engine handed these blocks to a leaf, as its gradient."""

    addresses: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """The model, or an optimizer, holds these blocks."""

    role: Role  # that :func:`roles.held` gives to what is held so
    addresses: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """An operator read a tensor that nobody had mentioned and no operator had made.

    ``just_made``: it came into being during the step, in memory that is not PyTorch's own, as a
    tensor made of a NumPy array does; otherwise it existed before.
    """

    role: Role  # that :func:`roles.of_unmentioned` gives to such a tensor
    address: int
    size: int
    just_made: bool = False


@dataclass(frozen=True, slots=True)
class Resized:
    """Storage was resized by hand: it is a tensor's, and now lies here.

    ``at_first``: where it lay when it was resized for the first time.
    """

    address: int
    at_first: int


@dataclass(frozen=True, slots=True)
class Freed:
    """A block that existed before the step was freed."""

    address: int


@dataclass(frozen=True, slots=True)
class Aside:
    """What is allocated from here to the next END is the measuring's own."""


class Remark:
    """What somebody who listens along writes for themselves; the replay passes it by."""

    __slots__ = ()


END = None  # of the operator that began last, or of what was done aside
Entry = Operator | Accumulated | Held | Found | Resized | Freed | Aside | Remark | None


@dataclass
class Recording:
    """All that is known of one step; mark ``i`` of ``stream`` stands for ``entries[i]``.

    ``before``: address → (role, bytes) of what existed when the step began. ``uncounted``:
    operators that multiply matrices and have no formula. ``otherwise``: operators whose gradients
    the watched step had to compute in another way. ``flops``: of the others, by :mod:`flops`.
    ``in_a_group``: this process is a rank, be it the only one.
    """

    source: Source
    entries: list[Entry] = field(default_factory=list)
    stream: list[AllocatorEvent] = field(default_factory=list)
    before: dict[int, tuple[Role, int]] = field(default_factory=dict)
    flops: int = 0
    uncounted: set[str] = field(default_factory=set)
    otherwise: set[str] = field(default_factory=set)
    built_a_graph: bool = False
    in_a_group: bool = False

    @property
    def has_backward(self) -> bool:
        """Whether a backward pass has begun."""
        return any(isinstance(e, Operator) and e.phase == "backward" for e in self.entries)
