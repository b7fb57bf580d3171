"""A lesson's cells in random orders, in a kernel that has run them all, and what may come of it.

Every lesson runs in 20 orders. Three things keep that short: the kernel of the other tests serves,
its names reset to those after the setup cell; most cells of a random order stop at the first name
they lack; and a cell that took long runs again only once, where something that it needs is
missing, since it has to say so. Where all is there, its names get the values of Run All.
"""

from __future__ import annotations

import ast
import random
import re
import symtable
from collections.abc import Iterable
from dataclasses import dataclass

from nbformat import NotebookNode

from course_lib.notebook.missing_names import names_made
from support.notebooks import IGNORED_OUTPUT, Kernel, Lesson, Ran, named, tags

LONG = 0.3  # seconds


# What cells make and need


def made_by(source: str) -> set[str]:
    """The global names that a cell gives values to."""
    return {name for name, _ in names_made(ast.parse(source))}


def asked_for(source: str) -> set[str]:
    """The global names that a cell, or a function defined in it, reads."""
    found: set[str] = set()

    def visit(scope: symtable.SymbolTable) -> None:
        top = scope.get_type() == "module"
        found.update(
            symbol.get_name()
            for symbol in scope.get_symbols()
            if symbol.is_referenced() and (top or symbol.is_global())
        )
        for inner in scope.get_children():
            visit(inner)

    visit(symtable.symtable(source, "cell", "exec"))
    return found


def needs(cell: NotebookNode, cells: Iterable[NotebookNode]) -> set[str]:
    """The names from other cells that a cell needs, directly or by way of others."""
    makers = {name: other for other in cells for name in made_by(other.source)}
    found: set[str] = set()
    waiting = [cell]
    while waiting:
        source = waiting.pop().source
        new = (asked_for(source) & makers.keys()) - made_by(source) - found
        found |= new
        waiting += [makers[name] for name in new]
    return found


def ambiguous(lesson: Lesson) -> list[str]:
    """Names that one cell takes from another while several cells give them different values.

    What such a cell gets would depend on the order. The same import in several cells is no harm.
    """
    makers: dict[str, list[NotebookNode]] = {}
    for cell in lesson.code:
        for name in made_by(cell.source):
            makers.setdefault(name, []).append(cell)
    return [
        f"{name}: made by {' and '.join(map(named, cells))}"
        for name, cells in makers.items()
        if len(cells) > 1 and not all(_imports(cell.source, name) for cell in cells)
        and any(name in asked_for(cell.source) for cell in lesson.code if cell not in cells)
    ]  # fmt: skip


def _imports(source: str, name: str) -> bool:
    return any(
        isinstance(node, (ast.Import, ast.ImportFrom))
        and any((alias.asname or alias.name) == name for alias in node.names)
        for node in ast.parse(source).body
    )


# Running them


@dataclass(frozen=True)
class Turn:
    """What came of a cell in the order that `seed` gives."""

    seed: int
    ran: Ran


def remember_setup(live: Kernel) -> None:
    """To be called when nothing but the setup cell has run."""
    live.run_code("import builtins; builtins.after_setup = dict(globals())")


def remember_all(live: Kernel) -> None:
    """To be called when every cell has run."""
    live.run_code("import builtins; builtins.after_all = dict(globals())")


RESET = """\
for name in globals().keys() - after_setup.keys():
    if not name.startswith("__"):  # the compiler's own, which it removes itself
        del globals()[name]
globals().update(after_setup)
import course_lib.notebook.predictions
course_lib.notebook.predictions._predictions.clear()
"""


def run_in_random_orders(
    lesson: Lesson, live: Kernel, before: list[Ran], seeds: Iterable[int], tried: set[str]
) -> list[Turn]:
    """The cells after the setup cell in one order per seed; `before`: what Run All did.

    `tried`: the ids of cells that took long and have run again once already; it grows.
    """
    cells = lesson.code[1:]
    long = {ran.cell.id for ran in before if ran.seconds > LONG and not ran.error}
    turns = []
    for seed in seeds:
        live.run_code(RESET)
        for cell in random.Random(seed).sample(cells, len(cells)):
            if cell.id in long and _is_there(needs(cell, cells), live):
                names = sorted(made_by(cell.source))
                live.run_code(f"globals().update((n, after_all[n]) for n in {names})")
            elif cell.id not in tried:
                tried |= {cell.id} & long
                turns.append(Turn(seed, live.run(cell)))
    return turns


def _is_there(names: set[str], live: Kernel) -> bool:
    asked = live.run_code(f"print(set({sorted(names)}) <= globals().keys())")
    return asked.texts == ["True\n"]


# What may come of it


def wrong_turns(lesson: Lesson, before: list[Ran], turns: list[Turn]) -> list[str]:
    """Cells that failed without saying which one to run first, warned, or said something else.

    A name that is missing must be made by the line that the message quotes, in a cell above.
    """
    usual = {ran.cell.id: ran.texts for ran in before}
    complaints = []
    for turn in turns:
        cell, ran = turn.ran.cell, turn.ran
        if ran.error:
            above = lesson.code[: lesson.code.index(cell)]
            wrong = "" if _says_which(ran.error, above) else ran.error
        elif ran.stderr:
            wrong = f"{named(cell)}: stderr: {ran.stderr}"
        else:
            # The scoreboard shows the predictions that were asked for so far.
            may_differ = IGNORED_OUTPUT in tags(cell) or "scoreboard()" in cell.source
            same = may_differ or ran.texts == usual[cell.id]
            wrong = "" if same else f"{named(cell)}: {ran.texts}, in order {usual[cell.id]}"
        if wrong:
            complaints.append(f"order {turn.seed}: {wrong}")
    return complaints


MISSING = re.compile(
    r"NameError: (?:there is no (?P<en>\w+) yet|这里还没有 (?P<zh>\w+))"
    r".*\n\n    (?P<line>.+)\n\n(?:Run that cell first|请先运行那个单元格)"
)
UNASKED = re.compile(  # compare(), for a prediction whose field was never shown
    r"KeyError: .*(?:Prediction '(?P<en>[^']+)' .* run the cell with its field, under “.+”, first"
    r"|没有问过“(?P<zh>[^”]+)”.*请先运行“.+”一节里带输入框的单元格)"
)


def wanted(error: str) -> str | None:
    """What stands in the cell that a message asks to be run first; None if it asks for none."""
    if found := MISSING.search(error):
        return found["line"]
    if found := UNASKED.search(error):
        return f'("{found["en"] or found["zh"]}", zh='  # of its predict cell
    return None


def _says_which(error: str, above: list[NotebookNode]) -> bool:
    if found := MISSING.search(error):
        name = found["en"] or found["zh"]
        return any(
            name in made_by(cell.source)
            and found["line"] in map(str.strip, cell.source.splitlines())
            for cell in above
        )
    line = wanted(error)
    return line is not None and any(line in cell.source for cell in above)
