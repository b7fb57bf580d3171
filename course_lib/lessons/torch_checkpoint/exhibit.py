"""What an exhibit of the museum is, and how its code is run and looked into.

An exhibit is data and code in one place. ``code`` is what the learner is shown and exactly what
runs; ``cure`` likewise. In both, the names of ``PROVIDED`` are at hand, and ``x``, sixteen random
rows of eight numbers. The code defines ``model`` and either ``forward(x)``, whose backward pass
the museum starts, or ``step()``, which does everything itself.

The plain side of a comparison is the same code once more, with :func:`call` in the place of
``checkpoint``."""

from __future__ import annotations

import contextlib
import functools
import linecache
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from ...gradients import Agreement, same_gradients
from ...memory.measurement import measure

Loudness = Literal["error", "warning", "silent"]


LOUDNESS = {
    "error": ("报错", "raises"),
    "warning": ("只警告", "only warns"),
    "silent": ("静默", "silent"),
}


@dataclass(frozen=True, kw_only=True)
class Trap:
    """What any exhibit tells. Texts are (zh, en).

    ``row``: in the list of traps from which it was collected. ``code``, ``cure``: at most ten lines
    each, see the module. ``loudness``: how it makes itself heard. ``issues``: where it is
    discussed, such as ``pytorch/pytorch#7617``. ``quoted``: words by which its error or warning is
    recognised.
    """

    row: int
    name: str
    title: tuple[str, str]
    code: str
    cure: str
    loudness: Loudness
    why: tuple[str, str]
    remedy: tuple[str, str]
    issues: tuple[str, ...] = ()
    quoted: str | None = None


@dataclass(frozen=True, kw_only=True)
class Exhibit(Trap):
    """A trap that one process shows.

    ``seen``: the kind and name of the first difference that ``same_gradients`` finds before the
    cure, None if it finds none. ``judge``: what shows the fault: gradients, or of a measured step
    the peak (``memory``) or FLOPs that nobody asked for (``operations``).
    """

    seen: str | None = None
    judge: Literal["gradients", "memory", "operations"] = "gradients"

    def inspect(self, cured: bool = False) -> Inspection:
        """Run ``code``, or ``cure``, with and without checkpoints, and look at what happens."""
        source = self.cure if cured else self.code
        if self.judge == "gradients":
            return _inspect_gradients(self, source)
        return _inspect_step(self, source)


@dataclass(frozen=True)
class Inspection:
    """What running an exhibit showed, now, with this version of torch.

    ``error``: what it raised, as type and message. ``warned``: the first line of each warning.
    ``agreement``: the verdict of ``same_gradients``. ``peaks``: bytes of the plain and of the
    checkpointed step, where one is measured; ``flops``: of the same steps. ``judge``: the
    exhibit's.
    """

    error: str | None
    warned: tuple[str, ...]
    agreement: Agreement
    peaks: tuple[int, int] | None = None
    flops: tuple[int, int] | None = None
    judge: Literal["gradients", "memory", "operations"] = "gradients"

    @property
    def loudness(self) -> Loudness:
        """Whether the step raised, at least warned, or said nothing."""
        return "error" if self.error else "warning" if self.warned else "silent"

    @property
    def seen(self) -> str | None:
        """The first difference that ``same_gradients`` found, such as ``gradient 0.weight``."""
        first = self.agreement.first
        return f"{first.kind} {first.name}".strip() if first else None

    @property
    def healthy(self) -> bool:
        """Equal results, no word of complaint, and what is in question as it was to be."""
        as_promised = True
        if self.judge == "memory" and self.peaks is not None:
            as_promised = self.peaks[1] < 0.9 * self.peaks[0]
        elif self.judge == "operations" and self.flops is not None:
            as_promised = self.flops[1] == self.flops[0]
        return bool(self.agreement) and not self.error and not self.warned and as_promised


def call(function: Callable, *arguments: Any, **options: Any) -> Any:
    """``checkpoint`` without the checkpoint: ``function(*arguments)``."""
    for name in _OPTIONS:
        options.pop(name, None)
    return function(*arguments, **options)


def call_sequential(functions: Any, segments: int, x: Any, **options: Any) -> Any:
    """``checkpoint_sequential`` without the checkpoints."""
    for function in functions:
        x = function(x)
    return x


_OPTIONS = (
    "use_reentrant",
    "preserve_rng_state",
    "context_fn",
    "determinism_check",
    "debug",
    "early_stop",
)


PROVIDED = {
    "torch": torch,
    "nn": nn,
    "random": random,
    "contextlib": contextlib,
    "functools": functools,
    "checkpoint": checkpoint,
    "checkpoint_sequential": checkpoint_sequential,
    "create_selective_checkpoint_contexts": create_selective_checkpoint_contexts,
}


_PLAIN = {"checkpoint": call, "checkpoint_sequential": call_sequential}


def _prepared(exhibit: Exhibit, source: str, **replaced: Any) -> dict[str, Any]:
    """The names that the code defines, with equal random numbers whenever it is run."""
    file = f"<{exhibit.name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {**PROVIDED, **replaced, "__name__": file}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        names["x"] = torch.randn(16, 8)
        exec(compile(source, file, "exec"), names)
    return names


def _inspect_gradients(exhibit: Exhibit, source: str) -> Inspection:
    plain = _prepared(exhibit, source, **_PLAIN)
    checkpointed = _prepared(exhibit, source)
    pair = (plain["model"], checkpointed["model"])
    with _hearing_warnings() as heard:
        if "step" in plain:
            agreement = same_gradients(plain["step"], checkpointed["step"], model=pair)
        else:
            agreement = same_gradients(
                plain["forward"], checkpointed["forward"], plain["x"], model=pair
            )
    return Inspection(_described(agreement.error), tuple(heard), agreement)


def _inspect_step(exhibit: Exhibit, source: str) -> Inspection:
    """The same, and the peaks and FLOPs of both sides, measured."""
    found = _inspect_gradients(exhibit, source)
    if found.error:
        return found
    traces = []
    for replaced in (_PLAIN, {}):
        names = _prepared(exhibit, source, **replaced)

        def step(names: dict[str, Any] = names) -> None:
            names["forward"](names["x"]).sum().backward()

        traces.append(measure(step, names["model"], inputs=names["x"]))
    plain, checkpointed = traces
    return replace(
        found,
        peaks=(plain.peak, checkpointed.peak),
        flops=(plain.flops, checkpointed.flops),
        judge=exhibit.judge,
    )


def _described(error: Exception | None) -> str | None:
    return f"{type(error).__name__}: {str(error).strip()}" if error else None


@contextlib.contextmanager
def _hearing_warnings() -> Iterator[list[str]]:
    """Collect each different warning once, its first two lines, instead of showing it."""
    heard: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield heard
    for warning in caught:
        words = " ".join(str(warning.message).split())
        if words not in heard:
            heard.append(words)
