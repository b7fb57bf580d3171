"""The buttons 中文 · English · both at the top of a lesson.

What they hide and show is done in the page, by ``switch.js`` and ``switch.css``, so that it needs
no kernel and reaches no other notebook; the kernel hears of the choice when it is free, and then
figures and controls follow. ``ipywidgets`` 7, as on Colab, gets plain buttons.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

from ..language import LANGUAGES, choose, language, on_change

SWITCH_WORDS = "中文 · English"  # what the switch is where no widget runs

_PAGE = Path(__file__).parent / "page" / "course-page" / "static"


class Switch(anywidget.AnyWidget):
    """``language``: what is pressed. A change in the page is a choice; a choice made here shows."""

    _esm = (_PAGE / "switch.js").read_text(encoding="utf-8")
    _css = (_PAGE / "switch.css").read_text(encoding="utf-8")
    language = traitlets.Enum(LANGUAGES).tag(sync=True)
    own_id = traitlets.Unicode().tag(sync=True)  # by which the page asks whether it has a kernel

    def __init__(self) -> None:
        super().__init__(language=language())
        self.own_id = self.model_id
        self.observe(self._pressed, "language")
        self._stop_listening = on_change(self._follow)

    def _pressed(self, change: dict[str, Any]) -> None:
        if change["new"] != language():
            choose(change["new"])

    def _follow(self) -> None:
        if self.language != language():
            self.language = language()

    def close(self) -> None:
        """Take the switch off the page; it no longer hears of choices."""
        getattr(self, "_stop_listening", lambda: None)()
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        bundle, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**bundle, "text/plain": SWITCH_WORDS}, metadata


def plain_buttons() -> ipywidgets.ToggleButtons:
    """The same choice without a front end of its own; prose stays in both languages."""
    buttons = ipywidgets.ToggleButtons(
        options=[("中文", "zh"), ("English", "en"), ("中文 + English", "both")],
        value=language(),
        style={"button_width": "9em"},
    )
    buttons.observe(lambda change: choose(change["new"]), "value")
    return buttons


def switch() -> Switch | ipywidgets.ToggleButtons:
    """The buttons 中文 · English · both shown at the top of a lesson, as an ipywidget.

    They act on prose cells (``<span lang="zh"></span>`` marks them), on everything that
    :func:`bilingual_html` made, and, through :func:`on_change`, on figures and controls.
    """
    return plain_buttons() if ipywidgets.__version__.startswith("7.") else Switch()
