"""What a step needs under any choice of stored results, played from one watched run.

torch's selective checkpoint runs the whole block again, but for the operators whose results it
has stored: those it hands out. So each operator's choice adds its own share to the bytes at each
moment, and its own FLOPs, whatever is chosen for the others; that is what lets :mod:`search` find
the best choices exactly.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from ...language import text
from ...memory.checks import check_step
from ..advice.record import STATIC, Operation, Record
from ..advice.score import Score as BlockScore
from ..advice.watch import recording
from .operators import Noted, Operators
from .policy import Keeping
from .policy import Operator as Named
from .search import Option, best_choices

Of = Literal["kept", "peak"]


class BudgetTooSmall(ValueError):
    """No choice fits; ``smallest`` is the fewest bytes that any needs."""

    def __init__(self, said: str, smallest: int):
        super().__init__(said)
        self.smallest = smallest


@dataclass(frozen=True)
class Choice:
    """One operator of the block whose result can be stored or computed again.

    ``number``: its place among the choices. ``name``: such as ``addmm``. ``module``: path within
    the block, "" at its top. ``line``: of the learner's code. ``operator``, ``nth``: what a policy
    sees: the operator, and how often it ran in the block before. ``size``: bytes of its results in
    one call, ``saved``: those of them that autograd needs. ``flops``: of one call, 0 for what
    works element by element. ``again``: whether a checkpoint would run it again at all; it stops
    at the last value that autograd asks for. ``random``: it draws random numbers.
    """

    number: int
    name: str
    module: str
    line: str | None
    operator: Any
    nth: int
    size: int
    saved: int
    flops: int
    again: bool
    random: bool

    @property
    def flops_per_byte(self) -> float:
        """Of storing it: how much work each byte spares."""
        return self.flops / self.size if self.size else 0.0

    @property
    def label(self) -> str:
        """Where it is and what it is, short: ``up · addmm``."""
        return f"{self.module} · {self.name}" if self.module else self.name


@dataclass(frozen=True)
class Prediction:
    """What a choice leads to. All sizes are bytes.

    ``stored``: numbers of the choices whose results are stored; None without any checkpoint.
    ``kept``: what the forward pass leaves behind at its end, beyond what existed before the step.
    ``peak``: as ``measure`` has it. ``flops``: of the whole step.
    """

    stored: frozenset[int] | None
    kept: int
    peak: int
    flops: int


class Score:
    """A step whose blocks are checkpointed alike: :func:`score_of` makes it.

    ``choices``: the operators to choose from. ``calls``: of the blocks, in order. ``plain``: the
    step without checkpoints.
    """

    def __init__(self, record: Record, paths: Sequence[str]):
        self.record = record
        self._blocks = BlockScore(record)
        self._part = self._blocks.part("", paths)
        self.calls = [_Call(self._blocks, number) for number in self._part.calls]
        _check_alike(self.calls)
        self.choices = _choices(record, self.calls)
        self._operations = [[call.operations[c] for c in _eligible(call)] for call in self.calls]
        self._ends = self._blocks.ends([self._part])
        self._forward_ends = _forward_ends(record)

    @functools.cached_property
    def plain(self) -> Prediction:
        curve = self._blocks.curve()
        return Prediction(None, self._kept(curve), int(curve.max()), self.record.flops)

    @property
    def nothing(self) -> Prediction:
        """A checkpoint that stores no result."""
        return self.predict()

    @property
    def everything(self) -> Prediction:
        """A checkpoint that stores every result there is to choose."""
        return self.predict(range(len(self.choices)))

    def predict(self, stored: Iterable[int] = ()) -> Prediction:
        """Bytes and FLOPs with the results of these choices stored, by number.

        Raises ``ValueError`` for a number that is none, or a set under which random numbers would
        differ: an operator that draws some may be stored only with all that draw after it.
        """
        chosen = self.checked(stored)
        base, shares = self._levels
        levels = base.copy()
        for number in chosen:
            levels += shares[number]
        kept = max(int(levels[row]) for row in self._forward_ends)
        return Prediction(chosen, kept - self.record.before, int(levels.max()), self._flops(chosen))

    def checked(self, stored: Iterable[int]) -> frozenset[int]:
        """The numbers as a set; raises as :meth:`predict` does."""
        chosen = frozenset(stored)
        if wrong := [n for n in chosen if not isinstance(n, int) or not 0 <= n < len(self.choices)]:
            raise ValueError(
                text(
                    zh=f"没有编号为 {wrong[0]!r} 的选项，编号从 0 到 {len(self.choices) - 1}。",
                    en=f"There is no choice {wrong[0]!r}; they are numbered from 0 to "
                    f"{len(self.choices) - 1}.",
                )
            )
        draw = [choice.number for choice in self.choices if choice.random]
        first = next((number for number in draw if number in chosen), None)
        left = [number for number in draw if first is not None and number > first]
        if missing := [number for number in left if number not in chosen]:
            stays, other = self.choices[first or 0].label, self.choices[missing[0]].label
            raise ValueError(
                text(
                    zh=f"保留 {stays} 而重算后面的 {other}，重算时就会抽到别的随机数："
                    "要么两个都存，要么前一个也重算。",
                    en=f"With {stays} stored and {other} after it computed again, the latter would "
                    "draw other random numbers: store both, or compute both again.",
                )
            )
        return chosen

    def frontier(self, of: Of = "peak") -> tuple[Prediction, ...]:
        """Every choice that none beats in both, fewest bytes first; exact.

        ``of``: "peak", or "kept", the bytes that the forward pass leaves behind. Of choices that
        are equal in both, one with the fewest stored results.
        """
        return self._frontiers(of)

    def best(self, budget: int, of: Of = "peak") -> Prediction:
        """The fewest FLOPs within ``budget`` bytes. Raises :class:`BudgetTooSmall`."""
        fitting = [one for one in self.frontier(of) if _bytes(one, of) <= budget]
        if not fitting:
            smallest = _bytes(self.frontier(of)[0], of)
            raise BudgetTooSmall(
                text(
                    zh=f"预算 {budget:,} 字节太小：最少也要 {smallest:,} 字节。",
                    en=f"A budget of {budget:,} bytes is too small: the least is {smallest:,}.",
                ),
                smallest,
            )
        return fitting[-1]

    def operators(self, stored: Iterable[int]) -> frozenset[Named]:
        """These choices as a policy knows them: (operator, n-th call)."""
        chosen = self.checked(stored)
        return frozenset((self.choices[n].operator, self.choices[n].nth) for n in chosen)

    def contexts(self, stored: Iterable[int]) -> Keeping:
        """The ``context_fn`` for ``checkpoint`` that stores these results."""
        return Keeping(self.operators(stored))

    # --- playing ----------------------------------------------------------------------------

    def _flops(self, chosen: frozenset[int]) -> int:
        spared = sum(
            self.choices[n].flops * len(self.calls) for n in chosen if self.choices[n].again
        )
        return self.record.flops + self._part.flops - spared

    @functools.cached_property
    def _levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes at each moment with nothing stored, and what storing each choice adds to them."""
        base = self._play(frozenset())
        singles = [self._play(frozenset((choice.number,))) for choice in self.choices]
        return base, np.array(singles).reshape(len(singles), len(base)) - base

    def _play(self, stored: frozenset[int]) -> np.ndarray:
        """Bytes after each moment, and then those inside of each recomputation."""
        record, ends = self.record, self._ends.copy()
        played = []
        for call, operations in zip(self.calls, self._operations, strict=True):
            one = call.play({operations[number].begin for number in stored}, self._ends)
            played.append(one)
            for storage, end in one.held.items():
                ends[storage] = max(ends[storage], end)
        change = self._blocks.changes(ends)
        state = record.random_state
        for begin, end in self._part.random_state:
            change[begin] += state
            change[end] -= state
        for one in played:
            for size, end in one.found:
                change[one.at + 1] += size
                change[max(end, one.at + 1)] -= size
        curve = np.cumsum(change)[: self._blocks.end + 1]
        inside = [curve[one.at] + state + one.levels for one in played if len(one.levels)]
        return np.concatenate([curve, *inside])

    def _kept(self, curve: np.ndarray) -> int:
        return max(int(curve[row]) for row in self._forward_ends) - self.record.before

    @functools.cache  # noqa: B019  a score lives as long as its lesson
    def _frontiers(self, of: Of) -> tuple[Prediction, ...]:
        base, shares = self._levels
        rows = self._forward_ends if of == "kept" else slice(None)
        found = best_choices(base[rows], self._options(shares[:, rows]))
        return tuple(self.predict(choice) for choice in found)

    def _options(self, shares: np.ndarray) -> list[list[Option]]:
        """For each operator: store it or not. Those that draw random numbers choose together."""
        spared = [choice.flops * len(self.calls) * choice.again for choice in self.choices]
        free = [c.number for c in self.choices if not c.random]
        draw = [c.number for c in self.choices if c.random]
        groups = [[(), (number,)] for number in free]
        if draw:
            groups.append([tuple(draw[at:]) for at in range(len(draw), -1, -1)])
        return [
            [Option(g, sum(spared[n] for n in g), shares[list(g)].sum(axis=0)) for g in group]
            for group in groups
        ]


