"""What the web edition is made of, without a browser: recorded explorers, narrow pictures."""

import io
import json
import re

import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from torch import nn

from course_lib.figures.panel import width_of_words, wrapped
from course_lib.figures.picture import (
    LEAST_POINTS,
    PHONE_DOTS,
    PHONE_PIXELS,
    Picture,
    is_narrow,
    style,
)
from course_lib.language import LANGUAGES, speaking
from course_lib.lessons.placing_checkpoints.plan_row import plans_explorer, worth_comparing
from course_lib.lessons.torch_checkpoint.collection import EXHIBITS
from course_lib.lessons.torch_checkpoint.recorded import recorded_museum
from course_lib.memory import measure, simulated
from course_lib.models import pyramid
from course_lib.notebook.explorers import Control, Explorer
from course_lib.notebook.pictures import show_bars, show_timeline
from course_lib.notebook.player import Player, film
from course_lib.plans.chains import chain_of
from course_lib.plans.plan import predict
from course_lib.plans.planners import keep_all
from course_lib.site.explorers import explorer_html, script
from course_lib.site.recorded import state_of


@pytest.fixture(scope="module")
def trace():
    model, x = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)), torch.ones(64, 64)
    return measure(lambda: model(x).sum().backward(), model, inputs=x)


@pytest.fixture(scope="module")
def chain():
    with simulated():
        return chain_of(pyramid((4, 4, 6, 2)), torch.empty(16, 1024, 64))


@pytest.fixture(scope="module")
def player():
    return Player([film(segments=count, layers=4) for count in (1, 2, 4)])


BUDGET = 734 * 2**20


def pixels(picture):
    return Image.open(io.BytesIO(picture)).convert("RGB").tobytes()


# --- recorded -----------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["zh", "en"])
def test_frames_are_the_notebooks(player, language, tmp_path):
    state = state_of(player, language, tmp_path)
    assert len(state["pictures"]) == len(list(player.positions()))
    for values in list(player.positions())[::7]:
        player.move(**values)
        place = tuple(player.index)
        drawn = player._drawing(language, place)
        shown = state["pictures"][f"{language} {','.join(map(str, place))}"]
        assert pixels((tmp_path / shown["src"]).read_bytes()) == pixels(drawn.png)
        assert shown["words"] == [drawn.words[language == "en"]] * 2


def test_a_recorded_explorer_speaks_one_language_and_knows_the_size_of_a_phone(player, tmp_path):
    state = state_of(player, "zh", tmp_path)
    assert [slider["words"] for slider in state["sliders"]] == [["检查点"] * 2, ["时刻"] * 2]
    assert all(set(slider["labels"]) == {"zh"} for slider in state["sliders"])
    narrow = state["box"]["narrow"]
    assert narrow["width"] == PHONE_PIXELS
    for drawn in list(state["pictures"].values())[:3]:
        picture = Image.open(io.BytesIO((tmp_path / drawn["narrow"]["src"]).read_bytes()))
        dots = PHONE_DOTS * narrow["width"], PHONE_DOTS * narrow["height"]
        assert picture.size == pytest.approx(dots, abs=1)


def test_without_scripts_each_position_has_a_button_and_each_combination_a_figure(tmp_path):
    explorer = Explorer(
        [Control("a", "甲", "a < b", (1, 2, 3), 2), Control("b", "乙", "b", (0.5, 1.0), 0.5)],
        lambda a, b: a * b,
        lambda figure, data: figure.text(0.5, 0.5, str(data)),
        lambda data: (f"{data} & 乙", f"{data} & b"),
    )
    page = explorer_html(state_of(explorer, "en", tmp_path), 7, "en")
    assert page.count('type="radio"') == 5 and page.count(" checked>") == 2
    assert 'id="explorer-7-0-1" checked' in page and 'id="explorer-7-1-0" checked' in page
    assert page.count("<figure") == page.count("<figcaption>") == 6
    assert "a &lt; b" in page and "1.5 &amp; b" in page
    state = re.search(r'application/json">(.*?)</script>', page)[1]
    assert json.loads(state)["index"] == [1, 0]


