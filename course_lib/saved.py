"""What autograd keeps for the backward pass: by module, operator and source line.

``saved_tensors(function, *inputs)`` runs the forward pass once and lists each storage that is
kept, once. It never asks a graph for its saved values, so nothing is recomputed, and inside a
checkpointed model it shows what is really kept.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .language import Table
from .recorder import Place, Role, learners_line, never_compiled


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """One storage that autograd keeps.

    ``size``: bytes of the whole storage. ``shape``, ``dtype``: of the tensor first saved from it.
    ``role``: parameter, input, checkpoint or activation. ``operator``: that saved it, such as
    ``aten.addmm``, or the name of a ``torch.autograd.Function``; ``checkpoint`` for what
    ``torch.utils.checkpoint`` keeps. ``module``, ``line``: where in the learner's code.
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
        """Bytes kept, parameters left out: they exist anyway."""
        return sum(saved.size for saved in self if saved.role is not Role.PARAMETER)

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
        """The list as a table, parameters left out."""
        return Table(
            [("字节", "bytes"), ("形状", "shape"), ("类型", "dtype"), ("用途", "role"),
             ("模块", "module"), ("算子", "operator"), ("代码行", "line")],
            [
                (f"{saved.size:,}", list(saved.shape), str(saved.dtype).removeprefix("torch."),
                 saved.role.names, saved.module or "—", saved.operator, saved.line or "—")
                for saved in self if saved.role is not Role.PARAMETER
            ],
        )  # fmt: skip

    def summary(self) -> tuple[str, str]:
        """In a few words (zh, en): input, output or another value, each with its shape."""
        words = []
        for saved in self:
            if saved.role is Role.PARAMETER:
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


def saved_tensors(function: Callable[..., Any], *inputs: Any) -> SavedTensors:
    """Run ``function(*inputs)`` and list what autograd keeps when it has returned.

    ``function``: a module, or any function. The result is dropped, and with it all that was kept.
    Raises ``TypeError`` if ``function`` cannot be called.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, not {type(function).__name__}")
    watch = _Watch(getattr(function, "__self__", function))
    watch.roles |= {
        _storage(leaf): Role.INPUT for leaf in tree_leaves(inputs) if torch.is_tensor(leaf)
    }
    with watch:
        result = function(*inputs)
    outputs = {_storage(leaf) for leaf in tree_leaves(result) if torch.is_tensor(leaf)}
    found = watch.kept(outputs)
    del result
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

    def __init__(self, owner: Any):
        super().__init__()
        self.roles: dict[int, Role] = {}  # of storages that exist anyway
        modules = owner.named_modules() if isinstance(owner, nn.Module) else ()
        self._names = {id(module): name for name, module in modules}
        self._modules: list[str] = []
        self._savings: list[_Saving] = []
        self._operators: dict[int, str] = {}  # autograd node's number -> operator
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            self._pack, lambda packed: packed.tensor
        )

    def __enter__(self) -> _Watch:
        self._handles = (
            module_hooks.register_module_forward_pre_hook(self._enter_module),
            module_hooks.register_module_forward_hook(self._leave_module, always_call=True),
        )
        self._hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._hooks.__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    @never_compiled
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if torch.is_grad_enabled():
            node = torch.autograd._get_sequence_nr() - 1
            self._operators.setdefault(node, str(func._overloadpacket))
        for argument in args:
            if isinstance(argument, nn.Parameter):
                self.roles[_storage(argument)] = Role.PARAMETER
        return func(*args, **(kwargs or {}))

    @never_compiled
    def _pack(self, tensor: Tensor) -> _Packed:
        packed = _Packed(tensor)
        caller = sys._getframe(1)
        place = Place(self._modules[-1] if self._modules else None, *learners_line(caller))
        node = torch.autograd._get_sequence_nr() - 1
        self._savings.append(_Saving(weakref.ref(packed), node, place, _function_name(caller)))
        return packed

    @never_compiled
    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        self._modules.append(self._names.get(id(module), type(module).__name__))

    @never_compiled
    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._modules:
            self._modules.pop()

    def kept(self, outputs: set[int]) -> tuple[SavedTensor, ...]:
        """What is still held, each storage once."""
        seen: set[int] = set()
        found = []
        for saving in self._savings:
            packed = saving.packed()
            if packed is None or (storage := _storage(packed.tensor)) in seen:
                continue
            seen.add(storage)
            tensor = packed.tensor
            operator = saving.function or self._operators.get(saving.node, "autograd")
            role = Role.CHECKPOINT if operator == "checkpoint" else Role.ACTIVATION
            found.append(
                SavedTensor(
                    tensor.untyped_storage().nbytes(), tuple(tensor.shape), tensor.dtype,
                    self.roles.get(storage, role), operator, saving.place.module,
                    saving.place.describe(), storage in outputs,
                )
            )  # fmt: skip
        return tuple(found)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


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
