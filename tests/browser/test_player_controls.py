"""Lesson 02's player in a browser: play, pause, stop, and one step at a time."""

import pytest

from support.lab import Screen
from support.notebooks import build, python

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def screen(browser, server):
    build(
        server.folder / "98_player.ipynb",
        python("import course_lib\nfrom course_lib.notebook.player import player\nplayer()"),
    )
    opened = Screen.open(browser, server, "98_player")
    opened.run_all()
    assert opened.faults() == []
    yield opened
    opened.close()


def moment(screen):
    """Where the lower slider stands."""
    return int(screen.handles()[1].position)


def press(screen, icon):
    screen.page.click(f".jp-OutputArea button[data-does={icon}]")


def test_step_buttons(screen):
    begin = moment(screen)
    for icon, after in (
        ("on", begin + 1), ("on", begin + 2), ("back", begin + 1),
    ):  # fmt: skip
        before = screen.pictures()
        press(screen, icon)
        screen.settle()
        assert moment(screen) == after
        assert screen.pictures() != before


def test_play_pause_and_stop(screen):
    press(screen, "stop")
    screen.settle()
    assert moment(screen) == 0
    before = screen.pictures()
    press(screen, "play")
    screen.page.wait_for_timeout(2500)
    press(screen, "play")
    screen.settle()
    paused = moment(screen)
    assert 2 <= paused < 31
    assert screen.pictures() != before
    screen.page.wait_for_timeout(1200)
    assert moment(screen) == paused
    press(screen, "stop")
    screen.settle()
    assert moment(screen) == 0
    assert screen.faults() == []


def test_it_plays_to_the_end_and_stays_there(screen):
    handle = screen.handles()[1]
    handle.element.press("End")
    handle.element.press("ArrowLeft")
    screen.settle()
    assert moment(screen) == 30
    press(screen, "play")
    screen.page.wait_for_timeout(2500)
    assert moment(screen) == 31
    assert screen.faults() == []
