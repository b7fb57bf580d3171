"""Predictions and the checkers of lessons 00 and 01: right, wrong and unfinished answers."""

import copy
import functools
import itertools
import types
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from course_lib import language
from course_lib.lessons.activation_memory import checkers as exercises
from course_lib.lessons.activation_memory.checkers import check_kept_bytes, check_thrifty
from course_lib.lessons.start_here.checkers import check_cheapest, check_segments
from course_lib.notebook import answers, predictions
from course_lib.notebook.predictions import compare, guess, scoreboard
from support.verdicts import heard, speak


@pytest.fixture(autouse=True)
def no_predictions(monkeypatch):
    monkeypatch.setattr(predictions, "_predictions", {})


@pytest.fixture(params=["zh", "en"])
def spoken(request, monkeypatch):
    speak(monkeypatch, request.param)


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


class Thrifty(nn.Module):
    """In a class's style, around the block's own layers."""

    def __init__(self, block):
        super().__init__()
        self.gate, self.up, self.down = block.gate, block.up, block.down

    def forward(self, x, *, one=1.0):
        return self.down(functional.silu(self.gate(x)) * (self.up(x) + one))


def another_forward(block, x):
    block.forward = types.MethodType(lambda self, x, *, one=1.0: thrifty(self, x), block)
    return block(x)


def one_loop(n, k):
    """The longer ones first, counted up."""
    parts, begin = [], 0
    for i in range(k):
        end = begin + n // k + (i < n % k)
        parts.append(range(begin, end))
        begin = end
    return parts


def yields_segments(n, k):
    for i in range(k):
        yield range(i * n // k, (i + 1) * n // k)


class Cheapest:
    """An object that can be called."""

    def __call__(self, budget, measured):
        best = -1
        flops = None
        for result in measured:
            if result.trace.peak <= budget and (flops is None or result.trace.flops < flops):
                best, flops = result.checkpoints, result.trace.flops
        return best


def measures_it(batch, sequence, width, hidden):
    block = exercises.GatedMLP(width, hidden)
    return exercises.saved_tensors(block, torch.ones(batch, sequence, width)).total


@functools.cache
def by_a_decorator(batch, sequence, width, hidden):
    return 4 * batch * sequence * (width + 4 * hidden)


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
    lambda: check_segments(one_loop),
    lambda: check_segments(yields_segments),
    lambda: check_segments(lambda n, k: numpy.array_split(numpy.arange(n), k)),
    lambda: check_segments(functools.partial(lambda n, k, *, first: one_loop(n, k), first=0)),
    lambda: check_cheapest(Cheapest(), MEASURED),
    lambda: check_cheapest(lambda b, m: numpy.int64(cheapest(b, m)), MEASURED),
    lambda: check_cheapest(lambda b, m: (lambda fitting: sorted(
        (r.trace.flops, r.checkpoints) for r in fitting)[0][1] if fitting else -1)(
        [r for r in m if r.trace.peak <= b]), MEASURED),
    lambda: check_kept_bytes(measures_it),
    lambda: check_kept_bytes(by_a_decorator),
    lambda: check_kept_bytes(lambda b, s, w, h: 4.0 * numpy.int32(b) * s * (w + 4 * h)),
    lambda: check_thrifty(another_forward),
    lambda: check_thrifty(lambda block, x: Thrifty(block)(x, one=1)),
    lambda: check_thrifty(lambda block, x: thrifty(copy.copy(block), x)),
]  # fmt: skip


@pytest.mark.parametrize("check", RIGHT)
def test_right_answers_pass(check, spoken):
    heard(check(), "right")


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_segments(lambda n, k: None),
        lambda: check_cheapest(lambda budget, measured: None, MEASURED),
        lambda: check_kept_bytes(lambda b, s, w, h: None),
        lambda: check_thrifty(lambda block, x: None),
        lambda: check_segments(None),
        lambda: check_cheapest(functools.partial(lambda budget, measured: None), MEASURED),
    ],
)
def test_stubs_are_kindly_unfinished(check, spoken):
    heard(check(), "unfinished", "还没有做", "Not done yet")


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


def forgets_to_return(*arguments):
    one_loop(4, 2)


def mutates(budget, measured):
    measured.sort(key=lambda result: result.trace.flops)
    return cheapest(budget, measured)


def table_of(cases, right):
    """Knows the answers to some cases by heart, and guesses for others."""
    known = {case: right(*case) for case in cases}
    return lambda *case: known.get(case, next(iter(known.values())))


