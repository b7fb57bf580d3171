"""Byte counts of one GPU, from the history that CUDA's caching allocator keeps.

What counts: the bytes that were *requested* of that GPU's allocator. They add up to PyTorch's own
statistic ``requested_bytes``, while ``allocated_bytes`` is rounded up to blocks and
``reserved_bytes`` is what the allocator holds from the driver. What does not count: memory of the
CPU, where ``torch.utils.checkpoint`` keeps the random state of the GPU too; CUDA's own context; and
the workspace of cuBLAS, which is made once for each thread and stream, and stays.

Read in PyTorch's c10/cuda/CUDACachingAllocator.cpp, functions ``record_trace``,
``alloc_found_block`` and ``free_block``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch

from ..language import text
from .sources import AllocatorEvent, where_storage_begins


class CUDAAllocator:
    """One GPU's caching allocator, heard through its memory history.

    The history notes the size that was asked for, not that of the block that served it. A block
    that another stream still uses when its owner lets go counts until that stream is done with it
    (``free_completed``), as it does in ``requested_bytes``. A mark is no allocation here: PyTorch
    labels whatever the calling thread does next with a text of ours, and the text is the number of
    the latest mark.
    """

    name = "cuda allocator"
    sees_workspace = True
    on_host = False
    simulated = False
    sees_numbers = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks = 0
        # A thread may keep its last label for good, so no two measurements share theirs.
        self._label = f"{next(_measurements)}:"
        self._label_before = ""

    def start(self) -> None:
        """Begin to listen.

        Raises RuntimeError if the history is being recorded already, or if another allocator than
        PyTorch's caching one is in use.
        """
        _check_allocator()
        _take_workspace(self.device)
        self._label_before = torch.cuda.memory._get_memory_metadata()
        torch.cuda.memory._set_memory_metadata("")
        torch.cuda.memory._record_memory_history(
            "all",
            context=None,
            stacks="python",
            max_entries=MOST_ENTRIES,
            clear_history=True,
            skip_actions=["free_requested", "segment_alloc", "segment_free", "oom", "snapshot"],
        )

    def mark(self) -> None:
        """Put the next mark into the stream; marks are numbered from 0."""
        torch.cuda.memory._set_memory_metadata(f"{self._label}{self._marks}")
        self._marks += 1

    def address(self, tensor: torch.Tensor) -> int:
        """Where the tensor's storage begins; 0 if it has no bytes on this GPU.

        Raises RuntimeError for a tensor on another GPU.
        """
        if tensor.device != self.device:
            if tensor.device.type == self.device.type:
                raise RuntimeError(_two_devices(self.device, tensor.device))
            return 0
        return where_storage_begins(tensor)

    made = address

    def place(self, storage: torch.UntypedStorage) -> int:
        """The address of storage; 0 if it is not on this GPU."""
        return storage.data_ptr() if storage.device == self.device else 0

    def is_foreign(self, tensor: torch.Tensor) -> bool:
        """Never: other memory than the allocator's is not looked for on a GPU."""
        return False

    def watch(self, tensor: torch.Tensor, freed: Callable[[], None]) -> None:
        """Nothing to do: the history reports each free, that of older storage included."""

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Nothing to do, for the same reason."""

    def stop(self) -> list[AllocatorEvent]:
        """End listening; everything that happened, in order.

        Raises RuntimeError if the step did more than the history can hold.
        """
        try:
            history = torch.cuda.memory._snapshot()["device_traces"][self.device.index]
        finally:
            torch.cuda.memory._record_memory_history(None)
            torch.cuda.memory._set_memory_metadata(self._label_before)
        if len(history) >= MOST_ENTRIES:  # then older ones have been overwritten
            raise RuntimeError(
                text(
                    zh=f"这一步在 {self.device} 上分配和释放了 {MOST_ENTRIES:,} 次以上，"
                    "超出了能记下的次数。请测短一些的一步。",
                    en=f"The step allocated and freed more than {MOST_ENTRIES:,} times on "
                    f"{self.device}, more than can be noted. Measure a shorter step.",
                )
            )
        return read_history(history, self._label, self._marks)


MOST_ENTRIES = 1_000_000  # some hundred MB while they are read; a step of 100 layers makes 50,000
_measurements = itertools.count()
_KINDS: dict[str, Literal["allocate", "free"]] = {"alloc": "allocate", "free_completed": "free"}


def read_history(
    history: Iterable[Mapping[str, Any]], label: str, marks: int
) -> list[AllocatorEvent]:
    """One device's trace, as ``torch.cuda.memory._snapshot`` returns it, as a stream.

    ``label``: what the marks' labels begin with; the number of the latest mark follows.
    ``marks``: how many there were. Entries that carry another label, or none, come from other
    threads or from before the first mark.
    """
    stream: list[AllocatorEvent] = []
    passed, begin, time = 0, None, 0.0
    for entry in history:
        kind = _KINDS.get(entry["action"])
        if kind is None:  # of segments, snapshots: no request of the step's
            continue
        begin = entry["time_us"] if begin is None else begin
        time = (entry["time_us"] - begin) / 1e6
        if entry["user_metadata"].startswith(label):
            for number in range(passed, int(entry["user_metadata"].removeprefix(label)) + 1):
                stream.append(AllocatorEvent("mark", number, 0, time))
                passed = number + 1
        stream.append(AllocatorEvent(kind, entry["addr"], entry["size"], time))
    return stream + [AllocatorEvent("mark", number, 0, time) for number in range(passed, marks)]


# --- which GPU ----------------------------------------------------------------------------------


def the_gpu_of(devices: Iterable[torch.device]) -> torch.device | None:
    """The one GPU among the devices of a step's tensors, or None.

    Raises RuntimeError if there are several, NotImplementedError for a kind of device that cannot
    be measured.
    """
    found: torch.device | None = None
    for device in devices:
        if device.type == "cuda":
            if found not in (None, device):
                raise RuntimeError(_two_devices(found, device))
            found = device
        elif device.type != "cpu":
            raise NotImplementedError(
                text(
                    zh=f"能测的张量在 CPU 或一个 GPU 上，或是模拟的，而这里有张量在 {device} 上。",
                    en="Tensors on the CPU, on one CUDA device and simulated ones can be "
                    f"measured; here is one on {device}.",
                )
            )
    return found


@contextlib.contextmanager
def backward_on_this_thread() -> Iterator[None]:
    """Run backward passes where they are called, as on the CPU.

    By itself PyTorch runs those of a GPU on a thread of their own. There neither the label of the
    latest mark nor the learner's line would be known, nor which operator ended first.
    """
    with torch.autograd.set_multithreading_enabled(False):
        yield


def requested_so_far() -> int:
    """Bytes that this process has ever requested of all its GPUs."""
    if not torch.cuda.is_initialized():
        return 0
    statistics = map(torch.cuda.memory_stats, range(torch.cuda.device_count()))
    return sum(found.get("requested_bytes.all.allocated", 0) for found in statistics)


def _take_workspace(device: torch.device) -> None:
    """Have cuBLAS take its workspace now, if it has not.

    Whether a matmul ran before would otherwise change what a step is found to use.
    """
    with torch.cuda.device(device):
        torch.cuda.current_blas_handle()


# --- what can be wrong --------------------------------------------------------------------------


def _check_allocator() -> None:
    backend = torch.cuda.memory.get_allocator_backend()
    if backend != "native" or os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING", "0") != "0":
        raise RuntimeError(
            text(
                zh="这个进程没有用 PyTorch 自带的缓存分配器，所以显存的每次分配无从得知。"
                "请去掉环境变量 PYTORCH_NO_CUDA_MEMORY_CACHING 和 "
                "PYTORCH_CUDA_ALLOC_CONF 里的 backend，再重启内核。",
                en="This process does not use PyTorch's own caching allocator, so its allocations "
                "on the GPU cannot be followed. Unset PYTORCH_NO_CUDA_MEMORY_CACHING, and backend "
                "in PYTORCH_CUDA_ALLOC_CONF, and restart the kernel.",
            )
        )
    if torch._C._cuda_isHistoryEnabled():
        raise RuntimeError(
            text(
                zh="显存历史已经在记录，而 measure 自己也要用它。请先保存你的记录，再调用 "
                "torch.cuda.memory._record_memory_history(None)。",
                en="CUDA's memory history is already being recorded, and measure needs it for "
                "itself. Save yours, then call torch.cuda.memory._record_memory_history(None).",
            )
        )


def _two_devices(first: torch.device, second: torch.device) -> str:
    return text(
        zh=f"一次只能测一个 GPU，而这里的张量分布在 {first} 和 {second} 上。",
        en=f"One GPU can be measured at a time; here are tensors on {first} and on {second}.",
    )
