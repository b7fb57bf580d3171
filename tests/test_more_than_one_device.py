"""Lesson 08's room: one rank of so many, two that meet, and 70 billion parameters on a line."""

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from course_lib import one_rank_of
from course_lib.lessons.more_than_one_device import (
    SHARDED,
    advised_options,
    lines_through,
    rank_step,
    ranks_explorer,
    sweep_ranks,
    two_ranks,
)
from course_lib.lessons.more_than_one_device.decoder import SMALL, Sizes, small_decoder
from course_lib.memory import Role

WHOLE = sum(parameter.nbytes for parameter in small_decoder().parameters())
LARGEST = max(parameter.nbytes for parameter in small_decoder().parameters())


@pytest.fixture(scope="module")
def swept():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield sweep_ranks((1, 4, 8))
    torch.set_num_threads(threads)


def held(swept, ranks, sharded, role):
    return swept.found[ranks, sharded, True].peak_of(role)


def test_each_stage_shards_one_thing_more(swept):
    for ranks in (4, 8):
        assert held(swept, ranks, "nothing", Role.OPTIMIZER_STATE) >= 2 * WHOLE
        state = held(swept, ranks, "optimizer state", Role.OPTIMIZER_STATE)
        assert 2 * WHOLE / ranks <= state <= 2 * WHOLE / ranks + 2 * LARGEST + 1000
        for sharded in ("gradients", "parameters"):
            trace = swept.found[ranks, sharded, True]
            assert trace.before[Role.PARAMETER] == pytest.approx(WHOLE / ranks, rel=0.01)
            assert trace.before[Role.OPTIMIZER_STATE] == pytest.approx(2 * WHOLE / ranks, rel=0.01)
        kept = [
            swept.found[ranks, s, True].kept[Role.GATHERED] for s in ("gradients", "parameters")
        ]
        assert kept[0] == pytest.approx(WHOLE, rel=0.01) and kept[1] < kept[0]


def test_without_sharding_every_rank_holds_the_same(swept):
    with one_rank_of(32) as mesh:
        trace = rank_step("nothing", mesh, True).measured()
    assert trace.peak_without(Role.WORKSPACE) == swept.found[8, "nothing", True].peak_without(
        Role.WORKSPACE
    )


def test_every_position_of_the_explorer_draws_and_says_itself(swept):
    explorer = ranks_explorer(swept)
    captions = set()
    for position in explorer.positions():
        explorer.move(**position)
        captions.add(explorer.caption)
    assert len(captions) == len(swept.ranks) * len(SHARDED)


@pytest.mark.slow
def test_two_ranks_that_meet_hold_what_one_alone_holds():
    met = two_ranks()
    for sharded in SHARDED:
        for rank, peak in enumerate(met.peaks[sharded]):
            with one_rank_of(2, rank) as mesh:
                trace = rank_step(sharded, mesh, True).measured()
            assert trace.peak_without(Role.WORKSPACE) == peak, (sharded, rank)
    for count in (1, 2):
        plain, flag = met.fits[count, False], met.fits[count, True]
        assert plain.losses == flag.losses and (plain.wrapped, flag.wrapped) == (0, 8)
        assert flag.peak < plain.peak
    parts = [met.fits[count, True].sizes["parameter"] for count in (1, 2)]
    assert parts[0] == pytest.approx(2 * parts[1], rel=0.01)


def shard(model, mesh):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def test_the_line_through_few_layers_leads_to_many():
    sizes = Sizes(**(vars(SMALL) | {"words": 64}))
    found = {n: advised_options(n, 8, shard, 256, sizes) for n in (3, 4, 5)}
    lines = lines_through(found)
    there = advised_options(12, 8, shard, 256, sizes)
    assert {"none", "all"} <= set(there)
    assert {key: lines.at(12)[key] for key in there} == there


def test_what_is_on_no_line_is_refused():
    with pytest.raises(ValueError, match="off the line"):
        lines_through({1: {"none": 1}, 2: {"none": 2}, 3: {"none": 4}})
    for depths in ((1, 2), (1, 3, 5)):
        with pytest.raises(ValueError, match="three depths"):
            lines_through({depth: {"none": depth} for depth in depths})
