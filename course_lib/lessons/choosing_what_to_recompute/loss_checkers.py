"""The checker of lesson 06's chunked loss: the same loss and gradients, and logits of one chunk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ...figures.words import size_text
from ...memory.measurement import measure
from ...memory.trace import MemoryTrace
from ...notebook.checking import Answer, Words, Wrong, briefly, judged, waiting_for

IGNORED = -100  # the target of padding, as in ``cross_entropy``
CLOSE = 1e-4  # of the largest number: sums in another order
TOLERATED = 1.1  # times the reference's peak
TOKENS, WIDTH, WORDS = 1024, 16, 2000  # of the step whose peak is measured


@dataclass(frozen=True)
class _Case:
    """What an answer is given. ``frozen``: the hidden values need no gradient."""

    tokens: int
    chunks: int
    padding: int = 0  # of the last targets
    frozen: bool = False
    bias: bool = True

    def build(self, width: int = WIDTH, words: int = 50) -> tuple[Tensor, nn.Linear, Tensor]:
        torch.manual_seed(0)
        hidden = torch.randn(self.tokens, width).requires_grad_(not self.frozen)
        targets = torch.randint(words, (self.tokens,))
        if self.padding:
            targets[-self.padding :] = IGNORED
        return hidden, nn.Linear(width, words, bias=self.bias), targets


_CASES = (
    _Case(24, 4),
    _Case(24, 1, bias=False),
    _Case(26, 4),  # does not divide
    _Case(24, 4, padding=5),
    _Case(24, 4, frozen=True),
)


@judged
def check_chunked_loss(answer: Callable[[Tensor, nn.Linear, Tensor, int], Any]) -> Words:
    """Check ``answer(hidden, head, targets, chunks)``: the mean cross-entropy, chunk by chunk.

    ``hidden``: (tokens, width); ``targets``: (tokens,), −100 where padding does not count.
    Judged: the loss, the gradients of ``hidden`` and ``head``, and that a step holds the logits
    of one chunk at a time.
    """
    ask = Answer(answer)
    for case in _CASES:
        _check_numbers(ask, case)
    plain = _trace_of(_whole, 1)
    for chunks in (16, 4):
        _check_peak(ask, chunks, plain)
    mine = _trace_of(ask, 16).peak
    return (
        f"损失和梯度都对；分 16 块时，峰值从 {size_text(plain.peak)} 降到 {size_text(mine)}。",
        f"Loss and gradients are right; in 16 chunks the peak falls from {size_text(plain.peak)} "
        f"to {size_text(mine)}.",
    )


def chunked_loss(hidden: Tensor, head: nn.Linear, targets: Tensor, chunks: int) -> Tensor:
    """The reference: a checkpoint around each chunk's head and loss."""

    def part(h: Tensor, t: Tensor) -> Tensor:
        return functional.cross_entropy(head(h), t, reduction="sum")

    pairs = zip(hidden.chunk(chunks), targets.chunk(chunks), strict=True)
    total = sum(checkpoint(part, h, t, use_reentrant=False) for h, t in pairs)
    return total / (targets != IGNORED).sum()


def _whole(hidden: Tensor, head: nn.Linear, targets: Tensor, chunks: int) -> Tensor:
    return functional.cross_entropy(head(hidden), targets)


# --- loss and gradients -------------------------------------------------------------------------


