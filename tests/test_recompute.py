"""The five stages of recomputation: gradients, forward calls, memory, and what each cannot do."""

from __future__ import annotations

import gc
import inspect
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from course_lib import recompute
from course_lib.memory import Role, measure, simulated

MiB = 2**20
CHECKPOINTS = {
    "autograd function": recompute.Rerun.apply,
    "same random numbers": recompute.rerun_alike,
    "hooks": recompute.checkpoint,
}


def torch_way(reentrant):
    return lambda function, *inputs: torch_checkpoint(function, *inputs, use_reentrant=reentrant)


def block(dropout=0.2):
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(dropout), nn.Linear(256, 64))


def step_of(call, seed=0):
    """A training step with a part before the checkpoint, and its measurement."""
    torch.manual_seed(seed)
    before, inner, x = nn.Linear(64, 64), block(), torch.randn(256, 64, requires_grad=True)
    model = nn.ModuleList([before, inner])

    def step():
        torch.manual_seed(seed)
        call(inner, before(x)).square().sum().backward()

    trace = measure(step, model, inputs=x)
    return [leaf.grad for leaf in (x, *model.parameters())], trace


def chain_peak(segments, checkpoint, layers=10):
    """Peak of a chain whose layers keep one value of 1 MiB each, in MiB."""
    model = nn.ModuleList(nn.SiLU() for _ in range(layers))
    x = torch.ones(MiB // 4, requires_grad=True)

    def step():
        recompute.chain(model, segments, x, checkpoint).sum().backward()

    return measure(step, model, inputs=x).peak / MiB


@pytest.mark.parametrize("name", ["same random numbers", "hooks"])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_equal_plain_backward_bit_for_bit(name, seed):
    plain, _ = step_of(lambda function, *inputs: function(*inputs), seed)
    ours, _ = step_of(CHECKPOINTS[name], seed)
    assert all(map(torch.equal, plain, ours))


@pytest.mark.parametrize(
    ("ours", "reentrant"), [(recompute.rerun_alike, True), (recompute.checkpoint, False)]
)
def test_memory_and_flops_are_those_of_torch(ours, reentrant):
    _, ours = step_of(ours)
    _, theirs = step_of(torch_way(reentrant))
    assert ours.peak == theirs.peak
    assert ours.at_peak == theirs.at_peak
    assert ours.kept == theirs.kept
    assert ours.flops == theirs.flops


def test_only_the_input_is_kept():
    for name, checkpoint in CHECKPOINTS.items():
        _, trace = step_of(checkpoint)
        assert trace.kept[Role.CHECKPOINT] == 256 * 64 * 4, name
        assert trace.kept[Role.ACTIVATION] == 256 * 64 * 4, name  # square() keeps the output


def test_stage_1_adds_the_gradients_of_plain_backward():
    torch.manual_seed(0)
    body, tail, x = block(0), block(0), torch.randn(32, 64, requires_grad=True)

    def head(value):
        return tail(value).square().mean()

    leaves = [x, *body.parameters(), *tail.parameters()]
    loss = head(body(x))
    expected = torch.autograd.grad(loss, leaves)
    assert torch.equal(recompute.step_by_hand(body, head, x), loss)
    assert all(torch.equal(leaf.grad, right) for leaf, right in zip(leaves, expected, strict=True))


def test_stage_2_has_no_gradient_for_raw_data_and_stage_5_has():
    for checkpoint, has in ((recompute.Rerun.apply, False), (recompute.checkpoint, True)):
        function = block(0)
        output = checkpoint(function, torch.randn(4, 64))
        assert output.requires_grad == has


def test_random_state_is_left_as_without_a_checkpoint():
    for checkpoint in (recompute.rerun_alike, recompute.checkpoint):
        states = []
        for call in (lambda function, *inputs: function(*inputs), checkpoint):
            torch.manual_seed(3)
            function, x = block(), torch.randn(4, 64, requires_grad=True)
            call(function, x).sum().backward()
            states.append(torch.get_rng_state())
        assert torch.equal(*states)


@pytest.mark.parametrize("segments", range(1, 11))
def test_chain_needs_k_checkpoints_one_segment_and_one_gradient(segments):
    expected = segments + -(-10 // segments) + 1
    random_states = (segments + 1) * recompute.RANDOM_STATE_BYTES / MiB
    peak = chain_peak(segments, recompute.Rerun.apply)
    assert peak == pytest.approx(expected, abs=1e-4)
    assert expected <= chain_peak(segments, recompute.rerun_alike) <= expected + random_states
    # Early stop: the segment's own output is not made again.
    assert chain_peak(segments, recompute.checkpoint) <= expected - 1 + random_states


@pytest.mark.parametrize("segments", [0, 11, -1])
def test_chain_refuses_segments_that_there_cannot_be(segments):
    with pytest.raises(ValueError, match=f"from 1 to 10, not {segments}"):
        recompute.chain(nn.ModuleList(nn.SiLU() for _ in range(10)), segments, torch.ones(2))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_each_layer_runs_twice(checkpoint):
    calls = []
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(7))
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, _: calls.append(layer))
    x = torch.ones(2, 8, requires_grad=True)
    recompute.chain(layers, 3, x, checkpoint).sum().backward()
    assert all(sum(called is layer for called in calls) == 2 for layer in layers)


