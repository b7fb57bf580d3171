"""Nested plans: the best of all against brute force; what planners know against what is played."""

import itertools
import random
import time

import pytest
import torch
from torch import nn

from course_lib.memory import measure, simulated
from course_lib.plans import (
    NothingFits,
    Plan,
    apply,
    best_nested_plan,
    best_plan,
    chain_of,
    keep_all,
    nested_plan,
    predict,
    smallest_peak,
)
from course_lib.plans.needs import needs_of
from course_lib.plans.nested import LAYERS
from support.chain_samples import cheaper_plans, nested_plans, sample


def linears(count, pick=None):
    """Layers whose activations outweigh their parameters, each of which ends in saving."""
    width = [8] * (count + 1)
    if pick is not None:
        width = [pick.choice([2, 8, 24]) for _ in width]
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(width)]
    return layers, torch.empty(512, width[0])


def chain_of_linears(count, seed=None):
    with simulated():
        return chain_of(*linears(count, None if seed is None else random.Random(seed)))


def fits(chain, budget):
    """The best plan without nesting, and Revolve's, within the budget."""
    found = [predict(nested_plan(len(chain), s), chain) for s in range(len(chain))]
    if budget >= smallest_peak(chain).prediction.peak:
        found.append(best_plan(chain, budget).prediction)
    return [plan for plan in found if plan.peak <= budget]


# --- against brute force ------------------------------------------------------------------------


def test_every_nested_plan_of_five_layers_is_among_those_that_are_tried():
    counts = [len(nested_plans(n)) for n in range(1, 6)]
    assert counts == [2, 8, 48, 352, 2880]
    assert len({str(plan) for plan in nested_plans(5)}) == 2880


SMALL = 45


@pytest.mark.slow
def test_best_nested_plans_against_every_plan_of_small_chains(report):
    """Multilayer perceptrons, convolutions, transformers, mixed; views, losses, old gradients."""
    budgets = nested = 0
    for seed in range(SMALL):
        pick = random.Random(seed)
        with simulated():
            made = sample(seed)
            chain = chain_of(made.layers[: 3 + seed % 3], made.x, made.loss)
        every = [predict(plan, chain) for plan in nested_plans(len(chain))]
        low, high = min(p.peak for p in every), max(p.peak for p in every)
        peaks = sorted({each.peak for each in every})
        for budget in {low, high, *peaks[:8], *pick.sample(peaks, min(6, len(peaks)))}:
            optimum = min(p.recomputed_flops for p in every if p.peak <= budget)
            best = best_nested_plan(chain, budget)
            assert best.prediction == predict(best.plan, chain)
            assert best.prediction.peak <= budget
            assert best.least <= optimum, (seed, budget, best)
            assert best.prediction.recomputed_flops == optimum, (seed, budget, str(best.plan))
            assert best.exact
            budgets += 1
            nested += nests(best.plan)
        with pytest.raises(NothingFits, match=f"{low - 1:,} bytes is too small"):
            best_nested_plan(chain, low - 1)
    report(f"nested planner: {budgets} budgets, every plan tried; {nested} optima nest")


MOST = 8000  # plans that are played for one budget; of more, so many, evenly drawn


