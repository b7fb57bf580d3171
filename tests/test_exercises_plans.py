"""Lesson 05's checkers: right, wrong and unfinished answers."""

import functools
import math

import numpy
import pytest
import torch

from course_lib.lessons.placing_checkpoints.checkers import (
    check_best_count,
    check_puzzle,
    puzzle,
    show_puzzle,
)
from course_lib.plans import Plan, predict
from course_lib.plans.planners import best_plan, keep_all, nested_plan, smallest_peak
from support.verdicts import heard, speak


@pytest.fixture(params=["zh", "en"])
def spoken(request, monkeypatch):
    speak(monkeypatch, request.param)


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


def test_what_is_called_the_best_without_nesting_is_that():
    for number in (1, 2, 3):
        posed = puzzle(number)
        assert best_plan(posed.chain, posed.budget).exact
        assert posed.method[1] == "the best plan without nesting"
    assert puzzle(4).method[1] == "Revolve's plan"


def test_a_plan_that_beats_revolves_scores_more(spoken):
    """It keeps some layers whole, which Revolve, counting inputs alone, does not consider."""
    better = (((0, 1), 2, 3), ((4, 5), 6, 7), ((8,), 9), 10, 11)
    heard(check_puzzle(4, better), "right", r"得 140 分.*\+42.9%.*比 Revolve 的方案（\+60.0%）还省",
          r"Score 140:.*\+42.9%.*Less than Revolve's plan \(\+60.0%\)")  # fmt: skip


def once_more(part, times):
    for _ in range(times):
        part = (part,)
    return part


def containing_itself():
    inside = [0, 1]
    inside.append(inside)
    return (inside, 2, 3, 4, 5, 6, 7, 8)


NINE = tuple(range(9))
WRONG = [  # puzzle, answer, zh, en
    (1, ((0, 1, 2), (3, 4, 5), (6, 7, 8)),
     r"FLOPs \+34.6%.*\+23.1%，得 67 分.*你 9 层，那个方案 6",
     r"FLOPs are \+34.6%, where the best plan without nesting has \+23.1%: score 67.*"
     "yours runs 9 again, that plan 6.*which layers could just as well be kept"),
    (2, ((0, 1, 2), (3,), 4, 5, 6, 7, 8, 9), "得 24 分。哪些层重算起来贵",
     "It fits, but.*score 24. Which layers are costly to recompute"),
    (1, NINE, "超出预算 3.50 MiB.*保留着的：哪些层",
     "3.50 MiB over .* in the backward of.*is kept: which"),
    (1, (NINE,), "一次重算出来的：哪一段太长", "recomputed at once: which segment is too long"),
    (1, (0, 1, 2, 3, 4, 5, 6, 7, 8), r"要写成 \(0,\)", r"is written \(0,\): without the comma"),
    (3, ((0), 1, 2, (3), 4, 5, 6, 7, (8), *range(9, 17)), r"要写成 \(0,\)", "without the comma"),
    (4, ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10), 11), "不嵌套的方案至少要",
     "segments inside segments"),
    (4, (((0,), 1, 2), 3, 4, 5, 6, 7, 8, 9, 10, 11), "保留着哪些段的输入",
     "which segments' inputs and which layers' activations"),
    (4, (((0,), (1,), (2,), 3), ((4,), (5,), (6,), 7), ((8,), (9,), 10), 11), "哪一段太长",
     "which segment is too long"),
    (1, (0, 1, 2), "漏了第 3, 4, 5, 6, 7, 8 层", "leaves out layers 3, 4, 5, 6, 7, 8: all 9"),
    (1, ((0, 1), 3, 4, 5, 6, 7, 8), "漏了第 2 层：9 层都要", "leaves out layer 2: all 9 have"),
    (1, (*NINE, 9), "没有第 9 层：模型有 9 层，层号从 0 到 8",
     "no layer 9: the model has 9, numbered 0 to 8"),
    (1, tuple(range(1, 10)), "没有第 9 层", "no layer 9"),
    (1, (-1, *NINE), "没有第 -1 层", "no layer -1"),
    (1, ((0, 1), (1, 2), *range(2, 9)), "第 1, 2 层写了不止一次",
     "Layers 1, 2 stand there more than"),
    (1, (1, 0, *range(2, 9)), "次序不对：第 0 层写在了第 1 层后面",
     "layer 0 stands behind layer 1"),
    (1, (0, (), *range(1, 9)), r"有一段里没有层：\(\)", r"A segment holds no layer: \(\)"),
    (1, 5, "例如 \\(0, \\(1, 2\\), 3\\)，现在是 5", "numbers and tuples of them.* not 5"),
    (1, "(0, 1)", "现在是 '\\(0, 1\\)'", "not '\\(0, 1\\)'"),
    (1, (0, 1.5, *range(2, 9)), "里面的 1.5 两样都不是", "In it, 1.5 is neither"),
    (1, (True, *range(1, 9)), "里面的 True", "In it, True is neither"),
    (1, {0, 1}, "现在是 {0, 1}", "not {0, 1}"),
    (1, (0, None, 2), "里面的 None", "In it, None is neither"),
    (1, lambda: NINE, "现在是 <function", "not <function"),
    (1, (once_more(0, 3000), *range(1, 9)), "方案套了 9 层以上的括号", "nested more than 9 deep"),
    (1, containing_itself(), "包含它自己", "contains itself"),
    (1, range(10**12), "方案太长了：模型只有 9 层", "too long: the model has 9 layers"),
    (1, Plan((0, 1, 2)), "漏了第 3, 4, 5, 6, 7, 8 层", "leaves out layers 3, 4"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "answer", "zh", "en"), WRONG)
