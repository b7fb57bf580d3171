"""The pictures: their colours, their words, and what they show of a trace."""

from __future__ import annotations

import importlib.util
import io
import itertools
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.text import Text
from PIL import Image

import course_lib  # noqa: F401  # before torch
from course_lib.figures import bars, curves, panel, picture, timeline
from course_lib.figures.curves import Curve
from course_lib.figures.palette import COLOURS, COMPARED, ROLE_NAMES
from course_lib.figures.picture import Picture, image_html, picture_widths
from course_lib.figures.words import PHASE_NAMES, more_time_in_words, size_text
from course_lib.memory import Role

COURSE = Path(__file__).parent.parent
FONTS = COURSE / "assets" / "fonts"
KIB, MIB = 2**10, 2**20


def event(size: int, role: Role, phase: str = "forward", time: float | None = None):
    return SimpleNamespace(size=size, role=role, phase=phase, time=time)


def trace_of(events: list, before: dict[Role, int] | None = None) -> SimpleNamespace:
    """What the figures read of a `MemoryTrace`."""
    before = before or {}
    levels = np.cumsum([sum(before.values()), *(e.size for e in events)])
    where = int(levels.argmax())
    at_peak = dict(before)
    for e in events[:where]:
        at_peak[e.role] = at_peak.get(e.role, 0) + e.size
    return SimpleNamespace(
        events=tuple(events), before=before, peak=int(levels.max()), peak_index=where - 1,
        peak_phase=events[where - 1].phase if where else "forward", at_peak=at_peak,
    )  # fmt: skip


def random_trace(length: int, seed: int = 0) -> SimpleNamespace:
    random = np.random.default_rng(seed)
    roles = [Role.ACTIVATION, Role.TEMPORARY, Role.RECOMPUTED, Role.CHECKPOINT, Role.WORKSPACE]
    events, alive = [], []
    for i in range(length):
        phase = "forward" if i < length // 3 else "backward"
        if alive and random.random() < (0.3 if phase == "forward" else 0.7):
            size, role = alive.pop(int(random.integers(len(alive))))
            events.append(event(-size, role, phase, i / 1000))
        else:
            size, role = int(random.integers(1, MIB)), roles[int(random.integers(len(roles)))]
            alive.append((size, role))
            events.append(event(size, role, phase, i / 1000))
    return trace_of(events, {Role.PARAMETER: 3 * MIB})


@pytest.fixture(params=["zh", "en", "both"])
def language(request, monkeypatch):
    from course_lib import language

    monkeypatch.setattr(language.choice, "_chosen", request.param)
    return request.param


def words_of(picture: Picture) -> list[str]:
    return [text.get_text() for text in picture.findobj(Text) if text.get_text()]


# --- the font -----------------------------------------------------------------------------------


