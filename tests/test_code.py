"""The code itself: style, types, and which module may import which."""

import ast
import itertools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODULES = sorted(path.stem for path in (ROOT / "course_lib").glob("[a-z]*.py"))
# Imported inside a function, from further down the list: (importer, imported): why.
LATER = {
    ("memory", "figures"): "trace.plot() draws with a module that draws traces",
    ("plans", "planners"): "the planners are offered beside what they plan with",
    ("language", "switch"): "only who shows the switch loads widgets",
    ("lightning_ddp", "lightning"): "its processes train; the one that starts them does not",
}


@pytest.mark.parametrize(
    "tool", ["ruff check", "ruff format --check", pytest.param("mypy", marks=pytest.mark.slow)]
)
def test_the_tools_have_nothing_to_say(tool):
    run = subprocess.run(
        [sys.executable, "-m", *tool.split()], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stdout + run.stderr


def layers() -> list[list[str]]:
    """The modules of course_lib, line by line, as CONTRIBUTING.md lists them."""
    listed = re.search(r"^```text\n(.+?)^```$", CONTRIBUTING, re.M | re.S)
    return [line.split() for line in listed[1].splitlines()]


def imports(module: str) -> tuple[set[str], set[str]]:
    """Modules of course_lib that ``module`` imports while loading, and later, in a function.

    What is imported for type checkers only is in neither.
    """
    tree = ast.parse((ROOT / "course_lib" / f"{module}.py").read_text(encoding="utf-8"))
    at_once, later = set(), set()

    def visit(node: ast.AST, found: set[str]) -> None:
        if isinstance(node, ast.If):
            test = ast.unparse(node.test)
            if test == "TYPE_CHECKING" or test.startswith("__name__"):
                return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found = later
        if isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            if name in (".", "course_lib"):
                found |= {alias.name for alias in node.names}
            elif own := re.match(r"(?:\.|course_lib\.)(\w+)", name):
                found.add(own[1])
        if isinstance(node, ast.Import):
            found |= {name[1] for alias in node.names
                      if (name := re.match(r"course_lib\.(\w+)", alias.name))}  # fmt: skip
        for child in ast.iter_child_nodes(node):
            visit(child, found)

    visit(tree, at_once)
    return at_once, later


def test_a_module_imports_only_from_modules_above_it():
    assert sorted(itertools.chain(*layers())) == MODULES, "CONTRIBUTING.md lists all modules"
    above: set[str] = set()
    at_once, later = set(), set()
    for line in layers():
        for module in line:
            now, in_functions = imports(module)
            at_once |= {(module, other) for other in now - above}
            later |= {(module, other) for other in in_functions - now - above}
        above |= set(line)
    assert not at_once
    assert later == set(LATER)


def loaded_by(*modules: str) -> set[str]:
    """What is in sys.modules once ``modules`` have been imported, in a process of their own."""
    question = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_package_is_cheap():
    assert not loaded_by("course_lib") & {"torch", "numpy", "matplotlib", "ipywidgets"}


def test_only_the_modules_on_lightning_import_it():
    plain = [f"course_lib.{module}" for module in MODULES if "lightning" not in module]
    loaded = loaded_by(*plain)
    assert set(plain) <= loaded
    assert not loaded & {"lightning", "jsonargparse", "torch._dynamo", "torch._inductor"}


# CONTRIBUTING.md

ZH, EN = re.findall(r"^## (?:中文|English)$\n(.*?)(?=^## )", CONTRIBUTING, re.M | re.S)


def test_what_contributing_names_is_there():
    for words in (ZH, EN):
        tools = re.findall(r"^\| `python course\.py dev (\w+)`", words, re.M)
        assert sorted(tools) == sorted(path.stem for path in (ROOT / "tests" / "dev").glob("*.py"))
    commands = set(re.findall(r"course\.py (\w+)", CONTRIBUTING))
    assert commands == {"test", "refresh", "export", "benchmark", "dev"}
    paths = r"`((?:tests|course_lib|notebooks|\.github)/[\w./]*|\w+\.(?:py|toml))`"
    named = {name for name in re.findall(paths, CONTRIBUTING) if "NN_name" not in name}
    assert len(named) > 8
    for name in named:
        at_the_top = "/" in name or name in ("course.py", "pyproject.toml")
        assert (ROOT / ("" if at_the_top else "course_lib") / name).exists(), name


def test_contributing_says_the_same_in_both_languages():
    zh, en = (re.split(r"^### .*$", words, flags=re.M) for words in (ZH, EN))
    assert len(zh) == len(en) > 5
    for pair in zip(zh, en, strict=True):
        one, other = (Counter(re.findall(r"`[^`]+`", words)) for words in pair)
        assert one == other
