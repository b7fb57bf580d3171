"""What all checkers share: stubs, exceptions, surroundings, both languages, and endless loops."""

import functools
import json
import random
import time

import numpy
import pytest
import torch
from torch import nn

from course_lib.language import text
from course_lib.notebook import checking as checking
from course_lib.notebook.checking import (
    Answer,
    Unfinished,
    Verdict,
    Wrong,
    briefly,
    described,
    judged,
    number,
    words_of,
)
from support.notebooks import kernel, python
from support.verdicts import heard, speak


@judged
def check_double(answer):
    """Check ``answer(n)``: twice n."""
    ask = Answer(answer)
    said = ask(3)
    if said is None:
        raise ask.nothing(3)
    if number(said) != 6:
        raise Wrong(f"得到 {briefly(said)}。", f"got {briefly(said)}.")
    return "对。", "Right."


@pytest.fixture(params=["zh", "en", "both"])
def spoken(request, monkeypatch):
    speak(monkeypatch, request.param)


def stub(n):
    """As the notebook has it."""
    return None


def passes(n):
    pass


def dots(n): ...


def forgets(n):
    n * 2


def prints(n):
    print(2 * n, end="")


def sometimes(n):
    if n > 100:
        return 2 * n
    return None


class Object:
    def __call__(self, n):
        return None


@pytest.mark.parametrize("answer", [stub, passes, dots, None, functools.partial(stub)])
def test_a_stub_is_not_done_yet(answer, spoken):
    heard(check_double(answer), "unfinished", "还没有做", "Not done yet")


@pytest.mark.parametrize("answer", [forgets, prints, sometimes, Object()])
def test_an_answer_without_return_is_told_so(answer, spoken):
    heard(check_double(answer), "wrong", r"\(3\) 运行了，却没有返回结果（得到 None）：少了 return",
          r"\(3\) ran, but returned nothing \(None\): is a return missing")  # fmt: skip


def test_right_and_wrong(spoken):
    heard(check_double(lambda n: 2 * n), "right", "对", "Right")
    heard(check_double(lambda n: n + 2), "wrong", "得到 5", "got 5")
    heard(
        check_double(6), "wrong", "函数本身.*不带括号；得到的是 6", "without parentheses; this is 6"
    )


def test_the_courses_own_errors_are_said_in_both_languages(spoken):
    said = text(zh="不行。", en="No.")

    def refused(n):
        raise ValueError(said)

    heard(check_double(refused), "wrong", "ValueError: 不行。", "ValueError: No")
    assert words_of(ValueError(text(zh="不行。", en="No."))) == ("不行。", "No.")
    assert words_of(ValueError("plain")) == ("plain", "plain")
    assert words_of(ValueError()) == ("", "")
    assert json.dumps(text(zh="同", en="same")) == json.dumps(str(text(zh="同", en="same")))


def test_an_exception_is_told_with_its_line_in_the_answer_and_not_in_a_library(spoken):
    def deep(n):
        return nn.Linear(2, 3)(torch.ones(n))

    heard(check_double(deep), "wrong", r"deep\(3\)\n在第 \d+ 行：return nn.Linear",
          r"The call was deep\(3\)\nIn line \d+: return nn.Linear")  # fmt: skip
    heard(check_double(lambda: 6), "wrong", r"TypeError.*lambda\(3\)", r"TypeError.*lambda\(3\)")


