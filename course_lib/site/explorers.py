"""Explorers on a page without a kernel: with scripts as in a notebook, without them by buttons."""

from __future__ import annotations

import html
import itertools
import json
from typing import Any

from ..notebook.explorers import FRONT_END
from ..paths import LIBRARY

NARROW = "(max-width: 600px)"  # as in explorer.js
_EXPORTS = "export default {"


def script() -> str:
    """The front end, as one script that a page from a folder may load, which may load no module."""
    front, exported, _ = FRONT_END.read_text(encoding="utf-8").partition(_EXPORTS)
    assert exported
    mount = (LIBRARY / "site" / "edition.js").read_text(encoding="utf-8")
    return f"(() => {{\n{front}\n{mount}}})();\n"


def explorer_html(state: dict[str, Any], number: int, language: str) -> str:
    """An explorer's place in a page; ``state`` as :func:`recorded.state_of` has it.

    ``number``: which of the page's explorers it is. One without sliders is a picture with a
    caption.
    """
    sliders = state["sliders"]
    if not sliders:
        (drawn,) = state["pictures"].values()
        return _figure(drawn, state["box"])
    shown = json.dumps(state, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<div class="course-static"><script type="application/json">{shown}</script>'
        f"<noscript>{_steps(state, number, language)}</noscript></div>"
    )


def _figure(drawn: dict[str, Any], box: dict[str, Any], name: str = "") -> str:
    said, narrow = html.escape(drawn["words"][0]), box["narrow"]
    kind = f' class="{name}"' if name else ""
    return (
        f'<figure{kind}><picture><source media="{NARROW}" srcset="{drawn["narrow"]["src"]}" '
        f'width="{narrow["width"]}" height="{narrow["height"]}">'
        f'<img src="{drawn["src"]}" alt="{said}" width="{box["width"]}" height="{box["height"]}" '
        f'loading="lazy"></picture><figcaption>{said}</figcaption></figure>'
    )


def _steps(state: dict[str, Any], number: int, language: str) -> str:
    """A radio button for each position of each slider; the style sheet shows its figure."""
    name, sliders = f"explorer-{number}", state["sliders"]
    groups, rules = [], []
    for i, slider in enumerate(sliders):
        buttons = []
        for at, label in enumerate(slider["labels"][language]):
            one = f"{name}-{i}-{at}"
            checked = " checked" if at == state["index"][i] else ""
            buttons.append(
                f'<label><input type="radio" name="{name}-{i}" id="{one}"{checked}>'
                f"{html.escape(label)}</label>"
            )
            rules.append(
                f"#{name}:has(#{one}:checked) figure:not(.at-{i}-{at}) {{ display: none; }}"
            )
        legend = html.escape(slider["words"][0])
        groups.append(f"<fieldset><legend>{legend}</legend>{''.join(buttons)}</fieldset>")
    figures = []
    for place in itertools.product(*(range(len(s["labels"][language])) for s in sliders)):
        if drawn := state["pictures"].get(f"{language} {','.join(map(str, place))}"):
            kinds = " ".join(f"at-{i}-{at}" for i, at in enumerate(place))
            figures.append(_figure(drawn, state["box"], kinds))
    return (
        f'<div class="course-steps" id="{name}"><style>{"".join(rules)}</style>'
        f"{''.join(groups)}{''.join(figures)}</div>"
    )