def in_place(block, x):
    with torch.no_grad():
        x.mul_(1.0 + 1e-3)
        found = thrifty(block, x)
    return found


def of_the_lessons_block(block, x):
    torch.manual_seed(0)
    return thrifty(exercises.Wasteful(), x)


def remembers_the_first(block, x, seen={}):  # noqa: B006
    return seen.setdefault(tuple(x.shape), thrifty(block, x))


def half_precision(block, x):
    with torch.autocast("cpu", torch.bfloat16):
        return thrifty(block, x).float()


def keeps_halves(block, x):
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.half, torch.Tensor.float):
        return block(x)


def grad_mode_left_off(block, x):
    found = thrifty(block, x)
    torch.set_grad_enabled(False)
    return found


def calls_itself(n, k):
    return calls_itself(n, k - 1)


WRONG = [
    # a table, a rounding slip, an argument that is ignored, counted from one, backwards, none
    (lambda: check_segments(table_of([(12, 4), (12, 1), (12, 12), (12, 5), (7, 3), (100, 10),
                                      (1, 1)], one_loop)), "segments"),
    (lambda: check_segments(lambda n, k: [range(int(i * (n / k)), int((i + 1) * (n / k)))
                                          for i in range(k)]), "layer .* is in no segment"),
    (lambda: check_segments(lambda n, k: [range(round(i * n / k + 1e-9), round((i + 1) * n / k))
                                          for i in range(k - 1)]), "expected 4 segments, got 3"),
    (lambda: check_segments(lambda n, k: one_loop(12, k)), "n=7, k=3: there is no layer 7"),
    (lambda: check_segments(lambda n, k: one_loop(n, 4)), "k=1: expected 1 segments, got 4"),
    (lambda: check_segments(lambda n, k: [range(p.start + 1, p.stop + 1) for p in one_loop(n, k)]),
     "there is no layer 12: layers are numbered 0 to 11"),
    (lambda: check_segments(lambda n, k: one_loop(n, k)[::-1]), "out of order: in the place of"),
    (lambda: check_segments(lambda n, k: [-(-n // k)] * k), r"expected a list of 4 ranges, got \["),
    (lambda: check_segments(lambda n, k: [range(i * -(-n // k), min(n, (i + 1) * -(-n // k)))
                                          for i in range(k)]), "too uneven|is in no"),
    (lambda: check_segments(lambda n, k: [(p.start, p.stop) for p in one_loop(n, k)]),
     r"no layer 12.*Yours is \[\(0, 3\), \(3, 6\)"),
    (lambda: check_segments(lambda n, k: [set(p) for p in one_loop(n, k)]), "expected a list of 4"),
    (lambda: check_segments(lambda n, k: dict(enumerate(one_loop(n, k)))), "expected a list of 4"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * (w + 4 * h) / 2**20), "is in MiB"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * (w + 4 * h) + 12 * w * h),
     "exist anyway"),
    (lambda: check_thrifty(keeps_halves), "gradient of .* changed, by up to .* read other values"),
    (lambda: check_segments(lambda n, k: [range(10**12)] * k), "there is no layer 12"),
    (lambda: check_segments(lambda n, k: itertools.repeat(range(n))), "expected 4 segments, got"),
    (lambda: check_segments(forgets_to_return), "returned nothing .*is a return missing"),
    (lambda: check_segments(calls_itself), "RecursionError.*calls itself without end"),
    (lambda: check_segments(one_loop(12, 4)), "without parentheses"),
    # the place instead of the number, the lesson's own list, a table, other rules, the list sorted
    (lambda: check_cheapest(lambda b, m: m.index(min(
        (r for r in m if r.trace.peak <= b), key=lambda r: r.trace.flops))
        if any(r.trace.peak <= b for r in m) else -1, MEASURED),
     "has [0-9] checkpoints: return its .checkpoints, not its place"),
    (lambda: check_cheapest(lambda b, m: cheapest(b, MEASURED), MEASURED), "holds other results"),
    (lambda: check_cheapest(lambda b, m: {49: -1, 50: 3, 60: 3, 99: 3}.get(b, 0), MEASURED),
     "Budget of 299 bytes: nothing fits: expected -1, got 0"),
    (lambda: check_cheapest(lambda b, m: min((r.checkpoints for r in m if r.trace.peak <= b),
                                             default=-1), MEASURED), "need .* more FLOPs"),
    (lambda: check_cheapest(lambda b, m: min((r for r in m if r.trace.peak <= b), default=None,
        key=lambda r: r.trace.peak).checkpoints if b >= min(r.trace.peak for r in m) else -1,
        MEASURED), "need .* more FLOPs"),
    (lambda: check_cheapest(lambda b, m: cheapest(b - 1, m), MEASURED), "but 3 checkpoints fit"),
    (lambda: check_cheapest(mutates, MEASURED), "changes the list measured"),
    (lambda: check_cheapest(forgets_to_return, MEASURED), "got None"),
    (lambda: check_cheapest(lambda b, m: True, MEASURED), "got True"),
    # a table, what is left out, the wrong type's size, another function
    (lambda: check_kept_bytes(table_of(
        [(1, 1, 8, 20), (2, 16, 32, 64), (3, 5, 16, 128), (4, 8, 64, 24)], by_a_decorator)),
     "Look at each line|is missing|too many|left out"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * s * (w + 4 * h)), "Is batch left out"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * (w + 4 * h)), "Is sequence left out"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 2 * b * s * (w + 4 * h)), "4 bytes, not 2"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 8 * b * s * (w + 4 * h)), "Exactly twice"),
    (lambda: check_kept_bytes(lambda b, s, w, h: 4 * b * s * (h + 4 * w)), "Look at each line"),
    (lambda: check_kept_bytes(forgets_to_return), "number of bytes, got None"),
    (lambda: check_kept_bytes(True), "Hand the function itself"),
    # another block, a change of what was passed in, half precision, grad mode left off
    (lambda: check_thrifty(of_the_lessons_block), "output changed"),
    (lambda: check_thrifty(in_place), "changes x, which was passed in"),
    (lambda: check_thrifty(lambda block, x: (block.up.bias.data.add_(1.0), thrifty(block, x))[1]),
     "changes up.bias"),
    (lambda: check_thrifty(remembers_the_first), "gradient|graph|backward"),
    (lambda: check_thrifty(half_precision), "output changed"),
    (lambda: check_thrifty(grad_mode_left_off), "grad mode is off"),
    (lambda: check_thrifty(forgets_to_return), "returned nothing"),
    (lambda: check_thrifty(lambda block, x: thrifty(block, x, 1)), "TypeError"),
    (lambda: check_thrifty(thrifty(exercises.Wasteful(), torch.ones(1, 64))),
     "Hand the function itself"),
    (lambda: check_segments(lambda n, k: [range(n)]), "expected 4 segments, got 1"),
    (lambda: check_segments(lambda n, k: [range(i * (n // k), (i + 1) * (n // k))
                                          for i in range(k)]), "layer 10 is in no segment"),
    (lambda: check_segments(lambda n, k: [range(n), *(range(0) for _ in range(k - 1))]),
     "too uneven"),
    (lambda: check_segments(lambda n, k: [range(n) for _ in range(k)]), "layer 0 comes twice"),
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
    (lambda: check_segments(lambda n, k: [range(n)] if k == 1 else None),
     r"lambda\(12, 4\) ran, but returned nothing \(None\)"),
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
        HidesWhatItKeeps.apply(block.gate(x)) * (block.up(x) + 1.0))), "It keeps 344,064 bytes"),
    (lambda: check_thrifty(moved_to_the_cpu), "are still there"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "fault"), WRONG)
