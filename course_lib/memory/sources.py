"""Where the byte counts come from: one stream of allocations, frees and marks.

A source records what happens to memory between ``start()`` and ``stop()``, in order. Whoever
listens may put a numbered *mark* into the stream with ``mark()``, so that it can tell later what
was allocated between two of its own actions. Every source speaks the same way, so nothing else
needs to know where the bytes are.
"""

from __future__ import annotations

import functools
import itertools
import operator
import weakref
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import (
    ProfilerActivity,
    ProfilerConfig,
    ProfilerState,
    RecordScope,
    _ExperimentalConfig,
    _ExtraFields_Allocation,
)

from ..language import text


class AllocatorEvent(NamedTuple):
    """One entry of the stream.

    ``kind``: an allocation, a free, or a mark. ``address``: identifies the memory among what is
    alive. ``size``: bytes (0 for a mark). ``time``: seconds since the start, or None where nothing
    real takes time.
    """

    kind: Literal["allocate", "free", "mark"]
    address: int
    size: int
    time: float | None


class Source(Protocol):
    """What :mod:`memory` needs of a place that memory comes from."""

    name: str
    on_host: bool  # whether it is this machine's own memory, which can be used up
    simulated: bool
    sees_workspace: bool  # whether memory inside an operator shows up
    sees_numbers: bool  # whether the 2 of x * 2 shows up, of which PyTorch makes a tensor

    def start(self) -> None: ...
    def mark(self) -> None: ...
    def address(self, tensor: torch.Tensor) -> int: ...
    def made(self, tensor: torch.Tensor) -> int: ...
    def place(self, storage: torch.UntypedStorage) -> int: ...
    def is_foreign(self, tensor: torch.Tensor) -> bool: ...
    def watch(self, tensor: torch.Tensor, freed: Callable[[], None]) -> None: ...
    def resized(self, storage: torch.UntypedStorage) -> None: ...
    def stop(self) -> list[AllocatorEvent]: ...


