"""Where to put checkpoints: what a plan is, what it costs, and the module that carries it out.

A plan says which layers of a chain are recomputed together. ``predict`` plays the chain's score
under a plan, storage by storage, as PyTorch would hold and drop it, and so finds the peak to the
byte without running the model; ``apply`` runs the plan with ``torch.utils.checkpoint``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..language import text
from .chains import Chain, Layer, Note

Part = int | tuple["Part", ...]


@dataclass(frozen=True)
class Plan:
    """Which layers are recomputed together.

    ``parts``, in order: a number is a layer whose activations are kept; a tuple is a segment, of
    which only the input is kept until the backward pass recomputes it. A tuple in a tuple is a
    segment inside a segment. ``Plan((0, (1, 2), (3, (4, 5))))`` keeps layer 0, recomputes 1 and 2
    together, and 3 to 5 together, where 4 and 5 are recomputed a second time.

    Raises ``ValueError`` unless the layers are 0, 1, 2, … in order, each once.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        layers = list(_layers(self.parts))
        if layers != list(range(len(layers))):
            raise ValueError(
                text(
                    zh=f"方案里的层必须依次是 0 到 {len(layers) - 1}，各一次，现在是 {layers}。",
                    en=f"A plan's layers must be 0 to {len(layers) - 1} in order, each once, "
                    f"not {layers}.",
                )
            )
        if () in _segments(self.parts):
            raise ValueError(text(zh="有一段里没有层。", en="A segment holds no layer."))

    @classmethod
    def cut(cls, lengths: Iterable[int]) -> Plan:
        """Segments of these lengths, everything recomputed."""
        parts, begin = [], 0
        for length in lengths:
            parts.append(tuple(range(begin, begin + length)))
            begin += length
        return cls(tuple(parts))

    @property
    def segments(self) -> tuple[tuple[Part, ...], ...]:
        """Every segment, an outer one before those inside it."""
        return tuple(_segments(self.parts))

    def __len__(self) -> int:
        return sum(1 for _ in _layers(self.parts))

    def __str__(self) -> str:
        return " ".join(_written(part) for part in self.parts)


def _layers(parts: Iterable[Part]) -> Iterator[int]:
    for part in parts:
        if isinstance(part, tuple):
            yield from _layers(part)
        else:
            yield part


def _segments(parts: Iterable[Part]) -> Iterator[tuple[Part, ...]]:
    for part in parts:
        if isinstance(part, tuple):
            yield part
            yield from _segments(part)


def _written(part: Part) -> str:
    """``5``, ``(0…9)`` or ``(3 (4 5))``."""
    if not isinstance(part, tuple):
        return str(part)
    if len(part) > 3 and all(isinstance(item, int) for item in part):
        return f"({part[0]}…{part[-1]})"
    return f"({' '.join(_written(item) for item in part)})"


# --- carrying it out ----------------------------------------------------------------------------


class Planned(nn.Module):
    """Layers run one after the other, segments through ``torch.utils.checkpoint``."""

    def __init__(self, plan: Plan, layers: Iterable[nn.Module]):
        super().__init__()
        self.plan, self.layers = plan, nn.ModuleList(layers)
        _check_length(plan, len(self.layers))

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self.plan.parts, x)

    def _run(self, parts: tuple[Part, ...], x: Tensor) -> Tensor:
        for part in parts:
            if isinstance(part, tuple):
                x = checkpoint(functools.partial(self._run, part), x, use_reentrant=False)
            else:
                x = self.layers[part](x)
        return x


def apply(plan: Plan, layers: Iterable[nn.Module]) -> Planned:
    """The layers as one module that follows the plan; parameters are shared, not copied.

    Raises ``ValueError`` if the plan is for another number of layers.
    """
    return Planned(plan, layers)


def _check_length(plan: Plan, count: int) -> None:
    if len(plan) != count:
        raise ValueError(
            text(
                zh=f"方案有 {len(plan)} 层，模型有 {count} 层。",
                en=f"The plan has {len(plan)} layers, the model {count}.",
            )
        )


