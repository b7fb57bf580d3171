"""What CUDA's out-of-memory message says, number by number, and what to do about it first.

The message is written by ``c10/cuda/CUDACachingAllocator.cpp`` of PyTorch; its sentences are those
of versions 2.1 to 2.13.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ...figures.words import size_text
from ...language import Bilingual, Table, text

_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB)"
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_PATTERNS = {
    "asked": rf"[Tt]ried to allocate {_SIZE}",
    "capacity": rf"total capacity of {_SIZE}",
    "free": rf"of which {_SIZE} is free",
    "process": rf"this process has {_SIZE} memory in use",
    "allocated": rf"{_SIZE} is allocated by PyTorch",
    "idle": rf"{_SIZE} is reserved by PyTorch but unallocated",
}
_OTHERS = rf"Process \d+ has {_SIZE} memory in use"
_ON_CPU = r"you tried to allocate (\d+) bytes"
_NAMES = {
    "asked": ("这次要的", "asked for"),
    "capacity": ("显卡一共", "on the card in all"),
    "free": ("没人占用", "free"),
    "others": ("别的进程", "other processes"),
    "allocated": ("你的张量", "your tensors"),
    "idle": ("PyTorch 占着没用", "held by PyTorch, unused"),
}


@dataclass(frozen=True)
class Reading:
    """The numbers of one message, in bytes, None where it does not say; and what comes first.

    ``asked``: the allocation that failed. ``allocated``: held by tensors. ``idle``: reserved by
    PyTorch and not allocated. ``others``: held by other processes. ``cause``: ``"fragments"``,
    ``"another process"`` or ``"the step"``; ``zh``, ``en``: what to do about it.
    """

    asked: int
    capacity: int | None
    free: int | None
    allocated: int | None
    idle: int | None
    others: int | None
    cause: str
    zh: str
    en: str

    def table(self) -> Table:
        """What the message says, a line for each number."""
        rows = [
            [names, size_text(size)]
            for key, names in _NAMES.items()
            if (size := getattr(self, key)) is not None
        ]
        return Table([("报错里的数", "in the message"), ("大小", "size")], rows)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{text(zh=self.zh, en=self.en)}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        words = Bilingual(zh=self.zh, en=self.en)._repr_mimebundle_()
        table = self.table()._repr_mimebundle_()
        return {kind: f"{shown}\n{words[kind]}" for kind, shown in table.items()}


def read_error(message: str) -> Reading:
    """Read CUDA's out-of-memory message; a CPU's gives only how much was asked for.

    Raises ``ValueError`` if it is neither.
    """
    found = {name: _size(pattern, message) for name, pattern in _PATTERNS.items()}
    if found["asked"] is None and (on_cpu := re.search(_ON_CPU, message)):
        found["asked"] = int(on_cpu[1])
    if found["asked"] is None:
        raise ValueError(
            text(
                zh="这不像是内存不够的报错：里面没有 “Tried to allocate …”。请把整段报错贴进来，"
                "从 OutOfMemoryError 那一行开始。",
                en="This does not look like an out-of-memory message: it nowhere says “Tried to "
                "allocate …”. Paste all of it, from the line with OutOfMemoryError.",
            )
        )
    rest = [_bytes(*pair) for pair in re.findall(_OTHERS, message)]
    others = sum(rest) if rest else None
    cause = _cause(found["asked"], found["allocated"], found["idle"], others)
    zh, en = _FIRST[cause]
    return Reading(
        found["asked"],
        found["capacity"],
        found["free"],
        found["allocated"],
        found["idle"],
        others,
        cause,
        zh,
        en,
    )


def _size(pattern: str, message: str) -> int | None:
    found = re.search(pattern, " ".join(message.split()))
    return _bytes(found[1], found[2]) if found else None


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def _cause(asked: int, allocated: int | None, idle: int | None, others: int | None) -> str:
    """Which of three: idle memory would have been enough, others hold more than you, or neither."""
    if idle is not None and idle >= asked:
        return "fragments"
    if others is not None and others > (allocated or 0):
        return "another process"
    return "the step"


_FIRST = {
    "fragments": (
        "PyTorch 占着没用的比这次要的还多，只是不成整块：这是碎片。先设环境变量 "
        "PYTORCH_ALLOC_CONF=expandable_segments:True 再跑；还不够，再往下走。",
        "PyTorch holds more unused memory than was asked for, only not in one piece: fragments. "
        "Set PYTORCH_ALLOC_CONF=expandable_segments:True in the environment and run again; if "
        "that is not enough, go on to the next step.",
    ),
    "another process": (
        "别的进程占得比你的张量还多：先用 nvidia-smi 看看是谁，也许是没退干净的内核。",
        "Other processes hold more than your tensors do: see with nvidia-smi which ones, perhaps "
        "a kernel that never quit.",
    ),
    "the step": (
        "内存确实被这一步用掉了：往下走，看峰值由什么组成。",
        "The step itself has used the memory up: go on, and see what its peak is made of.",
    ),
}
