"""Measurements taken on named GPUs: how they are made, kept and shown beside the learner's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from benchmarks import on_gpu

from course_lib.contents import NOTEBOOKS
from course_lib.figures import size_text
from course_lib.gpus import Card, cards, on_gpus
from course_lib.memory import Role, measure
from course_lib.pictures import roles_table, show_bars
from course_lib.sweeps import KINDS, Slowdown, slowdown_table

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
def card() -> Card:
    """A card for the tests, with the numbers of this machine's CPU."""
    ratios = {kind.name[1]: 1.25 for kind in KINDS}
    tables = {
        "00": {"4": {Role.PARAMETER: 3 << 20}},
        "01": on_gpu.lesson_01(CPU),
        "03": {"": ratios},
    }
    return Card("Some Card 80GB", "580.1", "2.13.0+cu130", tables)


def test_a_card_is_kept_as_it_was_measured(card: Card, tmp_path: Path) -> None:
    file = card.store(tmp_path / "gpus")
    assert file.name == "some-card-80gb.json"
    assert cards(file.parent) == [card]
    card.store(file.parent)
    assert cards(file.parent) == [card]


def test_a_card_stands_beside_the_learners_numbers(card: Card, tmp_path: Path) -> None:
    card.store(tmp_path)
    x = torch.ones(4)
    trace = measure(lambda: x.neg(), inputs=x)
    shown = show_bars({"4": trace, **on_gpus("00", tmp_path)})
    assert "4: 32 B; 4 · Some Card 80GB: 3 MiB" in str(shown._repr_mimebundle_()["text/plain"])
    table = str(roles_table(trace, on_gpus("01", tmp_path)))
    assert "Some Card 80GB" in table.splitlines()[0]
    assert table.splitlines()[-1].split()[-1] == f"{total(card.tables['01']['']):,}"
    slow = str(slowdown_table([Slowdown(KINDS[0], (1.1, 1.2, 1.3))], on_gpus("03", tmp_path)))
    assert slow.splitlines()[1].split()[-1] == "+25%"


def test_without_a_file_nothing_is_added(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    assert cards(nowhere) == []
    assert on_gpus("00", nowhere) == {}
    x = torch.ones(4)
    trace = measure(lambda: x.neg(), inputs=x)
    assert str(roles_table(trace, on_gpus("01", nowhere))) == str(roles_table(trace))
