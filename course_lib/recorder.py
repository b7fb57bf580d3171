"""What a step's operators do, noted while they run, with marks in the allocator's stream.

The recorder is a ``TorchDispatchMode``: it sees each operator below autograd, in the forward pass,
in recomputations and in the backward pass alike. It keeps addresses and names, never a tensor.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._dynamo import eval_frame
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
from torch.utils.flop_counter import flop_registry

from .allocator import CPUAllocator, Happening, SimulatedTensors, Source
from .room import Room

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
    tensors that PyTorch makes of Python numbers before it calls the operator.
    """

    name: str
    phase: Phase
    recomputing: bool
    place: Place
    reads: tuple[int, ...]
    made: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """These blocks have this role, whatever their life may look like."""

    role: Role
    addresses: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """An operator read a tensor that nobody had mentioned and no operator had made."""

    role: Role
    address: int
    size: int


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
Entry = Operator | Given | Found | Freed | Aside | None


class Recorder(TorchDispatchMode):
    """Notes operators in ``log``; ``log[i]`` says what mark ``i`` of the stream stands for.

    ``before``: address → (role, bytes) of what existed when the step began. ``flops``: counted as
    ``FlopCounterMode`` does. ``stream``: the source's, once :meth:`listening` has ended.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # that wrapper costs time; see never_compiled

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else a compiled model would run uncompiled while it is measured

    def __init__(self, source: Source, model: nn.Module | None):
        super().__init__()
        self.source = source
        self.log: list[Entry] = []
        self.stream: list[Happening] = []
        self.before: dict[int, tuple[Role, int]] = {}
        self.flops = 0
        self.built_a_graph = False
        self._names = {id(m): name for name, m in model.named_modules()} if model else {}
        self._modules: list[str] = []
        self._places: dict[int, Place] = {}  # autograd node's number -> its forward operator's
        self._known: set[int] = {0}  # addresses that need no second look
        self._done_in_forward: set[tuple] = set()  # operators, by module path or line
        self._modules_at: dict[tuple[str | None, int], set[str]] = {}  # that ran a line
        self._optimizers: list[int] = []  # the backward pass (-1: none) that each one runs in
        self.elsewhere: list[str] = []  # names of other threads that modules ran in
        self._thread = threading.get_ident()
        self._zeros: tuple[int, ...] = ()  # what the engine's last operator made, if zeros
        self._room = Room(self._aside) if isinstance(source, CPUAllocator) else None
        self._sole_owner = _counts_of_sole_owner(isinstance(source, SimulatedTensors))

    # --- what exists before -----------------------------------------------------------------

    def existed_before(self, tensors: Iterable[tuple[Tensor, Role]]) -> None:
        """Count the tensors' storages from the start on; the first role given to one stays."""
        for tensor, role in tensors:
            for part in parts(tensor):
                address = self.source.address(part)
                if address not in self._known:
                    self._known.add(address)
                    self.before[address] = (role, part.untyped_storage().nbytes())
                    self._watch(part, address)

    def _found(self, tensor: Tensor, address: int) -> None:
        self._known.add(address)
        if isinstance(self.source, SimulatedTensors) and not isinstance(tensor, FakeTensor):
            return  # a constant on its way to becoming a simulated tensor
        trainable = isinstance(tensor, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad)
        role = Role.PARAMETER if trainable else Role.INPUT
        self._write(Found(role, address, tensor.untyped_storage().nbytes()))
        self._watch(tensor, address)

    def _watch(self, tensor: Tensor, address: int) -> None:
        self.source.watch(tensor, functools.partial(self._write, Freed(address)))

    # --- operators --------------------------------------------------------------------------

    @never_compiled
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace in _NO_WORK:
            if func is _DEVICE and not args[0].fake_mode.in_kernel_invocation:
                return args[0].fake_device  # asked more often than all operators together
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled():  # elsewhere, operators come taken apart by autograd
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        caller = sys._getframe(1)
        by_engine = caller.f_code is _ENGINE  # it computes a gradient
        grad = torch.is_grad_enabled()
        backward_pass = torch._C._current_graph_task_id()  # -1: none
        in_backward = backward_pass != -1
        starts_backward = func is _ONES_LIKE and _called_by_autograd(caller)  # with ones_like(loss)
        kind = _kind(func)

        recomputing = False
        node = torch._C._current_autograd_node() if by_engine and in_backward else None
        if node is not None:
            place = self._places.get(node._sequence_nr(), NOWHERE)
        else:
            line = learners_line(caller)
            module = self._modules[-1] if self._modules else None
            if module is None and in_backward:
                module = self._recomputed_in(line)
            elif module is not None:
                self._modules_at.setdefault(line, set()).add(module)
            place = Place(module, *line)
            work = (func, module) if module is not None else (func, *place)
            if in_backward:  # with its graph, or the same again
                recomputing = grad or work in self._done_in_forward
            else:
                self._done_in_forward.add(work)
            if grad:  # the node that this operator belongs to was numbered just before
                self._places.setdefault(torch.autograd._get_sequence_nr() - 1, place)

        if self._optimizers and self._optimizers[-1] == backward_pass and not grad:
            phase: Phase = "optimizer step"
        else:
            phase = "backward" if in_backward or starts_backward else "forward"

        reads = []
        for tensor in _tensors(args, kwargs):
            address = self.source.address(tensor)
            if address not in self._known:
                self._found(tensor, address)
            reads.append(address)

        if self._room is not None and kind.makes:
            self._room.take(func, args, kwargs)
        operator = Operator(kind.name, phase, recomputing, place, ())
        if not (kind.is_view or starts_backward):  # neither uses the value, only its shape
            operator.reads = tuple(reads)
        if kind.tensors:
            operator.numbers = _numbers(args, kind.tensors)
        self._write(operator)
        try:
            unwatched = self._unwatched(func, args) if by_engine and not grad else func
            result = unwatched(*args, **kwargs)
            operator.made = tuple(self.source.made(t) for t in _tensors((result,), {}))
        finally:
            self._write(END)
        self._known.update(operator.made)
        self._zeros = operator.made if by_engine and func in _ZEROS else ()
        if type(node).__name__ == "AccumulateGrad":
            added = tuple(reads) if func is _ADD_IN_PLACE else ()
            self._write(Given(Role.GRADIENT, operator.made + added))
        if kind.flops is not None:
            self.flops += kind.flops(*args, **kwargs, out_val=result)
        return result

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

    def _unwatched(self, func: Any, args: tuple) -> Any:
        """What autograd calls in place of ``func`` when nobody watches.

        While a dispatch mode is active, it does not dare to change its own intermediate gradients
        in place and takes new memory, so the watched step would need more than the real one.
        """
        if func is _ADD:  # two gradients meet: torch/csrc/autograd/input_buffer.cpp
            first = args[0]
            if isinstance(first, Tensor) and _counts(first) == self._sole_owner and _DENSE(first):
                return _ADD_IN_PLACE
        elif func in _INTO_ZEROS and self.source.address(args[0]) in self._zeros:
            return _INTO_ZEROS[func]  # areAnyTensorSubclassLike in .../autograd/FunctionsManual.cpp
        return func

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        self._write(Aside())
        try:
            yield
        finally:
            self._write(END)

    def _write(self, entry: Entry) -> None:
        self.log.append(entry)
        self.source.mark()

    # --- the step's surroundings ------------------------------------------------------------

    @contextlib.contextmanager
    def listening(self, model: nn.Module | None, optimizer: Optimizer | None) -> Iterator[None]:
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
                self.source.start()
                stack.callback(lambda: self.stream.extend(self.source.stop()))
            with self:
                yield
            self.built_a_graph = torch.autograd._get_sequence_nr() > first_node
            for tensor, role in what_exists(model, optimizer):
                self._give(role, [tensor])
        finally:
            try:
                with _uninterrupted():
                    stack.close()
            finally:
                stack.close()  # if an interrupt came just before: there is nothing left to do else

    def _give(self, role: Role, tensors: Iterable[Tensor | None]) -> None:
        given = [part for tensor in tensors if tensor is not None for part in parts(tensor)]
        if given:
            self._write(Given(role, tuple(self.source.address(part) for part in given)))

    @never_compiled
    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != self._thread:  # the hooks are everybody's
            self.elsewhere.append(threading.current_thread().name)
        else:
            self._modules.append(self._names.get(id(module), type(module).__name__))

    @never_compiled
    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._modules and threading.get_ident() == self._thread:
            self._modules.pop()

    @never_compiled
    def _enter_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._optimizers.append(torch._C._current_graph_task_id())
        self._give(Role.GRADIENT, [p.grad for p in parameters_of(optimizer)])

    @never_compiled
    def _leave_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._optimizers.pop()
        self._give(Role.OPTIMIZER_STATE, state_of(optimizer))


