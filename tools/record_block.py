"""Film the picture of one block in lesson 01, for the README.

python tools/record_block.py assets/block.gif

Drawn by what draws it in the lesson, with the sliders' and boxes' positions written below.
"""

import base64
import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import course_lib  # noqa: E402, F401  before torch, which reads its log levels while loading

# isort: split
from PIL import Image  # noqa: E402

from course_lib.figures.palette import FAINT, INK  # noqa: E402
from course_lib.figures.panel import width_of_words, write  # noqa: E402
from course_lib.figures.picture import Picture, style  # noqa: E402
from course_lib.language import speaking, text  # noqa: E402
from course_lib.lessons.activation_memory import block_explorer, measure_blocks  # noqa: E402

PAUSE, END = 1100, 2600  # milliseconds
HIGH, POINTS = 0.36, 9.5  # inches of the line below, and its letters
# One move after another: the sequence grows, heads and width, then each box is ticked.
MOVES: tuple[dict, ...] = (
    {}, {"s": 512}, {"a": 8}, {"h": 512}, {"fused_attention": True}, {"fused_dropout": True},
    {"bf16": True}, {"fused_attention": False}, {"a": 4}, {"checkpoint": True}, {"s": 128},
)  # fmt: skip


def export(path: Path) -> None:
    """Write the film, once in English and once in Chinese, as a GIF."""
    explorer = block_explorer(measure_blocks())
    pictures, times = [], []
    for language in ("en", "zh"):
        position = {name: control.start for name, control in explorer.controls.items()}
        for move in MOVES:
            position |= move
            with speaking(language):
                pictures.append(_below(_drawn(explorer, position), _words(explorer, position)))
            times.append(PAUSE)
        times[-1] = END
    palette = pictures[4].quantize(96, dither=Image.Dither.NONE)
    flat = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in pictures]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=times, loop=0)


def _drawn(explorer, position: dict) -> Image.Image:
    explorer.move(**position)
    png = base64.b64decode(explorer._repr_mimebundle_()["image/png"])
    return Image.open(io.BytesIO(png)).convert("RGB")


def _words(explorer, position: dict) -> Image.Image:
    """The line below: sliders with their values, boxes that are ticked in ink, others faint."""
    line, x = Picture((explorer.size[0], HIGH)), 0.2
    with style():
        for name, control in explorer.controls.items():
            value, words = position[name], text(zh=control.zh, en=control.en)
            boxed = isinstance(value, bool)
            shown = (f"[{'x' if value else '  '}] {words}") if boxed else f"{name} = {value}"
            faint = boxed and not value
            write(line, x, HIGH / 2, shown, va="center", fontsize=POINTS,
                  color=FAINT if faint else INK)  # fmt: skip
            x += width_of_words(shown, POINTS) + 0.28
    return Image.open(io.BytesIO(line.png())).convert("RGB")


def _below(picture: Image.Image, line: Image.Image) -> Image.Image:
    both = Image.new("RGB", (picture.width, picture.height + line.height), "white")
    both.paste(picture, (0, 0))
    both.paste(line, (0, picture.height))
    return both


if __name__ == "__main__":
    export(Path(sys.argv[1]))
