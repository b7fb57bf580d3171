"""Lesson 06's checkers: right answers of every style pass, wrong ones hear what is wrong."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy

from course_lib.lessons.choosing_what_to_recompute import (
    check_policy,
    check_repaired,
    check_stored,
    puzzle,
)
from course_lib.lessons.choosing_what_to_recompute.checkers import stores_first_dropout
from support.verdicts import heard, speak

SAVE, AGAIN = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE
aten = torch.ops.aten
ADDMM, BMM, DROPOUT = aten.addmm.default, aten.bmm.default, aten.native_dropout.default


@pytest.fixture(autouse=True, params=["zh", "en"])
def spoken(request, monkeypatch):
    speak(monkeypatch, request.param)


# --- a policy within a budget -------------------------------------------------------------------


def by_inner_length(ctx, op, *args, **kwargs):
    if op is ADDMM or (op is BMM and args[0].shape[-1] > 64):
        return SAVE
    return AGAIN


def by_result(ctx, op, *args, **kwargs):
    """True and False will do, and so will the result's shape."""
    square = ctx.op_output.shape[-1:] == ctx.op_output.shape[-2:-1] if op is BMM else True
    return op in (ADDMM, BMM) and (op is ADDMM or not square)


def without_the_last(ctx, op, *args, **kwargs):
    """Nor does it store what never runs again: the product whose inner length is 4 × width."""
    if op is ADDMM:
        return CheckpointPolicy.PREFER_SAVE if args[1].shape[-1] == 128 else AGAIN
    return SAVE if op is BMM and args[0].shape[-1] > 64 else AGAIN


class AsAnObject:
    def __call__(self, ctx, op, *args, **kwargs):
        return by_inner_length(ctx, op, *args, **kwargs)


@pytest.mark.parametrize(
    "policy",
    [
        by_inner_length,
        by_result,
        without_the_last,
        AsAnObject(),
        functools.partial(by_inner_length),
    ],
)
def test_a_policy_that_stores_what_is_worth_it_passes(policy):
    heard(check_policy(policy), "right", "逐位相同", "bit for bit")


def saying(answer):
    def policy(ctx, op, *args, **kwargs):
        return answer

    return policy


def counting():
    """Counts over all blocks: the first one alone stores its products."""
    count = 0

    def policy(ctx, op, *args, **kwargs):
        nonlocal count
        count += 1
        return by_inner_length(ctx, op, *args) if count < 25 else AGAIN

    return policy


def storing(*which):
    return lambda ctx, op, *args, **kwargs: SAVE if op in which else AGAIN


def offloading(ctx, op, *args, **kwargs):
    return CheckpointPolicy.MUST_CPU_OFFLOAD if op in (ADDMM, BMM) else AGAIN


def raising(ctx, op, *args, **kwargs):
    return SAVE if args[5].shape[-1] > 64 else AGAIN


@pytest.mark.parametrize(
    ("policy", "zh", "en"),
    [
        (saying(SAVE), "超出预算.*不做矩阵乘法", "over the budget.*multiplies no matrices"),
        (storing(ADDMM, BMM), "超出预算.*(down|bmm)", "over the budget.*(down|bmm)"),
        ([ADDMM, BMM], "超出预算", "over the budget"),
        (saying(AGAIN), "FLOPs .25.0%.*最贵的是 bmm", "25.0%.*bmm is dearest"),
        (storing(ADDMM), r"FLOPs \+8.3%.*bmm", r"\+8.3%.*bmm"),
        ([ADDMM], "bmm", "bmm"),
        (storing(BMM), "FLOPs", "FLOPs are"),
        (storing(aten._softmax.default, aten.gelu.default), "超出预算.*softmax", "over.*softmax"),
        (counting(), "FLOPs", "FLOPs are"),
        (offloading, "CPU_OFFLOAD.*静默", "CPU_OFFLOAD moves nothing"),
        (saying("save"), "返回的是 'save'", "it returned 'save'"),
        (lambda ctx, op, *a, **k: None if op is BMM else SAVE, "返回的是 None", "returned None"),
        (raising, "IndexError", "IndexError"),
        (lambda op: SAVE, "TypeError", "TypeError"),
        (3, "函数本身", "function itself"),
        ([aten.addmm], "OpOverload", "OpOverload"),
    ],
)
def test_a_policy_that_does_not_hears_why(policy, zh, en):
    heard(check_policy(policy), "wrong", zh, en)


def unwritten(ctx, op, *args, **kwargs):
    """The stub."""
    return None


@pytest.mark.parametrize("check", [check_policy, check_repaired])
def test_the_stub_is_not_done_yet(check):
    for stub in (unwritten, None):
        heard(check(stub), "unfinished")