def test_wrong_answers_are_told_what_is_wrong(check, fault, spoken):
    heard(check(), "wrong", en=fault)


def test_an_exception_comes_with_its_line_and_its_arguments(spoken):
    def broken(n, k):
        return n // (k - 4)

    heard(
        check_segments(broken), "wrong",
        r"ZeroDivisionError: .*\n调用是 broken\(12, 4\)\n在第 \d+ 行：return n // \(k - 4\)",
        r"ZeroDivisionError: .*\nThe call was broken\(12, 4\)\nIn line \d+: return n // \(k - 4\)",
    )  # fmt: skip


def test_what_an_earlier_cell_left_behind_makes_no_difference():
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    try:
        assert check_thrifty(thrifty).passed
        assert check_kept_bytes(by_a_decorator).passed
        assert not torch.is_grad_enabled() and torch.get_default_dtype() == torch.float64
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)


def test_a_checker_leaves_nothing_in_the_blocks_gradients():
    torch.manual_seed(3)
    seen = []

    def answer(block: nn.Module, x):
        seen.append(block)
        return thrifty(block, x)

    assert check_thrifty(answer).passed
    assert all(parameter.grad is None for parameter in seen[0].parameters())


def test_a_prediction_is_kept_when_its_cell_runs_again():
    first = guess("peak", zh="峰值是", en="The peak is")
    first.field.value = "12.5"
    again = guess("peak", zh="峰值是", en="The peak is")
    assert again.value == 12.5
    again.field.value = "1024"
    assert again.value == 1024


