"""One page of the web edition, set from a notebook that has run and from what was recorded."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bs4 import BeautifulSoup, NavigableString, Tag
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from ..language import Language, text
from ..notebook.switch import SWITCH_WORDS
from .contents import GLOSSARY, Lesson, edition_of
from .explorers import explorer_html

HTML_LANG = {"zh": "zh-CN", "en": "en"}
NAMES = {"zh": "中文", "en": "English"}
OTHER = {"zh": "en", "en": "zh"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
NOT_DONE = ("✏️", "你的还没有通过检查", "Yours has not passed")  # said to whoever does the exercise
# What cannot be followed without a kernel stands in one of these in a lesson's prose.
KERNEL_ONLY = "span.kernel"


@dataclass(frozen=True)
class Place:
    """Where a page stands: its language and the others there are, and the pages beside it.

    ``card``: a file to announce it with if it has no picture of its own.
    """

    page: Lesson
    language: Language
    others: Sequence[Language]
    before: Lesson | None
    after: Lesson | None
    card: str = ""


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


def set_page(
    notebook: NotebookNode, recorded: dict[str, Any], place: Place
) -> tuple[str, list[str], str]:
    """The page's HTML, the style sheets that it needs, and its first picture's address, if any.

    That picture announces it, and has to be there as a PNG of the page's name too.
    """
    page, _ = _Exporter().from_notebook_node(_readable(notebook, recorded, place))
    soup = BeautifulSoup(page, "html.parser")
    sheets = [sheet.extract().get_text() for sheet in soup.select("head style")]
    for old in soup.select('script:not([type="application/json"]), head > meta, head > link'):
        old.decompose()
    _keep_language(soup, place.language)
    for only in soup.select(KERNEL_ONLY):
        around = only.parent
        only.decompose()
        if around is not None and around.name == "p" and not around.get_text(strip=True):
            around.decompose()
    for link in soup.select("a[href]"):
        link["href"] = re.sub(r"^([\w.-]+)\.ipynb(?=$|#)", r"\1.html", str(link["href"]))
    _let_scroll(soup)
    _without_answers(soup)
    picture = soup.select_one(".course-static, figure img")
    _set_head(soup, place, f"{place.page.name}.png" if picture else place.card)
    _set_navigation(soup, place)
    if soup.select_one(".course-static, .course-other"):
        _part(soup, "body").append(soup.new_tag("script", attrs={"src": "explorer.js"}))
    return str(soup), sheets, _address(picture) if picture else ""


def _address(picture: Tag) -> str:
    """The address of a picture, or of one in an explorer's state."""
    if picture.name == "img":
        return str(picture["src"])
    return re.search(r'"src":"([^"]+)"', str(picture))[1]  # type: ignore[index]


def _part(soup: BeautifulSoup, name: str) -> Tag:
    """The one element of that kind, which every page of the exporter has."""
    (found,) = soup.select(name)
    return found


# --- what a notebook's cells show ---------------------------------------------------------------


