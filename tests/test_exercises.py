"""Predictions and the checkers of lessons 00 and 01: right, wrong and unfinished answers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from course_lib import answers, exercises, language
from course_lib.exercises import (
    check_cheapest,
    check_kept_bytes,
    check_segments,
    check_thrifty,
    compare,
    predict,
    scoreboard,
)


@pytest.fixture(autouse=True)
def no_predictions(monkeypatch):
    monkeypatch.setattr(exercises, "_predictions", {})


def results(*peaks_and_flops):
    return [
        SimpleNamespace(checkpoints=count, trace=SimpleNamespace(peak=peak, flops=flops))
        for count, (peak, flops) in enumerate(peaks_and_flops)
    ]


MEASURED = results((100, 10), (99, 16), (60, 15), (50, 14))


def cheapest(budget, measured):
    fitting = [m for m in measured if m.trace.peak <= budget]
    return min(fitting, key=lambda m: m.trace.flops).checkpoints if fitting else -1


def thrifty(block, x):
    return block.down(functional.silu(block.gate(x)) * (block.up(x) + 1.0))


def fused_in_a_module(block, x):
    block.fuse = nn.PReLU(4)  # 16 bytes that are there after the step
    block.fuse(x[:, :4])
    return thrifty(block, x)


RIGHT = [
    lambda: check_segments(lambda n, k: [range(i * n // k, (i + 1) * n // k) for i in range(k)]),
    lambda: check_segments(  # the longer ones first, as lists
        lambda n, k: [list(range(i * (n // k) + min(i, n % k), (i + 1) * (n // k)
                                 + min(i + 1, n % k))) for i in range(k)]),
    lambda: check_cheapest(cheapest, MEASURED),
    lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * (w + 4 * h)),
    lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * w + 16 * b * s * h),
    lambda: check_thrifty(thrifty),
    lambda: check_thrifty(lambda block, x: checkpoint(block, x, use_reentrant=False)),
    lambda: check_thrifty(lambda block, x: checkpoint(block, x, use_reentrant=True)),
    lambda: check_thrifty(fused_in_a_module),
    lambda: check_segments(lambda n, k: torch.arange(n).tensor_split(k)),
    lambda: check_cheapest(lambda b, m: torch.tensor(cheapest(b, m)), MEASURED),
    lambda: check_kept_bytes(lambda b, s, w, h: torch.tensor(4 * b * s * (w + 4 * h))),
]  # fmt: skip


@pytest.mark.parametrize("check", RIGHT)
def test_right_answers_pass(check):
    verdict = check()
    assert verdict.passed, str(verdict)
    assert str(verdict).startswith("✅")


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_segments(lambda n, k: None),
        lambda: check_cheapest(lambda budget, measured: None, MEASURED),
        lambda: check_kept_bytes(lambda b, s, w, h: None),
        lambda: check_thrifty(lambda block, x: None),
    ],
)
def test_stubs_are_kindly_unfinished(check):
    verdict = check()
    assert verdict.state == "unfinished"
    assert "Not done yet" in str(verdict)


def params(block):
    return 4 * sum(p.numel() for p in block.parameters())


def gated_parameters(w, h):
    return 4 * (3 * w * h + 2 * h + w)


class HidesWhatItKeeps(torch.autograd.Function):
    """Keeps its tensors on ``ctx``, where saved_tensors cannot see them."""

    @staticmethod
    def forward(ctx, gate):
        ctx.gate, ctx.sigmoid = gate.detach(), torch.sigmoid(gate.detach())
        return ctx.gate * ctx.sigmoid

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.sigmoid + ctx.gate * ctx.sigmoid * (1 - ctx.sigmoid))


def moved_to_the_cpu(block, x):
    with torch.autograd.graph.save_on_cpu():
        return block(x)


def only_where_it_fits(budget, measured):
    found = cheapest(budget, measured)
    return None if found == -1 else found


WRONG = [
    (lambda: check_segments(lambda n, k: [range(n)]), "expected 4 segments, got 1"),
    (lambda: check_segments(lambda n, k: [range(i * (n // k), (i + 1) * (n // k))
                                          for i in range(k)]), "layer 10 is in no segment"),
    (lambda: check_segments(lambda n, k: [range(n), *(range(0) for _ in range(k - 1))]),
     "too uneven"),
    (lambda: check_segments(lambda n, k: [range(n) for _ in range(k)]), "come twice"),
    (lambda: check_segments(lambda n, k: 1 / 0), "ZeroDivisionError"),
    (lambda: check_cheapest(lambda b, m: 0, MEASURED), "nothing fits: expected -1"),
    (lambda: check_cheapest(lambda b, m: max([r.checkpoints for r in m if r.trace.peak <= b],
                                             default=-1), MEASURED),
     r"3 fit, but so do 0, and 3 need 40\.0% more FLOPs"),
    (lambda: check_cheapest(lambda b, m: -1, MEASURED), "but 3 checkpoints fit"),
    (lambda: check_cheapest(lambda b, m: 0 if b >= 50 else -1, MEASURED), "over the budget"),
    (lambda: check_kept_bytes(lambda b, s, w, h: b * s * (w + 4 * h)), "counted numbers"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * (2 * w + 4 * h)), "counted twice"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * 4 * h), "input x is missing"),
    (lambda: check_kept_bytes(
        lambda b, s, w, h: 4 * b * s * (w + 4 * h) + gated_parameters(w, h)), "exist anyway"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * (w + 3 * h)), "missing: the product"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * (w + 5 * h)), "too many"),
    (lambda: check_thrifty(lambda block, x: block(x)), "Which line keeps both"),
    (lambda: check_thrifty(lambda block, x: block(x).detach()), "is gone"),
    (lambda: check_thrifty(lambda block, x: block(x.detach())), "gradient of x is gone"),
    (lambda: check_thrifty(lambda block, x: block.down(
        functional.gelu(block.gate(x)) * (block.up(x) + 1.0))), "output changed"),
    (lambda: check_thrifty(lambda block, x: block.down(
        functional.silu(block.gate(x)) * block.up(x))), "output changed"),
    (lambda: check_thrifty(lambda block, x: block(x).sum()), "should be a tensor of shape"),
    (lambda: check_thrifty(lambda block, x: block.nothing(x)), "AttributeError"),
    # nonsense
    (lambda: check_segments(lambda n, k: "ranges"), "expected a list of 4 ranges, got 'ranges'"),
    (lambda: check_segments(lambda n, k: 3), "expected a list of 4 ranges, got 3"),
    (lambda: check_segments(lambda n, k: [None] * k), r"got \[None, None, None, None\]"),
    (lambda: check_segments(lambda n, k: [slice(0, n)] * k), "expected a list of 4 ranges"),
    (lambda: check_segments(lambda n, k: [[0.5] * n] * k), "expected a list of 4 ranges"),
    (lambda: check_segments(lambda n, k: (1 // i for i in range(k))), "ZeroDivisionError"),
    (lambda: check_segments(lambda n, k: [range(n)] if k == 1 else None), "got None"),
    (lambda: check_cheapest(only_where_it_fits, MEASURED), "expected -1, got None"),
    (lambda: check_cheapest(lambda b, m: torch.arange(2), MEASURED), "got tensor"),
    (lambda: check_cheapest(lambda b, m: -1 if b < 50 else m[3], MEASURED),
     "expected a number of checkpoints, got namespace"),
    (lambda: check_kept_bytes(lambda b, s, w, h: "4"), "expected a number of bytes, got '4'"),
    (lambda: check_kept_bytes(lambda b, s, w, h: [4]), r"expected a number of bytes, got \[4\]"),
    (lambda: check_kept_bytes(lambda b, s, w, h: torch.arange(2)), "number of bytes, got tensor"),
    (lambda: check_kept_bytes(lambda b, s, w, h: float("nan")), "number of bytes, got nan"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * (w + 4 * h) if b < 3 else None),
     "number of bytes, got None"),
    (lambda: check_thrifty(lambda block, x: block(x).mean()), r"of shape \[4, 16, 64\].*not \[\]"),
    (lambda: check_thrifty(lambda block, x: thrifty(block, x).double()), "float32, not .*float64"),
    (lambda: check_thrifty(lambda block, x: thrifty(block, x) * float("nan")), "output changed"),
    (lambda: check_thrifty(lambda block, x: block.down(
        HidesWhatItKeeps.apply(block.gate(x)) * (block.up(x) + 1.0))), "are still there"),
    (lambda: check_thrifty(moved_to_the_cpu), "are still there"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "fault"), WRONG)
def test_wrong_answers_are_told_what_is_wrong(check, fault):
    import re

    verdict = check()
    assert verdict.state == "wrong", str(verdict)
    assert re.search(fault, str(verdict)), str(verdict)
    assert verdict.zh != verdict.en


def test_a_checker_leaves_nothing_in_the_blocks_gradients():
    torch.manual_seed(3)
    seen = []

    def answer(block: nn.Module, x):
        seen.append(block)
        return thrifty(block, x)

    assert check_thrifty(answer).passed
    assert all(parameter.grad is None for parameter in seen[0].parameters())


def test_a_prediction_is_kept_when_its_cell_runs_again():
    first = predict("peak", zh="峰值是", en="The peak is")
    first.field.value = "12.5"
    again = predict("peak", zh="峰值是", en="The peak is")
    assert again.value == 12.5
    again.field.value = "1,024"
    assert again.value == 1024


def test_a_prediction_that_is_no_number_is_pointed_out_and_not_kept():
    prediction = predict("peak", zh="峰值是", en="The peak is")
    for typed in ("many", "nan", "inf", "9" * 400, "58 MiB", "1/3", "--3"):
        prediction.field.value = typed
        assert prediction.value is None, typed
        assert "Please type a number" in prediction._note.value, typed


def test_a_comparison_follows_what_is_typed_later():
    prediction = predict("peak", zh="峰值是", en="The peak is")
    table = compare("peak", 3 * 2**20, [(("公式", "formula"), 2 * 2**20)])
    assert "not filled in" in str(table._table())
    prediction.field.value = "4.5"
    assert "+50.0%" in table.value
    assert "-33.3%" in str(table._table())


def test_the_scoreboard_lists_each_prediction_with_what_was_measured():
    predict("a", zh="甲", en="A").field.value = "1"
    predict("b", zh="乙", en="B", unit="")
    compare("a", 2**20)
    board = str(scoreboard())
    assert "exact" in board
    assert "B" in board


def test_tables_follow_a_prediction_whose_cell_is_run_again():
    predict("peak", zh="峰值是", en="The peak is").field.value = "1.5"
    table, board = compare("peak", 3 * 2**20), scoreboard()
    assert "-50.0%" in table.value and "-50.0%" in board.value
    again = predict("peak", zh="峰值是", en="The peak is")
    again.field.value = "4.5"
    for shown in (table, board):
        assert "+50.0%" in shown.value and "-50.0%" not in shown.value + str(shown)
    compare("peak", 4.5 * 2**20)
    assert "exact" in board.value and "exact" not in table.value


@pytest.fixture
def own_memory(monkeypatch, tmp_path):
    """Answers go to a folder of this test's own, as a learner's would."""
    monkeypatch.delenv("COURSE_LANG", raising=False)
    monkeypatch.setattr(answers, "memory_folder", lambda: tmp_path)
    monkeypatch.setattr(answers, "lesson_name", lambda: "00_lesson")
    monkeypatch.setattr(answers, "_lesson", None)
    monkeypatch.setattr(language, "_chosen", "en")
    return tmp_path / "answers" / "00_lesson.json"


@pytest.fixture
def restart(monkeypatch):
    def restart():
        monkeypatch.setattr(exercises, "_predictions", {})
        monkeypatch.setattr(answers, "_here", {})
        monkeypatch.setattr(answers, "_lesson", None)

    return restart


def test_predictions_and_what_was_measured_survive_a_restart(own_memory, restart):
    predict("a", zh="甲", en="A").field.value = "1.5"
    predict("b", zh="乙", en="B", unit="")
    compare("a", 3 * 2**20)
    before = str(scoreboard())
    assert "-50.0%" in before
    restart()
    assert str(scoreboard()) == before  # before any other cell is run
    assert "-50.0%" in compare("a", 3 * 2**20).value
    with pytest.raises(KeyError, match="has not been asked for"):
        compare("c", 3)
    restart()
    assert predict("a", zh="甲", en="A").value == 1.5
    assert predict("b", zh="乙", en="B", unit="").value is None
    assert str(scoreboard()) == before
    assert predict("a", zh="甲", en="A", unit="GiB").value is None  # another question by now


def test_each_lesson_has_its_own(own_memory, restart, monkeypatch):
    predict("a", zh="甲", en="A").field.value = "1.5"
    restart()
    monkeypatch.setattr(answers, "lesson_name", lambda: "01_other")
    assert predict("a", zh="甲", en="A").value is None
    assert own_memory.exists() and own_memory.with_name("01_other.json").exists()


@pytest.mark.parametrize(
    "nonsense", ["", "[1]", '{"prediction": 3}', '{"prediction": {"a": [1]}}',
                 '{"prediction": {"a": {"typed": 3, "measured": "x", "unit": "MiB"}}}'],
)  # fmt: skip
def test_a_file_that_holds_nonsense_is_passed_over(own_memory, nonsense):
    own_memory.parent.mkdir()
    own_memory.write_text(nonsense)
    assert str(scoreboard()).count("\n") == 0
    assert predict("a", zh="甲", en="A").value is None


def test_a_home_that_cannot_be_written_keeps_answers_as_long_as_the_kernel(own_memory):
    own_memory.parent.write_text("a file where the folder should be")
    predict("a", zh="甲", en="A").field.value = "1.5"
    assert predict("a", zh="甲", en="A").value == 1.5


def test_a_run_of_the_tests_neither_reads_nor_writes_a_learners_answers(
    own_memory, restart, monkeypatch
):
    predict("a", zh="甲", en="A").field.value = "1.5"
    kept = own_memory.read_text()
    restart()
    monkeypatch.setenv("COURSE_LANG", "en")
    assert predict("a", zh="甲", en="A").value is None
    predict("a", zh="甲", en="A").field.value = "2.5"
    assert own_memory.read_text() == kept


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="unit must be one of"):
        predict("peak", zh="", en="", unit="Mo")
    with pytest.raises(KeyError, match="run the cell with its field first"):
        compare("unknown", 3)


def test_verdicts_speak_the_chosen_language():
    before = language.language()
    try:
        language.choose("zh")
        assert "还没有做" in str(check_segments(lambda n, k: None))
        language.choose("both")
        assert "还没有做" in str(check_segments(lambda n, k: None))
        assert "Not done yet" in str(check_segments(lambda n, k: None))
    finally:
        language.choose(before)
