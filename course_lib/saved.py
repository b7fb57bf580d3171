"""What autograd keeps for the backward pass: by module, operator and source line.

``saved_tensors(function, *inputs)`` runs the forward pass once and lists each storage that is
kept, once. It never asks a graph for its saved values, so nothing is recomputed, and inside a
checkpointed model it shows what is really kept.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .language import Table
from .memory.operators import parts, watched
from .memory.reach import behind, names_of_modules, nodes_behind, tensors
from .memory.roles import of_saved
from .memory.source_lines import NOWHERE, Place, learners_line
from .memory.surroundings import never_compiled
from .memory.trace import Role
from .memory.unwatched import as_list


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """One storage that autograd keeps.

    ``size``: bytes of the whole storage. ``shape``, ``dtype``: of the tensor first saved from it.
    ``role``: parameter, buffer, input (also one that the function holds on to), checkpoint or
    activation. ``operator``: that saved it, such as ``aten.addmm``, or the name of a
    ``torch.autograd.Function``; ``checkpoint`` for what ``torch.utils.checkpoint`` keeps.
    ``module``, ``line``: where in the learner's code.
    """

    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    role: Role
    operator: str
    module: str | None
    line: str | None
    is_output: bool = False  # whether the function returned it, or a view of it


@dataclass(frozen=True)
class SavedTensors:
    """Everything that one forward pass keeps, in the order in which it was saved."""

    tensors: tuple[SavedTensor, ...]

    @property
    def total(self) -> int:
        """Bytes kept, parameters and buffers left out: they exist anyway."""
        return sum(saved.size for saved in self if saved.role not in _THE_MODELS)

    def by_role(self) -> dict[Role, int]:
        """Bytes of each role that occurs."""
        sums: dict[Role, int] = {}
        for saved in self:
            sums[saved.role] = sums.get(saved.role, 0) + saved.size
        return sums

    def __iter__(self) -> Iterator[SavedTensor]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def table(self) -> Table:
        """The list as a table, parameters and buffers left out."""
        return Table(
            [
                ("字节", "bytes"),
                ("形状", "shape"),
                ("类型", "dtype"),
                ("用途", "role"),
                ("模块", "module"),
                ("算子", "operator"),
                ("代码行", "line"),
            ],
            [
                (
                    f"{saved.size:,}",
                    list(saved.shape),
                    str(saved.dtype).removeprefix("torch."),
                    saved.role.names,
                    saved.module or "—",
                    saved.operator,
                    saved.line or "—",
                )
                for saved in self
                if saved.role not in _THE_MODELS
            ],
        )

    def summary(self) -> tuple[str, str]:
        """In a few words (zh, en): input, output or another value, each with its shape."""
        words = []
        for saved in self:
            if saved.role in _THE_MODELS:
                continue
            name = ("其他值", "another value")
            if saved.is_output:
                name = ("输出", "output")
            if saved.role is Role.INPUT:
                name = ("输入", "input")
            words.append([f"{part} {list(saved.shape)}" for part in name])
        if not words:
            return "什么也不存", "nothing"
        return "、".join(zh for zh, _ in words), ", ".join(en for _, en in words)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return self.table()._repr_mimebundle_()


_THE_MODELS = (Role.PARAMETER, Role.BUFFER)


def saved_tensors(function: Callable[..., Any], *inputs: Any, **keywords: Any) -> SavedTensors:
    """Run ``function(*inputs, **keywords)`` and list what autograd keeps when it has returned.

    ``function``: a module, or any function. The result is dropped, and with it all that was kept.
    What a ``torch.autograd.Function`` stores in its context by hand is listed too. Not listed are
    the 8 bytes that stand for a Python number, as in ``x * 0.5``.
    Raises ``TypeError`` if ``function`` cannot be called.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, not {type(function).__name__}")
    watch = _Watch(function)
    watch.call(Role.INPUT, tensors((inputs, keywords)))
    with watch:
        result = function(*inputs, **keywords)
    results = tensors(result)
    found = watch.kept(results)
    del result, results
    return SavedTensors(found)


