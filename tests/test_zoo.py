"""Real models and ways of training, measured: the allocator's count, gradients, roles, twins.

Three questions to each. Is the measured step the bare one, to the byte and to the bit? Is the
simulated one the same? Do :func:`checkpoint_blocks` and the library's own switch do the same?
What cannot be is in a table with its reason, and that it cannot is tried, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer

from course_lib.memory import MemoryTrace, Role, measure, simulated, simulated_copy
from course_lib.wrapping import checkpoint_blocks
from support import zoo
from support.independent import Count, Step, bytes_of, count

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

UNSEEN = (Role.WORKSPACE, Role.RANDOM_STATE)  # what simulated tensors cannot show
Tally = Counter[tuple[str, str]]


@pytest.fixture(autouse=True)
def _short_collections() -> Iterator[None]:
    """A library's million of objects is not searched through again at each `gc.collect()`."""
    gc.collect()  # of what has come since the last test
    gc.freeze()
    yield


@pytest.fixture(scope="module", autouse=True)
def _thawed_at_the_end() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _distributions_try_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ran before: `torch.compile` switches that off, for the rest of the process."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)


@pytest.fixture(scope="module")
def tally(report: Callable[[str], None]) -> Iterator[Tally]:
    """How many of each question ended how, told at the end."""
    found: Tally = Counter()
    yield found
    for question in dict.fromkeys(question for question, _ in found):
        ends = [f"{n} {end}" for (asked, end), n in found.items() if asked == question]
        report(f"zoo, {question}: {', '.join(ends)}")


@contextlib.contextmanager
def told(tally: Tally, question: str) -> Iterator[list[str]]:
    """Enter in ``tally`` how the body ended: equal, differ, or what it put into the list."""
    end: list[str] = []
    try:
        yield end
    except BaseException:
        end = ["differ"]
        raise
    finally:
        tally[question, (end or ["equal"])[0]] += 1


# --- the measured step is the bare one ----------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a measured step leaves; ``own``: bytes of what the model, optimizer and inputs hold."""

    trace: MemoryTrace
    after: int  # bytes handed out at the end
    taken: int  # all bytes that were handed out, whatever became of them
    seen_peak: int  # without what simulated tensors cannot show
    gradients: list[Tensor | None]
    own: dict[Role, int]
    left: int  # how many tensors more there are than before


def measured_anew(step: Step) -> Measured:
    own = held_by(step)
    gc.collect()
    before = _tensors_alive()
    trace = measure(step.run, step.model, step.optimizer, step.inputs)
    gc.collect()
    left = _tensors_alive() - before
    brief = dataclasses.replace(trace, events=(), alive_at_peak=())  # there are a hundred of them
    taken = sum(event.size for event in trace.events if event.size > 0)
    return Measured(
        brief, trace.events[-1].total, taken, trace.peak_without(*UNSEEN), gradients_of(step), own,
        left,
    )  # fmt: skip


@functools.cache
def measured(name: str) -> Measured:
    return measured_anew(zoo.STEPS[name]())


@functools.cache
def unmeasured(name: str) -> tuple[Count, list[Tensor | None]]:
    """The profiler's count of the bare step, and the gradients that it leaves."""
    measured(name)  # first, for the one-time allocations of the operators' libraries
    steps: list[Step] = []

    def make() -> Step:
        steps.append(zoo.STEPS[name]())
        return steps[0]

    return count(make), gradients_of(steps[0])


def gradients_of(step: Step) -> list[Tensor | None]:
    return [parameter.grad for parameter in step.model.parameters()]


def equal(one: list[Tensor | None], other: list[Tensor | None]) -> bool:
    """Whether all gradients are, bit for bit, and there are some."""
    return any(gradient is not None for gradient in one) and all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


