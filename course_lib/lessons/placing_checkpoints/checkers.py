"""Lesson 05's exercises: the best number of segments, and puzzles scored against a known plan.

Puzzles 1 to 3 are scored against the exact best plan without nesting, puzzle 4 against Revolve's,
which is the best for counts of stored inputs. Neither is the best of all plans there are: a nested
plan that also keeps some layers can do better, and then scores more than 100.
"""

from __future__ import annotations

import functools
import itertools
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...figures.words import size_text
from ...language import Table
from ...memory.simulation import simulated
from ...models import pyramid
from ...notebook.checking import Answer, Unfinished, Words, Wrong, briefly, judged
from ...plans.chains import Chain, chain_of
from ...plans.plan import Plan, Prediction, predict
from ...plans.planners import best_plan, nested_plan, smallest_peak
from .layer_costs import layers_table

NEAR = 1.05  # an answer may do this many times the recomputed FLOPs of the plan it is scored by


class Step(nn.Module):
    """A Linear and a tanh: (rows, width) → (rows, out)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()


@dataclass(frozen=True)
class Puzzle:
    """A chain and a budget in bytes; ``best`` is the plan to come near, and scores 100.

    ``method``: what that plan is, in words.
    """

    chain: Chain
    budget: int
    best: Plan
    method: Words = ("不嵌套的方案里最优的", "the best plan without nesting")

    @functools.cached_property
    def optimum(self) -> Prediction:
        return predict(self.best, self.chain)

    @property
    def alike(self) -> bool:
        """Whether every layer costs the same."""
        return len({(layer.flops, layer.boundary) for layer in self.chain.layers}) == 1


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
    return Puzzle(chain, predict(best, chain).peak, best, ("Revolve 的方案", "Revolve's plan"))


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
    for name, size in (
        (("不用检查点的峰值", "peak without checkpoints"), plain),
        (("预算", "budget"), posed.budget),
    ):
        table.rows.append(["", name, size_text(size), "", "", ""])
    return table


@judged
def check_puzzle(number: int, answer: Any) -> Words:
    """Check a plan, a :class:`Plan` or its parts, against the puzzle's budget and known plan.

    Passes if the peak is within the budget and recomputed FLOPs are at most ``NEAR`` times those
    of ``Puzzle.best``. The score is the latter as a percentage of the answer's.
    """
    posed = puzzle(number)
    if answer is None:
        raise Unfinished
    plan = answer if isinstance(answer, Plan) else plan_from(answer, len(posed.chain))
    _check_layers(list(_numbers(plan.parts)), len(posed.chain))
    found = predict(plan, posed.chain)
    if found.peak > posed.budget:
        raise _too_large(plan, found, posed)
    best, again = posed.optimum.recomputed_flops, found.recomputed_flops
    share, best_share = (flops / max(posed.chain.flops, 1) for flops in (again, best))
    score = round(100 * best / again) if again else 100
    zh, en = posed.method
    if again > NEAR * best:
        hint = _hint_for_flops(found, posed)
        raise Wrong(
            f"放得下，但 FLOPs {share:+.1%}，{zh}是 {best_share:+.1%}，得 {score} 分。{hint[0]}",
            f"It fits, but FLOPs are {share:+.1%}, where {en} has {best_share:+.1%}: score "
            f"{score}. {hint[1]}",
        )
    room = size_text(posed.budget - found.peak)
    more = ("", "")
    if again < best:
        than = f"比 {zh}" if zh[0].isascii() else f"比{zh}"
        more = (f"{than}（{best_share:+.1%}）还省。", f" Less than {en} ({best_share:+.1%}).")
    return (
        f"得 {score} 分：峰值 {size_text(found.peak)}，离预算还有 {room}；FLOPs {share:+.1%}。"
        f"{more[0]}",
        f"Score {score}: the peak is {size_text(found.peak)}, {room} below the budget; "
        f"FLOPs {share:+.1%}.{more[1]}",
    )


def _hint_for_flops(found: Prediction, posed: Puzzle) -> Words:
    """Where to look, without saying which layers."""
    if not posed.alike:
        return (
            "哪些层重算起来贵，保留下来却不占多少？",
            "Which layers are costly to recompute and cheap to keep?",
        )
    layers, least = found.recomputed_layers, posed.optimum.recomputed_layers
    return (
        f"每层一样贵，所以只看一共重算了多少层，重算几遍就算几层：你 {layers} 层，"
        f"那个方案 {least} 层。"
        f"离预算还有 {size_text(posed.budget - found.peak)}：哪些层保留着也不碍事？",
        f"All layers cost the same, so it is their number that counts: yours runs {layers} again, "
        f"that plan {least}. There are {size_text(posed.budget - found.peak)} left of the budget: "
        "which layers could just as well be kept?",
    )


# --- what is no plan ----------------------------------------------------------------------------


def plan_from(answer: Any, n: int) -> Plan:
    """The plan with these parts; raises ``Wrong`` for what is none, and says what is wrong."""
    if not _is_row(answer):
        raise _no_plan(answer, answer)
    count = itertools.count()

    def converted(row: Any, above: tuple[int, ...]) -> tuple:
        if id(row) in above:
            raise Wrong(
                "方案里有一段包含它自己，没有尽头。",
                "A segment of the plan contains itself, so there is no end to it.",
            )
        if len(above) > n:
            raise Wrong(
                f"方案套了 {n} 层以上的括号：一共 {n} 层，每套一层至少要少算一层，没有用。",
                f"The plan is nested more than {n} deep: with {n} layers, so many parentheses "
                "cannot all hold something of their own.",
            )
        parts: list[Any] = []
        for part in row:
            if next(count) > 10 * n + 10:
                raise Wrong(
                    f"方案太长了：模型只有 {n} 层。",
                    f"The plan is too long: the model has {n} layers.",
                )
            if _is_row(part):
                parts.append(converted(part, (*above, id(row))))
            elif hasattr(part, "__index__") and not isinstance(part, bool):
                parts.append(operator.index(part))
            else:
                raise _no_plan(answer, part)
        if not parts and above:
            raise Wrong("有一段里没有层：()。", "A segment holds no layer: ().")
        return tuple(parts)

    parts = converted(answer, ())
    _check_layers(list(_numbers(parts)), n)
    return Plan(parts)


def _is_row(part: Any) -> bool:
    return isinstance(part, (tuple, list, range)) or getattr(part, "ndim", 0) == 1  # an array


def _no_plan(answer: Any, part: Any) -> Wrong:
    where = (
        ("", "")
        if part is answer
        else (f"里面的 {briefly(part)} 两样都不是。", f" In it, {briefly(part)} is neither.")
    )
    return Wrong(
        f"方案由层号和元组组成，例如 (0, (1, 2), 3)，现在是 {briefly(answer)}。{where[0]}",
        "A plan is layer numbers and tuples of them, such as (0, (1, 2), 3), not "
        f"{briefly(answer)}.{where[1]}",
    )


def _numbers(parts: Any) -> Iterator[int]:
    for part in parts:
        if isinstance(part, tuple):
            yield from _numbers(part)
        else:
            yield part


def _check_layers(layers: list[int], n: int) -> None:
    """Raise ``Wrong`` unless the layers are 0 … n-1 in order, each once."""
    if strange := [layer for layer in layers if not 0 <= layer < n]:
        raise Wrong(
            f"没有第 {strange[0]} 层：模型有 {n} 层，层号从 0 到 {n - 1}。",
            f"There is no layer {strange[0]}: the model has {n}, numbered 0 to {n - 1}.",
        )
    if missing := sorted(set(range(n)) - set(layers)):
        shown = _listed(missing)
        raise Wrong(
            f"方案漏了第 {shown} 层：{n} 层都要写出来，保留的也写。",
            f"The plan leaves out layer{'s' * (len(missing) > 1)} {shown}: all {n} have "
            "to be there, the kept ones too.",
        )
    if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
        raise Wrong(
            f"第 {_listed(twice)} 层写了不止一次。",
            f"Layer{'s' * (len(twice) > 1)} {_listed(twice)} stand{'s' * (len(twice) == 1)}"
            " there more than once.",
        )
    for before, after in itertools.pairwise(layers):
        if after < before:
            raise Wrong(
                f"次序不对：第 {after} 层写在了第 {before} 层后面。",
                f"Out of order: layer {after} stands behind layer {before}.",
            )


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:6]))
    return f"{shown}, …" if len(numbers) > 6 else shown


# --- what does not fit --------------------------------------------------------------------------


def _too_large(plan: Plan, found: Prediction, posed: Puzzle) -> Wrong:
    over = size_text(found.peak - posed.budget)
    moment, n = found.peak_at, len(posed.chain)
    phases = {
        "forward": ("前向传播", "forward"),
        "recompute": ("重计算", "recomputation"),
        "backward": ("反向传播", "backward"),
    }
    zh, en = phases[moment.phase]
    where = (f"第 {moment.layer} 层的{zh}", f"the {en} of layer {moment.layer}")
    if moment.layer == n:
        where = (f"损失的{zh}", f"the {en} of the loss")
    kept, again = size_text(moment.kept), size_text(moment.recomputed)
    hint = _hint_for_peak(plan, found, posed)
    return Wrong(
        f"峰值 {size_text(found.peak)}，超出预算 {over}。峰值出现在{where[0]}，"
        f"那时保留着 {kept}，重算出来的有 {again}。{hint[0]}",
        f"The peak is {size_text(found.peak)}, {over} over the budget. It falls in {where[1]}, "
        f"with {kept} kept and {again} recomputed. {hint[1]}",
    )


def _hint_for_peak(plan: Plan, found: Prediction, posed: Puzzle) -> Words:
    """What that attempt has too much of at its peak; and a comma that may be missing."""
    moment, nested = found.peak_at, any(isinstance(p, tuple) for s in plan.segments for p in s)
    least = smallest_peak(posed.chain).prediction.peak
    if posed.budget < least and not nested:
        hint = (
            f"不嵌套的方案至少要 {size_text(least)}：段里还要有段。",
            f"Without nesting, {size_text(least)} is the least there is: it takes segments "
            "inside segments.",
        )
    elif moment.recomputed > moment.kept:
        hint = (
            "大头是一次重算出来的：哪一段太长？",
            "Most of it is recomputed at once: which segment is too long?",
        )
    elif nested:
        hint = (
            "大头是保留着的：那一刻保留着哪些段的输入、哪些层的激活值？",
            "Most of it is kept: which segments' inputs and which layers' activations are held "
            "at that moment?",
        )
    else:
        hint = (
            "大头是保留着的：哪些层占得多，重算起来却不贵？",
            "Most of it is kept: which layers keep much and are not costly to recompute?",
        )
    if not any(len(segment) == 1 for segment in plan.segments):
        one, bare = "(0,)", "(0)"
        hint = (
            f"{hint[0]}（只有一层的段要写成 {one}：没有逗号，{bare} 在 Python 里就是 0，"
            "也就是保留。）",
            f"{hint[1]} (A segment of one layer is written {one}: without the comma, {bare} is "
            "just 0 to Python, a layer that is kept.)",
        )
    return hint


# --- how many segments --------------------------------------------------------------------------


@judged
def check_best_count(answer: Callable[[int, int, int], Any]) -> Words:
    """Check ``answer(n, boundary, inside)``: the best number of equal segments.

    Between segments stand boundaries of ``boundary`` bytes; recomputing a layer holds ``inside``
    bytes. Passes if k·boundary + ⌈n/k⌉·inside is as low as it gets: in the lesson's own cases, in
    a table of small ones, and in some that are drawn anew each time.
    """
    ask = Answer(answer)
    drawn = random.Random()
    for sizes in [
        (100, 1, 1),
        (100, 32, 2304),
        (100, 8, 2200),
        (64, 1, 4),
        (36, 4, 1),
        (10, 1, 1),
        (1, 5, 3),
        *itertools.product((2, 3, 5, 12, 23, 30), (1, 3, 10), (1, 2, 7, 100)),
        *(
            (drawn.randint(2, 300), drawn.randint(1, 100), drawn.randint(1, 5000))
            for _ in range(60)
        ),
    ]:
        _check_count(ask, *sizes)
    return (
        "每组都对：边界越小、层内越大，段数就越多。",
        "Right for all sizes tried: the smaller the boundary compared with the inside, the "
        "more segments.",
    )


def _check_count(ask: Answer, n: int, boundary: int, inside: int) -> None:
    count = ask(n, boundary, inside)
    if count is None:
        raise ask.nothing(n, boundary, inside)

    def needed(k: int) -> int:
        return k * boundary + -(-n // k) * inside

    where = f"n={n}, boundary={boundary}, inside={inside}"
    whole = hasattr(count, "__index__") and not isinstance(count, bool)  # NumPy's integers too
    try:
        count = operator.index(count) if whole else count
    except TypeError:  # a tensor of something else
        whole = False
    if not whole or not 1 <= count <= n:
        raise Wrong(
            f"{where}：要 1 到 {n} 的整数，得到 {briefly(count)}。",
            f"{where}: expected an integer from 1 to {n}, got {briefly(count)}.",
        )
    best = min(range(1, n + 1), key=needed)
    if needed(count) > needed(best):
        more = f"{needed(count) / needed(best) - 1:.1%}"
        raise Wrong(
            f"{where}：{count} 段要 {needed(count):,}，{best} 段只要 {needed(best):,}，"
            f"你多用 {more}。",
            f"{where}: {count} segments need {needed(count):,}, {best} only {needed(best):,}; "
            f"yours takes {more} more.",
        )
