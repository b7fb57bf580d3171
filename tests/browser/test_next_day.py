"""A lesson that was run and saved, opened again: after a reload, on a new server, anywhere."""

import json
import re

import pytest

from support.lab import WINDOW, Screen, jupyterlab
from support.notebooks import build, lessons, markdown, prose, python, tags

pytestmark = [pytest.mark.browser, pytest.mark.slow]

(SETUP,) = (cell for cell in lessons()[0].code if "setup" in tags(cell))
ASK = python(
    "from course_lib.notebook.predictions import compare, guess, scoreboard\n"
    "guess('peak', zh='峰值是', en='The peak is')"
)
COMPARE = python("compare('peak', 3 * 2**20)")
SCORES = python("scoreboard()")
SWEEP = python(
    "from course_lib.notebook.explorers import Control, Explorer, progress\n"
    "done = [n for n in progress(range(3), zh='正在测量', en='Measuring')]"
)
EXPLORE = python(
    "Explorer([Control('n', '层数', 'layers', (1, 2, 3), 1)], lambda n: n,\n"
    "         lambda figure, n: figure.text(0.5, 0.5, str(n)),\n"
    "         lambda n: (f'图 {n}', f'picture {n}'), (4, 1))"
)
SAVE = "jupyterapp.commands.execute('docmanager:save')"
BROKEN = re.compile("Error displaying widget|Loading widget|model not found|NameError")


def lesson(folder, name="93_next_day"):
    zh, en = prose("这是中文。", "This is English.")
    cells = (SETUP, ASK, COMPARE, SCORES, SWEEP, EXPLORE)
    return build(folder / f"{name}.ipynb", markdown("# 标题 · Title"), zh, en, *cells)


def left(screen):
    """Type a prediction, move the slider, and read Chinese from now on."""
    screen.run_all()
    screen.choose("中文")
    field = screen.page.locator(".widget-text input")
    field.fill("4.5")
    field.press("Enter")
    screen.handles()[0].element.press("End")
    screen.settle()
    screen.page.wait_for_timeout(1500)  # for what the kernel draws while it is idle
    screen.page.evaluate(SAVE)
    screen.settle()


def outputs(screen):
    """What the code cells' outputs say to a reader."""
    shown = screen.page.locator(".jp-OutputArea-output:visible")
    shown.first.wait_for()
    screen.page.wait_for_timeout(1500)  # for what comes late
    return "\n".join(shown.all_inner_texts())


def opened_again(browser, server):
    screen = Screen.open(browser, server, "93_next_day")
    screen.page.wait_for_selector(".widget-toggle-buttons button")
    return screen


def looks_as_it_was_left(screen):
    said = outputs(screen)
    assert not BROKEN.search(said), said
    assert screen.visible_prose("zh") == [True] and screen.visible_prose("en") == [False]
    typed = screen.page.locator(".widget-text input")
    assert typed.input_value() == "4.5" if typed.count() else "峰值是\n4.5\nMiB" in said
    assert said.count("+50.0%") == 2  # the comparison, and the score
    assert "图 3" in said and "picture" not in said
    assert screen.page.locator(".jp-OutputArea-output img:visible").count() == 1
    assert "Measuring" not in said and "正在测量" not in said


def is_read_in_english_too(screen):
    """With the strip above the notebook, which is there with and without a kernel."""
    bar = screen.page.get_by_role("group", name="Course language").last
    bar.get_by_role("button", name="English", exact=True).click()
    assert screen.visible_prose("zh") == [False] and screen.visible_prose("en") == [True]
    said = outputs(screen)
    assert "picture 3" in said and "图" not in said
    bar.get_by_role("button", name="中文", exact=True).click()


def moves_without_a_kernel(screen):
    """The slider shows every picture that the kernel had drawn."""
    slider = screen.page.locator(".course-slider input")
    image = screen.page.locator(".course-picture img")
    seen = set()
    for key, expected in (("Home", "图 1"), ("ArrowRight", "图 2"), ("End", "图 3")):
        slider.press(key)
        screen.page.wait_for_timeout(100)
        assert expected in screen.page.locator(".course-words").inner_text()
        assert image.get_attribute("alt") == expected
        seen.add(image.get_attribute("src"))
    assert len(seen) == 3


