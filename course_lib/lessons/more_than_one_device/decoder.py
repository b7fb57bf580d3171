"""The decoder of this lesson, as small or as large as asked for: Llama's block, in plain PyTorch.

Heads are told by their size, not by their number: a rank that holds a part of the heads runs the
same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """``inside``: the width of the feed-forward half. ``head``: the width of one head.

    ``groups``: how many heads of keys and values there are.
    """

    layers: int
    width: int
    inside: int
    head: int
    groups: int
    words: int


SMALL = Sizes(layers=3, width=128, inside=352, head=16, groups=8, words=256)
# Llama 3 70B: arXiv:2407.21783, table 3.
SEVENTY_BILLION = Sizes(layers=80, width=8192, inside=28672, head=128, groups=8, words=128256)


class Block(nn.Module):
    """Attention and SwiGLU, each normalised before: (batch, sequence, width) → the same."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.head = sizes.head
        self.norm1, self.norm2 = nn.RMSNorm(sizes.width), nn.RMSNorm(sizes.width)
        few = sizes.groups * sizes.head
        self.query, self.key, self.value, self.out = (
            nn.Linear(i, o, bias=False)
            for i, o in [(sizes.width, sizes.width), (sizes.width, few), (sizes.width, few),
                         (sizes.width, sizes.width)]
        )  # fmt: skip
        self.gate = nn.Linear(sizes.width, sizes.inside, bias=False)
        self.up = nn.Linear(sizes.width, sizes.inside, bias=False)
        self.down = nn.Linear(sizes.inside, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        query, key, value = (
            part(h).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    """Words in, the mean loss of predicting ``targets`` out; both (batch, sequence)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.embed = nn.Embedding(sizes.words, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width)
        self.read_out = nn.Linear(sizes.width, sizes.words, bias=False)

    def forward(self, words: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(words)
        for block in self.blocks:
            x = block(x)
        logits = self.read_out(self.norm(x)).flatten(0, 1)
        return functional.cross_entropy(logits.float(), targets.flatten())


def small_decoder(**changes: int) -> Decoder:
    """The small one, with the same weights each time; ``changes`` of :class:`Sizes`."""
    torch.manual_seed(0)
    return Decoder(Sizes(**(vars(SMALL) | changes)))


def small_batch(batch: int = 2, sequence: int = 128) -> Tensor:
    """Words for the small decoder."""
    return torch.randint(0, SMALL.words, (batch, sequence), generator=_generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
