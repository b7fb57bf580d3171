"""`simulated`: the same bytes as a real run, and devices that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from course_lib import language
from course_lib.memory import MemoryTrace, Role, measure, simulated
from course_lib.memory.ranks import ONLY_IN_A_GROUP
from course_lib.memory.simulation import ValueUnknown
from support.independent import Step
from support.steps import STEPS, Blocks

UNSEEN = {Role.WORKSPACE, Role.RANDOM_STATE, Role.OFFLOADED, *ONLY_IN_A_GROUP}
NOT_SIMULATED = {
    # shapes or values that only the data know
    "data_dependent_shapes",
    "lbfgs",
    # torch's own stand-ins for these give their results other sizes than the real ones
    "lstm",
    "sparse_embedding",
    # a tangent that is zero has no memory in a real run, and takes some there
    "func_jvp",
}


def measured(step: Step) -> MemoryTrace:
    return measure(step.run, step.model, step.optimizer, step.inputs)


def test_what_a_step_makes_is_simulated_after_the_with_as_well() -> None:
    with simulated():
        x = torch.empty(4, 4, requires_grad=True)
    trace = measure(lambda: (x * torch.ones(4, 4)).sum().backward(), inputs=x)
    assert trace.source == "simulated"
    assert trace.kept[Role.ACTIVATION] == 4 * 4 * 4


def alive_by_role(trace: MemoryTrace) -> dict[Role, int]:
    alive = dict.fromkeys(Role, 0) | trace.before
    for event in trace.events:
        alive[event.role] += event.size
    return {role: size for role, size in alive.items() if role not in UNSEEN}


@pytest.mark.parametrize("name", sorted(STEPS.keys() - NOT_SIMULATED))
@pytest.mark.filterwarnings("ignore:(None of the inputs|The step never)")
def test_equals_the_real_run_to_the_byte(name: str) -> None:
    real = measured(STEPS[name]())
    with simulated():
        trace = measured(STEPS[name]())
    assert trace.source == "simulated"
    assert sum(trace.at_peak.values()) == trace.peak == real.peak_without(*UNSEEN)
    assert {*trace.at_peak} == {*trace.kept} == {*trace.before} == {*Role} - UNSEEN
    assert trace.kept == {r: size for r, size in real.kept.items() if r not in UNSEEN}
    assert alive_by_role(trace) == alive_by_role(real)
    assert trace.flops == real.flops
    assert not trace.doubtful
    assert all(event.time is None for event in trace.events)


@pytest.mark.parametrize(
    "name", ("mlp", "checkpoints", "reentrant_checkpoints", "sgd_momentum_foreach")
)
def test_events_equal_those_of_the_real_run(name: str) -> None:
    def made(trace: MemoryTrace) -> list[tuple]:
        return [(e.size, e.role, e.operator, e.module, e.line, e.phase)
                for e in trace.events if e.size > 0 and e.role not in UNSEEN]  # fmt: skip

    real = measured(STEPS[name]())
    with simulated():
        trace = measured(STEPS[name]())
    assert made(trace) == made(real)


@pytest.mark.parametrize("name", ("mlp", "checkpoints", "trained_before"))
def test_what_was_built_under_simulation_can_be_measured_outside(name: str) -> None:
    with simulated():
        inside = measured(STEPS[name]())
        step = STEPS[name]()
    outside = measured(step)
    assert outside.source == "simulated"
    assert (outside.peak, outside.at_peak) == (inside.peak, inside.at_peak)


@pytest.mark.parametrize("name", ("lstm", "sparse_embedding"))
def test_inexact_simulations_still_add_up_and_say_so(name: str) -> None:
    with simulated():
        trace = measured(STEPS[name]())
    assert sum(trace.at_peak.values()) == trace.peak
    assert trace.doubtful


def test_values_that_only_the_data_know_raise() -> None:
    for name in ("lbfgs", "data_dependent_shapes"):
        with simulated(), pytest.raises(ValueUnknown, match=r"^steps\.py:\d+  \w"):
            measured(STEPS[name]())
    with simulated():  # and all is well again
        assert measured(STEPS["mlp"]()).peak > 0


def test_nothing_real_is_allocated() -> None:
    with simulated():
        model = Blocks("non-reentrant", residual=True)
        model.requires_grad_()
        big = nn.Linear(1 << 20, 1 << 20, bias=False)
        x = torch.ones(8, 1 << 20)
        trace = measure(lambda: big(x).sum().backward(), big, inputs=x)
    assert trace.peak > 2 * 4 << 40  # weight and gradient, 4 TiB each
    assert trace.peak_phase == "backward"


def test_random_state_is_untouched() -> None:
    state = torch.get_rng_state()
    with simulated():
        measured(STEPS["transformer_encoder"]())  # seeds, as STEPS do
    torch.set_rng_state(state)
    with simulated():
        torch.randn(4)
        nn.functional.dropout(torch.ones(4))
    assert torch.equal(torch.get_rng_state(), state)


# --- devices that are not there -----------------------------------------------------------------

ASKS = {
    "device=": 'torch.zeros(2, device="cuda")',
    "device=torch.device": 'torch.randn(2, device=torch.device("cuda:0"))',
    "tensor": 'torch.tensor([1.0], device="cuda")',
    "as_tensor": 'torch.as_tensor([1.0], device="cuda")',
    "arange": 'torch.arange(3, device="cuda")',
    "to": 'x.to("cuda")',
    "to device=": 'x.to(device="cuda")',
    "to torch.device": 'x.to(torch.device("cuda"), torch.float16)',
    "cuda": "x.cuda()",
    "xpu": "x.xpu()",
    "empty_like": 'torch.empty_like(x, device="cuda")',
    "new_zeros": 'x.new_zeros(2, device="cuda")',
    "new_tensor": 'x.new_tensor([1.0], device="cuda")',
    "module.cuda": "model.cuda()",
    "module.to": 'model.to("cuda")',
    "module.to device=": 'model.to(device="cuda")',
    "module(device=)": 'nn.Linear(2, 2, device="cuda")',
    "with device": "exec(\"with torch.device('cuda'): torch.zeros(2)\")",
    "default device": 'torch.set_default_device("cuda"); torch.zeros(2)',
    "mps": 'torch.zeros(2, device="mps")',
    "vulkan": 'torch.zeros(2, device="vulkan")',
    "xla": 'x.to("xla")',
}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What each way to ask for a missing device got, all in one process that must not die."""
    program = """
        import course_lib, torch
        from torch import nn
        from course_lib.memory import measure, simulated
        for name, code in {asks!r}.items():
            try:
                with simulated():
                    x, model = torch.ones(2), nn.Linear(2, 2)
                    exec(code)
            except BaseException as error:
                print(name, type(error).__name__, error, sep="|", flush=True)
            else:
                print(name, "nothing", "", sep="|", flush=True)
            torch.set_default_device(None)
        with simulated():
            x, model = torch.ones(2), nn.Linear(2, 2)
        try:
            measure(lambda: model.cuda(), model)
        except BaseException as error:
            print("outside", type(error).__name__, error, sep="|", flush=True)
        try:
            x.to("cuda")
        except BaseException as error:
            print("unmeasured", type(error).__name__, error, sep="|", flush=True)
        with simulated():
            print("after", torch.ones(2).sin().shape, "", sep="|")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program).format(asks=ASKS)],
        env=os.environ | {"COURSE_LANG": "en"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {line.split("|")[0]: line for line in done.stdout.splitlines()}


absent = pytest.mark.skipif(torch.accelerator.is_available(), reason="the device is there")


@absent
@pytest.mark.parametrize("way", [*ASKS, "outside"])
def test_a_missing_device_is_refused(way: str, answers: dict[str, str]) -> None:
    kind = way if way in ("mps", "vulkan", "xla", "xpu") else "cuda"
    assert f"RuntimeError|This torch has no {kind} device here" in answers[way]


@absent
def test_the_process_lives(answers: dict[str, str]) -> None:
    assert "torch.Size([2])" in answers["after"]
    assert "unmeasured" in answers  # torch's own words


def test_a_result_as_large_as_the_number_beside_it_is_counted() -> None:
    """The 2 is a tensor of 8 bytes to PyTorch, and so is the product; only the product is real."""
    with simulated():
        x = torch.ones((), dtype=torch.float64)
    assert measure(lambda: x * 2, inputs=x).peak == 2 * 8


@pytest.mark.parametrize(
    "harmless",
    (
        lambda x: x.to("cpu"),
        lambda x: x.to(torch.float16),
        lambda x: x.to(x.double()),
        lambda x: x.cpu(),
        lambda x: torch.zeros(2, device="cpu"),
        lambda x: torch.zeros_like(x, device="meta"),
    ),
)
def test_devices_that_are_there_are_not_refused(harmless: Callable) -> None:
    with simulated():
        assert harmless(torch.ones(2)).shape == (2,)


@absent
def test_the_error_speaks_chinese() -> None:
    from course_lib import language

    before = language.language()
    language.choose("zh")
    try:
        with simulated(), pytest.raises(RuntimeError, match="没有可用的 cuda 设备"):
            torch.zeros(2, device="cuda")
    finally:
        language.choose(before)


@pytest.mark.parametrize("chosen", ("zh", "en"))
def test_real_tensors_and_simulated_ones_do_not_mix(chosen: str) -> None:
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    before = language.language()
    language.choose(chosen)
    try:
        with simulated(), pytest.raises(RuntimeError) as caught:
            measure(lambda: model(torch.ones(2, 4)), model)
        assert {"zh": "新建", "en": "build the model"}[chosen] in str(caught.value)
        with simulated(), pytest.raises(RuntimeError, match=r"aten\.sin"):
            x.sin()
    finally:
        language.choose(before)
    assert measure(lambda: model(x).sum().backward(), model).source == "cpu allocator"