def held_by(step: Step) -> dict[Role, int]:
    """Bytes by role, from the tensors themselves; buffers, attributes and inputs in one."""
    parameters = list(step.model.parameters())
    optimizers = step.optimizer if isinstance(step.optimizer, tuple) else (step.optimizer,)
    states = [list(optimizer.state.values()) for optimizer in optimizers]
    attributes = [_plain_attributes(module) for module in step.model.modules()]
    others = [*step.model.buffers(), *tree_leaves([attributes, step.inputs])]
    return {
        Role.PARAMETER: bytes_of(parameters),
        Role.GRADIENT: bytes_of(parameter.grad for parameter in parameters),
        Role.OPTIMIZER_STATE: bytes_of(tree_leaves(states)),
        Role.INPUT: bytes_of([*parameters, *others]) - bytes_of(parameters),
    }


def _plain_attributes(module: nn.Module) -> list[Any]:
    """What a module holds without having registered it."""
    registered = {"_parameters", "_buffers", "_modules"}
    return [value for name, value in vars(module).items() if name not in registered]


def _tensors_alive() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


# Bytes that exist before, in no model, optimizer or input, and that no operator reads: the last
# position embedding and its mask, in a cache of functools, to be replaced in the step.
HELD_ELSEWHERE = {"DetrForObjectDetection": 4096 + 32}


@pytest.mark.parametrize("name", zoo.STEPS)
def test_the_measured_step_is_the_bare_one(name: str, tally: Tally) -> None:
    with told(tally, "real") as end:
        found = measured(name)
        counted, gradients = unmeasured(name)
        trace = found.trace
        before = sum(trace.before.values())
        if name in HELD_ELSEWHERE:  # the profiler, too, knows a wrong size of it
            shift = before + HELD_ELSEWHERE[name] - counted.before
            assert trace.peak == counted.peak + shift and found.after == counted.after + shift
            end.append("equal but for what a cache holds")
            return
        assert trace.peak - counted.peak == 0
        assert sum(trace.at_peak.values()) == trace.peak
        assert before == counted.before
        assert found.after == counted.after
        assert found.taken - counted.taken == 0
        for role in (Role.PARAMETER, Role.GRADIENT, Role.OPTIMIZER_STATE):
            assert trace.before[role] == found.own[role], role
        assert trace.before[Role.BUFFER] + trace.before[Role.INPUT] == found.own[Role.INPUT]
        assert equal(gradients, found.gradients)
        assert found.left <= 0
        assert not module_hooks._global_forward_hooks and not _get_current_dispatch_mode_stack()


# --- the simulated step is the real one ---------------------------------------------------------

# They look at values that they have computed, which nothing simulated has: the line that does.
REFUSED = {
    "SwitchTransformersForConditionalGeneration": "modeling_switch_transformers.py",  # routing
    "DetrForObjectDetection": "modeling_detr.py",  # are all finite?
    "InformerForPrediction": "time_series_utils.py",  # a distribution tries its arguments
    "TimeSeriesTransformerForPrediction": "time_series_utils.py",
    "adafactor": "stepping.step()",
    "adafactor_of_transformers": "optimization.py",
    "scaled_gradients": "scaler.step(optimizer)",  # are all finite?
    "written_then_trained": "utils.py",  # are all texts at their end?
}


def simulated_anew(make: Callable[[], Step]) -> MemoryTrace:
    with simulated():
        step = make()
        return measure(step.run, step.model, step.optimizer, step.inputs)


def through_a_copy(name: str) -> MemoryTrace:
    """The model built for real, and a simulated copy of it trained."""
    torch.manual_seed(0)
    model, inputs = zoo.MODELS[name].make()

    def make() -> Step:
        step = zoo.training(*simulated_copy(model, inputs))
        step.run()
        gc.collect()
        return step

    return simulated_anew(make)


