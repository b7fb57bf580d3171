"""Tell two runs apart: errors, shapes, then numbers one by one."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from torch import Tensor

from ..language import text
from .agreement import KIND_ZH, Difference, DifferenceKind, UnequalWork, title_of
from .running import Run


def compare_errors(
    plain: Exception | None, checkpointed: Exception | None, with_inputs: bool
) -> list[Difference]:
    """The difference that an error makes; errors on both sides leave nothing else to compare."""
    said = _said(checkpointed) if checkpointed else ""
    name = ""
    if plain is None:
        zh = f"有检查点的一边抛出 {said}"
        en = f"the checkpointed side raises {said}"
    elif checkpointed is None:
        name = "plain"
        zh = f"普通的一边抛出 {_said(plain)} 有检查点的一边却静默地跑完了。"
        en = f"the plain side raises {_said(plain)} The checkpointed one finishes without a word."
    else:
        name = "both"
        zh = f"两边都抛出异常，没有可比的梯度；普通：{_said(plain)} 有检查点：{said}"
        en = (
            f"both sides raise, so there are no gradients to compare; plain: {_said(plain)} "
            f"Checkpointed: {said}"
        )
        if with_inputs:
            zh += (
                "所以错不在检查点：先让 plain 用这些输入单独跑通。"
                "输入怎样传给模型，就怎样写在这里，按位置或者 input_ids=… 这样按名字；"
                "要自己算损失、调用 backward() 的，写成不带参数的完整一步。"
            )
            en += (
                " So it is not the checkpoint: get plain to run by itself on these inputs first. "
                "Write them here as the model takes them, by position or by name, as in "
                "input_ids=…; what computes its own loss and calls backward() is a whole step, "
                "a function without arguments."
            )
        else:
            zh += "所以错不在检查点：没有给输入，plain 就要是不带参数的完整一步，先让它单独跑通。"
            en += (
                " So it is not the checkpoint: without inputs, plain has to be a whole step, a "
                "function without arguments; get it to run by itself first."
            )
    return [Difference("error", name, zh, en)]


def _said(error: Exception) -> str:
    """The type and the first sentence of an error."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first.removesuffix('.')}."


def compare_runs(first: Run, second: Run, tolerance: float) -> list[Difference]:
    _check_outputs_alike(first, second)
    outputs = _compare_tensors("output", first.outputs, second.outputs, tolerance)
    if outputs:  # other outputs: other gradients would tell nothing new
        return outputs
    found = _compare_tensors("gradient", first.gradients, second.gradients, tolerance)
    found += _compare_tensors("parameter", first.parameters, second.parameters, tolerance)
    found += _compare_tensors("buffer", first.buffers, second.buffers, tolerance)
    found += _compare_tensors("input", first.inputs, second.inputs, tolerance)
    others = dict(second.random_states)
    for name, mine in first.random_states:
        if name in others and not _same_state(mine, others[name]):
            found.append(_other_random_state(name))
    return found


def _same_state(mine: Any, other: Any) -> bool:
    if isinstance(mine, Tensor):
        return torch.equal(mine, other)
    if isinstance(mine, numpy.ndarray):
        return numpy.array_equal(mine, other)
    if isinstance(mine, dict):
        return all(_same_state(mine[key], other[key]) for key in mine)
    if isinstance(mine, tuple):
        return all(_same_state(a, b) for a, b in zip(mine, other, strict=True))
    return bool(mine == other)


def _other_random_state(name: str) -> Difference:
    return Difference(
        "random state",
        name,
        f"{name} 的随机数生成器停在另一个位置：下一步抽到的随机数会不同。",
        f"the random generator of {name} ends up elsewhere: the next step draws different numbers.",
    )


def _compare_tensors(
    kind: DifferenceKind, plain: list, checkpointed: list, tolerance: float
) -> list[Difference]:
    found = []
    sides = dict(plain), dict(checkpointed)
    for name in {**sides[0], **sides[1]}:
        mine, other = (side.get(name) for side in sides)
        if mine is None and other is None:
            continue
        if mine is None or other is None:
            found.append(_missing(kind, name, other is None))
        elif difference := _numbers_that_differ(kind, name, mine, other, tolerance):
            found.append(difference)
    return found


