"""What a lesson looks like at every width, and what it says to those who cannot see it."""

import json
import re

import pytest

from course_lib.notebook import missing_names
from support.lab import Screen
from support.notebooks import FOLDER, build, markdown, prose, python

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PLAYER = """\
import course_lib
from course_lib.notebook.player import Player, film
Player([film(segments=count) for count in (1, 2, 3)])"""
TABLE = """\
from course_lib.site.contents import lessons
from course_lib.language import Table
head = [("模型", "model"), ("检查点", "checkpoints"), *(("大小", "size") for _ in range(6))]
display(Table(head, [[("一个名字很长的模型", "a model with a long name"),
                      ("每 2 块一个", "one per 2 blocks"), *["1.25 GiB"] * 6]]), lessons())"""
PLACEMENT = """\
from course_lib.memory import simulated
from course_lib.models import pyramid
from course_lib.lessons.placing_checkpoints.placement import Placement
from course_lib.plans import chain_of
import torch
with simulated():
    uneven = chain_of(pyramid((4, 4, 6, 2)), torch.empty(16, 1024, 64))
Placement(uneven, 700 * 2**20)"""
LONG = "检查点用计算换内存，前向传播只留下少数几个，丢掉的在反向传播时重算。" * 12
HEADING = (
    "## 一个很长很长的标题，两种语言都要看得到 · A long heading that can be read in both languages"
)

# The middle of each button, and of its bar as the figure places it; pixels.
BUTTONS = """
() => {
  const picture = document.querySelector('.course-placement img').getBoundingClientRect();
  const buttons = [...document.querySelectorAll('.course-placement button')];
  const inch = picture.width / 8.2, bar = inch * (8.2 - 0.85 - 0.25) / buttons.length;
  return buttons.map((button, i) => {
    const {left, width} = button.getBoundingClientRect();
    return [left + width / 2, picture.left + 0.85 * inch + (i + 0.5) * bar];
  });
}
"""
PICTURES = """
() => [...document.querySelectorAll('.course-explorer img')]
  .map(img => img.getBoundingClientRect().width * devicePixelRatio)
"""
# What is cut off: wider than its place, which has no scroll bar, nor has anything around it.
CUT_OFF = """
() => [...document.querySelectorAll('.jp-OutputArea-output *, .jp-MarkdownOutput *')]
  .filter(node => node.checkVisibility() && node.clientWidth && !node.closest('.noUi-target') &&
    node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).overflowX === 'hidden')
  .map(node => `${node.className || node.tagName}: ${node.innerText.slice(0, 60)}`)
"""


@pytest.fixture(scope="module")
def screen(browser, server):
    build(
        server.folder / "97_page.ipynb",
        markdown(HEADING),
        *prose(LONG, LONG),
        python("from course_lib.language import switch\nswitch()", "setup"),
        *map(python, (PLAYER, TABLE, PLACEMENT)),
    )
    opened = Screen.open(browser, server, "97_page")
    opened.run_all()
    opened.choose("中文")
    assert opened.faults() == []
    yield opened
    opened.close()


@pytest.fixture(params=[(900, 720), (853, 480), (1280, 720), (1920, 1080)], ids=lambda s: str(s[0]))
def width(request, screen):
    """The second is a window of 1280 pixels in which the reader has zoomed in to 150 %."""
    width, height = request.param
    screen.page.set_viewport_size({"width": width, "height": height})
    screen.page.wait_for_timeout(300)
    yield width
    screen.page.set_viewport_size({"width": 1280, "height": 720})


def test_each_button_stands_over_its_bar(screen, width):
    places = screen.page.evaluate(BUTTONS)
    assert len(places) == 19
    assert max(abs(button - bar) for button, bar in places) < 1


def test_nothing_is_cut_off(screen, width):
    assert screen.page.evaluate(CUT_OFF) == []


def test_lines_of_prose_are_not_as_wide_as_the_window(screen, width):
    wide = screen.page.evaluate(
        "[...document.querySelectorAll('.jp-MarkdownOutput p')].filter(p => p.checkVisibility())"
        ".map(p => p.getBoundingClientRect().width / parseFloat(getComputedStyle(p).fontSize))"
    )
    assert wide and max(wide) < 48  # Chinese characters, or twice as many Latin letters


