"""Train with a distributed strategy on one machine's CPU, flag off and on, and report the losses.

These strategies want processes of their own: a notebook's kernel will not do. The processes talk
over loopback with gloo, and are ended, whatever happens, when :func:`train_in_processes` returns.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from ...processes import join_ranks, run_ranks

if TYPE_CHECKING:
    from torch import nn

Strategy = Literal["ddp", "model parallel"]


@dataclass(frozen=True)
class Distributed:
    """One fit in several processes.

    ``losses``: of each step, the mean over the processes. ``weights``: for each process, a digest
    of its final weights. ``wrapped``: how many blocks were checkpointed.
    """

    losses: tuple[float, ...]
    weights: tuple[str, ...]
    wrapped: int


def train_in_processes(
    strategies: Mapping[Strategy, int],
    steps: int = 20,
    batch: int = 16,
    seconds: float = 120.0,
) -> dict[Strategy, dict[bool, Distributed]]:
    """``LanguageModel`` under each strategy in so many processes, without and with the flag.

    ``batch``: sequences per step, an equal part of them in each process. The same processes train
    with one strategy after the other: to start them takes longer than to train. Raises
    ``RuntimeError`` with what a process said if one fails, or if they take longer than ``seconds``.
    """
    for count in strategies.values():
        if batch % count:
            raise ValueError(f"batch must be a multiple of {count}, not {batch}")
    tasks = [
        {"strategy": strategy, "count": count, "steps": steps, "batch": batch // count}
        for strategy, count in strategies.items()
    ]
    printed = run_ranks(["-m", __name__, json.dumps(tasks)], max(strategies.values()), seconds)
    found = [json.loads(lines.splitlines()[-1]) for lines in printed]
    return {
        strategy: {
            flag: _together([rank[strategy][str(flag)] for rank in found[:count]])
            for flag in (False, True)
        }
        for strategy, count in strategies.items()
    }


def _together(ranks: list[dict]) -> Distributed:
    losses = zip(*(rank["losses"] for rank in ranks), strict=True)
    return Distributed(
        tuple(sum(step) / len(step) for step in losses),
        tuple(rank["weights"] for rank in ranks),
        ranks[0]["wrapped"],
    )


# --- in each process ----------------------------------------------------------------------------


def _fit(flag: bool, count: int, strategy: Strategy, steps: int, batch: int) -> dict:
    import lightning as L
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    from ...lightning import Counting, LanguageModel, StepRecord
    from ...wrapping.blocks import checkpointed

    L.seed_everything(0, verbose=False)
    model, record = LanguageModel(gradient_checkpointing=flag), StepRecord()
    kind = {"ddp": DDPStrategy, "model parallel": ModelParallelStrategy}[strategy]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=count,
        max_steps=steps,
        callbacks=[record],
        strategy=kind(process_group_backend="gloo", timeout=timedelta(seconds=60)),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, Counting(steps=steps * count, batch=batch))
    wrapped = len(checkpointed(model))
    return {"losses": record.losses, "weights": digest(model), "wrapped": wrapped}


def digest(model: nn.Module) -> str:
    """A fingerprint of all weights, equal only if every bit is."""
    import hashlib

    fingerprint = hashlib.sha256()
    for name, value in model.state_dict().items():
        fingerprint.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return fingerprint.hexdigest()


def _worker(tasks: str) -> None:
    """Take part in every task that needs a process of this rank; print what came of it."""
    import torch
    import torch.distributed as dist

    from ...lightning import quiet

    quiet()
    torch.set_num_threads(1)  # as in the lesson: sums are taken in the same order
    rank, results = int(os.environ["LOCAL_RANK"]), {}
    for task in json.loads(tasks):
        strategy, count = task["strategy"], task["count"]
        if rank < count:
            join_ranks(strategy.replace(" ", "-"), count)
            results[strategy] = {str(flag): _fit(flag, **task) for flag in (False, True)}
            dist.destroy_process_group()  # the next strategy forms its own
    print(json.dumps(results))


if __name__ == "__main__":
    _worker(*sys.argv[1:])