@pytest.mark.parametrize("name", zoo.STEPS)
def test_the_simulated_step_is_the_real_one(name: str, tally: Tally) -> None:
    with told(tally, "simulated") as end:
        real = measured(name)
        try:
            trace = simulated_anew(zoo.STEPS[name])
        except Exception as refusal:
            assert in_words(refusal), refusal
            if name in REFUSED:
                assert REFUSED[name] in str(refusal)
                end.append("refused")
                return
            assert name in zoo.MODELS, refusal
            trace = through_a_copy(name)
            end.append("equal by a copy")
        assert name not in REFUSED, "it can be simulated by now: take it out of the table"
        assert trace.peak_without(*UNSEEN) - real.seen_peak == 0
        assert trace.events[-1].total == real.after
        assert trace.before == {r: n for r, n in real.trace.before.items() if r in trace.before}


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_simulated_copy_is_the_real_model(name: str, tally: Tally) -> None:
    with told(tally, "simulated copy") as end:
        real = measured(name)
        try:
            trace = through_a_copy(name)
        except Exception as refusal:
            assert in_words(refusal), refusal
            assert REFUSED[name] in str(refusal)
            end.append("refused")
            return
        assert name not in REFUSED, "it can be simulated by now: take it out of the table"
        assert trace.peak_without(*UNSEEN) - real.seen_peak == 0


def in_words(refusal: Exception) -> bool:
    """Whether the library itself says what is wrong."""
    return "simulated" in str(refusal)


# --- checkpoints, ours and the library's --------------------------------------------------------

# The library's own switch refuses these.
WITHOUT_SWITCH = {
    "AlbertForMaskedLM",  # one layer, called again and again
    "MPNetForMaskedLM", "XLNetLMHeadModel", "ConvNextForImageClassification",
    "ResNetForImageClassification", "PatchTSTForPrediction", "PatchTSMixerForPrediction",
}  # fmt: skip
# Its switch puts checkpoints inside checkpoints: around these classes of blocks as well.
NESTED = {"SwinForImageClassification": "SwinStage"}
# Checkpoints need the cache of keys and values off, and these models compute other bits without
# it: the plain model without its cache is the one that has the same gradients.
OTHER_BITS_WITHOUT_CACHE = {
    "GPT2LMHeadModel", "GPTNeoForCausalLM", "T5ForConditionalGeneration",
    "M2M100ForConditionalGeneration", "SwitchTransformersForConditionalGeneration",
}  # fmt: skip
# The switch also makes these classes ask a gradient for a bias of zeros, and so costs memory.
ASKS_MORE = {
    "T5ForConditionalGeneration": "T5Attention",
    "SwitchTransformersForConditionalGeneration": "SwitchTransformersAttention",
}


@dataclass(frozen=True)
class Trained:
    """A checkpointed step: its trace, and the gradients that it leaves."""

    trace: MemoryTrace
    gradients: list[Tensor | None]


def trained(name: str, change: Callable[[nn.Module], Any]) -> Trained:
    """The model of this name, changed and measured."""
    torch.manual_seed(0)
    model, inputs = zoo.MODELS[name].make()
    change(model)
    step = zoo.training(model, inputs)
    step.run()
    gc.collect()
    trace = measure(step.run, model, step.optimizer, inputs)
    return Trained(trace, gradients_of(step))


def with_our_checkpoints(name: str) -> Trained:
    return trained(name, lambda model: checkpoint_blocks(model, zoo.MODELS[name].layers))


def with_the_switch(name: str, but: str | None = None) -> Trained:
    """Checkpointed by the library's own switch, except in modules of the class ``but``."""

    def switched(model: nn.Module) -> None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in model.modules():
            if type(module).__name__ == but:
                module.gradient_checkpointing = False

    return trained(name, switched)


