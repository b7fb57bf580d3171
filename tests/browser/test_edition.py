"""The web pages that `python course.py export` writes, opened in a browser without a network.

They are written once, for both languages, by the command itself.
"""

import json
import os
import re
import sys
from importlib import resources
from pathlib import Path

import pytest

import course
from course_lib.site.contents import GLOSSARY, LESSONS, edition_of
from support.lab import find_chromium
from support.notebook_rules import HAN
from support.notebooks import CODE, FENCE, FORMULA, lessons

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LANGUAGES = ("zh", "en")
HTML_LANG = {"zh": "zh-CN", "en": "en"}
MEBIBYTES = 25  # of one language
PAGES = ["index", *(lesson.name for lesson in (*LESSONS, GLOSSARY) if lesson.exists)]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
SMALLEST = 11  # pixels, of any word on a phone

each_page = pytest.mark.parametrize(
    ("language", "name"), [(one, name) for one in LANGUAGES for name in PAGES]
)

STATES = """
() => [...document.querySelectorAll('.course-static')]
  .map(place => JSON.parse(place.querySelector('script').textContent))
"""
# The smallest words that can be seen, in pixels; those of pictures are drawn with 12 to 358.
SMALL_WORDS = """
() => {
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const around = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
    if (!words || !around.checkVisibility() || around.closest('script, style')) continue;
    found.set(parseFloat(getComputedStyle(around).fontSize), words.slice(0, 40));
  }
  for (const image of document.images)
    if (image.checkVisibility()) found.set(12 * image.clientWidth / 358, image.alt.slice(0, 40));
  return [...found.entries()];
}
"""
TOO_WIDE = """
() => [...document.querySelectorAll('body *')].filter(part =>
  part.getBoundingClientRect().right > innerWidth + 1 && part.checkVisibility() &&
  !part.closest('.course-scroll, pre, math, .course-picture')).map(part =>
  `${part.tagName} ${part.className} ${part.textContent.slice(0, 40)}`)
"""


@pytest.fixture(scope="module")
def edition(tmp_path_factory) -> Path:
    """Both languages, written by the command, in the environment of these tests.

    The variable ``COURSE_EDITION`` names one that is there already.
    """
    if there := os.environ.get("COURSE_EDITION"):
        return Path(there)
    if find_chromium() is None:
        pytest.skip("no Chromium")  # the fixture `browser` says more
    folder = tmp_path_factory.mktemp("edition")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "prepare", lambda root, requirements: None)
        patch.setattr(course, "python_of", lambda root: Path(sys.executable))
        assert course.main(["export", "--lang", "both", "--to", str(folder)]) == 0
    return folder


@pytest.fixture
def opened(browser, edition):
    """Opens a page; what its console says or it asks of the network fails the test."""
    contexts, complaints = [], []

    def open_page(language: str, name: str, size=DESK, scripts=True, **options):
        context = browser.new_context(viewport=size, java_script_enabled=scripts, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda ask: complaints.append(ask.url) if not local(ask.url) else None)
        page.on("requestfailed", lambda ask: failed(ask, complaints))
        page.goto((edition / language / f"{name}.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def local(address: str) -> bool:
    return address.startswith(("file:", "data:"))


def failed(request, complaints: list[str]) -> None:
    if "ERR_ABORTED" not in (request.failure or ""):  # the page was left before it came
        complaints.append(f"failed: {request.url}")


def words(page, selector: str = "main") -> str:
    """What can be read, without code and quoted errors, which both languages share."""
    return page.evaluate(
        """selector => {
          const there = document.querySelector(selector).cloneNode(true);
          const shared = 'pre, code, script, noscript, style, .course-exhibit details';
          there.querySelectorAll(shared).forEach(part => part.remove());
          return there.innerText;
        }""",
        selector,
    )


# --- what is there ------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_is_a_page_for_every_lesson_in_each_language(edition, language, report):
    folder = edition / language
    assert sorted(path.stem for path in folder.glob("*.html")) == sorted(PAGES)
    size = sum(path.stat().st_size for path in folder.rglob("*")) / 2**20
    report(f"web edition, {language}: {size:.1f} MiB")
    assert size < MEBIBYTES


@each_page
def test_a_page_is_whole(language, name, opened):
    page = opened(language, name)
    assert page.evaluate("document.documentElement.lang") == HTML_LANG[language]
    broken = "[...document.images].filter(i => !i.alt || (i.complete && !i.naturalWidth)).length"
    assert page.evaluate(broken) == 0
    said = words(page)
    if language == "en":
        assert re.findall(HAN, said) == [] or name == GLOSSARY.name
    else:
        said = re.sub(r"\w+(?:Error|Exception): .*", "", said)  # quoted, as torch says it
        assert re.findall(r"\b(?:the|and|is|with)\b", said) == [] or name == GLOSSARY.name
    assert re.findall(r"\\\w+\{|\$[^$\n]+\$", said) == []
    flat = "[...document.querySelectorAll('math')].filter(m => !m.getClientRects().length && " \
        "!m.closest('details:not([open])')).length"  # fmt: skip
    assert page.evaluate(flat) == 0


@each_page
def test_nothing_is_asked_that_cannot_be_done_here(language, name, opened):
    page = opened(language, name)
    said = words(page)
    vain = r"Shift.Enter|run (the|this) cell|buttons? (above|below)|运行(这个|一个)单元格|面的按钮"
    assert re.findall(vain, said) == []
    assert "✏️" not in said


@pytest.mark.parametrize("lesson", lessons(), ids=str)
def test_a_lesson_has_its_figures_formulas_and_solutions(lesson, opened):
    page = opened("en", str(lesson))
    pictures = [o for cell in lesson.code for o in cell.outputs if "image/png" in o.get("data", {})]
    shown = page.locator("figure img, .course-static .course-picture img")
    assert shown.count() == len(pictures) > 0
    prose = [CODE.sub("", FENCE.sub("", en.source)) for _, en in lesson.pairs()]
    formulas = [formula for words in prose for formula in FORMULA.findall(words)]
    assert page.locator("math").count() == len(formulas)
    assert page.locator("details:has(pre)").count() >= len(lesson.exercises()) >= 2


@each_page
def test_every_link_leads_to_a_page_and_a_place_in_it(language, name, edition, opened):
    page = opened(language, name)
    links = page.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))")
    assert links
    for link in links:
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = edition / language / (file or f"{name}.html")
        assert target.exists(), link
        if anchor:
            assert f'id="{anchor}"' in target.read_text("utf-8"), link


