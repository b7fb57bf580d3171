"""Change the library in small ways, one at a time, and see whether a test notices.

    python course.py dev mutate [--count N] [--seed N] [MODULE ...]

Of all the changes that the kinds below can make to a module, `count` are drawn at random. Each is
made in a copy of the course, where the tests that run the changed line are run until one fails.
A change that none notices has survived: write a test that notices it, or say in `survivors.txt`
why it makes no difference. Ends with an error if there is a survivor without a reason.

Needs a POSIX system: tests run in forks of a process that has torch loaded already.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from coverage import CoverageData

ROOT = Path(__file__).parent.parent
EXPLAINED = Path(__file__).with_name("survivors.txt")
SUBJECTS = {  # module, as a path in course_lib: the test files that are about it
    "memory/measurement": ("test_memory", "test_memory_properties", "test_simulated"),
    "memory/replay": ("test_memory", "test_memory_properties", "test_simulated"),
    "memory/roles": ("test_memory", "test_memory_properties", "test_simulated"),
    "plans/plan": ("test_plans", "test_placement"),
    "notebook/predictions": ("test_exercises",),
    "lessons/start_here/checkers": ("test_exercises",),
    "lessons/activation_memory/checkers": ("test_exercises",),
    "notebook/checking": ("test_exercises_checking",),
    "notebook/typed_numbers": ("test_exercises_numbers",),
    "lessons/torch_checkpoint/checkers": ("test_exercises_checkpoint",),
    "lessons/lightning_flag/checkers": ("test_exercises_lightning",),
    "lessons/placing_checkpoints/checkers": ("test_exercises_plans",),
    "lessons/more_than_one_device/checkers": ("test_exercises_ranks",),
    "lessons/your_own_model/checkers": ("test_exercises_your_own",),
    "lessons/your_own_model/error_message": ("test_your_own_model",),
    "lessons/manual_recomputation/cases": ("test_exercises_recompute",),
    "lessons/manual_recomputation/chains": ("test_exercises_recompute",),
    "lessons/manual_recomputation/checkers": ("test_exercises_recompute",),
    "lessons/manual_recomputation/judging": ("test_exercises_recompute",),
    "lessons/manual_recomputation/several": ("test_exercises_recompute",),
}
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
LOADED = (  # before the first fork: all that is large, nothing that is changed
    "course_lib", "torch", "torch.utils.checkpoint", "torch._subclasses.fake_tensor", "hypothesis",
    "matplotlib.figure", "ipywidgets", "lightning", "checkpoint_schedules",
)  # fmt: skip
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """``new`` in place of the bytes ``begin`` to ``end`` of a module, on the line ``text``."""

    module: str
    line: int
    begin: int
    end: int
    old: str
    new: str
    text: str

    def __str__(self) -> str:
        parts = (self.module, self.old, self.new, self.text)
        return " | ".join(" ".join(part.split()) for part in parts)


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """Copies of ``node`` that differ from it in one small way."""
    made = copy.deepcopy(node)
    match made:
        case ast.Compare(ops=[operator]) if type(operator) in OTHER:
            made.ops = [OTHER[type(operator)]()]
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(made.op) in OTHER:
            made.op = OTHER[type(made.op)]()
        case ast.UnaryOp(op=ast.Not()):
            made = made.operand
        case ast.Constant(value=bool()):
            made.value = not made.value
        case ast.Constant(value=int() | float()):
            made.value += 1
        case ast.Name(id=name) if name in SWAPPED:
            made.id = SWAPPED[name]
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Continue() | ast.Break():
            made = ast.Pass()
        case ast.If() | ast.While() | ast.IfExp() if not isinstance(made.test, ast.Compare):
            made = ast.UnaryOp(ast.Not(), made.test)
        case _:
            return
    yield made


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Every change that can be made to a module, in the order of its lines."""
    lines, texts = [0], source.splitlines(keepends=True)
    for line in texts:
        lines.append(lines[-1] + len(line.encode()))
    raw, found = source.encode(), []

    def visit(node: ast.AST) -> None:
        # Words for the reader, annotations and what only type checkers see change no behaviour.
        if isinstance(node, ast.JoinedStr):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith(("TYPE_", "__name__")):
            return
        for made in changed(node):
            place = node.test if isinstance(node, ast.If | ast.While | ast.IfExp) else node
            begin = lines[place.lineno - 1] + place.col_offset
            end = lines[place.end_lineno - 1] + place.end_col_offset
            old, new = raw[begin:end].decode(), ast.unparse(made)
            if isinstance(made, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.Compare):
                new = f"({new})"
            text = texts[place.lineno - 1]
            found.append(Mutant(module, place.lineno, begin, end, old, new, text))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(ast.parse(source))
    return found


