"""What measuring costs, as multiples of the bare step; medians of one run on one machine.

Collected only when named: ``python course.py test tests/benchmarks/measuring.py``. It prints a
table and never fails: ratios are to be read, beside those of ``MemTracker``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from course_lib.memory import measure, simulated

Run = Callable[[], object]
pytestmark = pytest.mark.benchmark


def encoder(layers: int, width: int) -> nn.Module:
    return nn.Sequential(
        *[nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
          for _ in range(layers)]
    )  # fmt: skip


def medians(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Median seconds of each; the runs take turns, so that the machine's moods fall on all.

    Processor time of this thread, which does all the work here: other processes leave it be.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begin = time.thread_time()
            run()
            if turn:  # the first turn warms up
                times[name].append(time.thread_time() - begin)
    return {name: statistics.median(taken) for name, taken in times.items()}


def tracked(model: nn.Module, step: Run) -> None:
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        step()


def row(what: str, seconds: dict[str, float], goal: str) -> str:
    bare = seconds["bare"]
    others = "  ".join(
        f"{name} {taken / bare:6.2f}x" for name, taken in seconds.items() if name != "bare"
    )
    return f"{what:46} {bare * 1e3:9.1f} ms  {others}  {goal}"


@pytest.mark.parametrize(
    ("layers", "width", "batch", "tokens", "goal"),
    ((8, 256, 16, 128, "goal 1.5x"), (4, 128, 8, 64, "goal 3x")),
)
def test_real_step(
    layers: int, width: int, batch: int, tokens: int, goal: str, report: Callable[[str], None]
) -> None:
    model, x = encoder(layers, width), torch.randn(batch, tokens, width)

    def step() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    runs = {
        "bare": step,
        "measured": lambda: measure(step, model, inputs=x),
        "MemTracker": lambda: tracked(model, step),
    }
    seconds = medians(runs, repeats=5 if layers > 4 else 15)
    report(row(f"real, {layers} layers, d {width}, {batch}x{tokens} tokens", seconds, goal))


@pytest.mark.parametrize("layers", (10, 20, 50, 100))
def test_simulated_step(layers: int, report: Callable[[str], None]) -> None:
    def a_step() -> tuple[nn.Module, torch.Tensor, Run]:
        model, x = encoder(layers, 256), torch.randn(8, 128, 256)

        def step() -> None:
            model.zero_grad()
            model(x).square().mean().backward()

        return model, x, step

    plain = FakeTensorMode()
    with plain:
        bare_model, _, bare_step = a_step()

    def bare() -> None:
        with plain:
            bare_step()

    with simulated():
        model, x, step = a_step()
    runs = {"bare": bare, "measured": lambda: measure(step, model, inputs=x)}
    if layers <= 20:  # beyond, it takes minutes

        def in_tracker() -> None:
            with plain:
                tracked(bare_model, bare_step)

        runs["MemTracker"] = in_tracker
    seconds = medians(runs, repeats=3)
    goal = f"{seconds['measured'] / layers * 1e3:.1f} ms per layer"
    report(row(f"simulated, {layers} layers, d 256", seconds, goal + ", goal 1.5x"))