def lose_kernel(server):
    """As on a machine that has none of that name; whoever works there trusts the notebook."""
    file = server.folder / "93_next_day.ipynb"
    notebook = json.loads(file.read_text(encoding="utf-8"))
    absent = {"name": "absent", "display_name": "Absent", "language": "absent"}
    notebook["metadata"] |= {"kernelspec": absent, "language_info": {"name": "absent"}}
    file.write_text(json.dumps(notebook), encoding="utf-8")
    server.trust(file)


@pytest.fixture(scope="module")
def used(browser, tmp_path_factory):
    """A learner's folder after a first day of which `course.py` and its defaults know nothing."""
    scratch = tmp_path_factory.mktemp("learner")
    with jupyterlab(scratch, alone=True) as server:
        lesson(server.folder)
        screen = Screen.open(browser, server, "93_next_day")
        left(screen)
        assert screen.faults() == []
        screen.page.reload()
        screen.page.wait_for_selector(".widget-toggle-buttons button")
        looks_as_it_was_left(screen)
        assert not screen.page.locator(".course-asleep:visible").count()
        screen.page.close()
    return scratch


@pytest.mark.parametrize("notebook7", [True, False], ids=["Notebook 7", "JupyterLab"])
def test_it_looks_as_it_was_left(browser, used, notebook7):
    """Also once more, saved without anything having been run, and without a kernel."""
    with jupyterlab(used, notebook7=notebook7) as server:
        screen = opened_again(browser, server)
        looks_as_it_was_left(screen)
        line = screen.page.locator(".course-asleep:visible")
        assert "运行所有单元格" in line.inner_text()
        moves_without_a_kernel(screen)
        is_read_in_english_too(screen)
        screen.page.evaluate(SAVE)
        screen.settle()
        screen.close()
        file = server.folder / "93_next_day.ipynb"
        before = file.read_bytes()
        lose_kernel(server)
        screen = Screen(browser.new_page(viewport=WINDOW), "93_next_day")
        screen.page.goto(server.url("93_next_day"))
        screen.page.locator(".jp-Dialog button").first.click()  # No Kernel
        screen.page.wait_for_selector(".course-asleep-briefly")
        looks_as_it_was_left(screen)
        assert "没有内核" in screen.page.locator(".course-asleep-briefly:visible").inner_text()
        moves_without_a_kernel(screen)
        is_read_in_english_too(screen)
        screen.page.close()
        file.write_bytes(before)
        server.trust(file)

        if not notebook7:
            has_its_picture_where_nothing_was_saved(browser, server)
            file.write_bytes(before)
            server.trust(file)
            is_alive_again(opened_again(browser, server))


def has_its_picture_where_nothing_was_saved(browser, server):
    """As after a save by something that knows of no widgets."""
    file = server.folder / "93_next_day.ipynb"
    notebook = json.loads(file.read_text(encoding="utf-8"))
    (saved,) = notebook["metadata"]["widgets"].values()
    saved["state"] = {
        name: model for name, model in saved["state"].items() if model["model_name"] != "VBoxModel"
    }
    file.write_text(json.dumps(notebook), encoding="utf-8")
    server.trust(file)
    screen = opened_again(browser, server)
    said = outputs(screen)
    for _ in range(20):  # JupyterLab tries for a while before it gives up
        if not BROKEN.search(said):
            break
        said = outputs(screen)
    assert not BROKEN.search(said), said
    assert screen.page.locator(".jp-OutputArea-output img:visible").count() == 1
    screen.close()


def is_alive_again(screen):
    """What was typed is there also when everything is run again."""
    screen.run_all()
    assert outputs(screen).count("+50.0%") == 2
    assert screen.page.locator(".widget-text input").input_value() == "4.5"
    assert not screen.page.locator(".course-asleep:visible").count()
    assert screen.faults() == []
    screen.close()
