"""A plan played turn by turn: which layer runs, which segment it stands in, what is in memory.

What it shows is the prediction's own turns, which tests hold to the measured step.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from ...figures.palette import COLOURS, FAINT, GRID, INK
from ...figures.panel import Panel, byte_ruler, title_above, write
from ...figures.words import size_text
from ...language import text
from ...memory.trace import Role
from ...notebook.explorers import Control, Explorer
from ...plans.plan import Chain, Part, Plan, Prediction, Turn, predict
from .plan_strip import AGAIN, KEPT, REST, layers_of, strip_legend

INTERVAL = 900  # milliseconds from one turn to the next
NOW = {"forward": KEPT, "recompute": AGAIN, "backward": COLOURS[Role.GRADIENT]}


@dataclass(frozen=True)
class PlayedTurn:
    """One turn of a plan: the ``at``-th of ``found.moments``."""

    plan: Plan
    chain: Chain
    found: Prediction
    at: int

    @property
    def turn(self) -> Turn:
        return self.found.moments[self.at]


def nested_player(plan: Plan, chain: Chain) -> Explorer:
    """A slider through the turns of one step under ``plan``, which can be played."""
    found = predict(plan, chain)
    turns = tuple(range(len(found.moments)))
    start = max(turns, key=lambda at: found.moments[at].memory)
    control = Control("turn", "时刻", "turn", turns, start, lambda at: f"{at + 1} / {len(turns)}")
    explorer = Explorer(
        [control],
        lambda turn: PlayedTurn(plan, chain, found, turn),
        _draw,
        say_turn,
        size=(8.2, 4.0),
    )
    explorer.played = {"slider": 0, "interval": INTERVAL}
    return explorer


def _draw(figure: Figure, data: PlayedTurn) -> None:
    top = title_above(figure, _title(data))
    width, count = figure.get_figwidth(), len(data.chain)
    deep = _depth(data.plan.parts)
    strip = Panel(figure, (0.85, top - 0.35 - 0.16 * deep, width - 0.25, top), (0, count), (0, 1))
    unit = 1 / strip.height  # of an inch
    floor = 0.16 * deep * unit
    for i in range(count):
        mine = data.turn.layer == i
        corners = [(i + 0.06, floor), (i + 0.06, 1), (i + 0.94, 1), (i + 0.94, floor)]
        strip.areas([corners], [NOW[data.turn.phase] if mine else GRID])
        colour = "white" if mine and data.turn.phase == "backward" else INK  # on purple
        strip.words(
            i + 0.5, (1 + floor) / 2, str(i), ha="center", va="center_baseline", color=colour
        )
    for depth, (begin, end) in _brackets(data.plan.parts):
        y = floor - (0.16 * depth + 0.08) * unit
        strip.line([begin + 0.1, end + 0.9], [y, y], COLOURS[Role.CHECKPOINT], linewidth=2.4)
    _draw_memory(figure, data, top - 0.6 - 0.16 * deep)
    names = [(("其余", "the rest"), REST), (("反向传播", "backward"), NOW["backward"])]
    strip_legend(figure, 0.85, 0.2, names, ("一段", "a segment"))


def _draw_memory(figure: Figure, data: PlayedTurn, top: float) -> None:
    """The most memory in each turn so far; those to come as outlines."""
    turns, most = data.found.moments, data.found.peak * 1.15
    panel = Panel(
        figure, (0.85, 0.75, figure.get_figwidth() - 0.25, top), (0, len(turns)), (0, most)
    )
    panel.y_ruler(*byte_ruler(most))
    panel.x_ruler([], [], text(zh="一步里的各个时刻", en="turns of the step", between=" "))
    shapes, colours = [], []
    for i, turn in enumerate(turns):
        if i > data.at:
            panel.lines([[(i, turn.memory), (i + 1, turn.memory)]], FAINT, 0.8, 2)
            continue
        level = 0
        rest = turn.memory - turn.kept - turn.recomputed
        for size, colour in ((rest, REST), (turn.kept, KEPT), (turn.recomputed, AGAIN)):
            shapes.append([(i, level), (i, level + size), (i + 1, level + size), (i + 1, level)])
            colours.append(colour)
            level += size
    panel.areas(shapes, colours)
    panel.line([data.at + 0.5] * 2, panel.y, INK, 4, linewidth=1, linestyle=(0, (3, 3)))
    write(figure, *panel.place(len(turns), data.found.peak * 1.02),
          text(zh=f"峰值 {size_text(data.found.peak)}", en=f"peak {size_text(data.found.peak)}",
               between=" "), ha="right", va="bottom", color=FAINT)  # fmt: skip


def _depth(parts: tuple[Part, ...]) -> int:
    """How many segments stand in each other."""
    return max((1 + _depth(part) for part in parts if isinstance(part, tuple)), default=0)


def _brackets(parts: tuple[Part, ...], depth: int = 0) -> list[tuple[int, tuple[int, int]]]:
    """Of each segment: how deep it stands, its first and last layer."""
    found = []
    for part in parts:
        if isinstance(part, tuple):
            layers = layers_of(part)
            found += [(depth, (layers[0], layers[-1])), *_brackets(part, depth + 1)]
    return found


def _title(data: PlayedTurn) -> tuple[str, str]:
    turn, count = data.turn, len(data.chain)
    if turn.layer == count:
        zh, en = {"forward": "前向", "backward": "反向"}.get(turn.phase, ""), turn.phase
        return f"损失，{zh}", f"The loss, {en}"
    return {
        "forward": (f"前向传播：第 {turn.layer} 层", f"Forward: layer {turn.layer}"),
        "recompute": (
            f"反向传播途中：重算第 {turn.layer} 层",
            f"Within backward: layer {turn.layer} runs again",
        ),
        "backward": (f"反向传播：第 {turn.layer} 层", f"Backward: layer {turn.layer}"),
    }[turn.phase]


def say_turn(data: PlayedTurn) -> tuple[str, str]:
    """What is in memory in this turn."""
    turn = data.turn
    kept, again = size_text(turn.kept), size_text(turn.recomputed)
    whole = size_text(turn.memory)
    zh, en = _title(data)
    return (
        f"{zh}。此刻内存 {whole}：前向传播保留的 {kept}，重算出来的 {again}，其余是链的输入、"
        "梯度和正在算的值",
        f"{en}. Memory now {whole}: {kept} kept since the forward pass, {again} recomputed; the "
        "rest is the chain's input, gradients and what is being computed",
    )
