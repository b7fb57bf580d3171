"""Where checkpoints will not help or do harm, and what is said about it, in both languages.

What others have checkpointed already, caches of keys and values, state that moves twice.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.distributed._composable.contract import _get_registry
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    ActivationWrapper,
    CheckpointImpl,
)
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.utils.checkpoint import checkpoint

from .state import (
    Snapshot,
    Tried,
    tried,
    tried_on_copies,
    unchanged,
    worth_trying,
    written_in_source,
)

Doubt = tuple[str, str]  # zh, en


def expected(
    model: nn.Module, chosen: list[tuple[str, nn.Module]], free: list[tuple[str, nn.Module]]
) -> Iterator[Doubt]:
    """What can be said before anything has run. ``chosen``: the blocks; ``free``: to be wrapped."""
    if taken := [
        path
        for path, block in chosen
        if (path, block) not in free and not _checkpoints_itself(block)
    ]:
        yield (
            f"{taken[0]} 已经由别的包装加了检查点，不再套一层（共 {len(taken)} 处）。",
            f"{taken[0]} is checkpointed by another wrapper already, so it gets no second one "
            f"({len(taken)} in all).",
        )
    if reentrant := _reentrant(model):
        yield (
            f"{reentrant} 用的是重入实现（use_reentrant=True），输入不需要梯度时，"
            "块的参数会没有梯度。",
            f"{reentrant} uses the reentrant implementation: where its input needs no gradient, "
            "its parameters get none.",
        )
    if busy := [path for path, module in model.named_modules() if _checkpoints_itself(module)]:
        switch = f"{busy[0]}.{_switch_of(model.get_submodule(busy[0]))}".lstrip(".")
        yield (
            f"{switch} 已经打开：模型自己就会重算，两者只留一个。",
            f"{switch} is on already: the model recomputes by itself. Keep one of the two.",
        )
    if calling := [path for path, module in _around(model, free) if _calls_its_own(module)]:
        yield (
            f"{calling[0] or type(model).__name__} 的 forward 里自己调用了 checkpoint："
            "里面的会重算两次，两者只留一个。",
            f"{calling[0] or type(model).__name__} calls checkpoint in its own forward: what is "
            "inside is recomputed twice. Keep one of the two.",
        )
    if single := [path for path, block in free if is_one_operator(block)]:
        yield (
            f"{single[0]} 只是一个算子：检查点要存它的输入，它本来存的也多不了多少，"
            "几乎省不下内存。",
            f"{single[0]} is a single operator: a checkpoint keeps its input, and without one it "
            "keeps hardly more. Next to nothing is saved.",
        )
    total = _size(model)
    if len(free) == 1 and total and _size(free[0][1]) > total / 2 and _holds_blocks(free[0][1]):
        yield (
            f"{free[0][0]} 占了全部参数的 {_size(free[0][1]) / total:.0%}，却只有一个检查点："
            "反向传播时里面的一切会一起重算出来，除非后面还有很占内存的部分，否则峰值几乎不降。"
            "请给里面的块分别加检查点。",
            f"{free[0][0]} holds {_size(free[0][1]) / total:.0%} of all parameters in one "
            "checkpoint: the backward pass would recompute all of it at once, and unless "
            "something large comes after it, the peak would hardly fall. Checkpoint the blocks "
            "inside it.",
        )
    for kind, zh, en in (
        (_BatchNorm, "BatchNorm", "a BatchNorm"),
        (_InstanceNorm, "InstanceNorm", "an InstanceNorm"),
    ):
        counting = [
            f"{path}.{name}".rstrip(".")
            for path, block in free
            for name, m in block.named_modules()
            if isinstance(m, kind) and m.track_running_stats
        ]
        if counting:
            yield (
                f"{counting[0]} 是 {zh}：重算会把它的统计量每步更新两次（梯度不受影响）。",
                f"{counting[0]} is {en}: recomputing updates its statistics twice per step "
                "(gradients stay right).",
            )


def _reentrant(model: nn.Module) -> str | None:
    for path, module in model.named_modules():
        if getattr(module, "checkpoint_impl", None) is CheckpointImpl.REENTRANT:
            return path
    return None


def _checkpoints_itself(module: nn.Module) -> bool:
    """As the models of Transformers do, and those of timm."""
    return _switch_of(module) is not None


def _switch_of(module: nn.Module) -> str | None:
    if getattr(module, "gradient_checkpointing", False) is True and hasattr(
        module, "_gradient_checkpointing_func"
    ):
        return "gradient_checkpointing"
    if getattr(module, "grad_checkpointing", False) is True:
        return "grad_checkpointing"
    return None


def _around(model: nn.Module, free: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold one of the blocks, the blocks, and what is inside them."""
    for path, module in model.named_modules():
        dot = path and path + "."
        if any(f"{block}.".startswith(dot) or path.startswith(f"{block}.") for block, _ in free):
            yield path, module


