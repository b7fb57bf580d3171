"""One Transformer block, and every tensor that it keeps as a box whose area is its bytes.

The boxes are what ``saved_tensors`` finds in a ``PaperBlock``, simulated: same bytes, no waiting.
A test compares them with those of a real block at every position.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch.utils.checkpoint import checkpoint

from ...figures.palette import COLOURS, FAINT, INK
from ...figures.panel import Panel, title_above, width_of_words, write
from ...figures.picture import is_narrow, touchable
from ...figures.words import in_language, size_text
from ...language import Table, text
from ...memory.simulation import simulated
from ...memory.trace import Role
from ...models import PaperBlock, Sizes
from ...notebook.explorers import Control, Explorer, progress
from ...saved import saved_tensors
from .kept_boxes import CHECKPOINTED, KEPT, ROWS, keys_in_order

SEQUENCES, WIDTHS, HEADS, BATCH = (128, 512), (256, 512), (4, 8), 1


@dataclass(frozen=True)
class Way:
    """How the block is run: four switches, each of which makes boxes vanish or shrink."""

    checkpoint: bool = False
    fused_attention: bool = False
    fused_dropout: bool = False
    bf16: bool = False


@dataclass(frozen=True)
class Box:
    """One saved tensor. ``key``: which of ``kept_boxes.KEPT``; ``size``: bytes."""

    key: str
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class BlockKept:
    """What a block keeps at one position. ``most``: the same sizes with no switch on."""

    sizes: Sizes
    way: Way
    boxes: tuple[Box, ...]
    most: tuple[Box, ...] = ()

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(box.size for box in self.boxes)

    @property
    def in_sbh(self) -> float:
        """The total in units of s·b·h bytes, as the formula counts."""
        return self.total / (self.sizes.sequence * self.sizes.batch * self.sizes.width)


def block_kept(sizes: Sizes, way: Way) -> tuple[Box, ...]:
    """What one ``PaperBlock`` keeps, its own input among it, in the order in which it is saved.

    Runs real unless under ``simulated()``. Raises ``ValueError`` if this PyTorch saves other
    tensors than those that are known by name.
    """
    block = PaperBlock(sizes, fused_dropout=way.fused_dropout, fused_attention=way.fused_attention)
    dtype = torch.bfloat16 if way.bf16 else torch.float32
    shape = sizes.sequence, sizes.batch, sizes.width
    x = torch.empty(shape, dtype=dtype, requires_grad=True)
    block = block.to(dtype)
    if way.checkpoint:
        found = saved_tensors(lambda x: checkpoint(block, x, use_reentrant=False), x)
    else:
        found = saved_tensors(block, x)
    kept = [one for one in found if one.role not in (Role.PARAMETER, Role.BUFFER)]
    keys = CHECKPOINTED if way.checkpoint else keys_in_order(way.fused_attention)
    return tuple(
        Box(key, one.size, one.shape, one.dtype) for key, one in zip(keys, kept, strict=True)
    )


Blocks = Mapping[tuple[int, int, int, Way], tuple[Box, ...]]


def measure_blocks(
    sequences: Sequence[int] = SEQUENCES,
    widths: Sequence[int] = WIDTHS,
    heads: Sequence[int] = HEADS,
) -> Blocks:
    """What the block keeps at every size and with every switch, behind a progress bar."""
    places = list(itertools.product(sequences, widths, heads))
    found: dict[tuple[int, int, int, Way], tuple[Box, ...]] = {}
    for place in progress(places, zh="逐个量一个块保存什么", en="What one block keeps"):
        with simulated():
            for bf16 in (False, True):
                # A checkpoint keeps its input, whatever is inside.
                only = block_kept(_sizes(*place), Way(checkpoint=True, bf16=bf16))
                for attention, dropout in itertools.product((False, True), repeat=2):
                    way = Way(False, attention, dropout, bf16)
                    found[*place, way] = block_kept(_sizes(*place), way)
                    found[*place, Way(True, attention, dropout, bf16)] = only
    return found


def _sizes(sequence: int, width: int, heads: int) -> Sizes:
    return Sizes(sequence=sequence, batch=BATCH, width=width, heads=heads)


# --- the explorer -------------------------------------------------------------------------------


def block_explorer(blocks: Blocks) -> Explorer:
    """Switches and sliders over one block; touch a box to read who keeps it, and why."""
    lengths, widths, heads = (
        tuple(sorted(set(values))) for values in list(zip(*blocks, strict=True))[:3]
    )

    def frame(
        s: int = lengths[0], h: int = widths[0], a: int = heads[0], **switches: bool
    ) -> BlockKept:
        way = Way(**switches)
        return BlockKept(_sizes(s, h, a), way, blocks[s, h, a, way], blocks[s, h, a, Way()])

    controls = [
        Control("checkpoint", "检查点", "checkpoint", (False, True), False),
        Control("fused_attention", "融合注意力", "fused attention", (False, True), False),
        Control("fused_dropout", "融合 dropout", "fused dropout", (False, True), False),
        Control("bf16", "bf16", "bf16", (False, True), False),
        Control("s", "序列长度 s", "sequence length s", lengths, lengths[0]),
        Control("h", "宽度 h", "width h", widths, widths[0]),
        Control("a", "注意力头数 a", "attention heads a", heads, heads[0]),
    ]
    controls = [control for control in controls if len(control.values) > 1]
    return Explorer(controls, frame, draw_block, say_block, size=(8.2, 4.6))


LEFT, BETWEEN = 1.3, 0.05  # inches: for the names of the rows; from one row to the next


def draw_block(figure: Figure, data: BlockKept) -> None:
    """A row for each part of the block; a box's width times its row's height is its bytes.

    The scale is that of the same sizes with no switch on, so that switches shrink boxes.
    """
    width, narrow = figure.get_figwidth(), is_narrow(figure)
    zh, en = _said(data)
    top = title_above(figure, (zh, en))
    left, low = (0.98 if narrow else LEFT), 0.5
    across = width - left - 0.15
    heights, scale = _rows(data.most, top - low, across)
    there = {box.key for box in data.boxes}
    y = top
    for row, height in heights.items():
        y -= height
        write(figure, left - 0.08, y + height / 2, in_language(ROWS[row], between="\n"),
              ha="right", va="center", fontsize=8.5)  # fmt: skip
        panel = Panel(figure, (left, y, left + across, y + height), (0, across), (0, height))
        x = 0.0
        for box in (box for box in (data.most if data.way.checkpoint else data.boxes)
                    if KEPT[box.key].row == row):  # fmt: skip
            # What a checkpoint forgets leaves its outline.
            mine = next((b for b in data.boxes if b.key == box.key), box)
            wide = mine.size * scale / (height - BETWEEN)
            _draw_box(panel, mine, x, wide, data.way.checkpoint, forgotten=box.key not in there)
            x += wide
    _draw_legend(figure, data, scale, left)


def _rows(boxes: Sequence[Box], room: float, across: float) -> tuple[dict[str, float], float]:
    """How high each row is, inches, and how many square inches a byte takes.

    Rows share the room by their bytes, but none is too low for its name.
    """
    sums = {row: sum(b.size for b in boxes if KEPT[b.key].row == row) for row in ROWS}
    least, total = 0.36, sum(sums.values())
    free = room - least * len(sums)
    heights = {row: least + free * size / total for row, size in sums.items()}
    scale = min((high - BETWEEN) * across / sums[row] for row, high in heights.items())
    return heights, scale


def _draw_box(
    panel: Panel, box: Box, x: float, wide: float, checkpointed: bool, forgotten: bool
) -> None:
    high = panel.height - BETWEEN
    corners = [(x, 0.0), (x, high), (x + wide, high), (x + wide, 0.0)]
    if forgotten:
        panel.lines([[corners[i], corners[(i + 1) % 4]] for i in range(4)], FAINT, 0.6, 2)
    else:
        role = Role.CHECKPOINT if checkpointed else Role.ACTIVATION
        panel.areas([corners], [COLOURS[role]])
        panel.lines([corners[2:]], "white", min(1.2, wide * 20), 3)
    known = KEPT[box.key]
    name, size = in_language(known.name, between=" "), size_text(box.size)
    colour = FAINT if forgotten else "white" if checkpointed else INK
    # Phones enlarge what is written smaller than this.
    points = 9.4 if is_narrow(panel.figure) else 8.5
    for words in (f"{name}  {size}", name, size):
        if width_of_words(words, points) + 0.1 <= wide:
            panel.words(x + wide / 2, high / 2, words, ha="center", va="center",
                        fontsize=points, color=colour)  # fmt: skip
            break
    (left, bottom), (right, top) = panel.place(*corners[0]), panel.place(*corners[2])
    said = known.sentence(size, list(box.shape), forgotten)
    touchable(panel.figure, (left, bottom, right, top), said)


def _draw_legend(figure: Figure, data: BlockKept, scale: float, left: float) -> None:
    """How large a square of some bytes is."""
    unit = 2 ** max(10, int(0.05 / scale).bit_length())  # bytes: a square of some 0.2 inches
    side = (unit * scale) ** 0.5
    size = size_text(unit)
    words = text(zh=f"这么大的面积是 {size}", en=f"an area like this is {size}")
    kept = Role.CHECKPOINT if data.way.checkpoint else Role.ACTIVATION
    square = Panel(figure, (left, 0.12, left + side, 0.12 + side), (0, 1), (0, 1))
    square.areas([[(0, 0), (0, 1), (1, 1), (1, 0)]], [COLOURS[kept]])
    write(figure, left + side + 0.1, 0.12 + side / 2, words,
          va="center_baseline", fontsize=9, color=FAINT)  # fmt: skip


def _said(data: BlockKept) -> tuple[str, str]:
    size, units = size_text(data.total), f"{data.in_sbh:.1f}"
    if data.way.checkpoint:
        return (
            f"检查点只保留输入：{size}，是 s·b·h 的 {units} 倍",
            f"A checkpoint keeps only the input: {size}, {units} × s·b·h bytes",
        )
    return (
        f"这个块保存 {size}，是 s·b·h 的 {units} 倍",
        f"This block keeps {size}, {units} × s·b·h bytes",
    )


def say_block(data: BlockKept) -> tuple[str, str]:
    """The sizes, and how much of it the square matrices are."""
    square = sum(box.size for box in data.boxes if KEPT[box.key].row == "square")
    share = f"{square / data.total:.0%}"
    z, e = _said(data)
    s, h, a = data.sizes.sequence, data.sizes.width, data.sizes.heads
    return (
        f"s = {s}，b = {BATCH}，h = {h}，a = {a}：{z}；其中 s × s 那一行占 {share}",
        f"s = {s}, b = {BATCH}, h = {h}, a = {a}: {e[0].lower()}{e[1:]}; "
        f"the row of s × s is {share} of it",
    )


# --- the table that adds up to the formula ------------------------------------------------------


def formula_table(sizes: Sizes) -> Table:
    """The 34 and the 5 of the formula, line by line, from a real block in 16 bits.

    Fused dropout, so that a mask takes 1 byte per value. The last rows are the sums.
    """
    boxes = block_kept(sizes, Way(fused_dropout=True, bf16=True))
    unit = sizes.sequence * sizes.batch * sizes.width
    square = sizes.heads * sizes.sequence**2 * sizes.batch
    rows: list[list] = []
    linear, quadratic, rest = 0, 0, 0
    for box in boxes:
        known, each = KEPT[box.key], box.dtype.itemsize
        numbers = box.size // each
        if known.row == "square":
            of, share = "a·s·s·b", ("", f"{box.size // square}")
            quadratic += box.size // square
        elif numbers >= unit:
            times = numbers // unit
            of, share = ("s·b·h" if times == 1 else f"{times}·s·b·h"), (f"{box.size // unit}", "")
            linear += box.size // unit
        else:
            of, share = "s·b", ("", "")
            rest += box.size
        rows.append([known.keeper, known.name, of, each, *share])
    rows.append([("合计", "total"), (f"另有 {rest:,} 字节是均值和 1/标准差",
                                     f"and {rest:,} bytes of means and 1/std"),
                 "", "", f"{linear}", f"{quadratic}"])  # fmt: skip
    return Table(
        [("谁存的", "who keeps it"), ("存什么", "what"), ("几个数", "numbers"),
         ("每个几字节", "bytes each"), ("÷ s·b·h", "÷ s·b·h"), ("÷ a·s·s·b", "÷ a·s·s·b")],
        rows,
    )  # fmt: skip