def what_exists(
    model: nn.Module | None, optimizer: Optimizer | None, inputs: Any = ()
) -> list[tuple[Tensor, Role]]:
    """Every tensor that a model, its optimizer and a step's inputs hold, with its role."""
    parameters: list[Tensor] = list(model.parameters()) if model is not None else []
    if optimizer is not None:
        parameters += parameters_of(optimizer)
    found: list[tuple[Tensor, Role]] = [(p, Role.PARAMETER) for p in parameters]
    found += [(p.grad, Role.GRADIENT) for p in parameters if p.grad is not None]
    if model is not None:
        found += [(b, Role.BUFFER) for b in model.buffers()]
    if optimizer is not None:
        found += [(s, Role.OPTIMIZER_STATE) for s in state_of(optimizer)]
    given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    found += [(t, Role.INPUT) for t in given]
    found += [(t.grad, Role.GRADIENT) for t in given if t.is_leaf and t.grad is not None]
    return found


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters in all of an optimizer's groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def state_of(optimizer: Optimizer) -> list[Tensor]:
    """The tensors in an optimizer's state, Adam's moments for example."""
    return [s for s in tree_leaves(list(optimizer.state.values())) if isinstance(s, Tensor)]


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


# --- what autograd does when nobody watches -----------------------------------------------------

