"""Every lesson in a real kernel: each cell twice in place, run all again in Chinese, a thousand
moves of each explorer's sliders, exercises, cells in random orders, both languages.

One kernel per lesson does all of it; the tests look at what it recorded.
"""

from __future__ import annotations

import ast
import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from nbformat import NotebookNode

from support.contrast import faint_styles
from support.notebook_rules import HAN
from support.notebooks import (
    IGNORED_OUTPUT,
    Kernel,
    Lesson,
    Ran,
    build,
    kernel,
    lessons,
    markdown,
    named,
    prose,
    python,
    tags,
)
from support.out_of_order import (
    Turn,
    ambiguous,
    remember_all,
    remember_setup,
    run_in_random_orders,
    wrong_turns,
)
from support.slider_moves import Moved, move_sliders

pytestmark = pytest.mark.slow

GOAL_SECONDS = 30
LONG_SECONDS = 15
LIMIT_SECONDS = 300  # not a matter of speed any more: something hangs
ORDERS = {"zh": range(0, 10), "en": range(10, 20)}  # their seeds


# What a kernel is made to do


@dataclass(frozen=True)
class Runs:
    """What came of a lesson's code cells and exercises.

    ``first``, ``second``: each cell twice in a row, in English. ``chinese``: Run All again.
    ``turns``: in random orders. These, ``stubs`` and ``solutions`` of exercises, are by language.
    """

    first: list[Ran]
    second: list[Ran]
    chinese: list[Ran]
    turns: dict[str, list[Turn]]
    stubs: dict[str, list[Ran]]
    solutions: dict[str, list[Ran]]
    unpictured: list[str]
    moved: list[Moved]
    faint: list[str]

    def spoken(self, language: str) -> list[Ran]:
        """All that ran in a language, random orders left out."""
        runs = [*self.first, *self.second] if language == "en" else self.chinese
        return [*runs, *self.stubs[language], *self.solutions[language]]


CHOOSE = "from course_lib.language import choose; choose('{}')"


def run_every_way(lesson: Lesson, live: Kernel) -> Runs:
    """Put the lesson through everything, in a kernel that speaks English at first."""
    pairs = [(run_setup(lesson, live), live.run(lesson.code[0]))]
    pairs += [run_in_place(cell, live) for cell in lesson.code[1:]]
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    tried = {"en": run_exercises(lesson, live)}
    unpictured = sliders_without_a_picture(first, live)
    live.run_code(CHOOSE.format("zh"))
    chinese = [live.run(cell) for cell in lesson.code]
    remember_all(live)
    moved, faint = move_sliders(live), what_is_faint(chinese, live)
    tried["zh"] = run_exercises(lesson, live)  # before the orders, which leave few names behind
    turns, long = {}, set()
    for language, before in (("zh", chinese), ("en", first)):
        live.run_code(CHOOSE.format(language))
        turns[language] = run_in_random_orders(lesson, live, before, ORDERS[language], long)
    stubs, solutions = ({lang: both[i] for lang, both in tried.items()} for i in (0, 1))
    return Runs(first, second, chinese, turns, stubs, solutions, unpictured, moved, faint)


def run_in_place(cell: NotebookNode, live: Kernel) -> tuple[Ran, Ran]:
    """A cell twice in a row; one that takes long is run again only by Run All."""
    first = live.run(cell)
    return first, first if first.seconds > LONG_SECONDS else live.run(cell)


def run_setup(lesson: Lesson, live: Kernel) -> Ran:
    ran = live.run(lesson.code[0])
    remember_setup(live)
    return ran


def run_exercises(lesson: Lesson, live: Kernel) -> tuple[list[Ran], list[Ran]]:
    """Each exercise's stub as it stands, and its folded solution in place of the stub."""
    tried = [
        (live.run(exercise.cell), live.run(python(exercise.solved)))
        for exercise in lesson.exercises()
    ]
    return [stub for stub, _ in tried], [solution for _, solution in tried]


# What may be wrong


def failures(runs: Runs) -> list[str]:
    """Cells that raised, warned, or wrote anything else to stderr."""
    ran = runs.spoken("en") + runs.spoken("zh")
    errors = [one.error for one in ran if one.error]
    return errors + [f"{named(one.cell)}: stderr: {one.stderr}" for one in ran if one.stderr]


def changes(runs: Runs) -> list[str]:
    """Cells that said something else the second time, those excepted that are meant to."""
    return [
        f"{named(before.cell)}: first {before.texts}, then {after.texts}"
        for before, after in zip(runs.first, runs.second, strict=True)
        if before.texts != after.texts and IGNORED_OUTPUT not in tags(before.cell)
    ]


