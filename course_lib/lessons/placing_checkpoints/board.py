"""A puzzle to be solved by clicking layers, or by typing the plan: each follows the other."""

from __future__ import annotations

import ast
import html
from typing import Any

import ipywidgets

from ...language import on_change, text
from ...notebook.checking import Wrong
from ...notebook.explorers import Explorer
from ...plans.plan import Part, Plan
from ...plans.planners import Best
from .checkers import check_puzzle, plan_from, puzzle
from .placement import Placement

_BARE = {"margin": "0.3em 0"}


class PuzzleBoard(ipywidgets.VBox):
    """Puzzle 1 to 4 as a :class:`Placement` with the plan as text, and a button that checks it.

    ``plan``: what the board shows. A nested plan can only be typed. Raises ``ValueError`` for
    another number.
    """

    def __init__(self, number: int):
        self.number = number
        posed = puzzle(number)
        # Of Revolve's plan nobody claims that none needs fewer FLOPs.
        least = 0 if number == 4 else posed.optimum.recomputed_flops
        best = Best(posed.best, posed.optimum, least)
        self.placement = Placement(posed.chain, posed.budget, best, posed.method)
        self.typed = ipywidgets.Text(continuous_update=False, layout={"width": "100%"})
        self.button = ipywidgets.Button()
        self.verdict = ipywidgets.HTML()
        self.button.on_click(lambda _: self.check())
        self.placement.changed = self._follow
        self.typed.observe(self._read, "value")
        row = ipywidgets.HBox([self.typed, self.button], layout=_BARE)
        super().__init__([self.placement, row, self.verdict])
        on_change(self._speak)
        self._speak()
        self._follow()

    @property
    def plan(self) -> Plan:
        return self.placement.plan

    @property
    def on_a_page(self) -> Explorer:
        """What stands in its place where there is no kernel: as it is, so that no plan is given."""
        return self.placement.picture

    def check(self) -> None:
        """Show the verdict on what the board shows."""
        self.verdict.value = check_puzzle(self.number, self.plan)._repr_mimebundle_()["text/html"]

    def _speak(self) -> None:
        self.button.description = text(zh="检查", en="check")
        self.typed.placeholder = text(zh="方案，例如 (0, (1, 2), 3)", en="a plan, (0, (1, 2), 3)")

    def _follow(self) -> None:
        """The text of what the buttons show."""
        self.verdict.value = ""
        written = written_plan(self.plan.parts)
        if self.typed.value != written:
            self.typed.value = written

    def _read(self, change: Any) -> None:
        """The buttons and the picture for what was typed; or what is wrong with it."""
        if change["new"] == written_plan(self.plan.parts):
            return
        count = len(self.placement.chain)
        try:
            plan = plan_from(ast.literal_eval(change["new"]), count)
        except Wrong as wrong:
            self.verdict.value = html.escape(text(zh=wrong.args[0], en=wrong.args[1]))
            return
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            self.verdict.value = text(
                zh="读不懂：括号或逗号对不上。", en="Cannot be read: check parentheses and commas."
            )
            return
        self.placement.show(plan)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        shown = self.placement._repr_mimebundle_()
        return {**bundle, "image/png": shown["image/png"], "text/plain": shown["text/plain"]}


def written_plan(parts: tuple[Part, ...]) -> str:
    """The parts as Python writes them: ``(0, (1,), (2, 3))``."""
    return repr(parts)
