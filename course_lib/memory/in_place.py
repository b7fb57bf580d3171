"""What the bare step adds up in place, and a watched one does not.

While any dispatch mode is active, autograd makes a new tensor where it would otherwise add to one
that nobody else holds. The operator itself is left as it is; here is found out which memory would
have lived on, so that the roles' replay can say so. A wrong guess could cost bytes, never a
gradient.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .log import Operator
from .unwatched import ACCUMULATES, ENGINE

ADD = torch.ops.aten.add.Tensor
ADD_IN_PLACE = torch.ops.aten.add_.Tensor
_DENSE = torch.ops.aten.is_non_overlapping_and_dense.default
_NO_RUN = (-1, -1)

ZEROS = {
    torch.ops.aten.zeros.default,
    torch.ops.aten.new_zeros.default,
    torch.ops.aten.zeros_like.default,
}
INTO_ZEROS = {  # the gradient of taking parts out: put the parts back into zeros
    torch.ops.aten.index_put.default: torch.ops.aten.index_put_.default,
    torch.ops.aten.index_add.default: torch.ops.aten.index_add_.default,
    torch.ops.aten.scatter.src: torch.ops.aten.scatter_.src,
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
    torch.ops.aten.masked_scatter.default: torch.ops.aten.masked_scatter_.default,
    torch.ops.aten.put.default: torch.ops.aten.put_.default,
}


# What a product of matrices ends with. Where it is followed by an addition inside one and the same
# call, of F.linear or of attention, the bare step adds the bias or the mask in place
# (aten/src/ATen/native/Linear.cpp, .../transformers/attention.cpp).
PRODUCTS = {
    torch.ops.aten._trilinear.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.mv.default,
    torch.ops.aten.squeeze_.dim,
    torch.ops.aten.view.default,
}


class InPlace:
    """Follows the engine, and calls that end with a product, to tell such additions apart.

    ``run``: the backward pass and the node that the engine is at.
    """

    def __init__(self, simulated: bool):
        self.run = _NO_RUN
        self._sole_owner = counts_of_sole_owner(simulated)
        self._zeros: tuple[int, ...] = ()  # what the engine's last operator made, if zeros
        self._made_in: dict[int, tuple[int, int]] = {}  # the run that an address was made in
        self._sums: list[Operator] = []  # of this run, with nothing but sums after them
        self._call: tuple[int, int] | None = None  # the frame and instruction that work is done for
        self._product = 0  # address of the product that its last operator returned, if it did

    def enters(self, run: tuple[int, int]) -> None:
        """The engine calls an operator for this node, in this backward pass."""
        if run != self.run:
            self.run = run
            self._sums.clear()

    def adds(self, func: Any, args: tuple, reads: list[int], node: Any, caller: Any) -> bool:
        """Whether the bare step would add to the first argument instead of making a third tensor.

        Two places do: a product of matrices to which the same call adds a bias or a mask, and the
        engine where two gradients of one value meet, unlike an addition in a node's own formula.
        What the engine adds to was made by another node, or by this one for another of its edges,
        and after its sums, a node calls no other operator.
        """
        if node is None:
            call, product = (id(caller), caller.f_lasti), self._product
            after_product = func is ADD and call == self._call and reads[0] == product
            self._call, self._product = call, 0
            return after_product and could_add_in_place(args[0], self._sole_owner)
        may_be_the_engines = (
            func is ADD
            and not torch.is_grad_enabled()
            and self.run[1] < ACCUMULATES
            and (self._made_in.get(reads[0]) != self.run or meets_itself(node))
        )
        if not may_be_the_engines:  # then neither were the ones before
            for earlier in self._sums:
                earlier.in_place = False
            self._sums.clear()
        return may_be_the_engines and could_add_in_place(args[0], self._sole_owner)

    def is_sum(self, operator: Operator) -> None:
        """The engine begins an addition that may be one of its own."""
        self._sums.append(operator)

    def viewed(self, func: Any, reads: list[int]) -> None:
        """A view ends a product, perhaps."""
        if func in PRODUCTS:
            self._product = reads[0]

    def made(self, func: Any, addresses: Iterable[int], at_engine: bool) -> None:
        """An operator has run, called by the engine or not."""
        made = tuple(addresses)
        self._zeros = made if at_engine and func in ZEROS else ()
        if func in PRODUCTS and not at_engine:
            self._product = made[0]
        if at_engine or self._made_in:
            run = self.run if at_engine else _NO_RUN
            self._made_in.update([(address, run) for address in made])

    def instead_of(self, func: Any, operator: Operator) -> Any:
        """What autograd calls when nobody watches: it then puts parts into zeros in place."""
        if self._zeros and func in INTO_ZEROS and operator.reads[0] in self._zeros:
            return INTO_ZEROS[func]
        return func


def could_add_in_place(first: Any, sole_owner: tuple[int, int]) -> bool:
    """Whether a bare step would add to this tensor in place: only the C++ code at work holds it.

    (torch/csrc/autograd/input_buffer.cpp) ``sole_owner``: :func:`counts_of_sole_owner`.
    """
    if not isinstance(first, Tensor) or _counts(first) != sole_owner:
        return False
    return _DENSE(first)


def meets_itself(node: Any) -> bool:
    """Whether two of the node's gradients go to one and the same place."""
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    return len(set(edges)) < len(edges)


def _counts(tensor: Tensor) -> tuple[int, int]:
    if tensor.layout is not torch.strided:
        return -1, -1
    tensors = tensor._use_count()  # type: ignore[attr-defined]
    return tensors, torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


@functools.cache
def counts_of_sole_owner(simulated: bool) -> tuple[int, int]:
    """The reference counts that a dispatch mode sees on a gradient only the engine holds.

    Found by trying, since the mode itself holds some: two gradients meet at ``y`` below.
    """
    seen: list[tuple[int, int]] = []

    class Look(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is ADD and sys._getframe(1).f_code is ENGINE:
                seen.append(_counts(args[0]))
            return func(*args, **(kwargs or {}))

    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.enable_grad(), FakeTensorMode() if simulated else contextlib.nullcontext():
        x = torch.ones(2, requires_grad=True)
        with Look():
            y = x * 2
            torch.autograd.grad((y.sin() * y.cos()).sum(), x)
    return seen[0]