def wrong_language(runs: Runs, language: str) -> list[str]:
    """Lines of output in the other language: English sentences, or Chinese characters."""
    other = r"[A-Za-z]{2,}(?: [a-z]{2,}){3}" if language == "zh" else HAN
    return [
        f"{named(ran.cell)}: {line}"
        for ran in runs.spoken(language)
        for text in ran.texts
        for line in text.replace("中文", "").splitlines()
        if re.search(other, line) and not (language == "zh" and re.search(HAN, line))
        if not is_code(line)
    ]


def is_code(line: str) -> bool:
    """A line of Python, such as lessons print to be pasted, has no language of its own."""
    with contextlib.suppress(SyntaxError):
        parsed = ast.parse(line.strip() + (" pass" if line.rstrip().endswith(":") else ""))
        return not all(  # a string alone is something said
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            for statement in parsed.body
        )
    return False


def untaught(runs: Runs) -> list[str]:
    """Stubs that are not kindly unfinished, and solutions that do not pass."""
    complaints = []
    for sign, by_language in (("✏️", runs.stubs), ("✅", runs.solutions)):
        for ran in (*by_language["en"], *by_language["zh"]):
            said = "\n".join(ran.texts)
            if sign not in said or ran.error:
                complaints.append(f"{named(ran.cell)}: no {sign} but {ran.error or said!r}")
    return complaints


def sliders_without_a_picture(runs: list[Ran], live: Kernel) -> list[str]:
    """Outputs with sliders that would be blank where no widget runs."""
    return [
        f"{named(ran.cell)}: sliders and beside them only {sorted(output.data)}"
        for ran in runs
        for output in ran.outputs
        if live.sliders(output) and not {"image/png", "text/plain"} <= set(output.data)
    ]


FAINT_WORDS = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import gc; from support.contrast import faint_words; from course_lib.figures.picture import Picture
pictures = [one for one in gc.get_objects() if issubclass(type(one), Picture)]
print(*{{words for picture in pictures for words in faint_words(picture)}}, sep="\\n")
"""


def what_is_faint(runs: list[Ran], live: Kernel) -> list[str]:
    """Words, in pictures and in HTML, that would be hard to read in one of the themes."""
    pages = [output.get("data", {}).get("text/html", "") for ran in runs for output in ran.outputs]
    styles = {style for page in [*pages, *live.pages()] for style in faint_styles(page)}
    looked = live.run_code(FAINT_WORDS)
    assert not looked.error, looked.error
    return [*styles, *"".join(looked.texts).split("\n")[:-1]]


# The lessons


@pytest.fixture(scope="module", params=lessons(), ids=str)
def lesson(request) -> Lesson:
    return request.param


@pytest.fixture(scope="module")
def runs(lesson, tmp_path_factory) -> Runs:
    with kernel("en", tmp_path_factory.mktemp("kernel")) as live:
        return run_every_way(lesson, live)


def test_each_cell_twice_and_then_run_all_again(runs):
    """The last time in Chinese, where a glyph that the font lacks is an error."""
    assert not failures(runs)


def test_a_cell_that_is_run_again_says_the_same(runs):
    assert not changes(runs)


def test_run_all_is_quick(lesson, runs, report):
    seconds = sum(ran.seconds for ran in runs.chinese)
    slowest = max(runs.chinese, key=lambda ran: ran.seconds)
    late = f", over the goal of {GOAL_SECONDS} s" if seconds > GOAL_SECONDS else ""
    report(
        f"{lesson}: Run All {seconds:.1f} s{late}; slowest {slowest.seconds:.1f} s, "
        f"{named(slowest.cell)}"
    )
    assert seconds < LIMIT_SECONDS


def test_cells_in_any_order_work_or_say_what_they_need(lesson, runs):
    wrong = wrong_turns(lesson, runs.first, runs.turns["en"])
    assert not wrong + wrong_turns(lesson, runs.chinese, runs.turns["zh"])


def test_a_name_from_another_cell_has_one_meaning(lesson):
    assert not ambiguous(lesson)


def test_english_is_spoken(runs):
    assert not wrong_language(runs, "en")


def test_chinese_is_spoken(runs):
    assert any(re.search(HAN, text) for ran in runs.chinese for text in ran.texts)
    assert not wrong_language(runs, "zh")


def test_stubs_are_unfinished_and_solutions_pass(runs):
    assert not untaught(runs)


def test_sliders_leave_a_picture_where_no_widget_runs(runs):
    assert not runs.unpictured


def test_a_thousand_moves_of_each_slider(runs, report):
    for moved in runs.moved:
        report(f"{moved.name}: {moved.positions} positions, {moved.grown:+.1f} MiB")
    assert not [moved.complaint() for moved in runs.moved if moved.complaint()]


def test_words_stand_out_in_any_theme(runs):
    assert not [words for words in runs.faint if words]


# The checks themselves

SETUP = python(
    "from course_lib.language import text, say\n"
    "say(zh='准备好了。', en='Ready to start with the course.')",
    "setup",
)
STUB = """\
def double(n):
    return None


