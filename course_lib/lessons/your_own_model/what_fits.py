"""What fits on which card: batch and sequence length against the peak of each option.

Each size is watched once under simulated tensors; the peaks of the options are played from it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ...figures.palette import CURVE_COLOURS, FAINT
from ...figures.panel import Panel, legend, titled_panel
from ...figures.picture import is_narrow
from ...figures.words import in_language, size_text
from ...language import text
from ...notebook.explorers import Control, Explorer, progress
from ...plans.advice import Advice, Option

GIB = 2**30
CARDS = (8, 16, 24, 40, 80)  # GiB, as cards are sold
SHOWN = ("none", "all", "loss", "loss + all")  # keys of the options, in the order of the legend


@dataclass(frozen=True)
class Sizes:
    """The options of one step at each ``(batch, sequence)``, by key."""

    found: Mapping[tuple[int, int], Mapping[str, Option]]

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(sorted({batch for batch, _ in self.found}))

    @property
    def sequences(self) -> tuple[int, ...]:
        return tuple(sorted({sequence for _, sequence in self.found}))

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of ``SHOWN`` that occur."""
        return tuple(key for key in SHOWN if any(key in options for options in self.found.values()))

    def peak(self, key: str, batch: int, sequence: int) -> int | None:
        """Bytes; None where there is no such option."""
        option = self.found[batch, sequence].get(key)
        return option.peak if option is not None else None

    def largest_batch(self, key: str, sequence: int, card: int) -> int | None:
        """The largest batch whose peak is at most ``card`` GiB; None if not even the smallest."""
        fitting = [
            batch
            for batch in self.batches
            if (peak := self.peak(key, batch, sequence)) is not None and peak <= card * GIB
        ]
        return max(fitting, default=None)


def sweep_sizes(
    ask: Callable[[int, int], Advice], batches: Sequence[int], sequences: Sequence[int]
) -> Sizes:
    """``ask(batch, sequence)`` gives the advice on a step of that size; each is asked once."""
    sizes = list(itertools.product(batches, sequences))
    return Sizes(
        {
            size: {option.key: option for option in ask(*size).options}
            for size in progress(
                sizes, zh="逐个看各种大小的一步", en="Watching a step of each size"
            )
        }
    )


def fits_explorer(sizes: Sizes) -> Explorer:
    """Sliders over batch and sequence length; cards are lines across."""
    batches = Control("batch", "批大小", "batch size", sizes.batches, sizes.batches[0])
    lengths = sizes.sequences
    sequences = Control(
        "sequence", "序列长度", "sequence length", lengths, lengths[0], lambda n: f"{n:,}"
    )
    return Explorer(
        [batches, sequences],
        lambda batch, sequence: (sizes, batch, sequence),
        _draw,
        _say,
        size=(8.2, 4.6),
    )


def smallest_card(peak: int) -> int | None:
    """GiB of the smallest card that holds ``peak`` bytes; None if none does."""
    return next((card for card in CARDS if peak <= card * GIB), None)


