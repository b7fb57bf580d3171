"""Smaller micro-batches: what measuring the step so written finds, and the lines to write."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from course_lib.memory import measure, simulated
from course_lib.plans.advice.advice import advise
from course_lib.plans.advice.micro_batches import batch_of
from support.advice_samples import SAMPLES, Mixture


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32)) for _ in range(4)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Learning:
    """A step that is called with its batch; ``first``: whether gradients go first or last."""

    def __init__(self, model, loss, first=False):
        self.model, self.loss, self.first = model, loss, first
        self.optimizer = torch.optim.AdamW(model.parameters())

    def step(self, *batch):
        if self.first:
            self.optimizer.zero_grad()
        self.loss(*batch).backward()
        self.optimizer.step()
        if not self.first:
            self.optimizer.zero_grad()

    def pasted(self, code, count):
        """The lines, with what they leave to the learner."""

        def forward_and_backward(*part):
            loss = self.loss(*part)
            loss.backward(torch.full_like(loss, 1 / count))

        names = {"forward_and_backward": forward_and_backward, "optimizer": self.optimizer}
        exec(code, {**names, "torch": torch}, names)
        return names["step"]


def classifier(first=False):
    model = Classifier()
    learning = Learning(model, lambda x, y: functional.cross_entropy(model(x), y), first)
    return learning, (torch.randn(64, 32), torch.randint(0, 10, (64,)))


def llama():
    sample = SAMPLES["llama"]()
    ids = torch.randint(0, 500, (8, 48))
    loss = lambda ids, mask: sample.model(input_ids=ids, attention_mask=mask, labels=ids).loss  # noqa: E731
    return Learning(sample.model, loss), (ids, torch.ones_like(ids))


def experts():
    model = Mixture()
    return Learning(model, model), (torch.randint(0, 100, (8, 16)),)


@pytest.mark.parametrize("make", [classifier, llama, experts])
def test_micro_batches_are_what_measuring_finds(make):
    with simulated():
        learning, batch = make()
        learning.step(*batch)
        shapes = [one.shape for one in batch]
        optimizer = learning.optimizer
        advice = advise(lambda: learning.step(*batch), learning.model, optimizer, batch)
        assert [one.shape for one in batch] == shapes
        assert not {"step", "zero_grad"} & {*vars(optimizer), *vars(learning.model)}
        for count in (2, 4):
            option = advice[f"micro-batches {count}"]
            step = learning.pasted(advice.code(option), count)
            trace = measure(lambda: step(*batch), learning.model, optimizer, batch)  # noqa: B023
            assert (trace.peak, trace.flops) == (option.peak, option.flops)
            assert sum(advice.at_peak(option).by_role.values()) == option.peak
        assert advice["micro-batches 4"].peak < advice["micro-batches 2"].peak
        assert not advice.best.by_hand


def peaks_of_parts(first):
    learning, batch = classifier(first)
    learning.step(*batch)
    learning.optimizer.zero_grad()
    advice = advise(lambda: learning.step(*batch), learning.model, learning.optimizer, batch)
    return [option.peak for option in advice.options if option.micro_batches > 1]


def test_gradients_that_are_cleared_first_add_up_as_well():
    with simulated():
        last, first = map(peaks_of_parts, (False, True))
    assert last == first and len(first) == 2


def without_optimizer(model, x, y):
    functional.cross_entropy(model(x), y).backward()
    model.zero_grad()


def test_a_step_without_an_optimizer_is_taken_in_parts_too():
    with simulated():
        model, x, y = Classifier(), torch.randn(64, 32), torch.randint(0, 10, (64,))

        def in_parts():
            for part in zip(x.chunk(4), y.chunk(4), strict=True):
                functional.cross_entropy(model(part[0]), part[1]).div(4).backward()
            model.zero_grad()

        advice = advise(lambda: without_optimizer(model, x, y), model, inputs=(x, y))
        assert advice["micro-batches 4"].peak == measure(in_parts, model, inputs=(x, y)).peak


@pytest.mark.parametrize("cleared", ["last", "first", "never"])
def test_advice_leaves_gradients_as_one_step_does(cleared):
    """Whatever was tried after it."""
    with simulated():
        model, x, y = Classifier(), torch.randn(64, 32), torch.randint(0, 10, (64,))

        def step():
            if cleared == "first":
                model.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            if cleared == "last":
                model.zero_grad()

        advice = advise(step, model, inputs=(x, y))
        assert any(option.micro_batches > 1 for option in advice.options)
        assert {p.grad is None for p in model.parameters()} == {cleared == "last"}


def test_the_lines_leave_the_step_as_it_is():
    with simulated():
        learning, batch = classifier()
        learning.step(*batch)
        advice = advise(lambda: learning.step(*batch), learning.model, learning.optimizer, batch)
    after = []
    for count in (1, 4):
        torch.manual_seed(0)
        learning, batch = classifier()
        learning.optimizer = torch.optim.SGD(learning.model.parameters(), lr=0.1)
        code = advice.code("micro-batches 4")
        step = learning.step if count == 1 else learning.pasted(code, count)
        step(*batch)
        after.append(list(learning.model.parameters()))
        assert all(p.grad is None for p in after[-1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*after, strict=True))


def test_they_cannot_be_applied_and_it_says_why():
    with simulated():
        learning, batch = classifier()
        learning.step(*batch)
        advice = advise(lambda: learning.step(*batch), learning.model, learning.optimizer, batch)
        with pytest.raises(ValueError) as refused:
            advice.apply("micro-batches 2")
        said = refused.value.args[0]
        assert "holds its batch itself" in said.en and "从外面切不开" in said.zh
        assert advice.code("micro-batches 2") in said.en
        assert "accumulate_grad_batches=2" in advice.code("micro-batches 2", "lightning")
        assert not any("forward" in vars(module) for module in learning.model.modules())


@pytest.mark.parametrize("given", ["nothing", "copies", "odd"])
def test_no_micro_batches_where_inputs_are_not_the_batch_of_the_step(given):
    with simulated():
        learning, batch = classifier()
        if given == "odd":
            batch = tuple(one[:33] for one in batch)
        inputs = {"nothing": (), "odd": batch, "copies": tuple(map(torch.clone, batch))}[given]
        advice = advise(lambda: learning.step(*batch), learning.model, learning.optimizer, inputs)
        assert not any(option.micro_batches > 1 for option in advice.options)


def test_what_of_the_inputs_is_the_batch():
    x, y, weights = torch.ones(8, 3), torch.ones(8), torch.ones(3)
    found = batch_of({"x": x, "y": (y, x), "weights": weights, "rate": torch.tensor(1.0)})
    assert [id(one) for one in found] == [id(x), id(y)]
