"""What a cell says that was run before the one it needs, and what stays as it was."""

from __future__ import annotations

import ast
import json
import re
import time

import pytest

from course_lib.notebook.missing_names import Cell, names_made, read
from support.notebooks import Kernel, Lesson, Ran, build, kernel, lessons, markdown, python
from support.out_of_order import (
    MISSING,
    ambiguous,
    asked_for,
    needs,
    remember_all,
    remember_setup,
    run_in_random_orders,
    wrong_turns,
)

SOURCE = """\
import a.b as c, d.e
from f import (
    g,
)
for h in i(j := 1):
    with k() as (l, m): pass
n.o = p[0]
def q(r=s):
    t = u + v
    return [w for w in t]
"""


def test_what_a_cell_makes():
    lines = dict(names_made(ast.parse(SOURCE)))
    assert lines == {"c": 1, "d": 1, "g": 2, "h": 5, "j": 5, "l": 6, "m": 6, "q": 8}
    cell = Cell("1", SOURCE, (), ("", ""))
    assert cell.line_that_makes("g") == "from f import ("
    assert cell.line_that_makes("l") == "with k() as (l, m): pass"
    assert cell.line_that_makes("t") is None
    assert Cell("1", "%magic\nx = 1", (), ("", "")).line_that_makes("x") is None


def test_what_a_cell_needs():
    assert {"i", "k", "n", "p", "s", "u", "v"} <= asked_for(SOURCE)
    assert not {"r", "t", "w"} & asked_for(SOURCE)
    cells = [python("x = 1"), python("def f():\n    return x"), python("y = f()")]
    assert [needs(cell, cells) for cell in cells] == [set(), {"x"}, {"f", "x"}]


@pytest.mark.parametrize("lesson", lessons(), ids=str)
def test_lessons_are_read_as_they_are(lesson):
    found = read(lesson.path)
    assert [cell.source for cell in found] == [
        c.source for c in lesson.cells if c.cell_type == "code"
    ]
    assert all(all(cell.heading) for cell in found)


def test_other_notebooks_are_no_lessons(tmp_path):
    file = build(tmp_path / "mine.ipynb", python("x = 1")).path
    assert read(file) == []
    file.write_text(json.dumps({"cells": [{"cell_type": "code"}]}), encoding="utf-8")
    assert read(file) == read(tmp_path / "none.ipynb") == read(tmp_path) == []


# In a kernel

FIRST = lessons()[0].path
SETUP = python("import course_lib", "setup")
ONE, TWO = markdown("## 甲 · First"), markdown("## 乙 · Second")
NUMBERS, FUNCTION, CALL = (
    python("a = 1\nb = 2"),
    python("def f():\n    return a + b"),
    python("f()"),
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Lesson:
    folder = tmp_path_factory.mktemp("lesson")
    return build(folder / "00_scratch.ipynb", SETUP, ONE, NUMBERS, TWO, FUNCTION, CALL)


@pytest.fixture(scope="module", params=("en", "zh"))
def live(request, cells, tmp_path_factory):
    with kernel(request.param, tmp_path_factory.mktemp("k"), cells.path.parent) as started:
        started.language = request.param
        yield started


def error_of(ran: Ran) -> tuple[str, list[str]]:
    (output,) = ran.outputs
    return f"{output.ename}: {output.evalue}", output.traceback


def test_the_message_names_the_cell(live: Kernel):
    """Also in a kernel that has run nothing yet, and for a name that a function lacks."""
    for ran, name, line, heading in (
        (live.run(CALL), "f", "def f():", ("乙", "Second")),
        (live.run(FUNCTION) and live.run(CALL), "a", "a = 1", ("甲", "First")),
    ):
        said, shown = error_of(ran)
        found = MISSING.search(said)
        assert found[live.language] == name and found["line"] == line
        assert heading[live.language == "en"] in said
        assert shown == [said]
    live.run(NUMBERS)
    assert live.run(CALL).texts == ["3"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("undefined_by_anyone", "NameError: name 'undefined_by_anyone' is not defined"),
        ("(1).no_such", "AttributeError: 'int' object has no attribute 'no_such'"),
        ("def g():\n    a\n    a = 1\ng()", "UnboundLocalError: cannot access local variable 'a'"),
        ("import missing_module", "ModuleNotFoundError: No module named 'missing_module'"),
    ],
)
def test_other_errors_stay_as_they_are(live: Kernel, code: str, error: str):
    said, shown = error_of(live.run_code(code))
    assert said.startswith(error)
    seen = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(shown))
    assert "Traceback" in seen and code.splitlines()[-1] in seen


