"""Lesson 05's checkers: right, wrong and unfinished answers."""

import numpy
import pytest

from course_lib.exercises_plans import check_best_count, check_puzzle, puzzle, show_puzzle
from course_lib.planners import even_plan, keep_all, nested_plan, smallest_peak
from course_lib.plans import Plan, predict

SOLUTIONS = {
    1: ((0, 1, 2), (3, 4, 5), 6, 7, 8),
    2: ((0, 1, 2), 3, 4, 5, 6, 7, 8, 9),
    3: ((0,), 1, 2, (3,), 4, 5, 6, 7, (8,), *range(9, 17)),
    4: nested_plan(12, 2),
}


@pytest.mark.parametrize("number", SOLUTIONS)
def test_the_lessons_solutions_score_a_hundred(number):
    plan, chain = SOLUTIONS[number], puzzle(number).chain
    verdict = check_puzzle(number, plan)
    assert verdict.passed and "Score 100" in verdict.en and "得 100 分" in verdict.zh
    again = predict(plan if isinstance(plan, Plan) else Plan(plan), chain).recomputed_flops
    assert f"FLOPs {again / chain.flops:+.1%}." in verdict.en


@pytest.mark.parametrize("number", SOLUTIONS)
def test_puzzles_need_a_plan(number):
    """Keeping everything does not fit, and neither does one segment round everything."""
    posed = puzzle(number)
    for plan in (keep_all(posed.chain), Plan((tuple(range(len(posed.chain))),))):
        verdict = check_puzzle(number, plan)
        assert verdict.state == "wrong" and "over the budget" in verdict.en
    assert check_puzzle(number, None).state == "unfinished"


def test_a_wasteful_plan_is_told_by_how_much():
    verdict = check_puzzle(1, even_plan(puzzle(1).chain, 3))
    assert verdict.state == "wrong"
    assert "FLOPs are +34.6% where +23.1% is possible: score 67." in verdict.en


def test_the_peak_of_a_plan_that_does_not_fit_is_located():
    verdict = check_puzzle(1, tuple(range(9)))
    assert "3.50 MiB over" in verdict.en and "It falls in the backward of" in verdict.en


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((0, 1, 2), "❌ The plan has 3 layers, the model 9"),
        ((1, 0), "❌ A plan's layers must be 0 to 1 in order"),
        (5, "A plan is layer numbers and tuples of them, such as (0, (1, 2), 3), not 5."),
        ("(0, 1)", "(0, (1, 2), 3), not '(0, 1)'."),
        ((0, 1.5), "(0, (1, 2), 3), not 1.5."),
        ({0, 1}, "(0, (1, 2), 3), not {0, 1}."),
    ],
)
def test_what_is_no_plan_is_said(answer, said):
    verdict = check_puzzle(1, answer)
    assert verdict.state == "wrong" and said in str(verdict)


@pytest.mark.parametrize(
    "answer", [[[0, 1, 2], [3, 4, 5], 6, 7, 8], (range(3), range(3, 6), numpy.int64(6), 7, 8)]
)
def test_lists_and_ranges_are_as_good_as_tuples(answer):
    assert "Score 100" in check_puzzle(1, answer).en


def test_puzzle_four_needs_nesting():
    posed = puzzle(4)
    assert posed.budget < smallest_peak(posed.chain).prediction.peak
    assert posed.optimum.peak <= posed.budget


def test_the_table_of_a_puzzle_ends_with_its_budget():
    assert "10.0 MiB" in str(show_puzzle(1)).splitlines()[-1]
    assert len(show_puzzle(1).rows) == len(puzzle(1).chain) + 2
    with pytest.raises(ValueError, match="not 5"):
        puzzle(5)


def test_budgets_are_below_what_no_plan_needs():
    for number in SOLUTIONS:
        posed = puzzle(number)
        assert posed.budget < predict(keep_all(posed.chain), posed.chain).peak


def best_count(n, boundary, inside):
    return min(range(1, n + 1), key=lambda k: k * boundary + -(-n // k) * inside)


@pytest.mark.parametrize(
    ("answer", "state", "said"),
    [
        (best_count, "right", "all five"),
        (lambda *sizes: numpy.int64(best_count(*sizes)), "right", "all five"),
        (lambda n, b, a: True, "wrong", "got True"),
        (lambda n, b, a: None, "unfinished", "Not done"),
        (lambda n, b, a: round(n**0.5), "wrong", "only"),
        (lambda n, b, a: n, "wrong", "n=100, boundary=1, inside=1: 100 segments need 101"),
        (lambda n, b, a: (n * a / b) ** 0.5, "wrong", "an integer"),
        (lambda n, b, a: round((n * a / b) ** 0.5), "wrong", "an integer from 1 to 100"),
        (lambda n, b, a: 1 / 0, "wrong", "ZeroDivisionError"),
    ],
)
def test_best_count(answer, state, said):
    verdict = check_best_count(answer)
    assert verdict.state == state and said in verdict.en
