"""Checkers of lesson 02: five ways to recompute, judged by what they do and not how.

Each runs an answer beside plain backward on the same weights, inputs and random numbers. It looks
at the outputs, the gradients (bit for bit), the number of forward calls, the random state and the
memory, in this order, and says of the first that is off what was found and what was expected. Then
several checkpoints are open at once, and many steps must leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import recompute
from ...language import say
from ...memory.measurement import measure
from ...memory.trace import MemoryTrace
from ...notebook.checking import (
    Answer,
    Verdict,
    Words,
    Wrong,
    briefly,
    judged,
)
from .cases import (
    AGAIN,
    AUTOCAST,
    BOUNDARY,
    CUDA,
    DROPOUT,
    LEAF,
    PAIR,
    PLAIN,
    RAW,
    ROWS,
    SEEDS,
    SLACK,
    STRIDED,
    TWICE,
    VALUE,
    WIDTH,
    Case,
    Run,
    Setting,
    Start,
    case_name,
    counting,
    mlp,
    seen_starts,
    wrong_at,
)
from .chains import chain_measured, chain_name, check_chain_gradients
from .judging import (
    bytes_more,
    called_plainly,
    check_calls,
    check_gradients,
    check_memory,
    check_output,
    check_same,
    hint_for,
    hinted,
    on_this_machine,
)
from .several import bytes_grown, check_nothing_left, check_several


class _Head(nn.Module):
    """A block and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.block = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).square().mean()