print('✏️' if double(1) is None else '✅' if double(1) == 2 else '❌')"""
SLIDER = """\
import ipywidgets as w
from IPython.display import display

class Explorer(w.VBox):
    def _repr_mimebundle_(self, **kwargs):
        return super()._repr_mimebundle_(**kwargs) | {"image/png": "iVBORw0KGgo="}

Explorer([w.IntSlider(), w.HBox([w.Label("x")])])"""
FAINT = """\
from course_lib.figures.picture import Picture
picture = Picture()
picture.text(0.1, 0.2, "clear", color="#444"), picture.text(0.1, 0.5, "pale", color="#d5d9de")
w.HTML('<p style="color:#777">on any background</p>')"""
GLYPH = "import matplotlib.pyplot as plt\nplt.title('\\U000137ff')\nplt.show()"


def exercise(stub: str, solution: str) -> list:
    """The section of an exercise, with its solution folded."""
    body = f"<details><summary>Solution</summary>\n\n```python\n{solution}\n```\n\n</details>"
    return [markdown("## 练习 · Exercise"), *prose(body, body), python(stub, "exercise")]


def scratch(tmp_path: Path, *cells) -> Runs:
    lesson = build(tmp_path / "00_scratch.ipynb", SETUP, *cells)
    with kernel("en", tmp_path, tmp_path) as live:
        return run_every_way(lesson, live)


def test_a_good_lesson_passes(tmp_path):
    solved = STUB.replace("None\n", "2 * n\n", 1)
    runs = scratch(tmp_path, python("1 + 1"), python(SLIDER), *exercise(STUB, solved))
    assert len(runs.first) == len(runs.second) == len(runs.chinese) == 4
    assert runs.solutions["en"][0].texts == runs.solutions["zh"][0].texts == ["✅\n"]
    assert [ran.texts for ran in (runs.first[0], runs.chinese[0])] == [
        ["Ready to start with the course."], ["准备好了。"]
    ]  # fmt: skip
    found = failures(runs) + changes(runs) + untaught(runs)
    assert found + wrong_language(runs, "en") + wrong_language(runs, "zh") + runs.unpictured == []


def test_faults_of_a_bad_lesson_are_found(tmp_path):
    bare_slider = SLIDER.replace("image/png", "image/svg+xml")
    cells = [
        python("1 / 0"),
        python("import warnings; warnings.warn('old')"),
        python(GLYPH),
        python("count = globals().get('count', 0) + 1\ncount"),
        python("'这句没有英文'"),
        python("'not said in the other language'"),
        python(bare_slider),
        *exercise(STUB, "def double(n):\n    return 3 * n"),
        *exercise("raise ValueError('in the stub')", STUB),
    ]
    runs = scratch(tmp_path, *cells, python(FAINT))
    failed = "\n".join(failures(runs))
    assert "ZeroDivisionError" in failed and "UserWarning: old" in failed
    assert "Glyph 79871" in failed and "missing from font" in failed
    assert len(changes(runs)) == 1 and "first ['1'], then ['2']" in changes(runs)[0]
    assert {line[-8:] for line in wrong_language(runs, "en")} == {"'这句没有英文'"}
    assert {line[-15:] for line in wrong_language(runs, "zh")} == {"other language'"}
    assert len(runs.unpictured) == 1 and "svg" in runs.unpictured[0]
    wrong = untaught(runs)
    assert [sum(sign in line for line in wrong) for sign in ("no ✏️ but", "no ✅ but '❌")] == [2, 2]
    assert "in the stub" in wrong[0]
    assert runs.faint == ["color:#777", "'pale' 1.42"]


def test_a_cell_that_works_only_once_is_found(tmp_path):
    """Run All would not notice: it fills the list again."""
    runs = scratch(tmp_path, python("x = [1]"), python("x.pop()"))
    assert "pop from empty list" in failures(runs)[0]
    assert not any(ran.error for ran in runs.chinese)
