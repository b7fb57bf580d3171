"""A decoder of 70 billion parameters over many ranks, from decoders as wide with few layers.

What every option takes grows by the same bytes with each layer: two depths give the line, a third
proves it, and a test lays a decoder of all layers on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ...language import text
from ...memory.simulation import simulated
from ...one_rank import one_rank_of
from ...plans.advice import advise
from .decoder import SEVENTY_BILLION, Decoder, Sizes

KEYS = ("none", "all", "loss + all", "selective")


def advised_options(
    layers: int,
    ranks: int,
    shard: Callable[[nn.Module, object], object],
    sequence: int = 8192,
    sizes: Sizes = SEVENTY_BILLION,
) -> dict[str, int]:
    """Peaks of one of ``ranks`` ranks, bytes, by the option's key, played by ``advise``.

    ``shard(model, mesh)`` shards the model in place. One sequence per rank, AdamW.
    """
    with one_rank_of(ranks) as mesh, simulated():
        model = Decoder(replace(sizes, layers=layers))
        shard(model, mesh)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        words = torch.zeros(1, sequence, dtype=torch.long)

        def step() -> None:
            model(words, words).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        options = advise(step, model, optimizer, words).options
    return {option.key: option.peak for option in options if option.key in KEYS}


@dataclass(frozen=True)
class Lines:
    """``first``: peaks at depth ``layers``; ``more``: bytes that each further layer adds."""

    layers: int
    first: Mapping[str, int]
    more: Mapping[str, int]

    def at(self, layers: int) -> dict[str, int]:
        """Bytes by option at this depth."""
        return {key: n + (layers - self.layers) * self.more[key] for key, n in self.first.items()}


def lines_through(found: Mapping[int, Mapping[str, int]]) -> Lines:
    """The line of each option through depths that follow each other, three at least.

    Raises ``ValueError`` if the peaks of an option do not lie on one.
    """
    depths: Sequence[int] = sorted(found)
    if len(depths) < 3 or depths[-1] - depths[0] != len(depths) - 1:
        raise ValueError(text(
            zh=f"要三个以上相邻的层数，现在是 {depths}。",
            en=f"three depths or more that follow each other are needed, not {depths}.",
        ))  # fmt: skip
    first = found[depths[0]]
    more = {key: found[depths[1]][key] - size for key, size in first.items()}
    lines = Lines(depths[0], first, more)
    for depth in depths:
        if lines.at(depth) != dict(found[depth]):
            raise ValueError(text(
                zh=f"{depth} 层的峰值不在线上：{dict(found[depth])}，线上是 {lines.at(depth)}。",
                en=f"The peaks of {depth} layers are off the line: {dict(found[depth])}, the line "
                f"has {lines.at(depth)}.",
            ))  # fmt: skip
    return lines
