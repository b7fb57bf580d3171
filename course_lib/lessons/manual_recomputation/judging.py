"""What can be off about an answer of lesson 02, in a fixed order, with a hint for each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...memory.trace import MemoryTrace
from ...notebook.checking import (
    Unfinished,
    Verdict,
    Words,
    Wrong,
    raised,
)
from .cases import (
    AUTOCAST_HINT,
    BOUNDARY,
    MODE_HINT,
    NO_AUTOCAST_HINT,
    RANDOM_HINT,
    SLACK,
    Case,
    Run,
    Start,
    case_name,
    wrong_at,
)


def check_same(case: Case, plain: Run, theirs: Run) -> None:
    """Raise ``Wrong`` for the first difference that matters."""
    where = case_name(case)
    found, expected = len(theirs.outputs), len(plain.outputs)
    if found != expected:
        raise wrong_at(
            where,
            (
                f"输出有 {found} 个，应有 {expected} 个。",
                f"it returns {found} outputs, expected {expected}.",
            ),
        )
    for mine, right in zip(theirs.outputs, plain.outputs, strict=True):
        check_output(where, mine, right)
    check_gradients(where, hint_for(case, theirs.starts), plain.gradients, theirs.gradients)
    check_calls(where, theirs.calls)
    if not all(map(torch.equal, theirs.random_states, plain.random_states)):
        raise wrong_at(
            where,
            (
                "梯度对了，但这一步之后的随机数状态与不用检查点时不同："
                "之后抽的随机数都变了。重算结束后要放回原来的状态。",
                "gradients agree, but the random state after the step is not what it would be "
                "without a checkpoint: later draws get different numbers. Put the state back "
                "after the second run.",
            ),
        )


def hint_for(case: Case, starts: Sequence[Start]) -> Words:
    """Why the second run of a function may have done something else, judged by how it began."""
    if len(starts) > 1:
        first, second = starts[:2]
        if case.random and not torch.equal(first.random_state, second.random_state):
            return RANDOM_HINT
        if first.training != second.training:
            return MODE_HINT
        if first.autocast and not second.autocast:
            return AUTOCAST_HINT
        if second.autocast and not first.autocast:
            return NO_AUTOCAST_HINT
    return case.hint


def check_output(where: Words, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        shapes = [f"{list(t.shape)} {str(t.dtype)[6:]}" for t in (found, expected)]
        raise wrong_at(
            where,
            (
                f"输出是 {shapes[0]}，应是 {shapes[1]}。",
                f"the output is {shapes[0]}, expected {shapes[1]}.",
            ),
        )
    if not torch.equal(found, expected):
        gap = (found - expected).abs().max().item()
        raise wrong_at(
            where,
            (
                f"前向传播的输出就不一样，最多差 {gap:.2g}。",
                f"the output of the forward pass already differs, by up to {gap:.2g}.",
            ),
        )


def check_gradients(
    where: Words, hint: Words, expected: dict[str, Tensor | None], found: dict[str, Tensor | None]
) -> None:
    for name, right in expected.items():
        mine = found[name]
        who = "输入" if name.startswith("x") else "参数", "input" if name[0] == "x" else "parameter"
        if right is None and mine is None:
            continue
        if right is None:
            raise wrong_at(
                where,
                (
                    f"{who[0]} {name} 不要梯度，却得到了一个。",
                    f"{who[1]} {name} needs no gradient but got one.",
                ),
            )
        if mine is None:
            raise wrong_at(
                where,
                (f"{who[0]} {name} 没有得到梯度。", f"{who[1]} {name} got no gradient."),
                hint,
            )
        if mine.shape != right.shape or mine.dtype != right.dtype:
            raise wrong_at(
                where,
                (
                    f"{name} 的梯度是 {list(mine.shape)}，应是 {list(right.shape)}。",
                    f"the gradient of {name} is {list(mine.shape)}, expected {list(right.shape)}.",
                ),
            )
        if torch.equal(mine, right):
            continue
        if torch.allclose(mine, 2 * right, rtol=1e-4, atol=1e-6):
            raise wrong_at(
                where,
                (
                    f"{name} 的梯度正好是应有的 2 倍：加了两次。",
                    f"the gradient of {name} is exactly twice what it should be: "
                    "it was added twice.",
                ),
            )
        gap = (mine - right).abs().max().item()
        scale = right.abs().max().item()
        raise wrong_at(
            where,
            (
                f"{name} 的梯度与普通反向传播不同，最多差 {gap:.2g}（梯度本身最大 {scale:.2g}）。",
                f"the gradient of {name} differs from plain backward's by up to {gap:.2g} (its own "
                f"largest entry is {scale:.2g}).",
            ),
            hint,
        )


def check_calls(where: Words, calls: tuple[int, int], expected: int = 2) -> None:
    forward, total = calls
    if forward != 1:
        raise wrong_at(
            where,
            (
                f"前向传播中函数运行了 {forward} 次，应为 1 次。",
                f"the function ran {forward} times in the forward pass, expected 1.",
            ),
        )
    if total == 1:
        raise wrong_at(
            where,
            (
                "函数总共只运行了 1 次，应为 2 次：没有重算，里面的值就一直占着内存。",
                "the function ran only once in all, expected 2: if nothing is recomputed, "
                "everything inside was kept.",
            ),
        )
    if total != expected:
        raise wrong_at(
            where,
            (
                f"函数总共运行了 {total} 次，应为 {expected} 次：多跑的都要花时间。",
                f"the function ran {total} times in all, expected {expected}: every "
                "run takes time.",
            ),
        )


def bytes_more(trace: MemoryTrace) -> int:
    return sum(trace.kept.values()) - sum(trace.before.values())


def check_memory(
    where: Words, theirs: MemoryTrace, reference: MemoryTrace, boundary: int = BOUNDARY
) -> None:
    """Kept bytes and peak against the reference's; less than a boundary value more is let pass."""
    kept, allowed = bytes_more(theirs), bytes_more(reference) + SLACK
    if kept > allowed:
        more = kept - bytes_more(reference)
        hint = ("", "")
        if boundary <= more < 2 * boundary:
            hint = (
                f"多出来的约是一个输出的大小（{boundary:,}）：是谁还拿着它？",
                f"The surplus is about one output ({boundary:,}): who still holds it?",
            )
        raise wrong_at(
            where,
            (
                f"前向传播结束时保存了 {kept:,} 字节，应不超过 {allowed:,}。",
                f"{kept:,} bytes are kept when the forward pass ends, "
                f"expected at most {allowed:,}.",
            ),
            hint,
        )
    peak, allowed = theirs.peak, reference.peak + boundary + SLACK
    if peak > allowed:
        raise wrong_at(
            where,
            (
                f"峰值 {peak:,} 字节，应不超过 {allowed:,}。",
                f"the peak is {peak:,} bytes, expected at most {allowed:,}.",
            ),
        )


