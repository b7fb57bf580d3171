"""`measure` on a real GPU, against the allocator's own statistics; skipped where there is none."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from course_lib.memory import MemoryTrace, Role, measure
from support.independent import Step
from support.steps import STEPS, Block, Blocks

if not torch.cuda.is_available():
    pytest.skip("no GPU that torch can use: what is measured on one was not tested",
                allow_module_level=True)  # fmt: skip

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda:0")
# NumPy's memory is the CPU's; a dispatch mode makes autograd clone a sparse gradient; marks of the
# CPU's source are no matter here.
LEFT_OUT = {
    "from_numpy", "sparse_embedding", "bytes_as_large_as_a_mark", "bytes_as_large_as_every_mark",
}  # fmt: skip
ON_GPU = sorted(STEPS.keys() - LEFT_OUT)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def made(name: str) -> Step:
    """The step with everything on the GPU, and a tensor without bytes to say so if need be."""
    with GPU:
        step = STEPS[name]()
        return replace(step, inputs=(step.inputs, torch.empty(0)))


def measured(name: str) -> MemoryTrace:
    step = made(name)
    with GPU:
        return measure(step.run, step.model, step.optimizer, step.inputs)


def requested(what: str) -> int:
    return torch.cuda.memory_stats(GPU)[f"requested_bytes.all.{what}"]


@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.filterwarnings("ignore:(None of the inputs|The step never)")
def test_totals_equal_requested_bytes(name: str) -> None:
    with GPU:
        made(name).run()  # workspaces and plans that the libraries make once
    step = made(name)
    with no_collector(), GPU:
        torch.cuda.reset_peak_memory_stats(GPU)
        before = requested("current")
        step.run()
        peak, after = requested("peak") - before, requested("current") - before
    del step
    trace = measured(name)
    existed = sum(trace.before.values())
    assert trace.source == "cuda allocator"
    assert sum(trace.at_peak.values()) == trace.peak
    assert trace.peak - existed == peak
    assert (trace.events[-1].total if trace.events else existed) - existed == after


@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.filterwarnings("ignore:(None of the inputs|The step never)")
def test_measuring_twice_gives_the_same_bytes(name: str) -> None:
    with GPU:
        made(name).run()
    first, second = measured(name), measured(name)
    assert (first.at_peak, first.kept) == (second.at_peak, second.kept)


# Of these, the kernels keep the same values on both devices.
@pytest.mark.parametrize(
    "name", ("mlp", "checkpoints", "reentrant_checkpoints", "nested_checkpoints",
             "function_that_recomputes", "residual_fan_out", "gradient_accumulation"),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_roles_as_on_the_cpu(name: str) -> None:
    step = STEPS[name]()
    there = measure(step.run, step.model, step.optimizer, step.inputs)
    here = measured(name)
    unlike = {
        Role.RANDOM_STATE,
        Role.WORKSPACE,
    }  # the one stays on the CPU, the other is a kernel's
    for role in here.kept.keys() - unlike:
        assert here.kept[role] == there.kept[role], role
    assert here.kept[Role.RANDOM_STATE] == 0
    assert here.flops == there.flops


def test_a_backward_pass_keeps_its_lines_and_modules() -> None:
    trace = measured("checkpoints")
    gradients = [event for event in trace.events if event.role is Role.GRADIENT and event.size > 0]
    assert gradients
    assert all(event.line and event.module for event in gradients)
    assert any(event.role is Role.RECOMPUTED for event in trace.events)


def test_a_block_that_another_stream_uses() -> None:
    x = torch.randn(1 << 20, device=GPU)
    side = torch.cuda.Stream(GPU)

    def step() -> None:
        y = x * 2
        side.wait_stream(torch.cuda.current_stream(GPU))
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            y.record_stream(side)
        del y
        torch.zeros(1 << 20, device=GPU)  # y is still in use: not in its place

    step()
    torch.cuda.synchronize(GPU)
    trace = measure(step, inputs=x)
    assert trace.peak == 3 * x.nbytes
    torch.cuda.synchronize(GPU)


def test_the_steps_effects_are_those_of_the_bare_step() -> None:
    def trained(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        with GPU:
            model, x = Blocks("non-reentrant", dropout=0.5), torch.randn(32, 64)
        optimizer = torch.optim.AdamW(model.parameters())

        def step() -> None:
            model(x).square().mean().backward()
            optimizer.step()

        measure(step, model, optimizer, x) if watched else step()
        gradients = [parameter.grad for parameter in model.parameters()]
        return [*model.parameters(), *gradients, torch.cuda.get_rng_state(GPU)]

    for plain, watched in zip(trained(False), trained(True), strict=True):
        assert torch.equal(plain, watched)


def test_nothing_is_left_behind() -> None:
    with GPU:
        block, x = Block(64, 256), torch.randn(32, 64)
    measure(lambda: block(x).sum().backward(), block, inputs=x)
    block.zero_grad()
    before = requested("current")
    label = torch.cuda.memory._get_memory_metadata()
    measure(lambda: block(x).sum().backward(), block, inputs=x)
    block.zero_grad()
    assert requested("current") == before
    assert torch.cuda.memory._get_memory_metadata() == label
    assert not torch._C._cuda_isHistoryEnabled()
    assert torch._C._is_multithreading_enabled()


def test_out_of_memory_passes_through() -> None:
    x = torch.ones(1, device=GPU)
    with pytest.raises(torch.OutOfMemoryError):
        measure(lambda: x.expand(1 << 45).clone(), inputs=x)
    assert not torch._C._cuda_isHistoryEnabled()


def test_a_learners_own_history_is_left_as_it_is() -> None:
    x = torch.ones(3, device=GPU)
    torch.cuda.memory._record_memory_history(context=None, stacks="python")
    try:
        with pytest.raises(RuntimeError, match="_record_memory_history"):
            measure(lambda: x * 2, inputs=x)
        assert torch._C._cuda_isHistoryEnabled()
    finally:
        torch.cuda.memory._record_memory_history(None)


def test_numbers_are_no_bytes_of_the_gpu() -> None:
    x = torch.ones((), dtype=torch.float64, device=GPU)
    assert measure(lambda: (x * 2) + 3, inputs=x).peak == 3 * 8


def test_a_gpu_that_nobody_mentioned() -> None:
    with pytest.raises(RuntimeError, match="memory of a GPU"):
        measure(lambda: torch.ones(3, device=GPU))


def test_random_state_is_kept_on_the_cpu() -> None:
    with GPU:
        block, x = nn.Sequential(Block(64, 256, dropout=0.1)), torch.randn(32, 64)
    trace = measure(
        lambda: checkpoint(block, x, use_reentrant=False).sum().backward(), block, inputs=x
    )
    assert not any(event.role is Role.RANDOM_STATE for event in trace.events)
