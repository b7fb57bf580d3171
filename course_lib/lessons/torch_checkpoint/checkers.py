"""Checkers of lesson 03: repairs that are really repairs, a budget kept, and what no tool sees."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import random
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...counting import order_of_calls
from ...figures.words import size_text
from ...gradients import UnequalWork, same_gradients
from ...memory.measurement import measure
from ...notebook.checking import Answer, Words, Wrong, briefly, judged, waiting_for, words_of
from .collection import exhibit_named

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


@judged
def check_repairs(
    encode: Callable[[nn.Module, Tensor], Any],
    shake: Callable[[nn.Module, Tensor], Any],
    chain: Callable[[nn.ModuleList, Tensor], Any],
) -> Words:
    """Check the three repaired functions: right results, and still checkpointed.

    ``encode(model, x)``, ``shake(model, x)`` and ``chain(layers, x)`` must agree with the plain
    versions bit for bit, also when two batches are under way at once, and keep no more at the peak
    than one checkpoint per block needs.
    """
    torch.manual_seed(0)
    layers = nn.ModuleList(_block() for _ in range(6))
    fewer = nn.ModuleList(_block() for _ in range(4))
    tasks = (
        ("encode", Answer(encode), _encode, (layers[0], fewer[0])),
        ("shake", Answer(shake), _shake, (layers[0], fewer[0])),
        ("chain", Answer(chain), _chain, (layers, fewer)),
    )
    for name, answer, plain, models in tasks:
        with _named(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for model in models:
                _check_repair(name, answer, plain, model)
    return (
        "三处都修好了：输出、梯度、随机数状态逐位相同，检查点也还在。",
        "All three are repaired: outputs, gradients and random states agree bit for bit, and the "
        "checkpoints are still there.",
    )


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the name of the function in front of what is wrong with it."""
    try:
        yield
    except UnequalWork as error:
        zh, en = words_of(error)
    except Wrong as wrong:
        zh, en = wrong.args
    else:
        return
    raise Wrong(f"{name}：{zh}", f"{name}: {en}") from None


def _check_repair(name: str, answer: Answer, plain: Callable, model: Any) -> None:
    """Raise ``Wrong`` or ``UnequalWork`` for what is wrong with one repair."""
    x = torch.randn(128, 16)
    _try(answer, model, x)
    for both in (False, True):
        _check_same(
            _of_two(partial(plain, model)) if both else partial(plain, model),
            _of_two(partial(answer, model)) if both else partial(answer, model),
            x,
            model,
            _TWO_AT_ONCE if both else ("", ""),
        )
    forward, calls, peak = _calls_and_peak(lambda: answer(model, x), model, x)
    *_, plain_peak = _calls_and_peak(lambda: plain(model, x), model, x)
    if max(forward) > 1:
        raise Wrong(
            f"有的块在前向传播里就跑了 {max(forward)} 次；重算是反向传播的事。",
            f"some block runs {max(forward)} times in the forward pass; recomputing is for the "
            "backward pass.",
        )
    if min(calls) < 2:
        raise Wrong(
            "梯度对了，可是有的块前向只跑了一次：检查点不见了。",
            "the gradients are right, but some block ran forward only once: its checkpoint is "
            "gone.",
        )
    if max(calls) > 2:
        raise Wrong(
            f"梯度对了，可是有的块前向跑了 {max(calls)} 次，应为 2 次：检查点套着检查点。",
            f"the gradients are right, but some block ran forward {max(calls)} times instead of "
            "2: there is a checkpoint inside a checkpoint.",
        )
    if name == "chain" and peak > 0.75 * plain_peak:
        raise Wrong(
            f"梯度对了，但峰值 {peak:,} 字节，不用检查点是 {plain_peak:,}。"
            "整条链包成一个检查点，反向时就一起回来；要每层一个。",
            f"the gradients are right, but the peak is {peak:,} bytes, and {plain_peak:,} "
            "without checkpoints. One checkpoint around the whole chain brings all of it back at "
            "once; use one per layer.",
        )


_TWO_AT_ONCE = (
    "（两批先后前向、再一起反向时：前一批的东西被后一批盖掉了？）",
    " (With two batches forward and then both backward: does the second overwrite something of "
    "the first?)",
)


