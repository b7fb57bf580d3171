"""The course as web pages, in one language or in both: no JavaScript, nothing from the network.

``python course.py export`` runs this. Stored outputs are those of a run in English, so that for
Chinese, and for both, the lessons are run again: figures and messages speak as the prose does.
"""

from __future__ import annotations

import html
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import nbformat
from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from .contents import GLOSSARY, LESSONS, NOTEBOOKS, Lesson, lessons
from .language import SWITCH_WORDS, Language, choose, text
from .page_style import STYLE as PAGE_STYLE

TITLE = ("梯度检查点：边量边学", "Gradient checkpointing, measured")
HTML_LANG = {"zh": "zh-CN", "en": "en", "both": "zh-CN"}
SECONDS_PER_CELL = 600
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
STYLE = """
main { max-width: 60rem; margin: 0 auto; padding: 0 1rem 4rem; }
nav { padding: 1rem 0.6rem; font: 0.9rem var(--jp-ui-font-family); }
nav a { color: var(--jp-content-link-color); margin-right: 1.5rem; }
figure { margin: 0.5rem 0; }
figure img { max-width: 100%; height: auto; }
"""


class _Renderer(IPythonRenderer):
    """Formulas as MathML, which browsers draw by themselves."""

    def inline_math(self, body: str) -> str:
        return convert(body)

    def block_math(self, body: str) -> str:
        return convert(body, display="block")


class _Exporter(HTMLExporter):
    exclude_input_prompt = exclude_output_prompt = True

    def default_filters(self) -> Any:
        yield from super().default_filters()
        yield (
            "markdown2html",
            lambda source: MarkdownWithMath(_Renderer(escape=False)).render(source),
        )


def export(chosen: Language, folder: Path, pages: Sequence[Lesson] = (*LESSONS, GLOSSARY)) -> None:
    """Write every lesson, the glossary and a list of them all to ``folder``.

    Raises ``CellExecutionError`` where a lesson does not run.
    """
    choose(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, "index", TITLE, _index(), chosen)
    for lesson in pages:
        if not lesson.exists:
            continue
        print(f"{lesson.name} …", end=" ", flush=True)
        started = time.perf_counter()
        notebook = stored(lesson)
        if chosen != "en":
            _run(notebook, chosen)
        write(folder, lesson.name, (lesson.zh, lesson.en), notebook, chosen)
        print(f"{time.perf_counter() - started:.1f} s", flush=True)


def stored(lesson: Lesson) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{lesson.name}.ipynb", as_version=4)


def _run(notebook: NotebookNode, chosen: Language) -> None:
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=SECONDS_PER_CELL,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    ).execute(env={**os.environ, "COURSE_LANG": chosen})


def _index() -> NotebookNode:
    """The list of lessons, as a notebook like the others."""
    table = lessons()._repr_mimebundle_()["text/html"]
    zh = "这是只能读的版本，滑块停在起点。想自己拖、自己量，请下载课程，运行 `python course.py`。"
    en = (
        "This edition is for reading; its sliders stand where they start. To drag them and to "
        "measure for yourself, get the course and run `python course.py`."
    )
    cell = nbformat.v4.new_markdown_cell
    return nbformat.v4.new_notebook(
        cells=[
            cell(f"# {TITLE[0]} · {TITLE[1]}"),
            cell(zh, metadata={"tags": ["zh"]}),
            cell(en, metadata={"tags": ["en"]}),
            cell(table),
        ]
    )


def write(
    folder: Path, name: str, title: tuple[str, str], notebook: NotebookNode, chosen: Language
) -> None:
    """Write one page, and the style sheet that all pages share."""
    page, _ = _Exporter().from_notebook_node(readable(notebook, chosen))
    soup = BeautifulSoup(page, "html.parser")
    sheets = [sheet.extract().get_text() for sheet in soup("style")]
    (folder / "style.css").write_text("\n".join([*sheets, PAGE_STYLE, STYLE]), encoding="utf-8")
    sheet = soup.new_tag("link", attrs={"rel": "stylesheet", "href": "style.css"})
    _part(soup, "head").append(sheet)
    for script in soup("script"):
        script.decompose()
    _part(soup, "html")["lang"] = HTML_LANG[chosen]
    _part(soup, "head > title").string = text(zh=title[0], en=title[1])
    _keep_language(soup, chosen)
    for link in soup.select("a[href]"):
        link["href"] = re.sub(r"^([\w.-]+)\.ipynb(?=$|#)", r"\1.html", str(link["href"]))
    _part(soup, "main").insert(0, _navigation(soup, name))
    (folder / f"{name}.html").write_text(str(soup), encoding="utf-8")


def _part(soup: BeautifulSoup, name: str) -> Tag:
    """The one element of that kind, which every page of the exporter has."""
    (found,) = soup.select(name)
    return found


def readable(notebook: NotebookNode, chosen: Language) -> NotebookNode:
    """``notebook`` without cells in another language, and without what needs a kernel."""
    other = {"zh": "en", "en": "zh"}.get(chosen)
    notebook.cells = [cell for cell in notebook.cells if other not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_still, cell.outputs) if output is not None]
    return notebook


def _still(output: NotebookNode) -> NotebookNode | None:
    """An output as it looks where no widget runs; None where nothing is left of it.

    A picture gets its words as a caption and as what a screen reader says.
    """
    data = output.get("data")
    if data is None:
        return output
    data.pop(WIDGET_VIEW, None)
    words = data.get("text/plain", "")
    if set(data) == {"text/plain"} and words in ("", SWITCH_WORDS):
        return None
    if "image/png" in data and "text/html" not in data:
        said, picture = html.escape(words), data.pop("image/png").replace("\n", "")
        data["text/html"] = (
            f'<figure><img alt="{said}" src="data:image/png;base64,{picture}">'
            f"<figcaption>{said}</figcaption></figure>"
        )
    return output


def _keep_language(soup: BeautifulSoup, chosen: Language) -> None:
    """Take the other language out of the page, or, with both, say which part is in which."""
    for marker in soup.select(".jp-MarkdownOutput p:has(> span[lang]:empty)"):
        marker.decompose()
    for language in ("zh", "en"):
        if chosen == "both":
            for cell in soup.select(f".celltag_{language}"):
                cell["lang"] = language
        elif language != chosen:
            for part in soup.select(f"body [lang={language}], body .course-between"):
                part.decompose()


def _navigation(soup: BeautifulSoup, name: str) -> Tag:
    """The way to the list of lessons and to the glossary."""
    words = {
        "index": text(zh="目录", en="Contents"),
        GLOSSARY.name: text(zh=GLOSSARY.zh, en=GLOSSARY.en),
    }
    navigation = soup.new_tag("nav")
    for target, said in words.items():
        if target != name:
            link = soup.new_tag("a", attrs={"href": f"{target}.html"})
            link.string = said
            navigation.append(link)
    return navigation


if __name__ == "__main__":
    try:
        export(cast(Language, sys.argv[1]), Path(sys.argv[2]))
    except CellExecutionError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit(130)
