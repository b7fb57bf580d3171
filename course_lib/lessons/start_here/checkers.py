"""Lesson 00's exercises: even segments, and the cheapest setting that fits."""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from ...notebook.checking import (
    Answer,
    Unfinished,
    Words,
    Wrong,
    briefly,
    judged,
    number,
)


@judged
def check_segments(answer: Callable[[int, int], Any]) -> Words:
    """Check ``answer(n, k)``: k ranges that cover 0 … n-1, lengths differing by at most one.

    Tried with the lesson's own numbers, every n up to 24, and larger ones drawn anew each time.
    """
    ask = Answer(answer)
    small = [(n, k) for n in range(1, 25) for k in range(1, n + 1)]
    drawn = random.Random()
    large = [(n, drawn.randint(1, n)) for n in drawn.choices(range(25, 400), k=40)]
    fault: Words | None
    for n, k in ((12, 4), (12, 1), (12, 12), (12, 5), (7, 3), (100, 10), *small, *large):
        found = ask(n, k)
        if found is None:
            raise ask.nothing(n, k)
        try:
            if any(isinstance(part, (set, frozenset)) for part in _listed(found)):
                raise TypeError  # has no order
            rows = itertools.islice(found, 10 * n)  # an answer may count on without end
            parts = [[operator.index(x) for x in itertools.islice(row, 2 * n)] for row in rows]
        except TypeError:
            fault = (
                f"应返回由 {k} 个 range 组成的列表，得到的是 {briefly(found)}。",
                f"expected a list of {k} ranges, got {briefly(found)}.",
            )
        else:
            fault = _fault_in_segments(parts, n, k)
            if fault and _listed(found):
                shown = briefly(_listed(found))
                fault = f"{fault[0]}你的是 {shown}。", f"{fault[1]} Yours is {shown}."
        if fault:
            raise Wrong(f"n={n}, k={k}：{fault[0]}", f"n={n}, k={k}: {fault[1]}")
    return (
        "每一层恰好属于一段，段长至多差 1。",
        "Each layer is in exactly one segment, and lengths differ by at most 1.",
    )


def _listed(found: Any) -> Any:
    """A list or tuple as it is; nothing of what can be gone through only once."""
    return found if isinstance(found, (list, tuple)) else ()


def _fault_in_segments(parts: list[list[int]], n: int, k: int) -> Words | None:
    if len(parts) != k:
        return f"要 {k} 段，得到 {len(parts)} 段。", f"expected {k} segments, got {len(parts)}."
    layers = [layer for part in parts for layer in part]
    if strange := [layer for layer in layers if not 0 <= layer < n]:
        return (
            f"没有第 {strange[0]} 层：层号从 0 到 {n - 1}。",
            f"there is no layer {strange[0]}: layers are numbered 0 to {n - 1}.",
        )
    if missing := sorted(set(range(n)) - set(layers)):
        return f"漏了第 {missing[0]} 层。", f"layer {missing[0]} is in no segment."
    if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
        return f"第 {twice[0]} 层在两段里都有。", f"layer {twice[0]} comes twice."
    if layers != list(range(n)):
        at = next(i for i, layer in enumerate(layers) if layer != i)
        return (
            f"次序不对：第 {at} 层的位置上是第 {layers[at]} 层。",
            f"out of order: in the place of layer {at} stands layer {layers[at]}.",
        )
    shortest, longest = min(map(len, parts)), max(map(len, parts))
    if longest - shortest > 1:
        return (
            f"最长 {longest} 层，最短 {shortest} 层，差得太多。",
            f"the longest has {longest} layers, the shortest {shortest}: too uneven.",
        )
    return None


