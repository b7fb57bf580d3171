"""Planners: even spacing, the fewest recomputed FLOPs under a budget, nested recomputation.

A plan without nesting is a row of kept layers and segments. While one of them is at work, memory
is what the parts before it keep plus an amount of its own; :class:`Needs` works both out for every
layer and for every segment, n² of them, from the chain's score. Then a shortest path through the
cuts, with kept bytes as the resource, gives the best plan (:func:`best_plan`).

Sources: Chen et al. 2016 (arXiv:1604.06174) for √n; Beaumont et al. 2019 (arXiv:1911.13214) for
dynamic programming with memory in slots; Griewank & Walther 2000 (Revolve, ACM TOMS 799).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..language import text
from .bounds import Bound, follow_promising
from .chains import Chain
from .needs import Needs, needs_of
from .plan import Plan, Prediction, predict
from .revolve import nested_plan, nested_steps
from .search import Step, common_unit, count_slots, follow_labels, limits_of

__all__ = [
    "Best",
    "BudgetTooSmall",
    "best_plan",
    "even_plan",
    "frontier",
    "keep_all",
    "nested_plan",
    "nested_steps",
    "smallest_peak",
    "sqrt_plan",
]


def keep_all(chain: Chain) -> Plan:
    """No checkpoints: every layer's activations are kept."""
    return Plan(tuple(range(len(chain))))


def even_plan(chain: Chain, count: int) -> Plan:
    """``count`` segments whose lengths differ by at most one; 0 keeps everything.

    Raises ``ValueError`` if there are fewer layers than that.
    """
    n = len(chain)
    if not 0 <= count <= n:
        raise ValueError(
            text(
                zh=f"{n} 层可以分成 0 到 {n} 段，不能是 {count} 段。",
                en=f"{n} layers can be cut into 0 to {n} segments, not {count}.",
            )
        )
    if not count:
        return keep_all(chain)
    cuts = [i * n // count for i in range(count + 1)]
    return Plan.cut(b - a for a, b in itertools.pairwise(cuts))


def sqrt_plan(chain: Chain) -> Plan:
    """About √n segments of about √n layers (Chen et al. 2016)."""
    return even_plan(chain, max(1, round(math.sqrt(len(chain)))))


# --- the best plan without nesting --------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """A plan for a budget, and how good it is.

    ``least``: recomputed FLOPs below which no plan without nesting fits the budget. ``exact``:
    the plan reaches that bound.
    """

    plan: Plan
    prediction: Prediction
    least: int

    @property
    def exact(self) -> bool:
        return self.prediction.recomputed_flops <= self.least

    @property
    def excess(self) -> int:
        """FLOPs by which the plan may miss the optimum, at most."""
        return max(0, self.prediction.recomputed_flops - self.least)


class BudgetTooSmall(ValueError):
    """No plan without nesting fits; ``smallest`` (bytes) is the least that one needs."""

    def __init__(self, budget: int, smallest: int):
        super().__init__(
            text(
                zh=f"预算 {budget:,} 字节放不下：不嵌套的方案最少要 {smallest:,} 字节。",
                en=f"A budget of {budget:,} bytes is too small: without nesting, {smallest:,} "
                "bytes is the least that a plan needs.",
            )
        )
        self.budget, self.smallest = budget, smallest


LABELS = 200_000  # partial plans that are followed exactly before memory is counted in slots
WIDTH = 16  # partial plans to any one place, when a good plan is wanted before a proof


def best_plan(chain: Chain, budget: int, *, labels: int = LABELS, slots: int | None = None) -> Best:
    """The plan with the fewest recomputed FLOPs whose peak is at most ``budget`` bytes.

    Among plans without nesting; :func:`course_lib.plans.best_nested_plan` nests. Exact as long as
    no more than ``labels`` non-dominated partial plans turn up, or if all sizes are multiples of
    one that goes at most ``slots`` times into what can be kept. Beyond that, kept memory is counted
    in slots: of all partial plans in one slot only one is followed. What that finds is then proven,
    or improved, by following only those partial plans that a bound (:mod:`bounds`) still lets end
    below it; where even those are too many, as on tight budgets with a thousand layers,
    ``Best.least`` is the bound. Time grows with the square of the number of layers, times
    ``slots``: by default 2,000, and fewer above 100 layers, down to 200. ``labels=0`` follows no
    partial plans, and is for comparing.

    Raises :class:`BudgetTooSmall` if no such plan fits.
    """
    needs = needs_of(chain)
    room = budget - needs.before
    limits = limits_of(needs, room)
    if limits[0, 0] < 0:
        raise BudgetTooSmall(budget, _smallest(needs))
    steps = follow_labels(needs, room, limits, labels)
    if steps is not None:
        return _best(chain, needs, steps, None)
    unit = common_unit(needs)
    span = min(room, needs.most_kept)
    slots = slots or min(2000, max(200, 200_000 // needs.n))
    exact = bool(unit) and span // unit <= slots
    size = unit if exact else -(-span // slots)
    found = _best(chain, needs, count_slots(needs, room, limits, size), None)
    if exact:
        return found
    bound = Bound(needs, room)
    if bound.least >= found.prediction.recomputed_flops:
        return found
    if not labels:
        return replace(found, least=bound.least)
    sure = False
    for width in (WIDTH, None):
        known = found.prediction.recomputed_flops
        better, sure = follow_promising(needs, bound, limits, known, width=width)
        if better is not None:
            found = _best(chain, needs, better, None)
        if sure or bound.least >= found.prediction.recomputed_flops:
            return found
    return replace(found, least=bound.least)


def _best(chain: Chain, needs: Needs, steps: Iterable[Step], least: int | None) -> Best:
    """The plan of these steps, the optimum if no bound is given."""
    plan = _plan(needs, steps)
    prediction = predict(plan, chain)
    return Best(plan, prediction, prediction.recomputed_flops if least is None else least)


def smallest_peak(chain: Chain) -> Best:
    """The plan with the lowest peak, among those without nesting; of several, the cheapest."""
    return best_plan(chain, _smallest(needs_of(chain)))


def frontier(chain: Chain, count: int = 40) -> list[Best]:
    """Best plans for ``count`` budgets, evenly spread from the smallest to what needs no plan.

    Budgets that get the same FLOPs as a smaller one are left out.
    """
    low = _smallest(needs_of(chain))
    high = predict(keep_all(chain), chain).peak
    found: list[Best] = []
    for i in range(count):
        best = best_plan(chain, low + (high - low) * i // max(count - 1, 1))
        if not found or best.prediction.recomputed_flops < found[-1].prediction.recomputed_flops:
            found.append(best)
    return found


def _plan(needs: Needs, steps: Iterable[Step]) -> Plan:
    parts: list = []
    for begin, end, segment in steps:
        layers = [layer for unit in needs.units[begin:end] for layer in unit.layers]
        parts += [tuple(layers)] if segment else layers
    return Plan(tuple(parts))


def _smallest(needs: Needs) -> int:
    """The lowest budget that some plan without nesting meets, in bytes; by bisection."""
    low, high = 0, int(needs.plain.max() + needs.inner.sum() + needs.source.sum())
    while low < high:
        middle = (low + high) // 2
        if limits_of(needs, middle)[0, 0] < 0:
            low = middle + 1
        else:
            high = middle
    return low + needs.before
