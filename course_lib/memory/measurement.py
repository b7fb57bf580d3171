"""Measure one training step: every byte at the peak, by role, module, operator and source line.

``measure(step, model, optimizer, inputs)`` runs ``step`` once, for real. While it runs, the
:mod:`recorder` notes what each operator reads and makes, and a :mod:`source <sources>` hears of
every allocation and free. Afterwards one is laid over the other, and :mod:`roles` says what each
block of memory was for.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..language import text
from .checks import (
    check_model,
    check_step,
    check_threads,
    memory_of_a_gpu,
    not_watched,
    optimizers_in,
    warn_without_backward,
)
from .cuda import requested_so_far
from .flops import warn_of_uncounted
from .recorder import Recorder
from .replay import trace_of
from .roles import given, held
from .simulation import running
from .surroundings import collector_resting, noticing_threads
from .trace import MemoryTrace
from .which_source import source_of

Optimizers = Optimizer | Sequence[Optimizer] | None


def measure(
    step: Callable[[], Any],
    model: nn.Module | None = None,
    optimizer: Optimizers = None,
    inputs: Any = (),
) -> MemoryTrace:
    """Run ``step()`` once and account for every byte it had.

    ``step``: the work, without arguments; its result is dropped. ``model``, ``optimizer`` (one or
    several), ``inputs`` (a tensor, or any nesting of tuples, lists and dicts of them): what exists
    before.
    Other tensors that the step reads are found and counted: leaves that require a gradient as
    parameters, the rest as inputs. Tensors made under :func:`simulated` are measured as such. If
    any of what exists is on a GPU, the memory of that GPU is measured, and none of the CPU's.

    The step has exactly the effects that it has unmeasured: gradients, weights and random state
    are bitwise the same, and an exception passes through unchanged. Python's cycle collector
    rests meanwhile, so that bytes are the same in every run.

    Autograd computes a few gradients in another way while anything watches it: those of
    ``aminmax``, ``atan2``, ``binary_cross_entropy``, ``binary_cross_entropy_with_logits``, ``clamp
    (by tensors)``, ``cumprod``, ``linalg.eigh``, ``linalg.householder_product``,
    ``linalg.matrix_exp``, ``masked_fill (by a tensor)``, ``max (of all elements)``, ``median (of
    all elements)``, ``min (of all elements)``, ``nanmedian (of all elements)``, ``ormqr``, ``prod``
    and ``trace``. The engine is left alone with these, so that
    bytes and bits are the bare step's; their inner operators are not seen then, nor their FLOPs.
    Where that cannot be, with simulated tensors, inside a checkpoint, and always for ``sparse
    gradients`` and ``cross_entropy (with weights and label smoothing)``, the bytes are those of the
    watched step, and the trace's ``otherwise`` says so. ``quantile``, ``nanquantile`` and
    ``linalg.eig`` check their arguments only unwatched, which takes some 30 bytes for a moment.

    Raises ``TypeError`` if ``step`` cannot be called without arguments, is a generator function
    or a coroutine function, or ``model`` is no module,
    ``ValueError`` if ``optimizer`` holds no parameter of ``model``, ``RuntimeError`` for a
    measurement inside a measurement, a step that starts threads, a profiler or memory history that
    is running, or tensors on two GPUs.
    """
    check_step(step)
    with measuring(model, optimizer, inputs) as result:
        step()
    return result()


@contextlib.contextmanager
def measuring(
    model: nn.Module | None = None,
    optimizer: Optimizers = None,
    inputs: Any = (),
    *,
    headroom: bool = True,
) -> Iterator[Callable[[], MemoryTrace]]:
    """Measure the body of a ``with``, where the step is no function of its own.

    The value is a function that returns the :class:`MemoryTrace` once the body has ended.
    ``headroom``: raise ``MemoryError`` before an operator whose result does not fit into the memory
    that is left. What else the measuring runs into, it raises when the body has ended.
    """
    optimizers = optimizers_in(optimizer)
    check_model(model, optimizers)
    trace: list[MemoryTrace] = []

    def result() -> MemoryTrace:
        if not trace:
            raise RuntimeError(
                text(
                    zh="measuring 的 with 还没有结束，结果要等它结束之后才有。",
                    en="The with block of measuring has not ended; the trace comes after.",
                )
            )
        return trace[0]

    with collector_resting():
        with recorded(model, optimizers, inputs, headroom=headroom) as recorder:
            yield result
        recording = recorder.recording
        if recording.built_a_graph and not recording.has_backward:
            warn_without_backward()
        warn_of_uncounted(recording.uncounted, stacklevel=4)
        trace.append(trace_of(recording))


@contextlib.contextmanager
def recorded(
    model: nn.Module | None, optimizers: Sequence[Optimizer], inputs: Any, *, headroom: bool = True
) -> Iterator[Recorder]:
    """Record the body of a ``with``, once at a time; ``headroom`` as in :func:`measuring`.

    What kept the recorder from seeing all of it is raised when the body has ended.
    """
    # checkpoint() and optimizers load this when first called, which takes longer than a step.
    importlib.import_module("torch._dynamo")
    if not running.acquire(blocking=False):
        raise RuntimeError(
            text(
                zh="一次测量还没结束，里面（或别的线程里）不能再开始另一次。",
                en="A measurement is still running; another cannot start inside it or beside it.",
            )
        )
    try:
        with collector_resting(), contextlib.ExitStack() as stack:
            existing = held(model, optimizers) + given(inputs)
            source, surroundings = source_of([tensor for tensor, _ in existing])
            requested_of_gpus = requested_so_far()
            stack.enter_context(surroundings)
            recorder = Recorder(source, model, headroom)
            recorder.existed_before(existing)
            del existing  # or the step could not free any of it
            threads = stack.enter_context(noticing_threads())
            stack.enter_context(recorder.listening(model, optimizers))
            yield recorder
        check_threads(threads + recorder.where.elsewhere)
        if recorder.trouble is not None:
            raise RuntimeError(not_watched(recorder.trouble)) from recorder.trouble
        if source.on_host and requested_so_far() != requested_of_gpus:
            raise RuntimeError(memory_of_a_gpu())
    finally:
        running.release()
