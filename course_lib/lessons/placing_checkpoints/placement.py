"""Lesson 05's placement of one's own: a button per layer."""

from __future__ import annotations

from collections.abc import Callable

from ...figures.palette import INK
from ...language import text
from ...notebook.bar_buttons import BarButtons
from ...notebook.explorers import Explorer
from ...plans.plan import Chain, Plan, predict
from ...plans.planners import Best, best_plan
from .placed import PLACED, WITHOUT_NESTING, Placed, draw_placement, say_placement
from .plan_row import plans_explorer
from .plan_strip import AGAIN, KEPT, Words, layers_of

STATES = ("keep", "begin", "join")


class Placement(BarButtons):
    """A button per layer: keep it, begin a segment with it, or add it to the segment before.

    Below, the peak against the budget and the FLOPs against the best plan. ``budget``: bytes.
    ``best``: another plan to be compared with; ``method``: what that one is called. ``changed``: to
    be called when the plan has changed.
    """

    def __init__(
        self, chain: Chain, budget: int, best: Best | None = None, method: Words = WITHOUT_NESTING
    ):
        self.chain, self.budget, self.method = chain, budget, method
        self.best = best_plan(chain, budget) if best is None else best
        self.states = ["keep"] * len(chain)
        self.changed: Callable[[], None] = lambda: None
        self._nested: Plan | None = None  # a plan that buttons cannot make
        picture = Explorer((), self._frame, draw_placement, say_placement, size=PLACED)
        super().__init__(range(len(chain)), picture)

    @property
    def on_a_page(self) -> Explorer:
        """What a page without a kernel shows: plans worth comparing, one after the other."""
        return plans_explorer(self.chain, self.budget)

    @property
    def plan(self) -> Plan:
        """The plan on show."""
        return self._of_buttons() if self._nested is None else self._nested

    def show(self, plan: Plan) -> None:
        """Show ``plan``, nested ones too; the buttons then tell only its outermost segments."""
        for part in plan.parts:
            segment = isinstance(part, tuple)
            for i, layer in enumerate(layers_of(part)):
                self.states[layer] = ("join" if i else "begin") if segment else "keep"
        self._nested = None if self._of_buttons() == plan else plan
        self._changed()

    def _of_buttons(self) -> Plan:
        parts: list = []
        for i, state in enumerate(self.states):
            if state == "keep":
                parts.append(i)
            elif state == "join" and parts and isinstance(parts[-1], tuple):
                parts[-1] += (i,)
            else:
                parts.append((i,))
        return Plan(tuple(parts))

    def press(self, layer: int) -> None:
        """Move one layer's button on to its next state, as a click does."""
        self._nested = None
        state = STATES.index(self.states[layer])
        self.states[layer] = STATES[(state + 1) % 3]
        if self.states[layer] == "join" and (layer == 0 or self.states[layer - 1] == "keep"):
            self.states[layer] = "keep"  # no segment to join
        for later in range(layer + 1, len(self.states)):  # nor for those after it
            if self.states[later] == "join" and self.states[later - 1] == "keep":
                self.states[later] = "begin"
        self._changed()

    def _changed(self) -> None:
        self._name_buttons()
        self.picture.move()
        self.changed()

    def _name_buttons(self) -> None:
        colours = {"keep": KEPT, "begin": AGAIN, "join": AGAIN}
        names = {
            "keep": text(zh="保留", en="kept"),
            "begin": text(zh="重算，从这里开始一段", en="recomputed, a segment begins here"),
            "join": text(zh="重算，与前一层同属一段", en="recomputed with the layer before"),
        }
        for i, (button, state) in enumerate(zip(self._buttons, self.states, strict=True)):
            button.description = f"┃{i}" if state == "begin" else str(i)
            button.style.button_color = colours[state]
            button.style.text_color = INK
            button.tooltip = f"{i} {self.chain.layers[i].name}: {names[state]}"

    def _frame(self) -> Placed:
        found = predict(self.plan, self.chain)
        return Placed(self.chain, self.budget, self.plan, found, self.best, self.method)
