"""Lesson 05's puzzles: place the checkpoints, scored against the best plan there is."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .exercises import Verdict, raised, unfinished
from .figures import size_text
from .language import Table, text
from .memory import simulated
from .models import pyramid
from .placement import layers_table
from .planners import best_plan, nested_plan, smallest_peak
from .plans import Chain, Plan, Prediction, chain_of, predict

NEAR = 1.05  # an answer may do this many times the optimum's recomputed FLOPs


class Step(nn.Module):
    """A Linear and a tanh: (rows, width) → (rows, out)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()


@dataclass(frozen=True)
class Puzzle:
    """A chain and a budget in bytes; ``best`` is the plan to come near."""

    chain: Chain
    budget: int
    best: Plan

    @functools.cached_property
    def optimum(self) -> Prediction:
        return predict(self.best, self.chain)


def _steps(widths: Sequence[int], rows: int = 1024) -> Chain:
    with simulated():
        layers = [Step(a, b) for a, b in itertools.pairwise(widths)]
        return chain_of(layers, torch.empty(rows, widths[0]))


def _first() -> Puzzle:
    """Equal layers: √n, and the last segment that needs no checkpoint."""
    chain = _steps([256] * 10)
    budget = predict(Plan.cut([3, 3, 3]), chain).peak
    return Puzzle(chain, budget, best_plan(chain, budget).plan)


def _second() -> Puzzle:
    """Layers of other widths: large outputs that are cheap to make, small ones that are dear."""
    chain = _steps([32, 512, 64, 512, 512, 128, 512, 32, 256, 256, 64], rows=4096)
    budget = predict(Plan(((0, 1, 2), 3, 4, 5, 6, 7, 8, 9)), chain).peak
    return Puzzle(chain, budget, best_plan(chain, budget).plan)


def _third() -> Puzzle:
    """A vision Transformer in stages: two layers are worth it, and then a little is missing."""
    with simulated():
        chain = chain_of(pyramid((2, 4, 6, 2)), torch.empty(16, 1024, 64))
    cut = (0, 3, 8)
    plan = Plan(tuple((i,) if i in cut else i for i in range(len(chain))))
    budget = predict(plan, chain).peak
    return Puzzle(chain, budget, best_plan(chain, budget).plan)


def _fourth() -> Puzzle:
    """Less than any plan without nesting needs."""
    chain = _steps([256] * 13, rows=8192)
    low = smallest_peak(chain).prediction.peak
    plans = [nested_plan(len(chain), snapshots) for snapshots in range(1, len(chain))]
    fitting = [plan for plan in plans if predict(plan, chain).peak < low]
    best = min(fitting, key=lambda plan: predict(plan, chain).recomputed_flops)
    return Puzzle(chain, predict(best, chain).peak, best)


_MAKERS: tuple[Callable[[], Puzzle], ...] = (_first, _second, _third, _fourth)


@functools.cache
def puzzle(number: int) -> Puzzle:
    """Puzzle 1 to 4. Raises ``ValueError`` for another number."""
    if not 1 <= number <= len(_MAKERS):
        raise ValueError(f"there are puzzles 1 to {len(_MAKERS)}, not {number!r}")
    return _MAKERS[number - 1]()


def show_puzzle(number: int) -> Table:
    """The layers of a puzzle, and in the last row its budget."""
    posed = puzzle(number)
    table = layers_table(posed.chain)
    plain = predict(Plan(tuple(range(len(posed.chain)))), posed.chain).peak
    for name, size in ((("不用检查点的峰值", "peak without checkpoints"), plain),
                       (("预算", "budget"), posed.budget)):  # fmt: skip
        table.rows.append(["", name, size_text(size), "", "", ""])
    return table


