"""Segments over several blocks, without a change to the code that calls them.

The first block of a segment runs all of it in one checkpoint; the others hand on what they are
given. That is right only where each block gets what the one before returned, and all else alike:
:func:`chains_in` finds where that is so, and each call makes sure of it. :class:`Segment` and its
companion are also what :mod:`code` pastes, so they need only torch.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .record import STATIC, Call, Record


class Segment:
    """Blocks that run one after the other, in one checkpoint.

    ``more``: what the first block got beside the hidden state; ``out``: what the last one
    returned, until every block has handed it on.
    """

    def __init__(self, forwards: Any) -> None:
        self.forwards, self.passed = forwards, 0
        self.more: Any = None
        self.out: Any = None

    def call(self, number: int, x: Any, args: Any, kwargs: Any) -> Any:
        if number == 0:
            self.more = self.out = None
            if torch.is_grad_enabled():
                return self.run(x, args, kwargs)
        if self.out is None:
            return self.forwards[number](x, *args, **kwargs)
        alike = self.out() is x and number == self.passed + 1 and same(self.more, (args, kwargs))
        if not alike:
            raise RuntimeError(
                "These blocks no longer run as one segment: a block of it was skipped, called "
                "twice, or given something else than the block before it returned."
            )
        self.passed = number
        if number == len(self.forwards) - 1:
            self.more = self.out = None
        return x

    def run(self, x: Any, args: Any, kwargs: Any) -> Any:
        names, positions = tuple(kwargs), len(args)

        def blocks(x: Any, *values: Any) -> Any:
            named = dict(zip(names, values[positions:], strict=True))
            for forward in self.forwards:
                x = forward(x, *values[:positions], **named)
            return x

        out = checkpoint(blocks, x, *args, *kwargs.values(), use_reentrant=False)
        self.more, self.out, self.passed = (args, kwargs), weakref.ref(out), 0
        return out


class InSegment:
    """What stands in for the ``forward`` of one of a segment's blocks."""

    __name__ = "checkpointed with others"

    def __init__(self, segment: Any, number: int) -> None:
        self.segment, self.number = segment, number
        self.__signature__ = inspect.signature(segment.forwards[number])

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return self.segment.call(self.number, x, args, kwargs)


def same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, (bool, int, float, str)) and one == other


def one_checkpoint(blocks: Any) -> None:
    segment = Segment([block.forward for block in blocks])
    for number, block in enumerate(blocks):
        block.forward = InSegment(segment, number)


PASTED = Segment, InSegment, same, one_checkpoint


def put_on(model: nn.Module, segments: Iterable[Sequence[str]]) -> None:
    """Have the blocks at each of these paths run in one checkpoint."""
    for paths in segments:
        one_checkpoint([model.get_submodule(path) for path in paths])


def take_off(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Take back every :func:`put_on` inside of ``model``; the segments that there were."""
    found: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        forward = vars(module).get("forward")
        if isinstance(forward, InSegment):
            found.setdefault(id(forward.segment), []).append(path)
            own = forward.segment.forwards[forward.number]
            del vars(module)["forward"]
            if module.forward != own:  # somebody else's was there before
                vars(module)["forward"] = own
    return tuple(map(tuple, found.values()))


def has_hooks(block: nn.Module) -> bool:
    """Whether something runs around each call of the block, as FSDP does: then no other block may
    run inside of it."""
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return any(getattr(block, kind, None) for kind in kinds)


# --- where segments may be ------------------------------------------------------------------------


def chains_in(record: Record, paths: Sequence[str]) -> list[list[str]]:
    """The runs of two and more modules of which each hands on to the next, in every call."""
    calls: dict[str, list[int]] = {path: [] for path in paths}
    for number, call in enumerate(record.calls):
        if call.path in calls:
            calls[call.path].append(number)
    ordered = sorted((p for p in paths if calls[p]), key=lambda p: calls[p][0])
    chains: list[list[str]] = []
    for path in ordered:
        before = chains[-1][-1] if chains else None
        if before is not None and _follows(record, calls[before], calls[path]):
            chains[-1].append(path)
        else:
            chains.append([path])
    return [chain for chain in chains if len(chain) > 1]


def _follows(record: Record, before: list[int], after: list[int]) -> bool:
    return len(before) == len(after) and all(
        record.calls[b].follows == a and _hands_on(record, record.calls[a], record.calls[b])
        for a, b in zip(before, after, strict=True)
    )


def _hands_on(record: Record, call: Call, following: Call) -> bool:
    """Nothing that ``call`` made is in use any more once ``following`` has run."""
    handed = following.input
    if handed == STATIC or not call.begin < record.storages[handed].made < call.end:
        return False
    until = following.end
    while until < len(record.moments) and record.moments[until].kind != "make":
        until += 1
    made = (m.what for m in record.moments[call.begin : call.end] if m.kind == "make")
    return all(
        record.storages[n].dropped < (until if n == handed else following.begin) for n in made
    )


def cut(chains: Iterable[Sequence[str]], length: int) -> list[tuple[str, ...]]:
    """The chains in segments of ``length`` blocks; the last of a chain may be shorter."""
    return [
        tuple(chain[begin : begin + length])
        for chain in chains for begin in range(0, len(chain), length)
    ]  # fmt: skip


def lengths(chains: Sequence[Sequence[str]]) -> list[int]:
    """The lengths worth trying: the shortest for each number of segments of the longest chain."""
    longest = max(map(len, chains), default=0)
    return sorted({-(-longest // count) for count in range(1, longest)})