STOPPED = {"zh": "停下了。再运行这个单元格，它就从头再来。",
           "en": "Stopped. Run the cell again, and it starts afresh."}  # fmt: skip
LIGHTNING = """\
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(1)"""


@pytest.mark.parametrize("code", ["time.sleep(60)", LIGHTNING], ids=["plain", "as Lightning does"])
def test_a_stop_is_told_in_one_sentence(live: Kernel, code: str):
    assert live.run_code("import time").error is None
    begun = time.monotonic()
    ran = live.run_until(lambda: time.monotonic() > begun + 0.5, python(code))
    sentence = STOPPED[live.language]
    assert error_of(ran) == (f"KeyboardInterrupt: {sentence}", [sentence])
    assert live.run_code("1 + 1").texts == ["2"]


def test_an_exit_of_the_learners_own_stays_one(live: Kernel):
    said, _ = error_of(live.run_code("raise SystemExit(3)"))
    assert said == "SystemExit: 3"


def test_the_lesson_is_known_by_its_file(live: Kernel):
    name = "from course_lib.notebook.missing_names import lesson_name; print(lesson_name())"
    assert live.run(SETUP).error is None
    assert live.run_code(name).texts == ["00_scratch\n"]
    told = f"import os; os.environ['JPY_SESSION_NAME'] = {str(FIRST)!r}; {name}"
    assert live.run_code(told).texts == [f"{FIRST.stem}\n"]
    live.run_code("del os.environ['JPY_SESSION_NAME']")


def test_a_handler_of_the_learners_own_is_left_alone(live: Kernel):
    live.run_code(
        "shell = get_ipython(); ours = shell.custom_exceptions, shell.CustomTB\n"
        "shell.set_custom_exc((ZeroDivisionError,), lambda *a, **k: print('mine'))\n"
        "from course_lib.notebook.missing_names import explain_here; explain_here()"
    )
    assert live.run_code("1 / 0").texts == ["mine\n"]
    live.run_code("shell.custom_exceptions, shell.CustomTB = ours")
    assert live.run_code("del a") and MISSING.search(error_of(live.run(CALL))[0])


# What the lessons' tests rely on


def test_faults_of_a_bad_lesson_are_found(tmp_path):
    bad = [
        SETUP, ONE,
        python("x = 1"),
        python("try:\n    say = str(y)\nexcept Exception as error:\n    say = repr(error)\nsay"),
        python("x = [0]"),
        python("y = x[0]\ny"),
        python("missing = 'gone'\nprint({}['key'])"),
    ]  # fmt: skip
    lesson = build(tmp_path / "00_bad.ipynb", *bad)
    assert [name[:2] for name in ambiguous(lesson)] == ["x:"]
    with kernel("en", tmp_path, tmp_path) as started:
        before = [started.run(lesson.code[0])]
        remember_setup(started)
        before += [started.run(cell) for cell in lesson.code[1:]]
        remember_all(started)
        wrong = wrong_turns(
            lesson, before, run_in_random_orders(lesson, started, before, range(8), set())
        )
    said = "\n".join(wrong)
    assert "'int' object is not subscriptable" in said and "KeyError: 'key'" in said
    assert "NameError" in said and ", in order" in said  # the one that was swallowed
    assert len(wrong) < 8 * 6  # what is named well is no fault


def test_no_lesson_is_found_where_there_is_none(tmp_path):
    with kernel("en", tmp_path, tmp_path) as started:
        started.run_code("import course_lib, time")
        begun = time.monotonic()
        ran = started.run_until(lambda: time.monotonic() > begun + 0.5, python("time.sleep(60)"))
        said, shown = error_of(ran)
        assert said == "KeyboardInterrupt: " and len(shown) > 1
        said, shown = error_of(started.run_code("measured"))
        assert said == "NameError: name 'measured' is not defined" and len(shown) > 1
