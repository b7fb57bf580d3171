"""Models that are no chains, each as a training step: what advice is checked against."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from course_lib.memory import simulated
from course_lib.plans.advice.score import Score
from course_lib.plans.advice.watch import record_step
from course_lib.wrapping.blocks import matcher, outermost


@dataclass
class Sample:
    """A step with all that it holds; ``blocks`` as :func:`checkpoint_blocks` takes them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Any
    step: Callable[[], Any]
    blocks: Any


def _sample(model: nn.Module, inputs: Any, loss: Callable[[], Tensor], blocks: Any) -> Sample:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return Sample(model, optimizer, inputs, step, blocks)


def llama() -> Sample:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=160, num_hidden_layers=5,
        num_attention_heads=8, num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    ids = torch.randint(0, 500, (2, 48))
    mask = torch.ones_like(ids)
    return _sample(
        model, (ids, mask), lambda: model(input_ids=ids, attention_mask=mask, labels=ids).loss,
        "LlamaDecoderLayer",
    )  # fmt: skip


def t5() -> Sample:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=300, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4,
        decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).train()
    source, target = torch.randint(1, 300, (2, 40)), torch.randint(1, 300, (2, 24))
    return _sample(
        model, (source, target), lambda: model(input_ids=source, labels=target).loss, "T5Block"
    )


def vit() -> Sample:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96,
        image_size=32, patch_size=8,
    )  # fmt: skip
    model = ViTForImageClassification(config).train()
    images, labels = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)
    return _sample(
        model, (images, labels), lambda: model(pixel_values=images, labels=labels).loss, "ViTLayer"
    )


