"""The cheapest of all plans, nested ones included, under a budget.

Beaumont et al. 2019 (arXiv:1911.13214) give the recurrence for chains: with some room left, a
layer is either stored whole, or the forward pass runs over some layers and stores the input after
them. Here it runs over the parts of plans, with the needs of :mod:`needs`, so that memory is that
of ``predict``. ``room``: bytes of the budget that earlier parts of the same and of outer segments
leave. Fewest FLOPs, for every room that can occur:

- ``whole[h][i]``: layers from ``i`` on outside of segments. Keep layer ``i``, or put ``i`` to
  ``j`` into a segment (``outer``), and go on.
- ``outer[h][i, u]``: a segment from ``i`` whose last layer that saves anything is ``u``; its
  input is kept until the last thing saved in it is let go.
- ``inner[h][i, u]``: the same inside another segment: recomputing takes its input out of what the
  other has saved, and holds it only while it recomputes.
- ``body[x][h][u][i]``: the parts of a segment from layer ``i`` on. Layer ``i`` is saved again, or
  ``i`` to ``j`` make a segment inside, or they do to the very end, where recomputing stops at
  that segment's input. ``x``: size of the input that recomputing holds and nobody else.

``h``: whether the layer before holds its own output, which then is not counted as kept.

What is proven. Every part's need above is at most what playing the plan gives, so that the result
is a bound for all plans (``Best.least``): a segment inside that wraps nothing but another one costs
what that one does. It is not always reached: while a segment runs forward without saving, the
inputs of those inside it are held as well, and that depends on their own parts. So the plan found
is played (:mod:`plan` says what a plan takes, not this module), and is the optimum if it fits,
which the tests find it does on chains like the course's. If it does not, the recurrence runs again,
``safe`` wherever it was lenient, and the cheapest known that fits is taken; ``Best.exact`` is False
unless it costs no more than the bound. Rooms that can occur are followed one by one while they are
few (``CELLS``); beyond that what is left is rounded up to the next of them, which keeps the bound a
bound, or down if safe.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import numpy as np

from ..language import text
from .chains import Chain
from .needs import Needs, needs_of
from .plan import Part, Plan, predict
from .planners import Best, BudgetTooSmall, best_plan
from .revolve import nested_plan
from .search import NEVER

CELLS = 16_000_000  # numbers that the tables may hold
LAYERS = 150  # units beyond which no recurrence is run
SNAPSHOTS = 64  # inputs that Revolve's plans may keep: with more, nesting gains nothing
ATTEMPTS = 4  # plans that are played: that of the bound, then those of ever less room

Choice = tuple[str, int]  # how the parts begin, and the unit after that part


class NothingFits(ValueError):
    """No plan at all fits the budget, as far as is known."""

    def __init__(self, budget: int):
        super().__init__(
            text(
                zh=f"预算 {budget:,} 字节放不下：嵌套的方案也没有一个放得下。",
                en=f"A budget of {budget:,} bytes is too small: no plan fits, not even a nested "
                "one.",
            )
        )


def best_nested_plan(chain: Chain, budget: int) -> Best:
    """The plan with the fewest recomputed FLOPs whose peak is at most ``budget`` bytes, of all.

    Segments may stand in segments, to any depth. ``Best.least`` bounds those plans too, and
    ``Best.exact`` says that none of them does better. Never worse than :func:`best_plan` and than
    every :func:`nested_plan` of up to ``SNAPSHOTS`` inputs that fits. Time grows with the third
    power of the layers, about a second for 50; beyond ``LAYERS`` of them the best of those two is
    returned, and the bound is 0.

    Source of the recurrence: Beaumont et al. 2019 (arXiv:1911.13214). Raises :class:`NothingFits`
    if no plan is found to fit.
    """
    needs = needs_of(chain)
    room, least = budget - needs.before, 0
    found: list[Best] = []
    with contextlib.suppress(BudgetTooSmall):
        found.append(best_plan(chain, budget))
    if needs.n <= LAYERS:
        tables = _Tables(needs, room)
        least = tables.least if _all_read(needs) else 0
        for _ in range(ATTEMPTS):
            if (plan := tables.plan()) is None or _reached(found, least):
                break
            prediction = predict(plan, chain)
            if prediction.peak <= budget:
                found.append(Best(plan, prediction, 0))
                break
            room -= prediction.peak - budget if tables.safe else 0
            tables = _Tables(needs, room, safe=True)
    if not _reached(found, least):
        found += _revolve(chain, budget)
    if not found:
        raise NothingFits(budget)
    best = min(found, key=lambda one: one.prediction.recomputed_flops)
    return Best(best.plan, best.prediction, min(least, best.prediction.recomputed_flops))


def _reached(found: list[Best], least: int) -> bool:
    return any(one.prediction.recomputed_flops <= least for one in found)


def _revolve(chain: Chain, budget: int) -> Iterable[Best]:
    """Revolve's plans, and the same as one segment, as far as they fit."""
    for snapshots in range(min(len(chain), SNAPSHOTS)):
        parts = nested_plan(len(chain), snapshots).parts
        for plan in (Plan(parts), Plan((parts,))):
            prediction = predict(plan, chain)
            if prediction.peak <= budget:
                yield Best(plan, prediction, 0)


