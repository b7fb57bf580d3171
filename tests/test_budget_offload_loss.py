"""What lesson 06 says of the compiler's budget, of offloading and of the loss, measured again."""

import functools
import math
import re
from functools import partial

import pytest
import torch
import torch._functorch.config as functorch_config
from torch import nn
from torch.autograd.graph import region_activation_memory_budget
from torch.nn import functional
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from course_lib.language import speaking
from course_lib.lessons.choosing_what_to_recompute import compiler_budget, loss, offloading
from course_lib.memory import Role, measure, measure_pools
from course_lib.models import Block, Sizes

HAN = re.compile("[\u4e00-\u9fff]")


# --- the compiler's budget ----------------------------------------------------------------------

BUDGETS = (1.0, 0.3, 0.05, 0.0)


@functools.cache
def swept():
    torch.manual_seed(0)
    sizes = Sizes(width=32, heads=2, sequence=64)
    tower, x = nn.Sequential(Block(sizes), Block(sizes)), torch.randn(4, 64, 32)

    def train(forward):
        tower.zero_grad()
        forward(x).square().mean().backward()

    train(tower)
    eager = measure(lambda: train(tower), tower, inputs=x)
    gradients = [p.grad.clone() for p in tower.parameters()]
    points, apart = [], []
    for budget in BUDGETS:
        torch._dynamo.reset()
        with functorch_config.patch(activation_memory_budget=budget):
            compiled = torch.compile(tower.forward, backend="aot_eager_decomp_partition")
            train(compiled)
            trace = measure(partial(train, compiled), tower, inputs=x)
        points.append(compiler_budget.point(budget, trace))
        apart.append(loss.distance([p.grad for p in tower.parameters()], gradients)[1])
    torch._dynamo.reset()
    return points, eager, apart


@pytest.mark.slow
def test_a_smaller_budget_keeps_less_and_computes_more():
    points, eager, apart = swept()
    kept, flops = [p.kept for p in points], [p.flops for p in points]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    assert flops == sorted(flops) and flops[0] == eager.flops
    assert set(apart) <= {"< 1e-7", "< 1e-6"}  # another order of the same sums


@pytest.mark.slow
def test_the_budget_is_not_the_peak():
    points, eager, _ = swept()
    best = compiler_budget.lowest(points)
    assert 0 < best.budget < 1
    assert points[-1].budget == 0 and points[-1].peak > 1.3 * best.peak
    assert points[-1].peak > eager.peak


@pytest.mark.slow
def test_every_budget_can_be_read_off():
    points, eager, _ = swept()
    explorer = compiler_budget.budget_explorer(points, eager)
    assert [values["budget"] for values in explorer.positions()] == sorted(BUDGETS)
    for values in explorer.positions():
        explorer.move(**values)
        here = next(p for p in points if p.budget == values["budget"])
        for chosen in ("zh", "en"):
            with speaking(chosen):
                assert f"{here.flops / eager.flops - 1:+.1%}" in explorer.caption
                assert bool(HAN.search(explorer.caption)) == (chosen == "zh")


def test_a_region_has_a_budget_only_when_compiled():
    with pytest.raises(RuntimeError, match="can only be used inside"):
        region_activation_memory_budget(0.5).__enter__()


class Talkative(nn.Module):
    def __init__(self, breaks):
        super().__init__()
        self.up, self.down, self.breaks = nn.Linear(8, 16), nn.Linear(16, 8), breaks

    def forward(self, x):
        h = functional.gelu(self.up(x))
        if self.breaks:
            torch._dynamo.graph_break()
        return x + self.down(h)


