"""Each lesson in real JupyterLab: run all, switch the language, move every slider, look at it.

A lesson is run once and then read in both languages, as a learner would who changes their mind.
"""

import re
import statistics

import pytest

from support.contrast import ENOUGH
from support.lab import Screen, jupyterlab, percentile
from support.notebook_rules import HAN
from support.notebooks import build, lessons, python

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BUTTON = {"zh": "中文", "en": "English", "both": "中文 + English"}
GOAL_MILLISECONDS = 100
LESSONS = lessons()


@pytest.fixture(scope="module", params=LESSONS, ids=str)
def screen(request, browser, server, report):
    """The lesson after Run All, in a kernel whose locale is Chinese."""
    opened = Screen.open(browser, server, str(request.param))
    report(f"{request.param}: Run All in the browser {opened.run_all():.1f} s")
    yield opened
    opened.close()


def test_run_all(screen):
    assert screen.faults() == []


@pytest.mark.parametrize("language", ["zh", "en"])
def test_read_in(screen, language, report):
    screen.choose(BUTTON[language])
    screen.screenshots(language)
    other = {"zh": "en", "en": "zh"}[language]
    assert all(screen.visible_prose(language)) and screen.visible_prose(language)
    assert not any(screen.visible_prose(other))
    for label in [*screen.slider_labels(), *screen.descriptions()]:
        assert label and bool(re.search(HAN, label)) == (language == "zh"), label
    assert screen.labels_cut_off() + screen.misfits() == []
    complaints, seconds = [], []
    for handle in screen.handles():
        complaints += handle.try_everything()
        seconds += handle.seconds
    assert not complaints + screen.faults()
    if seconds:
        report(f"{screen.name}, {language}: {latency(seconds)}")


def test_pictures_follow_the_language(screen):
    shown = {}
    for language in ("zh", "en"):
        screen.choose(BUTTON[language])
        shown[language] = screen.pictures()
    both = list(zip(shown["zh"], shown["en"], strict=True))
    assert [place for place, (zh, en) in enumerate(both) if zh == en] == []


def test_tab_reaches_every_slider(screen):
    assert [handle.label for handle in screen.handles() if handle.tabs() is None] == []


def test_words_stand_out_in_either_theme(screen):
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        screen.use_theme(theme)
        seen = screen.contrasts()
        assert seen and [where for ratio, where in seen if ratio < ENOUGH] == [], theme


def test_both_languages_side_by_side(screen):
    screen.choose(BUTTON["both"])
    assert all(screen.visible_prose("zh") + screen.visible_prose("en"))
    assert screen.faults() == []


def latency(seconds: list[float]) -> str:
    """The time from handle to picture in words: median, 95th percentile, and the goal."""
    worst = percentile(95, seconds)
    return (
        f"handle to picture, {len(seconds)} moves: median {1000 * statistics.median(seconds):.0f} "
        f"ms, 95th percentile {1000 * worst:.0f} ms (goal {GOAL_MILLISECONDS} ms)"
    )


def test_the_language_starts_from_the_locale_and_is_remembered(browser, server):
    first, last = str(LESSONS[0]), str(LESSONS[-1])
    for name, expected, then in (
        (first, None, "中文"),
        (last, "中文", "English"),
        (first, "English", "中文"),
    ):
        screen = Screen.open(browser, server, name)
        screen.run_first_code_cell()
        assert expected in (None, screen.language())
        screen.choose(then)
        screen.close()


def test_a_cell_before_its_time_says_what_it_needs(browser, server):
    """In a kernel that was just started, and for a cell that the learner has changed."""
    lesson = LESSONS[0]
    place = next(i for i, cell in enumerate(lesson.code) if "show_bars({" in cell.source)
    screen = Screen.open(browser, server, str(lesson))
    screen.run_code_cell(place)
    said = screen.page.locator(".jp-OutputArea-output:has-text('NameError')")
    said.first.wait_for()
    assert "measured = measure_first(" in said.first.inner_text()
    screen.run_code_cell(place, source="changed = measured[2]")
    said.first.wait_for()
    assert "measured = measure_first(" in said.first.inner_text()
    screen.close()


def menus(browser, server) -> str:
    page = browser.new_page()
    page.goto(f"{server.address}lab?token={server.token}&reset")
    page.wait_for_selector(".lm-MenuBar-itemLabel")
    words = " ".join(page.locator(".lm-MenuBar-itemLabel").all_inner_texts())
    page.close()
    return words


def test_jupyterlab_speaks_the_learners_language(browser, server, tmp_path):
    assert "文件 编辑 查看 运行 内核" in menus(browser, server)
    with jupyterlab(tmp_path, remembered="en") as english:
        assert "File Edit View Run Kernel" in menus(browser, english)
        english.set("translation-extension/plugin", {"locale": "zh_CN"})
        assert "文件 编辑" in menus(browser, english)  # what the user sets goes before


BROKEN = """\
import ipywidgets as w

shown = w.HTML("0")
def moved(change):
    if change["new"] == 10:
        raise ArithmeticError("at the end")
    shown.value = str(min(change["new"], 7))
slider = w.IntSlider(max=10, description="bad")
slider.observe(moved, "value")
w.VBox([slider, shown])"""
FORGETFUL = """\
count = []
def counted(change):
    count.append(0)
    shown2.value = str(len(count))
slider2, shown2 = w.IntSlider(max=10, description="forgets"), w.HTML("0")
slider2.observe(counted, "value")
w.VBox([slider2, shown2])"""
CONSOLE = """\
from IPython.display import HTML
HTML('<img src="nowhere.png" onerror="console.error(\\'seen\\')">')"""
UNREADABLE = """\
from IPython.display import display
display(HTML('<p style="color:#999">pale</p>'),
        HTML('<div style="overflow:auto;width:9em">' + 40 * "wide" + "</div>"),
        HTML('<div class="course-explorer" style="height:900px">high</div>'))
slider3 = w.IntSlider(max=3, description="unreachable")
slider3"""


def test_faults_of_a_bad_lesson_are_found(browser, server):
    """What the tests above rely on: errors, dead sliders and console messages are noticed."""
    cells = map(python, (BROKEN, FORGETFUL, CONSOLE, UNREADABLE, "1 / 0"))
    build(server.folder / "99_broken.ipynb", *cells)
    screen = Screen.open(browser, server, "99_broken")
    screen.run_all()
    faults = "\n".join(screen.faults())
    assert "ZeroDivisionError" in faults and "console: seen" in faults
    assert "" in screen.descriptions()
    misfits = "\n".join(screen.misfits())
    assert "too wide: wide" in misfits and "900 px high" in misfits
    assert [where[-4:] for ratio, where in screen.contrasts() if ratio < ENOUGH] == ["pale"]
    bad, forgetful, third = screen.handles()
    assert third.tabs()
    third.element.evaluate("handle => handle.removeAttribute('tabindex')")
    assert third.tabs() is None
    bad.PATIENCE = 1.0
    found = "\n".join(bad.try_everything())
    assert "bad, End, 1" not in found and "→ 10: the picture did not change" in found
    assert "ArithmeticError: at the end" in "\n".join(screen.faults())
    assert any("not the picture" in complaint for complaint in forgetful.try_everything())
    assert len(forgetful.at) >= 4 and "0" in forgetful.at and "10" in forgetful.at
    screen.close()