def test_what_an_answer_or_an_earlier_cell_leaves_behind_is_put_back():
    def meddles(n):
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
        return 2 * n

    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    assert check_double(meddles).passed
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("left", [False, True])
def test_a_grad_mode_that_is_not_put_back_is_told(left, spoken):
    def leaves(n):
        torch.set_grad_enabled(left)
        return 2 * n

    verdict = check_double(leaves)
    if left:
        heard(verdict, "right")
    else:
        heard(verdict, "wrong", "梯度模式关着", "grad mode is off, which it was not before")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("prepare", "restore"),
    [
        (lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
        (lambda: torch.set_default_dtype(torch.float64),
         lambda: torch.set_default_dtype(torch.float32)),
        (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
        (lambda: torch.set_autocast_enabled("cpu", True),
         lambda: torch.set_autocast_enabled("cpu", False)),
    ],
)  # fmt: skip
def test_answers_run_as_in_a_fresh_kernel(prepare, restore):
    met = []

    def looks(n):
        met.append((torch.is_grad_enabled(), torch.get_default_dtype(),
                    torch.ones(1).device.type, torch.is_autocast_enabled("cpu")))  # fmt: skip
        return 2 * n

    def state():
        return (torch.is_grad_enabled(), torch.get_default_dtype(),
                torch.get_default_device().type, torch.is_autocast_enabled("cpu"))  # fmt: skip

    prepare()
    try:
        before = state()
        assert check_double(looks).passed
        assert met == [(True, torch.float32, "cpu", False)]
        assert state() == before
    finally:
        restore()


def test_numbers_come_in_many_types():
    for said in (6, 6.0, numpy.int64(6), numpy.float32(6), torch.tensor(6), torch.tensor([6.0]),
                 numpy.array(6), numpy.array([6])):  # fmt: skip
        assert number(said) == 6, said
    for said in (True, "6", None, [6], float("nan"), float("inf"), torch.ones(2), 6j,
                 torch.tensor(float("nan"))):  # fmt: skip
        assert number(said) is None, said


def test_what_is_shown_of_a_value_is_short_and_never_raises():
    class Sullen:
        def __repr__(self):
            raise ZeroDivisionError

    endless = []
    endless.append(endless)
    for value in (Sullen(), endless, "x" * 10_000, list(range(10_000)), torch.ones(500, 500)):
        assert 0 < len(briefly(value)) < 200
        assert "\n" not in briefly(value)
    assert described(torch.ones(2, 3)) == "tensor[2, 3]"
    assert described(nn.Linear(1, 1)) == "Linear" and described(stub) == "stub"


def test_unfinished_and_wrong_pass_through_nested_calls():
    @judged
    def of_two(one, other):
        for answer in (one, other):
            if Answer(answer)(1) is None:
                raise Unfinished
        return "好", "Good"

    assert of_two(lambda n: n, stub).state == "unfinished"
    assert of_two(lambda n: n, lambda n: n) == Verdict("right", "好", "Good")


# --- what is waited for -------------------------------------------------------------------------


def test_a_slow_answer_is_said_to_be_waited_for_and_then_no_longer(monkeypatch):
    shown = []

    class Handle:
        def update(self, words):
            shown.append((words.zh, words.en))

    def show(words):
        shown.append((words.zh, words.en))
        return Handle()

    monkeypatch.setattr(checking, "PATIENCE", 0.2)
    monkeypatch.setattr(checking, "_show", show)

    def slow(n):
        time.sleep(0.8)
        return 2 * n

    assert check_double(slow).passed
    (zh, en), last = shown
    assert "检查器在等 slow(3) 做完" in zh and "waiting for slow(3) to finish" in en
    assert last == ("", "")
    shown.clear()
    assert check_double(lambda n: 2 * n).passed and not shown


ENDLESS = """\
from course_lib.notebook import checking
checking.PATIENCE = 0.5


def segments(n, k):
    started.touch()
    while True:
        n + k


check_segments(segments)"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "words"),
    [("zh", "检查器在等 segments(12, 4) 做完"), ("en", "waiting for segments(12, 4) to finish")],
)
def test_an_endless_loop_is_named_can_be_stopped_and_the_next_check_works(chosen, words, tmp_path):
    """In a real kernel: the sentence comes while the cell runs, under that cell."""
    started = tmp_path / "started"
    heard_of = []
    with kernel(chosen, tmp_path) as live:
        live.run_code(
            f"from pathlib import Path\nstarted = Path({str(started)!r})\n"
            "from course_lib.lessons.start_here.checkers import check_segments"
        )
        original = live._client.process_message

        def noting(message, cell, index):
            if message["msg_type"] == "display_data":
                heard_of.append(message["content"]["data"]["text/plain"])
            return original(message, cell, index)

        live._client.process_message = noting
        ran = live.run_until(lambda: any(words in said for said in heard_of), python(ENDLESS))
        assert ran.interrupted and started.exists()
        assert any(words in said for said in heard_of), heard_of
        after = live.run_code(
            "check_segments(lambda n, k: [range(i * n // k, (i + 1) * n // k) for i in range(k)])"
        )
        assert "✅" in after.texts[0] and not after.error