def swin() -> Sample:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=24, depths=[2, 2, 2], num_heads=[2, 4, 8],
        window_size=4,
    )  # fmt: skip
    model = SwinForImageClassification(config).train()
    images, labels = torch.randn(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    return _sample(
        model, (images, labels), lambda: model(pixel_values=images, labels=labels).loss,
        "SwinLayer",
    )  # fmt: skip


class Convolutions(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm = nn.GroupNorm(2, outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = torch.cat([functional.interpolate(x, scale_factor=2), skip], 1)
        return self.second(self.norm(self.first(x)).relu()).relu()


class UNet(nn.Module):
    """Each block on the way up reads the output of its partner on the way down."""

    def __init__(self, width: int = 8, depth: int = 3):
        super().__init__()
        sizes = [width * 2**i for i in range(depth)]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            Convolutions(a, b) for a, b in zip([width, *sizes], sizes, strict=False)
        )
        self.middle = Convolutions(sizes[-1], sizes[-1])
        self.up = nn.ModuleList(
            Convolutions(a + b, b)
            for a, b in zip([sizes[-1], *sizes[:0:-1]], sizes[::-1], strict=True)
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.middle(x)
        for block in self.up:
            x = block(x, skip=skips.pop())
        return self.head(x)


def unet() -> Sample:
    model = UNet()
    x = torch.randn(2, 3, 32, 32)
    return _sample(model, x, lambda: model(x).square().mean(), "Convolutions")


def lora() -> Sample:
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    base = Qwen2ForCausalLM(config)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    model.enable_input_require_grads()
    model.train()
    ids = torch.randint(0, 400, (2, 40))
    return _sample(model, ids, lambda: model(input_ids=ids, labels=ids).loss, "Qwen2DecoderLayer")


@dataclasses.dataclass
class Routed:
    """What a layer of experts returns."""

    hidden: Tensor
    balance: Tensor
    nothing: None = None


class Experts(nn.Module):
    """Every expert on every token, weighted: the routing does not depend on values."""

    def __init__(self, width: int = 32, experts: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor, *, state: dict[str, Any]) -> Routed:
        y = self.norm(x)
        gates = self.gate(y).softmax(-1)
        parts = [expert(y) for expert in self.experts]
        mixed = torch.stack(parts, -1) @ gates.unsqueeze(-1) * state["scale"]
        return Routed(x + mixed.squeeze(-1), gates.mean((0, 1)).square().sum())


class Mixture(nn.Module):
    def __init__(self, depth: int = 4, width: int = 32):
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.blocks = nn.ModuleList(Experts(width) for _ in range(depth))
        self.head = nn.Linear(width, 100)

    def forward(self, ids: Tensor) -> Tensor:
        x, balance = self.embed(ids), 0.0
        state = {"scale": torch.full((1,), 0.5), "unused": None}
        for block in self.blocks:
            routed = block(x, state=state)
            x, balance = routed.hidden, balance + routed.balance
        return functional.cross_entropy(self.head(x).flatten(0, 1), ids.flatten()) + balance


def mixture() -> Sample:
    model = Mixture()
    ids = torch.randint(0, 100, (4, 16))
    return _sample(model, ids, lambda: model(ids), Experts)


class Unrolled(nn.Module):
    """An LSTM cell, step by step: the fused operator's simulation is known to be inexact."""

    def __init__(self, width: int):
        super().__init__()
        self.cell = nn.LSTMCell(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state = None
        results = []
        for i in range(x.shape[1]):
            state = self.cell(x[:, i], state)
            results.append(state[0])
        return torch.stack(results, 1), state


class Recurrent(nn.Module):
    def __init__(self, width: int = 24):
        super().__init__()
        self.cells = nn.ModuleList(nn.GRU(width, width, batch_first=True) for _ in range(3))
        self.again = Unrolled(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        for cell in self.cells:
            y, _ = cell(x)
            x = x + y
        y, (state, _) = self.again(x)
        return self.head(y) + self.head(state).unsqueeze(1)


def recurrent() -> Sample:
    model = Recurrent()
    x = torch.randn(4, 12, 24)
    return _sample(model, x, lambda: model(x).square().mean(), ["cells.*", "again"])


class Unlike(nn.Module):
    """Blocks of several sizes, some frozen, one of which runs twice, with a shared table."""

    def __init__(self, widths: tuple[int, ...] = (16, 64, 32, 128, 16), frozen: int = 1):
        super().__init__()
        self.blocks = nn.ModuleList(Wide(24, width) for width in widths)
        for block in self.blocks[:frozen]:
            block.requires_grad_(False)
        self.shared = Wide(24, 48)

    def forward(self, x: Tensor) -> Tensor:
        table = torch.linspace(0, 1, 24).cos() * x.mean()
        first, x = x, self.shared(x, (table, None))
        for block in self.blocks:
            x = block(x, (table, first))
        return self.shared(x, (table, first))


class Wide(nn.Module):
    def __init__(self, width: int, inside: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inside), nn.Linear(inside, width)

    def forward(self, x: Tensor, more: tuple[Tensor, Tensor | None]) -> Tensor:
        table, first = more
        y = self.down(functional.gelu(self.up(self.norm(x) * table)))
        return x + y if first is None else x + y * first


def unlike() -> Sample:
    model = Unlike()
    x = torch.randn(8, 10, 24)
    return _sample(model, x, lambda: model(x).square().sum(), Wide)


def chain() -> Sample:
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(6))
    )
    x = torch.randn(16, 32)
    return _sample(model, x, lambda: model(x).sum(), ["*"])


SAMPLES = {
    make.__name__: make
    for make in (llama, t5, vit, swin, unet, lora, mixture, recurrent, unlike, chain)
}


@functools.cache
def watched(name: str) -> tuple[Sample, dict[str, nn.Module], Score]:
    """A simulated sample, its blocks and its score; tests share them, and leave them as found."""
    with simulated():
        sample = SAMPLES[name]()
        sample.step()  # the optimizer's state exists from now on
        blocks = found(sample)
        optimizers = [sample.optimizer]
        record = record_step(sample.step, sample.model, optimizers, sample.inputs, blocks)
    return sample, blocks, Score(record)


def found(sample: Sample) -> dict[str, nn.Module]:
    """The blocks of a sample by their paths, as :func:`checkpoint_blocks` finds them."""
    return dict(outermost(sample.model, matcher(sample.blocks)))