def _calls_its_own(module: nn.Module) -> bool:
    kind: Any = type(module)
    calls, switches = _own_checkpoints(kind)
    if not calls or _checkpoints_itself(module):  # said already
        return False
    states = [getattr(module, name) for name in switches if hasattr(module, name)]
    known = [state for state in states if isinstance(state, (bool, int))]
    return any(known) or not known


def is_one_operator(block: nn.Module) -> bool:
    from_torch = type(block).__module__.startswith("torch.nn.")
    several = isinstance(block, (nn.RNNBase, nn.RMSNorm))  # the latter keeps its product, too
    return from_torch and not list(block.children()) and not several


def _holds_blocks(block: nn.Module) -> bool:
    """It is made of several parts that have parts themselves."""
    return sum(bool(list(child.children())) for child in block.modules() if child is not block) > 2


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if not is_lazy(p))


# --- a cache of keys and values -----------------------------------------------------------------


def without_cache(model: nn.Module, paths: Sequence[str]) -> tuple[tuple[Any, ...], list[Doubt]]:
    """Switch ``use_cache`` off in the configurations of the modules that hold the blocks.

    Those in which it was on, and what to say of them.
    """
    switched: list[Any] = []
    stuck: list[Any] = []
    for path in paths:
        steps = path.split(".")
        for i in range(len(steps) + 1):
            config: Any = getattr(model.get_submodule(".".join(steps[:i])), "config", None)
            if getattr(config, "use_cache", False) is True and not any(
                config is other for other in stuck
            ):
                try:
                    config.use_cache = False
                    switched.append(config)
                except (AttributeError, TypeError):  # it does not let itself be changed
                    stuck.append(config)
    said = []
    if switched:
        names = ", ".join(dict.fromkeys(type(config).__name__ for config in switched))
        said.append(
            (
                f"{names} 的 use_cache 原来开着，已经关掉：训练用不到键和值的缓存，"
                "而它会留住每一块的键和值，重算时还会再写一遍。plain_blocks 会把它重新打开。",
                f"use_cache was on in {names} and has been switched off: training needs no cache "
                "of keys and values, which would keep those of every block and be written again "
                "by the recomputation. plain_blocks switches it on again.",
            )
        )
    if stuck:
        said.append(
            (
                f"{type(stuck[0]).__name__} 的 use_cache 开着，却改不了。训练用不到键和值的缓存，"
                "它会留住每一块的键和值：请用 use_cache=False 建模型。",
                f"use_cache is on in {type(stuck[0]).__name__}, which does not let itself be "
                "changed. Training needs no cache of keys and values, which keeps those of every "
                "block: build the model with use_cache=False.",
            )
        )
    return tuple(switched), said


def of_a_cache(path: str, kind: str) -> Doubt:
    return (
        f"{path} 收到了一个缓存（{kind}），它的 forward 会往里写，重算时就写两遍：这样的调用不设"
        "检查点，照常运行，也就不省内存。训练时请传 use_cache=False，或者不要传缓存。",
        f"{path} was handed a cache ({kind}), into which its forward writes, and would write again "
        "when recomputed: such calls run without a checkpoint, and save nothing. Pass "
        "use_cache=False in training, or no cache.",
    )


# --- state that moves twice ---------------------------------------------------------------------