@pytest.mark.parametrize(
    ("breaks", "inside", "expected"),
    [(False, False, 1), (False, True, 1), (True, False, 2), (True, True, 0)],
)
def test_a_break_inside_a_checkpoint_leaves_nothing_compiled(breaks, inside, expected):
    block, graphs = Talkative(breaks), []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    @partial(torch.compile, backend=counting)
    def forward(x):
        return checkpoint(block, x, use_reentrant=False) if inside else block(x)

    torch._dynamo.reset()
    forward(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert len(graphs) == expected


# --- offloading ---------------------------------------------------------------------------------


def test_a_policy_that_says_offload_moves_nothing():
    def step_under(policy):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.GELU())
        x = torch.randn(32, 16, requires_grad=True)
        contexts = partial(create_selective_checkpoint_contexts, lambda *about, **more: policy)

        def step():
            checkpoint(net, x, use_reentrant=False, context_fn=contexts).sum().backward()

        return measure_pools(step, net, inputs=x)

    offload = step_under(CheckpointPolicy.MUST_CPU_OFFLOAD)
    again = step_under(CheckpointPolicy.MUST_RECOMPUTE)
    keep = step_under(CheckpointPolicy.MUST_SAVE)
    assert offload.moved == offload.host_peak == 0
    assert offload.trace.flops == again.trace.flops > keep.trace.flops
    assert offload.device_peak == again.device_peak


@functools.cache
def blocks():
    return tuple(offloading.measure_blocks((128, 1024, 4096), tokens=512))


def test_the_bytes_and_operations_of_a_block():
    for block in blocks():
        assert 14 < block.kept / (2 * 512 * block.width) < 17  # bfloat16
        linear, attention = 24 * 512 * block.width**2, 4 * 512**2 * block.width
        assert block.flops == linear + attention


def test_at_the_break_even_both_take_the_same_time():
    for block in blocks():
        even = block.break_even(2e14)
        assert math.isclose(block.moving(even), block.recomputing(2e14))
        assert block.moving(2 * even) < block.recomputing(2e14) < block.moving(even / 2)
        assert math.isclose(block.break_even(4e14), 2 * even)
    evens = [block.break_even(2e14) for block in blocks()]
    assert evens == sorted(evens, reverse=True)


def test_the_explorer_says_who_is_faster_at_every_position():
    explorer = offloading.break_even_explorer(blocks())
    seen = set()
    for values in explorer.positions():
        data = blocks(), values["bandwidth"], values["speed"]
        faster = offloading.quicker_to_move(
            blocks(), values["bandwidth"] * 1e9, values["speed"] * 1e12
        )
        zh, en = offloading._title(data)
        seen.add(len(faster))
        if faster and len(faster) < len(blocks()):
            assert f"{faster[0].width:,}" in zh and f"{faster[0].width:,}" in en
            assert faster == list(blocks()[-len(faster) :])
        crossing = offloading._crossing([7, 10, 12], *offloading._seconds(data))
        assert (crossing is not None) == (0 < len(faster) < len(blocks()))
        explorer.move(**values)
        assert f"{values['bandwidth']} GB/s" in explorer.caption
    assert {0, 1} <= seen


def test_a_width_that_heads_do_not_divide_is_refused():
    with speaking("en"), pytest.raises(ValueError, match="multiple of 64, not 100"):
        offloading.measure_block(100)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2.5, "2.5 s"), (1.0, "1 s"), (0.00394, "3.94 ms"), (8.59e-4, "859 µs"), (5e-8, "50 ns")],
)
def test_times_to_read(seconds, words):
    assert offloading._time_text(seconds) == words


# --- the loss -----------------------------------------------------------------------------------

TOKENS, WIDTH, WORDS = 512, 16, 2000


def whole(hidden, head, targets):
    return functional.cross_entropy(head(hidden), targets)


def in_chunks(hidden, head, targets, chunks):
    def part(h, t):
        return functional.cross_entropy(head(h), t, reduction="sum")

    parts = zip(hidden.chunk(chunks), targets.chunk(chunks), strict=True)
    return sum(checkpoint(part, *one, use_reentrant=False) for one in parts) / len(targets)