def score_of(
    step: Callable[[], Any], model: nn.Module, blocks: Iterable[nn.Module], inputs: Any = ()
) -> Score:
    """Run ``step()`` once, without checkpoints, and score each choice of stored results.

    ``blocks``: modules of ``model`` that the step calls, each of which would be checkpointed, all
    with the same choice. ``inputs``: as in ``measure``. Predictions are exact for simulated
    tensors; of real ones they hold the workspace as it was in this run.

    Raises ``ValueError`` if ``blocks`` are none, not within ``model``, run one inside another, run
    no operator to choose from or other ones in each call, or if a backward pass reads what they
    saved more than once, which selective checkpoints refuse.
    """
    check_step(step)
    known = {id(module): path for path, module in model.named_modules()}
    blocks = list(blocks)
    if not blocks or any(id(block) not in known for block in blocks):
        raise ValueError(
            text(
                zh="blocks 应是 model 里的模块，至少一个。",
                en="blocks must be modules within model, at least one.",
            )
        )
    watched = {known[id(block)]: block for block in blocks}
    with recording(model, (), inputs, watched, Operators) as result:
        step()
    return Score(result(), list(watched))


# --- one call of a block -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Played:
    """A call's recomputation: it begins ``at``; ``levels``: bytes inside of it, beyond those there.

    ``held``: storage → until when the checkpoint's store, or what was handed out of it, is held.
    ``found``: (bytes, until when) of what was made again and is still needed.
    """

    at: int
    levels: np.ndarray
    held: dict[int, int]
    found: tuple[tuple[int, int], ...]


