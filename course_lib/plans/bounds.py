"""A bound on what any plan without nesting must recompute, and the optimum where it is near.

Lagrange's relaxation: instead of obeying the budget, pay ``price`` FLOPs for each byte kept at the
end of the forward pass. The cheapest plan is then a shortest path, and for every price
(FLOPs + price · (kept + what the loss needs - room)), at its lowest over all plans, is at most the
FLOPs of any plan that fits: that plan pays nothing or less for its bytes. The price that makes it
highest is found from two paths at a time, where their lines cross.

What a path still costs from each layer on says of a partial plan whether it can lead to anything
cheaper than a plan that is known. Near the peak without checkpoints, where few plans are left
between bound and optimum, that is a proof for a thousand layers.
"""

from __future__ import annotations

import math

import numpy as np

from .needs import Needs
from .search import NEVER, Step, steps_to, undominated


class Bound:
    """The relaxed problem for ``room`` bytes above ``before``; ``least``: no plan does less.

    ``togo[unit, state]``: what the rest of a plan costs at least, FLOPs and priced bytes, from
    there on. ``fewest[unit, state]``: the fewest bytes that plans keep on the way there.
    """

    def __init__(self, needs: Needs, room: int):
        self.needs, self.room = needs, room
        self.grain = _grain(needs)
        self.price = 0.0
        self.fewest = self._fewest()
        self.togo = np.zeros((needs.n + 1, 2))
        self.least = self._raise()

    def _fewest(self) -> np.ndarray:
        needs, n = self.needs, self.needs.n
        fewest = np.full((n + 1, 2), NEVER)
        fewest[0, 0] = 0
        for s in range(n):
            for held in range(2):
                kept = fewest[s, held]
                if kept + needs.plain[held, s] <= self.room:
                    more, state = needs.after_plain(s, held)
                    fewest[s + 1, state] = min(fewest[s + 1, state], kept + more)
                first, need, _ = needs.segment(s)
                ends = first + np.flatnonzero(kept + need[held] <= self.room)
                fewest[ends, 0] = np.minimum(fewest[ends, 0], kept + needs.source[s])
        return fewest

    def _raise(self) -> int:
        """Find the best price, and with it the highest bound."""
        cheap, dear = self._path(0.0), self._path(None)
        best, togo = (0.0, self.togo) if cheap is None else (cheap[0], self._priced(0.0)[0])
        if cheap is None or dear is None:
            return 0
        if cheap[1] > self.room >= dear[1]:
            for _ in range(60):  # each round finds a new corner of the bound; it ends far earlier
                price = (dear[0] - cheap[0]) / (cheap[1] - dear[1])
                found = self._path(price)
                assert found is not None
                value = found[0] + price * (found[1] - self.room)
                if value > best:
                    best, togo, self.price = value, self._togo, price
                on_line = cheap[0] + price * cheap[1]
                if found[0] + price * found[1] >= on_line - 1e-9 * max(1.0, abs(on_line)):
                    break
                if found[1] > self.room:
                    cheap = found
                else:
                    dear = found
        self.togo = togo
        return max(0, self._rounded(best))

    def _rounded(self, value: float) -> int:
        """The least count of FLOPs that a bound allows: they come in multiples of the grain."""
        return math.ceil((value - 1e-9 * abs(value)) / self.grain) * self.grain

    def _priced(self, price: float | None) -> tuple[np.ndarray, np.ndarray]:
        """What each state costs at least from there to the end, and the step that does it.

        Without a price: bytes alone count. Steps: the next unit, minus one for a kept unit.
        """
        needs, n, room = self.needs, self.needs.n, self.room
        each, work = (price, 1.0) if price is not None else (1.0, 0.0)
        togo = np.full((n + 1, 2), NEVER)
        step = np.zeros((n + 1, 2), dtype=np.int64)
        last = needs.plain[:, n].astype(float)
        togo[n] = np.where(self.fewest[n] + last <= room, each * last, NEVER)
        for s in range(n - 1, -1, -1):
            first, need, flops = needs.segment(s)
            for held in range(2):
                kept = self.fewest[s, held]
                if kept == NEVER:
                    continue
                if kept + needs.plain[held, s] <= room:
                    more, state = needs.after_plain(s, held)
                    togo[s, held], step[s, held] = togo[s + 1, state] + each * more, -1
                if len(flops):
                    costs = np.where(
                        kept + need[held] <= room, togo[first:, 0] + work * flops, NEVER
                    )
                    at = int(costs.argmin())
                    cost = costs[at] + each * float(needs.source[s])
                    if cost < togo[s, held]:
                        togo[s, held], step[s, held] = cost, first + at
        return togo, step

    def _path(self, price: float | None) -> tuple[float, float] | None:
        """FLOPs and bytes (those of the loss among them) of the cheapest path at a price."""
        needs = self.needs
        self._togo, step = self._priced(price)
        if self._togo[0, 0] == NEVER:
            return None
        flops = kept = 0.0
        s = held = 0
        while s < needs.n:
            if step[s, held] < 0:
                more, state = needs.after_plain(s, held)
                s, held, kept = s + 1, state, kept + more
            else:
                first, _, costs = needs.segment(s)
                flops, kept = flops + costs[step[s, held] - first], kept + float(needs.source[s])
                s, held = int(step[s, held]), 0
        return flops, kept + float(needs.plain[held, needs.n])


