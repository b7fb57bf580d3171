"""Segments over several blocks: foretold to the byte, from the calling code as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from course_lib.memory import measure, simulated
from course_lib.plans.advice.advice import advise
from course_lib.plans.advice.segments import cut, lengths, put_on, take_off
from course_lib.wrapping.blocks import checkpointed
from support.advice_samples import SAMPLES, Wide, _sample


class Deep(nn.Module):
    """Blocks called in a loop, as most models do; ``keeps``: what it does with hidden states."""

    def __init__(self, depth=16, keeps="none"):
        super().__init__()
        self.blocks = nn.ModuleList(Wide(24, 8) for _ in range(depth))
        self.keeps = keeps

    def forward(self, x):
        table, first, states = torch.ones(24), None, []
        for block in self.blocks:
            x = block(x, (table, first))
            if self.keeps == "all":
                states.append(x)
            elif self.keeps == "scaled":
                x = x * 2
            elif self.keeps == "in place":
                x += 1
            elif self.keeps == "other arguments":
                table = torch.ones(24)
        return x + sum(states)


def deep(**more):
    model = Deep(**more)
    x = torch.randn(16, 10, 24)
    return _sample(model, x, lambda: model(x).square().sum(), Wide)


def taken(sample):
    trace = measure(sample.step, sample.model, sample.optimizer, sample.inputs)
    return trace.peak, trace.flops


def segmented(advice):
    return [option for option in advice.options if option.segments]


def of_lengths(advice, sample):
    """Every length of segments, played."""
    paths = [f"blocks.{i}" for i in range(len(sample.model.blocks))]
    for length in range(2, len(paths) + 1):
        segments = cut([paths], length)
        told = advice.score.foretell([advice.score.segment(s) for s in segments])
        yield segments, (told.peak, told.flops)


def test_every_length_is_foretold_to_the_byte_and_the_best_is_an_option():
    with simulated():
        sample = deep()
        sample.step()
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        peaks = {}
        for segments, told in of_lengths(advice, sample):
            put_on(sample.model, segments)
            assert taken(sample) == told, segments
            assert take_off(sample.model) == tuple(segments)
            peaks[len(segments[0])] = told[0]
        (option,) = segmented(advice)
        assert option.peak == min(peaks.values()) < advice["all"].peak
        assert option.key == f"segments {min(peaks, key=peaks.__getitem__)}"
        assert advice.best is option
        exec(advice.code(option), {"model": sample.model})
        assert taken(sample) == (option.peak, option.flops)


@pytest.mark.parametrize("name", ["llama", "vit", "lora", "chain", "unlike"])
def test_chains_are_found_in_models_of_others(name):
    with simulated():
        sample = SAMPLES[name]()
        sample.step()
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        option = next(o for o in segmented(advice) if not o.chunks)
        assert sum(map(len, option.segments)) >= 3
        advice.apply(option)
        assert taken(sample) == (option.peak, option.flops)
        assert sum(advice.at_peak(option).by_role.values()) == option.peak
        advice.undo()
        assert taken(sample) == (advice["none"].peak, advice["none"].flops)


@pytest.mark.parametrize("keeps", ["all", "scaled", "in place", "other arguments"])
def test_no_segment_where_something_else_uses_what_a_block_returns(keeps):
    with simulated():
        sample = deep(keeps=keeps)
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        assert "all" in {option.key for option in advice.options}
        assert not segmented(advice)


@pytest.mark.parametrize("pasted", [True, False])
def test_gradients_stay_as_they_are_and_copies_are_their_own(pasted):
    with simulated():
        sample = deep()
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
    model, x = Deep(), torch.randn(4, 10, 24)
    for part in model.blocks:
        part.dropout = nn.Dropout(0.5)
        part.down = nn.Sequential(part.down, part.dropout)

    def gradients(model):
        torch.manual_seed(0)
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients(model)
    with torch.no_grad():
        result = model.eval()(x)
    model.train()
    if pasted:
        exec(advice.code(), {"model": model})
    else:
        put_on(model, advice.best.segments)
    for one in (model,) if pasted else (model, copy.deepcopy(model)):
        assert all(map(torch.equal, plain, gradients(one)))
        with torch.no_grad():
            assert torch.equal(one.eval()(x), result)
        one.train()


def test_a_call_that_no_longer_fits_is_an_error_and_no_wrong_result():
    model, x = Deep(4), torch.randn(2, 10, 24)
    put_on(model, [("blocks.0", "blocks.1"), ("blocks.2", "blocks.3")])
    model(x).sum().backward()
    for keeps in ("scaled", "other arguments"):
        model.keeps = keeps
        with pytest.raises(RuntimeError, match="no longer run as one segment"):
            model(x)
    model.keeps = "none"
    model(x).sum().backward()


def test_blocks_with_hooks_get_lines_for_the_calling_code():
    with simulated():
        sample = deep()
        sample.model.blocks[3].register_forward_hook(lambda *_: None)
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        (option,) = segmented(advice)
        assert option.by_hand
        with pytest.raises(ValueError) as refused:
            advice.apply(option)
    said = refused.value.args[0]
    assert said.en.startswith("Hooks are on") and said.zh.startswith("这些块上有钩子")
    code = advice.code(option)
    assert code in said.en and code in said.zh and "x = checkpoint(segment, x" in code
    x = torch.randn(4, 10, 24)
    model = Deep()
    names = {"model": model, "x": x, "more": [(torch.ones(24), None)]}
    exec(code, names)
    assert torch.equal(names["x"], model(x))


def test_segments_come_off_while_a_step_is_watched_and_back_on():
    with simulated():
        sample = deep()
        sample.step()
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        advice.apply()
        again = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        assert [o.peak for o in again.options] == [o.peak for o in advice.options]
        assert taken(sample) == (advice.best.peak, advice.best.flops)
        again.apply("all")
        assert len(checkpointed(sample.model)) == 16
        again.undo()
        assert taken(sample) == (advice.best.peak, advice.best.flops)
        advice.undo()
        assert not any("forward" in vars(module) for module in sample.model.modules())


def test_real_tensors_in_segments():
    sample = deep()
    sample.step()
    advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
    (option,) = segmented(advice)
    advice.apply(option)
    assert taken(sample) == (option.peak, option.flops)
    advice.undo()


@pytest.mark.parametrize(("depth", "tried"), [(2, [2]), (4, [2, 4]), (9, [2, 3, 5, 9])])
def test_lengths_worth_trying(depth, tried):
    assert lengths([["a"], list(range(depth))]) == tried
