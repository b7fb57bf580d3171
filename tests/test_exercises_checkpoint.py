"""Lesson 03's checkers: right answers pass, each wrong one is told what is wrong with it."""

import random

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from course_lib import exercises_checkpoint as exercises
from course_lib import language
from course_lib.exercises_checkpoint import check_blind_spots, check_budget, check_repairs
from course_lib.sweeps import (
    KINDS,
    linear_gelu_linear,
    measure_kinds,
    measure_segments,
    savings_table,
    segments_explorer,
    slowdown_table,
    time_kinds,
)


@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setattr(language, "_chosen", "en")


# --- three repairs --------------------------------------------------------------------------------


def encode(model, x):
    return checkpoint(model, x, use_reentrant=False)


def shake(model, x):
    block = lambda x, strength: torch.tanh(model(x) * strength)  # noqa: E731
    return checkpoint(block, x, random.uniform(0.5, 1.5), use_reentrant=False)


def chain(layers, x):
    for layer in layers:
        x = checkpoint(layer, x, use_reentrant=False)
    return x


def nothing(*_):
    return None


def broken_encode(model, x):
    return checkpoint(model, x, use_reentrant=True)


def broken_shake(model, x):
    block = lambda x: torch.tanh(model(x) * random.uniform(0.5, 1.5))  # noqa: E731
    return checkpoint(block, x, use_reentrant=False)


def seeded_shake(model, x):
    def block(x):
        random.seed(0)
        return torch.tanh(model(x) * random.uniform(0.5, 1.5))

    return checkpoint(block, x, use_reentrant=False)


def broken_chain(layers, x):
    for layer in layers:
        x = checkpoint(lambda x: layer(x), x, use_reentrant=False)  # noqa: B023
    return x


def plain_chain(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def one_piece_chain(layers, x):
    return checkpoint(lambda x: plain_chain(layers, x), x, use_reentrant=False)


def test_the_repairs_pass():
    assert check_repairs(encode, shake, chain).passed


def test_the_workaround_of_old_passes_too():
    old = lambda model, x: checkpoint(model, x.requires_grad_(), use_reentrant=True)  # noqa: E731
    assert check_repairs(old, shake, chain).passed


def test_a_stub_is_unfinished():
    assert check_repairs(nothing, nothing, nothing).state == "unfinished"
    assert check_repairs(encode, shake, nothing).state == "unfinished"


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((broken_encode, shake, chain), "encode: ✗ Different: 0.weight has no gradient"),
        ((encode, broken_shake, chain), "shake: ✗ Different: the gradient of 0.weight"),
        ((encode, seeded_shake, chain), "shake: ✗ Different: output 0"),
        ((encode, shake, broken_chain), "chain: ✗ Different: the gradient of 0.0.weight"),
        ((encode, shake, plain_chain), "chain: the gradients are right, but some block ran"),
        ((lambda m, x: m(x), shake, chain), "encode: the gradients are right, but some block"),
        (
            (lambda m, x: (m(x), m(x))[1], shake, chain),
            "encode: some block runs 2 times in the for",
        ),
        ((encode, shake, one_piece_chain), "One checkpoint around the whole chain"),
        ((lambda m, x: m(x)[:3], shake, chain), "encode: The two sides do not do the same work"),
        ((lambda m, x: m(x, x), shake, chain), "Your code raised an exception: TypeError"),
    ],
)
def test_wrong_repairs_are_told_what_is_wrong(answers, words):
    verdict = check_repairs(*answers)
    assert verdict.state == "wrong" and words in verdict.en and verdict.zh


# --- a budget -------------------------------------------------------------------------------------


def within_budget(blocks, x):
    for i, block in enumerate(blocks):
        if isinstance(block, exercises.Thick) or i in (1, 3):
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = block(x)
    return x


def everything(blocks, x):
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False)
    return x


def only_thick(blocks, x):
    for block in blocks:
        thick = isinstance(block, exercises.Thick)
        x = checkpoint(block, x, use_reentrant=False) if thick else block(x)
    return x


def test_the_budget_can_be_kept():
    verdict = check_budget(within_budget)
    assert verdict.passed, verdict.en
    assert "+7.4%" in verdict.en


def test_a_budget_stub_is_unfinished():
    assert check_budget(nothing).state == "unfinished"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (plain_chain, "Still 9.02 MiB too much"),
        (only_thick, "Still 1.24 MiB too much"),
        (everything, "FLOPs +14.8%, where +8% is allowed"),
        (one_piece_chain, "Blocks that share a checkpoint come back together"),
        (lambda blocks, x: plain_chain(list(blocks)[1:], x), "Different: output 0"),
        (lambda blocks, x: x.nothing, "AttributeError"),
        (lambda blocks, x: plain_chain(blocks, x).detach(), "has no gradient"),
    ],
)
def test_what_breaks_the_budget_is_said(answer, words):
    verdict = check_budget(answer)
    assert verdict.state == "wrong" and words in verdict.en, verdict.en


