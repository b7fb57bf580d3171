"""What holds while a step is measured, and no longer: hooks, threads, interrupts, the collector."""

from __future__ import annotations

import contextlib
import functools
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C._dynamo import eval_frame
from torch.nn.modules import module as module_hooks


def never_compiled(method: Callable) -> Callable:
    """Keep ``torch.compile`` away from a method, and from all that it calls, at no cost per call.

    Where a step calls a compiled model, the compiler would take them for parts of the model.
    """
    skip = eval_frame._FrameAction.SKIP
    eval_frame.set_code_exec_strategy(method.__code__, eval_frame._FrameExecStrategy(skip, skip))
    return method


@contextlib.contextmanager
def told_of_resizes(
    place: Callable[[torch.UntypedStorage], int], tell: Callable[[torch.UntypedStorage, int], None]
) -> Iterator[None]:
    """Call ``tell`` after a storage was resized from Python, as FSDP2 does with its parameters.

    No operator is involved, so that nobody else would notice.
    """
    kind: Any = torch.UntypedStorage
    original, inherited = kind.resize_, "resize_" not in vars(kind)

    def resize_(storage: torch.UntypedStorage, size: int) -> Any:
        try:
            old = place(storage)
        except RuntimeError:  # a compiler's or a conversion's own, which has no memory
            return original(storage, size)
        result = original(storage, size)
        tell(storage, old)
        return result

    kind.resize_ = resize_
    try:
        yield
    finally:
        if inherited:
            del kind.resize_
        else:
            kind.resize_ = original


register_always_called = functools.partial(
    module_hooks.register_module_forward_hook, always_call=True
)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """An interrupt (Ctrl-C, the stop button) waits until the body has ended.

    Otherwise one that comes while something is being set up could leave it behind for good.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple] = []
    signal.signal(signal.SIGINT, lambda *about: came.append(about))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


@contextlib.contextmanager
def collector_resting() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def noticing_threads() -> Iterator[list[str]]:
    """The names of the threads that the body starts."""
    started: list[str] = []
    profile = threading.getprofile()

    def first_call(frame: Any, event: str, argument: Any) -> None:
        thread = threading.current_thread()
        # Jupyter's own comes at any moment; that of a progress bar only looks after bars.
        if not type(thread).__module__.startswith(("ipykernel", "tqdm")):
            started.append(thread.name)
        sys.setprofile(profile)

    threading.setprofile(first_call)
    try:
        yield started
    finally:
        threading.setprofile(profile)
