"""`measure`: bytes against an independent count, roles by hand, nothing left behind, bad input."""

from __future__ import annotations

import functools
import gc
import signal
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import optimizer as optimizers
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from course_lib import language
from course_lib.memory import (
    Event,
    MemoryTrace,
    Role,
    measure,
    measuring,
    recorder,
    simulated,
    sources,
)
from course_lib.memory.ranks import ONLY_IN_A_GROUP
from support.independent import Step, bytes_before, count
from support.steps import STEPS, Block, Blocks, RecomputingFunction

RANDOM_STATE = torch.get_rng_state().nbytes
# The roles that a trace holds even where there is none of them.
EVERYWHERE = {*Role} - {Role.OFFLOADED, *ONLY_IN_A_GROUP}
# A dispatch mode, any, makes autograd clone a sparse gradient that it would have kept as it is.
INEXACT = {"sparse_embedding"}


def measured_anew(name: str) -> MemoryTrace:
    step = STEPS[name]()
    return measure(step.run, step.model, step.optimizer, step.inputs)


measured = functools.cache(measured_anew)  # many tests look at one trace


def made(trace: MemoryTrace, role: Role) -> int:
    """Bytes ever allocated for a role during the step."""
    return sum(event.size for event in trace.events if event.role == role and event.size > 0)


def alive_at_the_end(trace: MemoryTrace, role: Role) -> int:
    return trace.before[role] + sum(event.size for event in trace.events if event.role == role)


# --- every byte ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.filterwarnings("ignore:(None of the inputs|The step never)")
def test_totals_equal_the_independent_count(name: str) -> None:
    STEPS[name]().run()  # one-time allocations of the operators' libraries
    counted, trace = count(STEPS[name]), measured_anew(name)
    assert sum(trace.at_peak.values()) == trace.peak
    assert sum(trace.before.values()) == counted.before
    if name not in INEXACT:
        assert trace.peak == counted.peak
        assert trace.events[-1].total == counted.after


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.filterwarnings("ignore:(None of the inputs|The step never)")
def test_a_trace_agrees_with_itself(name: str) -> None:
    trace = measured(name)
    total = sum(trace.before.values())
    for event in trace.events:
        total += event.size
        assert event.total == total
    totals = [sum(trace.before.values())] + [event.total for event in trace.events]
    assert trace.peak == max(totals) == totals[trace.peak_index + 1]
    assert sum(block.size for block in trace.alive_at_peak) == trace.peak
    assert trace.source == "cpu allocator"
    times = [event.time for event in trace.events]
    assert times == sorted(times)
    assert {*trace.at_peak} == {*trace.kept} == {*trace.before} == EVERYWHERE


# FlopCounterMode itself fails in autograd.grad with a leaf, and knows no formula for attention on
# a CPU, for LSTMs and for the products of two vectors in L-BFGS; see test_flops.py.
NOT_COUNTED_BY_PYTORCH = {"double_backward", "sdpa", "lstm", "lbfgs"}


@pytest.mark.parametrize("name", sorted(STEPS.keys() - NOT_COUNTED_BY_PYTORCH))
@pytest.mark.filterwarnings("ignore:(None of the inputs|The step never)")
def test_flops_equal_flop_counter_mode(name: str) -> None:
    step = STEPS[name]()
    with FlopCounterMode(display=False) as counter:
        step.run()
    assert measured(name).flops == counter.get_total_flops()


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_operators_that_use_several_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ("mlp", "conv_net", "transformer_encoder"):
            STEPS[name]().run()
            assert measured_anew(name).peak == count(STEPS[name]).peak
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("backend", "budget"), (("eager", 1), ("aot_eager", 0.3), ("aot_eager_decomp_partition", 1))
)
@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
def test_a_compiled_model(backend: str, budget: float) -> None:
    """Its own bytes: not those of the model uncompiled, nor of a recorder compiled with it."""

    def make() -> Step:
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = nn.Sequential(*[Block(WIDTH, INNER) for _ in range(2)])
        x = torch.randn(256, WIDTH)
        compiled = torch.compile(model, backend=backend)

        def run() -> None:
            compiled(x).sum().backward()

        run()
        model.zero_grad()
        return Step(run, model, inputs=x)

    with functorch_config.patch(activation_memory_budget=budget):
        make().run()
        counted, step = count(make), make()
        trace = measure(step.run, step.model, inputs=step.inputs)
    assert sum(trace.at_peak.values()) == trace.peak == counted.peak
    assert trace.events[-1].total == counted.after
    torch._dynamo.reset()