def _missing(kind: DifferenceKind, name: str, on_the_checkpointed_side: bool) -> Difference:
    sides = ("普通", "plain"), ("有检查点", "checkpointed")
    (there_zh, there_en), (zh, en) = sides if on_the_checkpointed_side else sides[::-1]
    if kind == "gradient":
        return Difference(
            kind,
            name,
            f"{name} 在{zh}的一边没有梯度（None）。",
            f"{name} has no gradient on the {en} side (None).",
        )
    return Difference(
        kind,
        name,
        f"{KIND_ZH[kind]} {name} 只在{there_zh}的一边有。",
        f"{kind} {name} exists on the {there_en} side only.",
    )


def _numbers_that_differ(
    kind: DifferenceKind, name: str, mine: Tensor, other: Tensor, tolerance: float
) -> Difference | None:
    mine, other = (tensor.to_dense() if tensor.is_sparse else tensor for tensor in (mine, other))
    if torch.equal(mine, other):
        return None
    wide = torch.complex128 if mine.is_complex() else torch.float64
    mine, other = mine.to(wide), other.to(wide)
    unequal = (mine != other) & ~(mine.isnan() & other.isnan())
    endless = float("inf")
    gap = (mine - other).abs().nan_to_num(nan=endless, posinf=endless).where(unequal, 0.0)
    largest = gap.max().item()
    scale = mine.abs().nan_to_num(nan=0.0, posinf=0.0).max().item()  # of the finite ones
    if largest <= tolerance * scale or not unequal.any():
        return None
    worst = int(gap.argmax())
    index = [int(i) for i in numpy.unravel_index(worst, tuple(mine.shape))]
    at = f" {index}" if index else ""
    a, b = (_number(tensor.flatten()[worst].item()) for tensor in (mine, other))
    count, total = int(unequal.sum()), mine.numel()
    title_zh, title_en = title_of(kind, name)
    rounding = largest <= 1e-5 * scale
    zh = (
        f"{title_zh}，{total:,} 个数里有 {count:,} 个不同，最多相差 {largest:.2g}"
        f"（最大的数是 {scale:.2g}）；{f'在{at} 处，' if at else ''}普通 {a}，有检查点 {b}。"
        + ("这只是舍入误差。" if rounding else "")
    )
    en = (
        f"{title_en}: {count:,} of {total:,} numbers differ, by up to {largest:.2g} "
        f"(the largest is {scale:.2g}); {f'at{at} ' if at else ''}plain has {a}, "
        f"checkpointed {b}." + (" That is rounding." if rounding else "")
    )
    return Difference(kind, name, zh, en, largest, scale)


def _number(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _check_outputs_alike(first: Run, second: Run) -> None:
    """Outputs that are equal in value but of another dtype are other outputs, too."""
    shapes = [_shapes(run.outputs) for run in (first, second)]
    if shapes[0] != shapes[1]:
        raise UnequalWork(
            text(
                zh=f"两边做的不是同样的事：普通的一边输出形状 {shapes[0]}，"
                f"有检查点的一边输出 {shapes[1]}。",
                en=f"The two sides do not do the same work: plain returns shapes {shapes[0]}, "
                f"checkpointed {shapes[1]}.",
            )
        )
    for (_, mine), (_, other) in zip(first.outputs, second.outputs, strict=True):
        if mine.dtype != other.dtype:
            raise UnequalWork(
                text(
                    zh=f"两边做的不是同样的事：普通的一边输出 {mine.dtype}，"
                    f"有检查点的一边输出 {other.dtype}。",
                    en=f"The two sides do not do the same work: plain returns {mine.dtype}, "
                    f"checkpointed {other.dtype}.",
                )
            )


def _shapes(outputs: list[tuple[str, Tensor]]) -> Any:
    if all(name.isdecimal() for name, _ in outputs):
        return [list(output.shape) for _, output in outputs]
    return {name: list(output.shape) for name, output in outputs}
