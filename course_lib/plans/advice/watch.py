"""Running one training step of any model under watch.

The step runs once, plainly. What autograd saves is kept aside (a simulated tensor needs no value,
a real one a copy), so that storage is seen to lose its last holder other than autograd.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes

from ...memory.log import Operator
from ...memory.measurement import recorded
from ...memory.operators import parts
from ...memory.reach import leaves, tensors
from ...memory.recorder import Recorder
from ...memory.roles import given, held
from .record import Record
from .sorting import Mark, record_of
from .stand_ins import Shell, core_and_shell


class _Packed:
    """Stands in autograd's graph for a saved tensor; when it goes, the slot is forgotten."""

    __slots__ = ("copy", "device", "dtype", "shell", "size", "slot", "stride", "watch")

    def __init__(self, watch: Watch, slot: int, tensor: Tensor, shell: Shell, copy: Tensor | None):
        self.watch, self.slot, self.copy, self.shell = watch, slot, copy, shell
        self.size, self.stride = tensor.shape, tensor.stride()
        self.dtype, self.device = tensor.dtype, tensor.device

    def empty(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)

    def __del__(self) -> None:
        self.watch.mark("forget", self.slot)
        if self.copy is not None:
            with self.watch.private(-2):
                self.copy = None


class _Held:
    """Stands for a saved tensor that is held as it is: it exists anyway, or is of a kind apart."""

    __slots__ = ("slot", "tensor", "watch")

    def __init__(self, watch: Watch, slot: int, tensor: Tensor):
        self.watch, self.slot, self.tensor = watch, slot, tensor

    def __del__(self) -> None:
        self.watch.mark("forget", self.slot)