def test_what_exists_before_is_counted_by_hand() -> None:
    for name in ("mlp", "trained_before", "conv_net", "view_of_a_large_storage", "tied_embedding"):
        assert sum(measured(name).before.values()) == bytes_before(STEPS[name]())


def test_measuring_twice_gives_the_same_bytes() -> None:
    first, second = measured_anew("checkpoints"), measured_anew("checkpoints")

    def bytes_and_names(event: Event) -> tuple:
        return event.size, event.role, event.operator, event.module, event.line, event.phase

    assert list(map(bytes_and_names, first.events)) == list(map(bytes_and_names, second.events))


@pytest.mark.parametrize("name", ("bytes_as_large_as_a_mark", "bytes_as_large_as_every_mark"))
def test_the_steps_own_blocks_are_never_taken_for_marks(name: str) -> None:
    seen = []
    for _ in range(25):  # where malloc puts things depends on what ran before
        measured_anew("mlp")
        trace = measured_anew(name)
        seen.append((trace.kept, trace.at_peak))
    assert seen == seen[:1] * len(seen)
    assert seen[0][0][Role.TEMPORARY] == 64 * 4 + 4  # the leaf and the loss


def test_a_tensor_nobody_mentioned_is_found() -> None:
    weight, x = torch.randn(8, 4, requires_grad=True), torch.randn(2, 8)
    trace = measure(lambda: (x @ weight).sum().backward())
    assert trace.before[Role.PARAMETER] == 8 * 4 * 4
    assert trace.before[Role.INPUT] == 2 * 8 * 4


def test_a_view_counts_its_whole_storage_once() -> None:
    large = torch.randn(100, 8)
    trace = measure(lambda: large[3:4] * large[7], inputs=(large[0], large[1:2], large[5:5]))
    assert trace.before[Role.INPUT] == sum(trace.before.values()) == 100 * 8 * 4


def test_a_wrapper_subclass_counts_what_it_wraps() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    x = TwoTensor(torch.randn(4, 4), torch.randn(4, 4))
    parameter = nn.Parameter(x)
    trace = measure(lambda: (parameter * 2).sum().backward(), inputs=parameter)
    assert sum(trace.before.values()) == 2 * 4 * 4 * 4
    assert sum(trace.at_peak.values()) == trace.peak
    assert alive_at_the_end(trace, Role.GRADIENT) == 2 * 4 * 4 * 4


def test_a_lazy_module_is_measured_as_it_takes_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU())
    trace = measure(lambda: model(torch.ones(2, 4)).sum().backward(), model)
    assert trace.before[Role.PARAMETER] == 0
    assert alive_at_the_end(trace, Role.PARAMETER) == (4 * 8 + 8) * 4


def test_many_short_steps_in_one_measurement_stay_cheap() -> None:
    model, x = nn.Linear(4, 4), torch.randn(2, 4)

    def run() -> None:
        for _ in range(300):
            model(x).sum().backward()

    assert measure(run, model, inputs=x).kept[Role.GRADIENT] == (4 * 4 + 4) * 4


# --- roles, worked out by hand ------------------------------------------------------------------

BATCH, WIDTH, INNER, BLOCKS = 32, 64, 256, 8
BETWEEN = BATCH * WIDTH * 4  # a value between two of the blocks, in bytes
INSIDE = 2 * BATCH * INNER * 4  # what a block keeps: the inputs of GELU and of its second Linear
PARAMETERS = BLOCKS * 4 * (2 * WIDTH * INNER + INNER + WIDTH)


