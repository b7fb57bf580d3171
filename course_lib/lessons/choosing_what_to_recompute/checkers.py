"""Lesson 06's exercises: a policy within a budget, a policy that is silently wrong, and puzzles."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from ...figures.words import size_text
from ...gradients import same_gradients
from ...memory.measurement import measure
from ...memory.simulation import simulated
from ...memory.trace import MemoryTrace
from ...notebook.checking import Answer, Unfinished, Words, Wrong, briefly, judged
from ...plans.selective import Choice, Of, Prediction, Score
from .blocks import Dropping, Gated, Spelled, scored, stack, stepping
from .storing import Storing

MIB = 2**20
_SAVES = (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)
_OFFLOADS = (CheckpointPolicy.MUST_CPU_OFFLOAD, CheckpointPolicy.PREFER_CPU_OFFLOAD)


# --- exercise 1: a policy within a budget ---------------------------------------------------------

SHAPE, DEPTH = (4, 256, 128), 4  # of the lesson's step
ROOM = 23 * MIB  # for what the forward pass leaves behind
AT_MOST = 0.05  # FLOPs added, as a share of the step without checkpoints


@functools.cache
def _lessons() -> Score:
    return scored(Spelled, DEPTH, SHAPE)


@judged
def check_policy(answer: Any) -> Words:
    """Check ``answer(context, operator, *args, **kwargs)`` on the lesson's four blocks.

    Judged: gradients equal to the plain step's bit for bit; what the forward pass leaves behind
    at most ``ROOM`` bytes; FLOPs at most ``AT_MOST`` above those without checkpoints.
    """
    policy = _Policy(answer)
    score = _lessons()
    with simulated():
        blocks, x = stack(Spelled, DEPTH), torch.empty(SHAPE)
        stepping(blocks, x)()
        trace = measure(stepping(blocks, x, policy.contexts), blocks, inputs=x)
    policy.must_have_decided()
    kept, more = _kept(trace), trace.flops / score.plain.flops - 1
    if kept > ROOM:
        raise Wrong(*_too_much(policy, score, kept, more))
    if more > AT_MOST:
        raise Wrong(*_too_slow(policy, score, kept, more))
    _check_gradients(policy, Spelled, (2, 16, 128))
    best = score.best(ROOM, "kept")
    return (
        f"梯度逐位相同；前向结束时保留着 {size_text(kept)}（预算 {size_text(ROOM)}），"
        f"FLOPs {more:+.1%}；这个预算的最优是 {best.flops / score.plain.flops - 1:+.1%}。",
        f"The gradients are the same bit for bit; {size_text(kept)} kept after forward (of "
        f"{size_text(ROOM)}), FLOPs {more:+.1%}, where the best within this budget is "
        f"{best.flops / score.plain.flops - 1:+.1%}.",
    )


def _kept(trace: MemoryTrace) -> int:
    return sum(trace.kept.values()) - sum(trace.before.values())


def _too_much(policy: _Policy, score: Score, kept: int, more: float) -> Words:
    zh = f"前向结束时保留着 {size_text(kept)}，超出预算 {size_text(kept - ROOM)}。"
    en = f"{size_text(kept)} kept after forward, {size_text(kept - ROOM)} over the budget."
    stored = policy.stored(score)
    spare = [choice for choice in stored if not choice.flops or not choice.again]
    if spare:
        worst = max(spare, key=lambda choice: choice.size)
        size = size_text(worst.size)
        if not worst.again:
            return (
                f"{zh}保留的 {worst.label}（每块 {size}）本来就不会重算：提前停止在它之前。",
                f"{en} {worst.label}, of which you store {size} per block, would never run again: "
                "recomputation stops before it.",
            )
        return (
            f"{zh}保留的 {worst.label}（每块 {size}）不做矩阵乘法，再算一遍不花 FLOPs。",
            f"{en} {worst.label}, of which you store {size} per block, multiplies no matrices: "
            "making it again takes no FLOPs.",
        )
    worst = min(stored, key=lambda choice: choice.flops_per_byte)
    return (
        f"{zh}你保留的里，每字节最不划算的是 {worst.label}：每块 {size_text(worst.size)}，"
        f"每字节只省 {worst.flops_per_byte:.0f} FLOPs。",
        f"{en} Of what you store, {worst.label} is worth least: {size_text(worst.size)} per block "
        f"for {worst.flops_per_byte:.0f} FLOPs per byte.",
    )


def _too_slow(policy: _Policy, score: Score, kept: int, more: float) -> Words:
    stored = {choice.number for choice in policy.stored(score)}
    again = [c for c in score.choices if c.number not in stored and c.again and c.flops]
    dear = max(again, key=lambda choice: (choice.flops_per_byte, choice.flops))
    zh = f"放得下（{size_text(kept)}），但 FLOPs {more:+.1%}，最多 {AT_MOST:+.0%}。"
    en = f"It fits ({size_text(kept)}), but FLOPs are {more:+.1%}, and {AT_MOST:+.0%} is the most."
    if policy.offloads:
        return (
            f"{zh}CPU_OFFLOAD 在即时执行时不搬运，只是静默地重算。",
            f"{en} In eager mode CPU_OFFLOAD moves nothing: it silently recomputes.",
        )
    return (
        f"{zh}还在重算的里，每字节最贵的是 {dear.label}：每块 {size_text(dear.size)}，"
        f"{dear.flops / 1e6:,.0f} M FLOPs。",
        f"{en} Of what is made again, {dear.label} is dearest per byte: {size_text(dear.size)} per "
        f"block for {dear.flops / 1e6:,.0f} M FLOPs.",
    )


def _check_gradients(policy: _Policy, kind: Callable[[], nn.Module], shape: tuple) -> None:
    torch.manual_seed(0)
    blocks = stack(kind, 2)
    x = torch.randn(shape)
    found = same_gradients(stepping(blocks, x), stepping(blocks, x, policy.contexts), model=blocks)
    if found.error is not None:
        raise found.error
    if not found:
        raise Wrong(
            f"{found.zh}是不是保留了一个抽随机数的结果，却重算它后面的另一个？重算时就少抽了一次。",
            f"{found.en} Is a result stored that draws random numbers, and a later one made again? "
            "Then the recomputation draws once less.",
        )


class _Policy:
    """A learner's policy, or list of operators, with what it decided in its first checkpoint."""

    def __init__(self, answer: Any):
        if isinstance(answer, (list, tuple)):
            kinds = list(answer)
            create_selective_checkpoint_contexts(kinds)  # says what is wrong with it
            self.function: Callable[..., Any] = lambda context, operator, *a, **k: (
                CheckpointPolicy.MUST_SAVE
                if operator in kinds
                else CheckpointPolicy.PREFER_RECOMPUTE
            )
            self.is_stub = False
        else:
            ask = Answer(answer)
            self.function, self.is_stub = ask.function, ask.is_stub
        self.decided: dict[tuple[Any, int], Any] = {}
        self.calls = 0

    @property
    def offloads(self) -> bool:
        return any(said in _OFFLOADS for said in self.decided.values())

    def contexts(self) -> Any:
        seen: Counter[Any] = Counter()
        self.calls += 1
        first = self.calls == 1

        def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
            said = self.function(context, operator, *args, **kwargs)
            if first:
                self.decided[operator, seen[operator]] = said
                seen[operator] += 1
            if said is None and self.is_stub:
                raise Unfinished
            if not isinstance(said, (bool, CheckpointPolicy)):
                raise Wrong(
                    f"策略对每个算子都要返回一个 CheckpointPolicy；对 {operator} 返回的是 "
                    f"{briefly(said)}。",
                    "A policy returns a CheckpointPolicy for every operator; for "
                    f"{operator} it returned {briefly(said)}.",
                )
            return said

        return create_selective_checkpoint_contexts(policy)

    def must_have_decided(self) -> None:
        if not self.decided:
            raise Unfinished

    def stored(self, score: Score) -> list[Choice]:
        """Those of the score's choices that it stores."""
        named = {(choice.operator, choice.nth): choice for choice in score.choices}
        return [
            named[key]
            for key, said in self.decided.items()
            if key in named and (said in _SAVES or said is True)
        ]


