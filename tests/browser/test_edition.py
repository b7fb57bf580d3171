"""The web pages that `python course.py export` writes, opened in a browser without a network."""

import re
import sys
from pathlib import Path

import pytest
from notebook_rules import HAN

import course
from course_lib import edition
from course_lib.contents import GLOSSARY, LESSONS
from course_lib.language import choose, language
from notebooks import CODE, FENCE, FORMULA, lessons

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGES = ["index", *(lesson.name for lesson in (*LESSONS, GLOSSARY) if lesson.exists)]


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> Path:
    """The English edition, written by the command itself, in the environment of these tests."""
    folder = tmp_path_factory.mktemp("edition") / "en"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "prepare", lambda root, requirements: None)
        patch.setattr(course, "python_of", lambda root: Path(sys.executable))
        assert course.main(["export", "--lang", "en", "--to", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def chinese(tmp_path_factory) -> Path:
    """Lesson 00, which is run again for it."""
    folder, before = tmp_path_factory.mktemp("zh"), language()
    edition.export("zh", folder, pages=LESSONS[:1])
    choose(before)
    return folder


@pytest.fixture
def opened(browser):
    """Opens a page; what its console says or it asks of the network fails the test."""
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(asked.url) if not local(asked.url) else None)
    page.on("requestfailed", lambda asked: complaints.append(f"failed: {asked.url}"))

    def open_page(file: Path):
        page.goto(file.as_uri())
        return page

    yield open_page
    page.close()
    assert complaints == []


def local(address: str) -> bool:
    return address.startswith(("file:", "data:"))


def words(page, selector: str = "main") -> str:
    """What can be read, without code and headings, which both languages share."""
    return page.evaluate(
        """selector => {
          const there = document.querySelector(selector).cloneNode(true);
          there.querySelectorAll('h1,h2,h3,h4,pre,code').forEach(part => part.remove());
          return there.innerText;
        }""",
        selector,
    )


def pages_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.html"))


def test_there_is_a_page_for_every_lesson(english):
    assert [path.stem for path in pages_of(english)] == sorted(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(name, english, opened):
    page = opened(english / f"{name}.html")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("script").count() == 0
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth || !i.alt).length") == 0
    assert re.findall(HAN, words(page)) == []
    assert re.findall(r"\\\w+\{|\$[^$\n]+\$", words(page)) == []
    flat = "[...document.querySelectorAll('math')].filter(m => !m.getClientRects().length).length"
    assert page.evaluate(flat) == 0


@pytest.mark.parametrize("name", PAGES)
def test_folded_parts_open(name, english, opened):
    page = opened(english / f"{name}.html")
    for folded in page.locator("details").all():
        inside = folded.locator("> :not(summary)").first
        assert not inside.is_visible()
        folded.locator("summary").click()
        assert inside.is_visible() and inside.inner_text().strip()


@pytest.mark.parametrize("lesson", lessons(), ids=str)
def test_a_lesson_has_its_figures_formulas_and_solutions(lesson, english, opened):
    page = opened(english / f"{lesson}.html")
    assert page.title() in [known.en for known in LESSONS]
    pictures = [o for cell in lesson.code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert page.locator("figure img").count() == len(pictures) > 0
    prose = [CODE.sub("", FENCE.sub("", en.source)) for _, en in lesson.pairs()]
    formulas = [formula for words in prose for formula in FORMULA.findall(words)]
    assert page.locator("math").count() == len(formulas)
    assert page.locator("details:has(pre)").count() >= len(lesson.exercises()) >= 2


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_page_and_a_place_in_it(name, english, opened):
    page = opened(english / f"{name}.html")
    links = page.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))")
    assert links
    for link in links:
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = english / (file or f"{name}.html")
        assert target.exists(), link
        if anchor:
            assert f'id="{anchor}"' in target.read_text("utf-8"), link


def test_a_lesson_that_is_run_again_speaks_chinese(chinese, opened):
    page = opened(chinese / f"{LESSONS[0].name}.html")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert page.title() == LESSONS[0].zh
    captions = page.locator("figcaption").all_inner_texts()
    assert len(captions) == page.locator("figure img").count() >= 3
    assert all(re.search(HAN, caption) for caption in captions)
    assert page.eval_on_selector_all("figure img", "all => all.map(i => i.alt)") == captions
    assert page.locator("[lang=en]").count() == 0
    assert re.findall(r"\b(?:the|and|is|with)\b", words(page)) == []
    assert "课" in words(opened(chinese / "index.html"))


def test_with_both_languages_each_part_says_which_it_is(tmp_path, opened):
    edition.write(tmp_path, GLOSSARY.name, ("", ""), edition.stored(GLOSSARY), "both")
    page = opened(tmp_path / f"{GLOSSARY.name}.html")
    for tag in ("zh", "en"):
        prose = page.locator(f".celltag_{tag}")
        assert prose.count() > 20
        assert set(prose.evaluate_all("all => all.map(cell => cell.lang)")) == {tag}
        assert prose.first.is_visible()