class _Call:
    """A call of a block, and its recomputation under any choice."""

    def __init__(self, blocks: BlockScore, number: int):
        self.record, self.call = blocks.record, blocks.record.calls[number]
        self.release = blocks.release(self.call)
        operations = self.record.operations
        self.operations: list[Operation] = [o for o in operations if number in o.calls]
        agains = blocks.agains(number)
        if len(agains) > 1:
            raise ValueError(
                text(
                    zh="这一步对同一个块反向传播了两次，选择性检查点只允许一次。",
                    en="The step runs backward through a block twice; selective checkpoints allow "
                    "it once.",
                )
            )
        if self.call.outer:
            raise ValueError(
                text(zh="blocks 里有一个块在另一个里面运行。", en="A block runs inside another.")
            )
        self.again = agains[0] if agains else None
        last = self.call.slots[-1] if self.call.slots else None
        self.stop = self.record.slots[last].saved if last is not None else self.call.begin
        self.saved: dict[int, list[int]] = {}  # storage -> slots
        for slot in self.call.slots:
            self.saved.setdefault(self.record.slots[slot].storage, []).append(slot)

    def play(self, stored: set[int], otherwise: np.ndarray) -> _Played:
        """``stored``: where the operators begin whose results are; ``otherwise``: until when
        each storage is held by others.
        """
        record, at = self.record, self.again.at if self.again is not None else self.release
        skipping: Operation | None = None
        begins = {operation.begin: operation for operation in self.operations}
        ours = {s for o in self.operations if o.begin in stored for s in o.results}
        held = dict.fromkeys(ours, self.release)  # of what is never asked for
        if self.again is None:
            return _Played(at, np.zeros(0, np.int64), held, ())
        holders: dict[int, int] = {}
        local: dict[int, bool] = {}
        found: dict[int, list[int]] = {}
        level, levels = 0, []

        def let_go(storage: int) -> None:
            nonlocal level
            holders[storage] -= 1
            # A stored result is counted already, and stays as long as anybody else has it.
            if not holders[storage] and (storage not in ours or otherwise[storage] <= at):
                level -= record.storages[storage].size

        for position in range(self.call.begin, self.stop + 1):
            moment = record.moments[position]
            what = moment.what
            if moment.kind == "operator" and position in stored:
                skipping = begins[position]
            elif moment.kind == "result" and skipping is not None and position == skipping.end:
                for storage in skipping.results:
                    holders[storage], local[storage] = 1, True
                    held[storage] = at + 1
                skipping = None
            elif skipping is not None:
                pass  # it does not run: nothing of what it made for itself is made
            elif moment.kind == "make":
                holders[what], local[what] = 1, True
                level += record.storages[what].size
            elif moment.kind == "drop":
                if local.get(what):
                    local[what] = False
                    let_go(what)
            elif moment.kind == "save":
                slot = record.slots[what]
                if holders.get(slot.storage):
                    holders[slot.storage] += 1
                    if slot.forgotten > at:
                        found.setdefault(slot.storage, []).append(what)
            elif moment.kind == "forget":
                slot = record.slots[what]
                if slot.saved > self.call.begin and holders.get(slot.storage):
                    let_go(slot.storage)
            levels.append(level)
        again = []
        for storage, slots in found.items():
            end = max(self._read_end(slot) for slot in slots)
            if storage in ours:
                held[storage] = max(held[storage], end)
            else:
                again.append((record.storages[storage].size, end))
        return _Played(at, np.array(levels, np.int64), held, tuple(again))

    def _read_end(self, number: int) -> int:
        """Until when the backward pass holds what it has been handed for a slot."""
        slot = self.record.slots[number]
        return slot.reads[0][2] if slot.reads else slot.forgotten


