"""The diagnosis: one broken script per cause; its remedy, carried out, saves what was said."""

from __future__ import annotations

import copy
import tempfile

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from course_lib import advise
from course_lib.memory import measure, simulated
from course_lib.models import Sizes, Transformer, random_tokens
from course_lib.plans.advice.budget import readable
from course_lib.wrapping.blocks import checkpoint_blocks, plain_blocks
from support.advice_samples import SAMPLES


class Script:
    """A training script; each cause breaks it in one place."""

    def __init__(self, model, loss, inputs, optimizer=torch.optim.AdamW, **settings):
        self.model, self.loss, self.inputs = model, loss, inputs
        self.use(optimizer, **settings)

    def use(self, optimizer, **settings):
        self.optimizer = optimizer(self.model.parameters(), lr=1e-3, **settings)
        self.step()  # its state exists from now on

    def step(self):
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def advice(self):
        return advise(self.step, self.model, self.optimizer, self.inputs)

    def peak(self):
        return measure(self.step, self.model, self.optimizer, self.inputs).peak


def check(advice, cause, broken, mended, *words):
    diagnosis = advice.diagnosis
    assert diagnosis.cause == cause
    assert diagnosis.saves == broken - mended > 0
    said = readable(diagnosis.saves)
    assert said in diagnosis.zh and said in diagnosis.en
    shown = diagnosis._repr_mimebundle_()["text/html"]
    assert shown.count("<tr>") == 1 + len(diagnosis.largest) and said in shown
    for word in words:
        assert word in diagnosis.zh and word in diagnosis.en
    assert sum(diagnosis.by_role.values()) == diagnosis.peak


class Mlp(nn.Module):
    def __init__(self, width, inside):
        super().__init__()
        self.up, self.down = nn.Linear(width, inside), nn.Linear(inside, width)

    def forward(self, x):
        return x + self.down(functional.gelu(self.up(x)))


def mlps(batch=256, width=32, inside=128, depth=6, **settings):
    model = nn.Sequential(*(Mlp(width, inside) for _ in range(depth)))
    x = torch.randn(batch, width)
    return Script(model, lambda: model(x).square().mean(), x, **settings)


def test_activations():
    with simulated():
        script = mlps()
        advice, broken = script.advice(), script.peak()
        advice.apply(advice.diagnosis.remedy)
        check(advice, "activations", broken, script.peak())


def test_logits():
    with simulated():
        model = Transformer(Sizes(depth=4, vocabulary=8000))
        words = random_tokens(model.sizes)
        script = Script(model, lambda: model.loss(words), words)
        advice, broken = script.advice(), script.peak()
        assert advice.diagnosis.remedy == "loss"
        advice.apply("loss")
        check(advice, "logits", broken, script.peak(), "logits")


@pytest.mark.parametrize("foreach", [False, True])
def test_the_optimizer_step(foreach):
    with simulated():
        script = mlps(batch=4, width=128, inside=512, foreach=foreach)
        advice, broken = script.advice(), script.peak()
        script.use(torch.optim.AdamW, fused=True)
        check(advice, "optimizer step", broken, script.peak(), "fused=True")


def test_no_activations():
    with simulated():
        script = mlps(batch=4, width=128, inside=512, fused=True)
        advice, broken = script.advice(), script.peak()
        script.use(torch.optim.SGD)
        check(advice, "no activations", broken, script.peak(), "SGD", "LoRA", "FSDP")


def small_llama(**more):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, **more,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    ids = torch.zeros(2, 64, dtype=torch.long)
    return Script(model, lambda: model(input_ids=ids, labels=ids).loss, ids)


def test_a_cache_of_keys_and_values():
    """Wrapped by others, blocks recompute keys and values, but the cache keeps them anyway."""
    with simulated():
        script = small_llama(use_cache=True)
        kinds = {type(script.model.model.layers[0])}
        apply_activation_checkpointing(script.model, check_fn=lambda m: type(m) in kinds)
        advice, broken = script.advice(), script.peak()
        assert script.model.config.use_cache is True
        script.model.config.use_cache = False
        check(advice, "cache", broken, script.peak(), "model.config.use_cache = False")


