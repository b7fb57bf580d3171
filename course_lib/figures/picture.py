"""What all pictures share: size, font, and how one shows itself, also where nothing runs."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import io
import threading
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..paths import ASSETS
from .palette import COLOURS, COMPARED, FAINT, GRID, INK, PHASE_TINTS

SIZE = (8.2, 4.2)  # inches; with DPI, the width of a notebook


DPI = 110

# A phone's screen is 390 pixels wide, of which a page leaves a picture these. The phone has two or
# three dots of its own to each; one and a half are enough to read, and three quarters of the bytes
# of two. An inch of it is smaller than one of a notebook, and words are not.
PHONE_PIXELS, PHONE_INCH, PHONE_DOTS = 358, 92, 1.5
LEAST_POINTS = 9.4  # 12 pixels there


FONT = ASSETS / "fonts" / "CourseSansSC-Regular.otf"


@functools.cache
def font_families() -> list[str]:
    """The bundled font and, for what it lacks, Matplotlib's own; registered on first use."""
    font_manager.fontManager.addfont(FONT)
    return ["Course Sans SC", "DejaVu Sans"]


@functools.cache
def letters_in_font() -> frozenset[str]:
    """The characters that the bundled font has."""
    return frozenset(map(chr, font_manager.get_font(str(FONT)).get_charmap()))


_drawing = threading.RLock()


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for the course, for as long as the ``with`` lasts.

    One thread at a time: Matplotlib's settings are everybody's, and JupyterLab moves sliders on
    another thread than the one that runs cells.
    """
    settings: Any = {
        "font.family": font_families(),
        "font.size": 9.5,
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.labelpad": 5,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": True,
        "axes.axisbelow": True,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "figure.titlesize": 12,
    }
    with _drawing, matplotlib.rc_context(settings):
        yield


def is_narrow(figure: Figure) -> bool:
    """Whether it is to be read on a phone: what is beside each other elsewhere is below there."""
    return figure.get_figwidth() < 5


# A part of a picture that says something when it is touched: left, top, width and height as shares
# of the picture, and the words (zh, en).
Touchable = tuple[tuple[float, float, float, float], tuple[str, str]]


def touchable(
    figure: Figure, box: tuple[float, float, float, float], words: tuple[str, str]
) -> None:
    """Have ``box`` (left, bottom, right, top in inches) say ``words``, where a page can."""
    if isinstance(figure, Picture):
        wide, high = figure.get_size_inches()
        left, bottom, right, top = box
        where = left / wide, 1 - top / high, (right - left) / wide, (top - bottom) / high
        shares = tuple(round(float(share), 4) for share in where)
        figure.touchable.append((shares, words))  # type: ignore[arg-type]


class Picture(Figure):
    """A figure on an opaque white panel, readable on light and dark themes.

    A notebook shows it with its title as alternative text, which is its plain text too; what reads
    no HTML gets the PNG. ``size``: inches.
    """

    def __init__(self, size: tuple[float, float] = SIZE):
        self.touchable: list[Touchable] = []
        super().__init__(figsize=size, dpi=DPI, facecolor="white")
        FigureCanvasAgg(self)

    @classmethod
    def for_phone(cls, size: tuple[float, float]) -> Picture:
        """One as wide as a phone's screen, in place of one of ``size`` inches.

        What draws on it finds less room, and no word in it is smaller than ``LEAST_POINTS``.
        """
        picture = cls((PHONE_PIXELS / PHONE_INCH, 0.8 * size[1] + 1.3))
        picture.set_dpi(PHONE_INCH * PHONE_DOTS)
        return picture

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height in pixels of the page."""
        dots = PHONE_DOTS if is_narrow(self) else 1
        width, height = (round(length / dots) for length in self.bbox.size)
        return width, height

    def clear(self, keep_observers: bool = False) -> None:
        """Empty the figure. Axes are dropped as they are: emptying them first takes 5 ms."""
        self.touchable = []
        for axes in list(self.axes):
            self.delaxes(axes)
        super().clear(keep_observers)

    def draw(self, renderer: Any) -> None:
        # An Axes makes its tick labels as late as here; without one there is nothing to set.
        with style() if self.axes else contextlib.nullcontext():
            super().draw(renderer)

    def png(self) -> bytes:
        """The picture as it is now."""
        from PIL import Image

        canvas = self.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        if is_narrow(self):
            for words in self.findobj(Text):
                words.set_fontsize(max(words.get_fontsize(), LEAST_POINTS))
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        # 256 colours take a third of the bytes and half of the time.
        few = picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        palette = few.getpalette()
        assert palette is not None
        few.putpalette(_with_our_colours(palette))
        file = io.BytesIO()
        few.save(file, "png", compress_level=1)
        return file.getvalue()

    def __str__(self) -> str:
        return self.get_suptitle().replace("\n", " · ") or super().__str__()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        png = base64.b64encode(self.png()).decode()
        width, height = (round(length) for length in self.bbox.size)
        shown = image_html(png, str(self), (width, height))
        return {"text/html": shown, "image/png": png, "text/plain": str(self)}


def image_html(
    png: str, words: str, size: tuple[int, int] | None = None, beside: int | None = None
) -> str:
    """A picture with ``words`` as its alternative text; where it gets too narrow, it scrolls.

    ``png``: base64. ``size``, ``beside``: pixels, see :func:`picture_widths`.
    """
    shape, width = "", "max-width:100%"
    if size:
        least, most = picture_widths(size, beside)
        shape, width = (
            f'width="{size[0]}" height="{size[1]}" ',
            f"min-width:{least};max-width:{most}",
        )
    return (
        '<div style="overflow-x:auto;width:0;min-width:100%">'
        f'<img src="data:image/png;base64,{png}" alt="{html.escape(words)}" {shape}'
        f'decoding="sync" style="{width};height:auto;border-radius:8px"></div>'
    )


LEAST_WIDTH = 680  # pixels at which the words of a picture of SIZE can still be read


def picture_widths(size: tuple[int, int], beside: int | None = None) -> tuple[str, str]:
    """The least and the greatest width of a picture, in the words of CSS.

    ``size``: its pixels. ``beside``: pixels of the window's height that it leaves to other things;
    below 400 pixels it does not get lower, because some places (Colab) tell nothing useful of the
    window. A reader who zooms in gets a smaller window, in which it has to stay as wide as it was;
    on a phone, which is narrower still, it takes what there is.
    """
    width, height = size
    least = f"min({min(width, LEAST_WIDTH)}px,80vw)"
    if beside is None:
        return least, "100%"
    return least, f"min(100%,calc({width / height:.4f} * max(400px,100vh - {beside}px)))"


def _with_our_colours(palette: list[int]) -> list[int]:
    """The palette with colours that are almost one of ours, or white, set to just that."""
    ours = ["#ffffff", *COLOURS.values(), *COMPARED, *PHASE_TINTS.values()]
    exact = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in ours])
    shades = np.array(palette).reshape(-1, 3)
    apart = np.abs(shades[:, None] - exact).max(2)
    nearest = apart.argmin(1)
    close = apart[np.arange(len(shades)), nearest] <= 3
    shades[close] = exact[nearest[close]]
    return shades.ravel().tolist()
