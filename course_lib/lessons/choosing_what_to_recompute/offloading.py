"""Moving against recomputing: what a block keeps, what it costs to make again, and who is faster.

A block keeps A bytes, and it takes F operations to make them again. Moved to the host and back,
they take 2·A/B seconds at a bandwidth of B bytes per second; made again, F/S at a speed of S
operations per second. Both are equal at B* = 2·A·S/F. Nothing here overlaps with computing: what
the copies hide behind other work is saved on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import nn

from ...figures.palette import COLOURS, FAINT
from ...figures.panel import legend, titled_panel
from ...figures.words import in_language, size_text
from ...language import text
from ...memory.measurement import measure
from ...memory.simulation import simulated
from ...memory.trace import Role
from ...notebook.explorers import Control, Explorer, progress

BANDWIDTHS = (4, 8, 16, 32, 64, 128, 256, 512)  # GB/s, each direction
SPEEDS = (25, 50, 100, 200, 400, 800)  # TFLOP/s
HEAD = 64  # numbers per head


@dataclass(frozen=True)
class Block:
    """One block of this width: bytes that it keeps for backward, FLOPs of its forward pass."""

    width: int
    kept: int
    flops: int

    def moving(self, bandwidth: float) -> float:
        """Seconds to move what it keeps to the host and back, at so many bytes per second."""
        return 2 * self.kept / bandwidth

    def recomputing(self, speed: float) -> float:
        """Seconds to make it again, at so many operations per second."""
        return self.flops / speed

    def break_even(self, speed: float) -> float:
        """Bytes per second at which both take the same time; moving wins above."""
        return 2 * self.kept * speed / self.flops


def measure_block(width: int, tokens: int = 4096) -> Block:
    """A Transformer block in bfloat16, one sequence of ``tokens``, measured with simulated tensors.

    Attention is fused and without dropout. Raises ``ValueError`` if ``width`` is no multiple of 64.
    """
    if width % HEAD:
        raise ValueError(
            text(
                zh=f"width 要是 {HEAD} 的倍数，不能是 {width}。",
                en=f"width must be a multiple of {HEAD}, not {width}.",
            )
        )
    with simulated():
        block = nn.TransformerEncoderLayer(
            width,
            width // HEAD,
            4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
            dtype=torch.bfloat16,
        )
        x = torch.randn(1, tokens, width, dtype=torch.bfloat16, requires_grad=True)
        whole = measure(lambda: block(x).sum().backward(), block, inputs=x)
        with torch.no_grad():
            forward = measure(lambda: block(x), block, inputs=x)
    return Block(width, whole.kept_for_backward(), forward.flops)


def measure_blocks(
    widths: Sequence[int] = (128, 256, 512, 1024, 2048, 4096, 8192), tokens: int = 4096
) -> list[Block]:
    """:func:`measure_block` of each width."""
    return [
        measure_block(width, tokens)
        for width in progress(widths, zh="逐个宽度量一块", en="Measuring a block of each width")
    ]


def break_even_explorer(blocks: Sequence[Block]) -> Explorer:
    """Sliders over bandwidth and speed; seconds against width, moving and recomputing as curves."""
    bandwidth = Control(
        "bandwidth",
        "设备与主机之间的带宽",
        "bandwidth to the host",
        BANDWIDTHS,
        64,
        "{} GB/s".format,
    )
    speed = Control(
        "speed", "设备的运算速度", "speed of the device", SPEEDS, 200, "{} TFLOP/s".format
    )
    return Explorer(
        [bandwidth, speed],
        lambda bandwidth, speed: (tuple(blocks), bandwidth, speed),
        _draw,
        _say,
        size=(8.2, 4.4),
    )


def quicker_to_move(blocks: Sequence[Block], bandwidth: float, speed: float) -> list[Block]:
    """The blocks that are moved in less time than they are recomputed in."""
    return [one for one in blocks if one.moving(bandwidth) < one.recomputing(speed)]


Data = tuple[tuple[Block, ...], int, int]


def _seconds(data: Data) -> tuple[list[float], list[float]]:
    blocks, bandwidth, speed = data
    return (
        [one.moving(bandwidth * 1e9) for one in blocks],
        [one.recomputing(speed * 1e12) for one in blocks],
    )


def _draw(figure: Figure, data: Data) -> None:
    blocks, _, _ = data
    moving, again = _seconds(data)
    across = [math.log2(one.width) for one in blocks]
    # The same axis at every position: the slowest and the fastest that the sliders can reach.
    low = math.log10(blocks[0].recomputing(SPEEDS[-1] * 1e12)) - 0.2
    high = math.log10(blocks[-1].moving(BANDWIDTHS[0] * 1e9)) + 0.2
    names = [
        in_language(("搬出去再搬回来", "move away and back"), between=" "),
        in_language(("重计算", "recompute"), between=" "),
    ]
    panel = titled_panel(
        figure,
        _title(data),
        (across[0] - 0.2, across[-1] + 0.2),
        (low, high),
        left=0.85,
        names=names,
    )
    decades = range(math.ceil(low), math.floor(high) + 1)
    panel.y_ruler(
        decades,
        [_time_text(10.0**d) for d in decades],
        text(zh="每块的时间", en="time per block", between=" "),
    )
    panel.x_ruler(
        across,
        [f"{one.width:,}" for one in blocks],
        text(zh="块的宽度", en="width of the block", between=" "),
    )
    colours = (COLOURS[Role.OFFLOADED], COLOURS[Role.RECOMPUTED])
    for seconds, colour in zip((moving, again), colours, strict=True):
        panel.line(
            across, [math.log10(s) for s in seconds], colour, linewidth=2, marker="o", markersize=4
        )
    crossing = _crossing(across, moving, again)
    if crossing is not None:
        panel.line([crossing] * 2, panel.y, FAINT, 2.5, linewidth=1, linestyle=(0, (3, 3)))
    legend(panel, list(zip(names, colours, strict=True)))


def _crossing(
    across: Sequence[float], moving: Sequence[float], again: Sequence[float]
) -> float | None:
    """Where the curves cross, on the axis of log widths; None if they do not."""
    apart = [math.log(m / a) for m, a in zip(moving, again, strict=True)]
    for i in range(len(apart) - 1):
        if apart[i] > 0 >= apart[i + 1]:
            share = apart[i] / (apart[i] - apart[i + 1])
            return across[i] + share * (across[i + 1] - across[i])
    return None


def _title(data: Data) -> tuple[str, str]:
    blocks, bandwidth, speed = data
    faster = quicker_to_move(blocks, bandwidth * 1e9, speed * 1e12)
    if not faster:
        return (
            "这样的带宽下，哪种宽度都是重计算快",
            "At this bandwidth recomputing is faster at every width",
        )
    if len(faster) == len(blocks):
        return (
            "这样的带宽下，哪种宽度都是搬走快",
            "At this bandwidth moving is faster at every width",
        )
    return (
        f"宽度 {faster[0].width:,} 起，搬走比重计算快",
        f"From width {faster[0].width:,} on, moving is faster than recomputing",
    )


def _say(data: Data) -> tuple[str, str]:
    blocks, bandwidth, speed = data
    middle = blocks[len(blocks) // 2]
    even = middle.break_even(speed * 1e12) / 1e9
    times = _time_text(middle.moving(bandwidth * 1e9)), _time_text(middle.recomputing(speed * 1e12))
    return (
        f"{bandwidth} GB/s，{speed} TFLOP/s：宽度 {middle.width:,} 的一块保存 "
        f"{size_text(middle.kept)}，搬走再搬回来要 {times[0]}，重计算要 {times[1]}；"
        f"两者相等的带宽是 {even:,.0f} GB/s。",
        f"{bandwidth} GB/s, {speed} TFLOP/s: a block of width {middle.width:,} keeps "
        f"{size_text(middle.kept)}; moved away and back it takes {times[0]}, recomputed "
        f"{times[1]}; the two are equal at {even:,.0f} GB/s.",
    )


def _time_text(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
