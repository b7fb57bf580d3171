"""Checkers of lesson 03: repairs that are really repairs, a budget kept, and what no tool sees."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .exercises import Verdict, raised, unfinished
from .exhibits import exhibit_named
from .figures import size_text
from .gradients import UnequalWork, same_gradients
from .memory import measure

__all__ = ["Mixed", "check_blind_spots", "check_budget", "check_repairs", "plain_peak"]


# --- three repairs --------------------------------------------------------------------------------


SEED = 20_231  # one that an answer does not happen to set itself


def _block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))


def _encode(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def _shake(model: nn.Module, x: Tensor) -> Tensor:
    return torch.tanh(model(x) * random.uniform(0.5, 1.5))


def _chain(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def check_repairs(
    encode: Callable[[nn.Module, Tensor], Any],
    shake: Callable[[nn.Module, Tensor], Any],
    chain: Callable[[nn.ModuleList, Tensor], Any],
) -> Verdict:
    """Check the three repaired functions: right results, and still checkpointed.

    ``encode(model, x)``, ``shake(model, x)`` and ``chain(layers, x)`` must agree with the plain
    versions bit for bit and keep no more at the peak than one checkpoint per block needs.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = nn.ModuleList(_block() for _ in range(6))
        x = torch.randn(128, 16)
    tasks = (
        ("encode", encode, _encode, layers[0]),
        ("shake", shake, _shake, layers[0]),
        ("chain", chain, _chain, layers),
    )
    for name, answer, plain, model in tasks:
        if (verdict := _check_repair(name, answer, plain, model, x)) is not None:
            return verdict
    return Verdict(
        "right",
        "三处都修好了：输出、梯度、随机数状态逐位相同，检查点也还在。",
        "All three are repaired: outputs, gradients and random states agree bit for bit, and the "
        "checkpoints are still there.",
    )


def _check_repair(
    name: str, answer: Callable, plain: Callable, model: nn.Module, x: Tensor
) -> Verdict | None:
    """What is wrong with one repair, None if nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if answer(model, x) is None:
                return unfinished()
            found = same_gradients(
                lambda x: plain(model, x), lambda x: answer(model, x), x, model=model, seed=SEED
            )
            if found.error is not None:
                return raised(found.error)
            if not found:
                return Verdict("wrong", f"{name}：{found.zh}", f"{name}: {found.en}")
            forward, calls, peak = _calls_and_peak(lambda: answer(model, x), model, x)
            *_, plain_peak = _calls_and_peak(lambda: plain(model, x), model, x)
        except UnequalWork as error:
            return Verdict("wrong", f"{name}：{error}", f"{name}: {error}")
        except Exception as error:
            return raised(error)
    if max(forward) > 1:
        return Verdict(
            "wrong",
            f"{name}：有的块在前向传播里就跑了 {max(forward)} 次；重算是反向传播的事。",
            f"{name}: some block runs {max(forward)} times in the forward pass; recomputing is for "
            "the backward pass.",
        )
    if min(calls) < 2:
        return Verdict(
            "wrong",
            f"{name}：梯度对了，可是有的块前向只跑了一次：检查点不见了。",
            f"{name}: the gradients are right, but some block ran forward only once: "
            "its checkpoint is gone.",
        )
    if name == "chain" and peak > 0.75 * plain_peak:
        return Verdict(
            "wrong",
            f"{name}：梯度对了，但峰值 {peak:,} 字节，不用检查点是 {plain_peak:,}。"
            "整条链包成一个检查点，反向时就一起回来；要每层一个。",
            f"{name}: the gradients are right, but the peak is {peak:,} bytes, and {plain_peak:,} "
            "without checkpoints. One checkpoint around the whole chain brings all of it back at "
            "once; use one per layer.",
        )
    return None


def _calls_and_peak(
    run: Callable[[], Tensor], model: nn.Module, x: Tensor
) -> tuple[list[int], list[int], int]:
    """How often each block's first layer ran in forward and in all, and the step's peak (bytes)."""
    firsts = [module[0] for module in model.modules() if isinstance(module, nn.Sequential)]
    calls = [0] * len(firsts)
    handles = [
        first.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, first in enumerate(firsts)
    ]
    gradients = [parameter.grad for parameter in model.parameters()]
    forward: list[int] = []

    def step() -> None:
        loss = run().square().sum()
        forward.extend(calls)
        loss.backward()

    try:
        for parameter in model.parameters():
            parameter.grad = None
        trace = measure(step, model, inputs=x)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
    return forward, calls, trace.peak


# --- a budget -------------------------------------------------------------------------------------


class Thick(nn.Module):
    """Many cheap steps, each of which keeps a value, then one matrix product."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        for _ in range(8):
            h = functional.gelu(h) + h.sigmoid()
        return x + self.out(h)