def test_no_column_breaks_chinese_to_one_character_a_line(screen, width):
    lines = screen.page.evaluate(
        "[...document.querySelectorAll('.jp-OutputArea-output td, .jp-OutputArea-output th')]"
        ".filter(cell => cell.innerText.trim()).map(cell => {const range = document.createRange();"
        "range.selectNodeContents(cell); const box = range.getBoundingClientRect();"
        "return [cell.innerText, box.width / parseFloat(getComputedStyle(cell).fontSize)]})"
    )
    assert len(lines) > 20
    narrow = [(words, wide) for words, wide in lines if wide < min(4, 0.5 * len(words.strip()))]
    assert narrow == []


def test_figures_do_not_shrink_when_a_reader_zooms_in(screen):
    shown = {}
    for zoom in (1, 1.25, 1.5, 2):
        size = {"width": round(1280 / zoom), "height": round(720 / zoom)}
        screen.page.set_viewport_size(size)
        screen.page.wait_for_timeout(300)
        shown[zoom] = [zoom * wide for wide in screen.page.evaluate(PICTURES)]
    screen.page.set_viewport_size({"width": 1280, "height": 720})
    for zoom in (1.25, 1.5, 2):
        for before, after in zip(shown[1], shown[zoom], strict=True):
            assert after > 0.99 * before, (zoom, before, after)


def test_sliders_and_buttons_say_their_names_and_values(screen):
    for label, named in (("中文", ("检查点", "播放")), ("English", ("checkpoints", "play"))):
        screen.choose(label)
        counts, moment = screen.handles()[:2]
        assert counts.element.get_attribute("aria-label") == named[0]
        counts.element.press("Home")
        counts.element.press("ArrowRight")
        screen.settle()
        for handle in (counts, moment):
            beside = handle.element.evaluate(
                "handle => handle.closest('.course-slider')"
                ".querySelector('.course-readout').innerText"
            )
            assert handle.position == beside
        assert counts.position == "2"
        buttons = screen.page.eval_on_selector_all(
            ".jp-OutputArea-output .course-explorer button",
            "all => all.filter(b => b.checkVisibility())"
            ".map(b => b.getAttribute('aria-label') || b.title || b.innerText)",
        )
        assert named[1] in buttons and all(buttons)
    screen.choose("中文")


def test_links_look_like_links(screen):
    looks = screen.page.eval_on_selector_all(
        ".jp-OutputArea-output td a", "all => all.map(a => getComputedStyle(a).textDecorationLine)"
    )
    assert looks and set(looks) == {"underline"}


def test_the_table_of_contents_shows_headings_to_their_end(screen):
    page = screen.page
    page.evaluate("jupyterapp.commands.execute('toc:show-panel')")
    page.wait_for_selector(".jp-tocItem-content")
    page.wait_for_timeout(300)
    entries = page.eval_on_selector_all(
        ".jp-tocItem-content",
        "all => all.map(e => [e.innerText, e.scrollWidth - e.clientWidth,"
        " e.getBoundingClientRect().height,"
        " e.closest('.jp-tocItem').getBoundingClientRect().height])",
    )
    ((words, beyond, high, room),) = entries
    assert words == HEADING.removeprefix("## ")
    assert beyond <= 0 and 30 < high <= room + 1
    page.evaluate("jupyterapp.commands.execute('filebrowser:activate')")


def named_menus(words: str) -> list[tuple[str, str]]:
    """The menus and their items that some text sends a reader to."""
    return re.findall(r"(\w+) ▸ ([\w ]+?)(?=[*”.])", words)


def test_menus_are_called_what_they_are_called(browser, server, monkeypatch):
    """In the messages about the order of cells, and in what lesson 00 tells its readers to do."""
    first = json.loads((FOLDER / "00_start_here.ipynb").read_text(encoding="utf-8"))["cells"]
    cell = missing_names.Cell("1", "made = 1", (), ("标题", "heading"))
    for language, locale in (("zh", "zh_CN"), ("en", "en")):
        monkeypatch.setattr("course_lib.language.choice._chosen", language)
        monkeypatch.setattr(missing_names, "_here", lambda _: ([cell], -1))
        told = named_menus(missing_names.missing(None, "made"))
        prose = ("".join(c["source"]) for c in first if language in c["metadata"].get("tags", []))
        told += named_menus("\n".join(prose))
        assert len(told) >= 2
        server.set("translation-extension/plugin", {"locale": locale})
        page = browser.new_page()
        page.goto(server.url("00_start_here"))  # menus depend on what is open
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        for menu, item in told:
            page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{menu}$")).click()
            page.wait_for_selector(".lm-Menu-itemLabel")
            assert item in page.locator(".lm-Menu-itemLabel").all_inner_texts()
            page.keyboard.press("Escape")
        page.close()
    (server.settings / "@jupyterlab" / "translation-extension").joinpath(
        "plugin.jupyterlab-settings"
    ).unlink()
