"""The tools of tools/, and the workflows."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from course_lib.site.contents import REPOSITORY, edition_of
from tools import address, mutate, pins

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


# Pins


def test_a_pin_moves_and_nothing_else_does():
    text = (
        "# torch==2.13.0 is what the lessons were measured with\n"
        "torch==2.13.0\njsonargparse[signatures]==4.53.0\npytest-xdist==3.8.0\n\n-e .\n"
        'dependencies = ["torch==2.13.0", "numpy==2.4.6"]\n'
    )
    moved = pins.repinned(text, {"torch": "2.15.0", "jsonargparse": "5.0", "pytest": "10.0"})
    assert moved == text.replace("2.13.0", "2.15.0").replace("4.53.0", "5.0")
    assert pins.pins(moved) == {
        "torch": "2.15.0", "jsonargparse[signatures]": "5.0", "pytest-xdist": "3.8.0",
        "numpy": "2.4.6",
    }  # fmt: skip


def test_every_file_that_pins_something_is_moved_together():
    versions: dict[str, set[str]] = {}
    for name in pins.FILES:
        for pinned, version in pins.pins((ROOT / name).read_text(encoding="utf-8")).items():
            versions.setdefault(pinned, set()).add(version)
    assert {"torch", "ruff", "pip-audit"} <= set(versions)
    assert all(len(found) == 1 for found in versions.values()), versions
    elsewhere = {path.name for path in ROOT.glob("requirements*.txt")} - set(pins.FILES)
    assert not elsewhere


# The address


def test_a_new_address_stands_in_every_file(tmp_path):
    for file in address.files(ROOT):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    address.main(["me/my.course"], tmp_path)
    for file in address.files(ROOT):
        before, after = (path.read_text(encoding="utf-8") for path in (
            file, tmp_path / file.relative_to(ROOT)))  # fmt: skip
        assert before.count(REPOSITORY) == after.count("me/my.course")
        assert before.count(edition_of()) == after.count(edition_of("me/my.course"))
        assert REPOSITORY not in after and edition_of() not in after
    address.main([REPOSITORY], tmp_path)
    assert all((tmp_path / f.relative_to(ROOT)).read_bytes() == f.read_bytes()
               for f in address.files(ROOT))  # fmt: skip


@pytest.mark.parametrize("wrong", [[], ["name"], ["https://github.com/me/course"], ["a/b", "c"]])
def test_what_is_no_address_changes_nothing(wrong, tmp_path):
    with pytest.raises(SystemExit, match="owner/name"):
        address.main(wrong, tmp_path)


# Mutation


def test_each_mutant_is_a_program_that_differs_in_one_place():
    source = (
        '"""Words."""\n'
        "def f(x: int = 3) -> bool:\n"
        "    if x < 1 and not x:\n"
        "        print(f'中文 {x + 1}')\n"
        "    return max(x, 2) * 4 == 8\n"
    )
    found = mutate.mutants_of("m", source)
    changes = {(mutant.line, mutant.old, mutant.new) for mutant in found}
    assert changes == {
        (2, "3", "4"),
        (3, "x < 1", "(x <= 1)"),
        (3, "1", "2"),
        (3, "not x", "x"),
        (3, "x < 1 and not x", "(x < 1 or not x)"),
        (3, "x < 1 and not x", "(not (x < 1 and (not x)))"),
        (4, "print(f'中文 {x + 1}')", "pass"),
        (5, "max", "min"),
        (5, "2", "3"),
        (5, "max(x, 2) * 4", "(max(x, 2) + 4)"),
        (5, "4", "5"),
        (5, "max(x, 2) * 4 == 8", "(max(x, 2) * 4 != 8)"),
        (5, "8", "9"),
    }
    assert str(found[1]) == "m | x < 1 and not x | (not (x < 1 and (not x))) | if x < 1 and not x:"
    raw = source.encode()
    for mutant in found:
        assert raw[mutant.begin : mutant.end].decode() == mutant.old
        ast.parse((raw[: mutant.begin] + mutant.new.encode() + raw[mutant.end :]).decode())


def test_tests_in_classes_are_found_again():
    assert mutate.node_id("test_plans.test_a") == "tests/test_plans.py::test_a"
    assert mutate.node_id("test_plans.TestA.test_b") == "tests/test_plans.py::TestA::test_b"


def test_what_is_explained_is_still_there_and_has_a_reason():
    possible = {
        str(mutant)
        for module in mutate.SUBJECTS
        for mutant in mutate.mutants_of(
            module, (ROOT / "course_lib" / f"{module}.py").read_text(encoding="utf-8")
        )
    }
    assert mutate.explained() <= possible
    lines = mutate.EXPLAINED.read_text(encoding="utf-8").splitlines()
    entries = [i for i, line in enumerate(lines) if line in mutate.explained()]
    assert all(lines[i + 1].startswith("  ") or i + 1 in entries for i in entries)


def test_every_module_that_is_mutated_has_its_tests():
    for module, files in mutate.SUBJECTS.items():
        assert (ROOT / "course_lib" / f"{module}.py").exists()
        assert all((ROOT / "tests" / f"{name}.py").exists() for name in files)


# Workflows


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_pins_what_it_uses(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        may = {"pages": "write", "id-token": "write"} if name == "publish" else None
        assert job.get("permissions") == may and job["timeout-minutes"] <= 90
        assert {"uses", "run"} >= {key for step in job["steps"] for key in step} - {
            "name", "if", "with", "shell", "id", "env",
        }  # fmt: skip
    used = re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
    assert used and all(
        re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", u) for u in used
    )


def workflow_called(name):
    (path,) = (path for path in WORKFLOWS if path.stem == name)
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_what_is_published_has_been_tried_in_a_browser_before():
    jobs = workflow_called("pages")["jobs"]
    steps = jobs["build"]["steps"]
    done = [step.get("run") or step["uses"].split("@")[0] for step in steps]
    order = [done.index(one) for one in (
        "python course.py export --lang both --to edition/both",
        "python course.py test tests/browser/test_edition.py",
        "actions/upload-pages-artifact",
    )]  # fmt: skip
    assert order == sorted(order)
    assert steps[order[1]]["env"]["COURSE_EDITION"].endswith(steps[order[2]]["with"]["path"])
    assert jobs["publish"]["needs"] == "build"


def test_the_workflows_run_the_tests_everywhere_and_with_the_newest_torch():
    test, weekly = (workflow_called(name) for name in ("test", "weekly"))
    job = test["jobs"]["test"]
    systems = {entry["os"].split("-")[0] for entry in job["strategy"]["matrix"]["include"]}
    assert systems == {"ubuntu", "macos", "windows"}
    # `on` is true in YAML 1.1
    assert "schedule" in weekly[True]
    newest = [step.get("run", "") for step in weekly["jobs"]["newest-torch"]["steps"]]
    assert newest.index("python course.py dev pins torch") < newest.index("python course.py test")
    assert "python course.py test" in [step.get("run") for step in job["steps"]]
