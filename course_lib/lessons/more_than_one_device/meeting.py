"""Two processes that do meet, over gloo: the same steps measured there, and Lightning's FSDP2.

Each process measures its own memory. They are ended, whatever happens, when the call returns.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ...memory.trace import MemoryTrace, Role
from ...processes import join_ranks, run_ranks

if TYPE_CHECKING:
    from .ranks_table import RankStep

RANKS = 2
TRIES = 8  # at the most; two are enough where nothing disturbs
STEPS = 3


@dataclass(frozen=True)
class Fit:
    """One fit through Lightning. ``peak``: bytes of the measured step, by its ``MemoryMonitor``;
    ``sizes``: the bytes of parameters, gradients and optimizer state that the rank holds at it."""

    losses: list[float]
    wrapped: int
    peak: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class Met:
    """What two ranks found. ``peaks``: with checkpoints, by what is sharded or split, of each rank.

    ``fits``: by (processes, flag), of rank 0, which is the one that ``MemoryMonitor`` measures.
    """

    peaks: dict[str, tuple[int, ...]]
    fits: dict[tuple[int, bool], Fit]


@functools.cache
def two_ranks(seconds: float = 240.0) -> Met:
    """Start two processes that measure every step of the table and fit through Lightning.

    Raises ``RuntimeError`` with what a process said if one fails, or if they take longer than
    ``seconds``.
    """
    printed = run_ranks(["-m", __name__], RANKS, seconds)
    found = [json.loads(lines.splitlines()[-1]) for lines in printed]
    peaks = {name: tuple(rank["peaks"][name] for rank in found) for name in found[0]["peaks"]}
    fits = {
        (count, flag): Fit(**found[0]["fits"][f"{count} {flag}"])
        for count in range(1, RANKS + 1)
        for flag in (False, True)
    }
    return Met(peaks, fits)


def without_workspace(trace: MemoryTrace) -> int:
    """The peak, which two ranks and one alone agree on; workspace depends on the machine."""
    return trace.peak_without(Role.WORKSPACE)


# --- in each process ----------------------------------------------------------------------------


def _settled(measure: Callable[[], int]) -> int:
    """The smallest of a few peaks, once each rank has met its own twice.

    gloo's thread gives memory back when it comes to it: late, which makes a peak larger, or while
    PyTorch's profiler is not looking, which ``measure`` refuses. As many tries on each rank, for
    they wait for each other.
    """
    import torch
    import torch.distributed as dist

    seen: list[int] = []
    for _ in range(TRIES):
        with contextlib.suppress(RuntimeError):
            seen.append(measure())
        met = torch.tensor(int(seen != [] and seen.count(min(seen)) > 1))
        dist.all_reduce(met, op=dist.ReduceOp.MIN)
        if met:
            break
    return min(seen)


def _measured() -> dict[str, int]:
    from torch.distributed.device_mesh import init_device_mesh

    from .ranks_table import SHARDED, rank_step
    from .split import SPLIT, split_step

    mesh = init_device_mesh("cpu", (RANKS,))
    peaks: dict[str, int] = {}
    for sharded in SHARDED:
        step = rank_step(sharded, mesh, checkpoints=True)
        peaks[sharded] = _settled(functools.partial(_peak, step))
    for split in SPLIT:
        step = split_step(split, mesh, checkpoints=True)
        peaks[split] = _settled(functools.partial(_peak, step))
    return peaks


def _peak(step: RankStep) -> int:
    return without_workspace(step.measured())


def _fit(flag: bool, count: int) -> dict[str, Any]:
    import lightning as L
    from lightning.pytorch.strategies import ModelParallelStrategy

    from ...lightning import Counting, MemoryMonitor, StepRecord
    from ...lightning.sharded import ShardedLanguageModel
    from ...wrapping.blocks import checkpointed
    from .ranks_table import HELD

    L.seed_everything(0, verbose=False)
    model = ShardedLanguageModel(gradient_checkpointing=flag)
    record, monitor = StepRecord(), MemoryMonitor(steps=range(1, STEPS))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=count,
        max_steps=STEPS,
        callbacks=[record, monitor],
        # Left to itself, the strategy takes all processes for tensor parallelism.
        strategy=ModelParallelStrategy(
            data_parallel_size=count,
            tensor_parallel_size=1,
            process_group_backend="gloo",
            timeout=timedelta(seconds=60),
        ),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Counting(steps=STEPS * count, batch=16 // count))
    seen: list[dict[str, Any]] = [
        {
            "peak": without_workspace(trace),
            "sizes": {str(role): trace.peak_of(role) for role in HELD},
        }
        for trace in monitor.traces.values()
    ]
    best = min(seen, key=lambda one: one["peak"], default={})
    return {"losses": record.losses, "wrapped": len(checkpointed(model)), **best}


def _worker() -> None:
    import torch
    import torch.distributed as dist

    from ...lightning import quiet

    quiet()
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])

    join_ranks("table", RANKS)
    peaks = _measured()
    dist.destroy_process_group()
    fits = {}
    for count in range(RANKS, 0, -1):
        if rank < count:
            join_ranks(str(count), count)
            for flag in (False, True):
                fits[f"{count} {flag}"] = _fit(flag, count)
            dist.destroy_process_group()
    print(json.dumps({"peaks": peaks, "fits": fits}))


if __name__ == "__main__":
    _worker()