def _all_read(needs: Needs) -> bool:
    """Whether whoever saves something reads it, so that recomputing begins where it should."""
    return all(
        any(note.kind == "read" for note in unit.backward)
        for unit, slots in zip(needs.units, needs.has_slots, strict=True)
        if slots
    )


class _Tables:
    """The recurrence, filled for one room; the last column of each table is for no room at all.

    ``safe``: where needs are not known exactly, take what is enough rather than what is needed.
    """

    def __init__(self, needs: Needs, room: int, *, safe: bool = False):
        self.needs, self.n, self.safe = needs, needs.n, safe
        self._needs_by_unit()
        self.extras = sorted(
            {0, *(int(needs.source[i]) for i in range(self.n) if not needs.holds_input[i])}
        )
        self.rooms = self._rooms(room)
        self.end = len(self.rooms)
        n, size = self.n, self.end + 1
        self.body = np.full((len(self.extras), 2, n, n + 1, size), NEVER)
        self.inner, self.outer = (np.full((2, n, n, size), NEVER) for _ in range(2))
        self.whole = np.full((2, n + 1, size), NEVER)
        self._shifts: dict[int, np.ndarray] = {}
        if self.end:
            self._fill()

    @property
    def least(self) -> int:
        """FLOPs below which no plan stays; 0 where none fits."""
        found = self.whole[0, 0, self.end - 1] if self.end else NEVER
        return 0 if found == NEVER else int(found)

    # --- what parts need --------------------------------------------------------------------

    def _needs_by_unit(self) -> None:
        needs, n = self.needs, self.n
        kept, free, back = needs.kept_forward, needs.free_forward, needs.recomputed_backward
        self.again = [[f.peak for f in kept[h]] for h in range(2)]
        self.again_last = [[f.last_peak for f in kept[h]] for h in range(2)]
        self.back = [[b.peak for b in back[h]] for h in range(2)]
        self.back_last = [[b.after_read for b in back[h]] for h in range(2)]
        self.at_read = [b.at_read for b in needs.bare]
        self.last = np.zeros(n + 1, dtype=int)  # before unit j: the last unit with slots, or -1
        self.before = np.zeros(n + 1, dtype=np.int64)  # backward until that one first reads
        last, highest = -1, 0
        for j in range(n + 1):
            self.last[j], self.before[j] = last, highest
            if j < n and needs.has_slots[j]:
                last, highest = j, needs.bare[j].before_read
            elif j < n:
                highest = max(highest, needs.bare[j].peak)
        self.done = np.concatenate([[0], np.cumsum(needs.flops[:n])])
        # Forward without saving, in units i to j - 1: while recomputing, and the first time.
        self.passing = np.zeros((n, n + 1), dtype=np.int64)
        self.passing_first = np.zeros((n, n + 1), dtype=np.int64)
        for i in range(n):
            source = int(needs.source[i])
            again = [free[1][i].peak, *(free[0][k].peak + source for k in range(i + 1, n))]
            first = needs.forward_later[i:n] + source
            first[0] = needs.forward_first[i]
            self.passing[i, i + 1 :] = np.maximum.accumulate(again)
            self.passing_first[i, i + 1 :] = np.maximum.accumulate(first)

    def _rooms(self, room: int) -> np.ndarray:
        """Every room that can be left, or evenly spread ones if there are too many."""
        needs, n = self.needs, self.n
        if room < 0:
            return np.zeros(0, dtype=np.int64)
        most = max(64, CELLS // (n * n * (2 * len(self.extras) + 4) + 1))
        rooms = np.array([room])
        for i in range(n):
            inner, source = int(needs.inner[i]), int(needs.source[i])
            less = {0, inner, source, inner + source}
            rooms = np.unique(np.concatenate([rooms - size for size in less]))
            rooms = rooms[rooms >= 0]
            if len(rooms) > most:
                return np.unique(np.linspace(0, room, most).astype(np.int64))
        return rooms

    def _after(self, size: int) -> np.ndarray:
        """For every room, the place of what is left after keeping ``size`` bytes."""
        if size not in self._shifts:
            left = self.rooms - size
            places = (
                np.searchsorted(self.rooms, left, "right") - 1
                if self.safe
                else np.searchsorted(self.rooms, left)
            )
            places[left < 0] = self.end
            self._shifts[size] = np.append(places, self.end)
        return self._shifts[size]

    def _fits(self, need: np.ndarray) -> np.ndarray:
        """What is to be added to FLOPs: nothing where the room is enough, else infinity."""
        rooms = np.append(self.rooms, -1)
        return np.where(rooms >= np.asarray(need)[:, None], 0.0, NEVER)

    # --- the recurrence ---------------------------------------------------------------------

    def _fill(self) -> None:
        slots = [u for u in range(self.n) if self.needs.has_slots[u]]
        for u in slots:
            for i in range(u, -1, -1):
                for h in range(2):
                    self.outer[h, i, u] = self._outer(h, i, u)[0].min(0)
                    # Held by the layer before: as good as any layer further on in a segment.
                    inner = self._inner(i, u) if not h else self._parts(0, 1, i, u)
                    self.inner[h, i, u] = inner[0].min(0)
                for x in range(len(self.extras)):
                    for h in range(2):
                        parts = self._parts(x, h, i, u)[0].min(0)
                        self.body[x, h, u, i] = np.minimum(parts, self.inner[h, i, u])
        self.whole[:, self.n] = self._fits(self.needs.plain[:, self.n])
        for i in range(self.n - 1, -1, -1):
            for h in range(2):
                self.whole[h, i] = self._whole(h, i)[0].min(0)

    def _segments(
        self, i: int, u: int, inside: np.ndarray, rest: np.ndarray, extra: int
    ) -> tuple[np.ndarray, list[Choice]]:
        """A segment of units ``i`` to ``j - 1`` inside another, for every ``j``, and the rest."""
        ends = np.arange(i + 1, u + 1)
        ends = ends[self.last[ends] >= i]
        source = int(self.needs.source[i])
        need = np.maximum(
            self.at_read[u] + extra + self.passing[i, ends], self.before[ends] + source
        )
        costs = rest[ends][:, self._after(source)] + inside[i, self.last[ends]]
        costs += (self.done[ends] - self.done[i])[:, None] + self._fits(need)
        return costs, [("segment", int(j)) for j in ends]

    def _again(
        self, i: int, u: int, peaks: tuple[int, int], keep: int, x: int, flops: float
    ) -> np.ndarray:
        """Unit ``i`` saved again, and the rest of the segment; peaks of forward and backward."""
        need = max(self.at_read[u] + peaks[0], peaks[1])
        fits = self._fits(np.array([need]))
        if i == u:
            return fits + flops
        state = int(self.needs.holds_output[i])
        return self.body[x, state, u, i + 1][self._after(keep)] + fits + flops

    def _flops(self, i: int, u: int) -> float:
        return float(self.needs.last_flops[i] if i == u else self.needs.flops[i])

    def _parts(self, x: int, h: int, i: int, u: int) -> tuple[np.ndarray, list[Choice]]:
        extra = self.extras[x]
        forward = (self.again_last if i == u else self.again)[h][i] + extra
        backward = (self.back_last if i == u else self.back)[h][i]
        keep = self.needs.after_plain(i, h)[0]
        again = self._again(i, u, (forward, backward), keep, x, self._flops(i, u))
        costs, choices = self._segments(i, u, self.inner[h], self.body[x, 0, u], extra)
        return np.concatenate([again, costs]), [("again", i + 1), *choices]

    def _inner(self, i: int, u: int) -> tuple[np.ndarray, list[Choice]]:
        forward = (self.again_last if i == u else self.again)[1][i]
        backward = (self.back_last if i == u else self.back)[0][i]
        keep = self.needs.after_plain(i, 0)[0]
        x = 0 if self.needs.holds_input[i] else self.extras.index(int(self.needs.source[i]))
        again = self._again(i, u, (forward, backward), keep, x, self._flops(i, u))
        costs, choices = self._segments(i, u, self.inner[0], self.body[0, 0, u], 0)
        return np.concatenate([again, costs]), [("again", i + 1), *choices]

    def _outer(self, h: int, i: int, u: int) -> tuple[np.ndarray, list[Choice]]:
        needs = self.needs
        forward = (self.again_last if i == u else self.again)[1][i]
        framed = needs.framed[h][i]
        backward = framed.after_read if i == u else framed.peak
        keep = self._outer_keeps(h, i)
        if not needs.has_slots[i]:
            backward = needs.bare[i].peak + keep
        again = self._again(i, u, (forward, backward), keep, 0, self._flops(i, u))
        costs, choices = self._segments(i, u, self.outer[h], self.body[0, 0, u], 0)
        return np.concatenate([again, costs]), [("again", i + 1), *choices]

    def _outer_keeps(self, h: int, i: int) -> int:
        """What layer ``i``, saved again as a segment's first, and the segment's input take."""
        if self.needs.has_slots[i] or h or self.safe:
            return int(self.needs.inner[i] + self.needs.source[i])
        return (
            0  # the input goes with the first saved tensor, no saying when: left out, for the bound
        )

    def _whole(self, h: int, i: int) -> tuple[np.ndarray, list[Choice]]:
        needs = self.needs
        keep, state = needs.after_plain(i, h)
        plain = self.whole[state, i + 1][self._after(keep)] + self._fits(needs.plain[h, [i]])
        ends = np.arange(i + 1, self.n + 1)
        ends = ends[self.last[ends] >= i]
        source = int(needs.source[i])
        need = np.maximum(self.passing_first[i, ends], self.before[ends] + source)
        costs = self.whole[0, ends][:, self._after(source)] + self.outer[h, i, self.last[ends]]
        costs += self._fits(need)
        return np.concatenate([plain, costs]), [
            ("again", i + 1),
            *(("segment", int(j)) for j in ends),
        ]

    # --- the way back -----------------------------------------------------------------------

    def plan(self) -> Plan | None:
        """The plan that the tables hold; None if there is none."""
        if not self.end or self.whole[0, 0, self.end - 1] == NEVER:
            return None
        parts: list[Part] = []
        i = h = 0
        place = self.end - 1
        while i < self.n:
            how, j = self._chosen(self._whole(h, i), place)
            if how == "segment":
                parts.append(self._frame("outer", h, i, int(self.last[j]), j, place))
                keep, h = int(self.needs.source[i]), 0
            else:
                parts += self._layers(i, j)
                keep, h = self.needs.after_plain(i, h)
            i, place = j, int(self._after(keep)[place])
        return Plan(tuple(parts))

    def _chosen(self, options: tuple[np.ndarray, list[Choice]], place: int) -> Choice:
        costs, choices = options
        return choices[int(costs[:, place].argmin())]

    def _layers(self, i: int, j: int) -> list[int]:
        return [layer for unit in self.needs.units[i:j] for layer in unit.layers]

    def _frame(self, kind: str, h: int, i: int, u: int, end: int, place: int) -> tuple[Part, ...]:
        """The parts of a segment, with the units up to ``end`` that save nothing."""
        needs, x, first = self.needs, 0, True
        parts: list[Part] = []
        while i <= u:
            inside = "inner"
            if first and kind == "outer":
                options, inside = self._outer(h, i, u), "outer"
            elif first and not h:
                options = self._inner(i, u)
            else:
                options = self._parts(x, h, i, u)
                if not first and self.inner[h, i, u, place] < options[0][:, place].min():
                    parts.append(self._frame("inner", h, i, u, end, place))
                    return tuple(parts)
            how, j = self._chosen(options, place)
            if how == "segment":
                parts.append(self._frame(inside, h, i, int(self.last[j]), j, place))
                keep, h = int(needs.source[i]), 0
            else:
                parts += self._layers(i, j)
                keep, state = needs.after_plain(i, h)
                if first and kind == "outer":
                    keep = self._outer_keeps(h, i)
                elif first and not h and not needs.holds_input[i]:
                    x = self.extras.index(int(needs.source[i]))
                h = state
            i, place, first = j, int(self._after(keep)[place]), False
        parts += self._layers(u + 1, end)
        return tuple(parts)
