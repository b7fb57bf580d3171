"""Run notebooks from top to bottom in a clean kernel and store their outputs.

`python course.py refresh` calls this with the environment's Python; see there for the variables
that are set. A notebook is stored only when every cell ran without an error and without a word
on stderr. What changes from run to run without meaning is left out: time stamps, widget models,
the kernel's version.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

SECONDS_PER_CELL = 600
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class NotStored(Exception):
    """Why a notebook was left as it is; names the cell."""


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path`, each of its cells with an id of its own.

    A cell without an id, or with another's, gets one made from its place and source, so that two
    runs agree on it.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    seen: set[str] = set()
    for place, cell in enumerate(content["cells"]):
        if not cell.get("id") or cell["id"] in seen:
            words = f"{place}\n{''.join(cell['source'])}"
            cell["id"] = hashlib.sha256(words.encode()).hexdigest()[:8]
        seen.add(cell["id"])
    content["nbformat"], content["nbformat_minor"] = 4, max(5, content.get("nbformat_minor", 5))
    return nbformat.reads(json.dumps(content), as_version=4)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run every cell of `notebook` in a new kernel whose working directory is `folder`.

    Raises:
        NotStored: a cell raised, wrote to stderr or took longer than SECONDS_PER_CELL.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=SECONDS_PER_CELL,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        place = next(i for i, cell in enumerate(notebook.cells) if _raised(cell))
        reason = f"{error.ename}: {error.evalue}"
        raise NotStored(f"{_where(notebook, place)}: {reason}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        ran = [i for i, cell in enumerate(notebook.cells) if cell.get("execution_count")]
        place = ran[-1] if ran else 0
        raise NotStored(f"{_where(notebook, place)} or the one after it: {error}") from error
    for place, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise NotStored(f"{_where(notebook, place)}: wrote to stderr: {output.text!r}")


def _raised(cell: nbformat.NotebookNode) -> bool:
    expected = "raises-exception" in cell.metadata.get("tags", [])
    return not expected and any(o.output_type == "error" for o in cell.get("outputs", []))


def _where(notebook: nbformat.NotebookNode, place: int) -> str:
    cell = notebook.cells[place]
    first = next((line for line in cell.source.splitlines() if line.strip()), "")
    return f"cell {place} (id {cell.id}, `{first}`)"


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Leave out of `notebook` what differs between runs and machines.

    A widget's view goes too, where the output has another picture of it: the view needs a model
    that lives in the kernel, and without one JupyterLab shows an error in place of the picture.
    """
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        for noise in ("execution", "trusted"):
            cell.metadata.pop(noise, None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if len(data) > 1:
                data.pop(WIDGET_VIEW, None)


def store(notebook: nbformat.NotebookNode, path: Path) -> bool:
    """Write `notebook` to `path` in one step; False where it says the same already."""
    nbformat.validate(notebook)
    content = (nbformat.writes(notebook).rstrip("\n") + "\n").encode()
    if path.exists() and path.read_bytes() == content:
        return False
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)
    return True


def refresh(path: Path) -> bool:
    """Run the notebook at `path` and store it; True where that changed the file.

    Raises:
        NotStored: the run was not clean; the file is as it was.
    """
    notebook = read(path)
    execute(notebook, path.resolve().parent)
    normalise(notebook)
    return store(notebook, path)


def main(paths: list[str]) -> int:
    """Refresh each of `paths`; the exit code is 1 where one of them was not stored."""
    failed = 0
    for path in map(Path, paths):
        print(f"{path.name} …", end=" ", flush=True)
        started = time.perf_counter()
        try:
            outcome = "已保存 / stored" if refresh(path) else "没有变化 / unchanged"
        except NotStored as reason:
            outcome, failed = f"没有保存 / not stored\n    {reason}", 1
        print(f"{outcome} ({time.perf_counter() - started:.1f} s)", flush=True)
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
