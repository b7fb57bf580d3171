"""A row of buttons over a picture, each of them over its own bar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ipywidgets

from ..language import on_change
from .explorers import Explorer

STRIP = (0.85, 0.25)  # inches left and right of the bars, and of the buttons above them
_BARE = {"margin": "0", "padding": "0"}


class BarButtons(ipywidgets.VBox):
    """A button for each of ``numbers`` over ``picture``, whose bars leave ``STRIP`` at their sides.

    Who inherits says what a click does, ``press(number)``, and how the buttons look and what they
    are called, ``_name_buttons()``, which is asked anew when the language changes.
    """

    def __init__(self, numbers: Iterable[int], picture: Explorer):
        self.picture = picture
        numbers = list(numbers)
        share = (picture.size[0] - sum(STRIP)) / len(numbers)
        self._buttons = [self._button(number, share) for number in numbers]
        least, most = picture.widths
        margins = [ipywidgets.Box(layout=self._part(margin)) for margin in STRIP]
        row = ipywidgets.HBox(
            [margins[0], *self._buttons, margins[1]],
            layout={
                "width": f"{picture.width}px",
                "min_width": least,
                "max_width": most,
                **_BARE,
            },
        )
        # Buttons and picture scroll together, so that each button stays over its bar.
        above = ipywidgets.Box([row], layout={"margin": "var(--jp-widgets-margin)", "padding": "0"})
        both = ipywidgets.VBox([above, picture], layout={"min_width": least, **_BARE})
        super().__init__([both], layout={"overflow": "auto"})
        self.add_class("course-placement")
        on_change(self._name_buttons)
        self._name_buttons()

    def press(self, number: int) -> None:
        """Do what a click on that button does."""
        raise NotImplementedError

    def _name_buttons(self) -> None:
        raise NotImplementedError

    def _button(self, number: int, inches: float) -> ipywidgets.Button:
        layout = {**self._part(inches), "border": "1px solid transparent"}
        button = ipywidgets.Button(layout=layout)
        button.on_click(lambda _: self.press(number))
        return button

    def _part(self, inches: float) -> dict[str, str]:
        """The layout of what is as wide as so many inches of the picture."""
        return {
            "flex": "0 0 auto",
            "width": f"{100 * inches / self.picture.size[0]:.4f}%",
            "min_width": "0",
            **_BARE,
        }

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        picture = self.picture._repr_mimebundle_()
        return {**bundle, "image/png": picture["image/png"], "text/plain": picture["text/plain"]}
