"""Lesson 06's room: the button per operator, the planes, the tables, and the block it is about."""

import json
import re

import pytest
import torch

from course_lib import language
from course_lib.lessons.choosing_what_to_recompute import (
    Storing,
    frontier_explorer,
    not_needed_table,
    operators_table,
    show_policies,
    show_puzzle,
)
from course_lib.lessons.choosing_what_to_recompute.blocks import (
    Dropping,
    Spelled,
    scored,
    stack,
    stepping,
)
from course_lib.lessons.choosing_what_to_recompute.storing import choices_explorer
from course_lib.memory import measure, simulated
from course_lib.paths import NOTEBOOKS
from course_lib.plans.selective import Keeping
from support.verdicts import HAN


@pytest.fixture(autouse=True)
def every_language():
    yield
    language.choose("en")


@pytest.fixture(scope="module")
def score():
    return scored(lambda: Spelled(32, 2), 3, (2, 32, 32))


@pytest.fixture(scope="module")
def drawing():
    return scored(lambda: Dropping(32), 2, (16, 32))


def test_the_block_is_the_one_that_the_lesson_shows():
    cells = json.loads((NOTEBOOKS / "06_choosing_what_to_recompute.ipynb").read_text())["cells"]
    shown = next(s for c in cells if (s := "".join(c["source"])).startswith("class Block("))
    names = {"nn": torch.nn, "F": torch.nn.functional}
    exec(shown, names)
    torch.manual_seed(0)
    theirs, ours, x = names["Block"](), Spelled(), torch.randn(2, 8, 128)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(theirs(x), ours(x))
    with simulated():
        blocks, x = stack(names["Block"], 2), torch.empty(2, 16, 128)
        step = stepping(blocks, x)
        step()
        same = scored(Spelled, 2, (2, 16, 128)).plain
        assert measure(step, blocks, inputs=x).peak == same.peak


# --- tables -------------------------------------------------------------------------------------


def test_what_everything_keeps_beyond_no_checkpoint_adds_up_to_the_byte(score):
    (*rows, (_, _, total)) = not_needed_table(score).rows
    found = sum(int(row[2].replace(",", "")) for row in rows)
    assert found == int(total.replace(",", "")) == score.everything.kept - score.plain.kept
    assert all(int(row[2].replace(",", "")) > 0 for row in rows)
    with simulated():
        blocks, x = stack(lambda: Spelled(32, 2), 3), torch.empty(2, 32, 32)
        stepping(blocks, x)()
        every = Keeping((c.operator, c.nth) for c in score.choices)
        kept = [
            sum(measure(stepping(blocks, x, way), blocks, inputs=x).kept.values())
            for way in (None, every)
        ]
    assert kept[1] - kept[0] == found


def test_operators_are_sorted_by_what_they_are_worth(score):
    plain, sorted_ = operators_table(score), operators_table(score, by="flops per byte")
    assert [row[0] for row in plain.rows] == [str(n) for n in range(len(score.choices))]
    ratios = [float(row[-1]) for row in sorted_.rows]
    assert ratios == sorted(ratios) and len(plain.headers) == 5 and len(sorted_.headers) == 7
    assert all(len(row) == len(sorted_.headers) for row in sorted_.rows)


# --- the planes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spoken", language.LANGUAGES)
@pytest.mark.parametrize("of", ["kept", "peak"])
def test_the_slider_goes_along_the_frontier(score, spoken, of):
    language.choose(spoken)
    explorer = frontier_explorer(score, of)
    front = score.frontier(of)
    assert len(list(explorer.positions())) == len(front)
    for at, one in enumerate(front):
        explorer.move(choice=at)
        share = f"{one.flops / score.plain.flops - 1:+.1%}"
        assert share in explorer.caption
        assert bool(HAN.search(explorer.caption)) == (spoken != "en")


@pytest.mark.parametrize("spoken", ["zh", "en"])
def test_each_button_stores_one_result_or_lets_it_go(score, spoken):
    language.choose(spoken)
    storing = Storing(score, [1])
    for choice in score.choices:
        before = set(storing.stored)
        storing._buttons[choice.number].click()
        assert storing.stored == before ^ {choice.number}
        one = score.predict(storing.stored)
        assert f"{one.flops / score.plain.flops - 1:+.1%}" in storing.picture.caption
        button = storing._buttons[choice.number]
        assert choice.label in button.tooltip and button.description == str(choice.number)
    bundle = storing._repr_mimebundle_()
    assert bundle["image/png"] and bundle["text/plain"] == storing.picture.caption


def test_buttons_that_draw_random_numbers_go_together(drawing):
    first, second = [choice.number for choice in drawing.choices if choice.random]
    storing = Storing(drawing)
    storing.press(first)
    assert storing.stored == {first, second}
    storing.press(first)
    assert storing.stored == {second}
    storing.press(first)
    storing.press(second)
    assert storing.stored == set()
    with pytest.raises(ValueError, match="other random numbers"):
        Storing(drawing, [first])


def test_titles_say_what_is_better(score):
    front = score.frontier("peak")
    useless = next(c.number for c in score.choices if not c.flops and c.saved)

    def title(stored, **budget):
        storing = Storing(score, stored, **budget)
        return storing.picture._picture._suptitle.get_text()

    assert "none better" in title(front[2].stored)
    assert re.search(r"the same FLOPs .* less", title(front[-1].stored | {useless}))
    cheaper = next(c.number for c in score.choices if c.name == "bmm")
    assert "will do" in title({cheaper})
    assert "over the budget" in title(front[-1].stored, budget=front[0].peak, of="peak")
    assert "over the budget" not in title((), budget=front[0].peak, of="peak")


@pytest.mark.parametrize("spoken", ["zh", "en"])
def test_without_a_kernel_there_is_a_row_of_choices(score, drawing, spoken):
    language.choose(spoken)
    for one in (score, drawing):
        explorer = Storing(one, (), one.nothing.peak + 1000, "peak").on_a_page
        positions = list(explorer.positions())
        assert len(positions) >= 4 + len(one.frontier("peak")) - 1
        for position in positions:
            explorer.move(**position)
            assert bool(HAN.search(explorer.caption)) == (spoken == "zh")
    names = choices_explorer(drawing).controls["choice"].values
    assert ("存矩阵乘法和注意力", "products of matrices") in names


@pytest.mark.parametrize("spoken", ["zh", "en"])
def test_policies_are_points_and_their_names_do_not_overlap(score, spoken):
    language.choose(spoken)
    with simulated():
        blocks, x = stack(lambda: Spelled(32, 2), 3), torch.empty(2, 32, 32)
        stepping(blocks, x)()
        ways = {("甲的策略", "one"): None, ("乙的策略", "another"): Keeping([]),
                ("丙的策略", "a third"): Keeping([])}  # fmt: skip
        traces = {
            name: measure(stepping(blocks, x, way), blocks, inputs=x) for name, way in ways.items()
        }
    picture = show_policies(traces, score)
    figure = picture._picture
    figure.draw_without_rendering()
    names = [name[spoken == "en"] for name in ways]
    boxes = [t.get_window_extent() for t in figure.texts if t.get_text() in names]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(name in picture.caption for name in names)


def test_a_puzzle_shows_its_budget():
    for number in (1, 2):
        storing = show_puzzle(number)
        assert storing.budget is not None and "budget" in storing.picture.caption