_NO_GRAD_HINT = (
    "反向传播里梯度模式默认是关着的，重算没有建图：用 torch.enable_grad()。",
    "Grad mode is off inside a backward pass, so the second run built no graph: use "
    "torch.enable_grad().",
)


_NUMBERS_HINT = (
    "重算时收下的张量里没有要的那一个：编号要与前向传播时一一对上，每个也只能取一次。",
    "What the second run collected does not hold the one that was asked for: its numbers have to "
    "match those of the forward pass, and each can be taken out once only.",
)


_ERRORS: tuple[tuple[str, Words], ...] = (
    (
        "backward through the graph a second time",
        (
            "重算接在了原来的图上，反向传播一直走到了 x 之前：先 x.detach()。",
            "The second run is attached to the old graph, so its backward pass went past x: "
            "x.detach() first.",
        ),
    ),
    (
        "incorrect number of gradients",
        (
            "forward 除 ctx 之外收下几个值，backward 就要返回几项；不要梯度的那几项返回 None。",
            "backward returns one item for each value that forward takes besides ctx, and None for "
            "those without a gradient.",
        ),
    ),
    (
        "implicitly created only for scalar",
        (
            "backward() 需要传入输出的梯度；它还是 None，说明没有人要过那个梯度。",
            "backward() needs the gradient of that output; it is still None because nobody asked "
            "for it.",
        ),
    ),
)


def _hint_for_error(error: Exception) -> Words:
    """What an exception in a recomputation comes from, judged by how the runs before it began."""
    starts: Sequence[Start] = getattr(error, "_starts", ())
    if len(starts) > 1 and not starts[-1].grad and isinstance(error, (RuntimeError, LookupError)):
        return _NO_GRAD_HINT  # without a graph, pack is never asked, and nothing is collected
    if len(starts) > 1 and starts[0].autocast != starts[-1].autocast and "dtype" in str(error):
        return AUTOCAST_HINT
    if len(starts) > 1 and isinstance(error, LookupError):
        return _NUMBERS_HINT
    found = next((hint for sign, hint in _ERRORS if sign in str(error)), ("", ""))
    more = getattr(error, "_open", ("", ""))
    return f"{found[0]}{more[0]}", " ".join(filter(None, (found[1], more[1])))


def hinted(check: Callable[..., Words | Verdict]) -> Callable[..., Words | Verdict]:
    """Put a hint below what an exception says."""

    @functools.wraps(check)
    def hinted(answer: Any) -> Words | Verdict:
        try:
            return check(answer)
        except (Wrong, Unfinished):
            raise
        except Exception as error:
            zh, en = _hint_for_error(error)
            verdict = raised(error)
            return replace(
                verdict, zh=f"{verdict.zh}\n{zh}".rstrip(), en=f"{verdict.en}\n{en}".rstrip()
            )

    return hinted


def called_plainly(function: nn.Module, *inputs: Any) -> Any:
    return function(*inputs)


def on_this_machine(cases: Iterable[Case]) -> list[Case]:
    return [case for case in cases if case.device == "cpu" or torch.cuda.is_available()]
