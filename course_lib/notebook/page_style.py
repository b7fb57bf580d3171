"""How the page around the course's outputs is set: the style sheet that all front ends share."""

from __future__ import annotations

from ..paths import ASSETS

FILE = ASSETS / "page" / "custom.css"

# CSS. It hides nothing, and acts alike on every lesson that is open.
STYLE = FILE.read_text(encoding="utf-8")