def _of_two(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Two batches of which the second is run forward before the first is run backward."""
    return lambda x: (function(x), function(0.5 * x))


def _try(answer: Answer, model: nn.Module, x: Tensor) -> None:
    """One step, so that an exception is raised where it can be located."""
    found = answer(model, x)
    if found is None:
        raise answer.nothing(model, x)
    if not isinstance(found, Tensor):
        raise Wrong(
            f"要返回张量，得到的是 {briefly(found)}。", f"Return a tensor, not {briefly(found)}."
        )
    gradients = [parameter.grad for parameter in model.parameters()]
    try:
        if found.requires_grad:
            with waiting_for(("反向传播", "the backward pass")):
                found.sum().backward()
    finally:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient


def _check_same(
    plain: Callable, answer: Callable, x: Tensor, model: nn.Module, more: Words = ("", "")
) -> None:
    found = same_gradients(plain, answer, x, model=model, seed=SEED)
    if found.error is not None:
        raise found.error
    if not found:
        raise Wrong(found.zh + more[0], found.en + more[1])


def _calls_and_peak(
    run: Callable[[], Tensor], model: nn.Module, x: Tensor
) -> tuple[list[int], list[int], int]:
    """How often each block's first layer ran in forward and in all, and the step's peak (bytes)."""
    firsts = [module[0] for module in model.modules() if isinstance(module, nn.Sequential)]
    gradients = [parameter.grad for parameter in model.parameters()]
    forward: list[int] = []

    def step() -> None:
        loss = run().square().sum()
        forward.extend(order)
        loss.backward()

    try:
        for parameter in model.parameters():
            parameter.grad = None
        with order_of_calls(firsts) as order:
            trace = measure(step, model, inputs=x)
    finally:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
    places = range(len(firsts))
    return [forward.count(i) for i in places], [order.count(i) for i in places], trace.peak


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
    """Four ``Thick`` and four ``Dense`` blocks in turn: (batch, 64) → the same.

    ``blocks``: others in their place; a slice, ``blocks[:5]``, is made so.
    """

    def __init__(self, blocks: Iterable[nn.Module] | None = None) -> None:
        if blocks is None:
            blocks = (kind(64) for _ in range(4) for kind in (Thick, Dense))
        super().__init__(blocks)


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


@judged
def check_budget(forward: Callable[[Mixed, Tensor], Any]) -> Words:
    """Check ``forward(blocks, x)``: the network's own result within ``BUDGET`` bytes.

    Passes if outputs and gradients agree bit for bit, also for a second network, the peak of one
    forward and backward pass is within the budget, and FLOPs grow by no more than ``MORE_FLOPS``.
    """
    answer = Answer(forward)
    blocks, x = _mixed()
    own = list(blocks)
    _try(answer, blocks, x)
    if len(blocks) != len(own) or any(a is not b for a, b in zip(blocks, own, strict=True)):
        raise Wrong(
            f"{answer.name} 改动了传进来的 blocks，下一步就会在改过的上面再改一遍：只在前向传播里"
            "用检查点，不要换掉块。",
            f"{answer.name} changes the blocks that were passed in, and the next step would "
            "change them again: use checkpoints in the forward pass, and leave the blocks.",
        )
    try:
        for network in (blocks, Mixed()):
            _check_same(partial(_chain, network), partial(answer, network), x, network)
        order, forward_calls = _runs(answer, blocks, x)
        peak, flops = _measured(lambda: answer(blocks, x), blocks, x)
    except UnequalWork as error:
        raise Wrong(*words_of(error)) from None
    before, flops_before = _measured(lambda: _chain(blocks, x), blocks, x)
    more = flops / flops_before - 1
    sizes = size_text(peak), size_text(BUDGET), size_text(before)
    figures = (
        f"峰值 {sizes[0]}（预算 {sizes[1]}，原来 {sizes[2]}），FLOPs {more:+.1%}",
        f"peak {sizes[0]} (budget {sizes[1]}, was {sizes[2]}), FLOPs {more:+.1%}",
    )
    if max(forward_calls) > 1:
        raise Wrong(
            f"{figures[0]}。有的块在前向传播里就跑了 {max(forward_calls)} 次。",
            f"{figures[1]}. Some block runs {max(forward_calls)} times in the forward pass.",
        )
    if peak > BUDGET:
        zh, en = _hint_for_budget(order, more)
        over = size_text(peak - BUDGET)
        raise Wrong(
            f"{figures[0]}。还超出 {over}：{zh}", f"{figures[1]}. Still {over} too much: {en}"
        )
    if more > MORE_FLOPS:
        dense = sorted({block for block in order if isinstance(blocks[block], Dense)})
        raise Wrong(
            f"{figures[0]}，上限是 {MORE_FLOPS:+.0%}。内存够了，还剩 {size_text(BUDGET - peak)}，"
            f"算得却太多：重算了 {len(set(order))} 块，其中 {len(dense)} 块 Dense。"
            "哪种块重算起来贵，省得却少？",
            f"{figures[1]}, where {MORE_FLOPS:+.0%} is allowed. The memory is right, with "
            f"{size_text(BUDGET - peak)} to spare, the price is not: {len(set(order))} blocks are "
            f"recomputed, {len(dense)} of them Dense. Which kind of block is expensive to "
            "recompute and saves little?",
        )
    return f"{figures[0]}。梯度逐位相同。", f"{figures[1]}. The same gradients, bit for bit."


def _runs(answer: Answer, blocks: Mixed, x: Tensor) -> tuple[list[int], list[int]]:
    """Which blocks run again in the backward pass, in order; how often each ran in forward."""
    try:
        with order_of_calls(blocks) as runs:
            loss = answer(blocks, x).square().mean()
            forward = list(runs)
            runs.clear()
            loss.backward()
    finally:
        blocks.zero_grad()
    return runs, [forward.count(i) for i in range(len(blocks))]


def _hint_for_budget(order: list[int], more: float) -> Words:
    """What to look at next, after an attempt that recomputes the blocks ``order``, in this order.

    One checkpoint per block runs them again from the last to the first.
    """
    again, left = set(order), max(0.0, MORE_FLOPS - more)
    thick = {0, 2, 4, 6}
    if not again:
        return (
            "没有一块被重算。哪种块保存得最多，重算起来又最便宜？",
            "no block is recomputed. Which kind keeps most, and costs least to run again?",
        )
    if any(after > before for before, after in itertools.pairwise(order)):
        return (
            "几个块合在一个检查点里，会在反向时一起回来。",
            "Blocks that share a checkpoint come back together in the backward pass.",
        )
    if more > MORE_FLOPS:
        return (
            f"FLOPs 也超了 {more - MORE_FLOPS:.1%}。哪种块保存得多，重算起来又便宜？",
            f"and FLOPs are {more - MORE_FLOPS:.1%} over as well. Which kind of block keeps "
            "much and is cheap to run again?",
        )
    if missing := len(thick - again):
        return (
            f"还有 {missing} 个重算起来几乎不要 FLOPs 的块，什么都保存着。",
            f"{missing} of the blocks that take next to no FLOPs to run again still keep "
            "everything.",
        )
    if 7 in again:
        return (
            f"FLOPs 还能再多 {left:.1%}。有一块刚丢掉就要重算，省不下峰值：反向传播从哪里开始？",
            f"you have {left:.1%} of FLOPs left. One block is recomputed as soon as it is "
            "dropped, which does not lower the peak: where does the backward pass begin?",
        )
    return (
        f"FLOPs 还能再多 {left:.1%}。省下的已经省了，峰值里剩下的主要是谁的？",
        f"you have {left:.1%} of FLOPs left. What is cheap has been dropped: whose is most of "
        "what remains?",
    )


# --- what the tool cannot see ---------------------------------------------------------------------

_REASONS = {
    "A": ("它看得出来", "it does see it"),
    "B": ("数值全对，错的是内存", "all numbers are right; it is the memory that is wrong"),
    "C": ("要两个进程才显形", "it takes two processes to show"),
    "D": ("这一次运行里没有发生", "it does not happen in this run"),
}

_BLIND_SPOTS = {
    "late-binding": (
        "A",
        "重计算用错了层，梯度当场不同。",
        "The recomputation runs the wrong layer, and the gradients differ at once.",
    ),
    "batch-norm": (
        "A",
        "梯度相同，可它也比较缓冲区：滑动平均不同。",
        "The gradients agree, but it compares buffers too, and the averages differ.",
    ),
    "whole-model": (
        "B",
        "输出和梯度都对，只是峰值没降。要用 measure 看。",
        "Outputs and gradients are right; only the peak did not fall. Use measure.",
    ),
    "one-segment": (
        "B",
        "没有检查点，当然和普通的一样：它证明相同，不证明省了内存。",
        "Without a checkpoint it equals the plain run, of course: the tool shows that "
        "they are the same, not that memory was saved.",
    ),
    "ddp-shared": (
        "C",
        "一个进程里没有谁要取平均，梯度是对的；错在取平均的时机。",
        "In one process nothing is averaged, and the gradients are right; the fault is "
        "in when the average is taken.",
    ),
    "rare-branch": (
        "D",
        "同一个种子、同一批输入，分支没走到。换种子、换输入，多跑几次。",
        "With this seed and this batch the branch is not taken. Try several seeds and inputs.",
    ),
}


@judged
def check_blind_spots(answer: Callable[[], Any]) -> Words:
    """Check ``answer()``: for each name, "A", "B", "C" or "D" as the exercise lists them."""
    said = answer
    if not isinstance(answer, dict):
        ask = Answer(answer)
        said = ask()
        if said is None:
            raise ask.nothing()
    if not isinstance(said, dict):
        raise Wrong(
            f"要返回一个字典，得到的是 {briefly(said)}。", f"Return a dict, not {briefly(said)}."
        )
    letters = {_as_typed(name).lower().replace("_", "-"): value for name, value in said.items()}
    for name, (truth, _, _) in _BLIND_SPOTS.items():
        if name not in letters:
            _say_missing(name, letters)
        letter = _letter(letters[name])
        if letter not in _REASONS:
            shown = briefly(letters[name])
            raise Wrong(
                f"{name}：只能是 A、B、C、D，得到的是 {shown}。",
                f"{name}: A, B, C or D, not {shown}.",
            )
        if letter != truth:
            chosen = _REASONS[letter]
            zh, en = _evidence(name)
            raise Wrong(
                f"{name} 不是 {letter}（{chosen[0]}）。{zh}",
                f"{name} is not {letter} ({chosen[1]}). {en}",
            )
    reasons = _BLIND_SPOTS.items()
    return (
        "全对。" + "".join(f"\n{name}：{zh}" for name, (_, zh, _) in reasons),
        "All correct." + "".join(f"\n{name}: {en}" for name, (_, _, en) in reasons),
    )


def _as_typed(value: Any) -> str:
    """Full-width letters and stray spaces make no difference."""
    return unicodedata.normalize("NFKC", str(value)).strip()


def _letter(value: Any) -> str:
    """A full-width A, ``a`` and ``A: it sees a difference`` are all A."""
    found = re.fullmatch(r"([A-Za-z])(?:[\W_].*)?", _as_typed(value), re.DOTALL)
    return found[1].upper() if found else ""


def _say_missing(name: str, letters: dict[str, Any]) -> None:
    near = [
        other for other in difflib.get_close_matches(name, letters) if other not in _BLIND_SPOTS
    ]
    zh, en = (f"“{near[0]}”是写错了吗？", f" Is {near[0]!r} a slip?") if near else ("", "")
    raise Wrong(f"少了 {name}。{zh}", f"{name} is missing.{en}")


def _evidence(name: str) -> tuple[str, str]:
    """What the exhibit shows when it is run now; a hint where it cannot be run here."""
    try:
        found = exhibit_named(name).inspect()
    except KeyError:
        if name == "ddp-shared":
            return (
                "展品在附馆：它的代码一开头是什么？",
                "The exhibit is in the annexe: what does its code begin with?",
            )
        return (
            "千分之一的批次才走到的分支，一次比较撞上它的机会有多大？",
            "A branch that one batch in a thousand takes: how likely is it in one comparison?",
        )
    hint_zh, hint_en = f"运行它：{found.agreement.zh}", f"Run it: {found.agreement.en}"
    if found.peaks:
        plain, checkpointed = (size_text(peak) for peak in found.peaks)
        hint_zh += f" 峰值：普通 {plain}，有检查点 {checkpointed}。"
        hint_en += f" Peaks: plain {plain}, with checkpoints {checkpointed}."
    return hint_zh, hint_en
