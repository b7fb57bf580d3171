"""CUDA's source on recorded histories: no GPU is needed, and none is asked for anything.

Where a GPU is, ``test_on_gpu.py`` holds the same source against the card's own statistics. Here its
history is the CPU's: what the profiler hears is written down as ``torch.cuda.memory._snapshot``
would, and read back by the source that reads that. Roles and sums then have to be those that the
CPU's source finds for the same step.
"""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from course_lib import language
from course_lib.memory import Event, MemoryTrace, cuda, measure, measurement, which_source
from course_lib.memory.cuda import CUDAAllocator, read_history, the_gpu_of
from course_lib.memory.sources import AllocatorEvent, CPUAllocator
from support.steps import STEPS, Blocks

# --- the CPU's memory, told as CUDA would --------------------------------------------------------


class History:
    """Takes the place of CUDA's history; what it records is what happens on the CPU.

    ``entries``: the last snapshot's trace. ``label``: what ``_set_memory_metadata`` was last told.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.label, self.entries, self.options = "the user's own", [], {}
        self._cpu: CPUAllocator | None = None  # while it listens
        self._on = False
        self._watched: list[weakref.ref] = []
        self._notes: list[str | tuple[int, int]] = []  # by mark: a label, or a free: address, size
        for name, function in (
            ("get_allocator_backend", lambda: "native"),
            ("_get_memory_metadata", lambda: self.label),
            ("_set_memory_metadata", self._set_label),
            ("_record_memory_history", self._record),
            ("_snapshot", self._snapshot),
        ):
            monkeypatch.setattr(torch.cuda.memory, name, function)
        monkeypatch.setattr(torch._C, "_cuda_isHistoryEnabled", self.recording, raising=False)
        monkeypatch.setattr(cuda, "_take_workspace", lambda device: None)

    def recording(self) -> bool:
        return self._on

    def watch(self, tensor: Tensor) -> None:
        """Report the end of storage that is older than the history, as CUDA does by itself."""
        storage = tensor.untyped_storage()
        free = storage.data_ptr(), storage.nbytes()
        self._watched.append(weakref.ref(storage, lambda _: self._note(free)))

    def _set_label(self, label: str) -> None:
        self.label = label
        if self._cpu is not None:
            self._note(label)

    def _note(self, note: str | tuple[int, int]) -> None:
        if self._cpu is not None:
            self._notes.append(note)
            self._cpu.mark()

    def _record(self, enabled: str | None = "all", **options: Any) -> None:
        self.options, self._on = options, bool(enabled)
        if enabled:
            self._cpu = CPUAllocator()
            self._notes.clear()
            self._cpu.start()
        elif self._cpu is not None:  # nobody asked for a snapshot
            self._cpu.stop()
            self._cpu = None

    def _snapshot(self) -> dict:
        assert self._cpu is not None
        stream, self._cpu, self.entries = self._cpu.stop(), None, []
        label, alive = "", set()
        for happening in stream:
            note = self._notes[happening.address] if happening.kind == "mark" else None
            time = happening.time or 0.0
            if isinstance(note, str):
                label = note
            elif note is not None:
                self._free(*note, time, label)
            elif happening.kind == "free":
                if happening.address in alive:  # else it is older, and a note of ours tells of it
                    alive.remove(happening.address)
                    self._free(happening.address, happening.size, time, label)
            else:
                alive.add(happening.address)
                if len(self.entries) % 50 == 0:  # the pool grows
                    self._enter("segment_alloc", happening.address, 2**21, time, label)
                self._enter("alloc", happening.address, happening.size, time, label)
        self._enter("snapshot", 0, 0, 0.0, label)
        return {"segments": [], "device_traces": {None: self.entries}}  # the CPU has no index

    def _free(self, address: int, size: int, time: float, label: str) -> None:
        self._enter("free_requested", address, size, time, label)
        self._enter("free_completed", address, size, time, label)

    def _enter(self, action: str, address: int, size: int, time: float, label: str) -> None:
        self.entries.append(entry(action, address, size, round(1e6 * time), label))


def entry(action: str, address: int, size: int, time: int = 0, label: str = "") -> dict:
    """One entry of a device's trace; ``time``: microseconds."""
    return {
        "action": action, "addr": address, "size": size, "stream": 0, "pool_id": (0, 0),
        "time_us": 1_790_000_000_000_000 + time, "user_metadata": label, "compile_context": "N/A",
    }  # fmt: skip


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    """From here on the CPU is taken for a GPU."""
    history = History(monkeypatch)

    class Allocator(CUDAAllocator):
        sees_numbers = True  # as long as it is the CPU that speaks

        def watch(self, tensor: Tensor, freed: Callable[[], None]) -> None:
            history.watch(tensor)

    monkeypatch.setattr(which_source, "the_gpu_of", lambda devices: torch.device("cpu"))
    monkeypatch.setattr(which_source, "CUDAAllocator", Allocator)
    yield history
    assert not history.recording()
    assert history.label == "the user's own"


