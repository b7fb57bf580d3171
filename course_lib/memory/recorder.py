"""What a step's operators do, noted while they run, with marks in the allocator's stream.

The recorder is a ``TorchDispatchMode``: it sees each operator below autograd, in the forward pass,
in recomputations and in the backward pass alike. It keeps addresses and names, never a tensor.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn.modules import module as module_hooks
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from .headroom import Headroom
from .in_place import ADD_IN_PLACE, InPlace
from .known import KnownMemory
from .log import (
    END,
    Accumulated,
    Aside,
    Entry,
    Held,
    Operator,
    Recording,
    Resized,
)
from .operators import (
    DEVICE,
    ONES_LIKE,
    PLAIN,
    RESIZES,
    OperatorKind,
    called_by_autograd,
    dispatches,
    kind_of,
    numbers_in,
    parts,
    seen_inside,
    tensors_in,
    watched,
)
from .ranks import global_shapes_apart, in_a_group
from .roles import Holding, held, held_by_optimizer
from .sources import Source
from .surroundings import never_compiled, register_always_called, told_of_resizes, uninterrupted
from .trace import Phase, Role
from .unwatched import (
    ACCUMULATES,
    CLONE,
    ENGINE,
    MULTIPLY,
    OTHERWISE,
    SPARSE,
    LeftAlone,
    functions_as_unwatched,
    saved_by,
)
from .whereabouts import Whereabouts


def _harmless(method: Callable) -> Callable:
    """Have a method that notes something never end the step: it gives up noting instead."""

    def guarded(self: Recorder, *about: Any, **more: Any) -> Any:
        if self.trouble is not None:
            return None
        try:
            return method(self, *about, **more)
        except MemoryError:  # said on purpose: see headroom
            raise
        except Exception as problem:
            self.trouble = problem.with_traceback(None)  # a traceback keeps tensors alive
            return None

    never_compiled(method)
    return never_compiled(guarded)


class Recorder(TorchDispatchMode):
    """Notes operators in ``recording``.

    ``trouble``: what kept the recorder from going on; the step itself went on, unwatched.
    ``headroom``: whether to refuse what does not fit into memory.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # that wrapper costs time; see never_compiled

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else a compiled model would run uncompiled while it is measured

    def __init__(self, source: Source, model: nn.Module | None, headroom: bool = True):
        super().__init__()
        self.source = source
        self.recording = Recording(source, in_a_group=in_a_group())
        self.where = Whereabouts(model)
        self.trouble: Exception | None = None
        self._kinds: dict[int, OperatorKind] = {}  # by the operator's id: its own hash takes longer
        self._known = KnownMemory(source, self.note)
        self._optimizers: list[int] = []  # the backward pass (-1: none) that each one runs in
        self._at_first: dict[int, int] = {}  # resized storage's identity -> its first address
        self._below_autograd = False  # inside of an operator that takes functions
        self._at_engine = False  # whether it called the operator that began last
        self._headroom = Headroom(self._aside) if headroom and source.on_host else None
        self._in_place = InPlace(source.simulated)
        self._alone = LeftAlone(self, self._node_begins, self._node_ends, source.simulated)
        self.recording.otherwise = self._alone.met

    def existed_before(self, holdings: Iterable[Holding]) -> None:
        """Count the tensors' storages from the start on; the first role given to one stays."""
        self.recording.before.update(self._known.existed_before(holdings))

    # --- operators --------------------------------------------------------------------------

    @never_compiled
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor_type in types:
            if tensor_type not in PLAIN and dispatches(tensor_type):
                self._gives_to_parts(args, sys._getframe(1))
                return NotImplemented  # the operators that it is made of come here one by one
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        kind = self._kinds.get(id(func))
        if kind is None:
            kind = self._kinds[id(func)] = kind_of(func)
        if not kind.works:
            if func is DEVICE and not args[0].fake_mode.in_kernel_invocation:
                return args[0].fake_device  # asked more often than all operators together
            return func(*args, **kwargs)
        # Elsewhere, operators come taken apart by autograd.
        if self._below_autograd or torch.is_inference_mode_enabled():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        operator = self._begins(func, kind, args, kwargs, sys._getframe(1))
        if operator is None:
            return func(*args, **kwargs)
        self.note(operator)
        try:
            result = self._in_place.instead_of(func, operator)(*args, **kwargs)
            self._ends(func, kind, args, kwargs, result, operator)
            return result
        finally:
            self.note(END)

    @_harmless
    def _begins(
        self, func: Any, kind: OperatorKind, args: tuple, kwargs: dict[str, Any], caller: Any
    ) -> Operator | None:
        """What is known of an operator before it runs; None for a view, which takes no memory."""
        with_graph = torch.is_grad_enabled()
        backward_pass = torch._C._current_graph_task_id()  # -1: none
        in_backward = backward_pass != -1
        node = None  # that the engine, not Python code, calls the operator for
        if in_backward and caller.f_code is ENGINE:
            node = torch._C._current_autograd_node()
        self._at_engine = node is not None
        recomputing = False
        if node is not None:
            place = self.where.of_node(node)
            self._engine_calls(node, backward_pass, func, args)
        else:
            place = self.where.here(caller, in_backward, with_graph)
            if not kind.is_view:
                recomputing = self.where.is_again(func, place, in_backward, with_graph)
        reads = self._reads(func, args, kwargs)
        in_place = self._in_place.adds(func, args, reads, node, caller)
        if kind.is_view:
            if self._accumulates():  # becomes the gradient as it is
                self.note(Accumulated(tuple(reads)))
            else:
                self._in_place.viewed(func, reads)
            return None
        if self._headroom is not None and kind.makes:
            self._headroom.take(func, args, kwargs)
        starts_backward = func is ONES_LIKE and called_by_autograd(caller)  # with ones_like(loss)
        if self._optimizers and self._optimizers[-1] == backward_pass and not with_graph:
            phase: Phase = "optimizer step"
        else:
            phase = "backward" if in_backward or starts_backward else "forward"
        operator = Operator(kind.name, phase, recomputing, place, ())
        if not starts_backward:  # which uses only the loss's shape
            operator.reads = tuple(reads)
        if kind.tensors:
            operator.numbers = numbers_in(args, kind.tensors)
        operator.in_place = in_place
        if in_place and node is not None:
            self._in_place.is_sum(operator)
        return operator

    def _engine_calls(self, node: Any, backward_pass: int, func: Any, args: tuple) -> None:
        number = node._sequence_nr()
        if number >= ACCUMULATES and func is CLONE and args[0].layout is torch.sparse_coo:
            self._alone.met.add(SPARSE)
        self._in_place.enters((backward_pass, number))

    def _accumulates(self) -> bool:
        """Whether the engine calls the operator to add up a leaf's gradient."""
        return self._at_engine and self._in_place.run[1] >= ACCUMULATES

    def _reads(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> list[int]:
        """The addresses of an operator's arguments; those that nobody has mentioned are noted."""
        role = Role.COMMUNICATION if self._fills_a_bucket(func) else None
        return [self._known.address(tensor, role) for tensor in tensors_in(args, kwargs)]

    def _fills_a_bucket(self, func: Any) -> bool:
        """Whether DistributedDataParallel copies a gradient that has just been accumulated."""
        return self.recording.in_a_group and self._accumulates() and func is not ADD_IN_PLACE

    @_harmless
    def _gives_to_parts(self, args: tuple, caller: Any) -> None:
        """Say of a parameter's gradient that is made of several tensors that it is one."""
        node = torch._C._current_autograd_node() if caller.f_code is ENGINE else None
        if node is not None and node._sequence_nr() >= ACCUMULATES:
            addresses = self._addresses(t for t in args[:1] if isinstance(t, Tensor))
            self.note(Accumulated(addresses))

    @_harmless
    def _ends(
        self,
        func: Any,
        kind: OperatorKind,
        args: tuple,
        kwargs: dict[str, Any],
        result: Any,
        operator: Operator,
    ) -> None:
        """What is known of an operator once it has run."""
        made = operator.made = self._known.made(tensors_in((result,), {}))
        self._in_place.made(func, made, self._at_engine)
        if self._accumulates():
            self.note(Accumulated(made + (operator.reads if func is ADD_IN_PLACE else ())))
        if func in RESIZES:
            for tensor in tensors_in(args, kwargs):
                self._resized(tensor.untyped_storage(), operator.reads[0])
        if kind.flops is not None:
            operations = kind.flops(*args, **kwargs, out_val=result)
            if operations is None:
                self.recording.uncounted.add(kind.name)
            else:
                self.recording.flops += operations

    @_harmless
    def _node_begins(self, node: Any) -> None:
        """The engine computes a gradient, and nobody will see its operators."""
        reads = [self.source.address(part) for saved in saved_by(node) for part in parts(saved)]
        if node.name() in MULTIPLY:
            self.recording.uncounted.add(OTHERWISE[node.name()])
        place = self.where.of_node(node)
        self.note(Operator(node.name(), "backward", False, place, tuple(reads)))

    def _node_ends(self, gradients: Sequence[Tensor | None]) -> None:
        self._know([t for t in gradients if t is not None])
        self.note(END)

    @_harmless
    def _know(self, made: Sequence[Tensor]) -> None:
        self._known.made(part for tensor in made for part in parts(tensor))

    def _higher_order(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run ``cond``, flex attention and the like so that their inner operators come here."""
        dense = None if self.source.simulated else seen_inside(func)
        if dense is None:
            return func(*(watched(value, lambda: self) for value in args), **kwargs)
        before, self._below_autograd = self._below_autograd, True
        try:
            with self:
                return dense(*args, **kwargs)
        finally:
            self._below_autograd = before

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        self.note(Aside())
        try:
            yield
        finally:
            self.note(END)

    def note(self, entry: Entry) -> None:
        """Write an entry, with its mark in the stream."""
        if self.trouble is None:
            self.recording.entries.append(entry)
            self.source.mark()

    # --- the step's surroundings ------------------------------------------------------------

    @contextlib.contextmanager
    def listening(
        self, model: nn.Module | None, optimizers: Sequence[Optimizer] = ()
    ) -> Iterator[None]:
        """Record the body; afterwards nothing is left behind, also if it raised."""
        stack = contextlib.ExitStack()
        try:
            with uninterrupted():
                for register, hook in (
                    (module_hooks.register_module_forward_pre_hook, self._enter_module),
                    (register_always_called, self._leave_module),
                    (register_optimizer_step_pre_hook, self._enter_optimizer),
                    (register_optimizer_step_post_hook, self._leave_optimizer),
                ):
                    stack.callback(register(hook).remove)
                first_node = torch.autograd._get_sequence_nr()
                stack.enter_context(told_of_resizes(self.source.place, self._resized))
                stack.enter_context(self._alone.listening())
                stack.enter_context(functions_as_unwatched(self._alone.met))
                stack.enter_context(global_shapes_apart())
                self.source.start()
                stack.callback(lambda: self.recording.stream.extend(self.source.stop()))
            self._known.step_begins()
            with self:
                yield
            self.recording.built_a_graph = torch.autograd._get_sequence_nr() > first_node
            self._hold(held(model, optimizers))
        finally:
            try:
                with uninterrupted():
                    stack.close()
            finally:
                stack.close()  # if an interrupt came just before: there is nothing left to do else

    @_harmless
    def _resized(self, storage: torch.UntypedStorage, old: int) -> None:
        """Note storage that now lies elsewhere."""
        self.source.resized(storage)
        at_first = self._at_first.setdefault(storage._cdata, old)
        self.note(Resized(self.source.place(storage), at_first))

    @_harmless
    def _hold(self, holdings: Iterable[Holding]) -> None:
        """Note what is held, in which role."""
        by_role: dict[Role, list[Tensor]] = {}
        for tensor, role in holdings:
            by_role.setdefault(role, []).append(tensor)
        for role, tensors in by_role.items():
            self.note(Held(role, self._addresses(tensors, role)))

    def _addresses(self, tensors: Iterable[Tensor], role: Role | None = None) -> tuple[int, ...]:
        return tuple(
            [self._known.address(part, role) for tensor in tensors for part in parts(tensor)]
        )

    @_harmless
    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        self.where.enter(module)

    @_harmless
    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.where.leave()

    @_harmless
    def _enter_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._optimizers.append(torch._C._current_graph_task_id())
        self._hold(held_by_optimizer(optimizer))

    @_harmless
    def _leave_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._optimizers.pop()
        self._hold(held_by_optimizer(optimizer))
