"""Which source sees the memory of some tensors: this machine, a GPU, or a simulation."""

from __future__ import annotations

import contextlib

from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor

from .cuda import CUDAAllocator, backward_on_this_thread, the_gpu_of
from .simulation import resumed
from .sources import CPUAllocator, SimulatedTensors, Source


def source_of(
    tensors: list[Tensor],
) -> tuple[Source, contextlib.AbstractContextManager]:
    """The source that sees these tensors, and what has to be entered while it listens."""
    if detect_fake_mode() is not None:
        return SimulatedTensors(), contextlib.nullcontext()
    for tensor in tensors:
        if isinstance(tensor, FakeTensor):
            return SimulatedTensors(), resumed(tensor.fake_mode)
    gpu = the_gpu_of(tensor.device for tensor in tensors)
    if gpu is not None:
        return CUDAAllocator(gpu), backward_on_this_thread()
    return CPUAllocator(), contextlib.nullcontext()
