"""What every layer and every segment of a chain needs while it is at work, from its score.

:mod:`plan` plays one plan from beginning to end, with every holder of every storage: that is the
definition, and every plan that a planner returns is played. A planner cannot play 2^n of them, so
this module works out ahead what one part needs whatever the rest of the plan is, and a plan's peak
is then the highest of its parts. It is the same semantics a second time, in closed form, because
neither can be the source of the other: a part alone cannot be played, as its peak depends on who
else holds its input, and playing each of the n² segments in some plan would take n³ steps, minutes
for a thousand layers. Where the two differ, the play is right. The tests hold them together: for
every plan of random chains, the peak and FLOPs composed from these needs are those of the play.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass

import numpy as np

from .chains import STATIC, Chain, Layer, Note


@dataclass(frozen=True)
class Unit:
    """A layer with those after it that only look at its output differently (Flatten, Identity).

    Cutting between them changes nothing, so a plan treats them as one.
    """

    layers: tuple[int, ...]
    forward: tuple[Note, ...]
    backward: tuple[Note, ...]
    source: int  # the storage it reads
    output: int
    flops: int


def units_of(chain: Chain) -> list[Unit]:
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


def _unit(source: int, numbers: tuple[int, ...], layers: list[Layer]) -> Unit:
    forward: list[Note] = []
    flops = 0
    for layer in layers:
        forward += [
            note._replace(size=note.size + flops) if note.kind == "save" else note
            for note in layer.forward
        ]
        flops += layer.flops
    backward = tuple(note for layer in reversed(layers) for note in layer.backward)
    return Unit(numbers, tuple(forward), backward, source, layers[-1].output, flops)


@dataclass
class ForwardNeed:
    """A unit's forward pass. ``peak``: above what others hold; ``saved``: storage of each slot.

    ``last_peak`` and ``last_flops``: as far as its last saved tensor, where recomputing stops.
    """

    peak: int
    last_peak: int
    last_flops: int
    saved: dict[int, int]
    fleeting: int  # change of what is held by nobody but the running forward pass


def play_forward(unit: Unit, sizes: dict[int, int], held: bool, saving: bool) -> ForwardNeed:
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
    return ForwardNeed(peak, last_peak, last_flops, saved, level - begin)


@dataclass
class BackwardNeed:
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


def play_backward(
    unit: Unit,
    sizes: dict[int, int],
    level: int,
    saved: dict[int, int],
    *,
    at_once: bool,
    held: bool = False,
    framed: bool = False,
) -> BackwardNeed:
    """``saved``: what its slots hold; ``at_once``: let go after reading, as recomputed values are.

    ``held``: somebody else keeps the input. ``framed``: the unit begins a segment, which keeps the
    input until the last slot is forgotten.
    """
    holders: dict[int, int] = {}
    for storage in [
        *saved.values(),
        *([unit.source] if held else []),
        *([unit.source] if framed else []),
    ]:
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
    return BackwardNeed(
        max(peaks.values()),
        max(peaks[False, False], peaks[True, False]),
        max(peaks[False, True], peaks[True, True], at_read),
        at_read,
        max(peaks[False, False], peaks[False, True]),
        max(peaks[False, True], at_read),
        max(peaks[True, False], peaks[True, True], level + own),
        level,
    )


class Needs:
    """What each layer and each segment needs while it is at work, and what it keeps afterwards.

    Units are numbered from 0, the loss is unit ``n``. A state between units says whether the
    unit before, kept, holds its own output (1) or not (0); that output is then not counted in what
    is kept so far. ``plain[held, i]``: bytes that a kept unit needs. ``inner[i]``: what it keeps
    apart from its input and output. ``holds_input``, ``holds_output``: whether it keeps those.
    ``segment(s)``: see there. All above ``before``.
    """

    def __init__(self, chain: Chain):
        self.chain, self.units, self.before = chain, units_of(chain), chain.before
        units, sizes = self.units, chain.sizes
        self.n = n = len(units) - 1
        self.source = np.array([sizes.get(unit.source, 0) for unit in units])
        kept = [[play_forward(u, sizes, bool(h), True) for u in units] for h in range(2)]
        free = [[play_forward(u, sizes, bool(h), False) for u in units] for h in range(2)]
        self.kept_forward, self.free_forward = kept, free  # [held][unit]
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
        bare: list[BackwardNeed] = []
        plain: list[list[BackwardNeed]] = [[], []]
        recomputed: list[BackwardNeed] = []
        framed: list[list[BackwardNeed]] = [[], []]
        alone: list[BackwardNeed] = []
        beside: list[BackwardNeed] = []
        for i in range(n, -1, -1):
            unit = units[i]
            play = functools.partial(play_backward, unit, sizes, level)
            bare.append(play({}, at_once=True))
            recomputed.append(play(saved[i], at_once=True, held=bool(self.held_before[i])))
            alone.append(play(saved[i], at_once=True))
            beside.append(play(saved[i], at_once=True, held=True))
            for held in range(2):
                plain[held].append(play(saved[i], at_once=False, held=bool(held)))
                framed[held].append(play(saved[i], at_once=True, held=bool(held), framed=True))
            level = bare[-1].end
        self.bare, self.recomputed, self.alone = bare[::-1], recomputed[::-1], alone[::-1]
        self.recomputed_backward = self.alone, beside[::-1]  # [held][unit]
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


_known: weakref.WeakKeyDictionary[Chain, Needs] = weakref.WeakKeyDictionary()


def needs_of(chain: Chain) -> Needs:
    if chain not in _known:
        _known[chain] = Needs(chain)
    return _known[chain]
