"""The map of the lessons, the claims, and the check of the installation."""

import json
import re

import pytest

from course_lib import language
from course_lib.site import contents, machine
from course_lib.site.contents import CLAIMS, GLOSSARY, LESSONS, NOTEBOOKS, claims, lessons, verdicts


@pytest.fixture
def own_memory(monkeypatch, tmp_path):
    """Ticks go to a folder of this test's own, as a learner's would."""
    monkeypatch.delenv("COURSE_LANG", raising=False)
    monkeypatch.setattr(contents, "memory_folder", lambda: tmp_path / "memory")
    monkeypatch.setattr(language.choice, "_chosen", "en")


def test_every_notebook_is_on_the_map_and_links_to_its_file():
    there = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert there == {lesson.name for lesson in (*LESSONS, GLOSSARY) if lesson.exists}
    shown = lessons()._repr_mimebundle_()["text/html"]
    assert set(re.findall(r'href="(\w+)\.ipynb"', shown)) == there


def test_every_claim_names_a_lesson_and_is_ticked_off_in_it():
    for lesson in LESSONS:
        if not lesson.exists:
            continue
        notebook = json.loads((NOTEBOOKS / f"{lesson.name}.ipynb").read_text(encoding="utf-8"))
        code = "".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
        expected = {claim.key for claim in CLAIMS if claim.lesson == lesson.number}
        assert expected <= set(re.findall(r"\b(A\d+)=\(", code)), lesson.name


def test_a_lesson_ticks_claims_off_for_good(own_memory):
    assert "☑" not in str(claims())
    verdicts(A1=("不全", "incomplete"))
    verdicts(A2=("看情况", "it depends"))
    assert str(claims()).count("☑") == 2


def test_a_new_copy_of_the_course_starts_without_ticks(own_memory, tmp_path, monkeypatch):
    """Who takes the course on a machine where somebody else has."""
    verdicts(A1=("对", "yes"))
    assert "☑" in str(claims())
    monkeypatch.setattr(contents, "NOTEBOOKS", tmp_path / "another" / "notebooks")
    assert "☑" not in str(claims())


def test_stored_outputs_never_show_somebodys_ticks(own_memory, monkeypatch):
    verdicts(A1=("对", "yes"))
    monkeypatch.setenv("COURSE_LANG", "en")  # as a refresh or an export runs
    assert "☑" not in str(claims())


def test_a_home_that_cannot_be_written_loses_nothing_but_the_ticks(own_memory, tmp_path):
    (tmp_path / "memory").write_text("a file where a folder should be")
    assert "不全" in str(verdicts(A1=("不全", "incomplete"))._repr_mimebundle_()["text/html"])
    assert "☑" not in str(claims())


def test_a_run_of_the_tests_ticks_nothing_off(own_memory, monkeypatch):
    monkeypatch.setenv("COURSE_LANG", "en")
    verdicts(A1=("不全", "incomplete"))
    assert "☑" not in str(claims())


def test_a_verdict_on_a_claim_that_there_is_not_is_refused(own_memory):
    with pytest.raises(KeyError):
        verdicts(A99=("?", "?"))


def test_the_installation_is_ready_here():
    table = str(machine.check_installation())
    assert table.count("✓ ready") == len(table.splitlines()) - 1
    assert "torch " in table


def test_a_missing_or_other_package_is_named_with_its_cure(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("# none of these\nno-such-package==1.0\nnumpy==0.1\n-e .\n")
    missing, other = str(machine.check_installation(file)).splitlines()[1:]
    assert "missing: python course.py installs it" in missing
    assert "different version" in other


def test_one_line_says_what_this_runs_on():
    line = machine.describe()
    assert re.search(r"Python 3\.\d+\.\d+, torch 2\.\d+", line.en)
    assert re.search(r"\d GiB of memory", line.en)
