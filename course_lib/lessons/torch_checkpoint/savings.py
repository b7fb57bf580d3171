"""Kinds of models with and without checkpoints: bytes saved, and time added."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ...counting import seconds_in_turns
from ...figures.words import size_text
from ...language import Table
from ...memory.measurement import measure
from ...memory.simulation import simulated
from ...models import Block, Sizes
from ...notebook.explorers import progress
from .segments import linear_gelu_linear


@dataclass(frozen=True)
class ModelKind:
    """One kind of model. ``make(blocks)``: its blocks; ``shape``: of the first block's input.

    ``name``: (zh, en). Sizes are given twice: ``large`` for simulated tensors, ``small`` for real.
    """

    name: tuple[str, str]
    large: Callable[[], tuple[nn.Sequential, tuple[int, ...]]]
    small: Callable[[], tuple[nn.Sequential, tuple[int, ...]]]


def _mlp(depth: int, width: int, batch: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    return nn.Sequential(*(linear_gelu_linear(width) for _ in range(depth))), (batch, width)


def _linears(depth: int, width: int, batch: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    blocks = (nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth))
    return nn.Sequential(*blocks), (batch, width)


class ConvBlock(nn.Module):
    """Two 3 × 3 convolutions with GroupNorm and ReLU round a residual connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


def _cnn(depth: int, channels: int, side: int, batch: int) -> tuple[nn.Sequential, tuple[int, ...]]:
    blocks = nn.Sequential(*(ConvBlock(channels) for _ in range(depth)))
    return blocks, (batch, channels, side, side)


def _transformer(sizes: Sizes) -> tuple[nn.Sequential, tuple[int, ...]]:
    blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.depth)))
    return blocks, (sizes.batch, sizes.sequence, sizes.width)


KINDS: tuple[ModelKind, ...] = (
    ModelKind(
        ("Transformer，批大小 32", "Transformer, batch 32"),
        lambda: _transformer(Sizes(4, 512, 8, 256, batch=32)),
        lambda: _transformer(Sizes(4, 128, 4, 64, batch=8)),
    ),
    ModelKind(
        ("Transformer，批大小 1", "Transformer, batch 1"),
        lambda: _transformer(Sizes(4, 512, 8, 256, batch=1)),
        lambda: _transformer(Sizes(4, 128, 4, 64, batch=1)),
    ),
    ModelKind(
        ("卷积网络", "convolutional net"), lambda: _cnn(6, 64, 64, 32), lambda: _cnn(6, 16, 16, 8)
    ),
    ModelKind(
        ("MLP，块里有 4 倍宽的一层", "MLP, 4 times as wide inside"),
        lambda: _mlp(6, 1024, 8192),
        lambda: _mlp(8, 128, 256),
    ),
    ModelKind(
        ("Linear + ReLU", "Linear + ReLU"),
        lambda: _linears(8, 1024, 8192),
        lambda: _linears(8, 256, 256),
    ),
)


def run_in_checkpoints(blocks: nn.Sequential, x: Tensor, each: int) -> Tensor:
    """The blocks one after the other, ``each`` of them in one checkpoint; 0: no checkpoints."""
    if each == 0:
        return blocks(x)
    for start in range(0, len(blocks), each):
        x = checkpoint(blocks[start : start + each], x, use_reentrant=False)
    return x


def training_step(
    blocks: nn.Sequential, x: Tensor, optimizer: torch.optim.Optimizer, each: int
) -> None:
    """Forward, backward, update; gradients are freed first."""
    optimizer.zero_grad()
    run_in_checkpoints(blocks, x, each).square().mean().backward()
    optimizer.step()


@dataclass(frozen=True)
class Saving:
    """What one way of wrapping does to one kind of model. ``each``: blocks per checkpoint."""

    kind: ModelKind
    each: int
    kept: int
    peak: int
    flops: int


