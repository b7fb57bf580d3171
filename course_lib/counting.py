"""How often the parts of a model run, and how long steps take, one beside the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextlib.contextmanager
def order_of_calls(modules: Iterable[nn.Module]) -> Iterator[list[int]]:
    """The places of ``modules`` in the order in which they run, while the body does.

    One that is in there twice is counted at both of its places. Nothing stays on the modules.
    """
    order: list[int] = []
    with contextlib.ExitStack() as stack:
        for place, module in enumerate(modules):

            def note(*_: Any, place: int = place) -> None:
                order.append(place)

            stack.callback(module.register_forward_pre_hook(note).remove)
        yield order


def seconds_in_turns(
    steps: Sequence[Callable[[], Any]], turns: Iterable[Any], warm_up: int = 0
) -> list[list[float]]:
    """Wall time of each step in each turn, in seconds, without the first ``warm_up`` turns.

    In a turn every step runs once, so that a slow moment of the machine touches all alike.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for number, _ in enumerate(turns):
        for step, found in zip(steps, seconds, strict=True):
            begin = time.perf_counter()
            step()
            if number >= warm_up:
                found.append(time.perf_counter() - begin)
    return seconds
