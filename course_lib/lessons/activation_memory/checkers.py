"""Lesson 01's exercises: how much a block keeps, and the same block with less."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...memory.measurement import measure
from ...notebook.checking import (
    Answer,
    Unfinished,
    Words,
    Wrong,
    briefly,
    judged,
    number,
)
from ...saved import saved_tensors


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``: (batch, sequence, width) → the same."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


@judged
def check_kept_bytes(answer: Callable[[int, int, int, int], Any]) -> Words:
    """Check ``answer(batch, sequence, width, hidden)``: bytes that a ``GatedMLP`` keeps.

    Compared with ``saved_tensors`` for four sizes and four more drawn anew each time, in float32,
    the input included.
    """
    ask = Answer(answer)
    # hidden is no small multiple of width at first, so that each fault has a number of its own
    cases = [(1, 1, 8, 20), (2, 16, 32, 64), (3, 5, 16, 128), (4, 8, 64, 24)]
    drawn = random.Random()
    cases += [
        (drawn.randint(1, 6), drawn.randint(1, 12), drawn.randint(3, 40), drawn.randint(41, 150))
        for _ in range(4)
    ]
    for sizes in cases:
        batch, sequence, width, hidden = sizes
        said = ask(*sizes)
        if said is None and ask.is_stub:
            raise Unfinished
        if (bytes_said := number(said)) is None:
            raise Wrong(
                f"应返回字节数，得到的是 {briefly(said)}。",
                f"expected a number of bytes, got {briefly(said)}.",
            )
        block = GatedMLP(width, hidden)
        expected = saved_tensors(block, torch.randn(batch, sequence, width)).total
        if bytes_said != expected:
            raise _wrong_kept_bytes(bytes_said, expected, sizes, block)
    return (
        f"{len(cases)} 组尺寸都对，一个字节不差。x 有两个使用者，却只存一份；SiLU 存输入，"
        "乘法存两个因子，最后一个 Linear 存它的输入。",
        f"Right for all {len(cases)} sizes, to the byte. x is used twice but kept once; SiLU keeps "
        "its input, the product both factors, the last Linear its input.",
    )


def _wrong_kept_bytes(said: Any, expected: int, sizes: tuple, block: nn.Module) -> Wrong:
    batch, sequence, width, hidden = sizes
    values = batch * sequence * 4
    parameters = sum(parameter.nbytes for parameter in block.parameters())
    weights = sum(p.nbytes for p in block.parameters() if p.ndim > 1)
    reasons = {
        expected / 2**20: ("这是 MiB；要的是字节。", "This is in MiB; bytes are asked for."),
        expected / 2**10: ("这是 KiB；要的是字节。", "This is in KiB; bytes are asked for."),
        expected + weights: (
            "参数不算：它们本来就在，不是为反向传播保存的。",
            "Parameters do not count: they exist anyway.",
        ),
        expected / 4: (
            "看来你数的是元素个数：float32 每个 4 字节。",
            "You seem to have counted numbers: a float32 takes 4 bytes.",
        ),
        expected / 2: ("float32 每个元素 4 字节，不是 2。", "A float32 takes 4 bytes, not 2."),
        expected * 2: (
            "正好是两倍：float32 每个元素 4 字节，每份只存一次。",
            "Exactly twice: a float32 takes 4 bytes, and each value is kept once.",
        ),
        expected / batch: ("少乘了 batch？", "Is batch left out?"),
        expected / sequence: ("少乘了 sequence？", "Is sequence left out?"),
        expected + values * width: (
            "x 被数了两次：两个 Linear 用的是同一块存储。",
            "x is counted twice: both Linears use the same storage.",
        ),
        expected - values * width: (
            "少了输入 x：第一层 Linear 要用它求权重的梯度。",
            "The input x is missing: the first Linears need it for the gradients of their weights.",
        ),
        expected + parameters: (
            "参数不算：它们本来就在，不是为反向传播保存的。",
            "Parameters do not count: they exist anyway.",
        ),
        expected - values * hidden: (
            "少了一个 hidden 维的张量：乘法要保存两个因子，SiLU 还要保存自己的输入。",
            "One tensor of width hidden is missing: the product keeps "
            "both factors, and SiLU keeps its own input.",
        ),
        expected + values * hidden: (
            "多了一个 hidden 维的张量：有个值两个算子共用，只存一份。",
            "One tensor of width hidden too many: one value serves two operators and is kept once.",
        ),
    }
    zh, en = reasons.get(
        said, ("试试用 saved_tensors 看看每一行。", "Look at each line of saved_tensors.")
    )
    where = f"batch={batch}, sequence={sequence}, width={width}, hidden={hidden}"
    return Wrong(
        f"{where}：你得 {said:,.10g}，实测 {expected:,} 字节，差 {said - expected:+,.10g}。{zh}",
        f"{where}: yours is {said:,.10g} bytes, measured {expected:,}, "
        f"{said - expected:+,.10g}. {en}",
    )


class Wasteful(nn.Module):
    """The gated block written by hand; one of its lines keeps twice what it must."""

    def __init__(self, width: int = 64, hidden: int = 256):
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        gate = gate * torch.sigmoid(gate)
        value = self.up(x) + 1.0
        return self.down(gate * value)


@judged
def check_thrifty(answer: Callable[[Wasteful, Tensor], Any]) -> Words:
    """Check ``answer(block, x)``: the block's own result and gradients, with less kept.

    Passes if outputs and all gradients agree (relative 1e-4) and no more is kept than a block
    without the wasted tensor needs, by ``saved_tensors`` and by ``measure`` alike; for two blocks
    of other sizes, each answer on a copy of its own, which it may change.
    """
    ask = Answer(answer)
    results = [_check_thrifty(ask, *sizes) for sizes in ((4, 16, 64, 256), (3, 8, 24, 160))]
    wasteful, kept = results[0]
    return (
        f"保存的字节从 {wasteful:,} 降到 {kept:,}，输出和梯度不变。",
        f"Kept bytes fell from {wasteful:,} to {kept:,}; output and gradients are the same.",
    )


def _check_thrifty(
    ask: Answer, batch: int, sequence: int, width: int, hidden: int
) -> tuple[int, int]:
    """Raise ``Wrong`` unless the answer keeps less; bytes kept by the block and by the answer."""
    torch.manual_seed(batch)
    block = Wasteful(width, hidden)
    x = torch.randn(batch, sequence, width, requires_grad=True)
    hidden_bytes = batch * sequence * hidden * 4
    wasteful = saved_tensors(block, x).total
    budget = wasteful - hidden_bytes
    expected, expected_gradients = _result_and_gradients(block, block, x)
    allowed = _held(block, block, x) - hidden_bytes
    before = copy.deepcopy(block.state_dict()), x.detach().clone()
    own = copy.deepcopy(block)  # which an answer may give another forward
    found = ask(own, x)
    if found is None:
        raise ask.nothing(own, x)
    if _kind(found) != _kind(expected):
        wanted, got = _kind(expected), _kind(found)
        raise Wrong(
            f"结果应是形状 {wanted} 的张量，得到的是 {got}。",
            f"The result should be a tensor of shape {wanted}, not {got}.",
        )
    _check_unchanged(own, x, *before)
    kept = saved_tensors(partial(ask, own), x).total
    gap = (found - expected).abs().max().item()
    if not gap <= 1e-4 * expected.abs().max().item():  # nan is no agreement
        raise Wrong(
            f"输出变了：最大相差 {gap:.2g}。换写法，不能换函数，也不能换掉传进来的 block。",
            f"The output changed, by up to {gap:.2g}. Write it differently, but keep the "
            "function, and the block that was passed in.",
        )
    _, gradients = _result_and_gradients(partial(ask, own), own, x)
    for name, gradient in expected_gradients.items():
        other = gradients.get(name)
        assert gradient is not None  # the block as it is uses them all
        if other is None:
            raise Wrong(
                f"输出一样，但 {name} 的梯度没有了：计算图在哪里断开了？",
                f"The output agrees, but the gradient of {name} is gone: where was the graph cut?",
            )
        if not torch.allclose(other, gradient, rtol=1e-4, atol=1e-5):
            gap = (other - gradient).abs().max().item()
            raise Wrong(
                f"输出一样，但 {name} 的梯度变了，最多差 {gap:.2g}：反向传播读到的值与前向算出的"
                "不同？",
                f"The output agrees, but the gradient of {name} changed, by up to {gap:.2g}: does "
                "the backward pass read other values than the forward pass made?",
            )
    if kept > budget:
        raise Wrong(
            f"保存了 {kept:,} 字节，原来是 {wasteful:,}，能做到 {budget:,}。"
            "哪一行同时保存了 sigmoid 的输入和输出？",
            f"It keeps {kept:,} bytes; it was {wasteful:,} and can be {budget:,}. "
            "Which line keeps both the input and the output of sigmoid?",
        )
    held = _held(partial(ask, own), own, x)
    if held > allowed + hidden_bytes // 4:  # something small beside it does not matter
        raise Wrong(
            "saved_tensors 看不见那些值了，可它们还在：前向传播结束时，实测比开始时多 "
            f"{held:,} 字节，能做到 {allowed:,}。",
            "saved_tensors no longer sees those values, but they are still there: measured at the "
            f"end of forward, {held:,} bytes more than at its start, and it can be {allowed:,}.",
        )
    return wasteful, kept


def _check_unchanged(block: nn.Module, x: Tensor, weights: dict[str, Tensor], was: Tensor) -> None:
    now = block.state_dict()
    changed = [
        name
        for name, value in weights.items()
        if name not in now or not torch.equal(now[name], value)
    ]
    if not torch.equal(x, was):
        changed.insert(0, "x")
    if changed:
        raise Wrong(
            f"你的函数改动了传进来的 {changed[0]}：要另算一个新张量，不要就地修改。",
            f"Your function changes {changed[0]}, which was passed in: make a new tensor instead "
            "of changing it in place.",
        )


def _kind(result: Any) -> str:
    if not isinstance(result, Tensor):
        return type(result).__name__
    return f"{list(result.shape)} {str(result.dtype).removeprefix('torch.')}"


def _result_and_gradients(
    function: Callable[[Tensor], Tensor], block: nn.Module, x: Tensor
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """``function(x)`` and the gradients of its squared sum; nothing is left in ``.grad``."""
    leaves = {"x": x, **dict(block.named_parameters())}
    for leaf in leaves.values():
        leaf.grad = None
    result = function(x)
    if result.requires_grad:
        result.square().sum().backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    for leaf in leaves.values():
        leaf.grad = None
    return result.detach(), gradients


def _held(function: Callable[[Tensor], Tensor], block: nn.Module, x: Tensor) -> int:
    """Bytes at the end of the forward pass that were not there at its start, as measured."""
    trace = measure(lambda: _result_and_gradients(function, block, x), block, inputs=x)
    return sum(trace.kept.values()) - sum(trace.before.values())
