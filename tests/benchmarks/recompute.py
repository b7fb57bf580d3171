"""The last stage of lesson 02 beside PyTorch's own checkpoint: same bytes, and about the same time.

Collected only when named: ``python course.py test tests/benchmarks/recompute.py``. Bytes are
compared exactly; the ratio of times is printed, for one run on one machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from course_lib import recompute
from course_lib.memory import measure
from course_lib.models import Sizes, Transformer, random_tokens

pytestmark = pytest.mark.benchmark

OURS = recompute.checkpoint
THEIRS = partial(torch_checkpoint, use_reentrant=False)
MODELS = {
    "dropout": Sizes(depth=8, width=256, sequence=128, batch=8, dropout=0.1),
    "no dropout": Sizes(depth=8, width=256, sequence=128, batch=8),
    "small": Sizes(depth=8, width=64, sequence=32, batch=4, dropout=0.1),
}
ROUNDS = 15


def stepper(sizes: Sizes) -> tuple[Transformer, Callable[[Callable[..., Any]], None]]:
    """A Transformer and its training step with a given checkpoint around each block."""
    torch.manual_seed(0)
    model, tokens = Transformer(sizes), random_tokens(sizes)

    def step(checkpoint: Callable[..., Any]) -> None:
        model.run_blocks = lambda x: recompute.chain(model.blocks, sizes.depth, x, checkpoint)
        model.zero_grad()
        model.loss(tokens).backward()

    return model, step


@pytest.mark.parametrize("name", MODELS)
def test_same_bytes(name):
    model, step = stepper(MODELS[name])
    traces = []
    for checkpoint in (OURS, THEIRS):
        step(checkpoint)  # what is imported on first use is not measured
        model.zero_grad()
        traces.append(measure(partial(step, checkpoint), model))
    ours, theirs = traces
    assert ours.peak == theirs.peak
    assert ours.at_peak == theirs.at_peak
    assert ours.kept == theirs.kept
    assert ours.flops == theirs.flops


@pytest.mark.parametrize("name", MODELS)
def test_time(name, report):
    _, step = stepper(MODELS[name])
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "plain": []}
    ways = {"ours": OURS, "theirs": THEIRS, "plain": lambda function, *inputs: function(*inputs)}
    for turn in range(ROUNDS + 1):
        for way, checkpoint in ways.items():
            begin = time.perf_counter()
            step(checkpoint)
            if turn:  # the first turn warms up
                seconds[way].append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    plain, theirs = (statistics.median(seconds[way]) for way in ("plain", "theirs"))
    report(
        f"{name}: ours / torch's {middle:.2f} (middle half of {ROUNDS} rounds {low:.2f}–{high:.2f},"
        f" goal 0.8–1.2); torch's {theirs * 1e3:.1f} ms, without checkpoints {plain * 1e3:.1f} ms"
    )
