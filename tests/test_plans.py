"""Plans: what is predicted is what is measured; planners against brute force."""

import itertools
import math
import random
import time

import pytest
import torch
from checkpoint_schedules import EndReverse, Forward, Revolve
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from course_lib.memory import Role, measure, simulated
from course_lib.plans import Plan, apply, chain_of, predict
from course_lib.plans.planners import (
    BudgetTooSmall,
    best_plan,
    even_plan,
    frontier,
    keep_all,
    nested_plan,
    nested_steps,
    smallest_peak,
    sqrt_plan,
)
from support import chain_samples
from support.chain_samples import Lambda, Residual, flat_plans, random_plan, sample

GiB = 2**30


def measured(plan, made):
    model = apply(plan, made.layers)
    if not made.gradients:
        model.zero_grad()
        made.x.grad = None
    return measure(lambda: made.loss(model(made.x)).backward(), model, inputs=made.x)


def linears(count, pick=None):
    width = (
        [16] * (count + 1) if pick is None else [pick.choice([4, 16, 40]) for _ in range(count + 1)]
    )
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(width)]
    return layers, torch.empty(32, width[0])


@pytest.fixture(scope="module")
def tanhs():
    with simulated():
        x = torch.empty(2**28, requires_grad=True)
        layers = [Lambda(torch.tanh) for _ in range(100)]
        return chain_of(layers, x)


# --- prediction equals measurement --------------------------------------------------------------

CHAINS = 120


def test_predictions_equal_measurements_on_random_chains(report):
    """Peak and kept bytes, recomputed and all FLOPs; plain, one segment, random, nested plans."""
    worst = dict.fromkeys(("peak", "kept", "flops"), 0)
    compared = nested = 0
    for seed in range(CHAINS):
        pick = random.Random(seed)
        with simulated():
            made = sample(seed)
            chain, n = chain_of(made.layers, made.x, made.loss), len(made.layers)
            plain = measured(keep_all(chain), made)
            for plan in (Plan((tuple(range(n)),)), random_plan(pick, n), random_plan(pick, n, 3)):
                trace, found = measured(plan, made), predict(plan, chain)
                kept = trace.kept[Role.ACTIVATION] + trace.kept[Role.CHECKPOINT]
                off = {
                    "peak": found.peak - trace.peak,
                    "kept": found.kept - kept,
                    "flops": found.recomputed_flops - (trace.flops - plain.flops),
                }
                for what, difference in off.items():
                    worst[what] = max(worst[what], abs(difference))
                compared += 1
                nested += any(isinstance(part, tuple) for s in plan.segments for part in s)
                assert off == dict.fromkeys(off, 0), (seed, str(plan), off)
            assert predict(keep_all(chain), chain).peak == plain.peak
    report(
        f"plans: {compared} plans ({nested} nested) on {CHAINS} chains; worst differences {worst}"
    )


def test_gradients_of_an_earlier_step_are_counted_and_left_alone():
    with simulated():
        layers, x = linears(4)
        model = nn.Sequential(*layers)
        model(x).sum().backward()
        before = [p.grad for p in model.parameters()]
        chain = chain_of(layers, x)
        assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))
        trace = measure(lambda: model(x).sum().backward(), model, inputs=x)
    assert predict(keep_all(chain), chain).peak == trace.peak
    assert all(layer.gradient == 0 for layer in chain.layers)


def test_a_peak_inside_a_layer_is_not_forgotten_by_its_end():
    """No gradient is needed, so that nothing is larger than what forward makes in between."""
    with simulated():
        layers = [Lambda(lambda x: x.repeat(9, 1).sum(0).exp()), nn.Linear(1000, 1)]
        x = torch.empty(1000)
        chain = chain_of(layers, x)
        for plan in (keep_all(chain), Plan(((0, 1),))):
            model = apply(plan, layers)
            trace = measure(lambda model=model: model(x).sum().backward(), model, inputs=x)
            assert predict(plan, chain).peak == trace.peak > 9 * x.nbytes
            layers[1].zero_grad()


