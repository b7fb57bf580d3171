"""What a step's operators do, noted while they run, with marks in the allocator's stream.

The recorder is a ``TorchDispatchMode``: it sees each operator below autograd, in the forward pass,
in recomputations and in the backward pass alike. It keeps addresses and names, never a tensor.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import linecache
import signal
import sys
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._C._dynamo import eval_frame
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as module_hooks
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from .allocator import CPUAllocator, Happening, SimulatedTensors, Source
from .flops import Formula, flops_of
from .room import Room
from .unwatched import (
    ACCUMULATES,
    ADD,
    ADD_IN_PLACE,
    CLONE,
    ENGINE,
    INTO_ZEROS,
    MULTIPLY,
    OTHERWISE,
    PRODUCTS,
    SPARSE,
    ZEROS,
    LeftAlone,
    could_add_in_place,
    counts_of_sole_owner,
    functions_as_unwatched,
    meets_itself,
    saved_by,
)

Phase = Literal["forward", "backward", "optimizer step"]


class Role(StrEnum):
    """What a byte is there for. A block of memory keeps one role for its whole life."""

    PARAMETER = "parameter"
    GRADIENT = "gradient"  # of a parameter, or of an input that requires one
    OPTIMIZER_STATE = "optimizer state"
    BUFFER = "buffer"
    INPUT = "input"  # whatever came from outside the step and is none of the above
    CHECKPOINT = "checkpoint"  # made in the forward pass, kept, read by a recomputation
    ACTIVATION = "activation"  # made in the forward pass, kept, read by the backward pass
    RECOMPUTED = "recomputed"  # made again during the backward pass
    TEMPORARY = "temporary"  # any other tensor, gradients of activations included
    WORKSPACE = "workspace"  # inside an operator, never seen as a tensor
    RANDOM_STATE = "random state"  # a generator's state, saved to repeat dropout

    @property
    def names(self) -> tuple[str, str]:
        """What the role is called: (zh, en)."""
        return _CHINESE[self], self.value


_CHINESE = {
    Role.PARAMETER: "参数",
    Role.GRADIENT: "梯度",
    Role.OPTIMIZER_STATE: "优化器状态",
    Role.BUFFER: "缓冲区",
    Role.INPUT: "输入",
    Role.CHECKPOINT: "检查点",
    Role.ACTIVATION: "激活值",
    Role.RECOMPUTED: "重计算",
    Role.TEMPORARY: "临时量",
    Role.WORKSPACE: "算子工作区",
    Role.RANDOM_STATE: "随机数状态",
}


class Place(NamedTuple):
    """Where in the learner's code something was made: module path, file and line."""

    module: str | None
    file: str | None
    line: int

    def describe(self) -> str | None:
        """``file.py:12  y = self.up(x)``; ``cell:3  …`` in a notebook; None if unknown."""
        return None if self.file is None else _described(self.file, self.line)


NOWHERE = Place(None, None, 0)


@dataclass(slots=True)
class Operator:
    """One operator call: what it read and made, as storage addresses, and where it belongs.

    ``place``: for a gradient that the engine computes, that of the forward operator.
    ``recomputing``: forward work done during the backward pass. ``numbers``: the sizes of the
    tensors that PyTorch makes of Python numbers before it calls the operator. ``in_place``: the
    bare step would have added the second tensor to the first, whose memory therefore lives on.
    """

    name: str
    phase: Phase
    recomputing: bool
    place: Place
    reads: tuple[int, ...]
    made: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    in_place: bool = False

    def continues(self, address: int, alive: Container[int]) -> bool:
        """Whether what it got at ``address`` is, in the bare step, what it read first."""
        return self.in_place and self.made == (address,) and self.reads[0] in alive


@dataclass(frozen=True, slots=True)
class Given:
    """These blocks have this role, whatever their life may look like."""

    role: Role
    addresses: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """An operator read a tensor that nobody had mentioned and no operator had made.

    ``just_made``: it came into being during the step, in memory that is not PyTorch's own, as a
    tensor made of a NumPy array does; otherwise it existed before.
    """

    role: Role
    address: int
    size: int
    just_made: bool = False


