"""Planners: even spacing, the fewest recomputed FLOPs under a budget, nested recomputation.

A plan without nesting is a row of kept layers and segments. While one of them is at work, memory
is what the parts before it keep plus an amount of its own; :class:`_Needs` works both out for every
layer and for every segment, n² of them, from the chain's score. Then a shortest path through the
cuts, with kept bytes as the resource, gives the best plan (:func:`best_plan`).

Sources: Chen et al. 2016 (arXiv:1604.06174) for √n; Beaumont et al. 2019 (arXiv:1911.13214) for
dynamic programming with memory in slots; Griewank & Walther 2000 (Revolve, ACM TOMS 799).
"""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .chains import STATIC, Chain, Layer, Note
from .language import text
from .plans import Plan, Prediction, predict

__all__ = [
    "Best",
    "BudgetTooSmall",
    "best_plan",
    "even_plan",
    "frontier",
    "keep_all",
    "nested_plan",
    "nested_steps",
    "smallest_peak",
    "sqrt_plan",
]

NEVER = np.inf


def keep_all(chain: Chain) -> Plan:
    """No checkpoints: every layer's activations are kept."""
    return Plan(tuple(range(len(chain))))


def even_plan(chain: Chain, count: int) -> Plan:
    """``count`` segments whose lengths differ by at most one; 0 keeps everything.

    Raises ``ValueError`` if there are fewer layers than that.
    """
    n = len(chain)
    if not 0 <= count <= n:
        raise ValueError(
            text(
                zh=f"{n} 层可以分成 0 到 {n} 段，不能是 {count} 段。",
                en=f"{n} layers can be cut into 0 to {n} segments, not {count}.",
            )
        )
    if not count:
        return keep_all(chain)
    cuts = [i * n // count for i in range(count + 1)]
    return Plan.cut(b - a for a, b in itertools.pairwise(cuts))


def sqrt_plan(chain: Chain) -> Plan:
    """About √n segments of about √n layers (Chen et al. 2016)."""
    return even_plan(chain, max(1, round(math.sqrt(len(chain)))))


# --- what every part needs ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Unit:
    """A layer with those after it that only look at its output differently (Flatten, Identity).

    Cutting between them changes nothing, so a plan treats them as one.
    """

    layers: tuple[int, ...]
    forward: tuple[Note, ...]
    backward: tuple[Note, ...]
    source: int  # the storage it reads
    output: int
    flops: int


def _units(chain: Chain) -> list[_Unit]:
    groups: list[list[int]] = []
    for i, layer in enumerate(chain.layers):
        if groups and layer.output == chain.input_of(i):
            groups[-1].append(i)
        else:
            groups.append([i])
    units = [
        _unit(chain.input_of(group[0]), tuple(group), [chain.layers[i] for i in group])
        for group in groups
    ]
    return [*units, _unit(chain.input_of(len(chain)), (), [chain.loss])]


def _unit(source: int, numbers: tuple[int, ...], layers: list[Layer]) -> _Unit:
    forward: list[Note] = []
    flops = 0
    for layer in layers:
        forward += [
            note._replace(size=note.size + flops) if note.kind == "save" else note
            for note in layer.forward
        ]
        flops += layer.flops
    backward = tuple(note for layer in reversed(layers) for note in layer.backward)
    return _Unit(numbers, tuple(forward), backward, source, layers[-1].output, flops)


@dataclass
class _Forward:
    """A unit's forward pass. ``peak``: above what others hold; ``saved``: storage of each slot.

    ``last_peak`` and ``last_flops``: as far as its last saved tensor, where recomputing stops.
    """

    peak: int
    last_peak: int
    last_flops: int
    saved: dict[int, int]
    fleeting: int  # change of what is held by nobody but the running forward pass


def _play_forward(unit: _Unit, sizes: dict[int, int], held: bool, saving: bool) -> _Forward:
    """``held``: somebody else keeps the input. Its own saved tensors count if ``saving``."""
    level = begin = sizes.get(unit.source, 0)
    peak = last_peak = level
    last_flops = extra = 0
    holders: dict[int, int] = {unit.source: 1} if held else {}
    gone: set[int] = set()
    saved: dict[int, int] = {}
    for note in unit.forward:
        if note.kind == "bump":
            peak = max(peak, level + extra + note.size)
            level += note.change
        elif note.kind == "make":
            level += note.size
        elif note.kind == "drop":
            level -= note.size
            gone.add(note.what)
            if holders.get(note.what):
                extra += note.size
        elif note.kind == "save":
            saved[note.what] = note.storage
            last_peak, last_flops = max(peak, level + extra), note.size
            if saving and note.storage != STATIC:
                holders[note.storage] = holders.get(note.storage, 0) + 1
        elif note.kind == "forget":
            storage = saved.pop(note.what)
            if saving and storage != STATIC:
                holders[storage] -= 1
                if not holders[storage] and storage in gone:
                    extra -= sizes[storage]
        peak = max(peak, level + extra)
    return _Forward(peak, last_peak, last_flops, saved, level - begin)


@dataclass
class _Backward:
    """A unit's backward pass; all in bytes above what other parts hold.

    ``peak``: the highest. ``before_read``, ``after_read``: those before it first asks for a saved
    tensor and from then on. ``at_read``: the level just then. ``early``, ``late``: the highest
    until its last slot is forgotten and after that; ``early_read``: of the first, after reading.
    ``end``: the level at its end.
    """

    peak: int
    before_read: int
    after_read: int
    at_read: int
    early: int
    early_read: int
    late: int
    end: int


def _play_backward(
    unit: _Unit, sizes: dict[int, int], level: int, saved: dict[int, int],
    *, at_once: bool, held: bool = False, framed: bool = False,
) -> _Backward:  # fmt: skip
    """``saved``: what its slots hold; ``at_once``: let go after reading, as recomputed values are.

    ``held``: somebody else keeps the input. ``framed``: the unit begins a segment, which keeps the
    input until the last slot is forgotten.
    """
    holders: dict[int, int] = {}
    for storage in [*saved.values(), *([unit.source] if held else []),
                    *([unit.source] if framed else [])]:  # fmt: skip
        if storage != STATIC:
            holders[storage] = holders.get(storage, 0) + 1
    own = sum(sizes[storage] for storage in holders)
    left = dict(saved)
    forgotten_last = max(
        (i for i, note in enumerate(unit.backward) if note.kind == "forget"), default=-1
    )
    first_read = next((i for i, note in enumerate(unit.backward) if note.kind == "read"), None)
    highest = {(late, read): -1 for late in (False, True) for read in (False, True)}
    at_read = level + own

    def let_go(storage: int) -> int:
        if storage == STATIC:
            return 0
        holders[storage] -= 1
        return 0 if holders[storage] else sizes[storage]

    read = False
    highest[False, False] = level + own
    for i, note in enumerate(unit.backward):
        if i == first_read:
            read, at_read = True, level + own
        place = (i > forgotten_last, read)
        top = level + own
        if note.kind == "bump":
            top += max(note.size, note.change, 0)
            level += note.change
        elif note.kind == "drop":
            level -= note.size
        elif note.kind == "forget" or (note.kind == "used" and at_once):
            if note.what in left:
                own -= let_go(left.pop(note.what))
            if i == forgotten_last and framed:
                own -= let_go(unit.source)
        highest[place] = max(highest[place], top)
    late_end = (forgotten_last < len(unit.backward) and forgotten_last >= 0, read)
    highest[late_end] = max(highest[late_end], level + own)
    peaks = highest
    return _Backward(
        max(peaks.values()),
        max(peaks[False, False], peaks[True, False]),
        max(peaks[False, True], peaks[True, True], at_read),
        at_read,
        max(peaks[False, False], peaks[False, True]),
        max(peaks[False, True], at_read),
        max(peaks[True, False], peaks[True, True], level + own),
        level,
    )


class _Needs:
    """What each layer and each segment needs while it is at work, and what it keeps afterwards.

    Units are numbered from 0, the loss is unit ``n``. A state between units says whether the
    unit before, kept, holds its own output (1) or not (0); that output is then not counted in what
    is kept so far. ``plain[held, i]``: bytes that a kept unit needs. ``inner[i]``: what it keeps
    apart from its input and output. ``holds_input``, ``holds_output``: whether it keeps those.
    ``segment(s)``: see there. All above ``before``.
    """

    def __init__(self, chain: Chain):
        self.chain, self.units, self.before = chain, _units(chain), chain.before
        units, sizes = self.units, chain.sizes
        self.n = n = len(units) - 1
        self.source = np.array([sizes.get(unit.source, 0) for unit in units])
        kept = [[_play_forward(u, sizes, bool(h), True) for u in units] for h in range(2)]
        free = [[_play_forward(u, sizes, bool(h), False) for u in units] for h in range(2)]
        saved = [forward.saved for forward in kept[0]]
        stores = [set(slots.values()) - {STATIC} for slots in saved]
        self.has_slots = np.array([bool(forward.saved) for forward in kept[0]])
        # The input of the whole chain exists anyway: held or not makes no difference.
        self.holds_input = np.array([u.source in s for u, s in zip(units, stores, strict=True)])
        self.holds_output = np.array([u.output in s for u, s in zip(units, stores, strict=True)])
        self.inner = np.array(
            [
                sum(sizes[x] for x in s - {u.source, u.output})
                for u, s in zip(units, stores, strict=True)
            ]
        )
        lasting = np.cumsum(
            [0]
            + [
                f.fleeting - sizes.get(u.output, 0) + sizes.get(u.source, 0)
                for f, u in zip(free[0], units, strict=True)
            ]
        )[:-1]  # what no part of a plan accounts for
        self.flops = np.array([unit.flops for unit in units], dtype=float)
        self.last_flops = np.array([f.last_flops for f in kept[0]], dtype=float)
        # Recomputing: with everything saved, the input held or not by the unit before.
        self.held_before = np.concatenate([[False], self.holds_output[:-1]])
        pick = [kept[int(held)][i] for i, held in enumerate(self.held_before)]
        self.again = np.array([f.peak for f in pick])
        self.again_last = np.array([f.last_peak for f in pick])
        self.first_again = np.array([f.peak for f in kept[1]])
        self.first_again_last = np.array([f.last_peak for f in kept[1]])
        # Forward in a segment: nothing is saved; the segment's input is held throughout.
        self.forward_first = np.array([f.peak for f in free[1]]) + lasting
        self.forward_later = np.array([f.peak for f in free[0]]) + lasting
        level = int(lasting[-1]) + free[0][n].fleeting + int(self.source[n])
        bare: list[_Backward] = []
        plain: list[list[_Backward]] = [[], []]
        recomputed: list[_Backward] = []
        framed: list[list[_Backward]] = [[], []]
        alone: list[_Backward] = []
        for i in range(n, -1, -1):
            unit = units[i]
            play = functools.partial(_play_backward, unit, sizes, level)
            bare.append(play({}, at_once=True))
            recomputed.append(play(saved[i], at_once=True, held=bool(self.held_before[i])))
            alone.append(play(saved[i], at_once=True))
            for held in range(2):
                plain[held].append(play(saved[i], at_once=False, held=bool(held)))
                framed[held].append(play(saved[i], at_once=True, held=bool(held), framed=True))
            level = bare[-1].end
        self.bare, self.recomputed, self.alone = bare[::-1], recomputed[::-1], alone[::-1]
        self.framed = [backward[::-1] for backward in framed]
        self.plain = np.array(
            [
                [
                    max(kept[held][i].peak + lasting[i], plain[held][n - i].peak)
                    for i in range(n + 1)
                ]
                for held in range(2)
            ]
        )
        self._bare_peak = np.array([b.peak for b in self.bare])
        self._bare_before = np.array([b.before_read for b in self.bare])
        self._bare_at = np.array([b.at_read for b in self.bare])
        self._back = np.array([b.peak for b in self.recomputed])
        self._back_after = np.array([b.after_read for b in self.recomputed])
        # A boundary counts as held if either neighbour saves it.
        joint = np.zeros(n + 1, dtype=np.int64)
        joint[:n] = np.where(self.holds_output[:n] | self.holds_input[1:], self.source[1:], 0)
        self._segments: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self._inner_sum = np.concatenate([[0], np.cumsum(self.inner)])
        self._joint_sum = np.concatenate([[0], np.cumsum(joint)])
        self.most_kept = int(self.inner[:n].sum() + self.source[:n].sum() + self.source[n])
        self._flops_sum = np.concatenate([[0], np.cumsum(self.flops)])

    def after_plain(self, i: int, held: int) -> tuple[int, int]:
        """What keeping unit ``i`` adds to what is kept so far, and the state after it."""
        takes = self.source[i] if held or self.holds_input[i] else 0
        return int(self.inner[i] + takes), int(self.holds_output[i])

    def first_slots(self, s: int) -> int:
        """The first unit from ``s`` on that saves anything; ``n`` if none does."""
        while s < self.n and not self.has_slots[s]:
            s += 1
        return s

    def segment(self, s: int) -> tuple[int, np.ndarray, np.ndarray]:
        if s not in self._segments:
            self._segments[s] = self._segment(s)
        return self._segments[s]

    def _segment(self, s: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Segments that begin at unit ``s`` and end before unit ``first``, ``first + 1``, … ``n``.

        ``first``; bytes needed, for input held by others or not, [2, ends]; recomputed FLOPs.
        A segment in which nothing is saved is no better than keeping its layers: left out.
        """
        n, f = self.n, self.first_slots(s)
        if f >= n:
            return n + 1, np.zeros((2, 0)), np.zeros(0)
        b = int(self.source[s])
        lasts = np.arange(f, n)  # the last unit with slots
        # Held by the recomputed units before each, its own input apart.
        held = np.zeros(n, dtype=np.int64)
        index = np.arange(s + 1, n)
        held[index] = b + self._inner_sum[index] - self._inner_sum[s]
        held[index] += self._joint_sum[index - 1] - self._joint_sum[s]
        again = held[s:n] + self.again[s:n]
        again[0] = self.first_again[s]
        sofar = np.maximum.accumulate(again)
        last = held[lasts] + self.again_last[lasts]
        if f == s:
            last[0] = self.first_again_last[s]
        recompute = np.maximum(last, np.concatenate([[0], sofar])[lasts - s])
        base = np.maximum(self._bare_at[lasts] + recompute, self._bare_before[lasts] + b)
        back = held[:n] + self._back[:n]
        back[: f + 1] = 0
        inside = np.maximum.accumulate(back[f:n])  # units after f and up to this one
        tail_bare = self._bare_peak[:n] + b
        need = np.zeros((2, len(lasts)), dtype=np.int64)
        for state in range(2):
            extra = b * state
            if f == s:
                only, whole = self.framed[state][s].after_read, self.framed[state][s].peak
            else:
                alone = self.alone[f]
                rest = max(alone.late, int(self._bare_peak[s:f].max())) + extra
                only, whole = max(alone.early_read + b, rest), max(alone.early + b, rest)
            need[state] = np.maximum(base, whole)
            need[state][0] = max(int(base[0]), only)
            need[state][1:] = np.maximum(
                need[state][1:], held[lasts[1:]] + self._back_after[lasts[1:]]
            )
            need[state][2:] = np.maximum(need[state][2:], inside[lasts[2:] - 1 - f])
        # From the last unit with slots to the end of the segment.
        flops = self._flops_sum[lasts] - self._flops_sum[s] + self.last_flops[lasts]
        owner = np.maximum.accumulate(np.where(self.has_slots[lasts], lasts - f, 0))
        need, flops = need[:, owner], flops[owner]
        forward = self.forward_later[s:n] + b
        forward[0] = self.forward_first[s]
        need = np.maximum(need, np.maximum.accumulate(forward)[lasts - s])
        trailing = np.where(self.has_slots[lasts], 0, tail_bare[lasts])
        return f + 1, np.maximum(need, _since(trailing, self.has_slots[lasts])), flops


def _since(values: np.ndarray, restart: np.ndarray) -> np.ndarray:
    """The running maximum, begun anew wherever ``restart`` is true."""
    if restart.all():
        return values
    result = values.copy()
    for i in range(1, len(values)):
        if not restart[i]:
            result[i] = max(result[i], result[i - 1])
    return result


_known: weakref.WeakKeyDictionary[Chain, _Needs] = weakref.WeakKeyDictionary()


def _needs_of(chain: Chain) -> _Needs:
    if chain not in _known:
        _known[chain] = _Needs(chain)
    return _known[chain]


# --- the best plan without nesting --------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """A plan for a budget, and how good it is.

    ``least``: recomputed FLOPs below which no plan without nesting fits the budget. ``exact``:
    the plan reaches that bound.
    """

    plan: Plan
    prediction: Prediction
    least: int

    @property
    def exact(self) -> bool:
        return self.prediction.recomputed_flops <= self.least

    @property
    def excess(self) -> int:
        """FLOPs by which the plan may miss the optimum, at most."""
        return max(0, self.prediction.recomputed_flops - self.least)


class BudgetTooSmall(ValueError):
    """No plan without nesting fits; ``smallest`` (bytes) is the least that one needs."""

    def __init__(self, budget: int, smallest: int):
        super().__init__(
            text(
                zh=f"预算 {budget:,} 字节放不下：不嵌套的方案最少要 {smallest:,} 字节。",
                en=f"A budget of {budget:,} bytes is too small: without nesting, {smallest:,} "
                "bytes is the least that a plan needs.",
            )
        )
        self.budget, self.smallest = budget, smallest


LABELS = 200_000  # partial plans that are followed exactly before memory is counted in slots


def best_plan(chain: Chain, budget: int, *, labels: int = LABELS, slots: int | None = None) -> Best:
    """The plan with the fewest recomputed FLOPs whose peak is at most ``budget`` bytes.

    Among plans without nesting. Exact as long as no more than ``labels`` non-dominated partial
    plans turn up, or if all sizes are multiples of one that goes at most ``slots`` times into what
    can be kept. Beyond that, kept memory is counted in slots: of all partial plans in one slot only
    one is followed, and a second run, which takes the best of all, gives the bound ``Best.least``.
    Time grows with the square of the number of layers, times ``slots``: by default 2,000, and
    fewer above 100 layers, down to 200.

    Raises :class:`BudgetTooSmall` if no such plan fits.
    """
    needs = _needs_of(chain)
    room = budget - needs.before
    limits = _limits(needs, room)
    if limits[0, 0] < 0:
        raise BudgetTooSmall(budget, _smallest(needs))
    steps = _follow_labels(needs, room, limits, labels)
    least = None
    if steps is None:
        unit = _common_unit(needs)
        span = min(room, needs.most_kept)
        slots = slots or min(2000, max(200, 200_000 // needs.n))
        exact = bool(unit) and span // unit <= slots
        size = unit if exact else -(-span // slots)
        steps, least = _count_slots(needs, room, limits, size, relaxed=False)
        if not exact:
            least = _count_slots(needs, room, limits, size, relaxed=True)[1]
    plan = _plan(needs, steps)
    prediction = predict(plan, chain)
    found = prediction.recomputed_flops
    return Best(plan, prediction, found if least is None else min(found, int(least)))


def smallest_peak(chain: Chain) -> Best:
    """The plan with the lowest peak, among those without nesting; of several, the cheapest."""
    return best_plan(chain, _smallest(_needs_of(chain)))


def frontier(chain: Chain, count: int = 40) -> list[Best]:
    """Best plans for ``count`` budgets, evenly spread from the smallest to what needs no plan.

    Budgets that get the same FLOPs as a smaller one are left out.
    """
    low = _smallest(_needs_of(chain))
    high = predict(keep_all(chain), chain).peak
    found: list[Best] = []
    for i in range(count):
        best = best_plan(chain, low + (high - low) * i // max(count - 1, 1))
        if not found or best.prediction.recomputed_flops < found[-1].prediction.recomputed_flops:
            found.append(best)
    return found


Step = tuple[int, int, bool]  # from this unit to that, and whether as a segment


def _plan(needs: _Needs, steps: Iterable[Step]) -> Plan:
    parts: list = []
    for begin, end, segment in steps:
        layers = [layer for unit in needs.units[begin:end] for layer in unit.layers]
        parts += [tuple(layers)] if segment else layers
    return Plan(tuple(parts))


def _smallest(needs: _Needs) -> int:
    """The lowest budget that some plan without nesting meets, in bytes; by bisection."""
    low, high = 0, int(needs.plain.max() + needs.inner.sum() + needs.source.sum())
    while low < high:
        middle = (low + high) // 2
        if _limits(needs, middle)[0, 0] < 0:
            low = middle + 1
        else:
            high = middle
    return low + needs.before


def _limits(needs: _Needs, room: int) -> np.ndarray:
    """The most that a partial plan may have kept so far, so that some way to go on still fits.

    By unit and state; negative where there is no way.
    """
    n = needs.n
    limits = np.full((n + 1, 2), -1, dtype=np.int64)
    limits[n] = room - needs.plain[:, n]
    for s in range(n - 1, -1, -1):
        first, need, _ = needs.segment(s)
        for held in range(2):
            more, state = needs.after_plain(s, held)
            plain = min(room - needs.plain[held, s], limits[s + 1, state] - more)
            cut = np.minimum(room - need[held], limits[first:, 0] - needs.source[s])
            limits[s, held] = max(plain, cut.max(initial=-1))
    return limits


def _follow_labels(needs: _Needs, room: int, limits: np.ndarray, limit: int) -> list[Step] | None:
    """The cheapest plan by following every non-dominated (kept bytes, FLOPs); None if too many."""
    n, total = needs.n, 0
    waiting: list[list[list[np.ndarray]]] = [[[], []] for _ in range(n + 1)]
    labels: dict[tuple[int, int], np.ndarray] = {}
    waiting[0][0].append(np.array([[0.0, 0.0, -1, 0, 0, 0]]))
    for s in range(n + 1):
        for held in range(2):
            if not waiting[s][held]:
                continue
            found = _undominated(np.concatenate(waiting[s][held]))
            found = found[found[:, 0] <= limits[s, held]]
            waiting[s][held] = []
            labels[s, held] = found
            if s == n:
                continue
            fits = int(np.searchsorted(found[:, 0], room - needs.plain[held, s], "right"))
            more, state = needs.after_plain(s, held)
            _extend(waiting[s + 1][state], found[:fits], s, held, more, 0.0, segment=False)
            first, need, flops = needs.segment(s)
            fitting = np.searchsorted(found[:, 0], room - need[held], "right")
            total += int(fitting.sum()) + len(fitting)
            if total > limit:
                return None
            for i in np.flatnonzero(fitting):
                _extend(waiting[first + i][0], found[: fitting[i]], s, held,
                        needs.source[s], flops[i], segment=True)  # fmt: skip
    best, at = NEVER, None
    for held in range(2):
        last = labels.get((n, held))
        if last is not None:
            for row in last[last[:, 0] + needs.plain[held, n] <= room]:
                if row[1] < best:
                    best, at = row[1], row
    assert at is not None, "a plan that fits was found before"
    steps: list[Step] = []
    end = n
    while at[2] >= 0:
        begin, held, index, segment = (int(x) for x in at[2:])
        steps.append((begin, end, bool(segment)))
        end, at = begin, labels[begin, held][index]
    return steps[::-1]


def _extend(
    target: list[np.ndarray], found: np.ndarray, s: int, held: int, more: float, flops: float,
    *, segment: bool,
) -> None:  # fmt: skip
    """Labels are rows of kept bytes, FLOPs, and where they came from: unit, state, row, how."""
    if len(found):
        rows = np.empty((len(found), 6))
        rows[:, 0], rows[:, 1] = found[:, 0] + more, found[:, 1] + flops
        rows[:, 2], rows[:, 3], rows[:, 4], rows[:, 5] = s, held, np.arange(len(found)), segment
        target.append(rows)


def _undominated(rows: np.ndarray) -> np.ndarray:
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    cheapest = np.minimum.accumulate(rows[:, 1])
    return rows[np.concatenate([[True], rows[1:, 1] < cheapest[:-1]])]


def _common_unit(needs: _Needs) -> int:
    """The largest size of which everything that a plan may keep is a multiple."""
    return math.gcd(*(int(x) for x in needs.inner), *(int(x) for x in needs.source))


def _count_slots(
    needs: _Needs, room: int, limits: np.ndarray, size: int, *, relaxed: bool
) -> tuple[list[Step], float]:
    """The cheapest plan when of partial plans that keep about as much only one is followed.

    About as much: in the same slot of ``size`` bytes. That is the cheapest of them; ``relaxed``,
    it is none of them but has the lowest cost and the least memory, so that what comes out is a
    bound, without a plan. Sizes themselves are not rounded, and if they are all multiples of
    ``size``, both are the same and exact. Nothing is followed beyond ``limits``, so that what is
    can always be completed.
    """
    n, count = needs.n, min(room, needs.most_kept) // size + 1
    cost = np.full((n + 1, 2, count), NEVER)
    kept = np.full((n + 1, 2, count), room + 1, dtype=np.int64)
    came = np.full((n + 1, 2, count, 3), -1, dtype=np.int32)  # unit, state, slot (~ if kept)
    cost[0, 0, 0] = kept[0, 0, 0] = 0
    for s in range(n):
        for held in range(2):
            row = cost[s, held]
            cheaper = np.concatenate([[NEVER], np.minimum.accumulate(row)[:-1]])
            labels = np.flatnonzero(row < cheaper)
            if not len(labels):
                continue
            memory, flops = kept[s, held, labels], row[labels]
            for segment in (False, True):
                if segment:
                    first, need, more_flops = needs.segment(s)
                    more, state = int(needs.source[s]), 0
                    ends = np.flatnonzero(need[held] <= room - memory.min())
                    limit, more_flops, ends = need[held][ends], more_flops[ends], first + ends
                else:
                    more, state = needs.after_plain(s, held)
                    ends, more_flops = np.array([s + 1]), np.zeros(1)
                    limit = needs.plain[held, [s]]
                after = memory + more
                slot = np.minimum(after // size, count - 1)
                offered = flops[None, :] + more_flops[:, None]
                fits = memory[None, :] <= room - limit[:, None]
                fits &= after[None, :] <= limits[ends, state][:, None]
                better = fits & (offered < cost[ends[:, None], state, slot[None, :]])
                rows, columns = np.nonzero(better)  # of two for one slot, the cheaper comes last
                to = ends[rows], state, slot[columns]
                cost[to] = offered[rows, columns]
                if relaxed:
                    rows, columns = np.nonzero(fits)
                    some: Any = ends[rows], state, slot[columns]
                    np.minimum.at(kept, some, after[columns])
                else:
                    kept[to] = after[columns]
                    mark = labels[columns]
                    came[to] = np.stack(
                        [np.full(len(mark), s), np.full(len(mark), held),
                         mark if segment else ~mark], axis=-1,
                    )  # fmt: skip
    final = np.where(kept[n] + needs.plain[:, [n]] <= room, cost[n], NEVER)
    best = float(final.min())
    if relaxed:
        return [], best
    held, at = (int(x) for x in np.unravel_index(final.argmin(), final.shape))
    steps: list[Step] = []
    end = n
    while end:
        begin, before, chosen = (int(x) for x in came[end, held, at])
        steps.append((begin, end, chosen >= 0))
        end, held, at = begin, before, max(chosen, ~chosen)
    return steps[::-1], best


# --- nested recomputation -----------------------------------------------------------------------


def nested_steps(layers: int, snapshots: int) -> int:
    """How many layers' forward passes are done again by :func:`nested_plan`.

    ``snapshots``: inputs kept at once, that of the first layer not among them. With the smallest
    r for which C(snapshots + 1 + r, r) ≥ layers it is r·layers − C(snapshots + 1 + r, r − 1)
    (Griewank & Walther 2000).
    """
    s, r = snapshots + 1, 0
    while math.comb(s + r, s) < layers:
        r += 1
    return r * layers - math.comb(s + r, s + 1)


def nested_plan(layers: int, snapshots: int) -> Plan:
    """Revolve: the fewest steps for equal layers when only ``snapshots`` inputs may be kept.

    Segments within segments; the input of the whole chain comes for free. Raises ``ValueError``
    for fewer than one layer or a negative number of snapshots.
    """
    if layers < 1 or snapshots < 0:
        raise ValueError(
            text(
                zh=f"层数至少是 1，存下的输入数至少是 0，现在是 {layers} 和 {snapshots}。",
                en="At least 1 layer and 0 stored inputs are needed, not "
                f"{layers} and {snapshots}.",
            )
        )
    return Plan(_nested(0, layers, min(snapshots, layers - 1)))


def _nested(begin: int, end: int, snapshots: int) -> tuple:
    """The parts of these layers, whose input is there, with so many more inputs to keep."""
    parts: list = []
    while end - begin > 1:
        if not snapshots:
            parts.append(_nested(begin, end - 1, 0))
            begin = end - 1
            break
        size = min(
            range(1, end - begin),
            key=lambda m: m + nested_steps(end - begin - m, snapshots - 1)
            + nested_steps(m, snapshots),
        )  # fmt: skip
        parts.append(_nested(begin, begin + size, snapshots))
        begin, snapshots = begin + size, snapshots - 1
    return (*parts, begin)
