"""The models that the lessons measure: ordinary PyTorch, their sizes in one dataclass."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer


@dataclass(frozen=True)
class Sizes:
    """Sizes of a Transformer and of its input; ``width`` must be a multiple of ``heads``."""

    depth: int = 12
    width: int = 128
    heads: int = 4
    sequence: int = 128
    batch: int = 8
    vocabulary: int = 256
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class Attention(nn.Module):
    """Causal self-attention with every intermediate value spelled out.

    Input and output: (batch, sequence, width).
    """

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.heads = sizes.heads
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key = nn.Linear(sizes.width, sizes.width)
        self.value = nn.Linear(sizes.width, sizes.width)
        self.out = nn.Linear(sizes.width, sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = self.dropout(scores.masked_fill(future, float("-inf")).softmax(-1))
        return self.out((weights @ value).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """(batch, sequence, width) → (batch, heads, sequence, width / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Linear, GELU, Linear; four times as wide inside."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.up = nn.Linear(sizes.width, 4 * sizes.width)
        self.down = nn.Linear(4 * sizes.width, sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(functional.gelu(self.up(x))))


class Block(nn.Module):
    """One Transformer block, normalised before each half: (batch, sequence, width) → the same."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width)
        self.attention = Attention(sizes)
        self.norm2 = nn.LayerNorm(sizes.width)
        self.feed_forward = FeedForward(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Transformer(nn.Module):
    """A small causal language model: tokens (batch, sequence) → logits (…, vocabulary)."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Parameter(torch.zeros(sizes.sequence, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read_out(self.run_blocks(self.embed(tokens)))

    def embed(self, tokens: Tensor) -> Tensor:
        return self.tokens(tokens) + self.positions[: tokens.shape[1]]

    def run_blocks(self, x: Tensor) -> Tensor:
        """All blocks, one after the other; lessons put their own version in its place."""
        for block in self.blocks:
            x = block(x)
        return x

    def read_out(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of each next token, a scalar."""
        logits = self(tokens[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class PaperBlock(nn.Module):
    """The layer that Korthikanti et al. 2022 (arXiv:2205.05198) count: (s, b, h) → the same.

    Three dropouts, no causal mask. ``fused_dropout``: as on a GPU, where dropout keeps a mask of
    one byte per value; otherwise PyTorch's ordinary dropout on the CPU. ``fused_attention``:
    ``scaled_dot_product_attention`` in place of softmax written out.
    """

    def __init__(self, sizes: Sizes, *, fused_dropout: bool, fused_attention: bool = False):
        super().__init__()
        self.heads, self.rate = sizes.heads, 0.1
        self.fused_dropout, self.fused_attention = fused_dropout, fused_attention
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.query = nn.Linear(sizes.width, sizes.width, bias=False)
        self.key = nn.Linear(sizes.width, sizes.width, bias=False)
        self.value = nn.Linear(sizes.width, sizes.width, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width)
        self.up = nn.Linear(sizes.width, 4 * sizes.width)
        self.down = nn.Linear(4 * sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropout(self.out(self._attend(self.norm1(x))))
        return x + self._dropout(self.down(functional.gelu(self.up(self.norm2(x)))))

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        if self.fused_attention:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
            mixed = self._dropout(scores.softmax(-1)) @ value
        return mixed.permute(2, 0, 1, 3).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(s, b, h) → (b, heads, s, h / heads)"""
        return x.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)

    def _dropout(self, x: Tensor) -> Tensor:
        if self.fused_dropout:
            return torch.native_dropout(x, self.rate, True)[0]
        return functional.dropout(x, self.rate)


def step_without_passes(model: nn.Module, optimizer: Optimizer) -> None:
    """Bring gradients and the optimizer's state into being, as a first step does, but faster."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def random_tokens(sizes: Sizes) -> Tensor:
    """Tokens for one training step, (batch, sequence + 1): an input and its shifted target."""
    return torch.randint(sizes.vocabulary, (sizes.batch, sizes.sequence + 1))


def even_segments(layers: Sequence[nn.Module], count: int) -> list[nn.Sequential]:
    """The layers in ``count`` segments, in order, whose lengths differ by at most one.

    Raises ``ValueError`` unless ``count`` is between 1 and the number of layers.
    """
    if not 1 <= count <= len(layers):
        raise ValueError(
            f"{len(layers)} layers can be cut into 1 to {len(layers)} segments, not {count}"
        )
    cuts = [i * len(layers) // count for i in range(count + 1)]
    return [nn.Sequential(*layers[a:b]) for a, b in itertools.pairwise(cuts)]


class Merge(nn.Module):
    """Four neighbouring tokens become one, twice as wide: (batch, s, w) → (batch, s / 4, 2 w)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(4 * width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.unflatten(1, (-1, 4)).flatten(2))


def pyramid(depths: Sequence[int] = (3, 4, 6, 3), width: int = 64) -> list[nn.Module]:
    """The layers of a vision Transformer in stages, as in Swin (arXiv:2103.14030), with
    global attention.

    ``depths``: blocks in each stage; between stages tokens are merged. The first stage, with the
    most tokens, holds most of the activations, the last most of the parameters.
    """
    layers: list[nn.Module] = []
    for stage, depth in enumerate(depths):
        if stage:
            layers.append(Merge(width))
            width *= 2
        layers += [Block(Sizes(width=width, heads=width // 32)) for _ in range(depth)]
    return layers
