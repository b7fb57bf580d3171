"""Measure one training step: every byte at the peak, by role, module, operator and source line.

``measure(step, model, optimizer, inputs)`` runs ``step`` once, for real. While it runs, the
:mod:`recorder` notes what each operator reads and makes, and the :mod:`allocator` reports every
allocation and free. Afterwards one is laid over the other, and each block of memory gets the role
that its life shows.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer

from .allocator import CPUAllocator, SimulatedTensors, Source
from .allocator_cuda import CUDAAllocator, backward_on_this_thread, requested_so_far, the_gpu_of
from .flops import warn_of_uncounted
from .kernels import differing
from .language import text
from .recorder import (
    END,
    Aside,
    Found,
    Freed,
    Given,
    Operator,
    Phase,
    Recorder,
    Resized,
    Role,
    parameters_of,
    what_exists,
)  # fmt: skip
from .simulation import resumed, running, simulated, simulated_copy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Block",
    "Event",
    "MemoryTrace",
    "Phase",
    "Role",
    "measure",
    "measuring",
    "simulated",
    "simulated_copy",
]
Optimizers = Optimizer | Sequence[Optimizer] | None


@dataclass(frozen=True, slots=True)
class Block:
    """One piece of memory: who made it, and what for.

    ``size``: bytes. ``operator``: such as ``aten.addmm``; None if it was made outside of any or
    existed before. ``module``: path in the model, ``""`` at its top. ``line``: the line of the
    learner's own code; for a backward operator, that of the forward operator it belongs to.
    """

    size: int
    role: Role
    operator: str | None = None
    module: str | None = None
    line: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One allocation (``size`` > 0) or free (``size`` < 0) on the timeline.

    ``time``: seconds since the start, None under :func:`simulated`. ``size``: bytes, signed.
    ``total``: bytes handed out after the event.
    """

    time: float | None
    size: int
    total: int
    phase: Phase
    role: Role
    operator: str | None
    module: str | None
    line: str | None


@dataclass(frozen=True)
class MemoryTrace:
    """What one step did with memory. All sizes are bytes.

    ``at_peak``, ``kept`` and ``before`` hold every role that the source can see, 0 where there was
    none of it; a role that cannot be had (workspace of simulated tensors) is absent.
    ``kept``: what is alive at the end of the forward pass (the largest, if there were several), or
    at the end of the step if there was no backward pass. ``before``: what existed at the start.
    ``peak_index``: the event in ``events`` that reached the peak, -1 if nothing rose above
    ``before``. ``alive_at_peak``: the blocks that make up the peak, largest first. ``otherwise``:
    operators of the step whose gradients autograd computes in another way, and with other bytes,
    while it is watched: see :func:`measure`. ``doubtful``: operators that a simulated step met and
    whose simulation is known to be inexact; what is wrong with each stands in
    ``course_lib.kernels.KNOWN_DIFFERENCES``. ``uncounted``: operators that multiply matrices, or
    may, and that ``flops`` leaves out for want of a formula.
    """

    peak: int
    at_peak: dict[Role, int]
    peak_phase: Phase
    kept: dict[Role, int]
    before: dict[Role, int]
    flops: int
    source: str
    peak_index: int
    alive_at_peak: tuple[Block, ...] = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)
    otherwise: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()

    def peak_of(self, *roles: Role) -> int:
        """The highest total of these roles alone, in bytes; it may fall elsewhere than the peak."""
        total = peak = sum(size for role, size in self.before.items() if role in roles)
        for event in self.events:
            if event.role in roles:
                total += event.size
                peak = max(peak, total)
        return peak

    def peak_without(self, *roles: Role) -> int:
        """:meth:`peak_of` everything but ``roles``.

        Without workspace, it is the same on every machine: how much workspace an operator takes
        depends on the CPU's instructions and the number of threads.
        """
        return self.peak_of(*(role for role in Role if role not in roles))

    def plot(self) -> Figure:
        """Memory over time, stacked by role, the peak marked."""
        from .figures import timeline

        return timeline(self)


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
    _check_step(step)
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
    optimizers = _optimizers(optimizer)
    _check_model(model, optimizers)
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
        with _collector_resting():
            existing = what_exists(model, optimizers, inputs)
            source, surroundings = _source_for([tensor for tensor, _ in existing])
            requested_of_gpus = requested_so_far()
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

            with contextlib.ExitStack() as stack:
                stack.enter_context(surroundings)
                recorder = Recorder(source, model, headroom)
                recorder.existed_before(existing)
                del existing  # or the step could not free any of it
                threads = stack.enter_context(_noticing_threads())
                stack.enter_context(recorder.listening(model, optimizers))
                yield result
            _check_threads(threads + recorder.elsewhere)
            if recorder.trouble is not None:
                raise RuntimeError(_not_watched(recorder.trouble)) from recorder.trouble
            if isinstance(source, CPUAllocator) and requested_so_far() != requested_of_gpus:
                raise RuntimeError(_memory_of_a_gpu())
            trace.append(_Lives(recorder).trace())
    finally:
        running.release()


