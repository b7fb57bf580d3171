"""Jupyter Notebook 7: prose in both languages, the switch, and sliders."""

import pytest

from support.lab import Screen, jupyterlab
from support.notebooks import build, lessons, markdown, prose, python, tags

# Notebook 7.6 says so about itself whenever it opens, with nothing of ours on the page.
ITS_OWN = "page error: Cannot read properties of undefined (reading 'schema')"

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def screen(browser, tmp_path_factory):
    """A small lesson with the set-up cell of a real one."""
    (setup,) = (cell for cell in lessons()[0].code if "setup" in tags(cell))
    with jupyterlab(tmp_path_factory.mktemp("notebook"), notebook7=True) as server:
        build(
            server.folder / "96_small.ipynb",
            markdown("# 小 · Small"),
            *prose("两种语言都看得见。", "Both languages can be seen."),
            setup,
            python("from course_lib.notebook.player import player\nplayer(layers=4)"),
        )
        opened = Screen.open(browser, server, "96_small")
        opened.problems[:] = [problem for problem in opened.problems if problem != ITS_OWN]
        yield opened
        opened.close()


def test_it_is_notebook_7_and_shows_both_languages_before_anything_runs(screen):
    assert screen.page.evaluate("jupyterapp.name") == "Jupyter Notebook"
    assert screen.visible_prose("zh") == screen.visible_prose("en") == [True]


def test_the_switch_and_the_sliders_work(screen):
    screen.run_all()
    assert screen.faults() == []
    pictures = []
    for label, visible, hidden in (("中文", "zh", "en"), ("English", "en", "zh")):
        screen.choose(label)
        assert screen.visible_prose(visible) == [True]
        assert screen.visible_prose(hidden) == [False]
        pictures.append(screen.pictures())
    assert pictures[0] != pictures[1]
    handle = screen.handles()[0]
    assert handle.try_everything() + screen.faults() == []
