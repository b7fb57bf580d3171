"""The course's notebooks as the tests see them: cells, prose taken apart, and live kernels."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbformat import NotebookNode

import course

ROOT = Path(course.__file__).parent
FOLDER = ROOT / "notebooks"

IGNORED_OUTPUT = "nbval-ignore-output"
RAISES = "raises-exception"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


# Cells


@dataclass(frozen=True)
class Lesson:
    """One notebook file; `cells` is read once, so write the file before looking at it."""

    path: Path

    def __str__(self) -> str:
        return self.path.stem

    @cached_property
    def notebook(self) -> NotebookNode:
        return nbformat.read(self.path, as_version=4)

    @property
    def cells(self) -> list[NotebookNode]:
        return self.notebook.cells

    @property
    def code(self) -> list[NotebookNode]:
        """Code cells that hold something."""
        return [cell for cell in self.cells if cell.cell_type == "code" and cell.source.strip()]

    def pairs(self) -> Iterator[tuple[NotebookNode, NotebookNode]]:
        """Chinese and English prose cells that stand next to each other, in that order."""
        for first, second in zip(self.cells, self.cells[1:], strict=False):
            if prose_language(first) == "zh" and prose_language(second) == "en":
                yield first, second

    def sections(self) -> list[list[NotebookNode]]:
        """The cells from one heading up to the next."""
        found: list[list[NotebookNode]] = [[]]
        for cell in self.cells:
            if cell.cell_type == "markdown" and cell.source.startswith("#"):
                found.append([])
            found[-1].append(cell)
        return found

    def exercises(self) -> list[Exercise]:
        """The exercise cells, each with the solutions that are folded in its section."""
        return [
            Exercise(cell, [code for c in section for code in folded_solutions(c)])
            for section in self.sections()
            for cell in section
            if "exercise" in tags(cell)
        ]


def lessons() -> list[Lesson]:
    """Every lesson of the course, in order; the glossary, a page without code, is none."""
    return [Lesson(path) for path in sorted(FOLDER.glob("[0-9]*.ipynb"))]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def prose_language(cell: NotebookNode) -> str | None:
    """`zh` or `en` for a prose cell with exactly that one language tag, else None."""
    found = [tag for tag in tags(cell) if tag in ("zh", "en")]
    return found[0] if cell.cell_type == "markdown" and len(found) == 1 else None


def headings(source: str) -> list[str]:
    """The Markdown heading lines of `source`, those inside code blocks left out."""
    return re.findall(r"^#{1,6} .*$", FENCE.sub("", source), re.M)


def named(cell: NotebookNode) -> str:
    """How a complaint names a cell: its id and its first words."""
    words = re.sub(r"<span lang=.{4}></span>", "", cell.source).strip()
    return f"cell {cell.get('id', '?')} ({words.splitlines()[0][:50] if words else 'empty'!r})"


# Exercises

FOLDED = re.compile(r"<details>\s*<summary>(?P<title>.*?)</summary>(?P<body>.*?)</details>", re.S)
SOLUTION_TITLE = re.compile(r"solution|解答|答案|参考解", re.I)


@dataclass(frozen=True)
class Exercise:
    """A stub and its reference solutions, one from each language's prose."""

    cell: NotebookNode
    solutions: list[str]

    @property
    def check(self) -> str:
        """The stub's last line: the call of the checker."""
        return self.cell.source.rstrip().splitlines()[-1]

    @property
    def solved(self) -> str:
        """The solution as a learner would run it, ending in the checker's call."""
        code = self.solutions[0].rstrip()
        return code if code.splitlines()[-1] == self.check else f"{code}\n\n{self.check}\n"


def folded_solutions(cell: NotebookNode) -> list[str]:
    """The Python code under a folded title that says it is the solution."""
    return [
        code
        for folded in FOLDED.finditer(cell.source if prose_language(cell) else "")
        if SOLUTION_TITLE.search(folded["title"])
        for language, code in FENCE.findall(folded["body"])
        if language == "python"
    ]