def without_cache(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False


@pytest.mark.parametrize("name", zoo.MODELS)
def test_our_checkpoints_are_the_librarys(name: str, tally: Tally) -> None:
    with told(tally, "checkpoints") as end:
        ours = with_our_checkpoints(name)
        plain = unmeasured(name)[1]
        assert equal(plain, ours.gradients) == (name not in OTHER_BITS_WITHOUT_CACHE)
        if name in OTHER_BITS_WITHOUT_CACHE:
            assert equal(trained(name, without_cache).gradients, ours.gradients)
        if name in WITHOUT_SWITCH:
            with pytest.raises(ValueError, match="does not support activation checkpointing"):
                with_the_switch(name)
            end.append("without a switch")
            return
        theirs = with_the_switch(name)
        assert equal(theirs.gradients, ours.gradients)
        if name in NESTED:
            assert_nested(name)
            assert theirs.trace.peak != ours.trace.peak, "equal by now: take it out of the table"
            end.append("nested by the switch")
            return
        if name in ASKS_MORE:
            assert theirs.trace.peak > ours.trace.peak, "equal by now: take it out of the table"
            theirs = with_the_switch(name, but=ASKS_MORE[name])
        assert ours.trace.peak - theirs.trace.peak == 0
        assert ours.trace.kept == theirs.trace.kept
        assert ours.trace.flops == theirs.trace.flops


def assert_nested(name: str) -> None:
    model, _ = zoo.MODELS[name].make()
    outer = [module for module in model.modules() if type(module).__name__ == NESTED[name]]
    assert outer
    for module in outer:
        assert isinstance(module, GradientCheckpointingLayer)
        assert any(type(inner).__name__ in zoo.MODELS[name].layers for inner in module.modules())


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_layers_are_those_that_the_switch_takes(name: str) -> None:
    model, _ = zoo.MODELS[name].make()
    kinds = {type(module).__name__ for module in model.modules()}
    switched = {
        type(module).__name__
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer)
    }
    ours = kinds.intersection(zoo.MODELS[name].layers)
    assert ours
    if name not in WITHOUT_SWITCH:
        assert switched - {NESTED.get(name)} == ours


def test_the_zoo_is_of_every_kind() -> None:
    kinds = Counter(specimen.kind for specimen in zoo.MODELS.values())
    assert len(zoo.MODELS) >= 40 and min(kinds.values()) >= 3
    assert kinds.keys() == {
        "decoder", "experts", "encoder–decoder", "encoder", "vision", "audio", "state space",
        "several inputs", "time series",
    }  # fmt: skip


# --- full size ----------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("size", zoo.FULL_SIZE)
def test_full_size_takes_little_memory(
    size: str, checkpointed: bool, report: Callable[[str], None]
) -> None:
    """Less than a gibibyte of this process, for hundreds of simulated ones; the time is told."""
    gc.collect()
    process = psutil.Process()
    before, begin = process.memory_info().rss, time.process_time()
    with simulated():
        step = zoo.full_size(size, checkpointed)
        built, begin = time.process_time() - begin, time.process_time()
        trace = measure(step.run, step.model, step.optimizer, step.inputs)
    took, grown = time.process_time() - begin, process.memory_info().rss - before
    how = ", a checkpoint per layer" if checkpointed else ""
    report(
        f"{size}{how}, simulated: built in {built:.1f} s, measured in {took:.1f} s, this process "
        f"grew by {grown / 2**20:.0f} MiB, peak {trace.peak / 2**30:,.1f} GiB"
    )
    assert grown < 2**30
    own = held_by(step)
    numbers = sum(parameter.numel() for parameter in step.model.parameters())
    assert own[Role.PARAMETER] == trace.before[Role.PARAMETER] == 4 * numbers
    assert own[Role.OPTIMIZER_STATE] == 8 * numbers + 4 * len(step.optimizer.state)
    # At the least, all of that and the gradients, which are there when the update begins.
    assert trace.peak > own[Role.OPTIMIZER_STATE] + 8 * numbers
    tokens, width, layers = 4096, step.model.config.hidden_size, len(step.model.model.layers)
    if checkpointed:  # of each layer, its input is kept, and no more of the most
        assert trace.kept[Role.CHECKPOINT] >= layers * tokens * width * 4
        assert trace.kept[Role.ACTIVATION] < 8 * tokens * step.model.config.vocab_size * 4
    else:
        assert trace.kept[Role.ACTIVATION] > 10 * layers * tokens * width * 4
