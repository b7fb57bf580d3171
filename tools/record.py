"""Film lesson 00's slider in real JupyterLab, for the README.

python tools/record.py assets/slider.gif

The film says in its comment which stored picture of the lesson it belongs to, so that a test can
tell when the lesson has moved on.
"""

import io
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from PIL import Image, ImageColor  # noqa: E402

from course_lib.figures.palette import COLOURS  # noqa: E402
from support.lab import Screen, chromium, find_chromium, jupyterlab  # noqa: E402
from support.notebooks import build, lessons  # noqa: E402
from tools.readme import FILMED, filmed  # noqa: E402

PATIENCE = 600_000  # milliseconds
MILLISECONDS, PAUSE = 450, 1800
MARGIN = 8  # pixels


def frames(screen: Screen) -> list[tuple[Image.Image, int]]:
    """Slider and picture, with their times: to the right in English, then back in Chinese.

    The caption below, with the wall times of this one machine, is left out.
    """
    film = []
    (handle,) = screen.handles()
    area = handle.element.evaluate_handle("e => e.closest('.jp-OutputArea-output')").as_element()

    def take(milliseconds: int) -> None:
        screen.settle(quiet=0.3)
        area.scroll_into_view_if_needed()
        box, picture = area.bounding_box(), area.query_selector("img").bounding_box()
        clip = {
            "x": box["x"] - MARGIN,
            "y": box["y"],
            "width": picture["width"] + 2 * MARGIN,
            "height": picture["y"] + picture["height"] - box["y"] + MARGIN,
        }
        shot = screen.page.screenshot(clip=clip)
        film.append((Image.open(io.BytesIO(shot)).convert("RGB"), milliseconds))

    for label, key in (("English", "ArrowRight"), ("中文", "ArrowLeft")):
        screen.choose(label)
        take(PAUSE)
        before = None
        while handle.position != before:
            before = handle.position
            handle.element.press(key)
            take(MILLISECONDS)
        film.pop()  # the last press moved nothing
    return film


def main(path: Path) -> None:
    cells = lessons()[0].cells
    last = next(i for i, cell in enumerate(cells) if FILMED in cell.source)
    with (
        tempfile.TemporaryDirectory() as scratch,
        chromium(find_chromium()) as browser,
        jupyterlab(Path(scratch)) as server,
    ):
        build(server.folder / "97_film.ipynb", *cells[: last + 1])
        screen = Screen.open(browser, server, "97_film")
        screen.page.set_default_timeout(PATIENCE)
        screen.run_all()
        film = frames(screen)
        if faults := screen.faults():
            sys.exit("\n".join(faults))
        screen.close()
    save(film, path)


def save(film: list[tuple[Image.Image, int]], path: Path) -> None:
    """Write a GIF in the colours of all pictures together, those of the roles unchanged."""
    pictures, times = zip(*film, strict=True)
    (width, height), *others = {picture.size for picture in pictures}
    assert not others, "the pictures differ in size"
    together = Image.new("RGB", (width, height * len(pictures)))
    for number, picture in enumerate(pictures):
        together.paste(picture, (0, number * height))
    palette = Image.new("P", (1, 1))
    palette.putpalette([
        *together.quantize(100).getpalette()[:300],
        *(level for colour in COLOURS.values() for level in ImageColor.getrgb(colour)),
    ])  # fmt: skip
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    flat[0].save(path, save_all=True, append_images=flat[1:], duration=list(times), loop=0,
                 comment=filmed(lessons()[0]))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
