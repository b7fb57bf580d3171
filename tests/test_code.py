"""The code itself: style, types, and which module may import which."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = sorted((ROOT / "course_lib").rglob("*.py"))
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in FILES
]


@pytest.mark.parametrize(
    "tool", ["ruff check", "ruff format --check", pytest.param("mypy", marks=pytest.mark.slow)]
)
def test_the_tools_have_nothing_to_say(tool):
    run = subprocess.run(
        [sys.executable, "-m", *tool.split()], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_imports_run_one_way():
    """The layers stand in pyproject.toml, with the one exception and its reason."""
    lint = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    run = subprocess.run(lint, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_a_module_says_what_it_is_and_takes_no_others_private_names(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    own = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
           and (node.level or (node.module or "").startswith("course_lib"))]  # fmt: skip
    assert not [alias.name for node in own for alias in node.names if alias.name.startswith("_")]


PACKAGES = [
    ".".join(file.parent.relative_to(ROOT).parts)
    for file in FILES
    if file.name == "__init__.py" and "__all__" in file.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_what_they_are_said_to_be(package):
    """Each package lists its names twice, for type checkers and for the loading: the same ones."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    listed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
              and node.level for alias in node.names}  # fmt: skip
    assert listed - {"loading", "explain_here"} == set(module.__all__)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.__getattr__("nothing")


def loaded_by(*modules: str) -> set[str]:
    """What is in sys.modules once ``modules`` have been imported, in a process of their own."""
    question = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", question], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_package_is_cheap():
    assert not loaded_by("course_lib") & {"torch", "numpy", "matplotlib", "ipywidgets"}


def test_only_the_modules_on_lightning_import_it():
    theirs = ("course_lib.lightning.", "course_lib.lessons.lightning_flag.checkers")
    plain = [module for module in MODULES if not module.startswith(theirs)]
    loaded = loaded_by(*plain)
    assert set(plain) <= loaded
    assert not loaded & {"lightning", "jsonargparse", "torch._dynamo", "torch._inductor"}
    assert not loaded & {"transformers", "peft"}, "lesson 07 imports them when they are needed"


# CONTRIBUTING.md

ZH, EN = re.findall(r"^## (?:中文|English)$\n(.*?)(?=^## )", CONTRIBUTING, re.M | re.S)


def test_what_contributing_names_is_there():
    for words in (ZH, EN):
        tools = re.findall(r"^\| `python course\.py dev (\w+)`", words, re.M)
        assert sorted(tools) == sorted(
            {path.stem for path in (ROOT / "tools").glob("*.py")} - {"refresh"}
        )
    commands = set(re.findall(r"course\.py (\w+)", CONTRIBUTING))
    assert commands == {"test", "refresh", "export", "benchmark", "dev"}
    paths = r"`((?:tests|tools|course_lib|notebooks|\.github)/[\w./]*|\w+\.(?:py|toml))`"
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
