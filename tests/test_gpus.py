"""Measurements taken on named GPUs: how they are made and kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from course_lib.figures.words import size_text
from course_lib.lessons.torch_checkpoint.savings import KINDS
from course_lib.memory import Role
from course_lib.site.contents import NOTEBOOKS
from tools.benchmarks import on_gpu

CPU = torch.device("cpu")


def stored_text(lesson: str, code: str) -> str:
    """What the one cell of a lesson that holds ``code`` shows, as text."""
    book = nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4)
    (cell,) = [cell for cell in book.cells if cell.cell_type == "code" and code in cell.source]
    return "".join(output.data["text/plain"] for output in cell.outputs if "data" in output)


def total(values: dict[str, float]) -> int:
    return sum(map(int, values.values()))


def test_the_script_measures_what_lesson_00_measures() -> None:
    found = on_gpu.lesson_00(CPU)
    sizes = "; ".join(f"{count}: {size_text(total(values))}" for count, values in found.items())
    assert stored_text("00_start_here", "show_bars").startswith(f"peaks: {sizes}")


def test_the_script_measures_what_lesson_01_measures() -> None:
    (values,) = on_gpu.lesson_01(CPU).values()
    lines = stored_text("01_activation_memory", "roles_table").splitlines()
    in_words = [f"{size:,}" for size in values.values() if size] + [f"{total(values):,}"]
    shown = [word for line in lines for word in line.split() if word in in_words]
    assert shown == in_words


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_script_says_so() -> None:
    done = subprocess.run(
        [sys.executable, on_gpu.__file__], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No GPU that this torch" in line and "能用的 GPU" in line
    assert not done.stdout


@pytest.fixture
def card() -> on_gpu.Card:
    """A card for the tests, with the numbers of this machine's CPU."""
    ratios = {kind.name[1]: 1.25 for kind in KINDS}
    tables = {
        "00": {"4": {Role.PARAMETER: 3 << 20}},
        "01": on_gpu.lesson_01(CPU),
        "03": {"": ratios},
    }
    return on_gpu.Card("Some Card 80GB", "580.1", "2.13.0+cu130", tables)


def test_a_card_is_kept_as_it_was_measured(card: on_gpu.Card, tmp_path: Path) -> None:
    file = card.store(tmp_path / "gpus")
    assert file.name == "some-card-80gb.json"
    card.store(file.parent)
    (stored,) = file.parent.iterdir()
    assert on_gpu.Card(**json.loads(stored.read_text(encoding="utf-8"))) == card