class Dense(nn.Module):
    """Two large matrix products with one cheap step between them."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(x)))


class Mixed(nn.ModuleList):
    """Four ``Thick`` and four ``Dense`` blocks in turn: (batch, 64) → the same."""

    def __init__(self) -> None:
        super().__init__(kind(64) for _ in range(4) for kind in (Thick, Dense))


BUDGET = 23 * 2**18  # bytes at the peak of forward and backward, batch of 512
MORE_FLOPS = 0.08


def _mixed() -> tuple[Mixed, Tensor]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Mixed(), torch.randn(512, 64)


def plain_peak() -> int:
    """Bytes at the peak of the network's step without checkpoints."""
    blocks, x = _mixed()
    return _measured(lambda: _chain(blocks, x), blocks, x)[0]


def _measured(run: Callable[[], Tensor], model: nn.Module, x: Tensor) -> tuple[int, int]:
    for parameter in model.parameters():
        parameter.grad = None
    trace = measure(lambda: run().square().mean().backward(), model, inputs=x)
    return trace.peak, trace.flops


def check_budget(forward: Callable[[Mixed, Tensor], Any]) -> Verdict:
    """Check ``forward(blocks, x)``: the network's own result within ``BUDGET`` bytes.

    Passes if outputs and gradients agree bit for bit, the peak of one forward and backward pass is
    within the budget, and FLOPs grow by no more than ``MORE_FLOPS``.
    """
    blocks, x = _mixed()
    try:
        if forward(blocks, x) is None:
            return unfinished()
        found = same_gradients(
            lambda x: _chain(blocks, x), lambda x: forward(blocks, x), x, model=blocks
        )
        if found.error is not None:
            return raised(found.error)
        if not found:
            return Verdict("wrong", found.zh, found.en)
        peak, flops = _measured(lambda: forward(blocks, x), blocks, x)
    except UnequalWork as error:
        return Verdict("wrong", str(error), str(error))
    except Exception as error:
        return raised(error)
    before, flops_before = _measured(lambda: _chain(blocks, x), blocks, x)
    more = flops / flops_before - 1
    sizes = size_text(peak), size_text(BUDGET), size_text(before)
    figures_zh = f"峰值 {sizes[0]}（预算 {sizes[1]}，原来 {sizes[2]}），FLOPs {more:+.1%}"
    figures_en = f"peak {sizes[0]} (budget {sizes[1]}, was {sizes[2]}), FLOPs {more:+.1%}"
    if peak > BUDGET:
        return Verdict(
            "wrong",
            f"{figures_zh}。还超出 {size_text(peak - BUDGET)}：哪种块保存得最多？"
            "几个块合在一个检查点里，会在反向时一起回来。",
            f"{figures_en}. Still {size_text(peak - BUDGET)} too much: which kind of block keeps "
            "most? Blocks that share a checkpoint come back together in the backward pass.",
        )
    if more > MORE_FLOPS:
        return Verdict(
            "wrong",
            f"{figures_zh}，上限是 {MORE_FLOPS:+.0%}。内存够了，算得太多：哪种块重算起来贵，"
            f"省得却少？",
            f"{figures_en}, where {MORE_FLOPS:+.0%} is allowed. The memory is right, the price is "
            "not: which kind of block is expensive to recompute and saves little?",
        )
    return Verdict(
        "right", f"{figures_zh}。梯度逐位相同。", f"{figures_en}. The same gradients, bit for bit."
    )