class CPUAllocator:
    """PyTorch's CPU allocator, heard through the profiler's memory events.

    The profiler reports every allocation and free of the calling thread, operators' internal
    workspace included. A mark is an allocation too, of a single byte that is held, so that nothing
    else can lie at its address until the next mark is made: it is found again by its address, and
    taken out of the stream.
    """

    name = "cpu allocator"
    on_host = True
    simulated = False
    sees_workspace = True
    sees_numbers = True

    def __init__(self) -> None:
        self._marks: list[torch.UntypedStorage] = []  # those that are held
        self._mark_addresses: list[int] = []  # of all before them
        self._watched: dict[int, tuple[weakref.ref, Callable[[], None]]] = {}  # by address

    def start(self) -> None:
        """Begin to listen. Raises RuntimeError if this thread is already being profiled."""
        if torch.autograd._profiler_enabled():
            raise RuntimeError(
                text(
                    zh="torch.profiler 正在运行，而 measure 自己也要用它。请先结束那个 profiler。",
                    en="torch.profiler is already running, and measure needs it for itself. "
                    "Stop that profiler first.",
                )
            )
        config = ProfilerConfig(
            ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig(), ""
        )
        activities = {ProfilerActivity.CPU}
        _prepare_profiler(config, activities)
        # Operators are recorded elsewhere and far more cheaply: ask for a scope that nothing uses.
        scopes = {RecordScope.STATIC_RUNTIME_OP}
        _enable_profiler(config, activities, scopes)  # type: ignore[call-arg]

    def mark(self) -> None:
        """Put the next mark into the stream; marks are numbered from 0."""
        self._marks.append(torch.UntypedStorage(1))
        if len(self._marks) > MARKS_HELD:
            self._let_go(self._marks[:-1])
            del self._marks[:-1]

    def _let_go(self, marks: list[torch.UntypedStorage]) -> None:
        self._mark_addresses += [mark.data_ptr() for mark in marks]

    def address(self, tensor: torch.Tensor) -> int:
        """Where the tensor's storage begins; 0 if it has no bytes, as those of a compiler."""
        try:
            return where_storage_begins(tensor)
        except RuntimeError:
            return 0

    made = address

    def place(self, storage: torch.UntypedStorage) -> int:
        """The address of storage."""
        return storage.data_ptr()

    def is_foreign(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor's memory is not PyTorch's own but, say, a NumPy array's."""
        return not tensor.untyped_storage().resizable()

    def watch(self, tensor: torch.Tensor, freed: Callable[[], None]) -> None:
        """Call ``freed`` when storage that existed before the start is freed.

        The profiler knows no size for such storage and stays silent about it.
        """
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        watched = self._watched

        def gone(_: weakref.ref) -> None:
            if watched.pop(address, None) is not None:  # else listening is over
                freed()

        watched[address] = weakref.ref(storage, gone), freed

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Say that storage got other bytes: its new ones were heard, not the end of older ones."""
        for address, (reference, freed) in list(self._watched.items()):
            if reference() is storage and storage.data_ptr() != address:
                del self._watched[address]
                freed()

    def stop(self) -> list[AllocatorEvent]:
        """End listening; everything that happened, in order."""
        self._watched.clear()
        if not torch.autograd._profiler_enabled():
            raise RuntimeError(
                text(
                    zh="step 自己也用了 profiler，它一结束，measure 的那个也跟着结束了。"
                    "请去掉 step 里的 profiler 再测。",
                    en="The step used a profiler itself, and measure's own ended together with "
                    "it. Measure the step without a profiler.",
                )
            )
        reported = _disable_profiler().experimental_event_tree()
        allocations: list[tuple[int, int, int]] = []  # time in nanoseconds, address, signed bytes
        for event in reported:
            fields = event.extra_fields
            if type(fields) is _ExtraFields_Allocation:
                allocations.append((event.start_time_ns, fields.ptr, fields.alloc_size))
        allocations.sort(key=operator.itemgetter(0))
        self._let_go(self._marks)
        self._marks.clear()
        return _marks_found(allocations, self._mark_addresses)


MARKS_HELD = 2**16  # then older ones are freed, and a very long step does not fill the memory


def _marks_found(allocations: list[tuple[int, int, int]], marks: list[int]) -> list[AllocatorEvent]:
    """The stream: ``allocations`` with those that are marks, at these addresses, taken for that.

    Each mark was held until the next one was made. So the last allocation at its address before
    the next mark is the mark.
    """
    number = len(marks) - 1
    found: dict[int, int] = {}  # place among the allocations -> the mark's number
    for place in range(len(allocations) - 1, -1, -1):
        if number < 0:
            break
        _, address, size = allocations[place]
        if size > 0 and address == marks[number]:
            found[place] = number
            number -= 1
    if number >= 0:
        raise RuntimeError(
            text(
                zh="PyTorch 的 profiler 漏报了内存分配（别的线程同时在还内存时会这样，比如 gloo 的"
                "线程），这次测量不作数：请再测一次。",
                en="PyTorch's profiler lost an allocation, as it may while other threads, such as "
                "gloo's, give memory back. This measurement does not count: measure again.",
            )
        )
    stream: list[AllocatorEvent] = []
    held: set[int] = set()  # addresses of marks
    begin = allocations[0][0] if allocations else 0
    for place, (nanoseconds, address, size) in enumerate(allocations):
        time = (nanoseconds - begin) / 1e9
        if place in found:
            held.add(address)
            stream.append(AllocatorEvent("mark", found[place], 0, time))
        elif size > 0:
            stream.append(AllocatorEvent("allocate", address, size, time))
        elif address in held:
            held.remove(address)
        else:
            stream.append(AllocatorEvent("free", address, -size, time))
    return stream


def where_storage_begins(tensor: torch.Tensor) -> int:
    """The address of the first byte of the tensor's storage; 0 if it has no bytes."""
    begin = tensor.data_ptr()
    if begin:
        return begin - int(tensor.storage_offset()) * tensor.itemsize
    return tensor.untyped_storage().data_ptr()  # no elements, of a storage that may have some


class SimulatedTensors:
    """Tensors under ``FakeTensorMode``: every storage has a size and a life, and no bytes.

    There is no allocator to listen to, so the stream is made from the storages themselves: one
    is allocated when an operator first returns it and freed when Python says it is gone.
    """

    name = "simulated"
    on_host = False
    simulated = True
    sees_workspace = False
    sees_numbers = False

    def __init__(self) -> None:
        self._stream: list[AllocatorEvent] = []
        self._alive: dict[int, _Storage] = {}  # by the storage's own identity
        self._resized = itertools.count(1)
        self._marks = 0

    def start(self) -> None:
        """Begin with an empty stream."""

    def mark(self) -> None:
        """Put the next mark into the stream; marks are numbered from 0."""
        self._stream.append(AllocatorEvent("mark", self._marks, 0, None))
        self._marks += 1

    def address(self, tensor: torch.Tensor) -> int:
        """A number that identifies the bytes of the tensor's storage while they live."""
        return self.place(tensor.untyped_storage())

    def place(self, storage: torch.UntypedStorage) -> int:
        """The same number for storage."""
        identity = storage._cdata
        known = self._alive.get(identity)
        return identity if known is None else known.address

    def made(self, tensor: torch.Tensor) -> int:
        """The address of an operator's result, whose bytes are new unless they are known."""
        return self._as_it_is_now(tensor.untyped_storage())

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Say that storage got other bytes; that of which nobody knew had none before."""
        if storage._cdata in self._alive or storage.nbytes():
            self._as_it_is_now(storage)

    def _as_it_is_now(self, storage: torch.UntypedStorage) -> int:
        identity, size = storage._cdata, storage.nbytes()
        known = self._alive.get(identity)
        if known is not None and known.size == size:
            return known.address
        # A storage resized in place: as an allocator would, get new bytes, then free the old.
        address = identity if known is None else next(self._resized)
        self._stream.append(AllocatorEvent("allocate", address, size, None))
        if known is not None:
            known.freed()
        free = AllocatorEvent("free", address, size, None)
        self._follow(storage, address, size, functools.partial(self._stream.append, free))
        return address

    def is_foreign(self, tensor: torch.Tensor) -> bool:
        """Never: all simulated memory is counted by its storages."""
        return False

    def watch(self, tensor: torch.Tensor, freed: Callable[[], None]) -> None:
        """Call ``freed`` when storage that existed before the start is freed."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._alive:
            return  # it was filled by hand meanwhile, and the stream will say when it is freed
        self._follow(storage, storage._cdata, storage.nbytes(), freed)

    def _follow(
        self, storage: torch.UntypedStorage, address: int, size: int, freed: Callable[[], None]
    ) -> None:
        alive, identity = self._alive, storage._cdata

        def gone(_: weakref.ref) -> None:
            if alive.pop(identity, None) is not None:  # else listening is over
                freed()

        alive[identity] = _Storage(address, size, freed, weakref.ref(storage, gone))

    def stop(self) -> list[AllocatorEvent]:
        """Everything that happened, in order."""
        self._alive.clear()
        return self._stream


class _Storage(NamedTuple):
    address: int
    size: int
    freed: Callable[[], None]
    reference: weakref.ref
