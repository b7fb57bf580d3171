"""Put blocks of a model into checkpoints and take them out again; plain PyTorch, no Lightning.

A block is wrapped in PyTorch's own ``CheckpointWrapper``, which hides itself from ``state_dict``:
files saved with and without checkpoints hold the same keys.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    ActivationWrapper,
    CheckpointImpl,
    CheckpointWrapper,
)
from torch.nn.modules.batchnorm import _BatchNorm

from .language import Bilingual, text

Blocks = str | type | Sequence[str | type] | Callable[[nn.Module], bool]


class CheckpointedBlock(CheckpointWrapper):
    """The wrapper that this module puts on, so that it can tell its own from others'.

    Non-reentrant, and random states are kept, so that dropout repeats itself.
    """

    def __init__(self, block: nn.Module):
        super().__init__(block, CheckpointImpl.NO_REENTRANT)
        self.train(block.training)


@dataclass(frozen=True)
class Wrapped:
    """What :func:`checkpoint_blocks` did: paths of the wrapped blocks, and of all it found."""

    paths: tuple[str, ...]
    found: tuple[str, ...]
    every: int
    doubts: tuple[tuple[str, str], ...] = ()

    @property
    def zh(self) -> str:
        """In Chinese."""
        return f"{len(self.found)} 个块中有 {len(self.paths)} 个设了检查点：{'、'.join(self.paths)}"

    @property
    def en(self) -> str:
        """In English."""
        return (
            f"{len(self.paths)} of {len(self.found)} blocks are checkpointed: "
            f"{', '.join(self.paths)}"
        )

    def __str__(self) -> str:
        return text(zh=self.zh, en=self.en, between="\n")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return Bilingual(zh=self.zh, en=self.en)._repr_mimebundle_()


def checkpoint_blocks(model: nn.Module, blocks: Blocks, every: int = 1) -> Wrapped:
    """Checkpoint every ``every``-th of ``model``'s blocks: number ``every``, twice that, and so on.

    ``blocks``: a class; the name of one, as ``"Block"``; paths, in which ``*`` stands for anything
    but a dot, as ``"model.blocks.*"``; several of these; or a function that takes a module and
    says whether it is one. Of blocks inside blocks, only the outermost count; a block that occurs
    in several places is one. Called again, it starts from the plain model.

    Raises ``ValueError`` if nothing matches, if what matches cannot be called, or if ``every`` is
    not between 1 and the number of blocks. ``doubts`` of the result says, in (zh, en), what will
    not help or go wrong.
    """
    plain_blocks(model)
    others = [path for path, m in model.named_modules() if isinstance(m, ActivationWrapper)]
    found = list(_outermost(model, _matcher(blocks)))
    if not found:
        raise ValueError(_nothing_matches(model, blocks))
    if uncallable := [path for path, block in found if _cannot_be_called(block)]:
        raise ValueError(
            text(
                zh=f"{uncallable[0]} 只是模块的容器，没有 forward，不能设检查点。"
                f"要的是里面的块：{uncallable[0]}.*",
                en=f"{uncallable[0]} only holds modules and has no forward: it cannot be "
                f"checkpointed. Name the blocks inside it: {uncallable[0]}.*",
            )
        )
    if not isinstance(every, int) or isinstance(every, bool) or not 1 <= every <= len(found):
        raise ValueError(
            text(
                zh=f"every 必须在 1 和块的个数 {len(found)} 之间，现在是 {every!r}。",
                en=f"every must be between 1 and {len(found)}, the number of blocks, "
                f"not {every!r}.",
            )
        )
    chosen = found[every - 1 :: every]
    free = [(path, block) for path, block in chosen if not _wrapped_already(path, block, others)]
    doubts = tuple(_doubts(model, chosen, free))
    for _, block in free:
        _replace(model, block, CheckpointedBlock(block))
    return Wrapped(tuple(path for path, _ in free), tuple(path for path, _ in found), every, doubts)


def plain_blocks(model: nn.Module) -> int:
    """Take off what :func:`checkpoint_blocks` put on, others' wrappers not; how many there were."""
    wrappers = [m for m in model.modules() if isinstance(m, CheckpointedBlock)]
    for wrapper in wrappers:
        _replace(model, wrapper, wrapper._checkpoint_wrapped_module)
    return len(wrappers)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered."""
    for parent in list(model.modules()):
        if parent is not new:
            for name, child in parent._modules.items():
                if child is old:
                    parent._modules[name] = new


def _outermost(
    model: nn.Module, matches: Callable[[str, nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    inside = None
    for path, module in model.named_modules():
        if not path or (inside is not None and path.startswith(inside)):
            continue
        inside = None
        if matches(path, module) and id(module) not in seen:
            seen.add(id(module))
            inside = path + "."
            yield path, module


def _matcher(blocks: Blocks) -> Callable[[str, nn.Module], bool]:
    if isinstance(blocks, (str, type)):
        blocks = (blocks,)
    if callable(blocks):
        wanted = blocks
        return lambda path, module: bool(wanted(module))
    given = blocks if isinstance(blocks, Sequence) else ()
    classes = tuple(part for part in given if isinstance(part, type))
    words = [part for part in given if isinstance(part, str)]
    if len(classes) + len(words) != len(given) or not given:
        raise TypeError(
            text(
                zh=f"blocks 要类、类名、路径，或判断一个模块的函数，现在是 {blocks!r}。",
                en="blocks must be classes, names of classes, paths, or a function that judges a "
                f"module, not {blocks!r}.",
            )
        )

    def matches(path: str, module: nn.Module) -> bool:
        names = {kind.__name__ for kind in type(module).__mro__[:-2]}  # up to nn.Module
        return isinstance(module, classes) or any(
            word in names or _is_at(path, word) for word in words
        )

    return matches


def _is_at(path: str, pattern: str) -> bool:
    steps, wanted = path.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(map(fnmatch.fnmatchcase, steps, wanted))


def _cannot_be_called(module: nn.Module) -> bool:
    return type(module).forward is nn.Module.forward


def _wrapped_already(path: str, block: nn.Module, others: list[str]) -> bool:
    """It is inside another's wrapper, or is one."""
    return isinstance(block, ActivationWrapper) or any(
        path.startswith(other + ".") for other in others
    )


