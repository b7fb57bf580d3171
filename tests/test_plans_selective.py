"""Which operators' results to store: told as it is measured, and the frontier exact."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_lib.gradients import same_gradients
from course_lib.memory import measure, simulated
from course_lib.models import PaperBlock, Sizes
from course_lib.plans.selective import BudgetTooSmall, keeping, score_of


class Fused(nn.Module):
    """Normalised before each half; attention fused: ten operators to choose from."""

    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        mixed = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class InPlace(nn.Module):
    """Writes into some of its own values, and ends in one that saves its result."""

    def __init__(self, width=32):
        super().__init__()
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        hidden = self.first(x).relu_()
        return (self.second(hidden.sin()) + x).tanh()


class Dropping(nn.Module):
    """Ordinary dropout, which draws in place, and dropout with a mask, twice."""

    def __init__(self, width=32):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        h = F.dropout(self.first(x), 0.2)
        h = torch.native_dropout(h.sin(), 0.5, True)[0]
        return torch.native_dropout(self.second(h).cos(), 0.5, True)[0] + x


class Uneven(nn.Module):
    """Its last value is held by the loss as well, and a large one is made for a moment only."""

    def __init__(self, width=32):
        super().__init__()
        self.wide = nn.Linear(width, 8 * width)

    def forward(self, x):
        return self.wide(x).unflatten(-1, (8, -1)).amax(-2).exp()


def paper():
    return PaperBlock(Sizes(width=32, heads=2), fused_dropout=True)


KINDS = {"fused": Fused, "in place": InPlace, "dropping": Dropping, "uneven": Uneven,
         "paper": paper}  # fmt: skip


class Case:
    def __init__(self, kind, depth=3):
        torch.manual_seed(0)
        self.model = nn.Sequential(*(KINDS[kind]() for _ in range(depth)))
        self.x = torch.randn(4, 16, 32)
        self.step()  # so that gradients are there
        self.score = score_of(self.step, self.model, self.model, self.x)

    def step(self):
        self.model(self.x).square().mean().backward()

    def measured(self, stored):
        if stored is None:
            return found(measure(self.step, self.model, inputs=self.x))
        with keeping(self.model, self.score.operators(stored)):
            return found(measure(self.step, self.model, inputs=self.x))


def found(trace):
    return sum(trace.kept.values()) - sum(trace.before.values()), trace.peak, trace.flops


def told(prediction):
    return prediction.kept, prediction.peak, prediction.flops


def allowed(score):
    """Every set that may be chosen."""
    numbers = range(len(score.choices))
    for size in range(len(numbers) + 1):
        for stored in itertools.combinations(numbers, size):
            try:
                score.checked(stored)
            except ValueError:
                continue
            yield stored


# --- what is predicted is what is measured ------------------------------------------------------


@pytest.mark.parametrize("kind", ["in place", "uneven"])
def test_every_choice_is_what_measuring_finds(kind):
    with simulated():
        case = Case(kind, depth=2)
        for stored in (None, *allowed(case.score)):
            one = case.score.plain if stored is None else case.score.predict(stored)
            assert told(one) == case.measured(stored), stored


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 3])
def test_some_choices_of_larger_blocks(kind, depth):
    with simulated():
        case = Case(kind, depth)
        sets = list(allowed(case.score))
        for stored in [sets[0], sets[-1], *random.Random(depth).sample(sets, 6)]:
            assert told(case.score.predict(stored)) == case.measured(stored), stored
        assert told(case.score.plain) == case.measured(None)


def test_real_tensors_too_with_the_states_that_checkpoints_keep():
    case = Case("fused")
    sets = list(allowed(case.score))
    for stored in [sets[0], sets[-1], *random.Random(0).sample(sets, 5)]:
        assert told(case.score.predict(stored)) == case.measured(stored), stored


def test_another_loop_than_a_patched_block_needs_the_same():
    with simulated():
        case = Case("fused")
        stored = {1, 3}

        def run(x):
            for block in case.model:
                x = checkpoint(
                    block, x, use_reentrant=False, context_fn=case.score.contexts(stored)
                )
            return x

        def step():
            run(case.x).square().mean().backward()

        trace = measure(step, case.model, inputs=case.x)
        assert found(trace) == told(case.score.predict(stored))


# --- the best of them ---------------------------------------------------------------------------


def by_brute_force(score, of):
    """(bytes, FLOPs) of each choice that no other beats, from trying all."""
    points = sorted({(getattr(p, of), p.flops) for p in map(score.predict, allowed(score))})
    front = []
    for size, flops in points:
        if not front or flops < front[-1][1]:
            front.append((size, flops))
    return front


@pytest.mark.parametrize("of", ["kept", "peak"])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("kind", ["fused", "in place", "dropping", "uneven"])
def test_the_frontier_is_that_of_trying_everything(kind, depth, of):
    with simulated():
        score = Case(kind, depth).score
    assert len(score.choices) <= 12
    frontier = score.frontier(of)
    assert [(getattr(p, of), p.flops) for p in frontier] == by_brute_force(score, of)
    for one in frontier:  # none stores what it need not
        for number in one.stored:
            try:
                fewer = score.predict(one.stored - {number})
            except ValueError:
                continue
            assert (getattr(fewer, of), fewer.flops) != (getattr(one, of), one.flops)


@pytest.mark.parametrize("of", ["kept", "peak"])
def test_the_best_within_a_budget(of):
    with simulated():
        score = Case("fused").score
    every = [score.predict(stored) for stored in allowed(score)]
    sizes = sorted({getattr(one, of) for one in every})
    for budget in [*sizes[:: len(sizes) // 9], sizes[-1] + 1]:
        least = min(one.flops for one in every if getattr(one, of) <= budget)
        best = score.best(budget, of)
        assert best.flops == least and getattr(best, of) <= budget
    with pytest.raises(BudgetTooSmall) as refused:
        score.best(sizes[0] - 1, of)
    assert refused.value.smallest == sizes[0] and f"{sizes[0]:,}" in str(refused.value)


def test_a_large_block_is_searched_at_once():
    with simulated():
        score = Case("paper", depth=6).score
    assert len(score.choices) > 15
    frontier = score.frontier("peak")
    assert len(frontier) > 5
    drawn = random.Random(1).sample(list(allowed(score)), 400)
    for one in map(score.predict, drawn):
        assert any(f.peak <= one.peak and f.flops <= one.flops for f in frontier)


# --- what there is to choose --------------------------------------------------------------------


def test_choices_are_the_operators_that_make_something():
    with simulated():
        score = Case("fused").score
    names = [choice.name for choice in score.choices]
    assert names[0] == "native_layer_norm" and names.count("addmm") == 4
    assert {c.module for c in score.choices} >= {"norm1", "qkv", "out", "norm2", "up", "down"}
    assert all(c.size > 0 for c in score.choices)
    gelu, up = (next(c for c in score.choices if c.name == name or c.module == name)
                for name in ("gelu", "up"))  # fmt: skip
    rows = 4 * 16
    assert (gelu.size, gelu.saved, gelu.flops) == (4 * rows * 128, 4 * rows * 128, 0)
    assert (up.size, up.flops) == (4 * rows * 128, 2 * rows * 32 * 128)
    assert up.flops_per_byte == 16 and up.label == "up · addmm"
    assert [c.module for c in score.choices if not c.again] == ["down", ""]


def test_what_is_written_into_is_no_choice():
    with simulated():
        names = [choice.name for choice in Case("in place").score.choices]
    assert names == ["sin", "addmm", "add", "tanh"]  # neither the first addmm nor relu_


def test_random_numbers_keep_their_order():
    case = Case("dropping")
    first, second = [c.number for c in case.score.choices if c.random]
    with pytest.raises(ValueError, match="other random numbers"):
        case.score.predict([first])

    def with_stored(operators):
        def step():
            with keeping(case.model, operators):
                case.step()

        return step

    for stored in ([], [second], [first, second]):
        operators = case.score.operators(stored)
        assert same_gradients(case.step, with_stored(operators), model=case.model), stored
    # The reason for the rule: torch says nothing, and the gradients are others.
    wrong = {(case.score.choices[first].operator, case.score.choices[first].nth)}
    assert not same_gradients(case.step, with_stored(wrong), model=case.model)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_same_bit_for_bit(kind):
    case = Case(kind)
    sets = list(allowed(case.score))

    for stored in [sets[0], sets[-1], sets[len(sets) // 2]]:

        def step(stored=stored):
            with keeping(case.model, case.score.operators(stored)):
                case.step()

        assert same_gradients(case.step, step, model=case.model)


# --- refused ------------------------------------------------------------------------------------


def test_what_cannot_be_scored_is_refused():
    with simulated():
        model = nn.Sequential(Fused(), InPlace())
        x = torch.zeros(4, 16, 32)

        def step():
            model(x).mean().backward()

        def twice():
            loss = model[0](x).mean()
            loss.backward(retain_graph=True)
            loss.backward()

        for blocks in ([], [nn.Linear(3, 3)]):
            with pytest.raises(ValueError, match="within model"):
                score_of(step, model, blocks, x)
        with pytest.raises(ValueError, match="differ"):
            score_of(step, model, model, x)
        with pytest.raises(ValueError, match="twice"):
            score_of(twice, model, [model[0]], x)
        with pytest.raises(ValueError, match="inside another"):
            score_of(step, model, [model[0], model[0].up], x)
        with pytest.raises(ValueError, match="does not call"):
            score_of(lambda: model[0](x).mean().backward(), model, [model[1]], x)
        score = score_of(step, model, [model[0]], x)
        for wrong in (99, -1, "up"):
            with pytest.raises(ValueError, match="no choice"):
                score.predict([wrong])


def test_blocks_are_left_as_they_were():
    model = nn.Sequential(Fused())
    own = model[0].forward = lambda x, forward=model[0].forward: forward(x)
    with keeping(model, []):
        assert model[0].forward is not own
        with torch.no_grad():
            model(torch.zeros(1, 2, 32))
    assert model[0].forward is own