def _readable(notebook: NotebookNode, recorded: dict[str, Any], place: Place) -> NotebookNode:
    """``notebook`` without cells in another language, its widgets as they were recorded."""
    other, number = OTHER[place.language], 0
    notebook.cells = [cell for cell in notebook.cells if other not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        shown = []
        for output in cell.outputs:
            number += 1
            if (still := _still(output, recorded, place, number)) is not None:
                shown.append(still)
        cell.outputs = shown
    return notebook


def _still(
    output: NotebookNode, recorded: dict[str, Any], place: Place, number: int
) -> NotebookNode | None:
    """An output as it looks where no kernel runs; None where nothing is left of it."""
    data = output.get("data")
    if data is None:
        return output
    view = data.pop(WIDGET_VIEW, None)
    words = data.get("text/plain", "")
    if words.startswith(NOT_DONE):
        return None
    if view and (known := recorded.get(view["model_id"])) is not None:
        if "state" in known:
            shown = explorer_html(known["state"], number, place.language)
        else:
            shown = known.get("html", "")
        output["data"] = {"text/html": shown}
        return output if shown else None
    if set(data) == {"text/plain"} and words in ("", SWITCH_WORDS):
        return None
    if "text/html" in data:
        data.pop("image/png", None)
    return output


def _keep_language(soup: BeautifulSoup, chosen: Language) -> None:
    """Take the other language out of the page, also out of headings, which have both."""
    for marker in soup.select(".jp-MarkdownOutput p:has(> span[lang]:empty)"):
        marker.decompose()
    for part in soup.select(f"[lang={OTHER[chosen]}], .course-between"):
        if part.name != "html":
            part.decompose()
    for anchor in soup.select("a.anchor-link"):
        anchor.decompose()
    for heading in soup.select(".jp-MarkdownOutput :is(h1, h2, h3, h4)"):
        _halve(heading, chosen)


def _halve(heading: Tag, chosen: Language) -> None:
    parts = list(heading.children)
    for i, part in enumerate(parts):
        if isinstance(part, NavigableString) and " · " in part:
            zh, _, en = part.partition(" · ")
            for other in parts[i + 1 :] if chosen == "zh" else parts[:i]:
                other.extract()
            part.replace_with(zh if chosen == "zh" else en)
            return


def _let_scroll(soup: BeautifulSoup) -> None:
    """Wide tables and code scroll, by keys too."""
    for table in soup.select("main table"):
        name = text(zh="表格", en="table")
        looks = {"class": "course-scroll", "tabindex": "0", "role": "group", "aria-label": name}
        table.wrap(soup.new_tag("div", attrs=looks))
        for head in table("th"):
            if not head.get_text(strip=True):
                head.name = "td"  # heads nothing
    for part in soup.select('main pre, main math[display="block"]'):
        part["tabindex"] = "0"


def _without_answers(soup: BeautifulSoup) -> None:
    """A row for what the reader has typed, which no reader of these pages has."""
    for row in soup.select("tr"):
        cells = [cell.get_text(strip=True) for cell in row("td")]
        if cells and cells[0] in ("你的预测", "your prediction"):
            row.decompose()


# --- what is around them ------------------------------------------------------------------------


def _set_head(soup: BeautifulSoup, place: Place, card: str) -> None:
    page, chosen = place.page, place.language
    home = edition_of()
    title, about = text(zh=page.zh, en=page.en), text(zh=page.able[0], en=page.able[1])
    site = text(zh="梯度检查点：边量边学", en="Gradient checkpointing, measured")
    _part(soup, "html")["lang"] = HTML_LANG[chosen]
    _part(soup, "head > title").string = title if page.name == "index" else f"{title} · {site}"
    stop = {"zh": "。", "en": "."}[chosen]
    about = about[0].upper() + about[1:].rstrip(stop) + stop
    here = f"{home}/{chosen}/{page.name}.html"
    head = _part(soup, "head")
    metas: list[dict[str, str]] = [
        {"charset": "utf-8"},
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
        {"name": "description", "content": about},
        {"property": "og:title", "content": title},
        {"property": "og:description", "content": about},
        {"property": "og:type", "content": "article"},
        {"property": "og:site_name", "content": site},
        {"property": "og:url", "content": here},
        {"property": "og:locale", "content": {"zh": "zh_CN", "en": "en_US"}[chosen]},
        {"name": "twitter:card", "content": "summary_large_image"},
    ]
    if card:
        metas.append({"property": "og:image", "content": f"{home}/{chosen}/{card}"})
    links = [{"rel": "stylesheet", "href": "style.css"}, {"rel": "canonical", "href": here}]
    for other in place.others:
        links.append({"rel": "alternate", "hreflang": HTML_LANG[other],
                      "href": f"{home}/{other}/{page.name}.html"})  # fmt: skip
    for i, attributes in enumerate(metas):
        head.insert(i, soup.new_tag("meta", attrs=attributes))
    for attributes in links:
        head.append(soup.new_tag("link", attrs=attributes))


def _set_navigation(soup: BeautifulSoup, place: Place) -> None:
    main = _part(soup, "main")
    main.insert_before(BeautifulSoup(_top_bar(place), "html.parser"))
    main.insert_after(BeautifulSoup(_bottom_bar(place), "html.parser"))
    entries = [
        f'<li><a href="#{heading["id"]}">{heading.decode_contents()}</a></li>'
        for heading in main.select("h2[id]")
    ]
    first = main.select_one("h1")
    if len(entries) > 2 and first is not None:
        name = text(zh="这一页的目录", en="On this page")
        contents = (
            f'<details class="course-toc"><summary>{name}</summary>'
            f"<ol>{''.join(entries)}</ol></details>"
        )
        first.insert_after(BeautifulSoup(contents, "html.parser"))


def _top_bar(place: Place) -> str:
    links = []
    for target, zh, en in (("index", "目录", "Contents"), (GLOSSARY.name, "术语", "Glossary")):
        if target != place.page.name:
            links.append(f'<a href="{target}.html">{text(zh=zh, en=en)}</a>')
    for other in place.others:
        links.append(
            f'<a class="course-other" lang="{HTML_LANG[other]}" hreflang="{HTML_LANG[other]}" '
            f'href="../{other}/{place.page.name}.html">{NAMES[other]}</a>'
        )
    return _bar(links, text(zh="课程", en="course"))


def _bottom_bar(place: Place) -> str:
    links = []
    for page, way, arrow in ((place.before, "prev", "← {}"), (place.after, "next", "{} →")):
        if page is not None:
            number = f"{page.number} " if page.number.isdecimal() else ""
            name = html.escape(arrow.format(number + text(zh=page.zh, en=page.en)))
            links.append(f'<a rel="{way}" href="{page.name}.html">{name}</a>')
    return _bar(links, text(zh="前后页", en="previous and next"))


def _bar(links: Iterable[str], name: str) -> str:
    return f'<nav class="course-bar" aria-label="{name}">{"".join(links)}</nav>'
