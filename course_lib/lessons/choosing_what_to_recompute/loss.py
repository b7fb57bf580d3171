"""The loss: gradients compared in numbers, and the peak by role for each number of chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...figures.bars import draw_bars
from ...figures.words import size_text
from ...memory.trace import MemoryTrace
from ...notebook.explorers import Control, Explorer, progress


@dataclass(frozen=True)
class Chunks:
    """A step measured with its loss in one piece, and with the loss in so many chunks."""

    whole: MemoryTrace
    by_number: dict[int, MemoryTrace]


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[str, str]:
    """How many pairs of tensors are equal bit for bit, ``3 / 4``, and how far all are apart.

    That is the norm of the difference over that of ``other``, rounded up to a power of ten, because
    its digits depend on the machine; ``0`` where nothing differs.
    """
    pairs = list(zip(one, other, strict=True))
    equal = sum(torch.equal(a, b) for a, b in pairs)
    apart = sum(float((a - b).double().square().sum()) for a, b in pairs) ** 0.5
    if apart == 0:
        return f"{equal} / {len(pairs)}", "0"
    share = apart / sum(float(b.double().square().sum()) for _, b in pairs) ** 0.5
    return f"{equal} / {len(pairs)}", f"< 1e{math.ceil(math.log10(share))}"


def sweep_chunks(ask: Callable[[int], MemoryTrace], numbers: Sequence[int]) -> Chunks:
    """``ask(chunks)`` measures the step; 0 means the loss in one piece, without a checkpoint."""
    found = {
        number: ask(number)
        for number in progress(
            [0, *numbers], zh="逐个块数量一步", en="Measuring each number of chunks"
        )
    }
    return Chunks(found.pop(0), found)


def chunks_explorer(sweep: Chunks) -> Explorer:
    """A slider over the number of chunks; the peak by role beside that of the whole loss."""
    numbers = tuple(sweep.by_number)
    control = Control("chunks", "损失分几块", "chunks of the loss", numbers, numbers[0])
    return Explorer([control], lambda chunks: (sweep, chunks), _draw, _say, size=(8.2, 3.0))


def _draw(figure: Figure, data: tuple[Chunks, int]) -> None:
    sweep, number = data
    here = sweep.by_number[number]
    share = here.peak / sweep.whole.peak - 1
    draw_bars(
        figure,
        [
            (("不分块", "in one piece"), sweep.whole),
            ((f"{number} 块", _chunks(number)), here),
        ],
        title=_title(number, share),
        limit=max(trace.peak for trace in (sweep.whole, *sweep.by_number.values())),
    )


def _title(number: int, share: float) -> tuple[str, str]:
    if share > -0.005:
        return f"分 {number} 块，什么也没省", f"{_chunks(number)}: nothing is saved"
    return (
        f"分 {number} 块，峰值降 {-share:.0%}",
        f"{_chunks(number)}: the peak falls by {-share:.0%}",
    )


def _chunks(number: int) -> str:
    return f"{number} chunk" + "s" * (number > 1)


def _say(data: tuple[Chunks, int]) -> tuple[str, str]:
    sweep, number = data
    here = sweep.by_number[number]
    role = max(here.at_peak, key=lambda role: here.at_peak[role])
    zh, en = role.names
    more = here.flops / sweep.whole.flops - 1
    return (
        f"分 {number} 块：峰值 {size_text(here.peak)}，里面最大的是{zh}，"
        f"{size_text(here.at_peak[role])}；FLOPs {more:+.1%}。",
        f"{_chunks(number)}: peak {size_text(here.peak)}, the largest part being {en}, "
        f"{size_text(here.at_peak[role])}; FLOPs {more:+.1%}.",
    )