def _check_numbers(ask: Answer, case: _Case) -> None:
    hidden, head, targets = case.build()
    right, gradients = _run(functools.partial(_whole, hidden, head, targets, 1), hidden, head)
    loss = ask(hidden, head, targets, case.chunks)
    if loss is None:
        raise ask.nothing(hidden, head, targets, case.chunks)
    zh, en = _where(case)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise Wrong(
            f"应返回一个标量张量，得到的是 {briefly(loss)}。",
            f"expected a tensor with one number, got {briefly(loss)}.",
        )
    if not loss.requires_grad and case.frozen:
        raise Wrong(*_no_gradient("head.weight", case))
    if not loss.requires_grad:
        raise Wrong(
            "返回的损失没有计算图，训练无法反向传播：不要用 .item()、detach() 或 no_grad()，"
            "也不要在里面自己调用 backward()。",
            "The loss returned has no graph, so training cannot go backward from it: no .item(), "
            "detach() or no_grad(), and no backward() of your own inside.",
        )
    if not _close(loss.detach().reshape(()), right):
        raise Wrong(*_fault_in_loss(loss.item(), right.item(), case))
    _, found = _run(lambda: loss, hidden, head)
    for name, one, other in zip(
        ("hidden", "head.weight", "head.bias"), gradients, found, strict=True
    ):
        if one is None:
            continue
        if other is None:
            raise Wrong(*_no_gradient(name, case))
        if not _close(other, one):
            off = float((other - one).abs().max() / one.abs().max())
            raise Wrong(
                f"{zh}：损失的值对，{name} 的梯度却不对，最多差最大值的 {off:.0%}。重算看到的和前向"
                "看到的不是同一块：检查点里的函数是不是用了循环变量？把这一块的目标作为参数传进去。",
                f"{en}: the loss is right, but the gradient of {name} is off by up to {off:.0%} of "
                "its largest number. The recomputation sees another chunk than forward did: does "
                "the function in the checkpoint use a loop variable? Pass the chunk's targets as "
                "an argument.",
            )


