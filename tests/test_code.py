"""The code itself: style, types, and which module may import which."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.stem for path in (ROOT / "course_lib").glob("[a-z]*.py"))
# Imported inside a function, from further down the list: (importer, imported): why.
LATER = {
    ("memory", "figures"): "trace.plot() draws with a module that draws traces",
    ("plans", "planners"): "best_plan() is offered beside Plan, and searches among Plans",
}


@pytest.mark.parametrize(
    "tool", ["ruff check", "ruff format --check", "mypy"], ids=lambda tool: tool.split(" --")[0]
)
def test_the_tools_have_nothing_to_say(tool):
    run = subprocess.run(
        [sys.executable, "-m", *tool.split()], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stdout + run.stderr


def layers() -> list[str]:
    """The modules of course_lib in the order in which CONTRIBUTING.md lists them."""
    words = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+)`", words.partition("## English")[2], re.M)


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
    order = layers()
    assert sorted(order) == MODULES, "CONTRIBUTING.md lists the modules of course_lib, in order"
    upwards, used = [], set()
    for place, module in enumerate(order):
        at_once, later = imports(module)
        assert at_once | later <= set(order)
        upwards += [(module, other) for other in at_once if other not in order[:place]]
        downwards = {(module, other) for other in later - at_once if other not in order[:place]}
        used |= downwards & set(LATER)
        upwards += downwards - set(LATER)
    assert not upwards
    assert used == set(LATER)


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