def test_a_wrong_plan_is_told_what_is_wrong(number, answer, zh, en, spoken):
    heard(check_puzzle(number, answer), "wrong", zh, en)


def test_plans_over_budget_do_not_all_hear_the_same():
    said = {check_puzzle(number, answer).en.partition(" recomputed. ")[2]
            for number, answer, *_ in WRONG
            if "over the budget" in check_puzzle(number, answer).en}  # fmt: skip
    assert len(said) >= 4, said


@pytest.mark.parametrize(
    "answer",
    [
        [[0, 1, 2], [3, 4, 5], 6, 7, 8],
        (range(3), range(3, 6), numpy.int64(6), 7, 8),
        Plan(((0, 1, 2), (3, 4, 5), 6, 7, 8)),
        (numpy.arange(3), torch.arange(3, 6), 6, torch.tensor(7), 8),
    ],
)
def test_lists_ranges_and_arrays_are_as_good_as_tuples(answer, spoken):
    heard(check_puzzle(1, answer), "right", "得 100 分", "Score 100")


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


def by_a_loop(n, boundary, inside):
    best, least = 1, None
    for k in range(1, n + 1):
        needed = k * boundary + math.ceil(n / k) * inside
        if least is None or needed <= least:  # of equals the largest: as good
            best, least = k, needed
    return best


class Counting:
    def __call__(self, n, boundary, inside):
        k = numpy.arange(1, n + 1)
        return (k * boundary + -(-n // k) * inside).argmin() + 1


def raises(n, boundary, inside):
    return n // 0


def rooted(n, boundary, inside, rounded=round):
    return max(1, min(n, rounded((n * inside / boundary) ** 0.5)))


def around(n, boundary, inside, far=1):
    """The best of a few near the formula's."""
    k = rooted(n, boundary, inside)
    return min(range(max(1, k - far), min(n, k + far) + 1),
               key=lambda k: k * boundary + -(-n // k) * inside)  # fmt: skip


CASES = ((100, 1, 1), (100, 32, 2304), (100, 8, 2200), (64, 1, 4), (36, 4, 1), (10, 1, 1))
KNOWN = {sizes: best_count(*sizes) for sizes in CASES}


@pytest.mark.parametrize(
    "answer",
    [
        best_count,
        by_a_loop,
        Counting(),
        functools.partial(lambda n, boundary, inside, *, f: f(n, boundary, inside), f=best_count),
        functools.cache(best_count),
        lambda *sizes: numpy.int64(best_count(*sizes)),
        lambda *sizes: torch.tensor(best_count(*sizes)),
    ],
)
def test_right_counts_pass(answer, spoken):
    heard(check_best_count(answer), "right", "每组都对", "Right for all sizes tried")


@pytest.mark.parametrize(
    ("answer", "zh", "en"),
    [
        (rooted, "n=100, boundary=32, inside=2304：85 段要 7,328，100 段只要 5,504，你多用 33.1%",
         "n=100, boundary=32, inside=2304: 85 segments need 7,328, 100 only 5,504.*33.1% more"),
        (functools.partial(rooted, rounded=math.ceil), "段只要", "only"),
        (functools.partial(rooted, rounded=math.floor), "段只要", "only"),
        (functools.partial(around, far=1), "段只要", "only"),
        (functools.partial(around, far=3), "段只要", "only"),
        (lambda n, b, a: min((rooted(n, b, a), n),
                             key=lambda k: k * b + -(-n // k) * a), "段只要", "only"),
        (lambda n, b, a: min(range(1, n + 1), key=lambda k: k * b + n / k * a), "段只要", "only"),
        (lambda n, b, a: min(range(1, n + 1), key=lambda k: k * b + n // k * a), "段只要", "only"),
        (lambda n, b, a: min((k for k in range(1, n + 1) if n % k == 0),
                             key=lambda k: k * b + n // k * a), "段只要", "only"),
        (lambda n, b, a: min(range(1, n), key=lambda k: k * b + -(-n // k) * a, default=1),
         "段只要", "only"),
        (lambda n, b, a: best_count(100, b, a), "要 1 到|段只要", "expected an integer|only"),
        (lambda n, b, a: best_count(n, 1, a), "段只要", "only"),
        (lambda *sizes: KNOWN.get(sizes, 1), "段只要", "only"),
        (lambda n, b, a: 10, "段只要", "only"),
        (lambda n, b, a: n, "100 段要 101", "n=100, boundary=1, inside=1: 100 segments need 101"),
        (lambda n, b, a: True, "得到 True", "got True"),
        (lambda n, b, a: 0, "要 1 到 100 的整数，得到 0", "from 1 to 100, got 0"),
        (lambda n, b, a: (n * a / b) ** 0.5, "的整数", "an integer"),
        (lambda n, b, a: (n * a / b) ** 0.5 and None, "没有返回结果", "returned nothing"),
        (raises, r"抛出了异常：ZeroDivisionError.*raises\(100, 1, 1\)", "ZeroDivision.*In line"),
        (best_count(100, 1, 1), "不带括号", "without parentheses"),
    ],
)  # fmt: skip
def test_wrong_counts_are_told_by_how_much(answer, zh, en, spoken):
    heard(check_best_count(answer), "wrong", zh, en)


def test_a_stub_is_unfinished(spoken):
    heard(check_best_count(lambda n, b, a: None), "unfinished", "还没有做", "Not done")
    heard(check_puzzle(2, None), "unfinished", "还没有做", "Not done")
