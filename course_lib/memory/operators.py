"""Facts about operators: what each reads and makes, and the tensors that tensors are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .flops import Formula, flops_of

_AUTOGRAD_FILE = torch.autograd.__file__
ONES_LIKE = torch.ops.aten.ones_like.default
DEVICE = torch.ops.prim.device.default
_NO_WORK = ("prim", "profiler")
RESIZES = {torch.ops.aten.resize_.default, torch.ops.aten.resize_as_.default}
_MAKES_SIMULATED = {torch.ops.aten.lift_fresh.default}  # of a real constant
SEES_INSIDE = ("flex_attention", "flex_attention_backward")  # without callables that do the work


def seen_inside(func: HigherOrderOperator) -> Callable | None:
    """The kernel of an operator that takes functions, all of whose work a mode can see."""
    dense = func.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
    return dense if func.name() in SEES_INSIDE else None


def watched(value: Any, watching: Callable[[], AbstractContextManager]) -> Any:
    """What an operator is given: a function so that it runs inside of ``watching()``."""
    if not callable(value) or isinstance(value, Tensor):
        return value

    @functools.wraps(value)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with watching():
            return value(*args, **kwargs)

    return inside


def called_by_autograd(frame: Any) -> bool:
    while frame.f_code.co_name == "__torch_function__":  # of a mode, such as torch.device
        frame = frame.f_back
    return frame.f_code.co_filename == _AUTOGRAD_FILE


@dataclass(frozen=True, slots=True)
class OperatorKind:
    name: str
    works: bool  # else it asks a simulated tensor for its device, or names a stretch of time
    is_view: bool
    makes: bool  # results that are not its arguments
    tensors: tuple[int, ...]  # which arguments are single tensors, if several
    flops: Formula | None


@functools.cache
def kind_of(func: Any) -> OperatorKind:
    aliases = [returned.alias_info for returned in func._schema.returns]
    is_view = (
        func.namespace == "aten"
        and func not in _MAKES_SIMULATED
        and bool(aliases)
        and all(alias and not alias.is_write for alias in aliases)
    )
    makes = not all(aliases)
    tensors = tuple(
        i
        for i, argument in enumerate(func._schema.arguments)
        if isinstance(argument.type, torch.TensorType)
    )
    if len(tensors) < 2:  # then it is a tensor for certain
        tensors = ()
    works = func.namespace not in _NO_WORK
    return OperatorKind(str(func._overloadpacket), works, is_view, makes, tensors, flops_of(func))


def numbers_in(args: tuple, tensors: tuple[int, ...]) -> tuple[int, ...]:
    """The bytes of the scalar tensors that stand behind Python numbers, as in ``x * 2``."""
    given = (type(args[i]) for i in tensors if i < len(args))
    return tuple(_NUMBER_BYTES[kind] for kind in given if kind in _NUMBER_BYTES)


_NUMBER_BYTES = {bool: 1, int: 8, float: 8, complex: 16}


def tensors_in(args: Iterable[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors in an operator's arguments or results; schemas nest them one list deep."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) in PLAIN and value.layout is torch.strided:
            if not value._is_zerotensor():  # forward-mode's zeros, which have no memory
                found.append(value)
        elif isinstance(value, Tensor):
            found += parts(value)
        elif isinstance(value, (list, tuple)):
            found += [part for item in value if isinstance(item, Tensor) for part in parts(item)]
    return found


PLAIN = {Tensor, nn.Parameter, FakeTensor}


@functools.cache
def dispatches(tensor_type: Any) -> bool:
    """Whether tensors of this type say themselves what an operator does to them."""
    return tensor_type.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def parts(tensor: Tensor) -> list[Tensor]:
    """The tensors with storage that this one is made of: itself, unless sparse or a wrapper."""
    if type(tensor) in PLAIN and tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if type(tensor) in PLAIN:
        return []  # a library's own layout, whose bytes cannot be reached
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        held = [getattr(tensor, name) for name in names]  # a mesh of devices, for one, is no tensor
        return [part for inner in held if isinstance(inner, Tensor) for part in parts(inner)]
    return [] if is_lazy(tensor) else [tensor]