@dataclass(frozen=True, slots=True)
class Resized:
    """Storage was resized by hand: it is a tensor's, and now lies here."""

    address: int
    role: Role | None


@dataclass(frozen=True, slots=True)
class Freed:
    """A block that existed before the step was freed."""

    address: int


def never_compiled(method: Callable) -> Callable:
    """Keep ``torch.compile`` away from a method, and from all that it calls, at no cost per call.

    Where a step calls a compiled model, the compiler would take them for parts of the model.
    """
    skip = eval_frame._FrameAction.SKIP
    eval_frame.set_code_exec_strategy(method.__code__, eval_frame._FrameExecStrategy(skip, skip))
    return method


@dataclass(frozen=True, slots=True)
class Aside:
    """What is allocated from here to the next END is the measuring's own."""


END = None  # of the operator that began last, or of what was done aside
Entry = Operator | Given | Found | Resized | Freed | Aside | None


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
    """Notes operators in ``log``; ``log[i]`` says what mark ``i`` of the stream stands for.

    ``before``: address → (role, bytes) of what existed when the step began. ``flops``: counted by
    the formulas of :mod:`flops`. ``stream``: the source's, once :meth:`listening` has ended.
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
        self.log: list[Entry] = []
        self.stream: list[Happening] = []
        self.before: dict[int, tuple[Role, int]] = {}
        self.flops = 0
        self.uncounted: set[str] = set()  # operators that multiply matrices, without a formula
        self.built_a_graph = False
        self.trouble: Exception | None = None
        self.elsewhere: list[str] = []  # names of other threads that modules ran in
        self._names = (
            {id(m): name for name, m in model.named_modules()} if model is not None else {}
        )
        self._modules: list[str] = []
        self._places: dict[int, Place] = {}  # autograd node's number -> its forward operator's
        self._kinds: dict[int, _Kind] = {}  # by the operator's id: its own hash takes longer
        self._known: set[int] = {0}  # addresses that need no second look
        self._foreign: set[int] = set()  # those of them that are not PyTorch's own memory
        self._birth: list[None] = []  # of this recorder: what Python lists after it is younger
        self._done_in_forward: set[tuple] = set()  # operators, by module path or line
        self._modules_at: dict[tuple[str | None, int], set[str]] = {}  # that ran a line
        self._optimizers: list[int] = []  # the backward pass (-1: none) that each one runs in
        self._thread = threading.get_ident()
        self._zeros: tuple[int, ...] = ()  # what the engine's last operator made, if zeros
        self._run: tuple[int, int] = (-1, -1)  # the backward pass and the node the engine is at
        self._roles_of_resized: dict[int, Role] = {}  # by the storage's own identity
        self._made_in: dict[int, tuple[int, int]] = {}  # the run that an address was made in
        self._sums: list[Operator] = []  # of this run, with nothing but sums after them
        self._call: tuple[int, int] | None = None  # the frame and instruction that work is done for
        self._product = 0  # address of the product that its last operator returned, if it did
        self._below_autograd = False  # inside of an operator that takes functions
        self._at_engine = False  # whether it called the operator that began last
        self._room = Room(self._aside) if headroom and isinstance(source, CPUAllocator) else None
        self._simulated = isinstance(source, SimulatedTensors)
        self._sole_owner = counts_of_sole_owner(self._simulated)
        self._alone = LeftAlone(self, self._node_begins, self._node_ends, self._simulated)

    # --- what exists before -----------------------------------------------------------------

    def existed_before(self, tensors: Iterable[tuple[Tensor, Role]]) -> None:
        """Count the tensors' storages from the start on; the first role given to one stays."""
        for tensor, role in tensors:
            for part in parts(tensor):
                address = self.source.address(part)
                if address not in self._known:
                    self.before[address] = (role, part.untyped_storage().nbytes())
                    self._watch(part, address)

    def _is_new(self, tensor: Tensor, address: int) -> bool:
        """Whether nobody has mentioned this memory and no operator has made it."""
        if address not in self._known:
            return True
        # A NumPy array may come to lie where a tensor lay before.
        return address not in self._foreign and address != 0 and self.source.is_foreign(tensor)

    def _find(self, tensor: Tensor, address: int, role: Role | None = None) -> None:
        """Note a tensor that came from outside the step."""
        if self._simulated and not isinstance(tensor, FakeTensor):
            self._known.add(address)
            return  # a constant on its way to becoming a simulated tensor
        if role is None:
            leaf = isinstance(tensor, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad)
            role = Role.PARAMETER if leaf else Role.INPUT
        just_made = self.source.is_foreign(tensor) and self._is_younger(tensor)
        self._write(Found(role, address, tensor.untyped_storage().nbytes(), just_made))
        self._watch(tensor, address)

    def _is_younger(self, tensor: Tensor) -> bool:
        """Whether Python made it after the step began.

        The garbage collector rests meanwhile, and lists what it has not yet looked at in the order
        in which it came into being.
        """
        for thing in reversed(gc.get_objects(generation=0)):
            if thing is tensor or thing is self._birth:
                return thing is tensor
        return False  # both were looked at: the step itself had the collector run

    def _watch(self, tensor: Tensor, address: int) -> None:
        self._known.add(address)
        foreign = self.source.is_foreign(tensor)
        if foreign:
            self._foreign.add(address)

        def freed() -> None:
            if foreign:
                self._foreign.discard(address)
                self._known.discard(address)
            self._write(Freed(address))

        self.source.watch(tensor, freed)

    # --- operators --------------------------------------------------------------------------

    @never_compiled
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor_type in types:
            if tensor_type not in _PLAIN and _dispatches(tensor_type):
                self._gives_to_parts(args, sys._getframe(1))
                return NotImplemented  # the operators that it is made of come here one by one
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        kind = self._kinds.get(id(func))
        if kind is None:
            kind = self._kinds[id(func)] = _kind(func)
        if not kind.works:
            if func is _DEVICE and not args[0].fake_mode.in_kernel_invocation:
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
        self._write(operator)
        try:
            result = self._unwatched(func, operator)(*args, **kwargs)
            self._ends(func, kind, args, kwargs, result, operator)
            return result
        finally:
            self._write(END)

    @_harmless
    def _begins(
        self, func: Any, kind: _Kind, args: tuple, kwargs: dict[str, Any], caller: Any
    ) -> Operator | None:
        """What is known of an operator before it runs; None for a view, which takes no memory."""
        grad = torch.is_grad_enabled()
        backward_pass = torch._C._current_graph_task_id()  # -1: none
        in_backward = backward_pass != -1
        node = None  # that the engine, not Python code, calls the operator for
        if in_backward and caller.f_code is ENGINE:
            node = torch._C._current_autograd_node()
        self._at_engine = node is not None
        recomputing = False
        if node is not None:
            number = node._sequence_nr()
            place = self._places.get(number, NOWHERE)
            if number >= ACCUMULATES and func is CLONE and args[0].layout is torch.sparse_coo:
                self._alone.met.add(SPARSE)
            if (backward_pass, number) != self._run:
                self._run = (backward_pass, number)
                self._sums.clear()
        else:
            line = learners_line(caller)
            module = self._modules[-1] if self._modules else None
            if module is None and in_backward:
                module = self._recomputed_in(line)
            elif module is not None:
                self._modules_at.setdefault(line, set()).add(module)
            place = Place(module, *line)
            if not kind.is_view:
                work = (id(func), *place) if module is None else (id(func), module)
                if in_backward:  # with its graph, or the same again
                    recomputing = grad or work in self._done_in_forward
                else:
                    self._done_in_forward.add(work)
            if grad:  # the node that this operator belongs to was numbered just before
                self._places.setdefault(torch.autograd._get_sequence_nr() - 1, place)

        reads = []
        for tensor in _tensors(args, kwargs):
            address = self.source.address(tensor)
            if self._is_new(tensor, address):
                self._find(tensor, address)
            reads.append(address)
        in_place = self._adds_in_place(func, args, reads, node, caller)
        if kind.is_view:
            if node is not None and self._run[1] >= ACCUMULATES:  # becomes the gradient as it is
                self._write(Given(Role.GRADIENT, tuple(reads)))
            elif func in PRODUCTS:
                self._product = reads[0]
            return None

        if self._room is not None and kind.makes:
            self._room.take(func, args, kwargs)
        starts_backward = func is _ONES_LIKE and _called_by_autograd(caller)  # with ones_like(loss)
        if self._optimizers and self._optimizers[-1] == backward_pass and not grad:
            phase: Phase = "optimizer step"
        else:
            phase = "backward" if in_backward or starts_backward else "forward"
        operator = Operator(kind.name, phase, recomputing, place, ())
        if not starts_backward:  # which uses only the loss's shape
            operator.reads = tuple(reads)
        if kind.tensors:
            operator.numbers = _numbers(args, kind.tensors)
        operator.in_place = in_place
        if in_place and node is not None:
            self._sums.append(operator)
        return operator

    @_harmless
    def _gives_to_parts(self, args: tuple, caller: Any) -> None:
        """Say of a parameter's gradient that is made of several tensors that it is one."""
        node = torch._C._current_autograd_node() if caller.f_code is ENGINE else None
        if node is not None and node._sequence_nr() >= ACCUMULATES:
            self._give(Role.GRADIENT, [t for t in args[:1] if isinstance(t, Tensor)])

    @_harmless
    def _ends(
        self, func: Any, kind: _Kind, args: tuple, kwargs: dict[str, Any], result: Any,
        operator: Operator,
    ) -> None:  # fmt: skip
        """What is known of an operator once it has run."""
        made = operator.made = tuple([self.source.made(t) for t in _tensors((result,), {})])
        self._known.update(made)
        at_engine = self._at_engine
        self._zeros = made if at_engine and func in ZEROS else ()
        if func in PRODUCTS and not at_engine:
            self._product = made[0]
        if at_engine or self._made_in:
            run = self._run if at_engine else _NO_RUN
            self._made_in.update([(address, run) for address in made])
        if at_engine and self._run[1] >= ACCUMULATES:
            added = operator.reads if func is ADD_IN_PLACE else ()
            self._write(Given(Role.GRADIENT, made + added))
        if func in _RESIZES:
            for tensor in _tensors(args, kwargs):
                storage = tensor.untyped_storage()
                self._resized(storage, operator.reads[0])
        if kind.flops is not None:
            operations = kind.flops(*args, **kwargs, out_val=result)
            if operations is None:
                self.uncounted.add(kind.name)
            else:
                self.flops += operations

    def _recomputed_in(self, line: tuple[str | None, int]) -> str | None:
        """The module that a recomputation is in, where only its ``forward`` is run again.

        Then no hook has said so. But it is the node that needs a value of that forward which has
        it recomputed: of the modules that ran this line before, it is the one around that node's.
        """
        node = torch._C._current_autograd_node()
        needing = self._places.get(node._sequence_nr(), NOWHERE).module if node else None
        if needing is None:
            return None
        ran = self._modules_at.get(line, ())
        around = (m for m in ran if not m or f"{needing}.".startswith(f"{m}."))
        return max(around, key=len, default=None)

    def _adds_in_place(
        self, func: Any, args: tuple, reads: list[int], node: Any, caller: Any
    ) -> bool:
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
            and self._run[1] < ACCUMULATES
            and (self._made_in.get(reads[0]) != self._run or meets_itself(node))
        )
        if not may_be_the_engines:  # then neither were the ones before
            for earlier in self._sums:
                earlier.in_place = False
            self._sums.clear()
        return may_be_the_engines and could_add_in_place(args[0], self._sole_owner)

    @property
    def otherwise(self) -> set[str]:
        """Operators whose gradients the watched step had to compute in another way."""
        return self._alone.met

    @_harmless
    def _node_begins(self, node: Any) -> None:
        """The engine computes a gradient, and nobody will see its operators."""
        reads = [self.source.address(part) for saved in saved_by(node) for part in parts(saved)]
        place = self._places.get(node._sequence_nr(), NOWHERE)
        if node.name() in MULTIPLY:
            self.uncounted.add(OTHERWISE[node.name()])
        self._write(Operator(node.name(), "backward", False, place, tuple(reads)))

    def _node_ends(self, gradients: Sequence[Tensor | None]) -> None:
        self._know([t for t in gradients if t is not None])
        self._write(END)

    @_harmless
    def _know(self, made: Sequence[Tensor]) -> None:
        self._known.update([self.source.made(part) for t in made for part in parts(t)])

    def _unwatched(self, func: Any, operator: Operator) -> Any:
        """What autograd calls when nobody watches: it then puts parts into zeros in place."""
        if self._zeros and func in INTO_ZEROS and operator.reads[0] in self._zeros:
            return INTO_ZEROS[func]
        return func

    def _higher_order(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run ``cond``, flex attention and the like so that their inner operators come here."""
        dense = func.py_kernels.get(DispatchKey.CompositeExplicitAutograd)
        if func.name() in _SEES_INSIDE and dense is not None and not self._simulated:
            before, self._below_autograd = self._below_autograd, True
            try:
                with self:
                    return dense(*args, **kwargs)
            finally:
                self._below_autograd = before

        def watched(inner: Callable) -> Callable:
            def with_recorder(*given: Any, **more: Any) -> Any:
                with self:
                    return inner(*given, **more)

            return with_recorder

        args = tuple(
            watched(value) if callable(value) and not isinstance(value, Tensor) else value
            for value in args
        )
        return func(*args, **kwargs)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        self._write(Aside())
        try:
            yield
        finally:
            self._write(END)

    def _write(self, entry: Entry) -> None:
        if self.trouble is None:
            self.log.append(entry)
            self.source.mark()

    # --- the step's surroundings ------------------------------------------------------------

    @contextlib.contextmanager
    def listening(
        self, model: nn.Module | None, optimizers: Sequence[Optimizer] = ()
    ) -> Iterator[None]:
        """Record the body; afterwards nothing is left behind, also if it raised."""
        stack = contextlib.ExitStack()
        try:
            with _uninterrupted():
                for register, hook in (
                    (module_hooks.register_module_forward_pre_hook, self._enter_module),
                    (_register_always_called, self._leave_module),
                    (register_optimizer_step_pre_hook, self._enter_optimizer),
                    (register_optimizer_step_post_hook, self._leave_optimizer),
                ):
                    stack.callback(register(hook).remove)
                first_node = torch.autograd._get_sequence_nr()
                stack.enter_context(_told_of_resizes(self.source.place, self._resized))
                stack.enter_context(self._alone.listening())
                stack.enter_context(functions_as_unwatched(self._alone.met))
                self.source.start()
                stack.callback(lambda: self.stream.extend(self.source.stop()))
            self._birth = []
            with self:
                yield
            self.built_a_graph = torch.autograd._get_sequence_nr() > first_node
            self._name_what_exists(model, optimizers)
        finally:
            try:
                with _uninterrupted():
                    stack.close()
            finally:
                stack.close()  # if an interrupt came just before: there is nothing left to do else

    @_harmless
    def _name_what_exists(self, model: nn.Module | None, optimizers: Sequence[Optimizer]) -> None:
        for tensor, role in what_exists(model, optimizers):
            self._give(role, [tensor])

    @_harmless
    def _resized(self, storage: torch.UntypedStorage, old: int) -> None:
        """Have storage that now lies elsewhere keep the role that it had when the step began."""
        self.source.resized(storage)
        if old in self.before:
            self._roles_of_resized[storage._cdata] = self.before[old][0]
        new = self.source.place(storage)
        self._write(Resized(new, self._roles_of_resized.get(storage._cdata)))

    def _give(self, role: Role, tensors: Iterable[Tensor | None]) -> None:
        given = []
        for tensor in tensors:
            for part in parts(tensor) if tensor is not None else ():
                given.append(self.source.address(part))
                if self._is_new(part, given[-1]):
                    self._find(part, given[-1], role)
        if given:
            self._write(Given(role, tuple(given)))

    @_harmless
    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != self._thread:  # the hooks are everybody's
            self.elsewhere.append(threading.current_thread().name)
        else:
            self._modules.append(self._names.get(id(module), type(module).__name__))

    @_harmless
    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._modules and threading.get_ident() == self._thread:
            self._modules.pop()

    @_harmless
    def _enter_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._optimizers.append(torch._C._current_graph_task_id())
        self._give(Role.PARAMETER, parameters_of(optimizer))
        self._give(Role.OPTIMIZER_STATE, state_of(optimizer))
        self._give(Role.GRADIENT, [p.grad for p in parameters_of(optimizer)])

    @_harmless
    def _leave_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._optimizers.pop()
        self._give(Role.OPTIMIZER_STATE, state_of(optimizer))


def what_exists(
    model: nn.Module | None, optimizers: Sequence[Optimizer] = (), inputs: Any = ()
) -> list[tuple[Tensor, Role]]:
    """Every tensor that a model, its optimizers and a step's inputs hold, with its role."""
    parameters: list[Tensor] = list(model.parameters()) if model is not None else []
    for optimizer in optimizers:
        parameters += parameters_of(optimizer)
    found: list[tuple[Tensor, Role]] = [(p, Role.PARAMETER) for p in parameters]
    found += [(p.grad, Role.GRADIENT) for p in parameters if p.grad is not None]
    if model is not None:
        found += [(b, Role.BUFFER) for b in model.buffers()]
        found += [(t, Role.BUFFER) for module in model.modules() for t in _attributes_of(module)]
    for optimizer in optimizers:
        found += [(s, Role.OPTIMIZER_STATE) for s in state_of(optimizer)]
    given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    found += [(t, Role.INPUT) for t in given]
    found += [(t.grad, Role.GRADIENT) for t in given if t.is_leaf and t.grad is not None]
    return found


def _attributes_of(module: nn.Module) -> list[Tensor]:
    """The tensors that a module holds as plain attributes, as some do with a state."""
    values = [v for name, v in vars(module).items() if name not in _KEPT_BY_MODULES]
    values = [v for v in values if isinstance(v, (Tensor, list, tuple, dict))]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


_KEPT_BY_MODULES = frozenset(vars(nn.Module()))  # parameters, buffers, modules, hooks


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters in all of an optimizer's groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def state_of(optimizer: Optimizer) -> list[Tensor]:
    """The tensors in an optimizer's state, Adam's moments for example."""
    return [s for s in tree_leaves(list(optimizer.state.values())) if isinstance(s, Tensor)]


@contextlib.contextmanager
def _told_of_resizes(
    place: Callable[[torch.UntypedStorage], int], tell: Callable[[torch.UntypedStorage, int], None]
) -> Iterator[None]:
    """Call ``tell`` after a storage was resized from Python, as FSDP2 does with its parameters.

    No operator is involved, so that nobody else would notice.
    """
    kind: Any = torch.UntypedStorage
    original, inherited = kind.resize_, "resize_" not in vars(kind)

    def resize_(storage: torch.UntypedStorage, size: int) -> Any:
        try:
            old = place(storage)
        except RuntimeError:  # a compiler's or a conversion's own, which has no memory
            return original(storage, size)
        result = original(storage, size)
        tell(storage, old)
        return result

    kind.resize_ = resize_
    try:
        yield
    finally:
        if inherited:
            del kind.resize_
        else:
            kind.resize_ = original


_register_always_called = functools.partial(
    module_hooks.register_module_forward_hook, always_call=True
)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """An interrupt (Ctrl-C, the stop button) waits until the body has ended.

    Otherwise one that comes while something is being set up could leave it behind for good.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple] = []
    signal.signal(signal.SIGINT, lambda *about: came.append(about))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


# --- facts about operators and lines ------------------------------------------------------------

_AUTOGRAD_FILE = torch.autograd.__file__
_ONES_LIKE = torch.ops.aten.ones_like.default
_DEVICE = torch.ops.prim.device.default
_NO_WORK = ("prim", "profiler")
_NO_RUN = (-1, -1)
_RESIZES = {torch.ops.aten.resize_.default, torch.ops.aten.resize_as_.default}
_MAKES_SIMULATED = {torch.ops.aten.lift_fresh.default}  # of a real constant
_SEES_INSIDE = ("flex_attention", "flex_attention_backward")  # without callables that do the work


def _called_by_autograd(frame: Any) -> bool:
    while frame.f_code.co_name == "__torch_function__":  # of a mode, such as torch.device
        frame = frame.f_back
    return frame.f_code.co_filename == _AUTOGRAD_FILE


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    works: bool  # else it asks a simulated tensor for its device, or names a stretch of time
    is_view: bool
    makes: bool  # results that are not its arguments
    tensors: tuple[int, ...]  # which arguments are single tensors, if several
    flops: Formula | None


@functools.cache
def _kind(func: Any) -> _Kind:
    aliases = [returned.alias_info for returned in func._schema.returns]
    is_view = (
        func.namespace == "aten"
        and func not in _MAKES_SIMULATED
        and bool(aliases)
        and all(alias and not alias.is_write for alias in aliases)
    )
    makes = not all(aliases)
    tensors = tuple(
        i for i, argument in enumerate(func._schema.arguments)
        if isinstance(argument.type, torch.TensorType)
    )  # fmt: skip
    if len(tensors) < 2:  # then it is a tensor for certain
        tensors = ()
    works = func.namespace not in _NO_WORK
    return _Kind(str(func._overloadpacket), works, is_view, makes, tensors, flops_of(func))


def _numbers(args: tuple, tensors: tuple[int, ...]) -> tuple[int, ...]:
    """The bytes of the scalar tensors that stand behind Python numbers, as in ``x * 2``."""
    given = (type(args[i]) for i in tensors if i < len(args))
    return tuple(_NUMBER_BYTES[kind] for kind in given if kind in _NUMBER_BYTES)


_NUMBER_BYTES = {bool: 1, int: 8, float: 8, complex: 16}


def _tensors(args: Iterable[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors in an operator's arguments or results; schemas nest them one list deep."""
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if type(value) in _PLAIN and value.layout is torch.strided:
            if not value._is_zerotensor():  # forward-mode's zeros, which have no memory
                found.append(value)
        elif isinstance(value, Tensor):
            found += parts(value)
        elif isinstance(value, (list, tuple)):
            found += [part for item in value if isinstance(item, Tensor) for part in parts(item)]
    return found


_PLAIN = {Tensor, nn.Parameter, FakeTensor}


@functools.cache
def _dispatches(tensor_type: Any) -> bool:
    """Whether tensors of this type say themselves what an operator does to them."""
    return tensor_type.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def parts(tensor: Tensor) -> list[Tensor]:
    """The tensors with storage that this one is made of: itself, unless sparse or a wrapper."""
    if type(tensor) in _PLAIN and tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if type(tensor) in _PLAIN:
        return []  # a library's own layout, whose bytes cannot be reached
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        held = [getattr(tensor, name) for name in names]  # a mesh of devices, for one, is no tensor
        return [part for inner in held if isinstance(inner, Tensor) for part in parts(inner)]
    return [] if is_lazy(tensor) else [tensor]


_NOT_THE_LEARNERS = (
    str(Path(torch.__file__).parent),
    contextlib.__file__,
    __file__,
    str(Path(__file__).with_name("memory.py")),
    str(Path(__file__).with_name("saved.py")),
    str(Path(__file__).with_name("simulation.py")),
    str(Path(__file__).with_name("unwatched.py")),
)
_learners: dict[str, bool] = {}  # by file: a code object is hashed anew, whole, at each look-up


def learners_line(frame: Any) -> tuple[str | None, int]:
    """File and line of the innermost code that is neither PyTorch's nor the measuring's own."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in _learners:
            _learners[file] = not file.startswith(_NOT_THE_LEARNERS)
        if _learners[file]:
            return file, frame.f_lineno
        frame = frame.f_back
    return None, 0


@functools.cache
def _described(file: str, line: int) -> str:
    path = Path(file)
    source = linecache.getline(file, line).strip()
    if path.parent == Path(__file__).parent:  # the course's own: a lesson shows the line itself,
        return f"{path.name}  {source}"  # since its number changes with every edit of the file
    where = "cell" if "ipykernel" in path.parent.name or path.suffix != ".py" else path.name
    return f"{where}:{line}  {source}".rstrip()
