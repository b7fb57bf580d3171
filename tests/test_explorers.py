"""The sliders: what they show at every position, in every language, and where nothing runs."""

from __future__ import annotations

import base64
import gc
import json
import os
import random
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ipywidgets
import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

import course_lib  # noqa: F401  # before torch
from course_lib import language
from course_lib.figures.bars import draw_bars
from course_lib.memory import Role
from course_lib.notebook import explorers
from course_lib.notebook.explorers import Control, Explorer, progress, show
from support.notebooks import kernel

COURSE = Path(__file__).parent.parent
LAYERS = Control("layers", "层数", "layers", (1, 2, 4, 8), 4)
MODE = Control("mode", "方式", "mode", ("plain", "checkpoint"), "plain")


@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setenv("COURSE_LANG", "en")
    monkeypatch.setattr(language.choice, "_chosen", "en")
    ipywidgets.Widget.close_all()
    gc.collect()


def frame(layers: int, mode: str = "plain") -> dict[Role, int]:
    role = Role.ACTIVATION if mode == "plain" else Role.CHECKPOINT
    return {role: layers * 2**20}


def draw(figure, data: dict[Role, int]) -> None:
    draw_bars(figure, [(("一步", "one step"), data)], title=("一", "one"))


def caption(data: dict[Role, int]) -> tuple[str, str]:
    mib = sum(data.values()) >> 20
    return f"共 {mib} MiB <内存>", f"{mib} MiB of <memory>"


def explorer(*controls: Control, frame=frame, draw=draw) -> Explorer:
    return Explorer(controls or (LAYERS, MODE), frame, draw, caption, (6, 2))


def picture(made: Explorer) -> bytes:
    return base64.b64decode(made._repr_mimebundle_()["image/png"])


# --- moving -------------------------------------------------------------------------------------


def heard(made: Explorer) -> list[tuple[str, dict[str, Any]]]:
    """The pictures that the page is sent from now on, by name."""
    told: list[tuple[str, dict[str, Any]]] = []
    made.send = lambda content, buffers=None: told.extend(content["pictures"].items())
    return told


def test_every_position_has_its_picture_and_caption() -> None:
    made = explorer()
    positions = list(made.positions())
    assert len(positions) == 8
    seen = set()
    for position in positions:
        made.move(**position)
        assert made.values == position
        assert made.caption == f"{position['layers']} MiB of <memory>"
        assert picture(made).startswith(b"\x89PNG")
        seen.add(picture(made))
    assert len(seen) == 8


def test_too_many_combinations_are_swept_one_control_at_a_time() -> None:
    wide = [Control(name, name, name, tuple(range(30)), 3) for name in "abc"]
    made = Explorer(wide, lambda a, b, c: {Role.INPUT: a + b + c}, draw, caption, (6, 2))
    positions = list(made.positions())
    assert len(positions) == 90
    assert {"a": 3, "b": 29, "c": 3} in positions


def test_moving_redraws_once_and_only_to_where_a_slider_can_be() -> None:
    frames = []
    made = explorer(frame=lambda **values: frames.append(values) or frame(**values))
    frames.clear()
    made.move(layers=8, mode="checkpoint")
    assert frames == [{"layers": 8, "mode": "checkpoint"}]
    with pytest.raises(ValueError, match="layers has no position 3"):
        made.move(layers=3)
    with pytest.raises(TypeError, match="no slider depth"):
        made.move(depth=3)
    assert made.values == {"layers": 8, "mode": "checkpoint"}


def test_the_browser_moves_a_slider_by_its_index() -> None:
    made = explorer()
    told = heard(made)
    made.set_state({"index": [3, 0]})
    assert made.values == {"layers": 8, "mode": "plain"}
    assert made.caption.startswith("8 MiB")
    ((name, sent),) = told
    assert name == "en 3,0" and sent["words"] == ["共 8 MiB <内存>", "8 MiB of <memory>"]
    assert base64.b64decode(sent["src"].partition(",")[2]) == picture(made)