# --- a policy that is silently wrong ------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [
        lambda ctx, op, *args, **kwargs: SAVE if op is ADDMM else AGAIN,
        [ADDMM],
        lambda ctx, op, *args, **kwargs: op is ADDMM and args[1].shape[-1] != 3,
    ],
)
def test_neither_dropout_stored_is_right(policy):
    heard(check_repaired(policy), "right", "少了", "less kept")


@pytest.mark.parametrize(
    ("policy", "zh", "en"),
    [
        (stores_first_dropout, "随机数", "draws random numbers"),
        (storing(DROPOUT, ADDMM), "多 ", "more than before"),
        (saying(SAVE), "多 ", "more than before"),
        (saying(AGAIN), "FLOPs 是原来的", "FLOPs are"),
        (storing(DROPOUT), "FLOPs", "FLOPs"),
        ([aten.gelu.default], "FLOPs", "FLOPs"),
        (saying(1), "返回的是 1", "it returned 1"),
    ],
)
def test_other_repairs_hear_what_is_wrong(policy, zh, en):
    heard(check_repaired(policy), "wrong", zh, en)


# --- puzzles ------------------------------------------------------------------------------------

SOLUTIONS = {1: {5, 7, 10}, 2: {5, 12, 14}}


@pytest.mark.parametrize("number", SOLUTIONS)
@pytest.mark.parametrize("form", [set, list, tuple, frozenset, sorted])
def test_the_best_choice_scores_100(number, form):
    heard(check_stored(number, form(SOLUTIONS[number])), "right", "得分 100", "Score 100")


@pytest.mark.parametrize("number", SOLUTIONS)
def test_the_best_is_that_of_trying_all(number):
    posed = puzzle(number)
    worth = [c.number for c in posed.score.choices if c.flops and c.again]
    every = [
        posed.score.predict(stored)
        for size in range(len(worth) + 1)
        for stored in itertools.combinations(worth, size)
    ]
    fitting = [one for one in every if getattr(one, posed.of) <= posed.budget]
    assert min(one.flops for one in fitting) == posed.best.flops
    assert posed.best.stored == SOLUTIONS[number]
    # The most FLOPs per byte first does not solve it.
    stored: list[int] = []
    for choice in sorted((posed.score.choices[n] for n in worth), key=lambda c: -c.flops_per_byte):
        if getattr(posed.score.predict([*stored, choice.number]), posed.of) <= posed.budget:
            stored.append(choice.number)
    heard(check_stored(number, stored), "wrong", "换一换", "exchange")


@pytest.mark.parametrize(
    ("number", "stored", "zh", "en"),
    [
        (1, (), "放得下.*就放得下", "it fits.*enough for"),
        (1, {5}, r"得分 50.*就放得下", r"Score 50.*enough for"),
        (1, {1, 5, 7}, "得分 83.*换一换", "Score 83.*exchange"),
        (1, {1, 5, 7, 10}, "超出预算.*什么都不保留", "over the budget.*nothing stored"),
        (1, {5, 7, 10, 11}, "超出预算.*11 号", "over the budget.*Number 11"),
        (1, {5, 7, 10, 12, 0}, "超出预算", "over the budget"),
        (1, {3, 12}, "超出预算.*12 号.*不会重算", "over the budget.*Number 12.*never run again"),
        (1, {5, 12}, "12 号保留着", "Storing 12 spares no FLOPs"),
        (1, range(14), "超出预算", "over the budget"),
        (1, {14}, "没有编号为 14", "no operator 14"),
        (1, {-1}, "没有编号为 -1", "no operator -1"),
        (1, {"up"}, "没有编号为 'up'", "no operator 'up'"),
        (1, {True}, "没有编号为 True", "no operator True"),
        (1, "5", "一组编号", "a set of numbers"),
        (1, 5, "一组编号", "a set of numbers"),
        (2, {4, 5, 6}, "得分 72.*换一换", "Score 72.*exchange"),
        (2, {5, 12}, "就放得下", "enough for"),
        (2, {5, 12, 14, 6}, "超出预算", "over the budget"),
        (2, {13, 15}, "(保留着|超出)", "(spares no FLOPs|over)"),
    ],
)
def test_other_choices_hear_what_is_wrong(number, stored, zh, en):
    heard(check_stored(number, stored), "wrong", zh, en)


def test_a_puzzle_not_begun_and_one_that_is_not_there():
    heard(check_stored(1, None), "unfinished")
    with pytest.raises(ValueError, match="puzzles 1 and 2"):
        puzzle(3)