def measure_kinds(
    kinds: Sequence[ModelKind] = KINDS, every: Sequence[int] = (0, 1, 2)
) -> list[Saving]:
    """Measure one AdamW training step of each kind, large, with simulated tensors.

    ``every``: blocks per checkpoint; 0: no checkpoints, -1: the whole model in one.
    """
    found = []
    for kind in progress(kinds, zh="逐个模拟", en="Simulating each"):
        with simulated():
            blocks, shape = kind.large()
            optimizer, x = torch.optim.AdamW(blocks.parameters()), torch.randn(shape)
            for parameter in blocks.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()  # Adam's moments come into being
            for each in every:
                count = len(blocks) if each < 0 else each
                trace = measure(
                    functools.partial(training_step, blocks, x, optimizer, count),
                    blocks,
                    optimizer,
                    x,
                )
                kept = trace.kept_for_backward()
                found.append(Saving(kind, each, kept, trace.peak, trace.flops))
    return found


def savings_table(found: Sequence[Saving]) -> Table:
    """Kept bytes, peak and FLOPs of each, against the same kind without checkpoints."""
    plain = {one.kind.name: one for one in found if one.each == 0}
    rows = []
    for one in found:
        base = plain[one.kind.name]
        rows.append(
            [
                one.kind.name,
                _each_in_words(one.each),
                size_text(one.kept),
                _change(one.kept, base.kept),
                size_text(one.peak),
                _change(one.peak, base.peak),
                _change(one.flops, base.flops),
            ]
        )
    return Table(
        [
            ("模型", "model"),
            ("检查点", "checkpoints"),
            ("保存", "kept"),
            ("变化", "change"),
            ("整步峰值", "peak of the step"),
            ("变化", "change"),
            ("FLOPs", "FLOPs"),
        ],
        rows,
    )


def _each_in_words(each: int) -> tuple[str, str]:
    if each == 0:
        return "不用", "none"
    if each < 0:
        return "整个模型一个", "one for the whole model"
    return (
        ("每块一个", "one per block")
        if each == 1
        else (f"每 {each} 块一个", f"one per {each} blocks")
    )


def _change(value: int, base: int) -> str:
    if value == base:
        return "0%"
    return f"{value / base - 1:+.1%}".replace("-", "−")


@dataclass(frozen=True)
class Slowdown:
    """Wall time of a step with a checkpoint per block, divided by that without, in each round."""

    kind: ModelKind
    ratios: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def _finished_step(
    blocks: nn.Sequential, x: Tensor, optimizer: torch.optim.Optimizer, each: int
) -> None:
    training_step(blocks, x, optimizer, each)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def time_kinds(
    kinds: Sequence[ModelKind] = KINDS, rounds: int = 5, device: torch.device | str = "cpu"
) -> list[Slowdown]:
    """Time real steps of each kind, with and without a checkpoint per block.

    The two take turns, so that a slow moment of the machine touches both. Models are small on the
    CPU and large on a GPU, which would spend its time waiting for Python otherwise.
    """
    device = torch.device(device)
    found = []
    for kind in progress(kinds, zh="逐个计时", en="Timing each"):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            blocks, shape = kind.small() if device.type == "cpu" else kind.large()
            blocks, x = blocks.to(device), torch.randn(shape).to(device)
        optimizer = torch.optim.AdamW(blocks.parameters())
        steps = [functools.partial(_finished_step, blocks, x, optimizer, each) for each in (0, 1)]
        without, checkpointed = seconds_in_turns(steps, range(rounds + 2), warm_up=2)
        ratios = tuple(b / a for a, b in zip(without, checkpointed, strict=True))
        found.append(Slowdown(kind, ratios))
    return found


def _told(slowdown: Slowdown) -> str | tuple[str, str]:
    """The median, unless half of the rounds do not even agree on the sign."""
    low, high = slowdown.quartiles
    if low < 1 < high:
        return "说不准", "cannot be told"
    return f"{slowdown.median - 1:+.0%}"


def slowdown_table(found: Sequence[Slowdown]) -> Table:
    """Median and spread of the extra time of each kind."""
    rows = [
        [
            one.kind.name,
            _told(one),
            " … ".join(f"{quarter - 1:+.0%}" for quarter in one.quartiles),
        ]
        for one in found
    ]
    return Table(
        [
            ("模型（小）", "model (small)"),
            ("多用的时间，中位数", "extra time, median"),
            ("四分位区间", "interquartile range"),
        ],
        rows,
    )
