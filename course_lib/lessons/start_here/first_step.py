"""The step that lesson 00's first slider shows, for every number of checkpoints.

The same model and the same step as the cells that follow build before the learner's eyes.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...models import Sizes, Transformer, even_segments, random_tokens
from .checkpoint_counts import Counted, measure_counts

SIZES = Sizes(depth=12, width=128, heads=4, sequence=96, batch=8)


def measure_first(sizes: Sizes = SIZES, rounds: int = 3) -> list[Counted]:
    """A real training step with 0, 1, … ``sizes.depth`` checkpoints, each measured and timed."""
    torch.manual_seed(0)
    model = Transformer(sizes)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = random_tokens(sizes)

    def step(checkpoints: int) -> None:
        optimizer.zero_grad()
        if checkpoints:
            vars(model)["run_blocks"] = functools.partial(_run, model.blocks, checkpoints)
        else:
            vars(model).pop("run_blocks", None)  # back to its own loop
        model.loss(tokens).backward()
        optimizer.step()

    return measure_counts(step, range(sizes.depth + 1), model, optimizer, tokens, rounds)


def _run(blocks: nn.ModuleList, checkpoints: int, x: Tensor) -> Tensor:
    for segment in even_segments(list(blocks), checkpoints):
        x = checkpoint(segment, x, use_reentrant=False)
    return x