def test_folded_parts_open(opened):
    page = opened("en", LESSONS[0].name, scripts=False)
    folded = page.locator("details").all()
    assert len(folded) > 3
    for part in folded:
        inside = part.locator("> :not(summary)").first
        assert not inside.is_visible()
        part.locator("> summary").click()
        assert inside.is_visible() and inside.inner_text().strip()


def test_each_exhibit_of_the_museum_shows_a_recorded_run(opened):
    page = opened("en", "03_torch_utils_checkpoint", scripts=False)
    drawers = page.locator(".course-exhibit").all()
    assert len(drawers) == 28
    for drawer in drawers[1], drawers[9]:
        drawer.locator("> summary").click()
        assert "same_gradients" not in drawer.inner_text()  # the answer is folded once more
        drawer.locator("> details > summary").click()
        assert "recorded" in drawer.inner_text() or "record of a run" in drawer.inner_text()
        assert "same_gradients" in drawer.inner_text() and "cure" in drawer.inner_text()


# --- every control, to both ends ----------------------------------------------------------------


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", PAGES)
def test_every_slider_goes_to_both_ends(name, language, size, opened):
    page = opened(language, name, size)
    for number, state in enumerate(page.evaluate(STATES)):
        place = page.locator(".course-static").nth(number)
        for i, slider in enumerate(place.locator("input").all()):
            if slider.get_attribute("type") == "checkbox":
                for at in (1, 0):
                    slider.set_checked(bool(at))
                    state["index"][i] = at
                    shows(place, state, language, size)
                continue
            last = int(slider.get_attribute("max"))
            for key, at in (("Home", 0), ("ArrowRight", min(1, last)), ("End", last)):
                slider.press(key)
                state["index"][i] = at
                shows(place, state, language, size)
    if name not in ("index", GLOSSARY.name):
        assert page.evaluate(STATES)


