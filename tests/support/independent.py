"""An independent count of a step's memory, to hold `measure` against.

It knows nothing of operators, roles or marks: it asks ``torch.profiler`` alone. Everything that
the step uses is built while the profiler already listens, because the profiler keeps silent about
the end of a block whose beginning it has not seen (``zero_grad`` inside the step frees such).
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import (
    ProfilerConfig,
    ProfilerState,
    RecordScope,
    _ExperimentalConfig,
)
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Step:
    """A step and what exists before it; ``outside``: bytes of it that NumPy handed out."""

    run: Callable[[], Any]
    model: nn.Module | None = None
    optimizer: Optimizer | None = None
    inputs: Any = ()
    outside: int = 0


@dataclass(frozen=True)
class Count:
    """Bytes handed out when the step began, at its worst moment, and when it had ended.

    ``taken``: all that was handed out meanwhile, whatever became of it.
    """

    before: int
    peak: int
    after: int
    taken: int


def count(make: Callable[[], Step]) -> Count:
    """Build a step and run it unmeasured; what PyTorch's profiler says of its memory."""
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step = make()
            with record_function("the step"):
                step.run()
    finally:
        gc.enable()
    reported = profiler.profiler.kineto_results.events()
    (window,) = [event for event in reported if event.name() == "the step"]
    memory = [event for event in reported if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    total = before = step.outside
    peak = taken = 0
    for event in memory:
        if event.start_ns() > window.end_ns():
            break
        total += event.nbytes()
        if event.start_ns() < window.start_ns():
            before = total
        else:
            peak = max(peak, total)
            taken += max(event.nbytes(), 0)
    return Count(before, max(peak, before), total, taken)


def bytes_of(tensors: Iterable[Any]) -> int:
    """The bytes of the storages that these tensors lie in, each storage once."""
    storages = {}
    for tensor in tensors:
        for part in _dense(tensor) if isinstance(tensor, Tensor) else ():
            storage = part.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def bytes_before(step: Step) -> int:
    """What a step's model, optimizer and inputs hold, gradients included."""
    tensors = list(tree_leaves(step.inputs))
    if step.model is not None:
        tensors += [*step.model.parameters(), *step.model.buffers()]
    if step.optimizer is not None:
        tensors += tree_leaves(list(step.optimizer.state.values()))
        tensors += [p for group in step.optimizer.param_groups for p in group["params"]]
    tensors += [t.grad for t in tensors if isinstance(t, Tensor) and t.is_leaf]
    return bytes_of(tensors)


def _dense(tensor: Tensor) -> list[Tensor]:
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return [tensor]


def peak_and_sum(run: Callable[[], Any]) -> tuple[int, int]:
    """The most that was handed out during ``run()``, beyond what existed, and all together: bytes.

    Quicker than :func:`count`, for many tiny steps: the profiler is asked for memory alone. A step
    that frees what existed before cannot be counted so.
    """
    nothing = ProfilerConfig(
        ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig(), ""
    )
    cpu = {ProfilerActivity.CPU}
    gc.disable()
    try:
        _prepare_profiler(nothing, cpu)
        _enable_profiler(nothing, cpu, {RecordScope.STATIC_RUNTIME_OP})
        try:
            run()
        finally:
            reported = _disable_profiler().events()
    finally:
        gc.enable()
    memory = [event for event in reported if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    sizes = [event.nbytes() for event in memory]
    return max(itertools.accumulate(sizes, initial=0)), sum(size for size in sizes if size > 0)