# --- exercise 2: silently wrong -------------------------------------------------------------------


@judged
def check_repaired(answer: Any) -> Words:
    """Check a policy for blocks with two dropouts: right gradients, and no dearer than before.

    What the forward pass leaves behind, and the FLOPs, may be no more than with the policy that
    the lesson shows, which stores the products and the first dropout.
    """
    policy = _Policy(answer)
    shown = _Policy(stores_first_dropout)
    with simulated():
        blocks, x = stack(Dropping, 2), torch.empty(64, 64)
        stepping(blocks, x)()
        mine, theirs = (
            measure(stepping(blocks, x, one.contexts), blocks, inputs=x) for one in (policy, shown)
        )
    policy.must_have_decided()
    _check_gradients(policy, Dropping, (64, 64))
    kept, room = _kept(mine), _kept(theirs)
    if kept > room:
        raise Wrong(
            f"梯度对了，但前向结束时保留着 {size_text(kept)}，比原来的策略多 "
            f"{size_text(kept - room)}：有没有不存更多也对的办法？",
            f"The gradients are right, but {size_text(kept)} are kept after forward, "
            f"{size_text(kept - room)} more than before: is there a way that stores no more?",
        )
    if mine.flops > theirs.flops:
        raise Wrong(
            f"梯度对了，但 FLOPs 是原来的 {mine.flops / theirs.flops:.3f} 倍："
            "该存的矩阵乘法还要存。",
            f"The gradients are right, but FLOPs are {mine.flops / theirs.flops:.3f} times what "
            "they were: products of matrices are still worth storing.",
        )
    return (
        f"梯度逐位相同，FLOPs 没有变多，保留着的少了 {size_text(room - kept)}。",
        "The gradients are the same bit for bit, at no more FLOPs and with "
        f"{size_text(room - kept)} less kept.",
    )


