"""The course as web pages, each language in a folder of its own; nothing comes from the network.

``python course.py export`` runs this. Each lesson is run once, and what its widgets show is
recorded in its kernel, so that sliders move where there is none.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from PIL import Image

from ..language import Language, choose, text
from ..notebook.explorers import STYLE_SHEET
from ..notebook.page_style import STYLE as PAGE_STYLE
from ..paths import LIBRARY
from .contents import GLOSSARY, LESSONS, NOTEBOOKS, Lesson, edition_of, lessons
from .explorers import script
from .setting import HTML_LANG, Place, set_page

TITLE = ("梯度检查点：边量边学", "Gradient checkpointing, measured")
ABOUT = (
    "一门动手课：训练时内存花在哪里，梯度检查点省下多少、要花多少，每个数字都是量出来的。",
    "A hands-on course: where training memory goes, what gradient checkpointing saves and what it "
    "costs, every number measured.",
)
INDEX = Lesson("index", *TITLE, 0, ABOUT)
SECONDS_PER_CELL = 600
RECORD = "from course_lib.site.recorded import record\nrecord({names!r}, {where!r})"
STYLE = LIBRARY / "site" / "edition.css"


def export(
    chosen: Sequence[Language], folder: Path, pages: Sequence[Lesson] = (*LESSONS, GLOSSARY)
) -> None:
    """Write every lesson, the glossary and a list of them all, in each language that is chosen.

    One language goes to ``folder`` itself, several to a folder in it each, with a page that leads
    to them. Raises ``CellExecutionError`` where a lesson does not run.
    """
    folders = {one: folder / one if len(chosen) > 1 else folder for one in chosen}
    for place in folders.values():
        place.mkdir(parents=True, exist_ok=True)
        (place / "explorer.js").write_text(script(), encoding="utf-8")
    order = [INDEX, *(page for page in pages if page.exists)]
    cards = dict.fromkeys(chosen, "")
    for page in [*order[1:], INDEX]:  # the list last: it is announced with a lesson's picture
        started = time.perf_counter()
        print(f"{page.name} …", end=" ", flush=True)
        ran = None if page is INDEX else run(page, folders)
        for one, place in folders.items():
            choose(one)
            i = order.index(page)
            around = order[i - 1] if i else None, (*order, None)[i + 1]
            others = [other for other in chosen if other != one]
            notebook, recorded = ran[one] if ran else (_index(), {})
            where = Place(page, one, others, *around, cards[one])
            whole, sheets, picture = set_page(notebook, recorded, where)
            if picture:
                Image.open(place / picture).save(place / f"{page.name}.png")
                cards[one] = cards[one] or f"{page.name}.png"
            (place / f"{page.name}.html").write_text(whole, encoding="utf-8")
            ours = (PAGE_STYLE, STYLE_SHEET.read_text("utf-8"), STYLE.read_text("utf-8"))
            (place / "style.css").write_text("\n".join([*sheets, *ours]), encoding="utf-8")
        print(f"{time.perf_counter() - started:.1f} s", flush=True)
    if len(chosen) > 1:
        (folder / "index.html").write_text(_chooser(chosen), encoding="utf-8")


def stored(lesson: Lesson) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{lesson.name}.ipynb", as_version=4)


def run(
    lesson: Lesson, folders: Mapping[Language, Path]
) -> dict[Language, tuple[NotebookNode, dict[str, Any]]]:
    """The lesson after one run, and what its widgets show, in each language, see :func:`record`.

    So all languages tell of the same measurements. What a cell prints is in one language only: it
    is that of the run, which is in the first language, and for English what is stored.
    """
    notebook, first = stored(lesson), next(iter(folders))
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=SECONDS_PER_CELL,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    )
    with client.setup_kernel(env={**os.environ, "COURSE_LANG": first}):
        for place, cell in enumerate(notebook.cells):
            client.execute_cell(cell, place)
        names = [name for cell in notebook.cells for name in models_of(cell)]
        where = {one: str(folder.resolve()) for one, folder in folders.items()}
        notebook.cells.append(nbformat.v4.new_code_cell(RECORD.format(names=names, where=where)))
        client.execute_cell(notebook.cells[-1], len(notebook.cells) - 1)
        notebook.cells.pop()
    found = {}
    for one, folder in folders.items():
        file = folder / "recorded.json"
        spoken = notebook if one == first else _with_stored_prints(notebook, stored(lesson))
        found[one] = copy.deepcopy(spoken), json.loads(file.read_text("utf-8"))
        file.unlink()
    return found


def _with_stored_prints(notebook: NotebookNode, before: NotebookNode) -> NotebookNode:
    """The notebook as it ran, with what its cells print as it is stored, in English."""
    spoken = copy.deepcopy(notebook)
    for cell, old in zip(spoken.cells, before.cells, strict=True):
        for i, output in enumerate(cell.get("outputs", [])):
            if output.output_type == "stream" and i < len(old.outputs):
                cell.outputs[i] = old.outputs[i]
    return spoken


def models_of(cell: NotebookNode) -> list[str]:
    """The names of the widgets that a cell's outputs show."""
    views = (
        output.get("data", {}).get("application/vnd.jupyter.widget-view+json")
        for output in cell.get("outputs", [])
    )
    return [view["model_id"] for view in views if view]


def _index() -> NotebookNode:
    """The list of lessons, as a notebook like the others."""
    table = lessons()._repr_mimebundle_()["text/html"]
    about = text(
        zh="在这里读、在这里拖滑块，什么都不用装。想在自己的机器上量，请下载课程，运行 "
        "`python course.py`。",
        en="Read it here and drag its sliders, with nothing installed. To measure on your own "
        "machine, get the course and run `python course.py`.",
    )
    cell = nbformat.v4.new_markdown_cell
    title = f"# {TITLE[0]} · {TITLE[1]}"
    return nbformat.v4.new_notebook(cells=[cell(title), cell(text(zh=ABOUT[0], en=ABOUT[1])),
                                           cell(about), cell(table)])  # fmt: skip


def _chooser(chosen: Sequence[Language]) -> str:
    """The page that leads to the languages, and on to the reader's where scripts run."""
    names = {"zh": "中文", "en": "English"}
    links = "".join(
        f'<p><a href="{one}/index.html" lang="{HTML_LANG[one]}">{names[one]}</a></p>'
        for one in chosen
    )
    go = (
        "location.replace((navigator.language.startsWith('zh') ? 'zh' : 'en') + '/index.html')"
        if set(chosen) == {"zh", "en"} else ""
    )  # fmt: skip
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{TITLE[1]} · {TITLE[0]}</title><meta name="description" content="{ABOUT[1]}">'
        f'<meta property="og:image" content="{edition_of()}/en/{LESSONS[0].name}.png">'
        f"<script>{go}</script></head><body><main><h1>{TITLE[1]}</h1>"
        f'<p lang="zh-CN">{TITLE[0]}</p>{links}</main></body></html>'
    )


if __name__ == "__main__":
    spoken: dict[str, list[Language]] = {"zh": ["zh"], "en": ["en"], "both": ["zh", "en"]}
    try:
        export(spoken[sys.argv[1]], Path(sys.argv[2]))
    except CellExecutionError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit(130)