def shows(place, state, language: str, size) -> None:
    """The picture and the words of where the sliders stand."""
    key = f"{language} {','.join(map(str, state['index']))}"
    drawn = state["pictures"][key]
    picture = (drawn["narrow"] if size is PHONE else drawn)["src"]
    image = place.locator(f'.course-picture img[src="{picture}"]')
    image.wait_for()
    assert image.get_attribute("alt") == drawn["words"][0]
    assert place.locator(".course-words").inner_text().replace("\n", " ") == \
        drawn["words"][0].replace("\n", " ")  # fmt: skip
    box = image.evaluate("image => [image.naturalWidth, image.getBoundingClientRect().width]")
    assert box[0] and box[1] <= size["width"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", [lesson.name for lesson in LESSONS if lesson.exists])
def test_without_scripts_buttons_step_through_to_both_ends(name, language, opened):
    page = opened(language, name, PHONE, scripts=False)
    stood = page.locator(".course-steps")
    assert stood.count()
    for size in (PHONE, DESK):
        page.set_viewport_size(size)
        for steps in stood.all():
            for group in steps.locator("fieldset").all():
                buttons = group.locator("input")
                for button in (buttons.first, buttons.last):
                    button.check()
                    (figure,) = steps.locator("figure:visible").all()
                    chosen = [one.get_attribute("id").rsplit("-", 2)[1:]
                              for one in steps.locator("input:checked").all()]  # fmt: skip
                    assert figure.get_attribute("class").split() == [
                        f"at-{i}-{k}" for i, k in chosen
                    ]
                    assert figure.locator("figcaption").inner_text()
                    shown = figure.locator("img").bounding_box()
                    assert shown["width"] <= size["width"] and shown["height"] > 0


def test_a_finger_moves_a_slider(opened):
    page = opened("en", LESSONS[0].name, PHONE, has_touch=True)
    slider = page.locator("input[type=range]").first
    slider.scroll_into_view_if_needed()
    before, box = page.locator(".course-words").inner_text(), slider.bounding_box()
    assert box["height"] >= 24
    page.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    assert page.locator(".course-words").inner_text() != before


def test_the_player_plays(opened):
    page = opened("en", "02_manual_recomputation")
    moment = page.locator("input[name=moment]")
    page.locator("button[data-does=stop]").click()
    page.locator("button[data-does=play]").click()
    page.wait_for_timeout(2000)
    page.locator("button[data-does=play]").click()
    assert int(moment.input_value()) >= 2


# --- on a phone ---------------------------------------------------------------------------------


@each_page
def test_it_can_be_read_on_a_phone(language, name, opened):
    page = opened(language, name, PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate(TOO_WIDE) == []
    small = [(pixels, said) for pixels, said in page.evaluate(SMALL_WORDS) if pixels < SMALLEST]
    assert small == []


# --- around the pages ---------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_way_leads_through_all_pages_and_back(language, opened):
    page = opened(language, "index", PHONE, scripts=False)
    way = ["index"]
    while page.locator("a[rel=next]").count():
        way.append(follow(page, "next"))
    assert way == PAGES
    assert follow(page, "prev") == PAGES[-2]


def follow(page, way: str) -> str:
    """Go there, and tell where that is."""
    link = page.locator(f"a[rel={way}]")
    target = link.get_attribute("href")
    link.click()
    page.wait_for_url(f"**/{target}")
    return Path(target).stem


def test_the_other_language_opens_at_the_same_place(opened):
    page = opened("en", LESSONS[1].name)
    page.locator("main h2").nth(2).scroll_into_view_if_needed()
    page.evaluate("document.querySelectorAll('main h2')[2].scrollIntoView()")
    anchor = page.locator("main h2").nth(2).get_attribute("id")
    page.locator(".course-other").evaluate("link => link.click()")
    page.wait_for_url("**/zh/**")
    assert page.url.split("/")[-2] == "zh" and page.locator(f'[id="{anchor}"]').count() == 1
    assert page.evaluate("location.hash") == f"#{anchor}"
    assert abs(page.locator(f'[id="{anchor}"]').bounding_box()["y"]) < 50


def test_the_first_page_leads_to_the_readers_language(browser, edition):
    for locale, language in (("zh-CN", "zh"), ("de-DE", "en")):
        context = browser.new_context(locale=locale)
        page = context.new_page()
        page.goto((edition / "index.html").as_uri())
        page.wait_for_url(f"**/{language}/index.html")
        context.close()


@pytest.mark.parametrize("language", LANGUAGES)
def test_search_engines_are_told_what_each_page_is(language, edition, opened):
    seen = set()
    for name in PAGES:
        page = opened(language, name)
        told = page.eval_on_selector_all(
            "head meta[content]",
            "all => all.map(m => [m.getAttribute('property') ?? m.name, m.content])",
        )
        told = dict(told)
        assert told["description"] == told["og:description"] and len(told["description"]) > 5
        for said in (page.title(), told["description"]):
            assert bool(re.search(HAN, said)) == (language == "zh"), said
        home, _, picture = told["og:image"].partition(f"/{language}/")
        assert home == edition_of() and (edition / language / picture).exists()
        seen.add((page.title(), told["description"]))
    assert len(seen) == len(PAGES)


# --- for everybody ------------------------------------------------------------------------------

AXE = resources.files("axe_playwright_python").joinpath("axe.min.js")
CHECK = """
async () => {
  const found = await axe.run(document, {resultTypes: ['violations'], preload: false});
  return found.violations.flatMap(({id, nodes}) =>
    nodes.slice(0, 3).map(node => `${id}: ${node.html.slice(0, 120)}`));
}
"""


@each_page
def test_axe_finds_nothing(language, name, opened):
    page = opened(language, name, PHONE)
    page.evaluate(AXE.read_text("utf-8"))
    for size in (PHONE, DESK):
        page.set_viewport_size(size)
        assert page.evaluate(CHECK) == [], size


def test_a_state_is_what_the_page_shows_and_no_more(edition):
    """A picture that no position shows would be loaded by nobody."""
    for language in LANGUAGES:
        shown = set()
        for file in (edition / language).glob("*.html"):
            text = file.read_text("utf-8")
            shown |= set(re.findall(r"pictures/\w+\.webp", text))
            for state in re.findall(r'<script type="application/json">(.*?)</script>', text):
                assert json.loads(state)["language"] == language
        there = {f"pictures/{path.name}" for path in (edition / language / "pictures").iterdir()}
        assert there == shown
