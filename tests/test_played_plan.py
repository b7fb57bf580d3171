"""The player of nested plans shows the prediction's turns, and what it says is in memory is."""

import pytest
import torch
from torch import nn

from course_lib.language import speaking
from course_lib.lessons.placing_checkpoints.played_plan import _brackets, nested_player
from course_lib.memory import measure, simulated
from course_lib.plans import Plan, apply, chain_of, nested_plan, predict

GIB = 2**30


@pytest.fixture(scope="module")
def tanhs():
    with simulated():
        layers = [nn.Tanh() for _ in range(6)]
        x = torch.empty(2**28, requires_grad=True)
        return layers, x, chain_of(layers, x)


@pytest.mark.parametrize("plan", [nested_plan(6, 1), nested_plan(6, 2), Plan(((0, 1, 2), 3, 4, 5))])
def test_each_turn_is_the_predictions_and_the_highest_is_the_measured_peak(tanhs, plan):
    layers, x, chain = tanhs
    player = nested_player(plan, chain)
    found = predict(plan, chain)
    data = [player._frame(**values) for values in player.positions()]
    assert [one.turn for one in data] == list(found.moments)
    x.grad = None
    model = apply(plan, layers)
    trace = measure(lambda: model(x).sum().backward(), model, inputs=x)
    assert max(one.turn.memory for one in data) == trace.peak
    ran = [one.turn.layer for one in data if one.turn.phase == "recompute"]
    assert len(ran) == found.recomputed_layers


def test_s_inputs_kept_make_a_peak_of_s_plus_4(tanhs):
    chain = tanhs[2]
    assert [round(predict(nested_plan(6, s), chain).peak / GIB) for s in (1, 2)] == [5, 6]


def test_brackets_are_the_segments():
    assert _brackets(Plan((((0,), 1), 2, (3, 4))).parts) == [
        (0, (0, 1)),
        (1, (0, 0)),
        (0, (3, 4)),
    ]


@pytest.mark.parametrize("spoken", ["zh", "en", "both"])
def test_every_turn_is_drawn(tanhs, spoken):
    player = nested_player(nested_plan(6, 1), tanhs[2])
    with speaking(spoken):
        for at in (0, 9, len(player.controls["turn"].values) - 1):
            player.move(turn=at)
            assert player.caption
