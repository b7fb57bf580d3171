"""Puzzles on a board: buttons and text follow each other, and what they show is judged."""

import pytest

from course_lib import language
from course_lib.lessons.placing_checkpoints.board import PuzzleBoard
from course_lib.lessons.placing_checkpoints.checkers import check_puzzle, puzzle
from course_lib.plans.plan import Plan


@pytest.fixture(autouse=True)
def english():
    language.choose("en")


def test_clicks_are_written_and_what_is_typed_is_shown():
    board = PuzzleBoard(1)
    for layer in (0, 1, 1, 2, 2):
        board.placement.press(layer)
    assert board.typed.value == "((0, 1, 2), 3, 4, 5, 6, 7, 8)"
    board.typed.value = "(0, (1, 2), 3, 4, (5,), 6, 7, 8)"
    assert board.placement.states[:6] == ["keep", "begin", "join", "keep", "keep", "begin"]
    assert board.plan == Plan((0, (1, 2), 3, 4, (5,), 6, 7, 8))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_the_verdict_is_that_of_the_checker(number):
    board = PuzzleBoard(number)
    board.check()
    assert "❌" in board.verdict.value
    board.typed.value = repr(puzzle(number).best.parts)
    assert board.verdict.value == ""
    board.check()
    assert "✅" in board.verdict.value and "100" in board.verdict.value
    assert board.verdict.value == check_puzzle(number, board.plan)._repr_mimebundle_()["text/html"]
    board.placement.press(0)
    assert board.verdict.value == ""


def test_a_nested_plan_is_shown_until_a_button_is_pressed():
    board = PuzzleBoard(4)
    before = board.placement.picture.caption
    board.typed.value = "(((0,), (1,), (2,), 3), ((4,), ((5,), 6), 7), (((8,), 9), 10), 11)"
    assert board.plan == puzzle(4).best and board.placement.picture.caption != before
    assert "Revolve's plan" in board.placement.picture.caption
    board.placement.press(11)
    assert all(isinstance(layer, int) for part in board.plan.segments for layer in part)


@pytest.mark.parametrize(
    "typed, said",
    [
        ("(0, 1", "Cannot be read"),
        ("(0, 1)", "leaves out"),
        ("__import__('os')", "Cannot be read"),
        ("(0, 'a')", "&#x27;a&#x27;"),
    ],
)
def test_what_is_no_plan_is_said_and_changes_nothing(typed, said):
    board = PuzzleBoard(1)
    plan = board.plan
    board.typed.value = typed
    assert said in board.verdict.value and board.plan == plan


def test_what_is_stored_has_a_picture():
    bundle = PuzzleBoard(2)._repr_mimebundle_()
    assert bundle["image/png"] and "budget" in bundle["text/plain"]
