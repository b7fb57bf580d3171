"""What one rank of several holds: against the allocator, simulated, and where two ranks do meet."""

import contextlib
import gc
import json
import os
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from course_lib import one_rank_of
from course_lib.language import choice
from course_lib.memory import Role, measure, simulated
from course_lib.plans.advice import advise
from course_lib.processes import run_ranks
from support.independent import count
from support.rank_steps import (
    BATCH,
    DEPTH,
    LENGTH,
    SIMULATED,
    STEPS,
    WIDTH,
    blocks,
    by_role,
    measured,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")

UNSEEN = (Role.WORKSPACE, Role.RANDOM_STATE)
BLOCK = 4 * (2 * WIDTH + 2 * 4 * WIDTH * WIDTH + 5 * WIDTH)  # bytes of a block's parameters
SENT, GATHERED = Role.COMMUNICATION, Role.GATHERED
CHECKPOINTED = pytest.mark.parametrize("checkpoints", [False, True], ids=["plain", "checkpointed"])


# --- bytes ------------------------------------------------------------------------------------


@CHECKPOINTED
@pytest.mark.parametrize("name", STEPS)
def test_a_rank_takes_what_the_allocator_hands_out(name, checkpoints):
    with one_rank_of(4) as mesh:
        counted = count(lambda: STEPS[name](mesh, checkpoints))
        trace = measured(STEPS[name](mesh, checkpoints))
    assert trace.peak == counted.peak
    assert sum(trace.before.values()) == counted.before
    assert sum(trace.at_peak.values()) == trace.peak


@CHECKPOINTED
@pytest.mark.parametrize("name", SIMULATED)
def test_a_simulated_rank_takes_what_a_real_one_takes(name, checkpoints):
    def told(where):
        with one_rank_of(4) as mesh, where:
            trace = measured(STEPS[name](mesh, checkpoints))
        seen = [e for e in trace.events if e.role not in UNSEEN and e.size]
        timeline = [(e.phase, e.size, e.role) for e in seen]
        kept = {role: trace.kept[role] for role in trace.kept if role not in UNSEEN}
        return trace.peak_without(*UNSEEN), kept, trace.flops, sorted(timeline)

    assert told(contextlib.nullcontext()) == told(simulated())


@pytest.mark.slow
def test_two_ranks_that_meet_hold_what_one_alone_holds():
    folder = os.path.dirname(__file__)
    script = f"import sys; sys.path[:0] = [{folder!r}]; import runpy; " \
        "runpy.run_module('support.rank_steps', run_name='__main__')"  # fmt: skip
    together = [json.loads(printed) for printed in run_ranks(["-c", script], 2, 120)]
    for rank, found in enumerate(together):
        with one_rank_of(2, rank) as mesh:
            for name, make in STEPS.items():
                for checkpoints in (False, True):
                    alone = by_role(measured(make(mesh, checkpoints)))
                    assert alone == found[f"{name} {checkpoints}"], (rank, name, checkpoints)


# --- roles ------------------------------------------------------------------------------------


def test_buckets_are_buffers_unless_gradients_are_views_of_them():
    with one_rank_of(4) as mesh:
        apart, views = (measured(STEPS[name](mesh, False)) for name in ("ddp", "ddp_views"))
    assert apart.at_peak[SENT] == apart.before[SENT] == DEPTH * BLOCK
    assert views.peak_of(SENT) == 0 and views.before[Role.GRADIENT] == DEPTH * BLOCK
    assert apart.peak_of(Role.GRADIENT) == DEPTH * BLOCK


@pytest.mark.parametrize("real", [True, False])
def test_gathered_parameters_come_and_go(real):
    with one_rank_of(4) as mesh, contextlib.nullcontext() if real else simulated():
        freed, stays = (
            measured(STEPS[name](mesh, False)) for name in ("sharded", "gathered_until_backward")
        )
    assert freed.before[Role.PARAMETER] == DEPTH * BLOCK // 4
    assert freed.kept[GATHERED] == 0
    assert stays.kept[GATHERED] == DEPTH * BLOCK
    assert freed.peak_of(GATHERED) <= 2 * BLOCK and freed.peak_of(SENT) >= BLOCK
    for trace in (freed, stays):
        alive = trace.before[GATHERED] + sum(e.size for e in trace.events if e.role is GATHERED)
        assert alive == 0


def test_a_rank_of_one_gathers_too():
    with one_rank_of(1) as mesh:
        trace = measured(STEPS["sharded"](mesh, False))
    assert trace.before[Role.PARAMETER] == DEPTH * BLOCK
    assert trace.peak_of(GATHERED) >= BLOCK


def test_what_is_kept_of_other_ranks_is_an_activation_and_the_rest_a_buffer():
    whole, part = 4 * BATCH * LENGTH * WIDTH, 4 * BATCH * LENGTH * WIDTH // 4
    with one_rank_of(4) as mesh:
        trace = measured(STEPS["tensor_parallel"](mesh, False))
        pieces = measured(STEPS["sequence_parallel"](mesh, False))
    received = {e.role for e in trace.events if "_c10d_functional" in str(e.operator)}
    assert received == {SENT}
    assert {e.size for e in trace.events if e.role is SENT and e.size > 0} == {whole}
    sums = 4 * WIDTH  # of the gradients of a LayerNorm that saw a part of the sequence
    assert {e.size for e in pieces.events if e.role is SENT and e.size > 0} == {whole, part, sums}


def test_a_process_on_its_own_has_no_such_roles():
    assert not {SENT, GATHERED} & set(measure(lambda: None).at_peak)
    with one_rank_of(2):
        assert {SENT, GATHERED} <= set(measure(lambda: None).at_peak)


def test_what_dtensor_finds_out_about_shapes_is_not_the_step():
    """The first step finds the shapes over all ranks, and counts as much as the next."""
    with one_rank_of(8) as mesh, simulated():
        weight = distribute_tensor(torch.randn(64, 64), mesh, [Shard(0)]).requires_grad_()
        x = distribute_tensor(torch.randn(16, 64), mesh, [Shard(1)]).detach()

        def step():
            (x @ weight.t()).to_local().sum().backward()
            weight.grad = None

        first, second = measure(step), measure(step)
    assert (first.peak, first.flops) == (second.peak, second.flops)


# --- advice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("name", [name for name in SIMULATED if name != "gathered_until_backward"])
def test_advice_on_a_rank_is_right_to_the_byte(name, real):
    with one_rank_of(4) as mesh, contextlib.nullcontext() if real else simulated():
        step = STEPS[name](mesh, False)
        advice = advise(step.run, step.model, step.optimizer, step.inputs)
        tried = [option for option in advice.options if not option.by_hand]
        assert {"none", "all"} <= {option.key for option in tried}
        for option in tried:
            advice.apply(option)
            step.run()
            trace = measured(step)
            advice.undo()
            assert (option.key, option.peak, option.flops) == (option.key, trace.peak, trace.flops)
        there = advice.at_peak(tried[0])
        assert sum(there.by_role.values()) == there.peak
        plain = measured(step)
        if name == "sharded":
            assert there.by_role[GATHERED] == plain.at_peak[GATHERED]


# --- one_rank_of --------------------------------------------------------------------------------


def leftovers():
    return dist.is_initialized(), dict(os.environ), torch.get_rng_state().tolist()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    before = leftovers()

    def use():
        with one_rank_of((2, 4), names=("data", "tensor")) as mesh:
            model = fully_shard(nn.Linear(8, 8, device="cpu"), mesh=mesh["data"])
            whole = distribute_tensor(torch.ones(8, 8), mesh["tensor"], [Shard(0)])
            (whole @ whole).full_tensor()
            model(torch.ones(2, 8)).sum().backward()
            meshes.append(weakref.ref(mesh))
            if fails:
                raise LookupError("on purpose")

    meshes = []
    state = torch.get_rng_state()
    with contextlib.suppress(LookupError):
        use()
    torch.set_rng_state(state)
    gc.collect()
    assert leftovers() == before and meshes[0]() is None
    with one_rank_of(3, rank=2) as mesh:  # and the next begins anew
        assert (dist.get_rank(), dist.get_world_size(), mesh.size()) == (2, 3, 3)
        assert distribute_tensor(torch.ones(6), mesh, [Shard(0)]).to_local().shape == (2,)


def test_inside_a_simulation_too():
    with simulated(), one_rank_of(4) as mesh:
        trace = measured(STEPS["sharded"](mesh, False))
    assert trace.source == "simulated" and mesh.mesh.tolist() == [0, 1, 2, 3]


WRONG = [
    (lambda: one_rank_of(0), ValueError, "not 0"),
    (lambda: one_rank_of(True), ValueError, "not True"),
    (lambda: one_rank_of((4, -1)), ValueError, r"not \(4, -1\)"),
    (lambda: one_rank_of("8"), ValueError, "not '8'"),
    (lambda: one_rank_of(8, rank=8), ValueError, "from 0 to 7"),
    (lambda: one_rank_of((2, 4), names=("data",)), ValueError, "2 axes and 1 names"),
]


@pytest.mark.parametrize(("make", "kind", "said"), WRONG)
def test_a_world_that_cannot_be(make, kind, said, monkeypatch):
    for spoken, words in (("en", said), ("zh", "[一-鿿]")):
        monkeypatch.setattr(choice, "_chosen", spoken)
        with pytest.raises(kind, match=words), make():
            raise AssertionError("nothing runs")
        assert not dist.is_initialized()


@pytest.mark.parametrize("spoken", ["zh", "en"])
def test_a_rank_is_no_rank_of_another_group(spoken, monkeypatch):
    monkeypatch.setattr(choice, "_chosen", spoken)
    with one_rank_of(2):
        with pytest.raises(RuntimeError, match="destroy_process_group"), one_rank_of(2):
            raise AssertionError("nothing runs")
        assert dist.get_world_size() == 2


@pytest.mark.parametrize("spoken", ["zh", "en"])
def test_ddp_says_what_it_needs_when_alone(spoken, monkeypatch):
    monkeypatch.setattr(choice, "_chosen", spoken)
    with pytest.raises(RuntimeError, match="noop_hook"), one_rank_of(2):
        replica = DistributedDataParallel(blocks())
        for _ in range(2):
            replica(torch.ones(1, LENGTH, WIDTH)).sum().backward()
    with pytest.raises(RuntimeError, match="replicate"), one_rank_of(2), simulated():
        DistributedDataParallel(blocks())
    assert not dist.is_initialized()


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2"), one_rank_of(2):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_without_distributed(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"without torch\.distributed"), one_rank_of(2):
        raise AssertionError("nothing runs")