# Prose

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.M | re.S)
CODE = re.compile(r"(`+)(.+?)\1", re.S)
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\\w])\$([^$\n]+?)\$(?!\d)", re.S)
LINK = re.compile(r"!?\[([^\]]*)\]\(<?([^)\s>]+)>?[^)]*\)")
ANCHOR = re.compile(r"<(?:a|img)\b[^>]*?(?:href|src)=[\"']([^\"']+)[\"'][^>]*>", re.S)
URL = re.compile(r"https?://[\w./?#%&=~+:@-]*[\w/]", re.A)
TAG = re.compile(r"<!--.*?-->|</?[a-zA-Z][^>]*>", re.S)
NUMBER = re.compile(r"(?<![A-Za-z_\d.])(?<!\d,)(?<![A-Za-z]-)\d+(?:,\d{3})*(?:\.\d+)?")

TOKEN = "\ue000"  # stands in `words` where code, a formula or an address was taken out


@dataclass(frozen=True)
class Prose:
    """A prose cell taken apart.

    `words` is what is left to read: no code, formulas, link targets, HTML or emphasis marks.
    """

    blocks: list[str]
    code: set[str]
    formulas: set[str]
    links: set[str]
    numbers: Counter[str]
    shape: dict[str, int]
    words: str


def take_apart(source: str) -> Prose:
    """Split the Markdown of a prose cell into what both languages share, and the words."""
    blocks = [code for _, code in FENCE.findall(source)]
    rest = FENCE.sub("\n", source)
    shape = {
        "list items": len(re.findall(r"^\s*(?:[-*+]|\d+\.) ", rest, re.M)),
        "table rows": len(re.findall(r"^\s*\|", rest, re.M)),
        "folded parts": len(re.findall(r"<details\b", rest)),
    }
    code = {name for _, name in CODE.findall(rest)}
    rest = CODE.sub(TOKEN, rest)
    formulas = {_bare(display or inline) for display, inline in FORMULA.findall(rest)}
    rest = FORMULA.sub(TOKEN, rest)
    links = {target for _, target in LINK.findall(rest)} | set(ANCHOR.findall(rest))
    rest = TAG.sub("", LINK.sub(r"\1", rest))
    links |= set(URL.findall(rest))
    rest = URL.sub(TOKEN, rest)
    words = re.sub(r"\*\*?|(?<!\w)_+|_+(?!\w)", "", rest)
    numbers = Counter(number.replace(",", "") for number in NUMBER.findall(words))
    return Prose(blocks, code, formulas, links, numbers, shape, words)


def _bare(formula: str) -> str:
    r"""A formula without spaces and without the words in `\text{…}`, which follow the language."""
    return re.sub(r"\s|\\text\{[^}]*\}", "", formula)


# Outputs


def shown_text(output: NotebookNode) -> str:
    """What an output says in words: a stream's text or the `text/plain` of a result."""
    if output.output_type == "stream":
        return output.text
    return output.get("data", {}).get("text/plain", "")


def build(path: Path, *cells: NotebookNode) -> Lesson:
    """Write a notebook of these cells, with the metadata that the course stores."""
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)
    return Lesson(path)


def markdown(source: str, *tags: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)} if tags else {})


def prose(zh: str, en: str) -> list[NotebookNode]:
    """A pair of prose cells, marked as the course marks them."""
    return [
        markdown(f'<span lang="{language}"></span>\n\n{words}', language)
        for language, words in (("zh", zh), ("en", en))
    ]


def python(source: str, *tags: str) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


# Kernels

SECONDS_PER_CELL = 300


@dataclass(frozen=True)
class Ran:
    """What one execution of a cell gave."""

    cell: NotebookNode
    outputs: list[NotebookNode]
    seconds: float

    @property
    def error(self) -> str | None:
        """The exception that ended the cell, None where it ended well or was meant to raise."""
        if RAISES in tags(self.cell):
            return None
        found = [output for output in self.outputs if output.output_type == "error"]
        return f"{named(self.cell)}: {found[0].ename}: {found[0].evalue}" if found else None

    @property
    def stderr(self) -> str:
        return "".join(o.text for o in self.outputs if o.get("name") == "stderr")

    @property
    def interrupted(self) -> bool:
        """Whether *Interrupt* ended the cell. Lightning's Trainer makes a SystemExit of it."""
        said = f"{self.error} {self.stderr}"
        return "KeyboardInterrupt" in said or "SystemExit" in said

    @property
    def texts(self) -> list[str]:
        """The words of each output, stderr left out."""
        return [shown_text(o) for o in self.outputs if o.get("name") != "stderr"]


