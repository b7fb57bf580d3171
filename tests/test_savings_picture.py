"""Lesson 03's picture of savings: its bars are the shares of what was measured."""

import pytest

from course_lib.figures.picture import Picture
from course_lib.language import LANGUAGES, speaking
from course_lib.lessons.torch_checkpoint.savings import KINDS, Saving, measure_kinds
from course_lib.lessons.torch_checkpoint.savings_picture import shares, show_savings


def test_shares_are_those_of_the_step_without_checkpoints():
    kind, other = KINDS[:2]
    found = [
        Saving(kind, 0, 100, 400, 9), Saving(kind, 1, 25, 300, 9), Saving(kind, 2, 20, 500, 9),
        Saving(other, 0, 10, 40, 9), Saving(other, 1, 5, 40, 9), Saving(other, 2, 4, 40, 9),
    ]  # fmt: skip
    left = shares(found)
    assert left[kind.name]["kept", 1] == 0.25 and left[kind.name]["peak", 2] == 1.25
    assert left[other.name]["peak", 1] == 1.0
    with speaking("en"):
        assert show_savings(found).caption.endswith("25%–50% of what is kept is left, and "
                                                    "75%–100% of the peak")  # fmt: skip


@pytest.mark.parametrize("spoken", LANGUAGES)
def test_it_is_drawn_for_a_notebook_and_for_a_phone(spoken):
    shown = show_savings(measure_kinds(KINDS[3:4]))
    for picture in (None, Picture.for_phone(shown.size)):
        ((_, drawn),) = shown.everywhere(spoken, picture)
        assert drawn.png and all(drawn.words)
