"""Whether what an operator is about to make still fits into this machine's memory.

A step that does not fit would make the machine swap, and stand still, long before it ends. So each
result's size is worked out before the operator runs and set against the memory that is left.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from ..language import text

RESERVE = 256 * 2**20  # bytes that always stay free, for the system and for what is not foreseen
_STRIDE = 2**30  # bytes: the machine is asked at least this often, since others use it too
_CGROUPS = Path("/sys/fs/cgroup")

_sizes: dict[tuple, int] = {}  # bytes of an operator's results, by operator and arguments


class Headroom:
    """The bytes that may still be handed out; the machine is asked when they seem used up.

    Counted as if nothing was ever freed, so most operators cost one look into a table.
    """

    def __init__(self, aside: Callable[[], AbstractContextManager]) -> None:
        self._left = 0
        self._aside = aside  # around what allocates here without being the step's

    def take(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Count the results of ``func``. Raises ``MemoryError`` if they do not fit."""
        needed = bytes_made(func, args, kwargs, self._aside)
        if needed > self._left:
            available = available_memory()
            if available is None:
                return
            self._left = available - RESERVE
            if needed > self._left:
                raise MemoryError(_refusal(func, needed, available))
            self._left = max(needed, min(self._left, _STRIDE))
        self._left -= needed


def available_memory() -> int | None:
    """Bytes that this process can still use before the machine swaps; None if nobody knows.

    That of the machine or of the container (control group) it runs in, whichever has less.
    """
    try:
        import psutil
    except ImportError:  # comes with every kernel; a bare script may lack it
        return None
    return min([psutil.virtual_memory().available, *_left_in_control_groups()])


def _left_in_control_groups(root: Path = _CGROUPS, mine: Path = Path("/proc/self/cgroup")) -> list:
    """Limit less use of this process's control groups; what is cached from files counts as free."""
    try:
        groups = [line.split(":", 2) for line in mine.read_text().splitlines()]
    except OSError:  # not Linux
        return []
    left = []
    for _, controllers, path in groups:
        if controllers not in ("", "memory"):  # version 2, or version 1's group for memory
            continue
        names = ("memory.max", "memory.current", "inactive_file")
        top = root
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            top = root / "memory"
        below = top / path.strip("/")
        for folder in {top, below, *below.parents} - set(top.parents):
            # "max", or a number beyond all machines, stands for no limit. A container may not see
            # the groups above its own.
            with contextlib.suppress(OSError, ValueError):
                limit = int((folder / names[0]).read_text())
                if limit < 2**60:
                    used = int((folder / names[1]).read_text())
                    statistics = (folder / "memory.stat").read_text()
                    cached = re.search(rf"^{names[2]} (\d+)", statistics, re.M)
                    left.append(limit - used + int(cached[1] if cached else 0))
    return left


def bytes_made(
    func: Any,
    args: tuple,
    kwargs: dict[str, Any],
    aside: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> int:
    """The size of the storages that ``func`` makes for its results, internal workspace left out.

    Found by trying, the first time that it gets such arguments; ``aside`` is entered for that.
    """
    try:
        key: tuple = (id(func), _described(args))
        if kwargs:
            key += (*kwargs, _described(kwargs.values()))
        size = _sizes.get(key)
    except (TypeError, RuntimeError):  # an argument that is no table's key, or has no shape
        return 0
    if size is None:
        if len(_sizes) > 20_000:
            _sizes.clear()
        with aside():
            size = _sizes[key] = _tried_without_bytes(func, args, kwargs)
    return size


def _described(values: Any) -> tuple:
    """What decides the size of a result; nothing that would keep a tensor alive."""
    return tuple(
        [
            (value.shape, value.dtype)
            if isinstance(value, Tensor)
            else _described(value)
            if isinstance(value, (list, tuple))
            else None
            if isinstance(value, torch.Generator)
            else value
            for value in values
        ]
    )


def _tried_without_bytes(func: Any, args: tuple, kwargs: dict[str, Any]) -> int:
    """Have ``func`` make its results on the device ``meta``, where tensors have no bytes."""
    with _unseen():
        args, kwargs = tree_map_only(
            Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype, device="meta"), (args, kwargs)
        )
        if "device" in kwargs or not _storages(args, kwargs):
            kwargs = {**kwargs, "device": "meta"}
        given = _storages(args, kwargs)
        try:
            made = _storages(func(*args, **kwargs))
        except (RuntimeError, TypeError):
            # Values decide, or there is no such version, or the result is sparse: what it took is
            # seen at the next look at the machine.
            return 0
        return sum(size for storage, size in made.items() if storage not in given)


def _storages(*values: Any) -> dict[int, int]:
    storages = [t.untyped_storage() for t in tree_leaves(values) if isinstance(t, Tensor)]
    return {storage._cdata: storage.nbytes() for storage in storages}


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """No mode, the learner's own included, sees what happens inside."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


def _refusal(func: Any, needed: int, available: int) -> str:
    name = str(func._overloadpacket)
    needs, has, keeps = (f"{size / 2**20:,.0f} MiB" for size in (needed, available, RESERVE))
    return text(
        zh=f"这一步放不下：{name} 要 {needs}，而这台机器只剩 {has}，其中 {keeps} 要留给系统。"
        "在 with simulated(): 里建模型和输入，再 measure 一次：那样不占内存。",
        en=f"This step does not fit: {name} needs {needs}, and this machine has {has} left, of "
        f"which {keeps} stay free. Build the model and its inputs in a `with simulated():` and "
        "measure that: it takes no memory.",
    )
