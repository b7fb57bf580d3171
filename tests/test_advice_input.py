"""Bad input to `advise`: one clear sentence in both languages, and nothing left behind."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from course_lib import advise, simulated
from course_lib.memory import measure
from course_lib.memory.simulation import ValueUnknown
from course_lib.plans.advice import BudgetTooSmall, advising
from course_lib.wrapping.blocks import checkpoint_blocks, checkpointed


class Block(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + functional.dropout(self.down(self.up(x).relu()), 0.1, self.training)


class Net(nn.Module):
    def __init__(self, depth=4):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.broken = False

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        if self.broken:
            raise ZeroDivisionError("in the middle")
        return x


class Training:
    """A step on real tensors, and everything that it may change."""

    def __init__(self):
        torch.manual_seed(0)
        self.model, self.x = Net(), torch.randn(8, 16)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.step()
        self.model.blocks[1].eval()  # a mixture that has to stay
        random.seed(0), np.random.seed(0), torch.manual_seed(1)

    def step(self):
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def forward_only(self):
        self.model(self.x).square().mean()

    def state(self):
        modules = list(self.model.modules())
        tensors = [
            *self.model.parameters(), *(p.grad for p in self.model.parameters()),
            *(v for state in self.optimizer.state.values() for v in state.values()),
            torch.get_rng_state(),
        ]  # fmt: skip
        rest = [
            [module.training for module in modules],
            [sorted(vars(module)) for module in modules],
            [len(value) for module in modules for name, value in vars(module).items()
             if "hooks" in name],
            random.getstate(), np.random.get_state()[1].tolist(),
            [p._backward_hooks for p in self.model.parameters()],
            checkpointed(self.model),
        ]  # fmt: skip
        return [tensor.detach().clone() for tensor in tensors], rest


def same(one, other):
    return one[1] == other[1] and all(map(torch.equal, one[0], other[0]))


def check_as_bare(refused, advised, bare, *, checkpoints=False):
    """``advised`` is refused, and everything is as after ``bare``; the next measuring works."""
    states = []
    for run, expected in ((bare, (ZeroDivisionError,)), (advised, (refused,))):
        training = Training()
        if checkpoints:
            checkpoint_blocks(training.model, Block, every=2)
        error = None
        try:
            run(training)
        except expected as raised:
            error = raised
        states.append(training.state())
    assert same(*states) and error is not None
    training.model.broken = False
    assert measure(training.step, training.model, training.optimizer, training.x).peak
    return error


def nothing(training):
    pass


def both(error):
    """The two sentences of an error."""
    said = error.args[0]
    assert any("\u4e00" <= sign <= "\u9fff" for sign in said.zh)
    assert not any("\u4e00" <= sign <= "\u9fff" for sign in said.en)
    return said.zh, said.en


def ask(training, **more):
    return advise(training.step, training.model, training.optimizer, training.x, **more)


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("budget", ["much", -1, 0, "12 parsecs", float("inf")])
def test_a_budget_in_nonsense(budget, checkpoints):
    error = check_as_bare(
        ValueError, lambda t: ask(t, budget=budget), nothing, checkpoints=checkpoints
    )
    assert all(repr(budget) in words for words in both(error))


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_step_without_a_backward_pass(checkpoints):
    error = check_as_bare(
        ValueError, lambda t: advise(t.forward_only, t.model, t.optimizer, t.x),
        Training.forward_only, checkpoints=checkpoints,
    )  # fmt: skip
    assert all("loss.backward()" in words for words in both(error))


def test_a_step_without_gradients():
    def step(training):
        with torch.no_grad():
            training.model(training.x)

    error = check_as_bare(ValueError, lambda t: advise(lambda: step(t), t.model), step)
    assert all("torch.no_grad()" in words for words in both(error))


def test_a_step_that_is_no_function():
    error = check_as_bare(TypeError, lambda t: advise(t.x, t.model), nothing)
    assert all("Tensor" in words for words in both(error))


def test_a_model_that_is_no_module():
    error = check_as_bare(TypeError, lambda t: advise(t.step, t.step), nothing)
    assert all("nn.Module" in words for words in both(error))


def test_another_models_optimizer():
    other = torch.optim.SGD(nn.Linear(2, 2).parameters())
    both(check_as_bare(ValueError, lambda t: advise(t.step, t.model, other, t.x), nothing))


@pytest.mark.parametrize("checkpoints", [False, True])
def test_blocks_that_match_nothing(checkpoints):
    error = check_as_bare(
        ValueError, lambda t: ask(t, blocks="Blok"), nothing, checkpoints=checkpoints
    )
    assert all("Blok" in words and "Block" in words for words in both(error))


def test_a_model_whose_blocks_cannot_be_found():
    with simulated():
        model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
        with pytest.raises(ValueError) as refused:
            advise(lambda: model(x).sum().backward(), model)
    for words in both(refused.value):
        assert "Linear × 1, ReLU × 1" in words and "blocks=" in words


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_step_that_fails(checkpoints):
    def broken(training):
        training.model.broken = True
        training.step()

    def advised(training):
        training.model.broken = True
        ask(training)

    error = check_as_bare(ZeroDivisionError, advised, broken, checkpoints=checkpoints)
    assert str(error) == "in the middle"  # unchanged


@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_budget_that_nothing_fits(checkpoints):
    error = check_as_bare(
        BudgetTooSmall, lambda t: ask(t, budget="1 KiB"), Training.step, checkpoints=checkpoints
    )
    lowest, advice = error.lowest, error.advice
    assert lowest.peak == min(option.peak for option in advice.options)
    there = advice.at_peak(lowest)
    assert sum(there.by_role.values()) == there.peak == lowest.peak
    for words, name in zip(both(error), (lowest.zh, lowest.en), strict=True):
        assert str(lowest.peak) in words and name in words
        assert str(there.largest[0]) in words  # what holds it up
    for (zh, en), role in zip([role.names for role in there.by_role], there.by_role, strict=True):
        if there.by_role[role] > there.peak / 10:
            assert zh in both(error)[0] and en in both(error)[1]


class LayerDrop(Net):
    """As in wav2vec2: a random number decides whether a layer runs."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        for block in self.blocks:
            if self.draw() < 2:
                x = block(x)
        return x


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand([])])
@pytest.mark.parametrize("mode", [contextlib.nullcontext, simulated])
def test_control_flow_by_chance(draw, mode):
    with mode():
        model, x = LayerDrop(draw), torch.randn(4, 16)
        advice = advise(lambda: model(x).sum().backward(), model)
    ((zh, en),) = advice.doubts
    assert "LayerDrop" in zh and "LayerDrop" in en
    assert zh in str(advice) or en in str(advice)