class Kernel:
    """A live kernel of this very Python, told in `language` and started beside the notebooks."""

    def __init__(self, language: str, scratch: Path, folder: Path = FOLDER):
        self._client = NotebookClient(
            nbformat.v4.new_notebook(),
            # No kernelspec folder at all: python3 then means the Python that runs this.
            km=AsyncKernelManager(
                kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
            ),
            timeout=SECONDS_PER_CELL,
            allow_errors=True,
            store_widget_state=True,  # for `sliders`; stays in memory
            coalesce_streams=True,
            extra_arguments=["--log-level=40"],
        )
        self._client.start_new_kernel(env=_variables(language, scratch), cwd=str(folder))
        self._client.start_new_kernel_client()

    def run(self, cell: NotebookNode) -> Ran:
        """Execute a copy of `cell`; an exception in it is part of the result."""
        copy = nbformat.from_dict(cell)
        copy.outputs = []
        self._client.nb.cells = [copy]
        started = time.perf_counter()
        self._client.execute_cell(copy, 0)
        return Ran(cell, copy.outputs, time.perf_counter() - started)

    def run_code(self, source: str) -> Ran:
        return self.run(python(source))

    def run_until(self, moment: Callable[[], bool], cell: NotebookNode) -> Ran:
        """Execute a copy of `cell`, and press *Interrupt* once `moment()` is true.

        As a learner would, press it again after some seconds while the cell goes on.
        """
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.02):
                if moment():
                    asyncio.run(self._client.km.interrupt_kernel())
                    ended.wait(5)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return self.run(cell)
        finally:
            ended.set()
            watcher.join()

    def restart(self) -> None:
        """What *Restart Kernel* does: a new process, with nothing in it."""
        run_sync(self._client.km.restart_kernel)(now=True)
        run_sync(self._client.kc.wait_for_ready)(timeout=SECONDS_PER_CELL)

    def bars(self) -> list[dict]:
        """The states of the progress bars that were ever on display."""
        states = list(self._client.widget_state.values())
        return [state for state in states if state.get("_model_name") == "IntProgressModel"]

    def sliders(self, output: NotebookNode) -> int:
        """How many sliders the widget that an output shows has in it; 0 for anything else."""
        view = output.get("data", {}).get(WIDGET_VIEW, {})
        return self._sliders_below(view["model_id"]) if view else 0

    def _sliders_below(self, model: str) -> int:
        state = self._client.widget_state.get(model, {})
        children = [name.removeprefix("IPY_MODEL_") for name in state.get("children", [])]
        here = ("Slider" in state.get("_model_name", "")) + len(state.get("sliders", []))
        return here + sum(map(self._sliders_below, children))

    def pages(self) -> list[str]:
        """The HTML in the widgets of this kernel."""
        models = self._client.widget_state.values()
        return [m["value"] for m in models if m.get("_model_name") == "HTMLModel" and "value" in m]

    def stop(self) -> None:
        self._client._cleanup_kernel()


def _variables(language: str, scratch: Path) -> dict[str, str]:
    """The environment of a kernel: nobody's settings, and a missing glyph is an error."""
    return course.environment(ROOT) | {
        "COURSE_LANG": language,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error:Glyph",
        "IPYTHONDIR": str(scratch / "ipython"),
        "XDG_CONFIG_HOME": str(scratch / "config"),
    }


@contextmanager
def kernel(language: str, scratch: Path, folder: Path = FOLDER) -> Iterator[Kernel]:
    """A :class:`Kernel` that is shut down at the end, whatever happens."""
    live = Kernel(language, scratch, folder)
    try:
        running = live.run_code("import sys; print(sys.executable)").texts[0].strip()
        assert Path(running) == Path(sys.executable), f"the kernel is {running}"
        yield live
    finally:
        live.stop()


def continuous_integration() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")
