"""A library's own switch beside ours: the same bytes, the same operations, the same gradients?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ...figures.words import size_text, yes_or_no
from ...gradients import same_gradients
from ...language import Table
from ...memory.measurement import measure

Words = str | tuple[str, str]


def compare_switches(
    build: Callable[[], nn.Module],
    step: Callable[[nn.Module], Any],
    ways: Mapping[Words, Callable[[nn.Module], Any]],
    inputs: Any = (),
) -> Table:
    """Measure ``step(model)`` on a model of its own for each way of switching checkpoints on.

    ``build()`` makes the model, the same each time; ``ways``: by name, what is done to it, the
    plain model first, whose gradients all others are compared with bit by bit. A first step runs
    before each measurement, so that gradients exist.
    """
    plain = None
    rows: list[list[Any]] = []
    for name, switch_on in ways.items():
        model = build()
        switch_on(model)
        step(model)
        trace = measure(lambda model=model: step(model), model, inputs=inputs)  # type: ignore[misc]
        if plain is None:
            plain, same = (model, trace), ("—", "—")
        else:
            same = yes_or_no(bool(_same(step, plain[0], model)))
        more = trace.flops / plain[1].flops - 1
        rows.append([name, f"{trace.peak:,}", size_text(trace.peak), f"{more:+.1%}", same])
    return Table(
        [
            ("怎样打开", "how"),
            ("峰值（字节）", "peak (bytes)"),
            ("峰值", "peak"),
            ("多做的 FLOPs", "FLOPs added"),
            ("梯度逐位相同", "same gradients"),
        ],
        rows,
    )


def _same(step: Callable[[nn.Module], Any], plain: nn.Module, other: nn.Module) -> Any:
    return same_gradients(lambda: step(plain), lambda: step(other), model=(plain, other))
