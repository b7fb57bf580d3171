"""The benchmarks' machinery: each tool asked in earnest about a small step, parts of the page."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from independent import bytes_before, count
from torch import nn

import course

FOLDER = Path(__file__).parent / "benchmarks"
sys.path[:0] = [str(FOLDER), str(FOLDER.parent / "browser")]

import measuring  # noqa: E402
import models  # noqa: E402
import page  # noqa: E402
import run  # noqa: E402
import subjects  # noqa: E402
import timing  # noqa: E402
import tools  # noqa: E402


def make(frozen: bool = False, steps: int = 1):
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
    model[0].requires_grad_(not frozen)
    return subjects.training(model, torch.randn(64, 16), steps=steps)


PLAIN = subjects.Subject("小", "small", make)


def test_tools_that_follow_the_step_agree_with_the_allocator():
    truth = count(PLAIN.build).peak
    for tool in (tools.Ours(), tools.Tracker(), tools.Timeline()):
        assert tool.about(PLAIN).peak == truth, tool.name


def test_hooks_count_each_saved_tensor_or_each_storage():
    step = PLAIN.build()
    before = bytes_before(step)
    inner, outer = 64 * 32 * 4, 64 * 8 * 4
    gradients = sum(p.nbytes for p in step.model.parameters())
    # Input of both linear layers, of GELU and of the square; each layer's weight.
    careful = tools.CarefulHooks().about(PLAIN).peak - before - gradients
    assert careful == 64 * 16 * 4 + 2 * inner + outer
    naive = tools.Hooks().about(PLAIN).peak - before - gradients
    assert naive == careful + 32 * 8 * 4  # a weight whose layer has an input to pass gradients to


def test_what_a_tool_raises_is_an_answer():
    for subject in (
        subjects.Subject("冻结", "frozen", partial(make, frozen=True)),
        subjects.Subject("两步", "two steps", partial(make, steps=2)),
    ):
        assert isinstance(
            measuring.ask(tools.Tracker(), subject), (RuntimeError, NotImplementedError)
        )
        assert measuring.ask(tools.Ours(), subject).peak == count(subject.build).peak


def test_simulated_tensors_are_no_bytes_to_the_profiler():
    subject = subjects.Subject("模拟", "simulated", make, simulated=True)
    assert tools.Ours().about(subject).peak == count(make).peak
    assert tools.Timeline().about(subject).peak < 1000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_real_models_are_timed_per_operator_and_simulated_in_full_size(monkeypatch):
    import zoo

    monkeypatch.setattr(models, "TURNS", 1)
    monkeypatch.setattr(models, "TINY", 10)  # seconds: this machine may be busy
    monkeypatch.setattr(zoo, "MODELS", {"BertForMaskedLM": zoo.MODELS["BertForMaskedLM"]})
    small = {"hidden_size": 64, "intermediate_size": 2048, "num_hidden_layers": 8}
    monkeypatch.setattr(zoo, "FULL_SIZE", {"small": small})
    *_, rows, _, full = models.section()
    (row,) = rows.splitlines()[2:]
    name, operators, bare, measured, _, micros = [cell.strip() for cell in row[1:-1].split("|")]
    assert name == "`BertForMaskedLM`" and int(operators) > 500
    more = (float(measured) - float(bare)) * 1e3 / int(operators)
    assert more == pytest.approx(float(micros), abs=1)
    plain, checkpointed = [
        [cell.strip() for cell in row[1:-1].split("|")] for row in full.splitlines()[2:]
    ]
    assert plain[1] == "—" and plain[:1] == checkpointed[:1] == ["0.0"]
    assert float(plain[2]) > float(checkpointed[2]) > 4  # GiB: logits of 128,256 words


def test_times_are_taken_in_turns():
    order = []
    times = timing.in_turns({name: partial(order.append, name) for name in "ab"}, 2)
    assert order == list("ababab") and len(times["a"].seconds) == 2
    slow, quick = timing.Times((2.0, 6.0, 3.0)), timing.Times((1.0, 2.0, 2.0))
    assert slow.over(quick) == "2.00 (1.50–3.00)" and slow.median == 3


def test_a_part_measured_again_replaces_only_itself(tmp_path, monkeypatch):
    class Part:
        HEADING = ("甲", "one")
        turn = 0

        def section(self):
            self.turn += 1
            yield f"| {self.turn} |"
            yield ""

    class Broken(Part):
        def section(self):
            raise ArithmeticError("not today")
            yield

    file = tmp_path / "benchmarks.md"
    monkeypatch.setattr(run, "FILE", file)
    monkeypatch.setattr(run, "PARTS", {"one": Part(), "two": Part(), "three": Broken()})
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    assert run.main([]) == 1  # what could not be measured is not there, the rest is
    assert run.main(["two"]) == 0 and run.main(["four"]) == 2
    parts = page.read(file.read_text(encoding="utf-8"))
    assert {name: re.findall(r"^\| (\d) \|$", part, re.M) for name, part in parts.items()} == {
        "one": ["1"], "two": ["2"],
    }  # fmt: skip
    assert "## 甲 · one" in parts["one"] and f"torch {torch.__version__}" in parts["one"]


def test_the_command_hands_its_arguments_on(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(course, "prepare", lambda root, requirements: ran.append(requirements))
    monkeypatch.setattr(course, "run", lambda command, env, root: ran.append(command) or 0)
    assert course.benchmark(["measuring"], tmp_path) == 0
    assert course.TESTS in ran[0]
    assert ran[1][1:] == [str(tmp_path / "tests" / "benchmarks" / "run.py"), "measuring"]


def test_the_stored_page_is_made_of_these_parts():
    parts = page.read(run.FILE.read_text(encoding="utf-8"))
    assert parts and parts.keys() <= run.PARTS.keys()
    for name, part in parts.items():
        assert part.startswith(f"## {page.named(*run.PARTS[name].HEADING)}\n")
    assert page.write(parts, run.PARTS) == run.FILE.read_text(encoding="utf-8")