def _nothing_matches(model: nn.Module, blocks: Blocks) -> str:
    kinds = Counter(type(module).__name__ for module in model.modules() if module is not model)
    there = ", ".join(f"{kind} × {count}" for kind, count in kinds.most_common(8))
    wanted = _named(blocks)
    return text(
        zh=f"模型里没有与 {wanted} 相符的模块。它有：{there}。",
        en=f"No module of the model matches {wanted}. It has: {there}.",
    )


def _named(blocks: Blocks) -> str:
    if isinstance(blocks, str):
        return repr(blocks)
    if isinstance(blocks, Sequence):
        return ", ".join(map(_named, blocks))
    return getattr(blocks, "__name__", repr(blocks))


# --- where it will not help ---------------------------------------------------------------------


def _doubts(
    model: nn.Module, chosen: list[tuple[str, nn.Module]], free: list[tuple[str, nn.Module]]
) -> Iterator[tuple[str, str]]:
    if taken := [path for path, block in chosen if (path, block) not in free]:
        yield (
            f"{taken[0]} 已经由别的包装设了检查点，不再套一层（共 {len(taken)} 处）。",
            f"{taken[0]} is checkpointed by another wrapper already, so it gets no second one "
            f"({len(taken)} in all).",
        )
    if reentrant := _reentrant(model):
        yield (
            f"{reentrant} 用的是可重入的旧实现（use_reentrant=True）：输入不需要梯度时，"
            "块的参数会没有梯度。",
            f"{reentrant} uses the reentrant implementation: where its input needs no gradient, "
            "its parameters get none.",
        )
    if busy := [path for path, module in model.named_modules() if _checkpoints_itself(module)]:
        yield (
            f"{busy[0]} 的 gradient_checkpointing 已经打开：模型自己就会重算，两者只留一个。",
            f"{busy[0]}.gradient_checkpointing is on already: the model recomputes by itself. "
            "Keep one of the two.",
        )
    if single := [path for path, block in free if _is_one_operator(block)]:
        yield (
            f"{single[0]} 只是一个算子：检查点要存它的输入，它本来存的也多不了多少，"
            "几乎省不下内存。",
            f"{single[0]} is a single operator: a checkpoint keeps its input, and without one it "
            "keeps hardly more. Next to nothing is saved.",
        )
    total = sum(parameter.numel() for parameter in model.parameters())
    if len(free) == 1 and total and _size(free[0][1]) > total / 2 and _holds_blocks(free[0][1]):
        yield (
            f"{free[0][0]} 占了全部参数的 {_size(free[0][1]) / total:.0%}，却只有一个检查点："
            "反向传播时里面的一切会一起重算出来，除非后面还有大东西，否则峰值几乎不降。"
            "请给里面的块分别设检查点。",
            f"{free[0][0]} holds {_size(free[0][1]) / total:.0%} of all parameters in one "
            "checkpoint: the backward pass would recompute all of it at once, and unless "
            "something large comes after it, the peak would hardly fall. Checkpoint the blocks "
            "inside it.",
        )
    counting = [
        f"{path}.{name}".rstrip(".") for path, block in free for name, m in block.named_modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats
    ]  # fmt: skip
    if counting:
        yield (
            f"{counting[0]} 是 BatchNorm：重算会把它的统计量每步更新两次（梯度不受影响）。",
            f"{counting[0]} is a BatchNorm: recomputing updates its statistics twice per step "
            "(gradients stay right).",
        )


def _reentrant(model: nn.Module) -> str | None:
    for path, module in model.named_modules():
        if getattr(module, "checkpoint_impl", None) is CheckpointImpl.REENTRANT:
            return path
    return None


def _checkpoints_itself(module: nn.Module) -> bool:
    """As the models of Transformers do."""
    return getattr(module, "gradient_checkpointing", False) is True and hasattr(
        module, "_gradient_checkpointing_func"
    )


def _is_one_operator(block: nn.Module) -> bool:
    from_torch = type(block).__module__.startswith("torch.nn.")
    several = isinstance(block, (nn.RNNBase, nn.RMSNorm))  # the latter keeps its product, too
    return from_torch and not list(block.children()) and not several


def _holds_blocks(block: nn.Module) -> bool:
    """It is made of several parts that have parts themselves."""
    return sum(bool(list(child.children())) for child in block.modules() if child is not block) > 2


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
