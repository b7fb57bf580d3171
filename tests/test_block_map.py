"""Lesson 01's picture of one block: its boxes are what a real block saves, at every position."""

import itertools
import re

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from course_lib.language import speaking
from course_lib.lessons.activation_memory.block_map import (
    BATCH,
    HEADS,
    SEQUENCES,
    WIDTHS,
    BlockKept,
    Way,
    block_explorer,
    block_kept,
    formula_table,
    measure_blocks,
)
from course_lib.lessons.activation_memory.kept_boxes import KEPT, ROWS
from course_lib.memory import Role
from course_lib.models import PaperBlock, Sizes
from course_lib.saved import saved_tensors

SWITCHES = list(itertools.product((False, True), repeat=4))


@pytest.fixture(scope="module")
def blocks():
    return measure_blocks()


@pytest.fixture(scope="module")
def explorer(blocks):
    return block_explorer(blocks)


def saved_by_a_real_block(sequence, width, heads, way):
    """(bytes, shape) of each storage, from tensors that have contents."""
    sizes = Sizes(sequence=sequence, batch=BATCH, width=width, heads=heads)
    block = PaperBlock(sizes, fused_dropout=way.fused_dropout, fused_attention=way.fused_attention)
    dtype = torch.bfloat16 if way.bf16 else torch.float32
    block, x = block.to(dtype), torch.zeros(sequence, BATCH, width, dtype=dtype, requires_grad=True)
    run = (lambda x: checkpoint(block, x, use_reentrant=False)) if way.checkpoint else block
    return [(one.size, one.shape) for one in saved_tensors(run, x) if one.role != Role.PARAMETER]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_the_boxes_are_the_saved_tensors_of_a_real_block_at_every_position(explorer, sequence):
    positions = [values for values in explorer.positions() if values["s"] == sequence]
    assert len(positions) == len(WIDTHS) * len(HEADS) * len(SWITCHES)
    for values in positions:
        shown = explorer._frame(**values)
        way = Way(*(values[name] for name in Way.__dataclass_fields__))
        real = saved_by_a_real_block(sequence, values["h"], values["a"], way)
        assert [(box.size, box.shape) for box in shown.boxes] == real, values


@pytest.mark.parametrize("way", [Way(*on) for on in SWITCHES], ids=str)
def test_what_is_drawn_has_areas_in_proportion_to_bytes(explorer, way):
    base = {name: control.start for name, control in explorer.controls.items()}
    values = {**base, **{name: getattr(way, name) for name in Way.__dataclass_fields__}}
    with speaking("en"):
        explorer.move(**values)
        drawn = explorer._drawing("en", explorer._position())
    data: BlockKept = explorer._frame(**values)
    told = [words for _, words in drawn.parts]
    assert len(told) == len(data.most if way.checkpoint else data.boxes)
    per_byte = []
    for box in data.boxes:
        name = f"{KEPT[box.key].name[1]} {list(box.shape)}"
        at = next(i for i, (_, en) in enumerate(told) if en.startswith(name))
        (_, _, width, height), _ = drawn.parts[at]
        if width > 0.01:  # of slivers, four digits say little
            per_byte.append(width * height / box.size)
    assert max(per_byte) / min(per_byte) < 1.02


def test_switches_make_boxes_vanish_or_shrink():
    def found(**on):
        boxes = block_kept(Sizes(sequence=128, batch=1, width=256, heads=4), Way(**on))
        return {box.key: box.size for box in boxes}

    plain = found()
    assert set(found(checkpoint=True)) == {"x"}
    assert {"softmax", "mask", "dropped"} & set(found(fused_attention=True)) == set()
    fused = found(fused_dropout=True)
    assert [key for key in plain if fused[key] < plain[key]] == ["mask", "mask out", "mask down"]
    assert all(2 * size == plain[key] for key, size in found(bf16=True).items())


def test_the_table_adds_up_to_the_34_and_the_5_of_the_formula():
    sizes = Sizes(sequence=64, batch=2, width=128, heads=4)
    total = formula_table(sizes).rows[-1]
    assert total[-2:] == ["34", "5"]
    rest = int(re.search(r"and ([\d,]+) bytes", total[1][1])[1].replace(",", ""))
    boxes = block_kept(sizes, Way(fused_dropout=True, bf16=True))
    s, b, h, a = sizes.sequence, sizes.batch, sizes.width, sizes.heads
    assert sum(box.size for box in boxes) == 34 * s * b * h + 5 * a * s * s * b + rest


def test_a_fault_in_the_known_tensors_is_an_error(monkeypatch):
    from course_lib.lessons.activation_memory import block_map

    monkeypatch.setattr(block_map, "keys_in_order", lambda fused: ("x", "q"))
    with pytest.raises(ValueError, match="zip"):
        block_kept(Sizes(sequence=8, batch=1, width=8, heads=2), Way())


def test_every_row_and_every_known_tensor_occurs(blocks):
    keys = {box.key for boxes in blocks.values() for box in boxes}
    assert keys == set(KEPT)
    assert {KEPT[key].row for key in keys} == set(ROWS)