def _grain(needs: Needs) -> int:
    """What every plan's recomputed FLOPs are a multiple of."""
    return math.gcd(*(int(x) for x in needs.flops), *(int(x) for x in needs.last_flops)) or 1


WORK = 20_000_000  # pairs of a partial plan and a step that are looked at


def follow_promising(
    needs: Needs,
    bound: Bound,
    limits: np.ndarray,
    known: float,
    *,
    width: int | None = None,
    work: int = WORK,
) -> tuple[list[Step] | None, bool]:
    """A plan that recomputes less than ``known`` FLOPs, the cheapest; and whether that is sure.

    None: there is none (or, if not sure, none was found). Partial plans are followed only if
    the bound lets them end below what is known. Not sure if there are still too many; or, with a
    ``width``, if anywhere there are more than that many: then the most promising are followed.
    """
    sure = True
    n, room, price = needs.n, bound.room, bound.price
    most = known - bound.grain + 1e-9 * abs(known) + price * room
    waiting: list[list[list[np.ndarray]]] = [[[], []] for _ in range(n + 1)]
    waiting[0][0].append(np.array([[0.0, 0.0, -1, 0, 0, 0]]))
    labels: dict[tuple[int, int], np.ndarray] = {}
    for s in range(n):
        first, need, flops = needs.segment(s)
        source = float(needs.source[s])
        for held in range(2):
            if not waiting[s][held]:
                continue
            found = undominated(np.concatenate(waiting[s][held]))
            found = found[found[:, 0] <= limits[s, held]]
            waiting[s][held] = []
            if width is not None and len(found) > width:
                sure = False
                paid = found[:, 1] + price * found[:, 0]
                found = found[np.sort(np.argsort(paid, kind="stable")[:width])]
            labels[s, held] = found
            work -= len(found) * (len(flops) + 1)
            if work < 0:
                return None, False
            if not len(found):
                continue
            paid = found[:, 1] + price * found[:, 0]
            more, state = needs.after_plain(s, held)
            index = np.flatnonzero(
                (found[:, 0] + needs.plain[held, s] <= room)
                & (paid + price * more + bound.togo[s + 1, state] <= most)
            )
            if len(index):
                _step(waiting[s + 1][state], found, index, (s, held, 0), float(more), 0.0)
            rest = flops + price * source + bound.togo[first:, 0]
            promising = rest + paid.min() <= most
            promising &= need[held] + found[0, 0] <= room
            for i in np.flatnonzero(promising):
                fits = (found[:, 0] + need[held][i] <= room) & (paid + rest[i] <= most)
                index = np.flatnonzero(fits)
                if len(index):
                    _step(waiting[first + i][0], found, index, (s, held, 1), source, flops[i])
    for held in range(2):
        if waiting[n][held]:
            labels[n, held] = undominated(np.concatenate(waiting[n][held]))
    return steps_to(needs, room, labels), sure


def _step(
    target: list[np.ndarray],
    found: np.ndarray,
    index: np.ndarray,
    how: tuple[int, int, int],
    more: float,
    flops: float,
) -> None:
    rows = np.empty((len(index), 6))
    rows[:, 0], rows[:, 1] = found[index, 0] + more, found[index, 1] + flops
    rows[:, 2], rows[:, 3], rows[:, 4], rows[:, 5] = how[0], how[1], index, how[2]
    target.append(rows)