def on_inputs(
    model: nn.Module, free: list[tuple[str, nn.Module]], run: Callable[[], Any], said: set[tuple]
) -> list[Doubt]:
    """What comes of running the model once with ``run``; everything is put back."""
    doubts: list[Doubt] = []

    def watch(path: str, block: nn.Module, plain: Callable) -> None:
        def once(*args: Any, **kwargs: Any) -> Any:
            vars(block).pop("forward") if inner is None else vars(block).update(forward=inner)
            result, found = watched(block, plain, plain, args, kwargs)
            if isinstance(found, Exception):
                doubts.append(of_no_trial(path, found))
            elif found is not None:
                doubts.extend(of_state(path, type(block), "", found, said))
            return result

        inner = vars(block).get("forward")
        vars(block)["forward"] = once

    with unchanged(model), torch.enable_grad():
        for path, block in free:
            watch(path, block, block.forward)
        run()
    return doubts


def on_copies(model: nn.Module, free: list[tuple[str, nn.Module]], said: set[tuple]) -> list[Doubt]:
    """Of one block of each kind, what trying a copy of it shows, and else its source."""
    doubts: list[Doubt] = []
    kinds: set[tuple] = set()
    for path, block in free:
        kind = type(block), *(type(module) for module in block.modules())
        if kind in kinds:
            continue
        kinds.add(kind)
        if not worth_trying(block):
            continue
        found, ran = tried_on_copies(block, training=not model.training)
        for part, result in found:
            doubts += of_state(path, type(block), part, result, said)
        hints = [name for name in written_in_source(block) if name not in ran]
        if hints:
            doubts.append(_of_a_hint(path, hints))
    return doubts


def of_state(path: str, kind: type, part: str, found: Tried, said: set[tuple]) -> Iterator[Doubt]:
    """The sentence on what moved, unless it has been said of this class of blocks."""
    names = [f"{part}.{name}".lstrip(".") for name in found.twice]
    new = [name for name in names if (kind, name, True) not in said]
    if not found.wrong:
        new = [name for name in new if (kind, name, False) not in said]
    said.update((kind, name, found.wrong) for name in new)
    if not new:
        if found.wrong and not names and (kind, "") not in said:
            said.add((kind, ""))
            yield (
                f"错误的梯度：{path} 从同样的状态、用同样的随机数再运行一次，结果却不同（试过），"
                "所以重算出来的不是原来的值。给这个块加检查点，梯度就是错的。",
                f"WRONG gradients: {path} gives something else when it runs again from the same "
                "state with the same random numbers (tried), so what is recomputed is not what "
                "was. With a checkpoint around it, gradients are wrong.",
            )
        return
    listed = ", ".join(f"{path}.{name}" for name in new[:3]) + (", …" if len(new) > 3 else "")
    if found.wrong:
        yield (
            f"错误的梯度：前向传播会改变 {listed}，而梯度取决于它：重算读到的是变过的值，"
            "梯度就是错的（试过）。不要给这个块加检查点，或者把更新移到 forward 之外。",
            f"WRONG gradients: the forward pass changes {listed}, and gradients depend on it: the "
            "recomputation reads what has changed, so gradients are wrong (tried). Leave this "
            "block without a checkpoint, or move the update out of forward.",
        )
    else:
        yield (
            f"前向传播会改变 {listed}，重算又改变一次：每步变两次（试过，这次梯度不受影响）。",
            f"The forward pass changes {listed}, and the recomputation once more: twice per step "
            "(tried; gradients stayed right).",
        )


def _of_a_hint(path: str, names: Sequence[str]) -> Doubt:
    listed = ", ".join(f"{path}.{name}" for name in names[:3])
    return (
        f"从源代码看，forward 会改变 {listed}，重算就会再改变一次；没有输入，试不了。"
        "梯度取决于它的话，就会算错：第一个训练步会试，结果以警告给出；或者传 "
        "try_with=lambda: model(x)，现在就试。",
        f"By its source, forward changes {listed}, and recomputing would change it once more. "
        "Without inputs that cannot be tried. If gradients depend on it, they will be wrong: the "
        "first training step tries it and warns; or pass try_with=lambda: model(x) to try it now.",
    )