class Copy:
    """A copy of the course in which one module at a time is changed and tested."""

    def __init__(self, folder: Path):
        self.root = folder
        skip = shutil.ignore_patterns(".*", "__pycache__", "test-output", "*.egg-info")
        shutil.copytree(ROOT, folder, ignore=skip, dirs_exist_ok=True)
        self.tests: dict[str, dict[int, list[str]]] = {}  # module: line: tests that run it
        self.seconds: dict[str, float] = {}  # of each test
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        sys.path.insert(0, str(folder))
        for name in LOADED:
            importlib.import_module(name)

    def watch(self, module: str) -> None:
        """Run a module's tests once and note which of them run each of its lines."""
        data = self.root / f"{module}.coverage"
        settings = self.root / "contexts.cfg"
        settings.write_text("[run]\ndynamic_context = test_function\nsource_pkgs = course_lib\n")
        files = [f"tests/{name}.py" for name in SUBJECTS[module]]
        run = subprocess.run(
            [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}",
             f"--data-file={data}", "-m", "pytest", "-q", "--durations=0", "-vv", *files],
            stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        if run.returncode:
            raise SystemExit(f"{module}: its tests fail as they are\n{run.stdout[-3000:]}")
        for seconds, test in re.findall(r"^ *([\d.]+)s \w+ +(\S+?::[\w:]+)", run.stdout, re.M):
            self.seconds[test] = self.seconds.get(test, 0) + float(seconds)
        read = CoverageData(str(data))
        read.read()
        contexts = read.contexts_by_lineno(str(self.root / "course_lib" / f"{module}.py"))
        by_line = {line: {node_id(name) for name in names if name}
                   for line, names in contexts.items()}  # fmt: skip
        # Tests that run none of its lines here may run any of them in a process of their own.
        ran = {test for test in self.seconds if test.startswith(tuple(files))}
        elsewhere = ran - set().union(*by_line.values())
        self.tests[module] = {
            line: sorted(tests | elsewhere, key=lambda test: self.seconds.get(test, 0))
            if tests
            else files  # it runs when the module is loaded
            for line, tests in by_line.items()
        }

    def notices(self, mutant: Mutant) -> str | None:
        """The test that fails with the change made, or None. A line that nothing runs: None."""
        chosen = self.tests[mutant.module].get(mutant.line)
        if not chosen:
            return None
        path = self.root / "course_lib" / f"{mutant.module}.py"
        for cached in path.parent.glob(f"__pycache__/{path.stem}.*"):
            cached.unlink()  # a change within the same second would go unseen
        whole = path.read_bytes()
        path.write_bytes(whole[: mutant.begin] + mutant.new.encode() + whole[mutant.end :])
        try:
            return self._failing(chosen, 60 + 5 * sum(self.seconds.get(t, 10) for t in chosen))
        finally:
            path.write_bytes(whole)

    def _failing(self, tests: list[str], limit: float) -> str | None:
        """The first of ``tests`` that fails, run in a fork; ``limit``: seconds."""
        with tempfile.TemporaryFile("w+") as said:
            child = os.fork()
            if not child:
                os.setsid()
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.dont_write_bytecode = True
                code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
                sys.stdout.flush()
                os._exit(code)
            deadline = time.monotonic() + limit
            while True:
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    break
                if time.monotonic() > deadline:
                    os.killpg(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    return "took too long"
                time.sleep(0.05)
            if status == 0:
                return None
            said.seek(0)
            output, code = said.read(), os.waitstatus_to_exitcode(status)
            failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
            if not failed and code > 0:  # the change went untried
                raise SystemExit(
                    f"pytest ended with exit code {code}, without a test that failed:\n{output}"
                )
            return failed[1] if failed else f"exit code {code}"


def node_id(context: str) -> str:
    """What pytest calls the test that coverage calls ``file.function`` or ``file.Class.method``."""
    file, *path = context.split(".")
    return "::".join([f"tests/{file}.py", *path])


def explained() -> set[str]:
    """The survivors that `survivors.txt` gives a reason for."""
    lines = EXPLAINED.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith((" ", "#"))}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python course.py dev mutate")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(SUBJECTS))
    parser.add_argument("--count", type=int, default=10, help="changes per module")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    modules = chosen.modules or list(SUBJECTS)
    possible = {
        module: mutants_of(
            module, (ROOT / "course_lib" / f"{module}.py").read_text(encoding="utf-8")
        )
        for module in modules
    }
    drawn = [
        mutant
        for module, mutants in possible.items()
        for mutant in random.Random(chosen.seed).sample(mutants, min(chosen.count, len(mutants)))
    ]
    among = sum(map(len, possible.values()))
    print(f"{len(drawn)} of {among} possible changes, seed {chosen.seed}", flush=True)
    known, survivors = explained(), []
    os.nice(10)
    with tempfile.TemporaryDirectory() as folder:
        course = Copy(Path(folder))
        for mutant in drawn:
            if mutant.module not in course.tests:
                course.watch(mutant.module)
            began = time.perf_counter()
            noticed = course.notices(mutant)
            if noticed is None:
                survivors.append(mutant)
            took = time.perf_counter() - began
            print(
                f"{noticed or 'SURVIVED'} ({took:.0f} s) line {mutant.line}: {mutant}", flush=True
            )
    new = [mutant for mutant in survivors if str(mutant) not in known]
    print(f"\n{len(drawn) - len(survivors)} of {len(drawn)} noticed; survivors: "
          f"{len(survivors) - len(new)} explained, {len(new)} not:")  # fmt: skip
    for mutant in new:
        print(f"course_lib/{mutant.module}.py:{mutant.line}: {mutant}")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
