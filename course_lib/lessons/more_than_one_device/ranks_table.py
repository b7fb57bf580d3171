"""What each rank holds, for each thing that can be sharded: the names, and a step of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ...memory.measurement import measure
from ...memory.trace import MemoryTrace, Role
from ...wrapping import checkpoint_blocks
from .decoder import small_batch, small_decoder

Sharded = Literal["nothing", "optimizer state", "gradients", "parameters"]

# ZeRO's stages (arXiv:1910.02054) in today's PyTorch; each shards what is before it, too.
SHARDED: dict[Sharded, tuple[str, str]] = {
    "nothing": ("什么也不切（DDP）", "nothing (DDP)"),
    "optimizer state": ("优化器状态（ZeRO-1）", "optimizer state (ZeRO-1)"),
    "gradients": ("再切梯度（ZeRO-2）", "gradients too (ZeRO-2)"),
    "parameters": ("再切参数（ZeRO-3）", "parameters too (ZeRO-3)"),
}


@dataclass(frozen=True)
class RankStep:
    """A training step of one rank, and what exists before it."""

    run: Callable[[], None]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    words: Tensor

    def measured(self) -> MemoryTrace:
        return measure(self.run, self.model, self.optimizer, self.words)


def rank_step(sharded: Sharded, mesh: DeviceMesh, checkpoints: bool) -> RankStep:
    """A step of the small decoder that has been taken before, on a rank of ``mesh``."""
    model = small_decoder()
    if checkpoints:
        checkpoint_blocks(model, "Block")
    from torch.nn.parallel import DistributedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained, optimizer = spread(model, sharded, mesh)
        words = small_batch()

        def run() -> None:
            trained(words, words).backward()
            optimizer.step()
            optimizer.zero_grad()

        run()
        if isinstance(trained, DistributedDataParallel):
            run()  # it builds its buckets anew after the first
    return RankStep(run, trained, optimizer, words)


def spread(
    model: nn.Module, sharded: Sharded, mesh: DeviceMesh
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """``model``, which has ``blocks``, over the ranks of ``mesh``: what to call, and AdamW."""
    if sharded in ("gradients", "parameters"):
        from torch.distributed.fsdp import fully_shard

        for block in model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh, reshard_after_forward=sharded == "parameters")
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        return model, torch.optim.AdamW(model.parameters(), fused=True)
    from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
    from torch.nn.parallel import DistributedDataParallel

    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    if dist.get_backend() == "fake":
        replica.register_comm_hook(None, noop_hook)
    if sharded == "nothing":
        return replica, torch.optim.AdamW(model.parameters(), fused=True)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return replica, ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, fused=True)


HELD = (Role.PARAMETER, Role.GRADIENT, Role.OPTIMIZER_STATE)
