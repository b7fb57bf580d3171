"""What a training step of a Transformer is made of, for any batch size, exactly.

Sizes of tensors grow in proportion to the batch, and the order of allocations does not depend on
it once it is above 1. So two simulated steps, with batches of 2 and 3, give every allocation of
every larger batch; a batch of 1, where some copies fall away, is simulated by itself. The
optimizer's part is the same for all of them and simulated once. A test compares the result with
direct measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...figures.bars import draw_bars
from ...figures.curves import Curve, draw_curves
from ...figures.palette import COLOURS
from ...figures.words import PHASE_IN_A_SENTENCE, size_text
from ...memory.measurement import measure
from ...memory.simulation import simulated
from ...memory.trace import Event, MemoryTrace, Phase, Role
from ...models import Sizes, Transformer, random_tokens, step_without_passes
from ...notebook.explorers import Control, Explorer, progress


@dataclass(frozen=True)
class Breakdown:
    """The peak of one training step and the end of its forward pass, bytes by role."""

    sizes: Sizes
    peak: int
    at_peak: dict[Role, int]
    peak_phase: Phase
    kept: dict[Role, int]

    @property
    def share(self) -> float:
        """Activations' part of the peak, 0 to 1."""
        return self.at_peak[Role.ACTIVATION] / self.peak


def simulate(sizes: Sizes, batches: Iterable[int]) -> list[MemoryTrace]:
    """One simulated training step for each batch size."""
    with simulated():
        return list(_steps(sizes, batches))


def measure_batches(sizes: Sizes, batches: Sequence[int]) -> dict[int, MemoryTrace]:
    """One real training step for each batch size, behind a progress bar."""
    bar = progress(batches, zh="逐个测量批大小", en="Measuring each batch size")
    return dict(zip(bar, _steps(sizes, batches), strict=True))


def _steps(sizes: Sizes, batches: Iterable[int]) -> Iterator[MemoryTrace]:
    model, optimizer = _after_a_step(sizes)

    def step(tokens: Tensor) -> None:
        _both_passes(model, tokens)
        optimizer.step()

    for batch in batches:
        tokens = random_tokens(replace(sizes, batch=batch))
        yield measure(partial(step, tokens), model, optimizer, tokens)


def _after_a_step(sizes: Sizes) -> tuple[Transformer, torch.optim.AdamW]:
    """A model that has gradients, and AdamW with its moments."""
    model = Transformer(sizes)
    optimizer = torch.optim.AdamW(model.parameters())
    step_without_passes(model, optimizer)
    return model, optimizer


def _both_passes(model: Transformer, tokens: Tensor) -> None:
    model.zero_grad()
    model.loss(tokens).backward()