def subset_script():
    spec = importlib.util.spec_from_file_location("subset", FONTS / "subset.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_font_has_every_chinese_character_of_the_course() -> None:
    script = subset_script()
    has = set(map(chr, TTFont(FONTS / "CourseSansSC-Regular.otf").getBestCmap()))
    missing = {letter for letter in script.used_by_the_course() if script.is_han(letter)} - has
    assert not missing, f"run assets/fonts/subset.py: the font lacks {''.join(sorted(missing))}"
    assert len(script.gb_2312()) == 6763
    assert script.gb_2312() <= has


def test_the_two_fonts_together_have_every_character_of_the_code() -> None:
    dejavu = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    has = set(map(chr, dejavu)) | picture.letters_in_font()
    code = "".join(file.read_text(encoding="utf-8") for file in COURSE.glob("course_lib/*.py"))
    signs = set("✅❌")  # of HTML, like all beyond U+1F000: browsers have them
    printed = {letter for letter in code if letter.isprintable() and letter < "\U0001f000"}
    assert not printed - signs - has


def test_the_font_is_small_free_and_not_mistaken_for_another() -> None:
    file = FONTS / "CourseSansSC-Regular.otf"
    assert file.stat().st_size < 1_600_000
    names = TTFont(file)["name"]
    assert names.getDebugName(1) == "Course Sans SC"
    shown = " ".join(str(names.getDebugName(i)) for i in (1, 3, 4, 6))
    assert "Source" not in shown  # the licence reserves that name
    assert "Noto" not in shown
    assert "SIL OPEN FONT LICENSE Version 1.1" in (FONTS / "OFL.txt").read_text()


# --- colours ------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
def test_roles_can_be_told_apart(sight: str) -> None:
    seen = {role: lab(SIGHTS[sight] @ linear(colour)) for role, colour in COLOURS.items()}
    lesson = {Role.CHECKPOINT, Role.ACTIVATION, Role.RECOMPUTED}
    for one, other in itertools.combinations(seen, 2):
        apart = np.linalg.norm(seen[one] - seen[other])
        assert apart >= (40 if {one, other} <= lesson else 20), (one, other, apart)


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_sides_of_a_comparison_look_like_no_role(sight: str) -> None:
    seen = [lab(SIGHTS[sight] @ linear(colour)) for colour in COMPARED]
    roles = [lab(SIGHTS[sight] @ linear(colour)) for colour in COLOURS.values()]
    assert np.linalg.norm(seen[0] - seen[1]) >= 35
    assert min(np.linalg.norm(side - role) for side in seen for role in roles) >= 20


def test_every_role_has_a_colour_and_a_name() -> None:
    assert set(COLOURS) == set(ROLE_NAMES) == set(Role)
    assert len(set(COLOURS.values())) == len(Role)
    assert ROLE_NAMES[Role.WORKSPACE] == ("算子工作区", "workspace")


def test_phases_have_chinese_names() -> None:
    names = [zh for zh, _ in PHASE_NAMES.values()]
    assert names == ["前向传播", "反向传播", "参数更新阶段"]


# --- on the page ----------------------------------------------------------------------------------


def test_a_picture_has_a_least_width_and_scrolls_below_it() -> None:
    least, most = picture_widths((902, 462), 232)
    assert least == "min(680px,80vw)" and most.startswith("min(100%,calc(1.9524 * max(400px,")
    assert picture_widths((500, 300)) == ("min(500px,80vw)", "100%")
    shown = image_html("AAAA", "a < b", (902, 462), 232)
    assert 'alt="a &lt; b"' in shown and "overflow-x:auto" in shown
    assert f"min-width:{least};max-width:{most};height:auto" in shown


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "told"),
    [
        ((-0.5, -0.34, 0.29), "time: cannot be told, rounds scatter from -50% to +29%"),
        ((0.3, 0.35, 0.4), "time +35% (+30% to +40%)"),
        ((0.0, 0.2, 0.3), "time +20% (+0% to +30%)"),
        ((0.1, 0.4, 0.9), "slower, but by how much cannot be told"),
        ((-0.9, -0.4, -0.1), "faster, but by how much cannot be told"),
    ],
)
def test_timings_that_scatter_tell_no_number(ratios: tuple, told: str) -> None:
    zh, en = more_time_in_words(*ratios)
    assert told in en
    for share in (ratios[0], ratios[2]):
        assert f"{share:+.0%}" in zh and f"{share:+.0%}" in en
    assert (f"{ratios[1]:+.0%}" in en) == (f"{ratios[1]:+.0%}" in zh) == ("told" not in en)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1,023 B"), (5056, "5,056 B"), (10239, "10,239 B"),
        (10 * KIB, "10 KiB"), (12_800, "12.5 KiB"), (1_310_720, "1.25 MiB"), (4 * MIB, "4 MiB"),
        (4 * MIB + 1, "4.00 MiB"), (37_958_451, "36.2 MiB"), (100 * MIB + 7, "100 MiB"),
        (1000 * MIB, "1,000 MiB"), (2**30 - 1, "1.00 GiB"), (230 * 2**30, "230 GiB"),
        (99.97 * MIB, "100 MiB"), (9.999 * MIB, "10.0 MiB"), (-3 * MIB, "−3 MiB"),
        (2**60, "1,024 PiB"),
    ],
)  # fmt: skip
def test_sizes_are_written_for_people(size: float, shown: str) -> None:
    assert size_text(size) == shown


@pytest.mark.parametrize("high", [1e-3, 0.7, 1, 9.99, 100, 139 * 1.16, 1023, 1e9])
def test_rulers_have_few_and_round_numbers(high: float) -> None:
    numbers = panel.round_numbers(0, high, 5)
    assert 2 <= len(numbers) <= 7
    assert numbers[0] == 0
    assert numbers[-1] <= high * 1.000001


# --- the timeline -------------------------------------------------------------------------------


