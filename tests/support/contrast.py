"""How well words can be read on what is behind them, by the formula of WCAG 2.2."""

from __future__ import annotations

import re

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

ENOUGH = 4.5  # level AA, for text of ordinary size
MOST = 0.9  # of the pixels behind a word: a line may cross it


def luminance(colours: np.ndarray) -> np.ndarray:
    """Relative luminance, (…, 3) in 0…1 → (…)."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(one: str | np.ndarray, other: str | np.ndarray) -> np.ndarray:
    """(lighter + 0.05) / (darker + 0.05), 1 to 21; colours as Matplotlib names them, or in 0…1."""
    a, b = (luminance(np.array(to_rgb(c) if isinstance(c, str) else c)) for c in (one, other))
    return (np.maximum(a, b) + 0.05) / (np.minimum(a, b) + 0.05)


def faint_words(figure: Figure) -> list[str]:
    """The words of a figure that stand out too little from what is drawn behind them."""
    words = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    figure.canvas.draw()
    boxes = [part.get_window_extent() for part in words]
    for part in words:
        part.set_visible(False)
    figure.canvas.draw()
    behind = np.asarray(figure.canvas.buffer_rgba())[::-1, :, :3] / 255
    found = []
    for part, box in zip(words, boxes, strict=True):
        part.set_visible(True)
        (left, bottom), (right, top) = np.maximum(np.floor(box.min), 0), np.ceil(box.max)
        pixels = behind[int(bottom) : int(top), int(left) : int(right)].reshape(-1, 3)
        if not pixels.size:
            continue
        alpha = part.get_alpha() or 1.0
        ink = alpha * np.array(to_rgb(part.get_color())) + (1 - alpha) * pixels
        ratio = np.quantile(contrast(ink, pixels), 1 - MOST)
        if ratio < ENOUGH:
            found.append(f"{part.get_text()!r} {ratio:.2f}")
    return found


def faint_styles(source: str) -> list[str]:
    """The ``style`` attributes in HTML that set a colour without enough of it, or only one of two.

    A colour alone would stand on whatever the theme has behind it, light or dark.
    """
    found = []
    for style in re.findall(r'style="([^"]*)"', source):
        said = dict(re.findall(r"(?:^|;)\s*(color|background(?:-color)?)\s*:\s*(#\w+)", style))
        ink, back = said.get("color"), said.get("background") or said.get("background-color")
        if (ink is None) != (back is None) or (ink and contrast(ink, back) < ENOUGH):
            found.append(style)
    return found