class Family:
    """One Transformer with every batch size."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        with simulated():
            model, optimizer = _after_a_step(sizes)
            tokens = [random_tokens(replace(sizes, batch=batch)) for batch in (1, 2, 3)]
            self._one, self._two, three = (
                measure(partial(_both_passes, model, t), model, optimizer, t) for t in tokens
            )
            self._update = measure(optimizer.step, model, optimizer)
        if [e.role for e in self._two.events] != [e.role for e in three.events]:
            raise RuntimeError("batches of 2 and 3 do not allocate alike")
        self._growth = _sizes(three) - _sizes(self._two)
        self._growth_before = {r: three.before[r] - size for r, size in self._two.before.items()}

    def at(self, batch: int) -> Breakdown:
        """The step with this batch size. Raises ``ValueError`` below 1."""
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        passes, more = (self._one, 0) if batch == 1 else (self._two, batch - 2)
        before = {role: s + more * self._growth_before[role] for role, s in passes.before.items()}
        changes = _sizes(passes)
        if more:
            changes = changes + more * self._growth
        events = passes.events + self._update.events
        changes = np.concatenate([changes, _sizes(self._update)])
        totals = sum(before.values()) + np.cumsum(changes)
        peak = int(totals.argmax())
        by_role = partial(_by_role, before, events, changes)
        forward_end = next(i for i, event in enumerate(events) if event.phase == "backward")
        return Breakdown(
            replace(self.sizes, batch=batch),
            int(totals[peak]),
            by_role(peak + 1),
            events[peak].phase,
            by_role(forward_end),
        )


def _by_role(
    before: dict[Role, int], events: Sequence[Event], changes: np.ndarray, count: int
) -> dict[Role, int]:
    """What is alive after the first ``count`` events."""
    sums = dict(before)
    for event, change in zip(events[:count], changes[:count].tolist(), strict=True):
        sums[event.role] += change
    return sums


def _sizes(trace: MemoryTrace) -> np.ndarray:
    return np.array([event.size for event in trace.events], dtype=np.int64)


def families(
    sequences: Iterable[int], depths: Iterable[int], widths: Iterable[int]
) -> dict[tuple[int, int, int], Family]:
    """A :class:`Family` for each (sequence, depth, width), simulated behind a progress bar."""
    depths, widths = list(depths), list(widths)
    wanted = [(s, d, w) for s in sequences for d in depths for w in widths]
    return {
        (sequence, depth, width): Family(Sizes(sequence=sequence, depth=depth, width=width))
        for sequence, depth, width in progress(
            wanted, zh="逐个模拟尺寸组合", en="Simulating every combination of sizes"
        )
    }


# --- explorers ----------------------------------------------------------------------------------

BATCHES = (1, 2, 4, 8, 16, 32, 64)
Grid = dict[tuple[int, int, int], Family]


@dataclass(frozen=True)
class SizesFrame:
    """What the explorer of four sizes shows. ``block``: bytes that one more block keeps, as
    measured; ``formula``: as counted operator by operator; both None where depth cannot vary.
    ``start``: what the sliders begin with."""

    breakdown: Breakdown
    block: int | None
    formula: int
    start: Breakdown

    @property
    def limit(self) -> int:
        """Bytes at the end of the axis. It jumps by 8 and stays still in between, so that a step of
        1.5 MiB does not look like one of 170."""
        limit = self.start.peak
        while limit < self.breakdown.peak:
            limit *= 8
        return limit


def block_formula(sizes: Sizes) -> int:
    """Bytes that a ``models.Block`` keeps in float32: s·b·h·(64 + 4·a·s/h) + 16·s·b + s²."""
    s, b, h, a = sizes.sequence, sizes.batch, sizes.width, sizes.heads
    return 64 * s * b * h + 4 * a * s * s * b + 16 * s * b + s * s


def sizes_explorer(grid: Grid) -> Explorer:
    """Sliders for batch, sequence, depth and width: bytes by role, and where the peak falls."""
    sequences, depths, widths = (tuple(sorted(set(values))) for values in zip(*grid, strict=True))

    def kept(batch: int, sequence: int, depth: int, width: int) -> int:
        return grid[sequence, depth, width].at(batch).kept[Role.ACTIVATION]

    def frame(batch: int, sequence: int, depth: int, width: int) -> SizesFrame:
        found = grid[sequence, depth, width].at(batch)
        block = None
        if len(depths) > 1:
            few, more = depths[:2]
            grown = kept(batch, sequence, more, width) - kept(batch, sequence, few, width)
            block = grown // (more - few)
        return SizesFrame(found, block, block_formula(found.sizes), start)

    controls = [
        Control("batch", "批大小 b", "batch size b", BATCHES, 8),
        Control("sequence", "序列长度 s", "sequence length s", sequences, sequences[0]),
        Control("depth", "深度（块数）", "depth (blocks)", depths, depths[-1]),
        Control("width", "宽度 h", "width h", widths, widths[len(widths) // 2]),
    ]
    batch, *others = (control.start for control in controls)
    start = grid[tuple(others)].at(batch)
    return Explorer(controls, frame, _draw_sizes, _sizes_caption, size=(8.2, 3.4))


def _draw_sizes(figure: Figure, data: SizesFrame) -> None:
    found = data.breakdown
    zh, en = PHASE_IN_A_SENTENCE[found.peak_phase]
    peak = size_text(found.peak)
    title = (
        f"峰值 {peak}，落在{zh}；激活值占 {found.share:.0%}",
        f"The peak, {peak}, falls in {en}; activations are {found.share:.0%} of it",
    )
    rows = [
        (("前向传播结束时", "end of forward"), found.kept),
        (("峰值时", "at the peak"), found.at_peak),
    ]
    framed = sum(data.start.kept.values()), data.start.peak
    draw_bars(figure, rows, title=title, limit=data.limit, outlines=framed)


def _sizes_caption(data: SizesFrame) -> tuple[str, str]:
    formula, start = f"{data.formula:,}", size_text(data.start.peak)
    frame = (
        f"虚线框：滑块一开始的位置，峰值 {start}。",
        f"Dashed: where the sliders began, with a peak of {start}.",
    )
    if data.block is None:
        return (
            f"每块保存的激活值，按公式是 {formula} 字节。{frame[0]}",
            f"Each block keeps {formula} bytes by the formula. {frame[1]}",
        )
    measured = f"{data.block:,}"
    return (
        f"每块保存的激活值：公式 {formula} 字节，实测 {measured} 字节。{frame[0]}",
        f"Each block keeps {formula} bytes by the formula, {measured} bytes measured. {frame[1]}",
    )


def share_explorer(traces: dict[int, MemoryTrace]) -> Explorer:
    """A slider over measured batch sizes: activations' share of the peak."""
    batches = tuple(traces)
    shares = [100 * trace.at_peak[Role.ACTIVATION] / trace.peak for trace in traces.values()]

    def frame(batch: int) -> tuple[int, float, MemoryTrace]:
        place = batches.index(batch)
        return place, shares[place], traces[batch]

    def draw(figure: Figure, data: tuple[int, float, MemoryTrace]) -> None:
        place, share, trace = data
        zh, en = PHASE_IN_A_SENTENCE[trace.peak_phase]
        title = (
            f"批大小 {batches[place]}：激活值占峰值的 {share:.0f}%，峰值落在{zh}",
            f"Batch size {batches[place]}: activations are {share:.0f}% of the peak, "
            f"which falls in {en}",
        )
        curve = Curve(("激活值", "activations"), shares, COLOURS[Role.ACTIVATION])
        draw_curves(
            figure,
            batches,
            [curve],
            mark=place,
            title=title,
            limit=100,
            log_x=True,
            x_name=("批大小", "batch size"),
            y_name=("占峰值的 %", "% of the peak"),
            show=lambda value: f"{value:.0f}%",
        )

    def caption(data: tuple[int, float, MemoryTrace]) -> tuple[str, str]:
        place, _, trace = data
        activations = size_text(trace.at_peak[Role.ACTIVATION])
        peak = size_text(trace.peak)
        return (
            f"批大小 {batches[place]}：峰值 {peak}，其中激活值 {activations}",
            f"batch size {batches[place]}: peak {peak}, of which activations {activations}",
        )

    return Explorer(
        [Control("batch", "批大小", "batch size", batches, batches[0])],
        frame,
        draw,
        caption,
        size=(8.2, 3.4),
    )