def test_the_timeline_says_where_the_peak_is(language: str) -> None:
    events = [event(7 * MIB, Role.ACTIVATION), event(2 * MIB, Role.TEMPORARY, "backward"),
              event(-7 * MIB, Role.ACTIVATION, "backward")]  # fmt: skip
    picture = timeline.timeline(trace_of(events, {Role.PARAMETER: 3 * MIB}))
    zh, en = "峰值 12 MiB，出现在反向传播中", "The peak, 12 MiB, falls in the backward pass"
    assert str(picture) == {"zh": zh, "en": en, "both": f"{zh} · {en}"}[language]
    shown = words_of(picture)
    name = {"zh": "激活值", "en": "activation", "both": "激活值 activation"}[language]
    assert name in shown
    assert not any("checkpoint" in words or "检查点" in words for words in shown)


@pytest.mark.parametrize("length", [0, 1, 5, 700, 5000, 20_001])
@pytest.mark.parametrize("over", ["order", "time"])
def test_few_columns_keep_every_level_and_the_exact_peak(length: int, over: str) -> None:
    trace = random_trace(length)
    columns = timeline._columns(trace, over, timeline._crumb(trace))
    heights = list(columns.sums.values())[-1]
    assert len(heights) <= timeline.STEPS + 1
    assert len(columns.edges) == len(heights) + 1
    assert (np.diff(columns.edges) >= 0).all()
    assert heights.max() == trace.peak
    below = [np.zeros(len(heights)), *columns.sums.values()]
    at_peak = [
        top[heights.argmax()] - low[heights.argmax()] for low, top in itertools.pairwise(below)
    ]
    assert dict(zip(columns.sums, at_peak, strict=True)) == {
        role: size for role, size in trace.at_peak.items() if role in columns.sums
    } | {role: 0 for role in columns.sums if role not in trace.at_peak}
    x = columns.middle(trace.peak_index)
    assert columns.edges[heights.argmax()] <= x <= columns.edges[heights.argmax() + 1]


def test_a_timeline_in_seconds_has_figures_below_it_and_one_in_order_has_none() -> None:
    trace = random_trace(50)
    below = {}
    for over in ("order", "time"):
        words = words_of(timeline.timeline(trace, over=over))
        below[over] = {text for text in words if re.fullmatch(r"[\d.e-]+", text)}
        assert any("seconds" in text or "秒" in text for text in words) == (over == "time")
    ends = [trace.events[0].time, trace.events[-1].time]
    marks = sorted(map(float, below["time"] - below["order"]))
    assert len(marks) >= 3 and ends[0] <= marks[-2] <= ends[1]


def test_no_moment_is_higher_than_its_column() -> None:
    trace = random_trace(9000)
    columns = timeline._columns(trace, "order", timeline._crumb(trace))
    levels = 3 * MIB + np.cumsum([0, *(e.size for e in trace.events)])
    tops = list(columns.sums.values())[-1]
    column = np.searchsorted(columns.edges, columns.moments[:-1], "right") - 1
    assert (levels <= tops[np.minimum(column, len(tops) - 1)]).all()


def test_simulated_steps_have_no_seconds(language: str) -> None:
    trace = trace_of([event(5, Role.ACTIVATION)])
    with pytest.raises(ValueError, match="over='order'"):
        timeline.timeline(trace, over="time")


def test_a_long_timeline_is_drawn_in_a_blink() -> None:
    trace = random_trace(20_000)
    picture = Picture()
    timeline.draw_timeline(picture, trace)
    picture.png()  # the glyphs are loaded once
    took = []
    for _ in range(5):
        begin = time.process_time()
        timeline.draw_timeline(picture, trace)
        picture.png()
        took.append(time.process_time() - begin)
    assert min(took) < 0.1


def test_a_real_step_is_drawn_in_every_language(language: str) -> None:
    import torch

    from course_lib.memory import measure
    from course_lib.models import Sizes, Transformer, random_tokens

    sizes = Sizes(depth=2, width=32, heads=2, sequence=16, batch=2, vocabulary=32, dropout=0.1)
    model = Transformer(sizes)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = random_tokens(sizes)

    def step() -> None:
        model.loss(tokens).backward()
        optimizer.step()

    picture = measure(step, model, optimizer, tokens).plot()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph
        assert picture.png().startswith(b"\x89PNG")


# --- the other pictures -------------------------------------------------------------------------

ROWS = [
    (("不用检查点", "plain"), {Role.PARAMETER: 4 * MIB, Role.ACTIVATION: 28 * MIB}),
    (("用检查点", "checkpointed"), {Role.PARAMETER: 4 * MIB, Role.CHECKPOINT: 5 * MIB}),
]


def test_bars_end_in_their_totals(language: str) -> None:
    picture = Picture((8.2, 2.4))
    bars.draw_bars(picture, ROWS, title=("更少", "less"), budget=10 * MIB)
    shown = words_of(picture)
    assert {"32 MiB", "9 MiB"} <= set(shown)
    assert any("10 MiB" in words for words in shown)
    assert not any("gradient" in words or "梯度" in words for words in shown)
    bars.draw_bars(picture, [], title="")


