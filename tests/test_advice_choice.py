"""The exact choice: equal to trying every subset, and quick on many blocks."""

import itertools
import random
import time

import pytest
import torch
from torch import nn

from course_lib.memory import simulated
from course_lib.plans.advice.choice import Problem
from course_lib.plans.advice.score import Score
from course_lib.plans.advice.watch import record_step
from support.advice_samples import SAMPLES, Unlike, _sample, found, watched


def score_of(sample, watched):
    sample.step()
    return Score(record_step(sample.step, sample.model, [sample.optimizer], sample.inputs, watched))


def problem_of(sample):
    blocks = found(sample)
    score = score_of(sample, blocks)
    return Problem(score, [((), (score.part(path, [path]),)) for path in blocks])


def check_against_every_subset(problem):
    every = []
    for taken in itertools.product(*(range(len(options)) for options in problem.blocks)):
        parts = problem.parts(taken)
        told = problem.score.foretell(parts)
        every.append((told.peak, sum(part.flops for part in parts)))
    peaks = sorted({peak for peak, _ in every})
    budgets = {peaks[0] - 1, *peaks} | {p + 1 for p in peaks}
    if len(budgets) > 60:
        budgets = set(random.Random(1).sample(sorted(budgets), 60)) | {peaks[0], peaks[0] - 1}
    for budget in sorted(budgets):
        fitting = [flops for peak, flops in every if peak <= budget]
        choice = problem.cheapest(budget)
        if not fitting:
            assert choice is None
            continue
        assert choice is not None, budget
        assert choice.flops == min(fitting), budget
        assert choice.peak == problem.peak(choice.taken) <= budget
    lowest = problem.lowest()
    assert lowest.peak == peaks[0]
    assert lowest.flops == min(flops for peak, flops in every if peak == peaks[0])


@pytest.mark.parametrize("name", SAMPLES)
def test_it_equals_exhaustive_search(name):
    _, blocks, score = watched(name)
    check_against_every_subset(
        Problem(score, [((), (score.part(path, [path]),)) for path in blocks])
    )


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_exhaustive_search_on_random_models(seed):
    draw = random.Random(seed)
    widths = tuple(draw.choice([4, 24, 60, 130, 131, 300]) for _ in range(draw.randint(2, 7)))
    with simulated():
        model = Unlike(widths, frozen=draw.randint(0, 3))
        x = torch.randn(draw.choice([2, 16]), 10, 24, requires_grad=draw.random() < 0.5)
        sample = _sample(model, x, lambda: model(x).square().sum(), "Wide")
        check_against_every_subset(problem_of(sample))


@pytest.mark.parametrize("seed", range(2))
def test_it_equals_exhaustive_search_on_twelve_blocks(seed):
    draw = random.Random(seed)
    with simulated():
        model = Unlike(tuple(draw.randint(4, 300) for _ in range(11)), frozen=seed)
        x = torch.randn(4, 10, 24)
        problem = problem_of(_sample(model, x, lambda: model(x).square().sum(), "Wide"))
        assert len(problem.blocks) == 12
        check_against_every_subset(problem)


def test_parts_of_blocks_take_part_in_the_choice():
    with simulated():
        sample = SAMPLES["vit"]()
        blocks = found(sample)
        inner = {f"{b}.{part}" for b in blocks for part in ("attention", "mlp")}
        modules = dict(sample.model.named_modules())
        inner = {path: modules[path] for path in inner if path in modules}
        score = score_of(sample, blocks | inner)
        options = []
        for path in list(blocks)[:3]:
            own = [score.part(p, [p]) for p in inner if p.startswith(path + ".")]
            options.append(((), (score.part(path, [path]),), *((one,) for one in own), tuple(own)))
        check_against_every_subset(Problem(score, options))


@pytest.mark.parametrize("alike", [True, False])
def test_a_hundred_blocks_take_less_than_two_seconds(alike):
    draw = random.Random(3)
    with simulated():
        widths = tuple(96 if alike else draw.randint(10, 400) for _ in range(100))
        model = Unlike(widths, frozen=0)
        x = torch.randn(8, 10, 24)
        score = score_of(
            _sample(model, x, lambda: model(x).square().sum(), "Wide"),
            {f"blocks.{i}": block for i, block in enumerate(model.blocks)},
        )
    begin = time.process_time()
    paths = [f"blocks.{i}" for i in range(100)]
    problem = Problem(score, [((), (score.part(path, [path]),)) for path in paths])
    lowest, plain = problem.lowest().peak, score.foretell().peak
    for share in (0.1, 0.5, 0.9):
        budget = int(lowest + share * (plain - lowest))
        choice = problem.cheapest(budget)
        assert choice is not None and choice.peak <= budget
    assert time.process_time() - begin < 2  # for four searches; others may be busy meanwhile


def test_blocks_inside_one_another_are_refused():
    with simulated():
        model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 1))
        x = torch.randn(2, 4)
        sample = _sample(model, x, lambda: model(x).sum(), "*")
        score = score_of(sample, {"0": model[0], "0.0": model[0][0]})
        parts = [score.part(path, [path]) for path in ("0", "0.0")]
        with pytest.raises(ValueError, match=r"0\.0 runs inside"):
            Problem(score, [((), (part,)) for part in parts])
