"""The benchmarks' machinery: each tool asked in earnest about a small step, parts of the page."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import course
from support.independent import bytes_before, count

FOLDER = Path(course.__file__).parent / "tools" / "benchmarks"
sys.path.insert(0, str(FOLDER))

import choosers  # noqa: E402
import choosing  # noqa: E402
import measuring  # noqa: E402
import models  # noqa: E402
import page  # noqa: E402
import planners  # noqa: E402
import planning  # noqa: E402
import run  # noqa: E402
import subjects  # noqa: E402
import timing  # noqa: E402
import trackers  # noqa: E402


def make(frozen: bool = False, steps: int = 1):
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
    model[0].requires_grad_(not frozen)
    return subjects.training(model, torch.randn(64, 16), steps=steps)


PLAIN = subjects.Subject("小", "small", make)


def test_tools_that_follow_the_step_agree_with_the_allocator():
    truth = count(PLAIN.build).peak
    for tool in (trackers.Ours(), trackers.Tracker(), trackers.Timeline()):
        assert tool.about(PLAIN).peak == truth, tool.name


def test_hooks_count_each_saved_tensor_or_each_storage():
    step = PLAIN.build()
    before = bytes_before(step)
    inner, outer = 64 * 32 * 4, 64 * 8 * 4
    gradients = sum(p.nbytes for p in step.model.parameters())
    # Input of both linear layers, of GELU and of the square; each layer's weight.
    careful = trackers.CarefulHooks().about(PLAIN).peak - before - gradients
    assert careful == 64 * 16 * 4 + 2 * inner + outer
    naive = trackers.Hooks().about(PLAIN).peak - before - gradients
    assert naive == careful + 32 * 8 * 4  # a weight whose layer has an input to pass gradients to


def test_what_a_tool_raises_is_an_answer():
    for subject in (
        subjects.Subject("冻结", "frozen", partial(make, frozen=True)),
        subjects.Subject("两步", "two steps", partial(make, steps=2)),
    ):
        assert isinstance(
            measuring.ask(trackers.Tracker(), subject), (RuntimeError, NotImplementedError)
        )
        assert measuring.ask(trackers.Ours(), subject).peak == count(subject.build).peak


def test_simulated_tensors_are_no_bytes_to_the_profiler():
    subject = subjects.Subject("模拟", "simulated", make, simulated=True)
    assert trackers.Ours().about(subject).peak == count(make).peak
    assert trackers.Timeline().about(subject).peak < 1000


STACKED = planners.Case(
    "小", "small",
    lambda: subjects.training(
        subjects.Layers(*[nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
                          for _ in range(3)]),
        torch.randn(512, 16), optimizer=True,
    ),
    lambda model: [(f"layers.{n}", layer) for n, layer in model.layers.named_children()],
    lambda step: step.inputs,
)  # fmt: skip


def test_our_plan_takes_what_we_say_and_is_within_the_budget():
    budget = planning.budget_of(STACKED)
    plan = planners.Ours().ask(STACKED, STACKED.build(), budget)
    assert plan.checkpoints and planning.counted(STACKED, plan) == plan.peak <= budget
    assert budget < planning.counted(STACKED, planners.Plan(0))
    assert planning.operations(STACKED, plan) > planning.operations(STACKED, planners.Plan(0))


def test_accelerate_counts_four_times_the_parameters_whatever_the_input():
    step = STACKED.build()
    size = sum(parameter.nbytes for parameter in step.model.parameters())
    plan = planners.Accelerate().ask(STACKED, step, 1)
    assert plan.peak == 4 * size and plan.put_on is None


def test_activations_are_counted_as_ckptplan_does_on_a_gpu():
    block = STACKED.build().model.layers[0]
    inner, outer, entry = 512 * 64 * 4, 512 * 16 * 4, 512 * 16 * 4
    # Linear and GELU leave what the next one needs, the last one its output; then its input, which
    # it had counted before, is taken off.
    assert planners.isolated(block, torch.randn(512, 16)) == 2 * inner + outer - entry


def test_ckptplan_refuses_bytes_that_it_has_not_measured_and_plans_with_those_filled_in():
    errors = pytest.importorskip("ckptplan.errors")
    budget = planning.budget_of(STACKED)
    refusal = planning.ask(planners.CkptPlanAsItIs(), STACKED, budget)
    assert isinstance(refusal, errors.TimingOnlyProfileError)
    plan = planners.CkptPlan().ask(STACKED, STACKED.build(), budget)
    kept = (3 - plan.checkpoints) * planners.isolated(
        STACKED.build().model.layers[0], torch.randn(512, 16)
    )
    assert 0 < plan.checkpoints < 3
    assert plan.peak == bytes_before(STACKED.build()) + kept
    assert planning.counted(STACKED, plan) < planning.counted(STACKED, planners.Plan(0))


def test_the_operators_that_are_marked_are_kept_and_the_others_recomputed():
    """Of linear, GELU, linear: t, addmm, gelu, t, addmm."""
    plain, everything, nothing = (
        planning.operations(STACKED, planners.Plan(0, put_on))
        for put_on in (
            None,
            lambda model: planners.selectively(model, {"layers.0": [0, 1, 0, 0, 1]}),
            lambda model: planners.selectively(model, {"layers.0": [0] * 5}),
        )
    )
    assert plain == everything < nothing


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchs_solver_bounds_the_peak_and_without_cuda_takes_its_process_with_it():
    budget = planning.budget_of(STACKED)
    plan = planners.SacMilp().ask(STACKED, STACKED.build(), budget)
    assert plan.checkpoints and plan.peak <= budget + 1
    if not torch.cuda.is_available():
        refusal = planning.ask(planners.SacMilpAsItIs(), STACKED, budget)
        assert isinstance(refusal, Exception)


@pytest.mark.filterwarnings("ignore")
def test_a_plan_beside_another_in_one_table(monkeypatch):
    monkeypatch.setattr(planning, "CASES", (STACKED,))
    monkeypatch.setattr(planning, "TIMED", (STACKED,))
    monkeypatch.setattr(planning, "TURNS", 1)
    monkeypatch.setattr(planning, "PLANNERS", (planners.Ours(), planners.Accelerate()))
    monkeypatch.setattr(planning, "REFUSALS", ())
    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"tools/benchmarks/ckptplan\.txt"):
        next(planning.section())
    monkeypatch.setattr(planning, "find_spec", lambda name: name)
    _, plans, *_, times = planning.section()
    ours, accelerate = [
        [cell.strip() for cell in row[1:-1].split("|")] for row in plans.splitlines()[2:]
    ]
    assert ours[2] == "`advise`" and ours[5] == "0" and ours[6] == "是 · yes"
    assert accelerate[3] == "—" and int(accelerate[5].replace(",", "")) < 0
    (row,) = times.splitlines()[2:]
    assert row.count("✗") == 0 and "ms" in row


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_real_models_are_timed_per_operator_and_simulated_in_full_size(monkeypatch):
    from support import zoo

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
    assert ran[1][1:] == [str(tmp_path / "tools" / "benchmarks" / "run.py"), "measuring"]


def test_the_stored_page_is_made_of_these_parts():
    parts = page.read(run.FILE.read_text(encoding="utf-8"))
    assert parts and parts.keys() <= run.PARTS.keys()
    for name, part in parts.items():
        assert part.startswith(f"## {page.named(*run.PARTS[name].HEADING)}\n")
    assert page.write(parts, run.PARTS) == run.FILE.read_text(encoding="utf-8")


# --- choosing inside a block --------------------------------------------------------------------


def test_the_exact_choice_takes_what_it_says_and_less_than_whole_blocks():
    high, low = (
        choosing.counted(planners.Plan(0)),
        choosing.counted(planning.every_block(choosing.CASE)),
    )
    budget = (high + low) // 2
    plan = choosers.Exact().ask(choosing.CASE, choosing.CASE.build(), budget)
    assert choosing.counted(plan) == plan.peak <= budget < high
    by_blocks = planners.Ours().ask(choosing.CASE, choosing.CASE.build(), budget)
    assert choosing.operations(plan) < choosing.operations(by_blocks)


def test_a_region_that_is_kept_is_not_run_again():
    pytest.importorskip("torch_remat")
    flops = {
        kept: choosing.operations(
            planners.Plan(0, partial(choosers.marked, case=choosing.CASE, kept=kept))
        )
        for kept in ((), ("attention",), ("feed_forward",), choosers.REGIONS)
    }
    plain = choosing.operations(planners.Plan(0))
    spared = {kept: flops[()] - found for kept, found in flops.items()}
    assert flops[choosers.REGIONS] == plain < flops["feed_forward",] < flops[()]
    assert spared["attention",] + spared["feed_forward",] == spared[choosers.REGIONS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_compilers_budget_is_found_by_trying(monkeypatch):
    monkeypatch.setattr(choosers, "BUDGETS", (1.0, 0.5))
    step = choosing.CASE.build()
    plan = choosers.Compiler().ask(choosing.CASE, step, 11_000_000)
    assert plan.peak <= 11_000_000
    assert abs(choosing.counted(plan) - plan.peak) < 1000  # the loss, once
    with pytest.raises(ValueError, match="nothing fits 1,000 bytes"):
        choosers.Compiler().ask(choosing.CASE, step, 1000)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
def test_choices_beside_each_other_in_one_table(monkeypatch):
    class Cannot(planners.Planner):
        zh = en = "`cannot`"

        def ask(self, case, step, budget):
            raise ValueError("on purpose")

    monkeypatch.setattr(choosing, "PLANNERS", (choosers.Exact(), Cannot()))
    monkeypatch.setattr(choosing, "REFUSALS", (Cannot(),))
    monkeypatch.setattr(choosing, "SHARES", (0.5,))
    monkeypatch.setattr(choosing, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"tools/benchmarks/ckptplan\.txt"):
        next(choosing.section())
    monkeypatch.setattr(choosing, "find_spec", lambda name: name)
    _, plans, problems, *_, refusals = choosing.section()
    exact, cannot = [
        [cell.strip() for cell in row[1:-1].split("|")] for row in plans.splitlines()[2:]
    ]
    assert exact[3] == "0" and exact[4] == "是 · yes"
    assert cannot[2:6] == ["✗"] * 4
    assert "ValueError: on purpose" in problems and "`cannot`" in refusals
