"""Ranks against bytes: what one of 1 … 512 ranks holds, for each thing that can be sharded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ...figures.bars import draw_bars
from ...figures.words import in_language, size_text
from ...memory.trace import MemoryTrace, Role
from ...notebook.explorers import Control, Explorer, progress
from ...one_rank import one_rank_of
from .ranks_table import SHARDED, Sharded, rank_step

RANKS = (1, 8, 64, 512)
SIDES = (False, True)  # without checkpoints, with one per block
Place = tuple[int, Sharded, bool]


@dataclass(frozen=True)
class Ranks:
    """A measured step of one rank at each (ranks, what is sharded, checkpoints)."""

    found: Mapping[Place, MemoryTrace]

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({ranks for ranks, _, _ in self.found}))

    def peak(self, ranks: int, sharded: Sharded, checkpoints: bool) -> int:
        """Bytes, of one rank, workspace left out."""
        return sum(self.at_peak(ranks, sharded, checkpoints).values())

    def at_peak(self, ranks: int, sharded: Sharded, checkpoints: bool) -> dict[Role, int]:
        """Bytes by role. Workspace, which depends on the machine, is left out."""
        roles = self.found[ranks, sharded, checkpoints].at_peak
        return {role: size for role, size in roles.items() if role != Role.WORKSPACE}


def sweep_ranks(ranks: Sequence[int] = RANKS) -> Ranks:
    """Measure a real step of one rank everywhere.

    With nothing sharded, every rank holds the same however many there are (a test measures that),
    so that is measured once.
    """
    found: dict[Place, MemoryTrace] = {}
    first = ranks[0]
    for count in progress(ranks, zh="逐个充当其中一个 rank", en="Being one rank of so many"):
        with one_rank_of(count) as mesh:
            for sharded in SHARDED:
                for side in SIDES:
                    if sharded == "nothing" and count != first:
                        found[count, sharded, side] = found[first, sharded, side]
                    else:
                        found[count, sharded, side] = rank_step(sharded, mesh, side).measured()
    return Ranks(found)


def ranks_explorer(swept: Ranks) -> Explorer:
    """Sliders over the number of ranks and over what is sharded: bytes by role of one rank."""
    ranks = Control("ranks", "rank 数", "ranks", swept.ranks, 8 if 8 in swept.ranks else 1)
    sharded = Control(
        "sharded", "切分什么", "what is sharded", tuple(SHARDED), "parameters", _named
    )

    def frame(ranks: int, sharded: Sharded) -> tuple[Ranks, int, Sharded]:
        return swept, ranks, sharded

    return Explorer([ranks, sharded], frame, _draw, _say, size=(8.2, 3.4))


def _named(sharded: Sharded) -> str:
    return in_language(SHARDED[sharded], between=" · ")


_SIDES = {False: ("不用检查点", "no checkpoints"), True: ("每块一个检查点", "every block")}


def _draw(figure: Figure, data: tuple[Ranks, int, Sharded]) -> None:
    swept, ranks, sharded = data
    rows = [(_SIDES[side], swept.at_peak(ranks, sharded, side)) for side in SIDES]
    alone = [swept.peak(swept.ranks[0], "nothing", side) for side in SIDES]
    most = max(swept.peak(*place) for place in swept.found)
    peak, before = (size_text(n) for n in (swept.peak(ranks, sharded, True), alone[True]))
    title = (
        f"{ranks} 个 rank，{SHARDED[sharded][0]}：每块一个检查点，每个 rank {peak}"
        f"（都不切是 {before}，细框）",
        f"{ranks} rank{'s' * (ranks > 1)}, {_sharded(sharded)}: {peak} each with checkpoints "
        f"({before} unsharded, the frames)",
    )
    draw_bars(figure, rows, title=title, limit=most, outlines=alone)


def _say(data: tuple[Ranks, int, Sharded]) -> tuple[str, str]:
    swept, ranks, sharded = data
    zh, en = [], []
    for side in SIDES:
        roles = swept.at_peak(ranks, sharded, side)
        held = sum(roles[r] for r in (Role.PARAMETER, Role.GRADIENT, Role.OPTIMIZER_STATE))
        total = sum(roles.values())
        zh.append(
            f"{_SIDES[side][0]}：峰值 {size_text(total)}，"
            f"其中参数、梯度和优化器状态 {size_text(held)}"
        )
        en.append(
            f"{_SIDES[side][1]}: peak {size_text(total)}, of which parameters, gradients and "
            f"optimizer state {size_text(held)}"
        )  # fmt: skip
    return (
        f"{ranks} 个 rank，{SHARDED[sharded][0]}。" + "；".join(zh) + "。",
        f"{ranks} rank{'s' * (ranks > 1)}, {_sharded(sharded)}: " + "; ".join(en) + ".",
    )


def _sharded(sharded: Sharded) -> str:
    return f"sharding {SHARDED[sharded][1]}"
