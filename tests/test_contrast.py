"""The course's colours can be told from each other as text and background, light theme or dark."""

import pytest

from course_lib.figures import palette, picture
from course_lib.figures.palette import COLOURS, FAINT, INK
from course_lib.lessons.torch_checkpoint import museum
from course_lib.lessons.torch_checkpoint.collection import EXHIBITS
from course_lib.memory import Role
from course_lib.notebook.player import SIZE, Still, draw, film
from support.contrast import ENOUGH, contrast, faint_styles, faint_words


def test_the_formula_is_that_of_wcag():
    assert contrast("black", "white") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the known near miss
    assert contrast("#0000ff", "#ffffff") == contrast("#ffffff", "#0000ff")


def test_ink_on_paper():
    for ink in (INK, FAINT):
        assert contrast(ink, "white") >= ENOUGH
    for tint in palette.PHASE_TINTS.values():
        assert contrast(INK, tint) >= ENOUGH


@pytest.mark.parametrize("role", (Role.ACTIVATION, Role.RECOMPUTED))
def test_the_puzzle_buttons_of_lesson_05(role):
    assert contrast(INK, COLOURS[role]) >= ENOUGH


def test_every_moment_of_the_player():
    shown = film(segments=3)
    for moment in shown.moments:
        shown_on = picture.Picture(SIZE)
        with picture.style():
            draw(shown_on, Still(shown, moment, shown.trace.peak))
        assert not faint_words(shown_on)


def test_html_sets_both_colours_or_none():
    pages = [*(museum.label(exhibit) for exhibit in EXHIBITS),
             *(museum.code_html(exhibit.cure, exhibit.code) for exhibit in EXHIBITS)]  # fmt: skip
    assert not [style for page in pages for style in faint_styles(page)]
