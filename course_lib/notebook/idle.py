"""Work for the moments in which a notebook's kernel has nothing to do.

It runs between messages, on the thread that runs the cells: never while a cell runs, and so never
while anything is measured or timed.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

PAUSE = 0.15  # seconds without a cell, or a call, before anything is done
_BREATH = 0.01  # seconds between two pieces of work, for messages that have come in meanwhile

_loop: asyncio.AbstractEventLoop | None = None  # the one that runs the cells
_waiting: list[weakref.WeakMethod] = []  # the last one's turn comes first
_due = False  # whether a turn is on its way
_lock = threading.Lock()  # of the two above: sliders are heard on another thread
_last_call = 0.0
_last_cell = -1


def when_idle(work: Callable[[], bool]) -> None:
    """Call a bound method in the kernel's idle moments, again and again until it returns False.

    Each call should be short: messages wait for it. The method does not keep its object alive.
    May be called from any thread once a cell has called it. Outside of a kernel nothing happens.
    """
    global _loop, _due, _last_call
    if _loop is None:
        if kernel_shell() is None or threading.current_thread() is not threading.main_thread():
            return
        try:
            _loop = asyncio.get_running_loop()
        except RuntimeError:  # a kernel of another kind
            return
    _last_call = time.monotonic()
    reference = weakref.WeakMethod(work)
    with _lock:
        if reference in _waiting:
            _waiting.remove(reference)
        _waiting.append(reference)
        if not _due:
            _due = True
            _loop.call_soon_threadsafe(_later, PAUSE)


def _later(seconds: float) -> None:
    assert _loop is not None
    _loop.call_later(seconds, _turn)


def _turn() -> None:
    global _due, _last_cell
    cell = kernel_shell().execution_count
    if cell != _last_cell or time.monotonic() - _last_call < PAUSE:
        _last_cell = cell
        return _later(PAUSE)
    with _lock:
        reference = _waiting[-1]
    work, more = reference(), False
    try:
        more = work is not None and work()
    finally:
        with _lock:
            if not more:
                _waiting.remove(reference)
            _due = bool(_waiting)
        if _due:
            _later(_BREATH)


def kernel_shell() -> Any:
    """IPython's shell, if it belongs to a notebook's kernel; else None."""
    from IPython import get_ipython

    shell = get_ipython()
    return shell if shell is not None and hasattr(shell, "kernel") else None
