"""Training steps of one rank: replicated, sharded, split by tensor and by sequence.

Run as a program by several processes at once, it measures them on ranks that do meet.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import course_lib  # noqa: F401
from course_lib.memory import MemoryTrace, Role, measure
from course_lib.wrapping import checkpoint_blocks
from support.independent import Step

WIDTH, LENGTH, BATCH, DEPTH = 32, 16, 4, 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[Block() for _ in range(DEPTH)])


def trained(model: nn.Module, x: Tensor, parameters: nn.Module | None = None) -> Step:
    """A step that has been taken twice: buckets are built anew after the first."""
    optimizer = torch.optim.AdamW((parameters or model).parameters())

    def run() -> None:
        y = model(x)
        (y.to_local() if isinstance(y, DTensor) else y).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    run()
    run()
    return Step(run, model, optimizer, x)


def ddp(mesh: DeviceMesh, checkpoints: bool, views: bool = False) -> Step:
    model = blocks()
    if checkpoints:
        checkpoint_blocks(model, Block)
    replica = DistributedDataParallel(model, gradient_as_bucket_view=views)
    if dist.get_backend() == "fake":
        replica.register_comm_hook(None, noop_hook)
    return trained(replica, torch.randn(BATCH, LENGTH, WIDTH), model)


def ddp_views(mesh: DeviceMesh, checkpoints: bool) -> Step:
    return ddp(mesh, checkpoints, views=True)


def sharded(mesh: DeviceMesh, checkpoints: bool, reshard: bool = True) -> Step:
    model = blocks()
    if checkpoints:
        checkpoint_blocks(model, Block)
    for block in model:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
    return trained(model, torch.randn(BATCH, LENGTH, WIDTH))


def gathered_until_backward(mesh: DeviceMesh, checkpoints: bool) -> Step:
    return sharded(mesh, checkpoints, reshard=False)


def tensor_parallel(mesh: DeviceMesh, checkpoints: bool) -> Step:
    model = blocks()
    for block in model:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    if checkpoints:
        checkpoint_blocks(model, Block)
    return trained(model, torch.randn(BATCH, LENGTH, WIDTH))


def sequence_parallel(mesh: DeviceMesh, checkpoints: bool) -> Step:
    model = blocks()
    plan = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    }
    for block in model:
        parallelize_module(block, mesh, plan)
    if checkpoints:
        checkpoint_blocks(model, Block)
    local = torch.randn(BATCH, LENGTH // mesh.size(), WIDTH)
    return trained(model, DTensor.from_local(local, mesh, [Shard(1)]))


STEPS: dict[str, Callable[[DeviceMesh, bool], Step]] = {
    made.__name__: made
    for made in (
        ddp, ddp_views, sharded, gathered_until_backward, tensor_parallel, sequence_parallel,
    )
}  # fmt: skip
SIMULATED = [name for name in STEPS if not name.startswith("ddp")]


def measured(step: Step) -> MemoryTrace:
    return measure(step.run, step.model, step.optimizer, step.inputs)


def by_role(trace: MemoryTrace) -> dict[str, dict[str, int]]:
    """What the trace says of the peak and of before, as JSON holds it, without workspace.

    How much workspace a product takes depends on whether the machine is busy with threads.
    """
    return {
        "peak": {"bytes": trace.peak_without(Role.WORKSPACE)},
        "before": {str(role): size for role, size in trace.before.items() if size},
        "kept": {str(role): size for role, size in trace.kept.items() if size},
    }


def agreed(step: Step) -> dict[str, dict[str, int]]:
    """What most of a few measurements say: as many on each rank, for they wait for each other.

    While gloo's threads give memory back, PyTorch's profiler now and then loses an allocation.
    """
    seen: list[dict] = []
    for _ in range(8):
        with contextlib.suppress(RuntimeError):
            seen.append(by_role(measured(step)))
    best = max(seen, key=seen.count)
    assert seen.count(best) >= 2, seen
    return best


def _as_a_rank_that_meets_others() -> None:
    torch.set_num_threads(1)
    rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", init_method=os.environ["MEETING_POINT"], rank=rank, world_size=world
    )
    mesh = init_device_mesh("cpu", (world,))
    found = {
        f"{name} {checkpoints}": agreed(make(mesh, checkpoints))
        for name, make in STEPS.items()
        for checkpoints in (False, True)
    }
    dist.destroy_process_group()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _as_a_rank_that_meets_others()