def fused(hidden, head, targets, options=None):
    return functional.linear_cross_entropy(
        hidden, head.weight, targets, linear_bias=head.bias, options=options
    )


WAYS = {
    "whole": whole,
    "one": lambda *about: checkpoint(whole, *about, use_reentrant=False),
    "chunks": partial(in_chunks, chunks=8),
    "fused": fused,
    "options": partial(fused, options=nn.LinearCrossEntropyOptions()),
}


@functools.cache
def loss_of(way):
    torch.manual_seed(0)
    hidden, head = torch.randn(TOKENS, WIDTH, requires_grad=True), nn.Linear(WIDTH, WORDS)
    targets = torch.randint(WORDS, (TOKENS,))
    trace = measure(
        lambda: WAYS[way](hidden, head, targets).backward(), head, inputs=(hidden, targets)
    )
    return trace, [hidden.grad, head.weight.grad, head.bias.grad]


def test_what_each_way_out_takes():
    plain = loss_of("whole")[0]
    logits = 4 * TOKENS * WORDS
    assert 3 * logits < plain.peak < 3.3 * logits
    tiny = 10_000  # a random state, for one
    assert abs(loss_of("one")[0].peak - plain.peak) < tiny
    assert abs(loss_of("fused")[0].peak - plain.peak) < tiny
    assert loss_of("chunks")[0].peak < 0.2 * plain.peak
    assert loss_of("options")[0].peak < 0.2 * plain.peak


def test_what_each_way_out_computes():
    plain = loss_of("whole")[0].flops
    product = 2 * TOKENS * WIDTH * WORDS
    assert loss_of("one")[0].flops == loss_of("chunks")[0].flops == plain + product
    assert loss_of("fused")[0].flops == plain


@pytest.mark.parametrize(
    ("way", "equal", "apart"),
    [("one", "3 / 3", "0"), ("fused", "3 / 3", "0"), ("chunks", "1 / 3", "< 1e-6")],
)
def test_how_far_the_gradients_are_apart(way, equal, apart):
    assert loss.distance(loss_of(way)[1], loss_of("whole")[1]) == (equal, apart)


def test_with_options_no_gradient_is_equal_and_all_are_close():
    equal, apart = loss.distance(loss_of("options")[1], loss_of("whole")[1])
    assert equal == "0 / 3" and apart in ("< 1e-6", "< 1e-5")


def test_distance_is_a_share_of_the_whole():
    one, other = (
        [torch.tensor([3.0, 4.0]), torch.zeros(2)],
        [torch.tensor([3.0, 4.5]), torch.zeros(2)],
    )
    assert loss.distance(one, other) == ("1 / 2", "< 1e-1")
    assert loss.distance(one, one) == ("2 / 2", "0")


def test_the_explorer_of_chunks():
    def ask(chunks):
        torch.manual_seed(0)
        hidden, head = torch.randn(TOKENS, WIDTH, requires_grad=True), nn.Linear(WIDTH, WORDS)
        targets = torch.randint(WORDS, (TOKENS,))
        way = partial(in_chunks, chunks=chunks) if chunks else whole
        return measure(
            lambda: way(hidden, head, targets).backward(), head, inputs=(hidden, targets)
        )

    sweep = loss.sweep_chunks(ask, (1, 4))
    explorer = loss.chunks_explorer(sweep)
    with speaking("en"):
        explorer.move(chunks=4)
        assert explorer.caption.startswith("4 chunks: peak ")
    assert loss._title(1, 0.0) == ("分 1 块，什么也没省", "1 chunk: nothing is saved")
    share = sweep.by_number[4].peak / sweep.whole.peak - 1
    assert loss._title(4, share) == (
        f"分 4 块，峰值降 {-share:.0%}",
        f"4 chunks: the peak falls by {-share:.0%}",
    )
    assert sweep.whole.at_peak[Role.TEMPORARY] > sweep.by_number[4].at_peak[Role.TEMPORARY]
