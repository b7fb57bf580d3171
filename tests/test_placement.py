"""Lesson 05's explorers: every position, the learner's buttons, both languages."""

import time
from dataclasses import replace

import pytest
import torch
from matplotlib.lines import Line2D
from torch import nn

from course_lib import language
from course_lib.figures.palette import COLOURS, COMPARED
from course_lib.figures.words import size_text
from course_lib.lessons.placing_checkpoints import (
    Placement,
    budget_explorer,
    chain_counts_explorer,
    dropout_explorer,
    layers_table,
    plan_budgets,
    sweep_counts,
)
from course_lib.lessons.placing_checkpoints.placed import PLACED, Placed
from course_lib.memory import simulated
from course_lib.models import pyramid
from course_lib.notebook.bar_buttons import STRIP
from course_lib.plans import Plan, chain_of, predict
from course_lib.plans.planners import best_plan, smallest_peak


@pytest.fixture(scope="module")
def chain():
    with simulated():
        return chain_of(pyramid((2, 1, 2)), torch.empty(2, 64, 64))


@pytest.fixture(autouse=True)
def every_language():
    yield
    language.choose("en")


def fits(explorer):
    """Every position can be drawn and said, quickly enough for a slider."""
    slowest = 0.0
    for position in explorer.positions():
        begin = time.perf_counter()
        explorer.move(**position)
        slowest = max(slowest, time.perf_counter() - begin)
        assert explorer.caption
    return slowest


@pytest.mark.parametrize("spoken", language.LANGUAGES)
def test_counts(chain, spoken, report):
    language.choose(spoken)
    counts = sweep_counts(chain, range(1, len(chain) + 1), lambda k: k * 2**20)
    slowest = fits(chain_counts_explorer(counts, start=1))
    assert counts.best in counts.found
    report(f"placement: counts, {spoken}: slowest picture {1000 * slowest:.0f} ms")


@pytest.mark.parametrize("spoken", language.LANGUAGES)
def test_dropout_decides_where_the_peak_of_a_transformer_is_lowest(spoken):
    """One per block while the inside is more than n/2 times the boundary, as lesson 05 says."""
    language.choose(spoken)
    n, by_dropout, ratio = 30, {}, {}
    for dropout in (0.1, 0.0):
        with simulated():
            blocks = [
                nn.TransformerEncoderLayer(1024, 16, 4096, dropout, batch_first=True)
                for _ in range(n)
            ]
            transformer = chain_of(blocks, torch.empty(32, 1024, 1024))
        by_dropout[dropout] = sweep_counts(transformer, range(1, n + 1))
        ratio[dropout] = transformer.layers[1].kept / transformer.layers[1].boundary
    assert ratio[0.0] < n / 2 < ratio[0.1], "fused attention keeps no square matrices"
    assert by_dropout[0.1].best == n
    assert by_dropout[0.0].best == n // 2
    explorer = dropout_explorer(by_dropout, start=10)
    assert explorer.values == {"dropout": 0.1, "checkpoints": 10}
    fits(explorer)
    explorer.move(dropout=0.0, checkpoints=15)
    assert size_text(by_dropout[0.0][15].peak) in explorer.caption


@pytest.mark.parametrize("spoken", language.LANGUAGES)
def test_budgets(chain, spoken, report):
    language.choose(spoken)
    budgets = plan_budgets(chain, 9)
    for budget, best in budgets.best.items():
        assert best.prediction.peak <= budget
        even = budgets.even[budget]
        assert even is None or (even[1].peak <= budget and even[1].recomputed_flops >= best.least)
    report(f"placement: budgets, {spoken}: slowest picture "
           f"{1000 * fits(budget_explorer(budgets)):.0f} ms")  # fmt: skip


def test_buttons_make_a_plan(chain):
    n = len(chain)
    placement = Placement(chain, predict(Plan(tuple(range(n))), chain).peak)
    assert placement.plan == Plan(tuple(range(n)))
    for layer in (0, 1, 1):  # a segment begins at 0; 1 begins one, then joins
        placement._buttons[layer].click()
    assert placement.plan.parts[:2] == ((0, 1), 2)
    placement._buttons[2].click()
    assert placement.plan.parts[:3] == ((0, 1), (2,), 3)
    placement._buttons[0].click()  # nothing to join: kept again, and 1 begins a segment
    assert placement.plan.parts[:4] == (0, (1,), (2,), 3)


def test_buttons_are_as_wide_as_their_bars(chain):
    placement = Placement(chain, 2**40)
    row = placement._buttons[0].layout, placement._buttons[-1].layout
    left, right = STRIP
    share = (PLACED[0] - left - right) / PLACED[0] / len(chain)
    assert {layout.width for layout in row} == {f"{100 * share:.4f}%"}
    assert {(layout.margin, layout.padding, layout.flex) for layout in row} == {
        ("0", "0", "0 0 auto")
    }


def test_the_plans_compared_have_colours_of_their_own(chain):
    budgets = plan_budgets(chain, 5)
    explorer = budget_explorer(budgets)
    lines = [line.get_color() for line in explorer._picture.findobj(Line2D)]
    assert set(lines) & set(COMPARED) == set(COMPARED)
    assert not set(lines) & set(COLOURS.values())


@pytest.mark.parametrize("spoken", language.LANGUAGES)
def test_a_placement_is_scored(chain, spoken):
    language.choose(spoken)
    low = smallest_peak(chain).prediction.peak
    budget = (low + predict(Plan(tuple(range(len(chain)))), chain).peak) // 2
    placement = Placement(chain, budget)
    best = best_plan(chain, budget).plan
    assert placement.plan != best
    for part in best.parts:
        if isinstance(part, tuple):
            for i, layer in enumerate(part):
                placement.press(layer)
                if i:
                    placement.press(layer)
    assert placement.plan == best
    bundle = placement._repr_mimebundle_()
    assert bundle["image/png"] and bundle["text/plain"] == placement.picture.caption


def test_only_what_is_exact_is_called_the_best_there_is(chain):
    low = smallest_peak(chain).prediction.peak
    best = best_plan(chain, low)
    placed = Placed(chain, low, best.plan, best.prediction, best)
    assert best.exact and "no plan without nesting needs fewer" in placed.reached("+1%")[1]
    unproven = replace(placed, best=replace(best, least=best.prediction.recomputed_flops - 1))
    assert "the best plan known" in unproven.reached("+1%")[1]
    assert "已知最好" in unproven.reached("+1%")[0]


def test_the_table_of_layers():
    with simulated():
        chain = chain_of([nn.Linear(4, 4), nn.ReLU()], torch.empty(2, 4))
    rows = layers_table(chain).rows
    assert [row[1] for row in rows] == ["Linear", "ReLU"] and rows[0][4] == "80 B"