def test_a_start_that_is_no_value_is_refused() -> None:
    with pytest.raises(ValueError, match="start 3"):
        Control("layers", "层数", "layers", (1, 2), 3)


def test_errors_come_out_and_the_next_position_works_again() -> None:
    def failing(layers: int) -> dict[Role, int]:
        if layers == 8:
            raise RuntimeError("no <room>")
        return frame(layers)

    with pytest.raises(RuntimeError, match="no <room>"):
        explorer(Control("layers", "层数", "layers", (1, 8), 8), frame=failing)
    made = explorer(LAYERS, frame=failing)
    told = heard(made)
    with pytest.raises(RuntimeError, match="no <room>"):
        made.move(layers=8)
    made.move(layers=2)
    assert [name for name, _ in told] == ["en 3", "en 1"]
    assert told[0][1] == {"problem": "RuntimeError: no <room>"} and "src" in told[1][1]
    with pytest.raises(RuntimeError):
        made.index = [3]


def test_a_thousand_moves_do_not_grow_memory(capfd) -> None:
    made = explorer()
    choices = list(made.positions())
    generator = random.Random(0)
    process = psutil.Process()

    def move(times: int) -> int:
        for _ in range(times):
            made.move(**generator.choice(choices))
        gc.collect()
        return process.memory_info().rss

    before = move(200)
    widgets = len(ipywidgets.widgets.widget._instances)
    assert move(1000) - before < 10 * 2**20
    assert len(ipywidgets.widgets.widget._instances) == widgets
    assert capfd.readouterr() == ("", "")


# --- words --------------------------------------------------------------------------------------


def test_everything_follows_the_language() -> None:
    def layers(value: int) -> str:
        return language.text(zh=f"{value} 层", en=f"{value} layers")

    made = explorer(Control("layers", "层数", "layers", (1, 2, 4, 8), 4, layers))
    (slider,) = made.sliders
    assert (slider["name"], slider["words"]) == ("layers", ["层数", "layers"])
    assert [slider["labels"][spoken][1] for spoken in ("zh", "en", "both")] == [
        "2 层", "2 layers", "2 层 · 2 layers",
    ]  # fmt: skip
    english = picture(made)
    made.move(layers=8)
    language.choose("zh")
    assert (made.language, made.values) == ("zh", {"layers": 8})
    assert made.caption == "共 8 MiB <内存>"
    made.move(layers=4)
    assert picture(made) != english
    language.choose("both")
    assert made.language == "both"
    language.choose("en")
    assert picture(made) == english


def test_the_page_has_words_in_both_languages_and_the_picture_at_once() -> None:
    ((name, shown),) = explorer().get_state()["pictures"].items()
    assert name == "en 2,0"
    assert shown["words"] == ["共 4 MiB <内存>", "4 MiB of <memory>"]
    assert shown["src"].startswith("data:image/png;base64,")


def test_a_page_that_is_opened_again_is_sent_every_picture_there_is() -> None:
    made = explorer()
    made.move(layers=8)
    assert list(made.get_state()["pictures"]) == ["en 3,0"]
    told = heard(made)
    made.move(layers=4)
    assert told == []  # the page has it
    made._handle_custom_msg({"hello": True}, [])
    assert [name for name, _ in told] == ["en 2,0", "en 3,0"]


def test_a_picture_that_is_drawn_again_takes_the_place_of_what_was_drawn_before() -> None:
    value, told = [1], []
    made = Explorer((), lambda: {Role.INPUT: value[0]}, draw, caption, (6, 2))
    made.send = lambda content, buffers=None: told.append(content)
    first = picture(made)
    value[0] = 2
    made.move()
    assert picture(made) != first
    ((sent,),) = [told]
    assert sent["fresh"] and list(sent["pictures"]) == ["en "]