def _eligible(call: _Call) -> list[int]:
    """Which of a call's operators can be chosen: those that make what nobody writes into later."""
    written: set[int] = set()  # storages that a later operator changes
    eligible = []
    made_by = {
        storage: operation
        for operation in call.operations
        for storage in operation.results
        if storage != STATIC and operation.begin < call.record.storages[storage].made
    }
    for number, operation in reversed(list(enumerate(call.operations))):
        noted: Noted = operation.what
        makes = bool(operation.results) and all(
            storage != STATIC and made_by.get(storage) is operation for storage in operation.results
        )
        if makes and not noted.changes and not written.intersection(operation.results):
            eligible.append(number)
        if noted.changes:
            written.update(operation.results)
    return eligible[::-1]


def _check_alike(calls: Sequence[_Call]) -> None:
    kinds = [[(o.what.operator, o.what.nth, o.flops) for o in call.operations] for call in calls]
    kept = [[_size(call, call.operations[n]) for n in _eligible(call)] for call in calls]
    if not calls or not kept[0]:
        raise ValueError(
            text(
                zh="这一步没有调用 blocks，或者块里没有可选的算子。",
                en="The step does not call the blocks, or they have no operator to choose.",
            )
        )
    if any(kind != kinds[0] for kind in kinds) or any(sizes != kept[0] for sizes in kept):
        raise ValueError(
            text(
                zh="各个块（或各次调用）的算子或大小不同，不能用同一种选择：请分开评估。",
                en="The blocks, or their calls, differ in operators or sizes, so that one choice "
                "cannot serve all: score them apart.",
            )
        )


def _size(call: _Call, operation: Operation) -> int:
    return sum(call.record.storages[storage].size for storage in dict.fromkeys(operation.results))


def _choices(record: Record, calls: Sequence[_Call]) -> tuple[Choice, ...]:
    call = calls[0]
    choices = []
    for number, at in enumerate(_eligible(call)):
        operation = call.operations[at]
        noted: Noted = operation.what
        first = record.storages[operation.results[0]]
        place = first.place
        module = (place.module or "") if place is not None else ""
        path = call.call.path
        inner = module.removeprefix(path).lstrip(".") if module.startswith(path) else module
        saved = sum(
            record.storages[storage].size
            for storage in dict.fromkeys(operation.results)
            if call.saved.get(storage)
        )
        choices.append(
            Choice(
                number,
                str(noted.operator._overloadpacket).removeprefix("aten."),
                inner,
                place.describe() if place is not None else None,
                noted.operator,
                noted.nth,
                _size(call, operation),
                saved,
                operation.flops,
                operation.end < call.stop,
                noted.random,
            )
        )
    return tuple(choices)


def _forward_ends(record: Record) -> list[int]:
    """The moments just before a backward pass begins; without any, the end."""
    phases = record.phases
    turns = [
        at - 1
        for at, (before, after) in enumerate(itertools.pairwise(["", *phases]))
        if after == "backward" and before == "forward"
    ]
    return turns or [len(phases) - 1]


def _bytes(one: Prediction, of: Of) -> int:
    return one.kept if of == "kept" else one.peak