def measured(name: str) -> MemoryTrace:
    step = STEPS[name]()
    return measure(step.run, step.model, step.optimizer, step.inputs)


# Steps that get in the way of the CPU's own marks, which this history is made with.
OF_THE_CPU = {"bytes_as_large_as_a_mark", "bytes_as_large_as_every_mark"}
# Autocast keeps weights by address, so the order in which it lets them go is another in every run.
IN_ANY_ORDER = {"autocast"}
# PyTorch makes tensors of the learning rate and the betas, and measuring makes each once more.
NUMBERS_AT_THE_PEAK = {"adamw_for_loop", "adamw_foreach", "clipped_gradients", "trained_before"}


@pytest.mark.parametrize("name", sorted(STEPS.keys() - OF_THE_CPU))
@pytest.mark.filterwarnings("ignore:(None of the inputs|The step never)")
def test_a_step_told_by_cuda_is_the_same_step(name: str, request: pytest.FixtureRequest) -> None:
    STEPS[name]().run()  # one-time allocations of the operators' libraries
    ours = measured(name)
    history = request.getfixturevalue("history")
    theirs = measured(name)
    assert (ours.source, theirs.source) == ("cpu allocator", "cuda allocator")
    for what in ("peak", "at_peak", "kept", "before", "peak_phase", "flops"):
        assert getattr(theirs, what) == getattr(ours, what), what
    if name in IN_ANY_ORDER:
        assert sorted(map(made_or_freed, theirs.events)) == sorted(map(made_or_freed, ours.events))
    else:
        assert list(map(without_time, theirs.events)) == list(map(without_time, ours.events))
    times = [event.time for event in theirs.events]
    assert times == sorted(times)
    if name not in NUMBERS_AT_THE_PEAK:
        assert theirs.peak - sum(theirs.before.values()) == requested_peak(history.entries)


def without_time(event: Event) -> tuple:
    return tuple(getattr(event, what) for what in event.__slots__ if what != "time")


def made_or_freed(event: Event) -> tuple:
    return event.size, event.role, str(event.operator), str(event.module)


def requested_peak(entries: list[dict]) -> int:
    """How far ``requested_bytes`` rose: up at ``alloc``, down at ``free_completed``."""
    total = peak = 0
    for one in entries:
        total += one["size"] * {"alloc": 1, "free_completed": -1}.get(one["action"], 0)
        peak = max(peak, total)
    return peak


# --- histories written by hand ------------------------------------------------------------------


def read(*entries: dict, marks: int = 0) -> list[tuple[str, int, int]]:
    return [happening[:3] for happening in read_history(entries, "7:", marks)]


def test_sizes_and_times() -> None:
    first, second = entry("alloc", 512, 100, time=30), entry("free_completed", 512, 100, time=55)
    assert read_history([first, second], "7:", 0) == [
        AllocatorEvent("allocate", 512, 100, 0.0),
        AllocatorEvent("free", 512, 100, 25e-6),
    ]