def _draw(figure: Figure, data: tuple[Sizes, int, int]) -> None:
    sizes, batch, sequence = data
    peaks = {key: [sizes.peak(key, b, sequence) for b in sizes.batches] for key in sizes.keys}
    every = [
        peak
        for (b, s), options in sizes.found.items()
        for key in sizes.keys
        if (peak := sizes.peak(key, b, s)) is not None
    ]
    low = math.log2(min([*every, CARDS[0] * GIB])) - 0.25
    high = math.log2(max([*every, CARDS[-1] * GIB])) + 0.25
    names = [in_language(_NAMES[key], between=" ") for key in sizes.keys]
    across = [math.log2(b) for b in sizes.batches]
    edge = 0.12 * (across[-1] - across[0] or 1)
    at = sizes.batches.index(batch)
    told = [
        f"{name}\n{size_text(peak) if (peak := peaks[key][at]) else '—'}"
        for name, key in zip(names, sizes.keys, strict=True)
    ]
    panel = titled_panel(
        figure,
        _title(sizes, batch, sequence),
        (across[0] - edge, across[-1] + edge),
        (low, high),
        left=0.8,
        names=[*told, " " * 16] if not is_narrow(figure) else [t.replace("\n", "  ") for t in told],
    )
    _draw_cards(panel)
    panel.x_ruler(
        across,
        [f"{b:,}" for b in sizes.batches],
        text(
            zh=f"批大小（序列长度 {sequence:,}）",
            en=f"batch size (sequences of {sequence:,})",
            between="\n",
        ),
    )
    colours = CURVE_COLOURS[: len(names)]
    panel.line([across[at]] * 2, panel.y, FAINT, 2.5, linewidth=1, linestyle=(0, (3, 3)))
    for colour, key in zip(colours, sizes.keys, strict=True):
        there = [(x, math.log2(peak)) for x, peak in zip(across, peaks[key], strict=True) if peak]
        panel.line(
            [x for x, _ in there],
            [y for _, y in there],
            colour,
            linewidth=2,
            marker="o",
            markersize=3.5,
        )
        peak = peaks[key][at]
        if peak is not None:
            panel.line(
                [across[at]],
                [math.log2(peak)],
                colour,
                5,
                marker="o",
                markersize=8,
                markeredgecolor="white",
            )
    legend(panel, list(zip(told, colours, strict=True)), 0.52)


def _draw_cards(panel: Panel) -> None:
    """A dashed line per card, its size at the left; the axis is logarithmic."""
    levels = [math.log2(card * GIB) for card in CARDS]
    panel.y_ruler(
        levels,
        [f"{card}" for card in CARDS],
        text(zh="峰值，横线是显卡（GiB）", en="peak; lines are cards (GiB)", between=" "),
    )
    for level in levels:
        panel.line(panel.x, [level] * 2, FAINT, 2, linewidth=1, linestyle=(0, (4, 3)))


_NAMES = {
    "none": ("不用检查点", "no checkpoints"),
    "all": ("每块一个", "every block"),
    "loss": ("损失分块", "loss in chunks"),
    "loss + all": ("两样都做", "both"),
}


def _title(sizes: Sizes, batch: int, sequence: int) -> tuple[str, str]:
    peaks = [peak for key in sizes.keys if (peak := sizes.peak(key, batch, sequence)) is not None]
    plain, least = peaks[0], min(peaks)
    return (
        f"{batch} × {sequence:,}：不用检查点，{_on_card(plain)[0]}；"
        f"最省的做法，{_on_card(least)[0]}",
        f"{batch} × {sequence:,}: without checkpoints it {_on_card(plain)[1]}, the leanest option "
        f"{_on_card(least)[1]}",
    )


def _on_card(peak: int) -> tuple[str, str]:
    card = smallest_card(peak)
    if card is None:
        return f"{CARDS[-1]} GiB 也放不下", f"does not fit {CARDS[-1]} GiB"
    return f"放得进 {card} GiB", f"fits {card} GiB"


def _say(data: tuple[Sizes, int, int]) -> tuple[str, str]:
    sizes, batch, sequence = data
    zh, en = [], []
    for key in sizes.keys:
        peak = sizes.peak(key, batch, sequence)
        if peak is None:
            continue
        more = sizes.found[batch, sequence][key].flops / sizes.found[batch, sequence]["none"].flops
        name, card = _NAMES[key], _on_card(peak)
        zh.append(f"{name[0]} {size_text(peak)}（{card[0]}，FLOPs {more - 1:+.1%}）")
        en.append(f"{name[1]} {size_text(peak)} ({card[1]}, FLOPs {more - 1:+.1%})")
    return (
        f"批大小 {batch}，序列长度 {sequence:,}：" + "；".join(zh),
        f"batch {batch}, sequences of {sequence:,}: " + "; ".join(en),
    )
