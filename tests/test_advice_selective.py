"""Checkpoints that keep products of matrices and attention: what measuring finds."""

from __future__ import annotations

import copy

import pytest
import torch

from course_lib.memory import measure, simulated
from course_lib.plans.advice.advice import advise
from course_lib.plans.advice.selective import KEPT, put_on, take_off
from support.advice_samples import SAMPLES, Wide


def taken(sample):
    trace = measure(sample.step, sample.model, sample.optimizer, sample.inputs)
    return trace.peak, trace.flops


@pytest.mark.parametrize("name", ["llama", "vit", "unlike", "lora", "t5"])
def test_the_option_is_what_measuring_finds(name):
    with simulated():
        sample = SAMPLES[name]()
        sample.step()
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        option = advice["selective"]
        assert option.flops < advice["all"].flops and option.peak < advice["none"].peak
        advice.apply(option)
        assert taken(sample) == (option.peak, option.flops)
        assert sum(advice.at_peak(option).by_role.values()) == option.peak
        again = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        assert again["none"].peak == advice["none"].peak
        assert taken(sample) == (option.peak, option.flops)
        advice.undo()
        assert taken(sample) == (advice["none"].peak, advice["none"].flops)
        assert not any("forward" in vars(module) for module in sample.model.modules())
        exec(advice.code(option), {"model": sample.model})
        assert taken(sample) == (option.peak, option.flops)


def test_gradients_stay_as_they_are_and_copies_are_their_own():
    torch.manual_seed(0)
    sample = SAMPLES["vit"]()
    sample.optimizer.step = sample.optimizer.zero_grad = lambda: None

    def gradients(model):
        torch.manual_seed(0)
        model.zero_grad()
        images, labels = sample.inputs
        model(pixel_values=images, labels=labels).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients(sample.model)
    blocks = [p for p, m in sample.model.named_modules() if type(m).__name__ == "ViTLayer"]
    put_on(sample.model, blocks, KEPT)
    for model in (sample.model, copy.deepcopy(sample.model)):
        assert all(map(torch.equal, plain, gradients(model)))
    assert list(take_off(sample.model)) == blocks


def test_lightning_lines_do_the_same():
    with simulated():
        sample = SAMPLES["unlike"]()
        sample.step()
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        names = {}
        exec(advice.code("selective", "lightning"), names)
        names["Checkpoints"]().on_fit_start(None, sample.model)
        assert taken(sample) == (advice["selective"].peak, advice["selective"].flops)
        assert any(isinstance(m, Wide) for m in sample.model.modules())