class Watch:
    """Runs the step once and notes, beside the recorder, what the play needs to know."""

    def __init__(
        self,
        recorder: Recorder,
        watched: Mapping[str, nn.Module],
        existing: Mapping[int, StorageWeakRef],
        within: Callable[[Watch], AbstractContextManager] = contextlib.nullcontext,
    ):
        self.recorder, self.watched, self.within = recorder, watched, within
        # By weak references, for an address may be another tensor's by the time it is saved.
        self.existing = existing
        self.simulated = recorder.source.simulated
        self.slots = self.calls = self.operators = 0
        self.held_as_they_are = 0
        self.finished: list[_Finished | None] = [None]  # the last call at each depth

    def mark(
        self, kind: str, what: int = 0, addresses: tuple[int, ...] = (), more: Any = None
    ) -> None:
        flops = self.recorder.recording.flops
        self.recorder.note(Mark(kind, what, addresses, flops, more))

    @contextlib.contextmanager
    def private(self, slot: int) -> Iterator[None]:
        """What is allocated meanwhile is the watching's own."""
        self.mark("private", slot)
        try:
            yield
        finally:
            self.mark("public")

    # --- what autograd saves ----------------------------------------------------------------

    def pack(self, tensor: Tensor) -> _Packed | _Held:
        slot, self.slots = self.slots, self.slots + 1
        core, shell = core_and_shell(tensor)
        address = self.recorder.source.address(core) if core is not None else 0
        self.mark("save", slot, (address,))
        if core is None or (not self.simulated and self._existed(core)):
            self.held_as_they_are += core is None
            return _Held(self, slot, tensor)
        copy = None
        if not self.simulated:
            with self.private(-2), torch.no_grad(), _disable_current_modes():
                copy = torch.empty_strided(
                    core.shape, core.stride(), dtype=core.dtype, device=core.device
                )
                copy.copy_(core.detach())
        return _Packed(self, slot, core, shell, copy)

    def _existed(self, tensor: Tensor) -> bool:
        return StorageWeakRef(tensor.untyped_storage()).cdata in self.existing

    def unpack(self, packed: _Packed | _Held) -> Tensor:
        self.mark("read", packed.slot, more=torch._C._current_graph_task_id())
        if isinstance(packed, _Held):
            return packed.tensor
        with self.private(packed.slot):
            if packed.copy is None:
                return packed.shell(packed.empty())
            with torch.no_grad(), _disable_current_modes():
                return packed.shell(packed.empty().copy_(packed.copy))

    # --- calls ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def calls_noted(self) -> Iterator[None]:
        """Each watched module's ``forward`` says when it begins and ends."""
        put: list[tuple[nn.Module, Any, bool]] = []
        try:
            for path, module in self.watched.items():
                own = vars(module).get("forward")
                put.append((module, own, "forward" in vars(module)))
                vars(module)["forward"] = self._noting(path, module.forward)
            yield
        finally:
            for module, own, had in put:
                if had:
                    vars(module)["forward"] = own
                else:
                    vars(module).pop("forward", None)

    def _follows(self, args: tuple, kwargs: dict[str, Any]) -> int:
        """The number of the call whose result is handed on here and that got all else alike."""
        last = self.finished[-1]
        if last is None or last.result is None or not args or last.result() is not args[0]:
            return -1
        since = self.recorder.recording.entries[last.position :]
        if any(isinstance(entry, Operator) for entry in since):
            return -1
        return last.call if last.more == _recognized((args[1:], kwargs)) else -1

    def _noting(self, path: str, forward: Callable) -> Callable:
        def noted(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
                return forward(*args, **kwargs)
            call, self.calls = self.calls, self.calls + 1
            given = tensors_within((args, kwargs))
            source = self.recorder.source
            places = tuple(source.address(t) for t in given if t.layout is torch.strided)
            follows = self._follows(args, kwargs)
            self.mark("enter", call, places, (path, follows))
            del given
            self.finished.append(None)
            done = None
            try:
                with self.within(self):
                    result = forward(*args, **kwargs)
                done = _Finished(call, result, args, kwargs)
                return result
            finally:
                self.finished.pop()
                self.finished[-1] = done
                self.mark("exit", call)
                if done is not None:
                    done.position = len(self.recorder.recording.entries)

        noted.__wrapped__ = forward  # type: ignore[attr-defined]
        return noted


class _Finished:
    """A call that has ended: what it returned and got, without a reference that keeps a tensor."""

    def __init__(self, call: int, result: Any, args: tuple, kwargs: dict[str, Any]):
        self.call, self.position = call, 0
        self.result = weakref.ref(result) if isinstance(result, Tensor) else None
        self.more = _recognized((args[1:], kwargs))


def _recognized(value: Any) -> Any:
    """What tells the same arguments from others: plain values, and weak references."""
    if isinstance(value, dict):
        return {key: _recognized(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [type(value), *map(_recognized, value)]
    if value is None or isinstance(value, (bool, int, float, str, type)):
        return type(value), value
    try:
        return _Reference(value)
    except TypeError:
        return object()  # like nothing else


class _Reference:
    """Equal to another one of the same object, while that is there."""

    __slots__ = ("to",)

    def __init__(self, to: Any):
        self.to = weakref.ref(to)

    def __eq__(self, other: object) -> bool:
        there = self.to()
        return isinstance(other, _Reference) and there is not None and other.to() is there

    __hash__ = None  # type: ignore[assignment]


def tensors_within(values: Any) -> list[Tensor]:
    """The tensors of a call's arguments, those in attributes of plain objects included."""
    found = tensors(values)
    for value in _objects(values):
        found += tensors(list(vars(value).values()))
    return found


def _objects(values: Any) -> Iterator[Any]:
    for _, leaf in leaves(values):
        plain = not callable(leaf) and not isinstance(leaf, Tensor)
        if plain and hasattr(leaf, "__dict__"):
            yield leaf


def record_step(
    step: Callable[[], Any],
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    inputs: Any,
    watched: Mapping[str, nn.Module],
) -> Record:
    """Run ``step`` once and record it; ``watched``: path → module, whose calls are told apart.

    The step has the effects that it has unmeasured, and its exceptions pass through.
    """
    with recording(model, optimizers, inputs, watched) as result:
        step()
    return result()


@contextlib.contextmanager
def recording(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    inputs: Any,
    watched: Mapping[str, nn.Module],
    within: Callable[[Watch], AbstractContextManager] = contextlib.nullcontext,
) -> Iterator[Callable[[], Record]]:
    """Record the body of a ``with``; the value returns the record once the body has ended.

    ``within``: around each watched call, for whoever notes more of it.
    """
    existing = [tensor for tensor, _ in held(model, optimizers) + given(inputs)]
    storages = {
        reference.cdata: reference
        for tensor in existing
        for part in parts(tensor)
        for reference in [StorageWeakRef(part.untyped_storage())]
    }
    del existing  # or the step could not free any of it
    records: list[Record] = []
    with recorded(model, optimizers, inputs) as recorder:
        watch = Watch(recorder, watched, storages, within)
        hooks = torch.autograd.graph.saved_tensors_hooks(watch.pack, watch.unpack)
        with watch.calls_noted(), hooks:
            yield lambda: records[0]
    records.append(record_of(recorder.recording, watch.held_as_they_are))