def a_step(kind: str = "", **options: object) -> tuple[Callable[[], None], nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Blocks(kind, **options)
    x = torch.randn(BATCH, WIDTH, requires_grad=kind == "reentrant")
    return lambda: model(x).square().mean().backward(), model, x


def test_activations_of_plain_blocks() -> None:
    step, model, x = a_step()
    trace = measure(step, model, inputs=x)
    assert trace.kept == dict.fromkeys(EVERYWHERE, 0) | {
        Role.PARAMETER: PARAMETERS,
        Role.INPUT: BETWEEN,
        # between the blocks, and the last output, which square() keeps
        Role.ACTIVATION: BLOCKS * INSIDE + BLOCKS * BETWEEN,
        Role.TEMPORARY: 4,  # the loss: a scalar that no backward operator reads
    }
    assert made(trace, Role.RECOMPUTED) == made(trace, Role.CHECKPOINT) == 0
    assert alive_at_the_end(trace, Role.GRADIENT) == PARAMETERS


def test_checkpoints_of_non_reentrant_checkpointing() -> None:
    step, model, x = a_step("non-reentrant")
    trace = measure(step, model, inputs=x)
    assert trace.kept == dict.fromkeys(EVERYWHERE, 0) | {
        Role.PARAMETER: PARAMETERS,
        Role.INPUT: BETWEEN,  # the first checkpoint keeps the input: it stays an input
        Role.CHECKPOINT: (BLOCKS - 1) * BETWEEN,
        Role.ACTIVATION: BETWEEN,  # the last output
        Role.RANDOM_STATE: BLOCKS * RANDOM_STATE,
        Role.TEMPORARY: 4,
    }
    # Early stop: the second Linear of each block is not run again.
    assert made(trace, Role.RECOMPUTED) == BLOCKS * INSIDE
    assert made(trace, Role.RANDOM_STATE) == 2 * BLOCKS * RANDOM_STATE


def test_checkpoints_of_reentrant_checkpointing() -> None:
    step, model, x = a_step("reentrant")
    trace = measure(step, model, inputs=x)
    assert trace.kept[Role.CHECKPOINT] == (BLOCKS - 1) * BETWEEN
    assert trace.kept[Role.ACTIVATION] == BETWEEN
    assert trace.kept[Role.RANDOM_STATE] == BLOCKS * RANDOM_STATE
    assert trace.kept_for_backward() == BLOCKS * (BETWEEN + RANDOM_STATE)
    assert made(trace, Role.RECOMPUTED) == BLOCKS * (INSIDE + BETWEEN)  # no early stop
    assert alive_at_the_end(trace, Role.GRADIENT) == PARAMETERS + BETWEEN  # of the input too


def test_without_random_state_none_is_kept() -> None:
    block, x = Block(WIDTH, INNER), torch.randn(BATCH, WIDTH)

    def step() -> None:
        y = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
        y.square().mean().backward()

    trace = measure(step, block, inputs=x)
    assert made(trace, Role.RANDOM_STATE) == 0
    assert made(trace, Role.RECOMPUTED) == INSIDE


def test_nested_checkpoints() -> None:
    trace = measured("nested_checkpoints")
    assert trace.kept[Role.ACTIVATION] == BETWEEN
    assert trace.kept[Role.CHECKPOINT] == 0  # only the input, and that is an input
    # The outermost brings back the values between blocks, the inner ones what is in each block.
    assert made(trace, Role.RECOMPUTED) >= (BLOCKS - 1) * BETWEEN + BLOCKS * INSIDE


def test_checkpoints_of_a_handwritten_function() -> None:
    trace = measured("function_that_recomputes")
    assert trace.kept[Role.CHECKPOINT] == (BLOCKS - 1) * BETWEEN
    assert trace.kept[Role.ACTIVATION] == BETWEEN
    assert made(trace, Role.RECOMPUTED) == BLOCKS * (INSIDE + BETWEEN)


def test_checkpoints_of_handwritten_hooks() -> None:
    """The hook runs without a graph, so grad mode does not tell recomputation from backward."""
    trace = measured("hooks_that_recompute")
    value = 64 * 64 * 4
    assert made(trace, Role.RECOMPUTED) == 3 * value  # each sine once
    assert trace.kept[Role.CHECKPOINT] == 3 * value  # x * 2 and the results of the first two steps


def test_a_module_run_by_hooks_is_recomputation() -> None:
    linear, x = nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)

    def step() -> None:
        y = x * 2
        z = linear(y)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: y.detach(), linear):
            z = z.sin()  # keeps z
        z.sum().backward()

    trace = measure(step, linear, inputs=x)
    assert trace.kept[Role.CHECKPOINT] == made(trace, Role.RECOMPUTED) == 4 * 8 * 4


def test_a_gradient_hook_is_not_recomputation() -> None:
    x = torch.randn(8, 8, requires_grad=True)

    def step() -> None:
        y = x.exp()
        y.register_hook(lambda gradient: gradient * y.detach())
        y.sum().backward()

    trace = measure(step, inputs=x)
    assert made(trace, Role.RECOMPUTED) == made(trace, Role.CHECKPOINT) == 0


def test_second_accumulation_is_a_gradient() -> None:
    model, x = nn.Linear(64, 10), torch.randn(32, 64)
    parameters = (64 * 10 + 10) * 4

    def step() -> None:
        model(x).sum().backward()

    first = measure(step, model, inputs=x)
    assert alive_at_the_end(first, Role.GRADIENT) == made(first, Role.GRADIENT) == parameters
    second = measure(step, model, inputs=x)
    assert second.before[Role.GRADIENT] == parameters
    assert alive_at_the_end(second, Role.GRADIENT) == parameters
    assert made(second, Role.GRADIENT) == parameters  # the one that is added, then freed
    assert not [event for event in second.events
                if event.role == Role.TEMPORARY and event.size == 64 * 10 * 4]  # fmt: skip