def test_curves_tell_the_values_at_the_mark(language: str) -> None:
    picture = Picture()
    lines = [Curve(("一", "one"), [MIB, 2 * MIB, None]), Curve(("二", "two"), [0, 0, 3 * MIB])]
    curves.draw_curves(picture, [1, 2, 4], lines, mark=1, x_name=("段", "segments"), log_x=True)
    assert {"2 MiB", "0 B"} <= set(words_of(picture))
    curves.draw_curves(picture, [1, 2, 4], lines, mark=2)
    assert {"—", "3 MiB"} <= set(words_of(picture))
    curves.draw_curves(
        picture, [5], [Curve("x", [0.5])], y_name="s", mark=0, show="{:.1f} s".format
    )
    assert "0.5 s" in words_of(picture)


def test_a_height_that_would_flatten_the_rest_is_told_in_figures(language: str) -> None:
    picture = Picture()
    curve = Curve("x", [200 * MIB, 8 * MIB, 4 * MIB])
    curves.draw_curves(picture, [1, 2, 3], [curve], mark=0, top=24 * MIB)
    shown = words_of(picture)
    assert "↑ 1: 200 MiB" in shown and "200 MiB" in shown and "20" in shown and "50" not in shown
    assert not sticking_out(picture)
    curves.draw_curves(picture, [1, 2, 3], [curve], mark=0, top=300 * MIB)
    assert not [words for words in words_of(picture) if "↑" in words]


def test_bars_have_a_head_and_an_axis_with_a_name(language: str) -> None:
    picture = Picture((8.2, 2.9))
    bars.draw_bars(picture, ROWS, title="t", heading=("检查点", "checkpoints"),
                      outlines=[64 * MIB] * len(ROWS))  # fmt: skip
    shown = "\n".join(words_of(picture))
    assert {"zh": "检查点", "en": "checkpoints", "both": "检查点\ncheckpoints"}[language] in shown
    assert "MiB" in shown and ("内存（MiB）" in shown or "memory (MiB)" in shown)
    assert "60" in shown  # the axis reaches as far as the frames
    assert not sticking_out(picture)


def sticking_out(picture: Picture) -> list[str]:
    """The words that stick out of the picture."""
    picture.canvas.draw()
    renderer = picture.canvas.get_renderer()
    width, height = picture.bbox.size
    out = []
    for text in picture.findobj(Text):
        if text.get_text():
            box = text.get_window_extent(renderer)
            if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height:
                out.append(text.get_text())
    return out


def test_no_words_stick_out(language: str) -> None:
    picture = Picture()
    trace = random_trace(3000)
    timeline.draw_timeline(picture, trace)
    assert not sticking_out(picture)
    bars.draw_bars(picture, ROWS, title=("更少", "less"))
    assert not sticking_out(picture)
    lines = [Curve((f"曲线 {i}", f"curve {i}"), [1e9 * i, 2e9]) for i in range(4)]
    curves.draw_curves(picture, [0, 1], lines, mark=1, x_name=("段", "segments"))
    assert not sticking_out(picture)


def test_a_picture_shows_itself_in_exact_colours() -> None:
    picture = timeline.timeline(random_trace(500))
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert "\n" not in bundle["text/plain"]
    assert f'alt="{bundle["text/plain"]}"' in bundle["text/html"]
    image = Image.open(io.BytesIO(picture.png())).convert("RGB")
    found = {colour for _, colour in image.getcolors(100_000)}
    used = [COLOURS[Role.PARAMETER], COLOURS[Role.ACTIVATION], COLOURS[Role.CHECKPOINT], "#ffffff"]
    for colour in used:
        assert tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) in found


def test_pictures_are_the_same_bytes_every_time() -> None:
    trace = random_trace(2000)
    first, second = timeline.timeline(trace).png(), timeline.timeline(trace).png()
    assert first == second


def test_drawing_leaves_no_global_state() -> None:
    code = (
        "import course_lib, sys; from course_lib.figures import bars, picture\n"
        "import matplotlib as m\n"
        "def settings(): return {k: m.rcParams[k] for k in m.rcParams if k != 'backend'}\n"
        "before = settings()\n"
        "p = picture.Picture(); bars.draw_bars(p, [('x', {})], title='x'); p.png()\n"
        "assert before == settings()\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'ipywidgets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=COURSE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