def test_a_block_counts_until_its_last_stream_is_done() -> None:
    assert read(
        entry("alloc", 512, 100),
        entry("free_requested", 512, 100),
        entry("alloc", 1024, 50),  # elsewhere, for 512 is not yet free
        entry("free_completed", 512, 100),
        entry("alloc", 512, 40),
    ) == [("allocate", 512, 100), ("allocate", 1024, 50), ("free", 512, 100), ("allocate", 512, 40)]


def test_segments_and_what_is_yet_to_be_invented_are_no_requests() -> None:
    actions = (
        "segment_alloc",
        "segment_free",
        "segment_map",
        "segment_unmap",
        "snapshot",
        "annotate",
    )
    out_of_memory = entry("oom", 0, 2**40)
    del out_of_memory["addr"]  # that kind has device_free instead
    assert read(*(entry(action, 512, 2**21) for action in actions), out_of_memory) == []


def test_marks_stand_where_labels_change() -> None:
    assert read(
        entry("alloc", 1, 10),
        entry("alloc", 2, 20, label="7:0"),
        entry("alloc", 3, 30, label="7:0"),
        entry("free_completed", 1, 10, label="7:3"),  # three marks with nothing in between
        marks=6,
    ) == [
        ("allocate", 1, 10),
        ("mark", 0, 0), ("allocate", 2, 20), ("allocate", 3, 30),
        ("mark", 1, 0), ("mark", 2, 0), ("mark", 3, 0), ("free", 1, 10),
        ("mark", 4, 0), ("mark", 5, 0),
    ]  # fmt: skip


def test_other_threads_move_no_mark() -> None:
    """They carry no label, their own, one of an earlier measurement, or an older one of ours."""
    foreign = ("", "17", "6:17", "77:1", "7:0")
    assert read(
        entry("alloc", 1, 10, label="7:1"),
        *(entry("alloc", 2 + i, 10, label=label) for i, label in enumerate(foreign)),
        entry("alloc", 9, 10, label="7:2"),
        marks=3,
    ) == [
        ("mark", 0, 0), ("mark", 1, 0), ("allocate", 1, 10),
        *(("allocate", 2 + i, 10) for i in range(len(foreign))),
        ("mark", 2, 0), ("allocate", 9, 10),
    ]  # fmt: skip


def test_nothing_happened() -> None:
    assert read(marks=2) == [("mark", 0, 0), ("mark", 1, 0)]


# --- surroundings -------------------------------------------------------------------------------


def test_no_two_measurements_share_labels(history: History) -> None:
    """What other threads still carry from an earlier one is not taken for a mark."""
    seen = []
    for _ in range(2):
        measure(lambda: torch.ones(3))
        seen.append({one["user_metadata"].partition(":")[0] for one in history.entries} - {""})
    assert len(seen[0]) == len(seen[1]) == 1
    assert seen[0] != seen[1]


