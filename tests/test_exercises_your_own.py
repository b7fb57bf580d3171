"""The checkers of lesson 07: right answers pass, each wrong one hears what is wrong."""

import functools
import random

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from course_lib import advise
from course_lib.lessons.your_own_model.checkers import (
    check_lora_bytes,
    check_prepared,
    check_yours,
)
from course_lib.wrapping import checkpoint_blocks
from support.verdicts import heard, speak, verdict_on


@pytest.fixture(params=["zh", "en"])
def spoken(request, monkeypatch):
    speak(monkeypatch, request.param)


# Exercise 1


def by_the_switch(model):
    model.train()
    model.config.use_cache = False
    model.activation_checkpointing_enable()
    return model


def the_switch_alone_stops_the_cache(model):
    model.activation_checkpointing_enable()
    return model.train()


def by_the_library(model):
    checkpoint_blocks(model.train(), "LlamaDecoderLayer")
    return model


def in_checkpoint(function):
    @functools.wraps(function)
    def again(*args, **kwargs):
        return checkpoint(function, *args, use_reentrant=False, **kwargs)

    return again


def by_hand(model):
    model.train().config.use_cache = False
    for layer in model.model.layers:
        layer.forward = in_checkpoint(layer.forward)
    return model


def by_advice(model):
    words = torch.zeros(2, 32, dtype=torch.long)
    model.train().config.use_cache = False
    advice = advise(lambda: model(input_ids=words, labels=words).loss.backward(), model)
    advice.apply("all")
    return model


@pytest.mark.parametrize(
    "answer",
    [by_the_switch, the_switch_alone_stops_the_cache, by_the_library, by_hand, by_advice],
)
def test_right_decoders_pass(answer, spoken):
    heard(verdict_on(check_prepared, answer), "right", "6 个块都重算", "all 6 blocks run again")


def still_evaluating(model):
    model.config.use_cache = False
    model.activation_checkpointing_enable()
    return model


def only_trains(model):
    return model.train()


def cache_left_on(model):
    for layer in model.train().model.layers:
        layer.forward = in_checkpoint(layer.forward)
    return model


def every_second(model):
    checkpoint_blocks(model.train(), "LlamaDecoderLayer", every=2)
    return model


def all_in_one(model):
    model.train().config.use_cache = False
    model.model.forward = in_checkpoint(model.model.forward)
    return model


def only_attention(model):
    model.train().config.use_cache = False
    checkpoint_blocks(model, "LlamaAttention")
    return model


def single_operators(model):
    model.train().config.use_cache = False
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = in_checkpoint(module.forward)
    return model


def without_dropout(model):
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    return by_the_switch(model)


def frozen(model):
    model.get_input_embeddings().requires_grad_(False)
    return by_the_switch(model)


def in_half(model):
    return by_the_switch(model.to(torch.bfloat16))


def another(model):
    return by_the_switch(LlamaForCausalLM(LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=96, num_hidden_layers=6,
        num_attention_heads=4)))  # fmt: skip


def no_random_state(model):
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return model


def returns_the_switch(model):
    return [by_the_switch(model)]


def forgets_to_return(model):
    by_the_switch(model)


@pytest.mark.parametrize(
    ("answer", "zh", "en"),
    [
        (still_evaluating, r"还在 eval\(\)", r"still in eval\(\)"),
        (only_trains, "重算了 0 个", "0 of 6 blocks run again"),
        (cache_left_on, "use_cache 还开着.*多出", r"use_cache is still on.*adds \d"),
        (every_second, "重算了 3 个", "3 of 6 blocks run again"),
        (all_in_one, "整个模型包在了一个检查点里", "the whole model in one checkpoint"),
        (only_attention, "只包了块的一部分", "only part of each block"),
        (single_operators, "重算了 0 个|只包了块的一部分", "0 of 6|only part of each block"),
        (without_dropout, "不同.*梯度", "the gradient of"),
        (frozen, "不同|同一个模型", "Different|another model"),
        (in_half, "同一个模型|不同", "another model|Different"),
        (another, "同一个模型", "another model"),
        (no_random_state, "不同.*梯度", "the gradient of"),
        (returns_the_switch, "应返回模型", "expected the model"),
        (forgets_to_return, "少了 return", "is a return missing"),
    ],
)
def test_wrong_decoders_are_told_why(answer, zh, en, spoken):
    heard(verdict_on(check_prepared, answer), "wrong", zh, en)


def test_stubs_are_unfinished(spoken):
    heard(verdict_on(check_prepared, lambda model: None), "unfinished")
    heard(verdict_on(check_lora_bytes, lambda tokens, width, hidden, rank: None), "unfinished")
    heard(verdict_on(check_yours, lambda: None, lambda model: None), "unfinished")
    heard(verdict_on(check_yours, of_blocks, lambda model: None), "unfinished")


# Exercise 2


def measured(tokens, width, hidden, rank):
    """The same by counting: input, two in the middle of a LoRA, both sides of GELU."""
    rows = [width, rank, hidden, hidden, rank]
    return sum(torch.empty(tokens, n).numel() * 4 for n in rows)


@pytest.mark.parametrize(
    "answer", [lambda t, w, h, r: 4 * t * (w + 2 * h + 2 * r), measured,
               lambda *shape: torch.tensor(measured(*shape))],
)  # fmt: skip
def test_right_bytes_pass(answer, spoken):
    heard(verdict_on(check_lora_bytes, answer), "right", "一字节不差", "to the byte")