def test_early_stop_leaves_out_the_last_operator():
    sines = 0

    def five_sines(x):
        nonlocal sines
        for _ in range(5):
            x = x.sin()
            sines += 1
        return x

    recompute.checkpoint(five_sines, torch.ones(3, requires_grad=True)).sum().backward()
    assert sines == 5 + 4


@pytest.mark.parametrize("checkpoint", [recompute.rerun_alike, recompute.checkpoint])
def test_autocast_is_entered_again(checkpoint):
    gradients = []
    for call in (lambda function, *inputs: function(*inputs), checkpoint):
        torch.manual_seed(0)
        function, x = block(), torch.randn(32, 64, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            output = call(function, x)
        output.float().sum().backward()
        gradients.append([leaf.grad for leaf in (x, *function.parameters())])
    assert all(map(torch.equal, *gradients))


def test_several_outputs_and_one_that_has_no_gradient():
    def function(x, y):
        return x * y, x.argmax(), y.sin()

    for checkpoint in CHECKPOINTS.values():
        x, y = torch.randn(5, requires_grad=True), torch.randn(5)
        product, place, sine = checkpoint(function, x, y)
        product.sum().backward()
        assert torch.equal(x.grad, y)
        assert place == x.argmax()
        assert not sine.requires_grad or checkpoint is not recompute.checkpoint


def test_hooks_can_be_nested_and_used_twice():
    x = torch.randn(16, 64, requires_grad=True)
    inner, outer = block(0), nn.Linear(64, 64)

    def both(x):
        return outer(recompute.checkpoint(inner, x))

    leaves = [x, *inner.parameters(), *outer.parameters()]
    right = torch.autograd.grad(outer(inner(x)).sum(), leaves)
    output = recompute.checkpoint(both, x).sum()
    for keep in (True, False):
        found = torch.autograd.grad(output, leaves, retain_graph=keep)
        assert all(map(torch.equal, found, right))


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_nothing_stays_alive_after_backward(checkpoint):
    gc.disable()
    try:
        alive = []

        def function(x):
            inner = x.exp()
            alive.append(weakref.ref(inner.untyped_storage()))
            return inner.sin()

        x = torch.ones(10, requires_grad=True)
        checkpoint(function, x * 2).sum().backward()
        assert len(alive) == 2
        assert not any(storage() for storage in alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_simulated_tensors_need_the_same(checkpoint):
    real = chain_peak(4, checkpoint)
    with simulated():
        fake = chain_peak(4, checkpoint)
    assert real - fake == pytest.approx(0, abs=6 * recompute.RANDOM_STATE_BYTES / MiB)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpoint", [recompute.rerun_alike, recompute.checkpoint])
def test_dropout_on_the_gpu_is_repeated(checkpoint):
    gradients, states = [], []
    for call in (lambda function, *inputs: function(*inputs), checkpoint):
        torch.manual_seed(0)
        function, x = block().cuda(), torch.randn(32, 64, device="cuda", requires_grad=True)
        call(function, x).sum().backward()
        gradients.append([leaf.grad for leaf in (x, *function.parameters())])
        states.append(torch.cuda.get_rng_state())
    assert all(map(torch.equal, *gradients))
    assert torch.equal(*states)


def test_each_stage_is_short_enough_to_read_aloud():
    stages = [
        [recompute.step_by_hand],
        [recompute.Rerun],
        [recompute.Repeatable, recompute.rerun_alike],
        [recompute.chain],
        [recompute._Enough, recompute._Segment, recompute.checkpoint],
    ]
    for stage in stages:
        lines = [line for part in stage for line in inspect.getsource(part).splitlines()]
        assert sum(bool(line.strip()) for line in lines) <= 45, stage