def test_a_picture_without_sliders_follows_too() -> None:
    shown = show(draw, {Role.INPUT: 3}, ("三", "three"), (6, 2))
    assert (shown.caption, shown.sliders) == ("three", [])
    english = picture(shown)
    language.choose("zh")
    assert shown.caption == "三"
    assert picture(shown) != english


def test_a_closed_explorer_no_longer_listens() -> None:
    listeners = len(language.choice._listeners)
    made = explorer()
    assert len(language.choice._listeners) == listeners + 1
    made.close()
    assert len(language.choice._listeners) == listeners
    made.close()


def test_listening_keeps_no_explorer_alive() -> None:
    listeners = len(language.choice._listeners)
    made = explorer()
    reference = weakref.ref(made)
    ipywidgets.Widget.close_all()  # which lets go of it without asking it
    del made
    gc.collect()
    assert reference() is None
    assert len(language.choice._listeners) == listeners


def test_a_cell_that_is_run_again_closes_what_it_made_before(monkeypatch) -> None:
    run = [("cell-1", 5)]
    monkeypatch.setattr(explorers, "_running_cell", lambda: run[0])
    first, second = explorer(), explorer()
    run[0] = ("cell-2", 6)
    other = explorer()
    run[0] = ("cell-1", 7)
    third = explorer()
    alive = ipywidgets.widgets.widget._instances.values()
    assert [made in alive for made in (first, second, other, third)] == [False, False, True, True]


# --- where nothing runs -------------------------------------------------------------------------


def test_the_mimebundle_has_a_view_a_picture_and_one_line() -> None:
    bundle = explorer()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == "4 MiB of <memory>"
    assert picture(explorer()) == picture(explorer())


SOURCE = """
from course_lib.notebook.explorers import Control, Explorer, progress
from course_lib.figures.bars import draw_bars
from course_lib.memory import Role

done = [n for n in progress(range(3), zh="正在测量", en="measuring")]
Explorer([Control("n", "层数", "layers", (1, 2), 2)], lambda n: {Role.INPUT: n},
         lambda figure, data: draw_bars(figure, [("x", data)], title="x"),
         lambda data: ("图", "the caption"))
"""


def executed(source: str) -> nbformat.NotebookNode:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(COURSE)}}
    ).execute()
    return notebook


def test_stored_notebooks_show_the_picture_and_nothing_of_the_progress(tmp_path) -> None:
    notebook = executed(SOURCE)
    notebook.metadata.pop("widgets", None)
    bar, shown = notebook.cells[0].outputs
    assert bar.data == {"text/plain": ""}  # no view of a widget that is no more
    assert shown.data["text/plain"] == "the caption"
    encoded = "".join(shown.data["image/png"].split())
    for kept in (True, False):  # with the widget's view, as JupyterLab saves it, and without
        if not kept:
            del shown.data["application/vnd.jupyter.widget-view+json"]
        nbformat.validate(notebook)
        page, _ = HTMLExporter().from_notebook_node(notebook)
        assert encoded in page.replace("\n", ""), f"widget view kept: {kept}"
        assert "IntProgress" not in page
    path = tmp_path / "stored.ipynb"
    nbformat.write(notebook, path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--nbval", "-p", "no:cacheprovider", str(path)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(COURSE), "COURSE_LANG": "en"}


def test_a_broken_position_fails_the_cell() -> None:
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(SOURCE.replace("{Role.INPUT: n}", "{Role.INPUT: 1 // (n - 2)}"))


# --- progress -----------------------------------------------------------------------------------


class Shell:
    """As much of IPython's as the bar needs."""

    kernel = object()

    def __init__(self):
        self.callbacks = []
        self.events = SimpleNamespace(
            register=lambda _, callback: self.callbacks.append(callback),
            unregister=lambda _, callback: self.callbacks.remove(callback),
        )


@pytest.fixture
def shell(monkeypatch):
    made = Shell()
    monkeypatch.setattr("IPython.get_ipython", lambda: made)
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: None)
    return made


