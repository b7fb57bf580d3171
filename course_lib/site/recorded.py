"""What widgets show, written down for pages that have no kernel.

This runs in the kernel of a lesson, after its cells: an explorer's pictures are drawn at every
position by its own ``frame`` and ``draw``, in the size of a notebook and in that of a phone.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets
from PIL import Image

from ..figures.picture import Picture
from ..language import Language
from ..lessons.torch_checkpoint.museum import Answers, Museum
from ..lessons.torch_checkpoint.recorded import recorded_museum
from ..notebook.explorers import Drawn, Explorer
from ..notebook.predictions import Scoreboard

_living = ipywidgets.widgets.widget._instances  # those not closed, by the names of their models

PICTURES = "pictures"  # the folder beside the pages


def record(names: Iterable[str], folders: Mapping[Language, str]) -> None:
    """Write ``recorded.json``: of each widget, by the name of its model, what a page shows of it.

    ``folders``: by language, where the pages will be; pictures go into a folder in each. A record
    is a dict with either ``html``, ``state`` (of an explorer, as ``explorer.js`` has it), or
    neither where there is nothing to see. What is of no special kind here is left out: its output
    has what is shown instead.
    """
    shown = {name: _living.get(name) for name in names}
    html = {name: words for name, one in shown.items() if (words := _html_of(one)) is not None}
    for chosen, folder in folders.items():
        found: dict[str, dict[str, Any]] = {name: {"html": words} for name, words in html.items()}
        for name, one in shown.items():
            one = getattr(one, "on_a_page", one)
            if isinstance(one, Explorer):
                found[name] = {"state": state_of(one, chosen, Path(folder))}
        Path(folder, "recorded.json").write_text(json.dumps(found), encoding="utf-8")


def _html_of(shown: Any) -> str | None:
    """HTML in both languages."""
    if isinstance(shown, Museum):
        return recorded_museum()
    if isinstance(shown, Answers):
        return shown.table._repr_mimebundle_()["text/html"]
    if isinstance(shown, Scoreboard):
        return ""  # nobody has answered here
    return None


def state_of(explorer: Explorer, chosen: Language, folder: Path) -> dict[str, Any]:
    """An explorer's model as ``explorer.js`` has it, every picture drawn; in one language."""
    phone = Picture.for_phone(explorer.size)
    pictures: dict[str, dict[str, Any]] = {}
    said: dict[str, int] = {}  # by parts of pictures: each sentence stands once
    for position, drawn in explorer.everywhere(chosen):
        words = drawn.words[chosen == "en"]
        pictures[_key(chosen, position)] = {
            "src": _stored(drawn, folder),
            "words": [words, words],
            **_touched(drawn, chosen, said),
        }
    for position, drawn in explorer.everywhere(chosen, phone):
        pictures[_key(chosen, position)]["narrow"] = {
            "src": _stored(drawn, folder),
            **_touched(drawn, chosen, said),
        }
    width, height = phone.shown_size
    narrow = {"width": width, "height": height, "least": "0", "most": "100%"}
    return {
        "sliders": [_in_one_language(slider, chosen) for slider in explorer.sliders],
        "index": list(explorer.index),
        "language": chosen,
        "box": {**explorer.box, "narrow": narrow},
        "played": explorer.played,
        "pictures": pictures,
        "said": list(said),
    }


def _touched(drawn: Drawn, chosen: Language, said: dict[str, int]) -> dict[str, Any]:
    """The parts of a picture that can be touched: where they are, and which sentence they say."""
    parts = [
        [*(round(share, 3) for share in where), said.setdefault(words[chosen == "en"], len(said))]
        for where, words in drawn.parts
    ]
    return {"parts": parts} if parts else {}


def _in_one_language(slider: dict[str, Any], chosen: Language) -> dict[str, Any]:
    words, labels = slider["words"][chosen == "en"], slider["labels"][chosen]
    return {**slider, "words": [words, words], "labels": {chosen: labels}}


def _key(chosen: Language, position: tuple[int, ...]) -> str:
    return f"{chosen} {','.join(map(str, position))}"


def _stored(drawn: Drawn, folder: Path) -> str:
    """Write a picture, once for all positions where it is the same; its address from a page.

    The same pixels as WebP take half the bytes.
    """
    name = f"{PICTURES}/{hashlib.sha256(drawn.png).hexdigest()[:16]}.webp"
    file = folder / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(drawn.png)).convert("RGB")
        picture.save(file, lossless=True, method=2, quality=30)
    return name