def test_the_history_is_asked_for_as_this_torch_spells_it(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = inspect.signature(torch.cuda.memory._record_memory_history_impl)
    asked: list[dict] = []
    record = torch.cuda.memory._record_memory_history

    def noting(*args: Any, **options: Any) -> None:
        asked.append(signature.bind(*args, **options).arguments)
        record(*args, **options)

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", noting)
    measure(lambda: torch.ones(3))
    assert [one["enabled"] for one in asked] == ["all", None]
    assert asked[0]["context"] is None  # stacks would cost far more than the step
    assert not {"alloc", "free_completed"} & {*asked[0]["skip_actions"]}


def test_backward_runs_on_the_calling_thread(history: History) -> None:
    seen = []

    def step() -> None:
        x = torch.ones(3, requires_grad=True)
        x.register_hook(lambda gradient: seen.append(torch._C._is_multithreading_enabled()))
        x.sum().backward()

    measure(step)
    assert seen == [False]
    assert torch._C._is_multithreading_enabled()


def test_an_error_of_the_step_passes_and_the_history_ends(history: History) -> None:
    mine = ValueError("mine")

    def step() -> None:
        torch.ones(3)
        raise mine

    with pytest.raises(ValueError) as caught:
        measure(step)
    assert caught.value is mine
    assert torch._C._is_multithreading_enabled()


@pytest.fixture(params=("zh", "en"))
def spoken(request: pytest.FixtureRequest) -> Iterator[str]:
    before = language.language()
    language.choose(request.param)
    yield request.param
    language.choose(before)


def refused(error: type[Exception], call: Callable[[], object], *words: str) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert any("一" <= letter <= "鿿" for letter in message) == (language.language() == "zh")


def test_a_history_that_overflows(
    history: History, monkeypatch: pytest.MonkeyPatch, spoken: str
) -> None:
    model, x = Blocks(), torch.randn(32, 64)
    step = lambda: model(x).sum().backward()  # noqa: E731
    measure(step, model, inputs=x)
    monkeypatch.setattr(cuda, "MOST_ENTRIES", len(history.entries))
    refused(RuntimeError, lambda: measure(step, model, inputs=x), f"{len(history.entries):,}")
    monkeypatch.setattr(cuda, "MOST_ENTRIES", len(history.entries) + 1)
    measure(step, model, inputs=x)


def test_a_history_that_the_learner_records(history: History, spoken: str) -> None:
    torch.cuda.memory._record_memory_history(max_entries=5)
    refused(RuntimeError, lambda: measure(int), "_record_memory_history(None)")
    assert history.recording()
    assert history.options == {"max_entries": 5}
    torch.cuda.memory._record_memory_history(None)
    assert measure(lambda: torch.ones(3)).peak == 12


def test_another_allocator(history: History, monkeypatch: pytest.MonkeyPatch, spoken: str) -> None:
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    refused(RuntimeError, lambda: measure(int), "PYTORCH_NO_CUDA_MEMORY_CACHING")
    monkeypatch.delenv("PYTORCH_NO_CUDA_MEMORY_CACHING")
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: "cudaMallocAsync")
    refused(RuntimeError, lambda: measure(int), "PYTORCH_CUDA_ALLOC_CONF")


def devices(*names: str) -> list[torch.device]:
    return [torch.device(name) for name in names]


def test_which_gpu_is_measured() -> None:
    assert the_gpu_of([]) is the_gpu_of(devices("cpu", "cpu")) is None
    assert the_gpu_of(devices("cpu", "cuda:1", "cuda:1", "cpu")) == torch.device("cuda:1")


def test_two_gpus(spoken: str) -> None:
    refused(
        RuntimeError, lambda: the_gpu_of(devices("cuda:0", "cpu", "cuda:1")), "cuda:0", "cuda:1"
    )
    elsewhere = types.SimpleNamespace(device=torch.device("cuda:1"))
    source = CUDAAllocator(torch.device("cuda:0"))
    refused(RuntimeError, lambda: source.address(elsewhere), "cuda:0", "cuda:1")


def test_tensors_of_the_cpu_have_no_address_on_a_gpu() -> None:
    source = CUDAAllocator(torch.device("cuda:0"))
    assert source.address(torch.ones(3)) == source.made(torch.ones(3)[1:]) == 0


def test_a_step_that_uses_a_gpu_beside_the_cpu(
    monkeypatch: pytest.MonkeyPatch, spoken: str
) -> None:
    asked = iter((100, 612))
    monkeypatch.setattr(measurement, "requested_so_far", lambda: next(asked))
    refused(RuntimeError, lambda: measure(int), "model", "inputs")


def test_without_a_gpu_cuda_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("CUDA was woken")

    monkeypatch.setattr(torch.cuda, "_lazy_init", never)
    assert measured("mlp").source == "cpu allocator"
