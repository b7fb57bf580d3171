"""What is there for the sake of other ranks: buffers of collectives, and gathered parameters."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from .log import Operator
from .trace import Role

ONLY_IN_A_GROUP = (Role.GATHERED, Role.COMMUNICATION)  # a process on its own has neither

_INTO_BUFFERS = "c10d."  # collectives that are given the tensors they send and receive
_MAKES_RESULTS = "_c10d_functional"  # those whose results are new tensors
_COPY_OUT = "fsdp.split_with_sizes_copy"  # (buffer, sizes, dim, out=parameters), of FSDP2


def in_a_group() -> bool:
    """Whether this process is a rank, be it the only one."""
    return dist.is_available() and dist.is_initialized()


def across_ranks(operator: Operator) -> Iterator[tuple[Role, tuple[int, ...]]]:
    """What an operator shows of the roles of tensors that it is given: their addresses."""
    if operator.name == _COPY_OUT:
        yield Role.GATHERED, operator.reads[1:]
    elif operator.name.startswith(_INTO_BUFFERS):
        yield Role.COMMUNICATION, operator.reads


def comes_from_ranks(maker: Operator | None) -> bool:
    """Whether a collective made it."""
    return maker is not None and maker.name.startswith(_MAKES_RESULTS)


@contextlib.contextmanager
def global_shapes_apart() -> Iterator[None]:
    """Nobody in here sees how DTensor finds out what a result looks like over all ranks.

    It simulates the operator on tensors of global size, which this rank never has: whoever listens
    would count their operations, and, if the step is simulated too, their bytes.
    """
    propagation: Any = sys.modules.get("torch.distributed.tensor._sharding_prop")
    if propagation is None:
        yield
        return
    original = propagation.detect_fake_mode
    propagation.detect_fake_mode = lambda: _unseen()  # whatever is there; it would be used instead
    try:
        yield
    finally:
        propagation.detect_fake_mode = original


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    with _disable_current_modes(), FakeTensorMode():
        yield