_ENGINE = torch.autograd.graph._engine_run_backward.__code__
_AUTOGRAD_FILE = torch.autograd.__file__
_ONES_LIKE = torch.ops.aten.ones_like.default
_ADD = torch.ops.aten.add.Tensor
_DEVICE = torch.ops.prim.device.default
_NO_WORK = ("prim", "profiler")  # ask a simulated tensor for its device, name a stretch of time
_ADD_IN_PLACE = torch.ops.aten.add_.Tensor
_DENSE = torch.ops.aten.is_non_overlapping_and_dense.default
_ZEROS = {
    torch.ops.aten.zeros.default,
    torch.ops.aten.new_zeros.default,
    torch.ops.aten.zeros_like.default,
}
_INTO_ZEROS = {  # the gradient of taking parts out: put the parts back into zeros
    torch.ops.aten.index_put.default: torch.ops.aten.index_put_.default,
    torch.ops.aten.index_add.default: torch.ops.aten.index_add_.default,
    torch.ops.aten.scatter.src: torch.ops.aten.scatter_.src,
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
    torch.ops.aten.masked_scatter.default: torch.ops.aten.masked_scatter_.default,
    torch.ops.aten.put.default: torch.ops.aten.put_.default,
}


def _called_by_autograd(frame: Any) -> bool:
    while frame.f_code.co_name == "__torch_function__":  # of a mode, such as torch.device
        frame = frame.f_back
    return frame.f_code.co_filename == _AUTOGRAD_FILE


def _counts(tensor: Tensor) -> tuple[int, int]:
    if tensor.layout is not torch.strided:
        return -1, -1
    tensors = tensor._use_count()  # type: ignore[attr-defined]
    return tensors, torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


@functools.cache
def _counts_of_sole_owner(simulated: bool) -> tuple[int, int]:
    """The reference counts that a dispatch mode sees on a gradient only the engine holds.

    Found by trying, since the mode itself holds some: two gradients meet at ``y`` below.
    """
    seen: list[tuple[int, int]] = []

    class Look(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is _ADD and sys._getframe(1).f_code is _ENGINE:
                seen.append(_counts(args[0]))
            return func(*args, **(kwargs or {}))

    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.enable_grad(), FakeTensorMode() if simulated else contextlib.nullcontext():
        x = torch.ones(2, requires_grad=True)
        with Look():
            y = x * 2
            torch.autograd.grad((y.sin() * y.cos()).sum(), x)
    return seen[0]


# --- facts about operators and lines ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    is_view: bool
    makes: bool  # results that are not its arguments
    tensors: tuple[int, ...]  # which arguments are single tensors, if several
    flops: Callable[..., int] | None


@functools.cache
def _kind(func: Any) -> _Kind:
    aliases = [returned.alias_info for returned in func._schema.returns]
    is_view = bool(aliases) and all(alias and not alias.is_write for alias in aliases)
    makes = not all(aliases)
    tensors = tuple(
        i for i, argument in enumerate(func._schema.arguments)
        if isinstance(argument.type, torch.TensorType)
    )  # fmt: skip
    if len(tensors) < 2:  # then it is a tensor for certain
        tensors = ()
    flops = flop_registry.get(func._overloadpacket)
    return _Kind(str(func._overloadpacket), is_view, makes, tensors, flops)


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
        return [part for name in names for part in parts(getattr(tensor, name))]
    return [] if is_lazy(tensor) else [tensor]


_NOT_THE_LEARNERS = (
    str(Path(torch.__file__).parent),
    contextlib.__file__,
    __file__,
    str(Path(__file__).with_name("memory.py")),
    str(Path(__file__).with_name("saved.py")),
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
