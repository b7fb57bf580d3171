"""The explorers of lessons 00 and 01, at every position, against direct measurements."""

import random
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from course_lib.figures.words import PHASE_NAMES, size_text
from course_lib.lessons.activation_memory.step_sizes import (
    BATCHES,
    Family,
    block_formula,
    families,
    measure_batches,
    share_explorer,
    simulate,
    sizes_explorer,
)
from course_lib.lessons.start_here.checkpoint_counts import counts_explorer, measure_counts
from course_lib.memory import Role
from course_lib.models import Sizes, Transformer, even_segments, random_tokens
from course_lib.notebook.pictures import peak_in_words, roles_table, show_bars, show_timeline

SMALL = Sizes(depth=3, width=32, heads=2, sequence=16, batch=2)


@pytest.fixture(scope="module")
def grid():
    return families(sequences=(16, 32), depths=(1, 2), widths=(32, 64))


def test_two_batches_give_every_batch_to_the_byte(report):
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    for _ in range(3):
        sizes = Sizes(
            depth=dice.choice((1, 2)), width=dice.choice((32, 64)), heads=4,
            sequence=dice.choice((8, 24)),
        )  # fmt: skip
        family = Family(sizes)
        for batch in (1, 2, dice.randrange(3, 70)):
            (direct,) = simulate(sizes, [batch])
            found = family.at(batch)
            assert found.peak == direct.peak, (seed, sizes, batch)
            assert found.at_peak == direct.at_peak, (seed, sizes, batch)
            assert found.kept == direct.kept, (seed, sizes, batch)
            assert found.peak_phase == direct.peak_phase, (seed, sizes, batch)
    report(f"batches of a family against direct simulation: exact (seed {seed})")


def test_a_batch_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Family(replace(SMALL, depth=1)).at(0)


def test_simulated_batches_equal_real_ones():
    real = measure_batches(SMALL, (2, 3))
    for batch, trace in real.items():
        (simulated,) = simulate(SMALL, [batch])
        for role in (Role.ACTIVATION, Role.PARAMETER, Role.INPUT, Role.OPTIMIZER_STATE):
            assert simulated.kept[role] == trace.kept[role], (batch, role)


def test_the_formula_of_a_block_is_what_is_measured(grid):
    explorer = sizes_explorer(grid)
    for position in explorer.positions():
        frame = explorer._frame(**position)
        assert frame.block == frame.formula, position


def test_the_formula_by_hand():
    assert block_formula(Sizes(batch=1, sequence=2, width=8, heads=2)) == (
        64 * 2 * 8 + 4 * 2 * 4 + 16 * 2 + 4
    )


def test_every_position_of_the_sizes_draws_and_adds_up(grid):
    explorer = sizes_explorer(grid)
    positions = list(explorer.positions())
    assert len(positions) == len(BATCHES) * 2 * 2 * 2
    for position in positions:
        found = explorer._frame(**position).breakdown
        assert sum(found.at_peak.values()) == found.peak
        assert found.peak_phase in ("forward", "backward", "optimizer step")
    for position in positions[:: len(positions) // 8]:
        explorer.move(**position)
        assert "bytes by the formula" in explorer.caption


def test_shares_rise_with_the_batch():
    traces = measure_batches(SMALL, (1, 4, 16))
    explorer = share_explorer(traces)
    shares = []
    for position in explorer.positions():
        explorer.move(**position)
        shares.append(explorer._frame(**position)[1])
    assert shares == sorted(shares)
    assert "batch size 16" in explorer.caption


def test_sizes_that_differ_look_different(grid):
    """The axis stays where it is for all that fit on it, and a frame tells where it began."""
    explorer = sizes_explorer(grid)
    limits = {}
    for position in explorer.positions():
        frame = explorer._frame(**position)
        begin = {name: control.start for name, control in explorer.controls.items()}
        assert frame.start == explorer._frame(**begin).breakdown
        limits[frame.breakdown.peak] = frame.limit
    start = frame.start.peak
    assert {limit // start for limit in limits.values()} <= {1, 8, 64} and len(limits) > 10
    for peak, limit in limits.items():
        assert limit == start if peak <= start else peak <= limit < 8 * peak


@pytest.fixture(scope="module")
def counted():
    torch.manual_seed(0)
    model = Transformer(SMALL)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = random_tokens(SMALL)

    def step(count):
        def run_blocks(x):
            for segment in even_segments(model.blocks, count):
                x = checkpoint(segment, x, use_reentrant=False)
            return x

        model.run_blocks = run_blocks if count else Transformer.run_blocks.__get__(model)
        optimizer.zero_grad()
        model.loss(tokens).backward()
        optimizer.step()

    return measure_counts(step, range(4), model, optimizer, tokens, rounds=2)


def test_every_number_of_checkpoints_was_measured(counted):
    assert [position.checkpoints for position in counted] == [0, 1, 2, 3]
    assert all(len(position.seconds) == 2 for position in counted)
    boundary = 2 * 16 * 32 * 4
    for position in counted:
        assert position.trace.kept[Role.CHECKPOINT] == boundary * position.checkpoints
        assert (position.recomputed > 0) == (position.checkpoints > 0)
    recomputed = [position.recomputed for position in counted]
    assert recomputed[1] > recomputed[2] >= recomputed[3]
    assert counted[1].trace.flops > counted[3].trace.flops > counted[0].trace.flops


def test_every_position_of_the_counts_draws(counted):
    explorer = counts_explorer(counted)
    for position in explorer.positions():
        choice = explorer._frame(**position)
        low, middle, high = choice.more_time
        assert low <= middle <= high
        explorer.move(**position)
        assert "FLOPs" in explorer.caption
        assert ("; time" in explorer.caption) == (position["checkpoints"] > 0)
    explorer.move(checkpoints=0)
    assert "FLOPs +0.0%" in explorer.caption


def test_pictures_of_measurements_name_what_they_show(counted):
    trace = counted[0].trace
    assert "source: the CPU allocator" in show_timeline(trace).caption
    assert "plain: " in show_bars({"plain": trace, ("全部", "all"): counted[3].trace}).caption
    lowest = min(counted, key=lambda position: position.trace.peak).trace.peak
    bars = show_bars({str(p.checkpoints): p.trace for p in counted}, heading=("检", "checkpoints"))
    bars._draw(bars._picture, bars._frame())
    assert f"The lowest peak is {size_text(lowest)} (checkpoints: " in str(bars._picture)
    sentence = peak_in_words(trace)
    assert size_text(trace.peak) in sentence.zh and PHASE_NAMES[trace.peak_phase][0] in sentence.zh
    table = str(roles_table(trace))
    assert f"{trace.peak:,}" in table
    assert "100.0%" in table


@pytest.mark.parametrize("count", [0, 4])
def test_segments_that_cannot_be_are_refused(count):
    with pytest.raises(ValueError, match=f"not {count}"):
        even_segments(Transformer(SMALL).blocks, count)


def test_a_width_that_its_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="not a multiple"):
        Sizes(width=10, heads=4)
