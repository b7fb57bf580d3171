"""A thousand random moves of the sliders of every explorer that a kernel has on display."""

from __future__ import annotations

import json
from dataclasses import dataclass

from support.notebooks import Kernel

MOVES = 1000
LIMIT_MIB = 50  # of resident memory

_FIND = """\
import gc, json, os, psutil, random
from ipywidgets.widgets.widget import _instances
from course_lib.notebook.explorers import Explorer

explorers = {  # the last of those that a cell made when it ran again
    (explorer._draw.__qualname__, repr([c.start for c in explorer.controls.values()])): explorer
    for explorer in list(_instances.values())
    if isinstance(explorer, Explorer) and explorer.controls
}
explorers = list(explorers.values())
print(json.dumps([explorer._draw.__qualname__ for explorer in explorers]))


def resident():
    gc.collect()
    return psutil.Process().memory_info().rss


def drag(explorer, moves, seed, seen):
    # One slider at a time to any of its positions, as from the browser; how often what is shown
    # then is not what was shown there the last time, or not what a page opened now would get.
    chance, wrong = random.Random(seed), 0
    for _ in range(moves):
        i = chance.randrange(len(explorer.index))
        there = chance.randrange(len(explorer.sliders[i]["labels"]["en"]))
        explorer.index = [there if j == i else at for j, at in enumerate(explorer.index)]
        position, shown = tuple(explorer.index), explorer._shown
        wrong += seen.setdefault(position, hash(shown)) != hash(shown)
        (page,) = explorer.pictures.values()
        wrong += page != shown.in_page()
    return wrong
"""
_MOVE = """\
seen = {{}}
wrong = drag(explorers[{i}], {first}, 0, seen)  # caches fill
before = resident()
wrong += drag(explorers[{i}], {moves}, 1, seen)
print(json.dumps([wrong, len(seen), len(set(seen.values())), (resident() - before) / 2**20]))"""


@dataclass(frozen=True)
class Moved:
    """What came of it. `wrong`: moves after which another position's picture was shown.

    `positions`, `pictures`: how many different ones there were. `grown`: MiB of resident memory.
    """

    name: str
    error: str | None
    wrong: int = 0
    positions: int = 0
    pictures: int = 0
    grown: float = 0

    def complaint(self) -> str | None:
        good = not self.error and not self.wrong and self.grown < LIMIT_MIB and self.pictures > 1
        return None if good else str(self)


def move_sliders(live: Kernel, moves: int = MOVES) -> list[Moved]:
    """Move the sliders of each explorer in turn; an error ends that explorer's moves."""
    moved = []
    for i, name in enumerate(json.loads(live.run_code(_FIND).texts[0])):
        ran = live.run_code(_MOVE.format(i=i, first=moves // 10, moves=moves))
        if ran.error or ran.stderr:
            moved.append(Moved(name, ran.error or ran.stderr))
        else:
            moved.append(Moved(name, None, *json.loads(ran.texts[0])))
    return moved