# --- predicting ---------------------------------------------------------------------------------

Activity = Literal["forward", "recompute", "backward"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One layer's turn: the most memory in it, and how much of that is kept or made again.

    ``layer``: number of layers stands for the loss. ``kept``: held for backward since the forward
    pass. ``recomputed``: made again by a segment and still there. Bytes.
    """

    phase: Activity
    layer: int
    memory: int
    kept: int
    recomputed: int


@dataclass(frozen=True)
class Prediction:
    """What a plan needs. Sizes are bytes, what exists before the step included in ``peak`` alone.

    ``peak_at``: the turn in which the peak falls. ``kept``: held when the forward pass has ended.
    ``recomputed``: the most that recomputed segments hold at once. ``recomputed_layers``: forward
    passes of single layers begun again. ``recomputed_flops``: exact operations done again;
    ``flops``: those of the whole step.
    """

    peak: int
    kept: int
    recomputed: int
    recomputed_layers: int
    recomputed_flops: int
    flops: int
    peak_at: Turn
    moments: tuple[Turn, ...] = field(repr=False)


def predict(plan: Plan, chain: Chain) -> Prediction:
    """What ``plan`` needs on ``chain``, equal to what the measured simulated step takes.

    Raises ``ValueError`` if the plan is for another number of layers.
    """
    _check_length(plan, len(chain))
    return _Play(plan, chain).prediction()


class _Storage:
    """Bytes with several holders, freed when the last lets go."""

    __slots__ = ("again", "holders", "local", "saved", "size")

    def __init__(self, size: int, again: bool):
        self.size, self.again = size, again
        self.holders = 1
        self.local = True  # one of the holders is a running forward pass
        self.saved = 0  # how many of them keep it from the forward pass for the backward pass


Environment = dict[int, _Storage]


class _Frame:
    """A segment whose forward has run: what ``torch.utils.checkpoint`` remembers of it.

    ``slots``: what was saved inside, in order; the input of a segment inside counts too.
    ``alive``: how many holders it has: those slots that the graph still holds, and at first its
    running forward pass. ``found``: what recomputing brought back.
    """

    __slots__ = ("alive", "done", "found", "given", "outer", "part", "slots", "source")

    def __init__(self, part: tuple[Part, ...], outer: _Frame | None, source: int):
        self.part, self.outer, self.source = part, outer, source
        self.slots: dict[Any, bool] = {}  # whether the graph still holds it
        self.alive = 1
        self.done = False
        self.found: dict[Any, _Storage | None] = {}
        self.given: _Storage | None = None  # the input, if no other segment keeps it


class _EarlyStop(Exception):
    """The last saved tensor of a segment is back: the rest need not be recomputed."""


class _Play:
    """Plays a chain's score under a plan."""

    def __init__(self, plan: Plan, chain: Chain):
        self.chain = chain
        self.memory = chain.before
        self.kept = self.again = self.most_again = 0
        self.recomputed_flops = self.recomputed_layers = 0
        self.moments: list[Turn] = []
        self.highest = (0, 0, 0)
        self.where: tuple[Activity, int] | None = None
        self.environment: Environment = {}
        self.plain: dict[int, _Storage | None] = {}  # slot -> what autograd holds itself
        self.frames: dict[int, _Frame] = {}  # slot -> the segment it was saved in
        self.in_use: dict[int, _Storage | None] = {}  # slot -> what a backward node reads
        self._play(plan)

    def prediction(self) -> Prediction:
        peak_at = max(self.moments, key=lambda moment: moment.memory)  # the first of equals
        return Prediction(
            peak_at.memory,
            self.kept_after_forward,
            self.most_again,
            self.recomputed_layers,
            self.recomputed_flops,
            self.chain.flops + self.recomputed_flops,
            peak_at,
            tuple(self.moments),
        )

    def _play(self, plan: Plan) -> None:
        chain = self.chain
        self._forward(plan.parts, None)
        self._turn("forward", len(chain))
        self._layer_forward(chain.loss, None)
        self.kept_after_forward = self.kept
        for i in range(len(chain), -1, -1):
            self._turn("backward", i)
            self._backward(chain.layers[i] if i < len(chain) else chain.loss)
        self._end_turn()

    # --- turns and storage ------------------------------------------------------------------

    def _turn(self, phase: Activity, layer: int) -> None:
        self._end_turn()
        self.where = (phase, layer)
        self.highest = (self.memory, self.kept, self.again)

    def _end_turn(self) -> None:
        if self.where is not None:
            self.moments.append(Turn(*self.where, *self.highest))

    def _bump(self, note: Note) -> None:
        if self.memory + note.size > self.highest[0]:
            self.highest = (self.memory + note.size, self.kept, self.again)
        self.memory += note.change

    def _new(self, size: int, again: bool) -> _Storage:
        self.memory += size
        if again:
            self.again += size
            self.most_again = max(self.most_again, self.again)
        if self.memory > self.highest[0]:
            self.highest = (self.memory, self.kept, self.again)
        return _Storage(size, again)

    def _let_go(self, storage: _Storage | None) -> None:
        if storage is not None:
            storage.holders -= 1
            if not storage.holders:
                self.memory -= storage.size
                if storage.again:
                    self.again -= storage.size

    def _keep(self, storage: _Storage | None) -> None:
        if storage is not None:
            storage.holders += 1
            storage.saved += 1
            if storage.saved == 1:
                self.kept += storage.size

    def _forget(self, storage: _Storage | None) -> None:
        if storage is not None:
            storage.saved -= 1
            if not storage.saved:
                self.kept -= storage.size
            self._let_go(storage)

    def _drop(self, storage: _Storage | None) -> None:
        """The forward pass needs it no longer."""
        if storage is not None and storage.local:
            storage.local = False
            self._let_go(storage)

    # --- forward ----------------------------------------------------------------------------

    def _forward(self, parts: Iterable[Part], frame: _Frame | None) -> None:
        for part in parts:
            if isinstance(part, tuple):
                self._segment(part, frame)
            else:
                self._turn("forward", part)
                self._layer_forward(self.chain.layers[part], frame)

    def _segment(self, part: tuple[Part, ...], outer: _Frame | None) -> None:
        frame = _Frame(part, outer, self.chain.input_of(next(_layers(part))))
        argument = self.environment.get(frame.source)
        if argument is not None:
            argument.holders += 1
        if outer is None:
            frame.given = argument
            self._keep(argument)
        else:
            outer.slots[frame] = True
            outer.alive += 1
        self._forward(part, frame)
        self._let_go(argument)
        self._release(frame)

    def _layer_forward(self, layer: Layer, frame: _Frame | None) -> None:
        environment = self.environment
        for note in layer.forward:
            kind = note.kind
            if kind == "bump":
                self._bump(note)
            elif kind == "make":
                environment[note.what] = self._new(note.size, again=False)
            elif kind == "drop":
                self._drop(environment.get(note.what))
            elif kind == "save":
                if frame is None:
                    self.plain[note.what] = storage = environment.get(note.storage)
                    self._keep(storage)
                else:
                    self.frames[note.what] = frame
                    frame.slots[note.what] = True
                    frame.alive += 1
            elif kind == "forget":
                self._forget_slot(note.what)

    # --- recomputing ------------------------------------------------------------------------

    def _recompute(self, frame: _Frame) -> None:
        interrupted = self.where
        argument = frame.given
        if frame.outer is None:
            if argument is not None:
                argument.holders += 1
        else:
            argument = self._read(frame.outer, frame)
        environment: Environment = {}
        if argument is not None:
            # The function's own name for its input; the arguments of the call hold it as well.
            environment[frame.source] = argument
            argument.holders += 1
            before, argument.local = argument.local, True
        again = _Again(frame, environment)
        with contextlib.suppress(_EarlyStop):
            self._forward_again(frame.part, again, nested=False)
        for storage in again.unread.values():
            self._let_go(storage)
        for storage in environment.values():
            self._drop(storage)
        if argument is not None:
            argument.local = before
        self._let_go(argument)
        frame.done = True
        assert interrupted is not None
        self._turn(*interrupted)

    def _forward_again(self, parts: Iterable[Part], again: _Again, nested: bool) -> None:
        for part in parts:
            if isinstance(part, tuple):
                argument = again.environment.get(self.chain.input_of(next(_layers(part))))
                if not nested:
                    self._save_again(again, argument)
                if argument is not None:
                    argument.holders += 1
                again.calls.append(argument)
                self._forward_again(part, again, nested=True)
                self._let_go(again.calls.pop())
            else:
                self._turn("recompute", part)
                self._layer_again(self.chain.layers[part], again, nested)

    def _layer_again(self, layer: Layer, again: _Again, nested: bool) -> None:
        environment = again.environment
        begin = self.recomputed_flops
        again.unnamed = 0
        self.recomputed_layers += 1
        for note in layer.forward:
            kind = note.kind
            if kind == "bump":
                self._bump(note)
                again.unnamed += note.change
            elif kind == "make":
                environment[note.what] = self._new(note.size, again=True)
            elif kind == "drop":
                self._drop(environment.get(note.what))
            elif kind == "save" and not nested:
                self.recomputed_flops = begin + note.size
                self._save_again(again, environment.get(note.storage))
            elif kind == "forget":
                self._let_go(again.unread.pop(note.what, None))
        self.recomputed_flops = begin + layer.flops

    def _save_again(self, again: _Again, storage: _Storage | None) -> None:
        slot, held = next(again.slots)
        (again.frame.found if held else again.unread)[slot] = storage
        if storage is not None:
            storage.holders += 1
        again.left -= 1
        if not again.left:
            for argument in again.calls:
                self._let_go(argument)
            self.memory -= again.unnamed
            raise _EarlyStop

    # --- backward ---------------------------------------------------------------------------

    def _backward(self, layer: Layer) -> None:
        for note in layer.backward:
            kind = note.kind
            if kind == "bump":
                self._bump(note)
            elif kind == "read":
                frame = self.frames.get(note.what)
                if frame is not None:
                    self.in_use[note.what] = self._read(frame, note.what)
            elif kind == "used":
                self._let_go(self.in_use.pop(note.what, None))
            elif kind == "forget":
                self._forget_slot(note.what)
            elif kind == "drop":
                self._drop(self.environment.get(note.what))

    def _read(self, frame: _Frame, slot: Any) -> _Storage | None:
        """What was saved in the slot, recomputed if need be; the reader holds it from now on."""
        if not frame.done:
            self._recompute(frame)
        return frame.found.pop(slot)

    def _forget_slot(self, slot: int) -> None:
        frame = self.frames.get(slot)
        if frame is None:
            self._forget(self.plain.pop(slot))
        else:
            self._forget_in(frame, slot)

    def _forget_in(self, frame: _Frame, slot: Any) -> None:
        frame.slots[slot] = False
        self._let_go(frame.found.pop(slot, None))
        self._release(frame)

    def _release(self, frame: _Frame) -> None:
        """One holder less; without any, the segment lets go of its input."""
        frame.alive -= 1
        if not frame.alive:
            if frame.outer is None:
                self._forget(frame.given)
            else:
                self._forget_in(frame.outer, frame)


class _Again:
    """A recomputation under way: what it has made, and which saved tensors are still to come."""

    def __init__(self, frame: _Frame, environment: Environment):
        self.frame, self.environment = frame, environment
        self.slots = iter(tuple(frame.slots.items()))
        self.left = len(frame.slots)
        self.unread: dict[Any, _Storage | None] = {}  # saved for a node that no gradient reaches
        self.calls: list[_Storage | None] = []  # arguments of the segments that are running
        self.unnamed = 0  # bytes that the running layer has made, will drop, and nobody saves