@judged
def check_cheapest(answer: Callable[[int, Any], Any], measured: Sequence[Any]) -> Words:
    """Check ``answer(budget, measured)`` for budgets at, between, below and above all peaks.

    ``measured``: results with ``checkpoints``, ``trace.peak`` and ``trace.flops``. After the
    lesson's own come made-up ones: there the cheapest that fits is neither the first nor the last,
    and neither has the fewest checkpoints nor the lowest peak.
    """
    ask = Answer(answer)
    tried = 0
    for made_up, results in enumerate([list(measured), *_made_up_results()]):
        peaks = sorted({result.trace.peak for result in results})
        for budget in [peaks[0] - 1, *peaks, peaks[-1] + 1]:
            given = list(results)
            said = ask(budget, given)
            if said is None and ask.is_stub:
                raise Unfinished
            _check_choice(said, budget, results, bool(made_up))
            tried += 1
            if list(map(id, given)) != list(map(id, results)):
                raise Wrong(
                    f"{ask.name} 改动了传进来的列表 measured；之后的单元格还要用它。用 sorted(…) "
                    "之类的，另做一个新的。",
                    f"{ask.name} changes the list measured that it was given, which later cells "
                    "still need: make a new one, as sorted(…) does.",
                )
    return (
        f"{tried} 个预算都选对了，其中有的检查点更多、FLOPs 反而更少。",
        f"The right choice for all {tried} budgets, also where more checkpoints take fewer FLOPs.",
    )


def _made_up_results() -> Iterator[list[Any]]:
    """Results in no order, whose numbers are not their places; FLOPs follow no rule.

    In the first, the cheapest that fits differs from what any simpler rule picks; the others are
    drawn anew each time.
    """
    yield _results([20, 11, 14, 17, 29], [900, 500, 700, 300, 400], [1000, 1500, 1200, 1800, 1400])
    drawn = random.Random()
    for counts in ([7, 10, 4, 12], [6, 9, 0, 13, 8], [3]):
        peaks = drawn.sample(range(100, 1000), len(counts))
        yield _results(counts, peaks, drawn.sample(range(1000, 2000), len(counts)))


def _results(counts: list[int], peaks: list[int], flops: list[int]) -> list[Any]:
    return [
        SimpleNamespace(checkpoints=count, trace=SimpleNamespace(peak=peak, flops=cost))
        for count, peak, cost in zip(counts, peaks, flops, strict=True)
    ]


def _check_choice(said: Any, budget: int, measured: Sequence[Any], made_up: bool) -> None:
    """Raise ``Wrong`` unless ``said`` is the number with the fewest FLOPs that fits, or -1."""
    fitting = [result for result in measured if result.trace.peak <= budget]
    fewest = min((result.trace.flops for result in fitting), default=None)
    best = [result.checkpoints for result in fitting if result.trace.flops == fewest] or [-1]
    if number(said) in best:
        return
    zh, en = _fault_in_choice(said, best[0], budget, measured)
    if made_up:
        shown = "; ".join(
            f"{r.checkpoints}: {r.trace.peak:,} B, {r.trace.flops:,} FLOPs" for r in measured
        )
        zh += f"这次传进来的 measured 是另一组结果：{shown}。"
        en += f" The list measured passed in here holds other results: {shown}."
    raise Wrong(f"预算 {budget:,} 字节：{zh}", f"Budget of {budget:,} bytes: {en}")


def _fault_in_choice(said: Any, best: int, budget: int, measured: Sequence[Any]) -> Words:
    shown, said = briefly(said), number(said)
    chosen = next((result for result in measured if result.checkpoints == said), None)
    if best == -1:
        return (
            f"没有一种放得下，应返回 -1，得到 {shown}。",
            f"nothing fits: expected -1, got {shown}.",
        )
    if said is None:
        return (
            f"应返回检查点的数量，得到的是 {shown}。",
            f"expected a number of checkpoints, got {shown}.",
        )
    if said == -1:
        return (
            f"返回了 -1，可是 {best} 个检查点放得下。",
            f"yours is -1, but {best} checkpoints fit.",
        )
    if chosen is None:
        return (
            f"得到 {said}，measured 里没有 {said} 个检查点的结果：要的是 .checkpoints，"
            "不是它在列表里的位置。",
            f"yours is {said}, but no result in measured has {said} checkpoints: return its "
            ".checkpoints, not its place in the list.",
        )
    if chosen.trace.peak > budget:
        over = chosen.trace.peak - budget
        return (
            f"{said} 个检查点的峰值超出预算 {over:,} 字节。",
            f"with {said} checkpoints the peak is {over:,} bytes over the budget.",
        )
    best_flops = next(result.trace.flops for result in measured if result.checkpoints == best)
    more = (chosen.trace.flops - best_flops) / best_flops
    return (
        f"{said} 个放得下，但 {best} 个也放得下，{said} 个的 FLOPs 多 {more:.1%}。",
        f"{said} fit, but so do {best}, and {said} need {more:.1%} more FLOPs.",
    )