def bars() -> list[ipywidgets.IntProgress]:
    alive = ipywidgets.widgets.widget._instances.values()
    return [widget for widget in alive if isinstance(widget, ipywidgets.IntProgress)]


def test_progress_without_a_notebook_just_goes_through(capfd) -> None:
    assert list(progress(iter("abc"), zh="量", en="measuring")) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_the_bar_is_gone_at_the_end(shell: Shell) -> None:
    items = progress(range(3), zh="量", en="measuring")
    next(items)
    (bar,) = bars()
    assert (bar.description, bar.max) == ("measuring 0 / 3", 3)
    next(items)
    assert (bar.description, bar.value) == ("measuring 1 / 3", 1)
    assert list(items) == [2]
    assert not bars()
    assert not shell.callbacks


def test_an_interrupt_leaves_no_bar_and_what_was_done(shell: Shell) -> None:
    done = []
    items = progress(range(9), zh="量", en="measuring")
    with pytest.raises(KeyboardInterrupt):
        for item in items:  # held by `items`, as a traceback would hold it
            if item == 3:
                raise KeyboardInterrupt
            done.append(item)
    assert done == [0, 1, 2]
    assert len(bars()) == 1
    for callback in list(shell.callbacks):  # what IPython does when the cell has ended
        callback()
    assert not bars()
    items.close()
    assert not shell.callbacks


def test_importing_the_library_loads_no_widgets() -> None:
    code = (
        "import sys, json, course_lib, course_lib.memory, course_lib.figures.timeline\n"
        "print(json.dumps([m for m in ('ipywidgets', 'matplotlib.pyplot') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=COURSE, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_a_position_is_drawn_once_in_each_language() -> None:
    drawn = []

    def counted(layers: int, mode: str) -> dict[Role, int]:
        drawn.append((layers, mode))
        return frame(layers, mode)

    made = explorer(frame=counted)
    first = picture(made)
    for layers in (8, 4, 8, 4):
        made.move(layers=layers)
    assert drawn == [(4, "plain"), (8, "plain")] and picture(made) == first
    language.choose("zh")
    assert drawn[2:] == [(4, "plain")] and picture(made) != first


AHEAD = """\
from course_lib.notebook.explorers import Control, Explorer

drawn = []

def frame(i, j):
    if i == 3:
        raise ValueError("three")
    drawn.append((i, j))
    return i, j

explorer = Explorer(
    [Control("i", "甲", "a", tuple(range(40)), 5), Control("j", "乙", "b", (0, 1, 2), 0)],
    frame, lambda figure, data: figure.text(0.5, 0.5, str(data)), lambda data: ("图", "picture"))"""


def test_what_a_slider_may_show_next_is_drawn_while_the_kernel_is_idle(tmp_path: Path) -> None:
    """In the other language, at the ends, and nearby; never while cells run; an error waits for
    who moves there."""

    def said(code: str, wait: float = 0) -> Any:
        time.sleep(wait)
        ran = live.run_code(code)
        assert not ran.error and not ran.stderr
        return json.loads(ran.texts[0]) if ran.texts else None

    with kernel("en", tmp_path) as live:
        said(AHEAD)
        for _ in range(8):
            said("import json, time; time.sleep(0.4)")
        assert said("print(json.dumps(drawn))") == [[5, 0]]
        near = said("print(json.dumps(drawn))", 4)
        assert near == [[5, 0], [5, 0], [0, 0], [5, 2], [39, 0], [4, 0], [5, 1], [6, 0]]
        said("drawn.clear(); explorer.move(i=20)")
        near = said("print(json.dumps(drawn))", 6)
        assert near[:7] == [[20, 0], [20, 0], [20, 2], [19, 0], [20, 1], [21, 0], [18, 0]]
        assert len(near) - 1 == len(set(map(tuple, near))) > 20
        said("explorer.close(); drawn.clear(); explorer.move(i=30)")
        assert said("print(json.dumps(drawn))", 2) == []