def of_no_trial(path: str, problem: Exception) -> Doubt:
    """State may have moved, but what that does could not be found out."""
    said = f"{type(problem).__name__}: {problem}".split("\n")[0]
    return (
        f"{path} 的 forward 是否改变自己的状态、重算时再改变一次，想试却没有试成（{said}）。"
        "请用 same_gradients 核对。",
        f"Whether the forward of {path} changes state of its own, and once more when recomputed, "
        f"could not be tried ({said}). Check with same_gradients.",
    )


# --- checkpointed by others --------------------------------------------------------------------


def is_checkpointed(model: nn.Module, path: str) -> bool:
    """The module there is checkpointed by others, or is inside one that is."""
    steps = path.split(".")
    outer = [model.get_submodule(".".join(steps[:i])) for i in range(len(steps) + 1)]
    return any(map(_wrapped_by_others, outer)) or _checkpoints_itself(outer[-1])


def _wrapped_by_others(module: nn.Module) -> bool:
    """By PyTorch's wrapper or hooks, or a ``forward`` of its own that calls a checkpoint."""
    if isinstance(module, ActivationWrapper):
        return True
    if "checkpoint" in (_get_registry(module) or ()):  # torch.distributed._composable
        return True
    forward = vars(module).get("forward")
    while isinstance(forward, functools.partial):
        forward = forward.func
    return forward is not None and (
        forward is checkpoint
        or "checkpoint" in getattr(forward, "__name__", "")
        or _calls_checkpoint(forward)
    )


def _calls_checkpoint(function: Any) -> bool:
    """Whether the function names PyTorch's checkpoint, or another function called so."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    names = set(code.co_names) | {
        name for inner in code.co_consts if inspect.iscode(inner) for name in inner.co_names
    }
    held = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    reached = [cell.cell_contents for cell in held.values() if _is_filled(cell)]
    reached += [function.__globals__[name] for name in names if name in function.__globals__]
    module = torch.utils.checkpoint
    return any(
        value in (module.checkpoint, module.checkpoint_sequential)
        or (value is module and "checkpoint" in names)
        or (value is torch and {"utils", "checkpoint"} <= names)
        or (inspect.isfunction(value) and "checkpoint" in value.__name__)
        for value in reached
        if inspect.isroutine(value) or inspect.ismodule(value)
    )


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


@functools.cache
def _own_checkpoints(kind: Any) -> tuple[bool, tuple[str, ...]]:
    """Whether a class calls a checkpoint in its forward, and the attributes that may switch it."""
    methods = [
        inspect.unwrap(value)
        for base in kind.__mro__
        for name, value in vars(base).items()
        if "forward" in name and inspect.isfunction(value) and base is not nn.Module
    ]
    calling = [method for method in methods if _calls_checkpoint(method)]
    switches = {
        name
        for method in calling
        for name in method.__code__.co_names
        if any(word in name.lower() for word in ("checkpointing", "ckpt", "with_cp"))
        or ("checkpoint" in name.lower() and name not in method.__globals__)
    }
    return bool(calling), tuple(sorted(switches))


def watched(
    block: nn.Module, call: Callable, plain: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[Any, Tried | Exception | None]:
    """What ``call`` returns; and if it moved state of the block, what a checkpoint does to that.

    ``plain``: the block's forward without a checkpoint. An exception if that could not be tried:
    the step itself goes on. None if nothing moved.
    """
    before = _attempted(lambda: Snapshot(block))
    result = call(*args, **kwargs)
    if isinstance(before, Exception):
        return result, before
    return result, _attempted(lambda: _tried_if_moved(block, before, plain, args, kwargs))


def _attempted(what: Callable[[], Any]) -> Any:
    try:
        return what()
    except Exception as problem:  # said to the learner; the step has to go on
        return problem


def _tried_if_moved(
    block: nn.Module, before: Snapshot, plain: Callable, args: tuple, kwargs: dict[str, Any]
) -> Tried | None:
    moved = before.moved(block)
    if not moved:
        return None
    parameters = [name for name, _ in block.named_parameters() if name in moved]
    return tried(block, plain, args, kwargs, parameters)
