"""A Transformer block split over ranks: its matrices (tensor parallel), and the sequence as well.

The plans are those that the lesson writes out; the processes that meet use these.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from ...models import Block, Sizes
from ...wrapping import checkpoint_blocks
from .ranks_table import RankStep

Split = Literal["tensor", "sequence"]
SPLIT: dict[Split, tuple[str, str]] = {
    "tensor": ("矩阵（张量并行）", "matrices (tensor parallel)"),
    "sequence": ("再切序列（序列并行）", "sequence too (sequence parallel)"),
}
SIZES = Sizes(depth=3, width=128, heads=8, sequence=64, batch=4)


def plan_of(split: Split) -> dict[str, ParallelStyle]:
    """What ``parallelize_module`` does to the parts of a block."""
    columns = dict.fromkeys(
        ("attention.query", "attention.key", "attention.value", "feed_forward.up"),
        ColwiseParallel(),
    )
    rows = ("attention.out", "feed_forward.down")
    if split == "tensor":
        return {**columns, **dict.fromkeys(rows, RowwiseParallel())}
    whole = PrepareModuleInput(input_layouts=Shard(1), desired_input_layouts=Replicate())
    part = RowwiseParallel(output_layouts=Shard(1), use_local_output=False)
    return {
        **columns,
        **dict.fromkeys(rows, part),
        **dict.fromkeys(("norm1", "norm2"), SequenceParallel()),
        **dict.fromkeys(("attention", "feed_forward"), whole),
    }


def split_step(split: Split, mesh: DeviceMesh, checkpoints: bool) -> RankStep:
    """A step of a few blocks that has been taken before, on a rank of ``mesh``."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block(SIZES) for _ in range(SIZES.depth)))
    for block in blocks:
        parallelize_module(block, mesh, plan_of(split))
        block.attention.heads //= mesh.size()  # type: ignore[union-attr, operator]
    if checkpoints:
        checkpoint_blocks(blocks, Block)
    optimizer = torch.optim.AdamW(blocks.parameters(), foreach=False)  # some are DTensors, some not
    x: Tensor = torch.randn(SIZES.batch, SIZES.sequence, SIZES.width)
    if split == "sequence":
        x = DTensor.from_local(x.chunk(mesh.size(), 1)[mesh.get_rank()].clone(), mesh, [Shard(1)])

    def run() -> None:
        y = blocks(x)
        (y.to_local() if isinstance(y, DTensor) else y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    run()
    return RankStep(run, blocks, optimizer, x)
