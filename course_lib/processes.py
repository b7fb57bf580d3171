"""Several processes of one training, started together on this machine's CPU.

What needs two ranks cannot run in a notebook's kernel. The processes meet through a file, which
nobody else can take as a port can be taken, and talk over the loopback interface; none is left
when the call ends, however it ends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from .language import text
from .paths import ROOT

LOOPBACKS = ("lo", "lo0")  # Linux, macOS; gloo finds Windows' by itself


def run_ranks(arguments: Sequence[str], ranks: int, seconds: float) -> list[str]:
    """Run ``python *arguments`` in ``ranks`` processes at once; what each printed, by rank.

    Each finds its rank in ``LOCAL_RANK``, their number in ``WORLD_SIZE``, and in ``MEETING_POINT``
    an ``init_method`` of ``torch.distributed`` (the address of a file that does not exist yet;
    append to it for a second process group). Raises ``RuntimeError`` with the last words of a
    process that fails, and if they have not all ended after ``seconds``.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environment = _environment(folder, ranks)
        processes: list[subprocess.Popen] = []
        try:
            for rank in range(ranks):
                with (
                    _printed(folder, rank).open("w") as out,
                    _complaints(folder, rank).open("w") as errors,
                ):
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, *arguments],
                            env={**environment, "LOCAL_RANK": str(rank)},
                            stdin=subprocess.DEVNULL,
                            stdout=out,
                            stderr=errors,
                        )
                    )
            _wait(processes, folder, seconds)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return [_printed(folder, rank).read_text(encoding="utf-8") for rank in range(ranks)]


def join_ranks(turn: str, count: int) -> None:
    """In a process that :func:`run_ranks` has started: be one of the first ``count`` in a group.

    ``turn``: tells several groups of the same processes apart; each is left, by
    ``destroy_process_group``, before the next. Waits for the others, a minute at the most.
    """
    import torch.distributed as dist

    os.environ["WORLD_SIZE"] = str(count)
    dist.init_process_group(
        "gloo",
        init_method=f"{os.environ['MEETING_POINT']}-{turn}",
        rank=int(os.environ["LOCAL_RANK"]),
        world_size=count,
        timeout=timedelta(seconds=60),
    )


def _printed(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.out"


def _complaints(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.err"


def _environment(folder: Path, ranks: int) -> dict[str, str]:
    environment = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "NODE_RANK": "0",
        "MEETING_POINT": (folder / "meeting-point").as_uri(),
        "OMP_NUM_THREADS": "1",  # sums are taken in the same order as in one process
        "KINETO_LOG_LEVEL": "99",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    if sys.platform != "win32":
        interfaces = {name for _, name in socket.if_nameindex()}
        if loopback := next((name for name in LOOPBACKS if name in interfaces), None):
            environment["GLOO_SOCKET_IFNAME"] = loopback
    return environment


def _wait(processes: Sequence[subprocess.Popen], folder: Path, seconds: float) -> None:
    """Return when all have ended well; raise as soon as one has not."""
    deadline = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                complaints = _complaints(folder, rank).read_text(encoding="utf-8", errors="replace")
                said = complaints.strip()[-2000:] or "?"
                raise RuntimeError(
                    text(
                        zh=f"有一个进程出错退出（{code}）：\n{said}",
                        en=f"One of the processes died ({code}):\n{said}",
                    )
                )
        if None not in codes:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(
                text(
                    zh=f"{len(processes)} 个进程 {seconds:g} 秒还没有结束，已经停掉。",
                    en=f"The {len(processes)} processes did not end within {seconds:g} seconds "
                    "and were stopped.",
                )
            )
        time.sleep(0.02)