def test_the_script_is_the_notebooks_front_end_and_loads_no_module():
    whole = script()
    assert "function sliderRow" in whole and ".course-static" in whole
    assert "import " not in re.sub(r"//.*", "", whole) and "export " not in whole


def test_the_museums_record_says_so_and_shows_every_exhibit():
    page = recorded_museum()
    assert page.count('class="course-exhibit"') == len(EXHIBITS)
    assert page.count("一次运行的记录") == page.count("the record of a run") == len(EXHIBITS)
    assert torch.__version__ in page


# --- placements worth comparing -----------------------------------------------------------------


def test_the_row_of_placements_holds_the_usual_ones_and_the_best(chain):
    plans = worth_comparing(chain, BUDGET)
    peaks = {names[1]: predict(plan, chain).peak for names, plan in plans.items()}
    flops = {names[1]: predict(plan, chain).recomputed_flops for names, plan in plans.items()}
    assert len(plans) == len(set(plans)) >= 10
    assert peaks["the lowest peak there is"] == min(peaks.values())
    assert peaks["the best plan for this budget"] <= BUDGET
    fitting = [name for name, peak in peaks.items() if peak <= BUDGET]
    assert flops["the best plan for this budget"] == min(flops[name] for name in fitting)
    assert peaks["the last layer only"] > 0.9 * predict(keep_all(chain), chain).peak


def test_each_is_judged_as_a_learners_own_is(chain):
    explorer = plans_explorer(chain, BUDGET)
    verdicts = [drawn.words for _, drawn in explorer.everywhere("en")]
    assert len(verdicts) == len(set(verdicts)) >= 9
    assert all("budget 734 MiB" in en and "预算 734 MiB" in zh for zh, en in verdicts)


# --- as wide as a phone -------------------------------------------------------------------------


def explorers(trace, chain, player):
    yield show_timeline(trace)
    yield show_bars({str(count): trace for count in (0, 1, 4, 12)}, heading=("数量", "count"))
    yield player
    yield plans_explorer(chain, BUDGET)


@pytest.mark.parametrize("language", LANGUAGES[:2])
def test_words_are_large_enough_and_inside_the_picture(language, trace, chain, player):
    for explorer in explorers(trace, chain, player):
        picture = Picture.for_phone(explorer.size)
        assert is_narrow(picture) and not is_narrow(Picture(explorer.size))
        for place, _ in explorer.everywhere(language, picture):
            renderer = picture.canvas.get_renderer()
            for words in picture.findobj(Text):
                if not (words.get_visible() and words.get_text().strip()):
                    continue
                assert words.get_fontsize() >= LEAST_POINTS
                box = words.get_window_extent(renderer)
                said = (explorer._draw.__qualname__, place, words.get_text())
                assert box.x0 > -2 and box.x1 < picture.bbox.width + 2, said
                assert box.y0 > -2 and box.y1 < picture.bbox.height + 2, said


def test_lines_break_where_either_language_may_break():
    with style(), speaking("zh"):
        zh = wrapped("预算 729 MiB：不嵌套的最优方案 FLOPs +9.7%，均匀分段放不下。", 2.0, 11)
        en = wrapped("Budget 729 MiB: FLOPs +9.7% at best without nesting", 2.0, 11)
    for words in (zh, en):
        lines = words.split("\n")
        assert len(lines) > 1
        assert all(width_of_words(line, 11) <= 2.0 for line in lines)
        assert not any(line.startswith(("，", "。", "：", " ")) for line in lines)
    assert en.replace("\n", " ") == "Budget 729 MiB: FLOPs +9.7% at best without nesting"
    assert zh.replace("\n", "").replace(" ", "") == \
        "预算729MiB：不嵌套的最优方案FLOPs+9.7%，均匀分段放不下。"  # fmt: skip
    assert wrapped("一\n二", 2.0, 11) == "一\n二"