# --- roles --------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Life:
    """A block of memory while its role is being found out."""

    size: int
    given: Role | None = None  # said by the recorder, or known because it existed before
    maker: Operator | None = None
    phase: Phase = "forward"  # it was born in
    is_tensor: bool = False
    read_by_backward: bool = False
    read_by_recomputation: bool = False


@dataclass(slots=True)
class _Change:
    """A life's begin (``sign`` +1) or end (-1)."""

    time: float | None
    sign: int
    life: _Life
    phase: Phase


class _Lives:
    """Replays the stream beside the recorder's log, then gives every block its role."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder
        self.changes: list[_Change] = []
        self.forward_ends: list[int] = []  # how many changes had happened by then
        self.alive = {
            address: _Life(size, given=role)
            for address, (role, size) in (recorder.before | self._found()).items()
        }
        self.existing = list(self.alive.values())
        self._replay()

    def _found(self) -> dict[int, tuple[Role, int]]:
        """What the step read without having made it: it existed before, if unmentioned."""
        made_inside: set[int] = set()
        found = {}
        for happening in self.recorder.stream:
            if happening.kind == "allocate":
                made_inside.add(happening.address)
            elif happening.kind == "free":
                made_inside.discard(happening.address)
            else:
                entry = self.recorder.log[happening.address]
                if not isinstance(entry, Found) or entry.just_made:
                    continue
                if entry.address not in made_inside:
                    found[entry.address] = (entry.role, entry.size)
        return found

    def _replay(self) -> None:
        phase: Phase = "forward"
        open_operators: list[Operator] = []
        # In x * 2, PyTorch makes a tensor of the 2 and calls the operator. The recorder, which is
        # handed the 2 itself, calls it again: that makes another, which the bare step never had.
        repeated: list[int] = []
        undated: list[_Change] = []  # made outside of operators: preparing for the next one
        aside = False
        for happening in self.recorder.stream:
            address, size, time = happening.address, happening.size, happening.time
            if aside and happening.kind != "mark":
                continue
            if happening.kind == "allocate":
                if repeated and repeated[0] == size:
                    repeated.pop(0)
                    continue
                maker = open_operators[-1] if open_operators else None
                if maker is not None and maker.continues(address, self.alive):
                    self.alive[address] = self.alive.pop(maker.reads[0])
                    continue
                change = self._allocate(address, size, time, maker, phase)
                if maker is None:
                    undated.append(change)
                continue
            if happening.kind == "free":
                self._free(address, time, phase)
                continue
            entry = self.recorder.log[address]
            if isinstance(entry, Operator):
                if entry.phase == "backward" and phase == "forward":
                    self.forward_ends.append(len(self.changes))
                phase = entry.phase
                for change in undated:
                    change.phase = change.life.phase = phase
                undated.clear()
                repeated = list(entry.numbers) if self.recorder.source.sees_numbers else []
                open_operators.append(entry)
                self._read(entry)
            elif isinstance(entry, Given):
                self._give(entry)
            elif isinstance(entry, Found) and entry.just_made:
                self._allocate(entry.address, entry.size, time, None, phase).life.given = entry.role
            elif isinstance(entry, Resized):
                if (life := self.alive.get(entry.address)) is not None:
                    life.is_tensor, life.given = True, life.given or entry.role
            elif isinstance(entry, Freed):
                self._free(entry.address, time, phase)
            elif isinstance(entry, Aside):
                aside = True
            elif entry is END and aside:
                aside = False
            elif entry is END:
                self._made(open_operators.pop())
                repeated = []

    def _allocate(
        self, address: int, size: int, time: float | None, maker: Operator | None, phase: Phase
    ) -> _Change:
        self._free(address, time, phase)  # if its end went unreported
        life = self.alive[address] = _Life(size, maker=maker, phase=phase)
        self.changes.append(_Change(time, +1, life, phase))
        return self.changes[-1]

    def _read(self, operator: Operator) -> None:
        for address in operator.reads:
            if (life := self.alive.get(address)) is not None:
                life.is_tensor = True
                life.read_by_recomputation |= operator.recomputing
                life.read_by_backward |= operator.phase == "backward" and not operator.recomputing

    def _made(self, operator: Operator) -> None:
        for address in operator.made:
            if (life := self.alive.get(address)) is not None:
                life.is_tensor = True

    def _give(self, given: Given) -> None:
        for address in given.addresses:
            life = self.alive.get(address)
            if life is not None and life.given is None:
                life.given = given.role

    def _free(self, address: int, time: float | None, phase: Phase) -> None:
        life = self.alive.pop(address, None)
        if life is not None:  # else something that the step never touched
            self.changes.append(_Change(time, -1, life, phase))

    def trace(self) -> MemoryTrace:
        blocks = {life: self._block(life) for life in self.existing}
        events: list[Event] = []
        total = peak = sum(life.size for life in self.existing)
        peak_index = -1
        for change in self.changes:
            block = blocks.get(change.life)
            if block is None:
                block = blocks[change.life] = self._block(change.life)
            size = change.sign * block.size
            total += size
            events.append(
                Event(change.time, size, total, change.phase,
                      block.role, block.operator, block.module, block.line)
            )  # fmt: skip
            if total > peak:
                peak, peak_index = total, len(events) - 1
        at_peak = [blocks[life] for life in self._alive_after(peak_index + 1)]
        # Before the first change the total is that of what existed.
        totals = [sum(life.size for life in self.existing), *(event.total for event in events)]
        fullest = max(self.forward_ends or [len(events)], key=totals.__getitem__)
        kept = self._alive_after(fullest)
        if self.recorder.built_a_graph and not self.forward_ends:
            _warn_without_backward()
        warn_of_uncounted(self.recorder.uncounted, stacklevel=5)
        return MemoryTrace(
            peak=peak,
            at_peak=self._by_role(at_peak),
            peak_phase=events[peak_index].phase if peak_index >= 0 else "forward",
            kept=self._by_role([blocks[life] for life in kept]),
            before=self._by_role([blocks[life] for life in self.existing]),
            flops=self.recorder.flops,
            source=self.recorder.source.name,
            peak_index=peak_index,
            alive_at_peak=tuple(sorted(at_peak, key=lambda block: -block.size)),
            events=tuple(events),
            otherwise=tuple(sorted(self.recorder.otherwise)),
            doubtful=self._doubtful(),
            uncounted=tuple(sorted(self.recorder.uncounted)),
        )

    def _doubtful(self) -> tuple[str, ...]:
        if not isinstance(self.recorder.source, SimulatedTensors):
            return ()
        return differing(e.name for e in self.recorder.log if isinstance(e, Operator))

    def _alive_after(self, changes: int) -> list[_Life]:
        alive = dict.fromkeys(self.existing)
        for change in self.changes[:changes]:
            if change.sign > 0:
                alive[change.life] = None
            else:
                del alive[change.life]
        return list(alive)

    def _by_role(self, blocks: Iterable[Block]) -> dict[Role, int]:
        unseen = () if self.recorder.source.sees_workspace else (Role.WORKSPACE, Role.RANDOM_STATE)
        sums = {role: 0 for role in Role if role not in unseen}
        for block in blocks:
            sums[block.role] += block.size
        return sums

    def _block(self, life: _Life) -> Block:
        maker = life.maker
        if maker is None:
            return Block(life.size, _role(life))
        place = maker.place
        return Block(life.size, _role(life), maker.name, place.module, place.describe())


def _role(life: _Life) -> Role:
    """The role that a block's life shows."""
    if life.given is not None:
        return life.given
    if not life.is_tensor:
        made_outside = life.maker is None and life.size == _RANDOM_STATE_BYTES
        return Role.RANDOM_STATE if made_outside else Role.WORKSPACE
    if life.maker is not None and life.maker.recomputing:
        return Role.RECOMPUTED
    if life.phase == "forward" and life.read_by_recomputation:
        return Role.CHECKPOINT
    if life.phase == "forward" and life.read_by_backward:
        return Role.ACTIVATION
    return Role.TEMPORARY