class _Packed:
    """Holds a saved tensor for autograd; its death tells that autograd dropped the tensor."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


@dataclass(slots=True)
class _Saving:
    """One saving of one tensor, while the forward pass runs."""

    packed: weakref.ref[_Packed]
    node: int
    place: Place
    function: str | None  # name of the torch.autograd.Function that saved it


class _Watch(TorchDispatchMode):
    """Sees every saving through saved-tensor hooks, every operator as a dispatch mode."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see Recorder

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # see Recorder

    supports_higher_order_operators = True

    def __init__(self, function: Any):
        super().__init__()
        self.roles: dict[int, Role] = {}  # of storages that exist anyway
        for held in behind(function).values():
            if isinstance(held, nn.Module):
                self.call(Role.PARAMETER, held.parameters())
                self.call(Role.BUFFER, held.buffers())
            elif isinstance(held, Tensor):
                self.call(Role.PARAMETER if isinstance(held, nn.Parameter) else Role.INPUT, [held])
        self._names = names_of_modules(function)
        self._modules: list[str] = []
        self._savings: list[_Saving] = []
        self._operators: dict[int, str] = {}  # autograd node's number -> operator
        self._within: dict[int, tuple[str, Place]] = {}  # of nodes whose forward is one's own
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            self._pack, lambda packed: packed.tensor
        )
        self._unwatched = _AsUnwatched()

    def call(self, role: Role, those: Iterable[Tensor]) -> None:
        """Give the storages of tensors that exist a role; the first one given stays."""
        for tensor in those:
            for storage in _storages(tensor):
                self.roles.setdefault(storage, role)

    def __enter__(self) -> _Watch:
        self._handles = (
            module_hooks.register_module_forward_pre_hook(self._enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
        )
        self._hooks.__enter__()
        self._unwatched.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._unwatched.__exit__(*exception)
        self._hooks.__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    @never_compiled
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):  # its branches are functions: look into them
            return func(*(watched(value, self._again) for value in args), **kwargs)
        node = torch.autograd._get_sequence_nr() - 1
        if torch.is_grad_enabled():
            self._operators.setdefault(node, str(func._overloadpacket))
        elif node not in self._within:
            place = Place(self._module(), *learners_line(sys._getframe(1)))
            self._within[node] = str(func._overloadpacket), place
        for argument in args:
            if isinstance(argument, nn.Parameter):
                self.roles.update(dict.fromkeys(_storages(argument), Role.PARAMETER))
        return func(*args, **kwargs)

    @contextlib.contextmanager
    def _again(self) -> Iterator[None]:
        TorchDispatchMode.__enter__(self)
        try:
            yield
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)

    def _module(self) -> str | None:
        return self._modules[-1] if self._modules else None

    @never_compiled
    def _pack(self, tensor: Tensor) -> _Packed:
        packed = _Packed(tensor)
        caller = sys._getframe(1)
        place = Place(self._module(), *learners_line(caller))
        node = torch.autograd._get_sequence_nr() - 1
        self._savings.append(_Saving(weakref.ref(packed), node, place, _function_name(caller)))
        return packed

    @never_compiled
    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        if id(module) not in self._names:  # made, or found, by the function only now
            for name, part in module.named_modules(prefix=type(module).__name__):
                self._names.setdefault(id(part), name)
        self._modules.append(self._names[id(module)])

    @never_compiled
    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._modules:
            self._modules.pop()

    def kept(self, results: list[Tensor]) -> tuple[SavedTensor, ...]:
        """What is still held, each storage once."""
        outputs = {storage for result in results for storage in _storages(result)}
        simulated = any(isinstance(part, FakeTensor) for r in results for part in parts(r))
        seen: set[int] = set()
        found = []
        for tensor, operator, place in (*self._saved(), *self._stored_by_hand(results)):
            role = of_saved(operator)
            for part in parts(tensor):
                storage = _storage(part)
                if storage in seen or (isinstance(part, FakeTensor) and not simulated):
                    continue  # a compiler keeps what it traced the function with
                seen.add(storage)
                found.append(
                    SavedTensor(
                        part.untyped_storage().nbytes(),
                        _shape(part),
                        part.dtype,
                        self.roles.get(storage, role),
                        operator,
                        place.module,
                        place.describe(),
                        storage in outputs,
                    )
                )
        return tuple(found)

    def _saved(self) -> Iterator[tuple[Tensor, str, Place]]:
        for saving in self._savings:
            if (packed := saving.packed()) is not None:
                operator = saving.function or self._operators.get(saving.node, "autograd")
                yield packed.tensor, operator, saving.place

    def _stored_by_hand(self, results: list[Tensor]) -> Iterator[tuple[Tensor, str, Place]]:
        """Tensors that own functions keep as attributes of their context, which no hook sees."""
        for node in nodes_behind([result.grad_fn for result in results]):
            own = getattr(node, "_forward_cls", None)  # an own function's class, else None
            if own is None or own is torch.utils.checkpoint.CheckpointFunction:
                continue  # that keeps its random state, which no other checkpoint shows either
            named = node.name().removesuffix("Backward")
            operator, place = self._within.get(node._sequence_nr(), (named, NOWHERE))
            for tensor in tensors(vars(node)):
                yield tensor, operator if named.startswith("Generated") else named, place


class _AsUnwatched(TorchFunctionMode):
    """Undoes what PyTorch does in another way because a dispatch mode watches.

    ``ctc_loss`` reads its lengths into a list, unless anything watches: then it saves the tensors
    (``areAnyTensorSubclassLike`` in aten/src/ATen/native/LossCTC.cpp).
    """

    @never_compiled
    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (functional.ctc_loss, torch.ctc_loss):
            args = (*args[:2], *map(as_list, args[2:4]), *args[4:])
            lengths = {k: as_list(v) for k, v in kwargs.items() if k.endswith("_lengths")}
            kwargs = kwargs | lengths
        return func(*args, **kwargs)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Sequences nested in one block of memory have no shape in common: that of the block."""
    return (tensor.numel(),) if tensor.is_nested else tuple(tensor.shape)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _storages(tensor: Tensor) -> list[int]:
    return [_storage(part) for part in parts(tensor)]


_CHECKPOINT_FILE = torch.utils.checkpoint.__file__


def _function_name(frame: Any) -> str | None:
    """``checkpoint``, or the ``torch.autograd.Function``, if one of them is what saves."""
    if frame is None:
        return None
    if frame.f_code.co_filename == _CHECKPOINT_FILE:
        return "checkpoint"
    owner = frame.f_locals.get("cls") if frame.f_code.co_name == "apply" else None
    if owner is torch.utils.checkpoint.CheckpointFunction:
        return "checkpoint"
    return getattr(owner, "__name__", None)