class Unread(torch.autograd.Function):
    """Saves four values and reads none of them in the backward pass."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(*(x + i for i in range(4)))
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_what_is_recomputed_but_never_read_is_let_go():
    with simulated():
        x = torch.empty(1000, requires_grad=True)
        # The backward pass comes to tanh first and recomputes what it reads, the rest with it.
        layers = [Lambda(function) for _ in range(4) for function in (Unread.apply, torch.tanh)]
        chain = chain_of(layers, x)
        for plan in (
            Plan(((0, 1), (2, 3), (4, 5), (6, 7))),
            Plan((((0, 1), (2, 3)), (4, 5, 6), 7)),
        ):
            x.grad = None
            model = apply(plan, layers)
            trace = measure(lambda model=model: model(x).sum().backward(), inputs=x)
            assert predict(plan, chain).peak == trace.peak


def test_real_layers_are_left_untouched():
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)]
    x = torch.randn(5, 8, requires_grad=True)
    state = {k: v.clone() for k, v in nn.Sequential(*layers).state_dict().items()}
    generator = torch.get_rng_state()
    chain = chain_of(layers, x)
    after = nn.Sequential(*layers).state_dict()
    assert all(torch.equal(state[key], after[key]) for key in state)
    assert all(p.grad is None for layer in layers for p in layer.parameters())
    assert x.grad is None and torch.equal(generator, torch.get_rng_state())
    assert len(chain) == 3


def test_real_steps_without_workspace_are_predicted_too():
    """But for random states, which checkpoints keep and a simulated step does not count."""
    layers = [Residual(8, 16) for _ in range(4)]
    x = torch.randn(8192, 8)
    chain = chain_of(layers, x, mean_square)
    for plan in (keep_all(chain), Plan((0, (1, 2), 3))):
        model = apply(plan, layers)
        model.zero_grad()
        trace = measure(lambda m=model: mean_square(m(x)).backward(), model, inputs=x)
        assert trace.source == "cpu allocator" and trace.at_peak[Role.WORKSPACE] == 0
        assert predict(plan, chain).peak == trace.peak - trace.at_peak[Role.RANDOM_STATE]


def mean_square(y):
    return y.square().mean()


def test_costs_of_a_layer():
    with simulated():
        layers, x = linears(3)
        chain = chain_of(layers, x)
    first, second, _ = chain.layers
    assert first.boundary == second.boundary == 32 * 16 * 4
    assert first.kept == 32 * 16 * 4  # its output; the chain's input exists anyway
    assert second.kept == 2 * 32 * 16 * 4
    assert second.gradient == (16 * 16 + 16) * 4
    assert second.flops == 2 * 32 * 16 * 16 and second.backward_flops == 2 * second.flops
    assert chain.before == 3 * (16 * 16 + 16) * 4 + 32 * 16 * 4


def test_the_article(tanhs):
    peaks = {k: predict(even_plan(tanhs, k), tanhs).peak for k in (0, 1, 5, 10, 20, 100)}
    rounded = {k: round(peak / GiB, 3) for k, peak in peaks.items()}
    assert rounded == {0: 102, 1: 102, 5: 26, 10: 21, 20: 26, 100: 102}
    ten = predict(even_plan(tanhs, 10), tanhs)
    assert ten.recomputed_layers == 100 and ten.recomputed == 10 * GiB
    assert ten.peak_at.phase in ("recompute", "backward") and ten.peak_at.recomputed == 10 * GiB


def test_predicting_a_thousand_layers_is_fast(report):
    with simulated():
        chain = chain_of(*linears(1000))
    begin = time.perf_counter()
    predict(sqrt_plan(chain), chain)
    seconds = time.perf_counter() - begin
    report(f"plans: predicting 1,000 layers takes {seconds:.3f} s")
    assert seconds < 2


# --- plans --------------------------------------------------------------------------------------


def test_applied_plans_have_the_gradients_of_plain_backward():
    torch.manual_seed(0)
    layers = [Residual(8, 16) for _ in range(6)]
    x = torch.randn(4, 8)

    def gradients(model):
        model.zero_grad()
        model(x).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = gradients(nn.Sequential(*layers))
    for plan in (Plan((0, (1, 2), (3, (4, 5)))), Plan.cut([2, 4]), nested_plan(6, 1)):
        found = gradients(apply(plan, layers))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_plan_reads_as_it_is_written():
    plan = Plan((0, (1, 2), (3, (4, 5)), (6, 7, 8, 9), (10, 11, 12)))
    assert str(plan) == "0 (1 2) (3 (4 5)) (6…9) (10 11 12)" and len(plan) == 13
    assert plan.segments == ((1, 2), (3, (4, 5)), (4, 5), (6, 7, 8, 9), (10, 11, 12))


@pytest.mark.parametrize(
    ("parts", "said"), [((0, 2), "in order"), ((1, 0), "in order"), ((0, 0), "in order"),
                        ((0, ()), "holds no layer")],
)  # fmt: skip
def test_wrong_plans(parts, said):
    with pytest.raises(ValueError, match=said):
        Plan(parts)


def test_wrong_arguments(tanhs):
    with pytest.raises(ValueError, match="100"):
        predict(Plan((0,)), tanhs)
    with pytest.raises(ValueError, match="2 layers, the model 1"):
        apply(Plan((0, 1)), [nn.Identity()])
    with pytest.raises(ValueError, match="0 to 100 segments, not 101"):
        even_plan(tanhs, 101)
    with pytest.raises(ValueError, match="no layers"):
        chain_of([], torch.ones(1))
    with pytest.raises(TypeError, match=r"Layer 0 must be an nn\.Module"):
        chain_of([torch.tanh], torch.ones(1))
    with pytest.raises(TypeError, match="one tensor, not a tuple"):
        chain_of([nn.LSTM(2, 2)], torch.ones(1, 1, 2, requires_grad=True))
    with pytest.raises(ValueError, match="At least 1 layer"):
        nested_plan(0, 1)


# --- planners -----------------------------------------------------------------------------------

SMALL = 60


@pytest.mark.parametrize("options", [{}, {"labels": 1, "slots": 12}, {"labels": 0},
                                     {"labels": 0, "slots": 12}],
                         ids=["labels", "promising labels", "slots", "few slots"])  # fmt: skip
def test_best_plans_against_every_plan_of_small_chains(options, report):
    """Within the budget, as cheap as any of all plans, and the bound holds."""
    worst, budgets = 0.0, 0
    kinds = (chain_samples.mlp, chain_samples.convolution)
    for seed in range(SMALL):
        pick = random.Random(seed)
        with simulated():
            if seed % 3 == 2:
                chain = chain_of(*linears(6, pick))
            else:
                made = sample(seed, kinds, most=6 if seed % 2 == 0 else 4)
                chain = chain_of(made.layers[:7], made.x, made.loss)
        every = [predict(plan, chain) for plan in flat_plans(len(chain))]
        low, high = min(p.peak for p in every), max(p.peak for p in every)
        assert smallest_peak(chain).prediction.peak == low
        for budget in {low, high, *(pick.randint(low, high) for _ in range(5))}:
            optimum = min(p.recomputed_flops for p in every if p.peak <= budget)
            best = best_plan(chain, budget, **options)
            found = best.prediction.recomputed_flops
            assert best.prediction.peak <= budget
            assert best.least <= optimum <= found, (seed, budget)
            assert best.exact == (found == best.least) and best.excess >= found - optimum
            if options.get("labels", 1):
                assert found == optimum and best.exact, (seed, budget, str(best.plan))
            worst = max(worst, (found - optimum) / max(chain.flops, 1))
            budgets += 1
    report(f"planners {options or 'exact'}: {budgets} budgets, worst excess {worst:.2%} of a step")


def test_a_budget_that_cannot_be_met_names_the_smallest(tanhs):
    smallest = smallest_peak(tanhs).prediction.peak
    with pytest.raises(BudgetTooSmall, match=f"{smallest:,} bytes is the least") as raised:
        best_plan(tanhs, smallest - 1)
    assert raised.value.smallest == smallest
    assert best_plan(tanhs, smallest).prediction.peak == smallest


def test_without_need_nothing_is_recomputed():
    with simulated():
        chain = chain_of(*linears(8))
    best = best_plan(chain, predict(keep_all(chain), chain).peak)
    assert best.prediction.recomputed_flops == 0 and best.exact


def test_the_frontier_falls_as_budgets_rise():
    with simulated():
        chain = chain_of(*linears(12, random.Random(1)))
    found = [(b.prediction.peak, b.prediction.recomputed_flops) for b in frontier(chain, 20)]
    assert len(found) > 3 and found[-1][1] == 0
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(found))


def test_a_thousand_layers(report):
    """Time grows with the square of the layers: stated in the docstring, shown here."""
    seconds = {}
    for n in (125, 250, 500, 1000):
        with simulated():
            chain = chain_of(*linears(n, random.Random(n)))
        smallest = smallest_peak(chain).prediction
        budget = (smallest.peak + predict(keep_all(chain), chain).peak) // 2
        begin = time.perf_counter()
        best = best_plan(chain, budget, labels=0)
        seconds[n] = time.perf_counter() - begin
        assert best.prediction.peak <= budget
        even = [predict(even_plan(chain, count), chain) for count in range(1, n, n // 25)]
        fitting = [plan.recomputed_flops for plan in even if plan.peak <= budget]
        assert best.prediction.recomputed_flops < min(fitting, default=math.inf)
        assert best.prediction.recomputed_flops < smallest.recomputed_flops
        plain = predict(keep_all(chain), chain).peak
        loose = best_plan(chain, plain - (plain - smallest.peak) // 200)
        assert loose.exact and loose.prediction.recomputed_flops > 0
    report("planners: best plan in "
           + ", ".join(f"{t:.2f} s for {n}" for n, t in seconds.items()) + " layers")  # fmt: skip
    assert seconds[1000] < 10  # a loaded machine; alone it takes under 2


def steps_of(plan, layers):
    """How often layers run in a forward pass and a backward pass."""
    calls = 0

    def count(x):
        nonlocal calls
        calls += 1
        return torch.tanh(x)

    x = torch.ones(1, requires_grad=True)
    apply(plan, [Lambda(count) for _ in range(layers)])(x).backward()
    return calls


@pytest.mark.parametrize(("layers", "snapshots"),
                         [(1, 1), (2, 1), (5, 2), (10, 3), (20, 2), (30, 4), (57, 3)])  # fmt: skip
def test_nested_plans_take_the_steps_of_revolve(layers, snapshots):
    """The package counts the first layer's input among its snapshots."""
    expected = 0
    for action in Revolve(layers, snapshots):
        if isinstance(action, EndReverse):
            break
        if isinstance(action, Forward):
            expected += action.n1 - action.n0
    assert layers + nested_steps(layers, snapshots - 1) == expected
    assert steps_of(nested_plan(layers, snapshots - 1), layers) == expected


def test_nested_plans_keep_no_more_inputs_than_they_may(tanhs):
    for snapshots in (1, 2, 5):
        found = predict(nested_plan(100, snapshots), tanhs)
        # The input of all, the snapshots, a layer's output, its gradient, and one on the way.
        assert found.peak <= (snapshots + 4) * GiB + 8  # and the loss with its gradient
        assert found.recomputed_layers == nested_steps(100, snapshots)


def test_even_spacing_cuts_where_checkpoint_sequential_does_if_it_comes_out_even():
    calls = []
    layers = [Lambda(lambda x, i=i: (calls.append(i), x.tanh())[1]) for i in range(6)]
    x = torch.ones(1, requires_grad=True)
    checkpoint_sequential(layers, 3, x, use_reentrant=False).backward()
    theirs = list(calls)
    calls.clear()
    apply(Plan(((0, 1), (2, 3), 4, 5)), layers)(x).backward()
    assert calls == theirs