@pytest.mark.parametrize("layers", range(6, 10))
@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_no_plan_of_up_to_nine_layers_that_recomputes_less_fits(layers, seed, report):
    """Plans that recompute less than the best are played; there are 21 million in all.

    With ``MOST`` out of the way, all 458,402 of nine equal layers are, in three minutes.
    """
    chain = chain_of_linears(layers, seed)
    flops = [layer.flops for layer in chain.layers]
    low = smallest_peak(chain).prediction.peak
    high = predict(keep_all(chain), chain).peak
    revolve = [predict(nested_plan(layers, s), chain).peak for s in range(1, 4)]
    played = 0
    for budget in {low, low + (high - low) // 4, (low + high) // 2, *revolve}:
        best = best_nested_plan(chain, budget)
        assert best.exact and best.prediction.peak <= budget
        cheaper = cheaper_plans(flops, best.prediction.recomputed_flops)
        for plan, cost in cheaper[:: 1 + len(cheaper) // MOST]:
            found = predict(plan, chain)
            assert found.recomputed_flops == cost
            assert found.peak > budget, (budget, str(plan), str(best.plan))
            played += 1
    report(f"nested planner, {layers} layers: {played} plans that recompute less were played")


# --- against other planners ---------------------------------------------------------------------


@pytest.mark.parametrize("layers", [12, 20, 33])
def test_never_worse_than_revolve_or_without_nesting(layers, report):
    """Equal layers, budgets that Revolve's plans just meet; and uneven ones."""
    better = {"Revolve": 0, "no nesting": 0}
    for seed in (None, layers):
        chain = chain_of_linears(layers, seed)
        for snapshots in range(1, 6):
            revolve = predict(nested_plan(layers, snapshots), chain)
            best = best_nested_plan(chain, revolve.peak)
            found = best.prediction.recomputed_flops
            assert best.exact and best.prediction.peak <= revolve.peak
            others = [plan.recomputed_flops for plan in fits(chain, revolve.peak)]
            assert found <= min(others)
            better["Revolve"] += found < revolve.recomputed_flops
            if revolve.peak < smallest_peak(chain).prediction.peak:
                better["no nesting"] += 1
    assert all(better.values()), better
    report(f"nested planner, {layers} layers: better than {better} of 10 budgets")


def test_nesting_fits_where_nothing_else_does():
    chain = chain_of_linears(20)
    budget = smallest_peak(chain).prediction.peak - 1
    best = best_nested_plan(chain, budget)
    assert nests(best.plan) and best.prediction.peak <= budget


def nests(plan):
    return any(isinstance(part, tuple) for segment in plan.segments for part in segment)


def test_what_is_planned_is_what_is_measured():
    with simulated():
        layers, x = linears(10, random.Random(4))
        chain = chain_of(layers, x)
        budget = predict(nested_plan(10, 2), chain).peak
        best = best_nested_plan(chain, budget)
        model = apply(best.plan, layers)
        trace = measure(lambda: model(x).sum().backward(), model, inputs=x)
    assert trace.peak == best.prediction.peak <= budget


def test_with_room_for_everything_nothing_is_recomputed():
    chain = chain_of_linears(8, 3)
    best = best_nested_plan(chain, predict(keep_all(chain), chain).peak)
    assert best.prediction.recomputed_flops == 0 and best.exact


def test_beyond_the_layers_that_are_searched_the_best_known_plan_is_taken():
    chain = chain_of_linears(LAYERS + 10)
    budget = predict(nested_plan(len(chain), 3), chain).peak
    best = best_nested_plan(chain, budget)
    assert best.least == 0 and not best.exact
    assert best.prediction.recomputed_flops == min(
        plan.recomputed_flops for plan in fits(chain, budget)
    )


def test_rounded_rooms_still_bound_and_still_fit(monkeypatch):
    """With few rooms the bound is lower and the plan perhaps dearer; neither is wrong."""
    for seed in range(6):
        chain = chain_of_linears(8, seed)
        low = smallest_peak(chain).prediction.peak
        for budget in (low, low + (predict(keep_all(chain), chain).peak - low) // 3):
            exact = best_nested_plan(chain, budget).prediction.recomputed_flops
            with monkeypatch.context() as patch:
                patch.setattr("course_lib.plans.nested.CELLS", 0)
                rough = best_nested_plan(chain, budget)
            assert rough.prediction.peak <= budget
            assert rough.least <= exact <= rough.prediction.recomputed_flops


def test_how_long_the_search_takes(report):
    seconds = {}
    for layers in (12, 25, 50):
        chain = chain_of_linears(layers, layers)
        budget = smallest_peak(chain).prediction.peak
        begin = time.perf_counter()
        best = best_nested_plan(chain, budget)
        seconds[layers] = time.perf_counter() - begin
        assert best.exact
    report("nested planner: " + ", ".join(f"{t:.2f} s for {n}" for n, t in seconds.items()))
    assert seconds[50] < 30  # a loaded machine; alone it takes one or two


# --- what parts need, and what is played --------------------------------------------------------


def steps_of(units, begin=0):
    """Every row of kept units and segments."""
    if begin == units:
        yield ()
        return
    for rest in steps_of(units, begin + 1):
        yield ((begin, begin + 1, False), *rest)
    for end in range(begin + 1, units + 1):
        for rest in steps_of(units, end):
            yield ((begin, end, True), *rest)


def composed(needs, steps):
    """Peak and FLOPs of a plan from the needs of its parts; None where a segment saves nothing."""
    peak = kept = held = flops = 0
    for begin, end, segment in steps:
        if segment:
            first, need, more = needs.segment(begin)
            if end < first:
                return None
            peak = max(peak, kept + need[held][end - first])
            flops += more[end - first]
            kept, held = kept + needs.source[begin], 0
        else:
            peak = max(peak, kept + needs.plain[held, begin])
            takes, held = needs.after_plain(begin, held)
            kept += takes
    return int(max(peak, kept + needs.plain[held, needs.n])) + needs.before, int(flops)


def test_needs_composed_are_what_is_played(report):
    compared = 0
    for seed in range(60):
        with simulated():
            made = sample(seed)
            chain = chain_of(made.layers[:5], made.x, made.loss)
        needs = needs_of(chain)
        for steps in steps_of(needs.n):
            found = composed(needs, steps)
            if found is not None:
                parts = []
                for begin, end, segment in steps:
                    layers = [layer for unit in needs.units[begin:end] for layer in unit.layers]
                    parts += [tuple(layers)] if segment else layers
                played = predict(Plan(tuple(parts)), chain)
                assert found == (played.peak, played.recomputed_flops), (seed, parts)
                compared += 1
    assert compared > 1000
    report(f"needs: {compared} plans, composed as played")