def test_gradients_assigned_by_hand_are_gradients() -> None:
    trace = measured("autograd_grad")
    assert alive_at_the_end(trace, Role.GRADIENT) == PARAMETERS // BLOCKS


@pytest.mark.parametrize("foreach", (False, True))
def test_optimizer_state(foreach: bool) -> None:
    step, model, x = a_step()
    count_of_parameters = len(list(model.parameters()))
    for optimizer, state in (
        (torch.optim.AdamW(model.parameters(), foreach=foreach),
         2 * PARAMETERS + 4 * count_of_parameters),
        (torch.optim.SGD(model.parameters(), momentum=0.9, foreach=foreach), PARAMETERS),
        (torch.optim.SGD(model.parameters(), foreach=foreach), 0),
    ):  # fmt: skip
        model.zero_grad()

        def run(optimizer: torch.optim.Optimizer = optimizer) -> None:
            step()
            optimizer.step()

        trace = measure(run, model, optimizer, x)
        assert trace.before[Role.OPTIMIZER_STATE] == 0
        assert alive_at_the_end(trace, Role.OPTIMIZER_STATE) == state
        assert measure(run, model, optimizer, x).before[Role.OPTIMIZER_STATE] == state


def test_the_first_step_of_a_process_does_not_pay_for_what_torch_loads_late() -> None:
    """checkpoint() loads torch._dynamo when it is first called, which takes longer than a step."""
    program = (
        "import sys, course_lib; from course_lib.memory import measure\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "measure(lambda: print(before, 'torch._dynamo' in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert run.stdout.split() == ["False", "True"]


def test_optimizer_step_peak() -> None:
    model, x = nn.Linear(256, 256), torch.randn(1, 256)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(x).sum().backward()
        optimizer.step()

    trace = measure(step, model, optimizer, x)
    assert trace.peak_phase == "optimizer step"
    assert trace.at_peak[Role.OPTIMIZER_STATE] >= 2 * 256 * 256 * 4


def test_an_update_inside_backward_is_an_optimizer_step() -> None:
    trace = measured("optimizer_in_backward")
    assert "optimizer step" in {event.phase for event in trace.events}
    # The optimizers need not be mentioned: they are met at work.
    assert alive_at_the_end(trace, Role.OPTIMIZER_STATE) == PARAMETERS
    assert made(trace, Role.RECOMPUTED) == 0


def test_lbfgs_keeps_forward_backward_and_update_apart() -> None:
    phases = {event.phase for event in measured("lbfgs").events}
    assert phases == {"forward", "backward", "optimizer step"}


def test_buffers() -> None:
    model, x = nn.BatchNorm1d(16), torch.randn(4, 16)
    trace = measure(lambda: model(x).sum().backward(), model, inputs=x)
    assert trace.before[Role.BUFFER] == 2 * 16 * 4 + 8
    assert alive_at_the_end(trace, Role.BUFFER) == 2 * 16 * 4 + 8


def test_batch_norm_statistics_are_kept_for_backward() -> None:
    model, x = nn.BatchNorm1d(16), torch.randn(4, 16)
    trace = measure(lambda: model(x).square().sum().backward(), model, inputs=x)
    assert trace.kept[Role.ACTIVATION] == 4 * 16 * 4 + 2 * 16 * 4  # output, mean and deviation


def test_dropout_mask() -> None:
    x = torch.randn(32, 64, requires_grad=True)
    trace = measure(lambda: F.dropout(x, 0.5).sum().backward(), inputs=x)
    assert trace.kept[Role.ACTIVATION] in (32 * 64, 32 * 64 * 4)  # bool or scaled float
    assert trace.kept[Role.TEMPORARY] == 4


def test_a_convolution_has_workspace() -> None:
    trace = measured("conv_net")
    assert made(trace, Role.WORKSPACE) > 0
    assert trace.kept[Role.WORKSPACE] == 0
    assert made(measured("mlp"), Role.WORKSPACE) < 100  # scalars such as the 2 of x * 2


def test_frozen_parameters_have_no_gradient() -> None:
    step = STEPS["frozen_base"]()
    trace = measure(step.run, step.model, step.optimizer, step.inputs)
    head = (64 * 10 + 10) * 4
    assert trace.before[Role.PARAMETER] == 4 * PARAMETERS // BLOCKS + head
    assert alive_at_the_end(trace, Role.GRADIENT) == head


def test_tied_weights_count_once() -> None:
    trace = measured("tied_embedding")
    assert trace.before[Role.PARAMETER] == (100 * 32 + 32 * 64 + 64 + 64 * 32 + 32) * 4
    assert alive_at_the_end(trace, Role.GRADIENT) == trace.before[Role.PARAMETER]


def test_the_loss_gradient_is_not_kept_under_a_default_device() -> None:
    step, model, x = a_step()

    def run() -> None:
        with torch.device("cpu"):  # a function mode, which stands between autograd and operator
            step()

    trace = measure(run, model, inputs=x)
    assert trace.kept[Role.TEMPORARY] == 4  # the loss, and not yet its gradient


def test_kept_is_the_fullest_forward_end() -> None:
    model = nn.Linear(8, 8)

    def step() -> None:
        for rows in (4, 64, 16):
            model(torch.ones(rows, 8)).square().mean().backward()

    trace = measure(step, model)
    # aten.ones makes the inputs inside the step, and addmm's backward reads them
    assert trace.kept[Role.ACTIVATION] == 2 * 64 * 8 * 4


def test_no_grad_keeps_nothing() -> None:
    model, x = Blocks(), torch.randn(BATCH, WIDTH)

    def step() -> None:
        with torch.no_grad():
            model(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = measure(step, model, inputs=x)
    assert made(trace, Role.ACTIVATION) == 0
    assert trace.peak_phase == "forward"
    assert trace.kept[Role.TEMPORARY] == 0


# --- where --------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.first, self.second, self.kind = Written(), Written(), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "handwritten":
            return self.second(RecomputingFunction.apply(self.first, x))
        if self.kind:
            x = checkpoint(self.first, x, use_reentrant=self.kind == "reentrant")
            return self.second(x)
        return self.second(self.first(x))


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight  # the product
        return y.sin()  # the sine


@pytest.mark.parametrize("kind", ("", "non-reentrant", "reentrant", "handwritten"))
def test_modules_and_lines_are_the_learners(kind: str) -> None:
    model, x = Two(kind), torch.ones(4, 16, requires_grad=True)
    trace = measure(lambda: model(x).sum().backward(), model, inputs=x)

    def where(role: Role, operator: str) -> set[tuple[str | None, str]]:
        return {
            (event.module, event.line.split("# ")[-1])
            for event in trace.events
            if event.role == role and event.operator == operator and event.size > 0
        }

    # the products that sin keeps and the sine that the second product keeps; of the first module,
    # a checkpoint leaves only that
    assert trace.kept[Role.ACTIVATION] == (2 if kind else 3) * 4 * 16 * 4
    first, second = ("first", "the product"), ("second", "the product")
    assert where(Role.ACTIVATION, "aten.mm") == ({second} if kind else {first, second})
    assert where(Role.RECOMPUTED, "aten.mm") == ({first} if kind else set())
    # Backward: cos belongs to the sine's line, mm to the product's.
    backward = {
        (event.module, event.line.split("# ")[-1])
        for event in trace.events
        if event.phase == "backward" and event.operator == "aten.cos" and event.size > 0
    }
    assert backward == {("first", "the sine"), ("second", "the sine")}
    gradients = {(event.module, event.line.split("# ")[-1]) for event in trace.events
                 if event.role == Role.GRADIENT and event.size == 16 * 16 * 4}  # fmt: skip
    assert gradients == {first, second}
    assert all("test_memory.py:" in event.line for event in trace.events if event.line)


def test_the_top_module_has_the_empty_path_and_functions_none() -> None:
    trace = measured("plain_function")
    assert {event.module for event in trace.events} == {None}
    model = Written()
    trace = measure(lambda: model(torch.ones(4, 16)).sum().backward(), model)
    assert {event.module for event in trace.events if event.operator == "aten.sin"} == {""}


def test_modules_stay_in_order_when_a_forward_raises() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise LookupError

    class Survives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raises, self.after = nn.Sequential(Raises()), Written()

        def forward(self, x: Tensor) -> Tensor:
            try:
                self.raises(x)
            except LookupError:
                x = x.cos()
            return self.after(x)

    model = Survives()
    trace = measure(lambda: model(torch.ones(4, 16)).sum().backward(), model)
    forward = [e for e in trace.events if e.phase == "forward" and e.size > 0]
    assert [e.module for e in forward if e.operator == "aten.cos"] == [""]
    assert [e.module for e in forward if e.operator == "aten.mm"] == ["after"]


# --- nothing is left behind ---------------------------------------------------------------------


def surroundings() -> dict[str, object]:
    hooks = nn.modules.module
    return {
        "module hooks": [
            len(getattr(hooks, name)) for name in vars(hooks)
            if name.startswith("_global_") and hasattr(getattr(hooks, name), "__len__")
        ],
        "optimizer hooks": (
            len(optimizers._global_optimizer_pre_hooks),
            len(optimizers._global_optimizer_post_hooks),
        ),
        "dispatch modes": _get_current_dispatch_mode_stack(),
        "function modes": _get_current_function_mode_stack(),
        "grad mode": torch.is_grad_enabled(),
        "collector": gc.isenabled(),
        "profiles": (sys.getprofile(), threading.getprofile()),
        "profiler": torch.autograd._profiler_enabled(),
        "random state": torch.get_rng_state().tolist(),
    }  # fmt: skip


def living_bytes() -> int:
    """Bytes of all tensors that Python can reach."""
    while gc.collect():  # what earlier tests left may take more than one round
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some deprecated objects warn on isinstance
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    storages = {}
    for tensor in tensors:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def test_nothing_is_left_behind() -> None:
    step, model, x = a_step("non-reentrant")
    measure(step, model, inputs=x)
    before, bytes_alive = surroundings(), living_bytes()
    trace = measure(step, model, inputs=x)
    assert surroundings() == before
    assert living_bytes() == bytes_alive
    assert trace.events


def test_nothing_keeps_tensors_alive() -> None:
    references: list[weakref.ref] = []

    def step() -> None:
        y = checkpoint(torch.sin, torch.ones(8, 8, requires_grad=True) * 2, use_reentrant=False)
        references.append(weakref.ref(y))
        y.sum().backward()

    model = nn.Linear(4, 4)
    x = torch.ones(3, 4)
    references += [weakref.ref(x), weakref.ref(model.weight), weakref.ref(model)]
    gc.disable()  # no help from the cycle collector
    try:
        trace = measure(step, model, inputs=x)
        del model, x
        assert [reference() for reference in references] == [None] * 4
    finally:
        gc.enable()
    assert trace.peak


def test_what_the_step_frees_is_freed_at_once() -> None:
    """No reference of the measurement's own holds what existed before."""
    holder = {"model": nn.Linear(64, 64)}
    holder["model"](torch.ones(2, 64)).sum().backward()
    parameters = (64 * 64 + 64) * 4

    def step() -> None:
        for parameter in holder["model"].parameters():
            parameter.grad = None
        torch.ones(8)

    trace = measure(step, holder["model"])
    assert trace.before[Role.GRADIENT] == parameters
    assert alive_at_the_end(trace, Role.GRADIENT) == 0
    assert trace.events[-2].total == parameters + 32  # the ones come when the gradients are gone


class Stop(BaseException):
    """Neither PyTorch nor anybody else catches it."""


def raising_steps() -> dict[str, Callable[[BaseException], tuple]]:
    def in_forward(error: BaseException) -> tuple:
        class Raises(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise error

        model, x = nn.Sequential(nn.Linear(8, 8), Raises()), torch.ones(2, 8)
        return (lambda: model(x), model, None, x)

    def in_backward(error: BaseException) -> tuple:
        model, x = nn.Linear(8, 8), torch.ones(2, 8)

        def hook(gradient: Tensor) -> None:
            raise error

        def step() -> None:
            y = model(x)
            y.register_hook(hook)
            y.sin().sum().backward()

        return step, model, None, x

    def in_recomputation(error: BaseException) -> tuple:
        calls = []

        class Raises(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                calls.append(x.shape)
                if len(calls) > 1:
                    raise error
                return x.sin().cos()

        model, x = Raises(), torch.ones(2, 8, requires_grad=True)
        return (
            lambda: checkpoint(model, x, use_reentrant=False).sum().backward(), model, None, x,
        )  # fmt: skip

    def in_the_optimizer(error: BaseException) -> tuple:
        class Raises(torch.optim.SGD):
            def step(self) -> None:
                torch.ones(8)
                raise error

        model, x = nn.Linear(8, 8), torch.ones(2, 8)
        optimizer = Raises(model.parameters())

        def step() -> None:
            model(x).sum().backward()
            optimizer.step()

        return step, model, optimizer, x

    return {f.__name__: f for f in (in_forward, in_backward, in_recomputation, in_the_optimizer)}


@pytest.mark.parametrize("where", raising_steps())
@pytest.mark.parametrize(
    "error", (ValueError("mine"), KeyboardInterrupt(), StopIteration(3), Stop()), ids=repr
)
def test_an_error_passes_through_unchanged(where: str, error: BaseException) -> None:
    step, model, optimizer, x = raising_steps()[where](error)
    before = surroundings()
    error.__traceback__ = None
    with pytest.raises(type(error)) as caught:
        measure(step, model, optimizer, x)
    assert caught.value is error
    assert error.__cause__ is None
    assert "raise error" in traceback.format_tb(error.__traceback__)[-1]
    assert surroundings() == before
    error.__traceback__ = None
    trace = measured_anew("mlp")
    assert sum(trace.at_peak.values()) == trace.peak == count(STEPS["mlp"]).peak


def test_an_error_leaves_no_tensor() -> None:
    references = []

    def step() -> None:
        y = torch.ones(8, requires_grad=True) * 2
        references.append(weakref.ref(y))
        raise ValueError(y.shape)

    gc.disable()
    try:
        with pytest.raises(ValueError):
            measure(step)
        caught = None  # noqa: F841  pytest's own reference
        assert gc.collect() >= 0 and references[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ("", "non-reentrant", "reentrant"))
@pytest.mark.parametrize("optimizer", (torch.optim.SGD, torch.optim.AdamW))
def test_the_step_does_what_it_does_unmeasured(kind: str, optimizer: type) -> None:
    def trained(run: Callable[[Callable, nn.Module], object]) -> list[Tensor]:
        step, model, _ = a_step(kind, residual=True, dropout=0.5)
        stepping = optimizer(model.parameters(), lr=0.1)

        def whole() -> None:
            step()
            stepping.step()

        run(whole, model)
        run(whole, model)
        return [*model.parameters(), *(p.grad for p in model.parameters()), torch.get_rng_state()]

    plain = trained(lambda step, model: step())
    watched = trained(lambda step, model: measure(step, model))
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


# --- bad input ----------------------------------------------------------------------------------


@pytest.fixture(params=("zh", "en"))
def spoken(request: pytest.FixtureRequest) -> Iterator[str]:
    """One language after the other, and back."""
    before = language.language()
    language.choose(request.param)
    yield request.param
    language.choose(before)


def refused(error: type[Exception], call: Callable[[], object], zh: str, en: str) -> None:
    before = surroundings()
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert (zh if language.language() == "zh" else en) in message
    assert any("一" <= letter <= "鿿" for letter in message) == (language.language() == "zh")
    assert surroundings() == before
    assert measure(lambda: torch.ones(3)).peak == 12


def test_a_step_that_is_no_function(spoken: str) -> None:
    refused(TypeError, lambda: measure(torch.ones(3)), "写 measure(lambda: f(x))",
            "not Tensor. To measure f(x), write measure(lambda: f(x))")  # fmt: skip


def test_a_step_that_takes_arguments(spoken: str) -> None:
    refused(TypeError, lambda: measure(lambda x: x), "'x'", "'x'")
    linear = nn.Linear(2, 2)
    refused(TypeError, lambda: measure(linear.forward), "'input'", "'input'")
    refused(TypeError, lambda: measure(linear), "'input'", "'input'")
    assert measure(lambda x=torch.ones(2): x.neg()).peak == 16  # noqa: B008
    assert measure(functools.partial(torch.ones, 3)).peak == 12


def test_a_step_that_only_would_run(spoken: str) -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.ones(3)

    async def later() -> None:
        torch.ones(3)

    for step in (batches, later, functools.partial(batches)):
        refused(TypeError, lambda step=step: measure(step), "调用它什么也不会运行", "runs nothing")


def test_something_that_is_no_model(spoken: str) -> None:
    linear = nn.Linear(2, 2)
    refused(TypeError, lambda: measure(int, torch.ones), "model 必须是 Module", "model must be")
    refused(TypeError, lambda: measure(int, None, linear), "optimizer 必须是",
            "optimizer must be of type Optimizer, not Linear")  # fmt: skip


def test_an_optimizer_of_another_model(spoken: str) -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters())
    refused(ValueError, lambda: measure(int, model, optimizer), "没有 model 的任何参数",
            "no parameter of model")  # fmt: skip


def test_a_measurement_inside_a_measurement(spoken: str) -> None:
    refused(RuntimeError, lambda: measure(lambda: measure(int)), "还没结束", "still running")


def test_a_profiler_that_is_running(spoken: str) -> None:
    with torch.profiler.profile() as profiler:
        with pytest.raises(RuntimeError, match=r"torch\.profiler"):
            measure(int)
        torch.ones(3).sin()
    assert any(event.name == "aten::sin" for event in profiler.events())  # it is unharmed
    assert measure(lambda: torch.ones(3)).peak == 12


def test_a_step_that_uses_a_profiler_itself(spoken: str) -> None:
    def step() -> None:
        with torch.profiler.profile():
            torch.ones(3)

    refused(RuntimeError, lambda: measure(step), "自己也用了 profiler", "used a profiler itself")


def test_a_step_that_simulates(spoken: str) -> None:
    def step() -> None:
        with simulated():
            torch.ones(3)

    refused(RuntimeError, lambda: measure(step), "把 measure 放进 simulated()",
            "measure inside simulated()")  # fmt: skip


def test_a_trace_asked_for_too_early(spoken: str) -> None:
    def early() -> None:
        with measuring() as result:
            result()

    refused(RuntimeError, early, "with 还没有结束", "has not ended")


def test_threads_of_jupyter_itself_are_let_pass() -> None:
    """JupyterLab opens a subshell, a thread of the kernel, whenever widgets talk to it."""
    subshell = type("SubshellThread", (threading.Thread,), {"__module__": "ipykernel.subshell"})

    def step() -> None:
        thread = subshell(target=int)
        thread.start()
        thread.join()
        torch.ones(3, requires_grad=True).sum().backward()

    assert measure(step).peak > 0


def test_a_step_that_starts_a_thread(spoken: str) -> None:
    def step() -> None:
        thread = threading.Thread(target=torch.ones, args=(3,), name="helper of mine")
        thread.start()
        thread.join()

    refused(RuntimeError, lambda: measure(step), "线程（helper of mine）", "(helper of mine)")


def test_a_step_that_works_in_a_thread_there_is(spoken: str) -> None:
    """Nobody sees that thread begin, but modules and optimizers say where they run."""
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(3, 2)
    with ThreadPoolExecutor(1, "worker of mine") as pool:
        pool.submit(int).result()

        def step() -> None:
            pool.submit(lambda: model(x).sum().backward()).result()

        refused(RuntimeError, lambda: measure(step, model), "worker of mine", "worker of mine")


def test_a_step_without_backward_warns(spoken: str) -> None:
    model = Blocks()
    with pytest.warns(UserWarning, match="backward") as caught:
        trace = measure(lambda: model(torch.ones(2, 64)), model)
    assert caught[0].filename == __file__
    assert trace.kept[Role.PARAMETER] == PARAMETERS
    assert sum(trace.at_peak.values()) == trace.peak


def test_a_model_without_parameters() -> None:
    x = torch.ones(4, requires_grad=True)
    trace = measure(lambda: nn.ReLU()(x).sum().backward(), nn.ReLU(), inputs=x)
    assert alive_at_the_end(trace, Role.GRADIENT) == 16


def test_nothing_at_all() -> None:
    trace = measure(lambda: None)
    assert (trace.peak, trace.events, trace.peak_index, trace.flops) == (0, (), -1, 0)


def test_measuring_in_another_thread() -> None:
    """Works when alone; refused while this one measures."""
    found: list[object] = []

    def measures() -> None:
        try:
            found.append(measured_anew("checkpoints").peak)
        except RuntimeError as error:
            found.append(str(error))

    def in_a_thread() -> object:
        thread = threading.Thread(target=measures)
        thread.start()
        thread.join()
        return found.pop()

    assert in_a_thread() == measured("checkpoints").peak
    with pytest.raises(RuntimeError, match="thread"):
        measure(lambda: found.append(in_a_thread()))
    assert "still running" in str(found)


def test_measuring_as_a_context() -> None:
    step, model, x = a_step("non-reentrant")
    with measuring(model, inputs=x) as result:
        step()
    whole = measure(step, model, inputs=x)
    assert whole.before[Role.GRADIENT] == PARAMETERS
    assert result().before[Role.GRADIENT] == 0
    assert result().flops == whole.flops


def test_a_tensor_elsewhere_is_refused(spoken: str) -> None:
    nowhere = torch.ones(3, device="meta")
    refused(NotImplementedError, lambda: measure(int, inputs=nowhere), "meta", "one on meta")


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (recorder, "register_optimizer_step_pre_hook"),
        (recorder, "register_optimizer_step_post_hook"),
        (sources, "_prepare_profiler"),
        (sources, "_enable_profiler"),
        (sources, "_disable_profiler"),
    ],
)
def test_an_interrupt_while_setting_up_or_clearing_up_leaves_nothing(
    module, name, monkeypatch, interruptible
) -> None:
    """The stop button is pressed just when the call has done its work and before it returns."""
    measured_anew("mlp")
    before, real = surroundings(), getattr(module, name)

    def interrupted(*given: Any, **more: Any) -> Any:
        result = real(*given, **more)
        signal.raise_signal(signal.SIGINT)
        return result

    step = STEPS["mlp"]()
    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(step.run, step.model, step.optimizer, step.inputs)
    monkeypatch.undo()
    assert surroundings() | {"random state": 0} == before | {"random state": 0}
    assert measured_anew("mlp").peak == count(STEPS["mlp"]).peak
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