@pytest.mark.parametrize(
    ("answer", "zh", "en"),
    [
        (lambda t, w, h, r: 4 * t * (w + 2 * h), "全部训练时", "full training"),
        (lambda t, w, h, r: 4 * t * h, "底座全部冻结", "frozen base without"),
        (lambda t, w, h, r: t * (w + 2 * h + 2 * r), "元素的个数", "number of elements"),
        (lambda t, w, h, r: 4 * t * (w + 2 * h + r), "各有一个中间值", "has a value in the middle"),
        (lambda t, w, h, r: 4 * r * (w + h) * 2, "逐个算子", "operator by operator"),
        (lambda t, w, h, r: 4 * t * (w + h + 2 * r), "逐个算子", "operator by operator"),
        (lambda t, w, h, r: 0, "差 -", "off by -"),
        (lambda t, w, h, r: "75,776", "应返回一个数", "expected a number"),
        (lambda t, w, h, r: float("nan"), "应返回一个数", "expected a number"),
    ],
)
def test_wrong_bytes_are_told_by_how_much(answer, zh, en, spoken):
    heard(verdict_on(check_lora_bytes, answer), "wrong", zh, en)


# Exercise 3


class Block(nn.Module):
    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)
        self.dropout = dropout
        self.norm = nn.BatchNorm1d(32) if norm else nn.Identity()

    def forward(self, x):
        h = functional.dropout(self.up(x), self.dropout, self.training)
        return self.norm(x + self.down(functional.gelu(h)))


class Stack(nn.Module):
    def __init__(self, depth=8, **options):
        super().__init__()
        self.blocks = nn.ModuleList(Block(**options) for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


BATCH = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))


def learn(model):
    model(BATCH).square().mean().backward()


def of_blocks():
    return Stack(), learn


def with_dropout():
    return Stack(dropout=0.2).train(), learn


def every_block(model):
    checkpoint_blocks(model, Block)


def each_by_hand(model):
    for block in model.blocks:
        block.forward = in_checkpoint(block.forward)
    return model


def of_transformers():
    config = LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=96,
                         num_hidden_layers=4, num_attention_heads=2, use_cache=False)  # fmt: skip
    words = torch.arange(256).view(4, 64) % 100
    return LlamaForCausalLM(config).train(), lambda m: m(
        input_ids=words, labels=words
    ).loss.backward()


def of_optimizer():
    """A whole step, gradients cleared at its beginning."""

    def step(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        learn(model)
        optimizer.step()

    return Stack(), step


@pytest.mark.parametrize(
    ("build", "switch_on"),
    [
        (of_blocks, every_block),
        (with_dropout, each_by_hand),
        (of_transformers, lambda model: model.activation_checkpointing_enable()),
        (of_optimizer, every_block),
    ],
)
def test_right_models_pass(build, switch_on, spoken):
    heard(verdict_on(check_yours, build, switch_on), "right", "峰值从", "the peak falls from")


def model_alone():
    return Stack()


def forward_only():
    return Stack(), lambda model: model(BATCH)


def cleared():
    def step(model):
        learn(model)
        model.zero_grad()

    return Stack(), step


def no_graph():
    def step(model):
        with torch.no_grad():
            model(BATCH)

    return Stack(), step


def normalized():
    return Stack(norm=True), learn


def mostly_parameters():
    """One row: what there is at the peak are weights."""
    row = BATCH[:1]
    return Stack(), lambda model: model(row).square().mean().backward()


def evaluating():
    model, step = of_transformers()
    return model.eval(), step


def nothing_done(model):
    return model


def in_one(model):
    model.forward = in_checkpoint(model.forward)


def linears(model):
    checkpoint_blocks(model, nn.Linear)


def forgets_random_state(model):
    for block in model.blocks:
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def shallower(model):
    return Stack(depth=4)


def detached(model):
    for block in list(model.blocks):
        block.forward = functools.partial(no_gradient, block.forward)


def no_gradient(forward, x):
    return checkpoint(forward, x.detach(), use_reentrant=False)


def chance(model):
    for block in model.blocks:
        block.forward = functools.partial(by_chance, block)


def by_chance(block, x):
    return checkpoint(lambda x: block.down(block.up(x).mul(random.random()).sin()), x,
                      use_reentrant=False)  # fmt: skip


def raises(model):
    raise LookupError("where are the blocks?")


@pytest.mark.parametrize(
    ("build", "switch_on", "zh", "en"),
    [
        (model_alone, every_block, r"应返回 \(model, step\)", r"must return \(model, step\)"),
        (forward_only, every_block, "没有一个参数有梯度", "no parameter has a gradient"),
        (cleared, every_block, "没有一个参数有梯度", "no parameter has a gradient"),
        (no_graph, every_block, "没有一个参数有梯度", "no parameter has a gradient"),
        (normalized, every_block, "状态也跟着多动了一次", "state moved once more"),
        (of_blocks, nothing_done, "advise 在 .* 里找到", "advise finds one with a peak"),
        (of_blocks, in_one, "没有让峰值降下来", "do not lower the peak"),
        (of_blocks, linears, "没有让峰值降下来", "do not lower the peak"),
        (mostly_parameters, every_block, "没有让峰值降下来", "do not lower the peak"),
        (evaluating, lambda m: m.activation_checkpointing_enable(), r"eval\(\)", r"eval\(\)"),
        (with_dropout, forgets_random_state, "不同.*梯度", "the gradient of"),
        (of_blocks, shallower, "不再是同一个模型", "another model"),
        (of_blocks, detached, "不同.*梯度", "gradient"),
        (of_blocks, chance, "不同", "Different"),
        (of_blocks, raises, "LookupError", "where are the blocks"),
    ],
)
def test_wrong_models_are_told_why(build, switch_on, zh, en, spoken):
    heard(verdict_on(check_yours, build, switch_on), "wrong", zh, en)