# --- blind spots ----------------------------------------------------------------------------------

RIGHT = {
    "late-binding": "A", "batch-norm": "A", "whole-model": "B", "one-segment": "B",
    "ddp-shared": "C", "rare-branch": "D",
}  # fmt: skip


def test_the_blind_spots():
    assert check_blind_spots(lambda: RIGHT).passed
    assert check_blind_spots(lambda: {k: v.lower() for k, v in RIGHT.items()}).passed
    assert check_blind_spots(nothing).state == "unfinished"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch-norm": "B"}, "Run it: ✗ Different: buffer 1.running_mean"),
        ({"late-binding": "D"}, "Run it: ✗ Different: the gradient of 0.0.weight"),
        ({"whole-model": "A"}, "Peaks: plain 1.17 MiB"),
        ({"ddp-shared": "A"}, "annexe"),
        ({"rare-branch": "A"}, "one batch in a thousand"),
        ({"rare-branch": "E"}, "A, B, C or D, not 'E'"),
    ],
)
def test_wrong_reasons_meet_evidence(change, words):
    verdict = check_blind_spots(lambda: RIGHT | change)
    assert verdict.state == "wrong" and words in verdict.en, verdict.en


def test_other_answers_are_refused_politely():
    missing = {name: letter for name, letter in RIGHT.items() if name != "ddp-shared"}
    assert "ddp-shared is missing" in check_blind_spots(lambda: missing).en
    assert "Return a dict" in check_blind_spots(lambda: list(RIGHT)).en
    assert "ZeroDivisionError" in check_blind_spots(lambda: 1 / 0).en


# --- the sweeps behind the lesson's tables and its slider -----------------------------------------


@pytest.fixture(scope="module")
def segments():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(linear_gelu_linear(16) for _ in range(10)))
    return measure_segments(model, torch.randn(64, 16), range(1, 13))


def test_the_last_segment_is_never_checkpointed(segments):
    calls = {one.segments: "".join(map(str, one.calls)) for one in segments}
    assert calls[1] == "1111111111"
    assert calls[2] == "2222211111"
    assert calls[3] == calls[4] == "2222221111"
    assert calls[10] == "2222222221"
    for one in segments[:10]:
        assert sum(one.lengths()) == 10
        assert one.calls == (2,) * sum(one.lengths()[:-1]) + (1,) * one.lengths()[-1]


def test_more_segments_than_layers_raise_and_are_kept_as_data(segments):
    assert [one.error for one in segments[10:]] == [
        "ValueError: range() arg 3 must not be zero"
    ] * 2
    assert segments[10].peak is None


def test_more_segments_can_need_more_memory(segments):
    peaks = [one.peak for one in segments[:10]]
    assert peaks[5] > peaks[4], "6 segments leave 5 layers at the end, 5 segments only 2"
    assert min(peaks) == peaks[9]


@pytest.mark.parametrize("chosen", ["zh", "en", "both"])
def test_every_position_of_the_slider_draws(segments, chosen, monkeypatch):
    monkeypatch.setattr(language, "_chosen", chosen)
    explorer = segments_explorer(segments)
    for position in explorer.positions():
        explorer.move(**position)
        assert explorer.caption


def test_what_checkpoints_save_depends_on_the_kind_of_model():
    found = {(one.kind.name[1], one.each): one for one in measure_kinds(KINDS[1:], (0, 1))}

    def change(kind, what):
        return getattr(found[kind, 1], what) / getattr(found[kind, 0], what) - 1

    assert change("Transformer, batch 1", "peak") == 0, "the optimizer step is the peak"
    assert change("Transformer, batch 1", "kept") < -0.9
    assert change("Linear + ReLU", "kept") == 0
    assert change("Linear + ReLU", "flops") > 0.3
    assert change("convolutional net", "peak") < -0.5
    assert change("MLP, 4 times as wide inside", "flops") == pytest.approx(1 / 6, abs=0.01)
    assert change("MLP, 4 times as wide inside", "kept") < -0.85
    rows = savings_table(list(found.values())).rows
    assert len(rows) == len(found)


def test_times_are_ratios_of_neighbours():
    found = time_kinds(KINDS[4:], rounds=3)
    assert len(found[0].ratios) == 3 and found[0].quartiles[0] <= found[0].median
    assert len(slowdown_table(found).rows) == 1
