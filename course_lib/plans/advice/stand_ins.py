"""What stands in for a saved tensor: one of the same layout, also where that is made of another.

A distributed tensor is a shell around the rank's own part. Only that part has memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = (Tensor, nn.Parameter, FakeTensor)

Shell = Callable[[Tensor], Tensor]


def core_and_shell(tensor: Tensor) -> tuple[Tensor | None, Shell]:
    """The plain tensor that ``tensor`` is or is made of, and what puts another in its place.

    None if there is no such tensor, or more than one. The shell holds no tensor.
    """
    if type(tensor) in _PLAIN:
        return tensor if tensor.layout is torch.strided else None, _as_it_is
    if not is_traceable_wrapper_subclass(tensor):
        return None, _as_it_is
    names, context = tensor.__tensor_flatten__()
    inside = {name: getattr(tensor, name) for name in names}
    tensors = [name for name, value in inside.items() if isinstance(value, Tensor)]
    if len(tensors) != 1:
        return None, _as_it_is
    (name,) = tensors
    core, shell = core_and_shell(inside.pop(name))
    if context is None:  # a result on its way from other ranks, which is used as what it is
        return core, shell
    kind: Any = type(tensor)
    size, stride = tensor.size(), tensor.stride()

    def put_in(other: Tensor) -> Tensor:
        there = {**inside, name: shell(other)}
        return kind.__tensor_unflatten__(there, context, size, stride).requires_grad_(False)

    return core, put_in


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