# --- what the tool cannot see ---------------------------------------------------------------------

_REASONS = {
    "A": ("它看得出来", "it does see it"),
    "B": ("数值全对，错的是内存", "all numbers are right; it is the memory that is wrong"),
    "C": ("要两个进程才显形", "it takes two processes to show"),
    "D": ("这一次运行里没有发生", "it does not happen in this run"),
}

_BLIND_SPOTS = {
    "late-binding": ("A", "重计算用错了层，梯度当场不同。",
                     "The recomputation runs the wrong layer, and the gradients differ at once."),
    "batch-norm": ("A", "梯度相同，可它也比较缓冲区：滑动平均不同。",
                   "The gradients agree, but it compares buffers too, and the averages differ."),
    "whole-model": ("B", "输出和梯度都对，只是峰值没降。要用 measure 看。",
                    "Outputs and gradients are right; only the peak did not fall. Use measure."),
    "one-segment": ("B", "没有检查点，当然和普通的一样：它证明相同，不证明省了内存。",
                    "Without a checkpoint it equals the plain run, of course: the tool shows that "
                    "they are the same, not that memory was saved."),
    "ddp-shared": ("C", "一个进程里没有谁要取平均，梯度是对的；错在取平均的时机。",
                   "In one process nothing is averaged, and the gradients are right; the fault is "
                   "in when the average is taken."),
    "rare-branch": ("D", "同一个种子、同一批输入，分支没走到。换种子、换输入，多跑几次。",
                    "With this seed and this batch the branch is not taken. Try several seeds and "
                    "inputs."),
}  # fmt: skip


def check_blind_spots(answer: Callable[[], Any]) -> Verdict:
    """Check ``answer()``: for each name, "A", "B", "C" or "D" as the exercise lists them."""
    try:
        said = answer()
    except Exception as error:
        return raised(error)
    if said is None:
        return unfinished()
    if not isinstance(said, dict):
        kind = type(said).__name__
        return Verdict("wrong", f"要返回一个字典，得到的是 {kind}。", f"Return a dict, not {kind}.")
    for name, (truth, _, _) in _BLIND_SPOTS.items():
        if name not in said:
            return Verdict("wrong", f"少了 {name}。", f"{name} is missing.")
        letter = str(said[name]).strip().upper()
        if letter not in _REASONS:
            return Verdict(
                "wrong",
                f"{name}：只能是 A、B、C、D，得到的是 {said[name]!r}。",
                f"{name}: A, B, C or D, not {said[name]!r}.",
            )
        if letter != truth:
            chosen = _REASONS[letter]
            return Verdict(
                "wrong",
                f"{name} 不是 {letter}（{chosen[0]}）。{_evidence(name)[0]}",
                f"{name} is not {letter} ({chosen[1]}). {_evidence(name)[1]}",
            )
    reasons = _BLIND_SPOTS.items()
    return Verdict(
        "right",
        "全对。" + "".join(f"\n{name}：{zh}" for name, (_, zh, _) in reasons),
        "All correct." + "".join(f"\n{name}: {en}" for name, (_, _, en) in reasons),
    )


def _evidence(name: str) -> tuple[str, str]:
    """What the exhibit shows when it is run now; a hint where it cannot be run here."""
    try:
        found = exhibit_named(name).inspect()
    except KeyError:
        if name == "ddp-shared":
            return ("展品在附馆：它的代码一开头是什么？",
                    "The exhibit is in the annexe: what does its code begin with?")  # fmt: skip
        return ("千分之一的批次才走到的分支，一次比较撞上它的机会有多大？",
                "A branch that one batch in a thousand takes: how likely is it in one "
                "comparison?")  # fmt: skip
    hint_zh, hint_en = f"运行它：{found.agreement.zh}", f"Run it: {found.agreement.en}"
    if found.peaks:
        plain, checkpointed = (size_text(peak) for peak in found.peaks)
        hint_zh += f" 峰值：普通 {plain}，有检查点 {checkpointed}。"
        hint_en += f" Peaks: plain {plain}, with checkpoints {checkpointed}."
    return hint_zh, hint_en