def check_puzzle(number: int, answer: Any) -> Verdict:
    """Check a plan, a :class:`Plan` or its parts, against the puzzle's budget and optimum.

    Passes if the peak is within the budget and recomputed FLOPs are at most ``NEAR`` times those
    of the best plan. The score is the optimum as a share of the answer's.
    """
    posed = puzzle(number)
    if answer is None:
        return unfinished()
    try:
        plan = answer if isinstance(answer, Plan) else Plan(_parts(answer))
        found = predict(plan, posed.chain)
    except ValueError as error:  # in the learner's language already
        return Verdict("wrong", str(error), str(error))
    if found.peak > posed.budget:
        return _too_large(found, posed)
    best = posed.optimum.recomputed_flops
    share = found.recomputed_flops / max(posed.chain.flops, 1)
    best_share = best / max(posed.chain.flops, 1)
    score = 100 if found.recomputed_flops <= best else round(100 * best / found.recomputed_flops)
    if found.recomputed_flops > NEAR * best:
        return Verdict(
            "wrong",
            f"放得下，但 FLOPs {share:+.1%}，最优是 {best_share:+.1%}，得 {score} 分。"
            "哪些层重算起来贵，存下来却不占多少？",
            f"It fits, but FLOPs are {share:+.1%} where {best_share:+.1%} is possible: score "
            f"{score}. Which layers are costly to recompute and cheap to keep?",
        )
    room = size_text(posed.budget - found.peak)
    return Verdict(
        "right",
        f"得 {score} 分：峰值 {size_text(found.peak)}，离预算还有 {room}；FLOPs {share:+.1%}。",
        f"Score {score}: the peak is {size_text(found.peak)}, {room} below the budget; "
        f"FLOPs {share:+.1%}.",
    )


def _parts(answer: Any, inside: bool = False) -> Any:
    """A plan's parts with lists and ranges as tuples. Raises ``ValueError`` for anything else."""
    if isinstance(answer, (tuple, list, range)):
        return tuple(_parts(part, inside=True) for part in answer)
    if inside and hasattr(answer, "__index__"):
        return operator.index(answer)
    raise ValueError(
        text(
            zh=f"方案由层号和元组组成，例如 (0, (1, 2), 3)，现在是 {answer!r}。",
            en="A plan is layer numbers and tuples of them, such as (0, (1, 2), 3), "
            f"not {answer!r}.",
        )
    )


def _too_large(found: Prediction, posed: Puzzle) -> Verdict:
    over = size_text(found.peak - posed.budget)
    moment, n = found.peak_at, len(posed.chain)
    phases = {"forward": ("前向传播", "forward"), "recompute": ("重计算", "recomputation"),
              "backward": ("反向传播", "backward")}  # fmt: skip
    zh, en = phases[moment.phase]
    where = (f"第 {moment.layer} 层的{zh}", f"the {en} of layer {moment.layer}")
    if moment.layer == n:
        where = (f"损失的{zh}", f"the {en} of the loss")
    kept, again = size_text(moment.kept), size_text(moment.recomputed)
    return Verdict(
        "wrong",
        f"峰值 {size_text(found.peak)}，超出预算 {over}。峰值出现在{where[0]}，"
        f"那时存着 {kept}，重算出来的有 {again}。",
        f"The peak is {size_text(found.peak)}, {over} over the budget. It falls in {where[1]}, "
        f"with {kept} kept and {again} recomputed.",
    )


def check_best_count(answer: Callable[[int, int, int], Any]) -> Verdict:
    """Check ``answer(n, boundary, inside)``: the best number of equal segments.

    Between segments stand boundaries of ``boundary`` bytes; recomputing a layer holds ``inside``
    bytes. Passes if k·boundary + ⌈n/k⌉·inside is as low as it gets.
    """
    for n, boundary, inside in ((100, 1, 1), (100, 8, 2200), (64, 1, 4), (36, 4, 1), (10, 1, 1)):
        try:
            count = answer(n, boundary, inside)
        except Exception as error:
            return raised(error)
        if count is None:
            return unfinished()

        def needed(k: int, n: int = n, boundary: int = boundary, inside: int = inside) -> int:
            return k * boundary + -(-n // k) * inside

        where = f"n={n}, boundary={boundary}, inside={inside}"
        whole = hasattr(count, "__index__") and not isinstance(count, bool)  # NumPy's integers too
        if not whole or not 1 <= count <= n:
            return Verdict(
                "wrong",
                f"{where}：要 1 到 {n} 的整数，得到 {count!r}。",
                f"{where}: expected an integer from 1 to {n}, got {count!r}.",
            )
        best = min(range(1, n + 1), key=needed)
        if needed(count) > needed(best):
            return Verdict(
                "wrong",
                f"{where}：{count} 段要 {needed(count)}，{best} 段只要 {needed(best)}。",
                f"{where}: {count} segments need {needed(count)}, {best} only {needed(best)}.",
            )
    return Verdict("right", "五组都对：边界越小、层内越大，段数就越多。",
                   "Right for all five: the smaller the boundary compared with the inside, the "
                   "more segments.")  # fmt: skip