def test_dropout_and_losses_read_are_no_control_flow_by_chance():
    training = Training()

    def step():
        loss = training.model(training.x).square().mean()
        loss.item()
        loss.backward()

    assert not advise(step, training.model, training.optimizer, training.x).doubts


def test_control_flow_by_values_of_simulated_tensors():
    with simulated():
        model, x = Net(), torch.randn(4, 16)

        def step():
            loss = model(x).sum()
            if loss < 1:
                loss.backward()

        with pytest.raises(ValueUnknown) as refused:
            advise(step, model)
    both(refused.value)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_step_that_can_run_only_once_keeps_its_other_options():
    """A second look, for the loss in chunks, is the advice's affair: its failure is told."""
    with simulated():
        model = nn.Sequential(Net(), nn.Linear(16, 4000))
        x, target = torch.randn(256, 16), torch.zeros(256, dtype=torch.long)
        batches = iter([x])

        def step():
            functional.cross_entropy(model(next(batches)), target).backward()

        advice = advise(step, model, inputs=(x, target))
        assert not any(option.chunks for option in advice.options)
        ((zh, en),) = advice.doubts
        assert "StopIteration" in zh and "StopIteration" in en
        assert type(model[1].forward).__name__ == "method"


def test_advice_before_its_step_has_ended():
    training = Training()
    with advising(training.model, training.optimizer, training.x) as result:
        training.step()
        with pytest.raises(RuntimeError) as early:
            result()
    both(early.value)
    assert result().options


def test_advice_inside_a_measurement():
    training = Training()
    with pytest.raises(RuntimeError, match=r"measurement"):
        measure(lambda: ask(training), training.model, training.optimizer, training.x)
    assert not any("forward" in vars(module) for module in training.model.modules())