def test_a_prediction_that_is_no_number_is_pointed_out_and_not_kept():
    prediction = guess("peak", zh="峰值是", en="The peak is")
    for typed in ("many", "nan", "inf", "9" * 400, "--3"):
        prediction.field.value = typed
        assert prediction.value is None, typed
        assert "Please type a number" in prediction._note.value, typed


def test_a_comparison_follows_what_is_typed_later():
    prediction = guess("peak", zh="峰值是", en="The peak is")
    table = compare("peak", 3 * 2**20, [(("公式", "formula"), 2 * 2**20)])
    assert "not filled in" in str(table._table())
    prediction.field.value = "4.5"
    assert "+50.0%" in table.value
    assert "-33.3%" in str(table._table())


def test_the_scoreboard_lists_each_prediction_with_what_was_measured():
    guess("a", zh="甲", en="A").field.value = "1"
    guess("b", zh="乙", en="B", unit="")
    compare("a", 2**20)
    board = str(scoreboard())
    assert "exact" in board
    assert "B" in board


def test_tables_follow_a_prediction_whose_cell_is_run_again():
    guess("peak", zh="峰值是", en="The peak is").field.value = "1.5"
    table, board = compare("peak", 3 * 2**20), scoreboard()
    assert "-50.0%" in table.value and "-50.0%" in board.value
    again = guess("peak", zh="峰值是", en="The peak is")
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
    monkeypatch.setattr(language.choice, "_chosen", "en")
    return tmp_path / "answers" / "00_lesson.json"


@pytest.fixture
def restart(monkeypatch):
    def restart():
        monkeypatch.setattr(predictions, "_predictions", {})
        monkeypatch.setattr(answers, "_here", {})
        monkeypatch.setattr(answers, "_lesson", None)

    return restart


def test_predictions_and_what_was_measured_survive_a_restart(own_memory, restart):
    guess("a", zh="甲", en="A").field.value = "1.5"
    guess("b", zh="乙", en="B", unit="")
    compare("a", 3 * 2**20)
    before = str(scoreboard())
    assert "-50.0%" in before
    restart()
    assert str(scoreboard()) == before  # before any other cell is run
    assert "-50.0%" in compare("a", 3 * 2**20).value
    with pytest.raises(KeyError, match="has not been asked for"):
        compare("c", 3)
    restart()
    assert guess("a", zh="甲", en="A").value == 1.5
    assert guess("b", zh="乙", en="B", unit="").value is None
    assert str(scoreboard()) == before
    assert guess("a", zh="甲", en="A", unit="GiB").value is None  # another question by now


def test_each_lesson_has_its_own(own_memory, restart, monkeypatch):
    guess("a", zh="甲", en="A").field.value = "1.5"
    restart()
    monkeypatch.setattr(answers, "lesson_name", lambda: "01_other")
    assert guess("a", zh="甲", en="A").value is None
    assert own_memory.exists() and own_memory.with_name("01_other.json").exists()


@pytest.mark.parametrize(
    "nonsense", ["", "[1]", '{"prediction": 3}', '{"prediction": {"a": [1]}}',
                 '{"prediction": {"a": {"typed": 3, "measured": "x", "unit": "MiB"}}}'],
)  # fmt: skip
def test_a_file_that_holds_nonsense_is_passed_over(own_memory, nonsense):
    own_memory.parent.mkdir()
    own_memory.write_text(nonsense)
    assert str(scoreboard()).count("\n") == 0
    assert guess("a", zh="甲", en="A").value is None


def test_a_home_that_cannot_be_written_keeps_answers_as_long_as_the_kernel(own_memory):
    own_memory.parent.write_text("a file where the folder should be")
    guess("a", zh="甲", en="A").field.value = "1.5"
    assert guess("a", zh="甲", en="A").value == 1.5


def test_a_run_of_the_tests_neither_reads_nor_writes_a_learners_answers(
    own_memory, restart, monkeypatch
):
    guess("a", zh="甲", en="A").field.value = "1.5"
    kept = own_memory.read_text()
    restart()
    monkeypatch.setenv("COURSE_LANG", "en")
    assert guess("a", zh="甲", en="A").value is None
    guess("a", zh="甲", en="A").field.value = "2.5"
    assert own_memory.read_text() == kept


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="unit must be one of"):
        guess("peak", zh="", en="", unit="Mo")
    with pytest.raises(KeyError, match="run the cell with its field first"):
        compare("unknown", 3)