def _run(
    loss: Callable[[], Tensor], hidden: Tensor, head: nn.Linear
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and the gradients of the hidden values, of the weight and of the bias."""
    head.zero_grad()
    hidden.grad = None
    result = loss()
    with waiting_for(("反向传播", "the backward pass")):
        result.sum().backward()
    leaves = [hidden, head.weight, head.bias]
    gradients = [
        None if leaf is None or leaf.grad is None else leaf.grad.clone() for leaf in leaves
    ]
    return result.detach(), gradients


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= CLOSE * other.abs().max())


def _where(case: _Case) -> Words:
    zh, en = (
        f"{case.tokens} 个 token 分 {case.chunks} 块",
        f"{case.tokens} tokens, {case.chunks} chunks",
    )
    if case.padding:
        zh, en = f"{zh}，其中 {case.padding} 个填充", f"{en}, {case.padding} of them padding"
    if case.frozen:
        zh, en = f"{zh}，hidden 不要梯度", f"{en}, hidden without a gradient"
    return zh, en


def _fault_in_loss(mine: float, right: float, case: _Case) -> Words:
    zh, en = _where(case)
    hint_zh, hint_en = _guess(mine, case)
    return (
        f"{zh}：损失应为 {right:.4f}，你的是 {mine:.4f}。{hint_zh}",
        f"{en}: the loss is {right:.4f}, yours is {mine:.4f}. {hint_en}",
    )


def _guess(mine: float, case: _Case) -> Words:
    """What a wrong loss is the right value of, as far as can be told."""
    hidden, head, targets = case.build()
    with torch.no_grad():
        each = functional.cross_entropy(head(hidden), targets, reduction="none")
    counted = int((targets != IGNORED).sum())
    even = len(each) // case.chunks * case.chunks
    parts = zip(each.chunk(case.chunks), targets.chunk(case.chunks), strict=True)
    whole = [part.sum() / max(1, int((t != IGNORED).sum())) for part, t in parts]
    known: list[tuple[Any, Words]] = [
        (
            each.sum(),
            (
                "这是总和：还要除以计入的 token 数。",
                "That is the sum: divide by the tokens counted.",
            ),
        ),
        (
            torch.stack(whole).mean(),
            (
                "这是各块平均值的平均：块里计入的 token 数不同，就不等于总的平均。"
                "先求和，最后除一次。",
                "That is the mean of the chunks' means, which is not the mean of all where chunks "
                "count different numbers of tokens. Add up sums and divide once, at the end.",
            ),
        ),
        (
            torch.stack(whole).sum(),
            (
                '这是各块平均值之和：每块要用 reduction="sum"，最后除一次。',
                'That is the sum of the chunks\' means: use reduction="sum" for each, and divide '
                "once.",
            ),
        ),
        (
            each.sum() / len(each),
            (
                "填充（目标 −100）不计入：除数是目标不等于 −100 的个数。",
                "Padding (target −100) does not count: divide by the number of targets other than "
                "−100.",
            ),
        ),
        (
            each[:even].sum() / counted,
            (
                "除不尽时，最后几个 token 丢了。",
                "The last tokens are lost where chunks do not divide evenly.",
            ),
        ),
        (
            each[:even].sum() / even,
            (
                "除不尽时，最后几个 token 丢了。",
                "The last tokens are lost where chunks do not divide evenly.",
            ),
        ),
    ]
    for value, words in known:
        if abs(float(value) - mine) <= CLOSE * abs(float(value)):
            return words
    return (
        "每块的和加起来，再除以目标不等于 −100 的 token 数。",
        "Add up the chunks' sums, and divide by the number of targets other than −100.",
    )


def _no_gradient(name: str, case: _Case) -> Words:
    zh, en = _where(case)
    if case.frozen:
        return (
            f"{zh}：{name} 没有梯度。重入的检查点只看张量输入要不要梯度：底座冻结时，"
            "输出层就学不到东西。用 use_reentrant=False。",
            f"{en}: {name} has no gradient. A reentrant checkpoint only asks whether its tensor "
            "inputs need one: on a frozen base the head learns nothing. Use use_reentrant=False.",
        )
    return (
        f"{zh}：{name} 没有梯度：它从计算图上断开了。",
        f"{en}: {name} has no gradient: it was cut off the graph.",
    )


# --- memory -------------------------------------------------------------------------------------


def _trace_of(loss: Callable[..., Tensor], chunks: int) -> MemoryTrace:
    hidden, head, targets = _Case(TOKENS, chunks).build(words=WORDS)

    def step() -> None:
        loss(hidden, head, targets, chunks).sum().backward()

    step()  # gradients exist
    return measure(step, head, inputs=(hidden, targets))


def _check_peak(ask: Answer, chunks: int, plain: MemoryTrace) -> None:
    mine, best = _trace_of(ask, chunks), _trace_of(chunked_loss, chunks)
    logits = 4 * TOKENS * WORDS
    made = sum(
        event.operator in ("aten.addmm", "aten.mm") and event.phase == "forward" and event.size > 0
        for event in mine.events
    )
    if made > 2 * chunks:
        raise Wrong(
            f"要的是 {chunks} 块，你切了 {made} 块：每块都有固定的开销，检查点还各存一份随机数"
            "状态，块太小，得不偿失。",
            f"{chunks} chunks were asked for, and you cut {made}: each has its overhead, and its "
            "checkpoint a random state to keep; chunks that small are not worth it.",
        )
    if mine.peak <= TOLERATED * best.peak:
        return
    sizes = size_text(mine.peak), size_text(best.peak)
    zh = f"分 {chunks} 块，峰值 {sizes[0]}，应当约为 {sizes[1]}（不分块 {size_text(plain.peak)}）。"
    en = (
        f"In {chunks} chunks the peak is {sizes[0]}, where {sizes[1]} is enough "
        f"({size_text(plain.peak)} without chunks)."
    )
    raise Wrong(*_why_so_high(zh, en, mine, logits, made, chunks))


def _why_so_high(zh: str, en: str, mine: MemoryTrace, logits: int, made: int, chunks: int) -> Words:
    if mine.kept_for_backward() > 0.9 * logits:
        if made <= 1:
            return (
                f"{zh}全部 logits（{size_text(logits)}）一次就算了出来，还一直保留着：先切 hidden，"
                "输出层放进每块的检查点里。",
                f"{en} All logits ({size_text(logits)}) are computed at once, and kept: cut hidden "
                "first, and put the head inside each chunk's checkpoint.",
            )
        return (
            f"{zh}前向结束时，各块的 logits 都还保留着（{size_text(mine.kept_for_backward())}）："
            "检查点要把输出层和损失都包进去，每块一个。",
            f"{en} After the forward pass the logits of all chunks are still kept "
            f"({size_text(mine.kept_for_backward())}): each chunk needs a checkpoint around both "
            "head and loss.",
        )
    if 1 < made < chunks:
        return (
            f"{zh}你只切了 {made} 块。",
            f"{en} You cut only {made} chunks.",
        )
    return (
        f"{zh}前向没有存 logits，反向一开始却把它们一起算了回来：是不是只有一个检查点，"
        "包住了所有的块？要每块一个。",
        f"{en} The forward pass keeps no logits, but the backward pass brings them all back at "
        "once: is there one checkpoint around all chunks? Each needs its own.",
    )
