"""Train with a distributed strategy on one machine's CPU, flag off and on, and report the losses.

These strategies want processes of their own: a notebook's kernel will not do. The processes talk
over loopback with gloo, and are ended, whatever happens, when :func:`train_in_processes` returns.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .language import text

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
        {"strategy": strategy, "count": count, "steps": steps, "batch": batch // count,
         "port": _free_port()}
        for strategy, count in strategies.items()
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        ranks = range(max(strategies.values()))
        outputs = [Path(folder) / f"{rank}.json" for rank in ranks]
        logs = [Path(folder) / f"{rank}.log" for rank in ranks]
        _run_all(
            [[sys.executable, "-m", __name__, str(output), json.dumps(tasks)]
             for output in outputs],
            logs, seconds,
        )  # fmt: skip
        found = [json.loads(output.read_text()) for output in outputs]
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


def _run_all(commands: Sequence[Sequence[str]], logs: Sequence[Path], seconds: float) -> None:
    """Run one process per command until all have ended well, or end them all."""
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent),
                                       *filter(None, [os.environ.get("PYTHONPATH")])]),
    }  # fmt: skip
    if loopback := _loopback():
        shared["GLOO_SOCKET_IFNAME"] = loopback
    processes: list[subprocess.Popen] = []
    try:
        for rank, (command, log) in enumerate(zip(commands, logs, strict=True)):
            with log.open("w") as said:
                processes.append(
                    subprocess.Popen(
                        command, env={**shared, "LOCAL_RANK": str(rank)}, stdin=subprocess.DEVNULL,
                        stdout=said, stderr=subprocess.STDOUT,
                    )
                )  # fmt: skip
        _wait(processes, logs, seconds)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _wait(processes: list[subprocess.Popen], logs: Sequence[Path], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in processes]
        for code, log in zip(codes, logs, strict=True):
            if code:
                said = log.read_text(errors="replace").strip()[-2000:]
                raise RuntimeError(
                    text(
                        zh=f"一个训练进程出错退出（{code}）：\n{said}",
                        en=f"A training process failed ({code}):\n{said}",
                    )
                )
        if None not in codes:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(
                text(
                    zh=f"训练进程 {seconds:g} 秒还没有结束，已经停掉。",
                    en=f"The training processes had not ended after {seconds:g} s; they were "
                    "stopped.",
                )
            )
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _loopback() -> str | None:
    """The name of the loopback interface, where interfaces have names that gloo knows."""
    if sys.platform == "win32":
        return None
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in ("lo", "lo0") if name in names), None)


# --- in each process ----------------------------------------------------------------------------


def _fit(flag: bool, count: int, strategy: Strategy, steps: int, batch: int) -> dict:
    import lightning as L
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    from .lightning import Counting, LanguageModel, StepRecord
    from .wrapping import checkpointed

    L.seed_everything(0, verbose=False)
    model, record = LanguageModel(gradient_checkpointing=flag), StepRecord()
    kind = {"ddp": DDPStrategy, "model parallel": ModelParallelStrategy}[strategy]
    trainer = L.Trainer(
        accelerator="cpu", devices=count, max_steps=steps, callbacks=[record],
        strategy=kind(process_group_backend="gloo", timeout=timedelta(seconds=60)),
        logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
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


def _worker(output: str, tasks: str) -> None:
    """Take part in every task that needs a process of this rank."""
    import torch.distributed

    from .lightning import quiet

    quiet()
    torch.set_num_threads(1)  # as in the lesson: sums are taken in the same order
    results = {}
    for task in json.loads(tasks):
        port, count = task.pop("port"), task["count"]
        if int(os.environ["LOCAL_RANK"]) < count:
            os.environ |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
            results[task["strategy"]] = {str(flag): _fit(flag, **task) for flag in (False, True)}
            torch.distributed.destroy_process_group()  # the next strategy forms its own
    Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    _worker(*sys.argv[1:])
