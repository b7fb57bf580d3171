"""Cells run out of order, and cells stopped: what to do, said in the learner's language.

A cell that needs an earlier one would end in a bare ``NameError``. In a lesson, the error names
the cell to run first instead; and a cell that was stopped says so in one sentence. All other
errors, misspelt names included, stay as they are.

The notebook file says which cell makes which name. Kernels of the course's own environment load
this module as they start (see ``course.py``); elsewhere, the first import of the library does it.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..language import text
from ..paths import NOTEBOOKS


@dataclass(frozen=True)
class Cell:
    """A code cell of a lesson. ``heading``: the one it stands under, (zh, en)."""

    id: str
    source: str
    tags: tuple[str, ...]
    heading: tuple[str, str]

    def line_that_makes(self, name: str) -> str | None:
        """The line that gives ``name`` a value, None if there is none."""
        try:
            tree = ast.parse(self.source)
        except SyntaxError:  # half edited, or not Python alone
            return None
        line = next((line for made, line in names_made(tree) if made == name), None)
        return self.source.splitlines()[line - 1].strip() if line else None


def names_made(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The names that code gives values to where it stands, with their lines; functions left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif not isinstance(
            node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
        ):
            yield from names_made(node)


def read(path: Path) -> list[Cell]:
    """The code cells of a lesson, in order; none if the file is no lesson or cannot be read."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
        cells, heading = [], ("", "")
        for cell in stored:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown" and source.startswith("#"):
                zh, _, en = source.splitlines()[0].lstrip("# ").partition(" · ")
                heading = (zh, en or zh)
            elif cell["cell_type"] == "code":
                tags = tuple(cell["metadata"].get("tags", ()))
                cells.append(Cell(cell.get("id", ""), source, tags, heading))
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return cells if any("setup" in cell.tags for cell in cells) else []


def _here(shell: Any) -> tuple[list[Cell], int]:
    """The lesson that is running, and which of its cells; -1 for one that the file lacks."""
    lesson = _lesson(shell)
    message = shell.get_parent() if hasattr(shell, "get_parent") else {}
    identity = message.get("metadata", {}).get("cellId")  # stays when the cell is edited
    code = message.get("content", {}).get("code", "").strip()  # all that a test runner sends
    for number, cell in enumerate(lesson):
        if cell.id == identity or cell.source.strip() == code:
            return lesson, number
    return lesson, -1


def _lesson(shell: Any) -> list[Cell]:
    """The cells of the lesson that is running; none where this is no lesson."""
    file = _lesson_file(shell)
    return read(file) if file else []


def _lesson_file(shell: Any) -> Path | None:
    """The notebook of the lesson that is running; None where this is no lesson."""
    # JupyterLab and VS Code say which notebook it is.
    for name in (os.environ.get("JPY_SESSION_NAME"), shell.user_ns.get("__vsc_ipynb_file__")):
        if name and read(Path(name)):
            return Path(name)
    ran = {code.strip() for code in shell.history_manager.input_hist_raw if code.strip()}
    files = (*sorted(Path.cwd().glob("*.ipynb")), *sorted(NOTEBOOKS.glob("*.ipynb")))
    matches = {file: sum(cell.source.strip() in ran for cell in read(file)) for file in files}
    best = max(matches, key=matches.__getitem__, default=None)
    return best if best and matches[best] else None


def missing(shell: Any, name: str) -> str | None:
    """Which cell to run first so that ``name`` exists, in words; None if no other cell makes it."""
    cells, running = _here(shell)
    above = cells if running < 0 else cells[:running]
    makers = [(cell, line) for cell in above if (line := cell.line_that_makes(name))]
    if not makers:
        return None
    cell, line = makers[-1]  # the value that the lesson has at this place
    zh, en = cell.heading
    zh, en = (f"“{zh}”一节里的", f", under “{en}”") if zh else ("", "")
    return text(
        zh=f"这里还没有 {name}。它由{zh}这个单元格产生：\n\n    {line}\n\n"
        "请先运行那个单元格，或用菜单“运行 ▸ 运行选中单元格上方的所有单元格”，"
        "把上面的单元格都运行一遍。",
        en=f"there is no {name} yet. It is made in the cell with this line{en}:\n\n"
        f"    {line}\n\n"
        "Run that cell first, or all cells above this one: Run ▸ Run All Above Selected Cell.",
        between="\n\n",
    )


def heading_of(tag: str, words: str) -> tuple[str, str] | None:
    """The heading of the running lesson's cell that has this tag and holds these words."""
    if (shell := _shell()) is None:
        return None
    return next(
        (cell.heading for cell in _lesson(shell) if tag in cell.tags and words in cell.source), None
    )


def lesson_name() -> str | None:
    """The name of the running lesson's file, without ``.ipynb``; None where this is no lesson."""
    file = _lesson_file(shell) if (shell := _shell()) is not None else None
    return file.stem if file else None


def _explain(
    shell: Any, kind: type, error: Any, trace: TracebackType, tb_offset: int | None = None
) -> None:
    """What IPython calls on an error that we have words for: show it, in those where they fit."""
    if kind is KeyboardInterrupt:
        return _say_stopped(shell, error, trace, tb_offset)
    last = trace
    while last.tb_next is not None:
        last = last.tb_next
    ours = last.tb_frame.f_globals is shell.user_ns and error.name not in shell.user_ns
    if kind is NameError and ours and (words := missing(shell, error.name)):
        error.args = (words,)
        error._render_traceback_ = lambda: [f"NameError: {words}"]  # asked for by IPython
    shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def _say_stopped(
    shell: Any, error: KeyboardInterrupt, trace: TracebackType, tb_offset: int | None
) -> None:
    """One sentence in place of a traceback: a learner who pressed stop knows what happened."""
    if _lesson(shell):
        error.args = (
            text(
                zh="停下了。再运行这个单元格，它就从头再来。",
                en="Stopped. Run the cell again, and it starts afresh.",
            ),
        )
        error._render_traceback_ = lambda: list(error.args)  # type: ignore[attr-defined]
    shell.showtraceback((KeyboardInterrupt, error, trace), tb_offset=tb_offset)


def load_ipython_extension(shell: Any) -> None:
    """Have this kernel explain its NameErrors and stops, unless something else already does."""
    if shell.custom_exceptions:
        return
    shell.set_custom_exc((NameError, KeyboardInterrupt), _explain)
    show = shell.showtraceback

    def showtraceback(*args: Any, exception_only: bool = False, **kwargs: Any) -> None:
        _, error, trace = sys.exc_info()
        # Lightning's Trainer makes a SystemExit of a stop; IPython then says how to exit.
        if exception_only and isinstance(error, SystemExit):
            stop = error.__context__
            if isinstance(stop, KeyboardInterrupt) and trace is not None:
                return _say_stopped(shell, stop, trace, None)
        return show(*args, exception_only=exception_only, **kwargs)

    shell.showtraceback = showtraceback
    warnings.filterwarnings("ignore", message="To exit: use 'exit', 'quit'")


def explain_here() -> None:
    """Do so where this process is a kernel; nothing anywhere else."""
    if (shell := _shell()) is not None:
        load_ipython_extension(shell)


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
