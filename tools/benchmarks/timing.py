"""Times of several ways to do the same, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Times:
    """The seconds of each turn."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: Times) -> str:
        """The median of the ratios, turn by turn, with the least and the greatest of them."""
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        return with_spread(ratios, ".2f")


def with_spread(values: Sequence[float], digits: str) -> str:
    """``1.25 (1.20–1.31)``: the median, the least and the greatest of several values."""
    middle, low, high = statistics.median(values), min(values), max(values)
    if len(values) == 1:
        return f"{middle:{digits}}"
    return f"{middle:{digits}} ({low:{digits}}–{high:{digits}})"


def in_turns(
    runs: Mapping[Name, Callable[[], object]],
    turns: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[Name, Times]:
    """Time each of ``runs`` in ``turns`` turns by ``clock``, after one that warms up.

    They take turns so that the machine's moods fall on all alike. Processor time of this process,
    not time on the clock: other processes leave it be. It is the time on the clock where one
    thread does all the work.
    """
    taken: dict[Name, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            begin = clock()
            run()
            if turn:
                taken[name].append(clock() - begin)
    return {name: Times(tuple(seconds)) for name, seconds in taken.items()}
