"""The two sides of a comparison: which module each uses, and its parts by the same names.

Wrappers around a module or around its parts are seen through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..language import text
from ..memory.reach import tensors
from .agreement import UnequalWork


def all_cloned(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    return [(name, gathered(tensor).detach().clone()) for name, tensor in named]


def values_of(side: Side) -> dict[str, Tensor]:
    return dict(all_cloned([*side.parameters(), *side.buffers()]))


def load_values(side: Side, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, mine in [*side.parameters(), *side.buffers()]:
            _put(mine, values[name])


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all devices; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _put(mine: Tensor, value: Tensor) -> None:
    if hasattr(mine, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(mine, DTensor)
        value = distribute_tensor(value, mine.device_mesh, mine.placements)
    mine.copy_(value)


def sides_of(model: Any, plain: Any, checkpointed: Any) -> tuple[nn.Module, nn.Module]:
    if model is None:
        modules = [side for side in (plain, checkpointed) if isinstance(side, nn.Module)]
        if not modules:
            return nn.Module(), nn.Module()  # functions of their inputs alone; checked later
        if len(modules) == 1:
            return modules[0], modules[0]
        return modules[0], modules[1]
    pair = model if isinstance(model, tuple) else (model, model)
    if len(pair) != 2 or not all(isinstance(side, nn.Module) for side in pair):
        raise TypeError(
            text(
                zh=f"model 是一个 nn.Module 或两个组成的元组，不能是 {type(model).__name__}。"
                "几个层可以放进 nn.ModuleList。",
                en=f"model must be one nn.Module or a tuple of two, not {type(model).__name__}. "
                "Several layers can go into an nn.ModuleList.",
            )
        )
    return pair


@dataclass(frozen=True)
class Side:
    """A model, its tensors and modules under names that both sides share."""

    model: nn.Module
    rename: Mapping[str, str] = field(default_factory=dict)

    def _named(self, named: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return [(self.rename.get(name, name), value) for name, value in _seen_through(named)]

    def parameters(self) -> list[tuple[str, Tensor]]:
        return self._named(self.model.named_parameters())

    def buffers(self) -> list[tuple[str, Tensor]]:
        return self._named(self.model.named_buffers())

    def modules(self) -> list[tuple[str, nn.Module]]:
        return self._named(self.model.named_modules())

    def flags(self) -> dict[str, bool]:
        return {name: module.training for name, module in self.modules()}

    def described(self) -> dict[str, tuple]:
        values = [*self.parameters(), *self.buffers()]
        return {name: (tuple(v.shape), v.dtype, v.requires_grad) for name, v in values}


_INSIDE_A_WRAPPER = (  # attributes under which wrappers hold what they wrap
    "_checkpoint_wrapped_module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_forward_module",
)


_WRAPPERS = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "AveragedModel"}


def matched_sides(left: nn.Module, right: nn.Module) -> tuple[Side, Side]:
    """Both sides, seen through their outermost wrappers until the names agree.

    Where they never do, wrappers may sit further inside: then without the steps that lead to an
    only child. The names are the plain side's.
    """
    pairs = [(Side(a), Side(b)) for a in _layers(left) for b in _layers(right)]
    for plain, other in pairs:
        if plain.described() == other.described():
            return plain, other
    for plain, other in pairs:
        back = {path: name for name, path in _shortened(plain.model).items()}
        names = _shortened(other.model).items()
        renamed = Side(other.model, {name: back.get(path, name) for name, path in names})
        if renamed.described() == plain.described():
            return plain, renamed
    return Side([*_layers(left, known=True)][-1]), Side([*_layers(right, known=True)][-1])


def _layers(model: nn.Module, known: bool = False) -> Iterator[nn.Module]:
    """A module, what it wraps, what that wraps … ``known``: PyTorch's own wrappers only."""
    while True:
        yield model
        children = list(model.children())
        own = any(True for _ in model.parameters(recurse=False))
        own |= any(True for _ in model.buffers(recurse=False))
        wrapper = type(model).__name__ in _WRAPPERS
        if len(children) != 1 or (not wrapper and (own or known)):
            return
        model = children[0]


def _seen_through(named: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Names without what PyTorch's wrappers put in between."""
    return [
        (".".join(part for part in name.split(".") if part not in _INSIDE_A_WRAPPER), value)
        for name, value in named
    ]


def _shortened(model: nn.Module) -> dict[str, str]:
    """Each name of a parameter, buffer or module → the same without steps to an only child."""
    short: dict[str, str] = {}

    def visit(module: nn.Module, path: str, shorter: str) -> None:
        own = [*module._parameters, *module._buffers]
        short[path] = shorter
        children = list(module.named_children())
        for name in own:
            short[f"{path}.{name}" if path else name] = f"{shorter}.{name}" if shorter else name
        for name, child in children:
            alone = len(children) == 1 and not own
            below = shorter if alone else f"{shorter}.{name}" if shorter else name
            visit(child, f"{path}.{name}" if path else name, below)

    visit(model, "", "")
    return {new: path for (new, path) in _seen_through(short.items())}


def check_values_exist(model: nn.Module, inputs: Any) -> None:
    for value in [*model.parameters(), *model.buffers(), *tensors(inputs)]:
        if isinstance(value, FakeTensor):
            raise TypeError(
                text(
                    zh="模拟张量只有形状，没有数值，梯度无从比较。请在真实的小模型上运行。",
                    en="Simulated tensors have shapes but no values, so gradients cannot be "
                    "compared. Use a small real model.",
                )
            )


def check_alike(left: Side, right: Side) -> None:
    described = left.described(), right.described()
    if described[0] == described[1]:
        return
    for name in [*described[0], *described[1]]:
        mine, other = described[0].get(name), described[1].get(name)
        if mine != other:
            raise UnequalWork(
                text(
                    zh=f"两边不是同一个模型：{name} 在普通的一边是{_described(mine, '没有的')}，"
                    f"在有检查点的一边是{_described(other, '没有的')}。",
                    en=f"The two sides are not the same model: {name} is "
                    f"{_described(mine, 'missing').strip()} on the plain side and "
                    f"{_described(other, 'missing').strip()} on the checkpointed one.",
                )
            )


def _described(value: tuple | None, missing: str) -> str:
    if value is None:
        return missing
    shape, dtype, trainable = value
    return f" {list(shape)} {dtype}, requires_grad={trainable}"