def test_checkpoints_that_eval_switches_off():
    with simulated():
        script = small_llama(use_cache=False)
        script.model.gradient_checkpointing_enable()
        script.model.eval()
        advice, broken = script.advice(), script.peak()
        assert not any(module.training for module in script.model.modules())
        script.model.train()
        check(advice, "checkpoints not active", broken, script.peak(), "eval()", "model.train()")


def test_children_wrapped_by_others():
    with simulated():
        script = mlps()
        apply_activation_checkpointing(script.model, check_fn=lambda m: type(m) is nn.Linear)
        script.use(torch.optim.AdamW)
        advice, broken = script.advice(), script.peak()
        again = mlps()
        checkpoint_blocks(again.model, Mlp)
        check(advice, "children wrapped", broken, again.peak())
        # Blocks around wrapped parts cannot be foretold, so none is among the options.
        assert {o.key for o in advice.options if not o.by_hand} == {"none"}
        assert advice["none"].peak == broken


def test_children_wrapped_by_our_own():
    with simulated():
        script = mlps()
        checkpoint_blocks(script.model, [f"{i}.{n}" for i in range(6) for n in ("up", "down")])
        advice, broken = script.advice(), script.peak()
        plain_blocks(script.model)
        checkpoint_blocks(script.model, Mlp)
        check(advice, "children wrapped", broken, script.peak())


def test_wrapped_parts_of_blocks_in_a_sequence():
    """Here the wrappers of the operators stand where blocks could."""
    with simulated():
        model = nn.Sequential(
            *(nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)) for _ in range(5))
        )
        apply_activation_checkpointing(model, check_fn=lambda m: type(m) is nn.Linear)
        x = torch.randn(256, 32)
        script = Script(model, lambda: model(x).square().mean(), x)
        assert script.advice().diagnosis.cause == "children wrapped"


@pytest.mark.parametrize("blocks", ["SwinLayer", "SwinStage"])
def test_blocks_within_stages_are_no_children(blocks):
    with simulated():
        sample = SAMPLES["swin"]()
        sample.step()
        checkpoint_blocks(sample.model, blocks)
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        assert advice.diagnosis.cause == "activations"


def test_where_the_library_has_checkpoints_on_no_others_are_offered():
    with simulated():
        script = small_llama(use_cache=False)
        script.model.gradient_checkpointing_enable()
        advice = script.advice()
        assert {o.key for o in advice.options if not o.by_hand} == {"none"}
        assert advice.diagnosis.cause == "no activations" and advice.diagnosis.remedy is None
        ((zh, en),) = advice.doubts
        assert "4 个模块" in zh and "4 of the modules" in en
        assert "model.layers.0" in zh and "model.layers.0" in en
        assert advice["none"].peak == script.peak()


@pytest.fixture
def one_process():
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(f"{folder}/store", 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.mark.parametrize("fused", [False, True])
def test_communication_buffers(one_process, fused):
    """Whether the peak falls in the optimizer step or in the backward pass."""
    torch.manual_seed(0)
    bare = nn.Sequential(*(Mlp(64, 256) for _ in range(6)))
    x = torch.randn(8, 64)

    def script(**settings):
        model = DistributedDataParallel(copy.deepcopy(bare), **settings)
        made = Script(model, lambda: model(x).square().mean(), x, fused=fused)
        made.step()  # DDP has arranged its buckets anew by now
        return made

    broken = script()
    advice, before = broken.advice(), broken.peak()
    assert advice.diagnosis.phase == ("backward" if fused else "optimizer step")
    assert not advice.doubts
    after = script(gradient_as_bucket_view=True).peak()
    check(advice, "communication buffers", before, after, "gradient_as_bucket_view=True", "DDP")