def _backward_at_once(body: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    loss = head(body(x))
    loss.backward()
    return loss.detach()


@judged
@hinted
def check_by_hand(answer: Callable[[nn.Module, nn.Module, Tensor], Any]) -> Words:
    """Check stage 1, ``answer(body, head, x) -> loss``: a whole step's gradients, by hand."""
    answer = Answer(answer)
    cases = (LEAF, RAW, TWICE, STRIDED, AGAIN, AUTOCAST)
    for case in cases:
        for seed in SEEDS:
            plain, _ = _ByHand(case, seed).run(_backward_at_once)
            theirs, head_calls = _ByHand(case, seed).run(answer)
            where = case_name(case)
            check_output(where, theirs.outputs[0], plain.outputs[0])
            if theirs.differentiable[0]:
                raise wrong_at(
                    where,
                    (
                        "返回的损失还带着计算图：谁拿着它，谁就拿着图里的一切。用 detach()。",
                        "the loss you return still has its graph: whoever holds it holds "
                        "everything in there. Use detach().",
                    ),
                )
            hint = hint_for(case, theirs.starts)
            check_gradients(where, hint, plain.gradients, theirs.gradients)
            if head_calls != 1:
                raise wrong_at(
                    where,
                    (
                        f"head 运行了 {head_calls} 次，应为 1 次。",
                        f"head ran {head_calls} times, expected 1.",
                    ),
                )
            check_calls(where, (1, theirs.calls[1]))
    setting = _ByHand(LEAF, 0)
    if growth := bytes_grown(lambda: setting.run(answer), *setting.parts.values()):
        raise Wrong(
            f"梯度都对，但每一步都多出 {growth:,} 字节收不回来：有谁还拿着上一步的张量？",
            f"The gradients are right, but each step leaves {growth:,} bytes more that are never "
            "freed: who holds on to tensors of the step before?",
        )
    steps = (answer, recompute.step_by_hand, _backward_at_once)
    peak, right, usual = (_ByHand(LEAF, 0).measured(step).peak for step in steps)
    allowed = right + BOUNDARY + SLACK
    if peak > allowed:
        raise Wrong(
            f"梯度都对，但峰值是 {peak:,} 字节，应不超过 {allowed:,}（普通做法 {usual:,}）："
            "body 里面的值和 head 里面的值不该同时在场。",
            f"The gradients are right, but the peak is {peak:,} bytes, expected at most "
            f"{allowed:,} (plain backward: {usual:,}): what is inside body and what is inside "
            "head should never be in memory together.",
        )
    return (
        f"{len(cases)} 种情形、各 {len(SEEDS)} 个随机种子，梯度全部逐位相同；body 运行两次，"
        f"head 一次。峰值从 {usual:,} 降到 {peak:,} 字节。",
        f"In {len(cases)} cases with {len(SEEDS)} seeds each, all gradients are equal bit for "
        f"bit; body ran twice, head once. The peak fell from {usual:,} to {peak:,} bytes.",
    )


class _ByHand:
    """A body, a head that ends in a loss, and an input: the same for whoever runs the step."""

    def __init__(self, case: Case, seed: int):
        self.case = case
        torch.manual_seed(seed)
        self.parts = nn.ModuleDict({"body": case.module(), "head": _Head()})
        self.x = torch.randn((WIDTH, ROWS) if case is STRIDED else (ROWS, WIDTH))
        if case is STRIDED:
            self.x = self.x.t()
        self.x.requires_grad_(case.requires_grad[0])
        if case.accumulate:
            for leaf in (self.x, *self.parts.parameters()):
                leaf.grad = torch.randn_like(leaf)

    def run(self, step: Callable[..., Any]) -> tuple[Run, int]:
        """What the step did, and how often the head ran."""
        body_calls: list[Start] = []
        head_calls: list[Start] = []
        body, head = self.parts["body"], self.parts["head"]
        with (
            counting(body, body_calls),
            counting(head, head_calls),
            seen_starts(body_calls),
            torch.autocast("cpu", torch.bfloat16, enabled=self.case.autocast),
        ):
            loss = step(body, head, self.x)
        if loss is None and isinstance(step, Answer):
            raise step.nothing(body, head, self.x)
        if not isinstance(loss, Tensor):
            raise Wrong(
                f"应返回损失（张量），得到的是 {type(loss).__name__}：{briefly(loss)}。",
                f"Return the loss, a tensor, not {type(loss).__name__}: {briefly(loss)}.",
            )
        gradients = {"x": self.x.grad}
        gradients |= {name: leaf.grad for name, leaf in self.parts.named_parameters()}
        run = Run(
            (loss.detach(),),
            (loss.requires_grad,),
            gradients,
            (1, len(body_calls)),
            starts=body_calls,
        )
        return run, len(head_calls)

    def measured(self, step: Callable[..., Any]) -> MemoryTrace:
        body, head = self.parts["body"], self.parts["head"]
        return measure(lambda: step(body, head, self.x), self.parts, inputs=self.x)


@judged
@hinted
def check_function(answer: Callable[..., Any]) -> Words:
    """Check stage 2, ``answer(function, *inputs)``: a checkpoint by ``torch.autograd.Function``."""
    cases = (PLAIN, LEAF, AGAIN, TWICE, PAIR, STRIDED)
    return check_checkpoint(answer, recompute.Rerun.apply, cases)


@judged
@hinted
def check_random_state(answer: Callable[..., Any]) -> Words:
    """Check stage 3, ``answer(function, *inputs)``: as stage 2, with dropout and autocast."""
    cases = (PLAIN, PAIR, DROPOUT, AUTOCAST, CUDA)
    return check_checkpoint(answer, recompute.rerun_alike, cases, dropout=0.3)


@judged
@hinted
def check_hooks(answer: Callable[..., Any]) -> Words:
    """Check stage 5, ``answer(function, *inputs)``: by saved-tensor hooks, with early stop."""
    cases = (LEAF, PLAIN, RAW, AGAIN, TWICE, PAIR, STRIDED, DROPOUT, AUTOCAST, CUDA)
    return check_checkpoint(answer, recompute.checkpoint, cases, dropout=0.3)


@judged
@hinted
def check_chain(answer: Callable[..., Any]) -> Words | Verdict:
    """Check stage 4, ``answer(layers, segments, x, checkpoint)``, for chains of several lengths.

    Segments may be cut in any way in which lengths differ by at most one. Later cells go on with
    the answer only if its peaks are those that the lesson explains, with a longest segment last.
    """
    ask = Answer(answer)
    for layers, segments in ((7, 3), (10, 1), (10, 3), (10, 10), (12, 5)):
        check_chain_gradients(ask, layers, segments)
    for layers in (10, 11, 16):
        for segments in range(1, layers + 1):
            check_chain_gradients(ask, layers, segments, backward=False)
    peaks: list[tuple[float, float]] = []
    for segments in range(1, 11):
        theirs, right = (chain_measured(call, segments) for call in (ask, recompute.chain))
        check_memory(chain_name(10, segments), theirs, right, VALUE // 2)
        peaks.append((theirs.peak / VALUE, right.peak / VALUE))
    one, three, ten = (f"{peaks[segments - 1][0]:.2f}" for segments in (1, 3, 10))
    praise = (
        "梯度逐位相同，每层正好运行两次，最后一段也不例外。10 层、每个值 1 MiB，分 1、3、10 段时，"
        f"峰值是 {one}、{three}、{ten} MiB。",
        "Gradients are equal bit for bit, and every layer runs exactly twice, those of the last "
        "segment too. With 10 layers and values of 1 MiB, in 1, 3 and 10 segments the peak is "
        f"{one}, {three} and {ten} MiB.",
    )
    lower = [k for k, (theirs, right) in enumerate(peaks, 1) if theirs < right - 0.5]
    if not lower:
        return praise
    mine, usual = (f"{peak:.2f}" for peak in peaks[lower[0] - 1])
    return Verdict(
        "right",
        f"{praise[0]}\n你把长的段放在了前面，峰值更低：{lower[0]} 段时是 {mine} MiB，最后一段最长的"
        f"话是 {usual}。最后一段重算时所有检查点都在场，轮到第一段时别的都已经放掉。后面的单元格按"
        "最后一段最长来讲，所以用 recompute.chain。",
        f"{praise[1]}\nYours puts longer segments first, and peaks lower: with {lower[0]} segments "
        f"{mine} MiB, instead of {usual} with a longest one last. All checkpoints are there while "
        "the last segment is recomputed; at the first one the others are gone. Later cells explain "
        "the case of a longest segment last, and so use recompute.chain.",
        own=False,
    )


def yours_or_reference(
    answer: Callable[..., Any], check: Callable[..., Verdict], reference: Callable[..., Any]
) -> Callable[..., Any]:
    """``answer`` if it passes ``check``, else ``reference``; says which."""
    verdict = check(answer)
    if verdict.passed and verdict.own:
        say(zh="接下来用的是你写的。", en="From here on, your own is used.")
        return answer
    name = getattr(reference, "__self__", reference).__name__  # Rerun of Rerun.apply
    if verdict.passed:
        say(
            zh=f"你的也对，但分法与后面讲的不同：接下来用 recompute.{name}。",
            en="Yours is right too, but cuts differently from what is explained below: from here "
            f"on, recompute.{name} is used.",
        )
        return reference
    say(
        zh=f"你的还没有通过检查，接下来先用 recompute.{name}。",
        en=f"Yours has not passed its check yet: from here on, recompute.{name} is used.",
    )
    return reference


def check_checkpoint(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    cases: Sequence[Case],
    dropout: float = 0.0,
) -> Words:
    """What stages 2, 3 and 5 have in common. ``dropout``: of blocks that are open at once."""
    answer = Answer(function)
    cases = on_this_machine(cases)
    for case in cases:
        for seed in SEEDS:
            setting = Setting(case, seed)
            check_same(case, setting.run(called_plainly), setting.run(answer))
    block = Setting(PLAIN, 0)
    theirs, right, plain = (block.measured(call) for call in (answer, reference, called_plainly))
    where = case_name(PLAIN)
    check_memory(where, theirs, right)
    if theirs.flops > right.flops:
        raise wrong_at(
            where,
            (
                f"做了 {theirs.flops:,} 次浮点运算，应为 {right.flops:,}："
                "所有保存过的张量都有了之后，重算还在继续。",
                f"it does {theirs.flops:,} FLOPs, expected {right.flops:,}: the second run "
                "keeps going after all saved tensors are back.",
            ),
        )
    check_several(answer, dropout)
    check_nothing_left(answer)
    return (
        f"{len(cases)} 种情形、各 {len(SEEDS)} 个随机种子，梯度全部逐位相同；函数正好运行两次。"
        f"前向传播之后保存 {bytes_more(theirs):,} 字节，原来是 {bytes_more(plain):,}。",
        f"In {len(cases)} cases with {len(SEEDS)} seeds each, all gradients are equal bit for "
        f"bit, and the function runs exactly twice. {bytes_more(theirs):,} bytes are kept after "
        f"the forward pass; it was {bytes_more(plain):,}.",
    )