_RANDOM_STATE_BYTES = torch.get_rng_state().nbytes


# --- surroundings -------------------------------------------------------------------------------


def _source_for(
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


@contextlib.contextmanager
def _collector_resting() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _noticing_threads() -> Iterator[list[str]]:
    """The names of the threads that the body starts."""
    started: list[str] = []
    profile = threading.getprofile()

    def first_call(frame: Any, event: str, argument: Any) -> None:
        thread = threading.current_thread()
        # Jupyter's own comes at any moment; that of a progress bar only looks after bars.
        if not type(thread).__module__.startswith(("ipykernel", "tqdm")):
            started.append(thread.name)
        sys.setprofile(profile)

    threading.setprofile(first_call)
    try:
        yield started
    finally:
        threading.setprofile(profile)


# --- what can be wrong --------------------------------------------------------------------------


def _check_step(step: Any) -> None:
    if not callable(step):
        raise TypeError(
            text(
                zh=f"step 必须是函数，现在是 {type(step).__name__}。要测 f(x)，"
                "写 measure(lambda: f(x))。",
                en=f"step must be a function, not {type(step).__name__}. "
                "To measure f(x), write measure(lambda: f(x)).",
            )
        )
    bare = inspect.unwrap(step.func if isinstance(step, functools.partial) else step)
    if inspect.isgeneratorfunction(bare) or inspect.iscoroutinefunction(bare):
        raise TypeError(
            text(
                zh="step 是生成器或 async 函数，调用它什么也不会运行。请写一个普通函数，"
                "在里面把它跑完。",
                en="step is a generator or async function: calling it runs nothing. Write an "
                "ordinary function that runs it to its end.",
            )
        )
    try:
        signature = inspect.signature(step.forward if isinstance(step, nn.Module) else step)
    except ValueError:  # some builtins have none; the call itself will tell
        return
    try:
        signature.bind()
    except TypeError as problem:
        raise TypeError(
            text(
                zh=f"step 会被不带参数地调用，可它要参数（{problem}）。"
                "写 lambda: step(x)，并把 x 放进 inputs=。",
                en=f"step is called without arguments but needs some ({problem}). "
                "Write lambda: step(x), and pass x in inputs=.",
            )
        ) from None


def _optimizers(given: Optimizers) -> list[Optimizer]:
    """The optimizers, out of what libraries put around one, such as Lightning and Accelerate."""
    if given is None:
        return []
    found: list[Any] = []
    for value in given if isinstance(given, (list, tuple)) else [given]:
        inner = getattr(value, "optimizer", None)
        found.append(inner if isinstance(inner, Optimizer) else value)
    return found


def _check_model(model: Any, optimizers: list[Any]) -> None:
    given: list[tuple[str, Any, type]] = [("optimizer", one, Optimizer) for one in optimizers]
    if model is not None:
        given.insert(0, ("model", model, nn.Module))
    for name, value, kind in given:
        if not isinstance(value, kind):
            raise TypeError(
                text(
                    zh=f"{name} 必须是 {kind.__name__}，现在是 {type(value).__name__}。",
                    en=f"{name} must be of type {kind.__name__}, not {type(value).__name__}.",
                )
            )
    if model is not None and optimizers:
        ours = {id(parameter) for parameter in model.parameters()}
        theirs = [parameter for one in optimizers for parameter in parameters_of(one)]
        if not any(id(parameter) in ours for parameter in theirs):
            raise ValueError(
                text(
                    zh="optimizer 里没有 model 的任何参数：它是为别的模型建的。",
                    en="optimizer holds no parameter of model: it was made for another one.",
                )
            )


def _not_watched(trouble: Exception) -> str:
    words = f"{type(trouble).__name__}: {trouble}"
    return text(
        zh=f"这一步照常跑完了，但没能全程测量：{words}",
        en=f"The step ran as it does unmeasured, but could not be watched to its end: {words}",
    )


def _check_threads(names: list[str]) -> None:
    if names:
        raise RuntimeError(
            text(
                zh=f"step 用了别的线程（{names[0]}）。PyTorch 按线程报告内存分配，"
                "别的线程里的数不到。请在当前线程里做完（DataLoader 用 num_workers=0）。",
                en=f"The step used another thread ({names[0]}). PyTorch reports allocations per "
                "thread, so those of other threads are missed. Do the work in this one "
                "(a DataLoader with num_workers=0).",
            )
        )


def _memory_of_a_gpu() -> str:
    return text(
        zh="step 用了显存，而 model、optimizer 和 inputs 都在 CPU 上，所以这次测的是 CPU 的内存。"
        "请把 GPU 上的模型或输入交给 measure。",
        en="The step used memory of a GPU, but model, optimizer and inputs are on the CPU, so the "
        "CPU's was measured. Hand measure the model or the inputs that are on the GPU.",
    )


def _warn_without_backward() -> None:
    warnings.warn(
        text(
            zh="step 没有调用 backward()。没有反向传播去读，就分不出哪些值是为它保存的："
            "前向传播产生的值都算作临时量。",
            en="The step never called backward(). With no backward pass to read them, kept values "
            "cannot be told from others: all that the forward pass made counts as temporary.",
        ),
        stacklevel=6,
    )
