"""`measure` on what people train with beside plain tensors and one optimizer.

Several optimizers, NumPy's memory, nested and distributed tensors, higher-order operators, compiled
models, storages resized by hand: each against an independent count, with the same gradients.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import numpy
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib import language
from course_lib.memory import MemoryTrace, Role, measure, measuring, simulated, sources
from support.independent import Step, count

UNSEEN_WHEN_SIMULATED = (Role.WORKSPACE, Role.RANDOM_STATE)


def block(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, width))


def agree(make: Callable[[], Step]) -> MemoryTrace:
    """Measure a step, and hold it to an independent count and to the gradients of the bare one."""
    torch.manual_seed(0)
    make().run()  # a first time: some set something up
    torch.manual_seed(0)
    counted = count(make)
    torch.manual_seed(0)
    plain = make()
    plain.run()
    torch.manual_seed(0)
    step = make()
    trace = measure(step.run, step.model, step.optimizer, step.inputs)
    assert trace.peak == counted.peak
    assert sum(trace.at_peak.values()) == trace.peak
    if plain.model is not None and step.model is not None:
        pairs = zip(plain.model.parameters(), step.model.parameters(), strict=True)
        for mine, other in pairs:
            assert torch.equal(_whole(mine), _whole(other))
    return trace


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


# --- several optimizers ----------------------------------------------------------------------


def two_networks(given: Callable[[list], object]) -> tuple[Step, int]:
    """A step with two optimizers that have trained before, and the bytes of their moments."""
    one, other = block(), block()
    optimizers = [torch.optim.Adam(part.parameters()) for part in (one, other)]
    x = torch.randn(8, 16)

    def run() -> None:
        other(one(x)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    run()
    moments = sum(
        value.nbytes for optimizer in optimizers for state in optimizer.state.values()
        for value in state.values()
    )  # fmt: skip
    return Step(run, nn.ModuleList([one, other]), given(optimizers), x), moments


@pytest.mark.parametrize("given", [list, tuple, lambda all_of_them: all_of_them[0], lambda _: None])
def test_the_state_of_every_optimizer_is_state(given: Callable[[list], object]) -> None:
    step, moments = two_networks(given)
    trace = measure(step.run, step.model, step.optimizer, step.inputs)
    assert trace.at_peak[Role.OPTIMIZER_STATE] == moments
    assert trace.before[Role.OPTIMIZER_STATE] == moments
    assert trace.before[Role.INPUT] == 8 * 16 * 4
    assert agree(lambda: two_networks(given)[0]).before[Role.OPTIMIZER_STATE] == moments


def test_what_libraries_put_around_an_optimizer_is_seen_through() -> None:
    class Wrapper:  # as those of Lightning and Accelerate
        def __init__(self, optimizer: torch.optim.Optimizer):
            self.optimizer = optimizer

    step, moments = two_networks(lambda optimizers: [Wrapper(one) for one in optimizers])
    trace = measure(step.run, step.model, step.optimizer, step.inputs)
    assert trace.before[Role.OPTIMIZER_STATE] == moments


@pytest.mark.parametrize("spoken", ["zh", "en"])
def test_something_that_is_no_optimizer(spoken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language.choice, "_chosen", spoken)
    with pytest.raises(TypeError, match=r"optimizer.*Optimizer.*int"):
        measure(lambda: None, None, [torch.optim.SGD(block().parameters()), 3])


# --- memory that is not PyTorch's --------------------------------------------------------------


def test_an_array_made_during_the_step_counts_from_then_on() -> None:
    weight = nn.Parameter(torch.ones(1000))

    def before() -> None:
        (weight * torch.ones(1000, 1000)).pow(2).sum().backward()

    def with_a_small_array() -> None:
        before()
        torch.from_numpy(numpy.ones(1000, numpy.float32)).sum()

    def with_a_large_array() -> None:
        before()
        torch.from_numpy(numpy.ones(9_000_000, numpy.float32)).sum()

    peaks = []
    for step in (before, with_a_small_array, with_a_large_array):
        for _ in range(5):  # where it comes to lie depends on what ran before
            weight.grad = None
            trace = measure(step)
            assert trace.before[Role.INPUT] == 0
            peaks.append(trace.peak)
    assert set(peaks[:10]) == {peaks[0]}
    # Of the gradient and the array, of which nothing of the first part is left.
    assert set(peaks[10:]) == {2 * 4000 + 36_000_000 + 4}


@pytest.mark.parametrize("mentioned", [True, False])
def test_an_array_made_before_the_step_counts_from_its_start(mentioned: bool) -> None:
    x = torch.from_numpy(numpy.ones(1_000_000, numpy.float32))

    def step() -> None:
        torch.ones(500_000).sum()
        x.sum()

    trace = measure(step, inputs=(x,) if mentioned else ())
    assert trace.before[Role.INPUT] == 4_000_000
    assert trace.peak == 6_000_004


def test_an_array_that_lies_where_a_tensor_lay_is_not_taken_for_it() -> None:
    def step() -> None:
        for _ in range(20):
            torch.ones(200_000).sum()
            torch.from_numpy(numpy.ones(200_000, numpy.float32)).sum()

    for _ in range(5):
        trace = measure(step)
        arrays = [e for e in trace.events if e.role == Role.INPUT and e.size > 0]
        assert [e.size for e in arrays] == [800_000] * 20


# --- tensors made of tensors -----------------------------------------------------------------


def jagged() -> Step:
    model = block()
    parts = [torch.randn(n, 16) for n in (3, 5, 2)]

    def run() -> None:
        ragged = torch.nested.nested_tensor(parts, layout=torch.jagged)
        model(ragged).values().square().sum().backward()

    return Step(run, model, None, parts)


def nested_strided() -> Step:
    model = nn.Linear(16, 64)
    parts = [torch.randn(n, 16) for n in (3, 5)]

    def run() -> None:
        ragged = torch.nested.nested_tensor(parts)
        model(ragged).to_padded_tensor(0.0).square().sum().backward()

    return Step(run, model, None, parts)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("make", [jagged, nested_strided])
def test_nested_tensors(make: Callable[[], Step]) -> None:
    trace = agree(make)
    assert trace.kept[Role.ACTIVATION] > 0


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(mesh: object, checkpointed: bool) -> Step:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(*[block() for _ in range(4)])
    for i, part in enumerate(model):
        model[i] = fully_shard(checkpoint_wrapper(part) if checkpointed else part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    x = torch.randn(8, 16)

    def run() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    run()
    return Step(run, model, optimizer, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_sharded_parameters(checkpointed: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    with one_rank():
        mesh = init_device_mesh("cpu", (1,))
        trace = agree(lambda: sharded(mesh, checkpointed))
        gathered = 4 * (16 * 64 + 64 + 64 * 16 + 16) * 4
        assert trace.before[Role.PARAMETER] == gathered
        assert trace.before[Role.OPTIMIZER_STATE] == 2 * gathered + 16 * 4


# --- operators that take functions ---------------------------------------------------------------


def a_condition() -> Step:
    model = block()
    x = torch.randn(8, 16)

    def run() -> None:
        y = model(x)
        y = torch.cond(y.sum() > 0, lambda t: t.sin() * 2, lambda t: t.cos(), (y,))
        y.square().sum().backward()

    return Step(run, model, None, x)


def flexible_attention() -> Step:
    from torch.nn.attention.flex_attention import flex_attention

    tensors = [torch.randn(1, 2, 32, 16) for _ in range(3)]  # on a CPU, it only goes forward

    def run() -> None:
        flex_attention(*tensors, score_mod=lambda score, b, h, q, k: score + q - k).sum()

    return Step(run, None, None, tensors)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [a_condition, flexible_attention])
def test_higher_order_operators(make: Callable[[], Step]) -> None:
    trace = agree(make)
    inside = "aten.sin" if make is a_condition else "aten.bmm"
    names = {event.operator for event in trace.events}
    assert inside in names or (make is a_condition and "aten.cos" in names)
    torch._dynamo.reset()


def compiled_and_handed_over() -> Step:
    plain = block()
    model = torch.compile(plain, backend="aot_eager")
    x = torch.randn(8, 16)
    return Step(lambda: model(x).sum().backward(), model, None, x)


def a_scan() -> Step:
    from torch._higher_order_ops import scan

    x = torch.randn(8, 16, requires_grad=True)

    def run() -> None:
        scan(lambda carried, row: (carried + row, carried * row), torch.zeros(16), x)[
            1
        ].sum().backward()

    return Step(run, None, None, x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_is_traced_or_compiled_inside_the_step() -> None:
    a_scan().run()
    trace = agree(a_scan)
    assert trace.peak
    torch._dynamo.reset()
    model, x = block(), torch.randn(8, 16)
    compiled = torch.compile(model, backend="aot_eager")
    assert measure(lambda: compiled(x).sum().backward(), model, inputs=x).peak
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_compiled_model_that_is_named_as_the_model() -> None:
    class Unmeasurable(nn.Sequential):
        def __len__(self) -> int:
            raise TypeError("this one has no length")

    trace = agree(compiled_and_handed_over)
    assert trace.before[Role.PARAMETER] == (16 * 64 + 64 + 64 * 16 + 16) * 4
    torch._dynamo.reset()
    model = Unmeasurable(nn.Linear(4, 4))
    assert measure(lambda: model(torch.ones(1, 4)).sum().backward(), model).before[Role.PARAMETER]


# --- storage that changes by hand ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["real", "simulated"])
def test_storage_that_is_emptied_and_filled_again_is_followed(kind: str) -> None:
    with simulated() if kind == "simulated" else contextlib.nullcontext():
        existing, weight = torch.ones(1000), torch.ones(1000, requires_grad=True)

    def step() -> None:
        storage = existing.untyped_storage()
        storage.resize_(0)
        fresh = torch.ones(2000).clone()
        fresh.untyped_storage().resize_(0)
        (weight * torch.ones(500).repeat(2)).sum().backward()
        storage.resize_(4000)
        existing.fill_(1)

    trace = measure(step, inputs=(existing, weight))
    alive = [sum(trace.before.values()), *(event.total for event in trace.events)]
    assert alive[0] == 8000
    assert trace.peak == 4000 + 16_000  # the weight; twice 2,000 numbers
    assert alive[-1] == 8000 + 4000  # and the gradient
    assert torch.UntypedStorage.resize_ is torch._C.StorageBase.resize_


def test_tensors_that_a_module_holds_as_attributes_exist_before() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.states = nn.Linear(8, 8), {"last": [torch.zeros(4, 8)]}

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            self.states = {"last": [y.detach()]}  # without having read the old one
            return y

    def make() -> Step:
        model, x = Remembers(), torch.randn(4, 8)
        return Step(lambda: model(x).sum().backward(), model, None, x)

    assert agree(make).before[Role.BUFFER] == 4 * 8 * 4


# --- trouble -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoken", ["zh", "en"])
@pytest.mark.parametrize("where", ["address", "made"])
def test_trouble_of_the_measuring_never_ends_the_step(
    spoken: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language.choice, "_chosen", spoken)
    model, x = block(), torch.randn(8, 16)
    calls = []

    def fails(self: object, tensor: Tensor) -> int:
        calls.append(tensor.shape)
        if len(calls) > 5:
            raise LookupError("there is no such place")
        return original(self, tensor)

    original = getattr(sources.CPUAllocator, where)
    monkeypatch.setattr(sources.CPUAllocator, where, fails)
    finished = []
    with pytest.raises(RuntimeError, match="there is no such place"):
        measure(lambda: finished.append(model(x).sum().backward()), model, inputs=x)
    assert finished == [None]
    assert all(parameter.grad is not None for parameter in model.parameters())
    calls.clear()
    monkeypatch.undo()
    assert measure(lambda: model(x).sum().backward(), model, inputs=x).peak


def test_without_headroom_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("course_lib.memory.headroom.available_memory", lambda: 0)
    with pytest.raises(MemoryError), measuring():
        torch.ones(100_000)
    with measuring(headroom=False) as trace:
        torch.ones(100_000)
    assert trace().peak == 400_000


def test_sparse_gradients_are_named() -> None:
    embedding = nn.Embedding(100, 8, sparse=True)
    index = torch.tensor([3, 4])
    trace = measure(lambda: F.embedding(index, embedding.weight, sparse=True).sum().backward())
    assert trace.otherwise == ("sparse gradients",)
    gc.collect()
