"""Simulated training steps of many layers: bare, measured, and in ``MemTracker``."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from page import named, table
from subjects import encoder, training
from timing import in_turns, with_spread
from torch._subclasses.fake_tensor import FakeTensorMode
from trackers import Tracker

from course_lib.memory import measure, simulated
from support.independent import Step

TURNS = {10: 5, 20: 5, 50: 3, 100: 3, 200: 3}
TRACKED = 50  # more layers than this take MemTracker minutes
HEADING = ("模拟张量上的深模型", "Deep models of simulated tensors")


def a_step(layers: int) -> Step:
    return training(encoder(layers, 256), torch.randn(8, 128, 256))


def section() -> Iterator[str]:
    yield named(
        "编码器，d 256，8 × 128；前向与反向各一次。处理器时间，各轮的中位数（最小–最大）；"
        f"`MemTracker` 每处一次，超过 {TRACKED} 层要几分钟，没有跑。",
        "Encoder, d 256, 8 × 128; one forward and backward pass. Processor time, median of the "
        f"turns (least–greatest); `MemTracker` once each; beyond {TRACKED} layers it takes "
        "minutes and was not run.",
        between="\n\n",
    )
    heads = [
        named("层", "layers"), named("轮", "turns"), named("原样，秒", "bare, s"),
        named("`measure`，秒", "`measure`, s"), named("倍数", "multiple"),
        named("每层毫秒", "ms per layer"), "`MemTracker`, s", named("倍数", "multiple"),
    ]  # fmt: skip
    yield table(heads, [_row(layers, turns) for layers, turns in TURNS.items()])


def _row(layers: int, turns: int) -> list[str]:
    mode = FakeTensorMode()
    with mode:
        plain = a_step(layers)
    with simulated():
        step = a_step(layers)

    def bare() -> None:
        with mode:
            plain.run()

    times = in_turns(
        {"bare": bare, "measured": lambda: measure(step.run, step.model, inputs=step.inputs)}, turns
    )
    tracked = ["—", "—"]
    if layers <= TRACKED:
        begin = time.process_time()
        with mode:
            Tracker().ask(a_step(layers))
        seconds = time.process_time() - begin
        tracked = [f"{seconds:.2f}", f"{seconds / times['bare'].median:.1f}"]
    return [
        str(layers), str(turns), *(with_spread(times[way].seconds, ".2f") for way in times),
        times["measured"].over(times["bare"]),
        f"{times['measured'].median / layers * 1e3:.1f}", *tracked,
    ]  # fmt: skip
