"""The blocks that this lesson's exercises are about, and a step of several of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ...memory.simulation import simulated
from ...plans.selective import Score, score_of


class Spelled(nn.Module):
    """The block that the lesson spells out: (batch, sequence, width) → the same.

    Fourteen operators have results of their own. 1/√d is taken to be in the query's weights.
    """

    def __init__(self, width: int = 128, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).contiguous()
        weights = (query @ key.mT).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Gated(nn.Module):
    """As in Llama, without rotary embeddings: fused attention, a gated MLP, no biases."""

    def __init__(self, width: int = 128, heads: int = 4, inner: int = 352):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        mixed = functional.scaled_dot_product_attention(*split.permute(2, 0, 3, 1, 4))
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Dropping(nn.Module):
    """Two products with dropout behind each, as on a GPU: with a mask of one byte per value."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.native_dropout(functional.gelu(self.up(x)), 0.1, True)[0]
        return x + torch.native_dropout(self.down(hidden).tanh(), 0.1, True)[0]


def run(blocks: nn.Module, x: Tensor, contexts: Callable[[], Any] | None = None) -> Tensor:
    """All blocks, one after the other, each in a checkpoint if there are ``contexts`` for it."""
    for block in blocks.children():
        if contexts is None:
            x = block(x)
        else:
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return x


def stepping(
    blocks: nn.Module, x: Tensor, contexts: Callable[[], Any] | None = None
) -> Callable[[], None]:
    """A training step without an optimizer."""

    def step() -> None:
        run(blocks, x, contexts).square().mean().backward()

    return step


def stack(kind: Callable[[], nn.Module], depth: int) -> nn.Module:
    return nn.ModuleList(kind() for _ in range(depth))


def scored(kind: Callable[[], nn.Module], depth: int, shape: tuple[int, ...]) -> Score:
    """The score of a step of ``depth`` such blocks on simulated tensors."""
    with simulated():
        blocks, x = stack(kind, depth), torch.empty(shape)
        step = stepping(blocks, x)
        step()  # so that gradients are there
        return score_of(step, blocks, blocks.children(), x)