def stores_first_dropout(
    context: Any, operator: Any, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    """The policy to repair: it stores products of matrices, and dropout that has wide rows."""
    wide = operator is torch.ops.aten.native_dropout.default and args[0].shape[-1] > 64
    product = operator is torch.ops.aten.addmm.default
    return CheckpointPolicy.MUST_SAVE if wide or product else CheckpointPolicy.PREFER_RECOMPUTE


# --- puzzles --------------------------------------------------------------------------------------

NEAR = 1.02  # an answer may recompute this many times the FLOPs of the best


@dataclass(frozen=True)
class Puzzle:
    """A step's score and a budget in bytes, of the "peak" or of what is "kept"."""

    score: Score
    budget: int
    of: Of

    @property
    def best(self) -> Prediction:
        return self.score.best(self.budget, self.of)


@functools.cache
def puzzle(number: int) -> Puzzle:
    """Puzzle 1 or 2. Raises ``ValueError`` for another number.

    Taking the most FLOPs per byte first, as long as they fit, solves neither.
    """
    if number == 1:
        return Puzzle(_lessons(), 33 * MIB, "peak")
    if number == 2:
        return Puzzle(scored(Gated, 4, (4, 256, 128)), round(15.25 * MIB), "kept")
    raise ValueError(f"there are puzzles 1 and 2, not {number!r}")


def show_puzzle(number: int) -> Storing:
    """A button per operator of the puzzle's block, its budget a line."""
    posed = puzzle(number)
    return Storing(posed.score, (), posed.budget, posed.of)


@judged
def check_stored(number: int, answer: Iterable[int] | None) -> Words:
    """Check which results are stored, by their numbers, against the exact best within the budget.

    The score is the best choice's recomputed FLOPs as a share of the answer's, of 100.
    """
    posed = puzzle(number)
    if answer is None:
        raise Unfinished
    stored = _numbers(answer, posed.score)
    one, best, score = posed.score.predict(stored), posed.best, posed.score
    size = one.kept if posed.of == "kept" else one.peak
    if size > posed.budget:
        raise Wrong(*_over(posed, sorted(stored), size))
    mine, least = one.flops - score.plain.flops, best.flops - score.plain.flops
    points = 100 if mine == least else int(100 * least / mine)
    if mine > NEAR * least:
        raise Wrong(*_dearer(posed, stored, size, points, mine, least))
    return (
        f"得分 {points}：{size_text(size)}，预算 {size_text(posed.budget)}，FLOPs "
        f"{mine / score.plain.flops:+.1%}，{2 ** len(score.choices):,} 种选择里没有更少的。",
        f"Score {points}: {size_text(size)} of {size_text(posed.budget)}, FLOPs "
        f"{mine / score.plain.flops:+.1%}; none of the {2 ** len(score.choices):,} choices needs "
        "fewer.",
    )


def _numbers(answer: Any, score: Score) -> frozenset[int]:
    try:
        given = list(answer)
    except TypeError:
        given = None
    if given is None or isinstance(answer, str):
        raise Wrong(
            f"答案应是一组编号，例如 {{1, 5}}；得到的是 {briefly(answer)}。",
            f"The answer is a set of numbers, such as {{1, 5}}; this is {briefly(answer)}.",
        )
    wrong = [
        n
        for n in given
        if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < len(score.choices)
    ]
    if wrong:
        last = len(score.choices) - 1
        raise Wrong(
            f"没有编号为 {briefly(wrong[0])} 的算子，编号从 0 到 {last}。",
            f"There is no operator {briefly(wrong[0])}: they are numbered from 0 to {last}.",
        )
    return frozenset(given)


def _over(posed: Puzzle, stored: list[int], size: int) -> Words:
    choices = posed.score.choices
    by = size_text(size - posed.budget)
    zh = f"{size_text(size)}，超出预算 {by}。"
    en = f"{size_text(size)} is {by} over the budget."
    useless = [n for n in stored if not choices[n].flops or not choices[n].again]
    if useless:
        worst = choices[max(useless, key=lambda n: choices[n].size)]
        if not worst.again:
            return (
                f"{zh}{worst.number} 号 {worst.label} 本来就不会重算，存它省不下 FLOPs。",
                f"{en} Number {worst.number}, {worst.label}, would never run again: storing it "
                "spares nothing.",
            )
        return (
            f"{zh}{worst.number} 号 {worst.label} 再算一遍不花 FLOPs，先把它放掉。",
            f"{en} Number {worst.number}, {worst.label}, takes no FLOPs to make again: let it go "
            "first.",
        )
    return (
        f"{zh}什么都不保留时是 {size_text(_least(posed))}，余下的要分给最值得的。",
        f"{en} With nothing stored it is {size_text(_least(posed))}; what is left has to go to "
        "what is worth it.",
    )


def _least(posed: Puzzle) -> int:
    nothing = posed.score.nothing
    return nothing.kept if posed.of == "kept" else nothing.peak


def _dearer(
    posed: Puzzle, stored: frozenset[int], size: int, points: int, mine: int, least: int
) -> Words:
    plain, choices = posed.score.plain.flops, posed.score.choices
    zh = (
        f"得分 {points}：放得下（{size_text(size)}），FLOPs {mine / plain:+.1%}，"
        f"最少可以是 {least / plain:+.1%}。"
    )
    en = (
        f"Score {points}: it fits ({size_text(size)}), FLOPs {mine / plain:+.1%}, where "
        f"{least / plain:+.1%} is possible."
    )
    left = posed.budget - size
    useless = [n for n in stored if not choices[n].flops or not choices[n].again]
    if useless:
        names = ", ".join(str(n) for n in sorted(useless))
        return (
            f"{zh}{names} 号保留着，却一点 FLOPs 也没有省下。",
            f"{en} Storing {names} spares no FLOPs at all.",
        )
    roomy = [
        c for c in choices
        if c.flops and c.again and c.number not in stored and _fits(posed, stored | {c.number})
    ]  # fmt: skip
    if roomy:
        more = max(roomy, key=lambda c: c.flops)
        return (
            f"{zh}预算还剩 {size_text(left)}，{more.number} 号 {more.label} 就放得下。",
            f"{en} {size_text(left)} of the budget are left, enough for number {more.number}, "
            f"{more.label}.",
        )
    return (
        f"{zh}单独再加一个都放不下了：把保留着的换一换，剩下的 {size_text(left)} 就用得上。",
        f"{en} Nothing more fits beside these: exchange some of what you store, and the "
        f"{size_text(left)} that are left will be of use.",
    )


def _fits(posed: Puzzle, stored: Iterable[int]) -> bool:
    one = posed.score.predict(stored)
    return (one.kept if posed.of == "kept" else one.peak) <= posed.budget
