"""Which memory has been mentioned: what existed before the step, and what its operators made.

An operator may read a tensor that is neither: a constant, a library's cache, a NumPy array. It is
noted when it is met, and followed until it is freed, as is all that existed before.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .log import Entry, Found, Freed
from .operators import parts
from .roles import Holding, of_unmentioned
from .sources import Source
from .trace import Role


class KnownMemory:
    """Addresses of storages that need no second look; ``note`` writes of those that are met."""

    def __init__(self, source: Source, note: Callable[[Entry], None]):
        self.source, self.note = source, note
        self.addresses: set[int] = {0}
        self._foreign: set[int] = set()  # those of them that are not PyTorch's own memory
        self._birth: list[None] = []

    def step_begins(self) -> None:
        """What Python lists after ``_birth`` is younger than the step."""
        self._birth = []

    def existed_before(self, holdings: Iterable[Holding]) -> dict[int, tuple[Role, int]]:
        """Address → (role, bytes) of the tensors' storages; the first role given to one stays."""
        before = {}
        for tensor, role in holdings:
            for part in parts(tensor):
                address = self.source.address(part)
                if address not in self.addresses:
                    before[address] = (role, part.untyped_storage().nbytes())
                    self._watch(part, address)
        return before

    def address(self, tensor: Tensor, role: Role | None = None) -> int:
        """The tensor's address; if nobody has mentioned it, it is noted, and has this role."""
        address = self.source.address(tensor)
        # A NumPy array may come to lie where a tensor lay before.
        if address not in self.addresses or (
            address not in self._foreign and address != 0 and self.source.is_foreign(tensor)
        ):
            self._find(tensor, address, role)
        return address

    def made(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        """The addresses of what an operator made."""
        made = tuple([self.source.made(tensor) for tensor in tensors])
        self.addresses.update(made)
        return made

    def _find(self, tensor: Tensor, address: int, role: Role | None) -> None:
        if self.source.simulated and not isinstance(tensor, FakeTensor):
            self.addresses.add(address)
            return  # a constant on its way to becoming a simulated tensor
        just_made = self.source.is_foreign(tensor) and self._is_younger(tensor)
        size = tensor.untyped_storage().nbytes()
        self.note(Found(role or of_unmentioned(tensor), address, size, just_made))
        self._watch(tensor, address)

    def _is_younger(self, tensor: Tensor) -> bool:
        """Whether Python made it after the step began.

        The garbage collector rests meanwhile, and lists what it has not yet looked at in the order
        in which it came into being.
        """
        for thing in reversed(gc.get_objects(generation=0)):
            if thing is tensor or thing is self._birth:
                return thing is tensor
        return False  # both were looked at: the step itself had the collector run

    def _watch(self, tensor: Tensor, address: int) -> None:
        self.addresses.add(address)
        foreign = self.source.is_foreign(tensor)
        if foreign:
            self._foreign.add(address)

        def freed() -> None:
            if foreign:
                self._foreign.discard(address)
                self.addresses.discard(address)
            self.note(Freed(address))

        self.source.watch(tensor, freed)
