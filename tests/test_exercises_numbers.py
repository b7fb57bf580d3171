"""Numbers as people type them: one meaning is taken, two are asked about, none is said."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib.notebook import predictions
from course_lib.notebook.predictions import compare, guess, scoreboard
from course_lib.notebook.typed_numbers import UNITS, read_number, shown_number
from support.verdicts import HAN, speak

ONE_MEANING = [  # typed, unit, value
    ("58.6", "MiB", 58.6), ("58,6", "MiB", 58.6), ("27,42", "MiB", 27.42), ("0,5", "", 0.5),
    ("1.234,5", "MiB", 1234.5), ("1,234.5", "MiB", 1234.5), ("3,4", "MiB", 3.4),
    ("0,500", "MiB", 0.5), ("1234,567", "MiB", 1234.567), ("1,2345", "MiB", 1.2345),
    ("1,234,567", "B", 1234567), ("1.234.567", "B", 1234567), ("1,234", "B", 1234),
    ("1,234,567.5", "MiB", 1234567.5), ("1.234.567,5", "MiB", 1234567.5),
    ("1.234", "MiB", 1.234), (".5", "", 0.5), (",5", "", 0.5), ("5.", "", 5), ("5,", "", 5),
    ("５８．６", "MiB", 58.6), ("５８，６", "MiB", 58.6), ("58。6", "MiB", 58.6),
    ("58.6。", "MiB", 58.6),
    ("٣٫٥", "", 3.5), ("  42  ", "", 42), ("\u300042\u200b", "", 42),
    ("1 024", "B", 1024), ("1\u2009024", "B", 1024), ("1\u202f024,5", "MiB", 1024.5),
    ("1\u00a0024\u00a0000", "B", 1024000), ("1'024", "B", 1024), ("1’024.5", "MiB", 1024.5),
    ("1_024", "B", 1024), ("10_24", "B", 1024),
    ("-3", "", -3), ("−3", "", -3), ("－３", "", -3), ("+33", "%", 33), ("- 5", "", -5),
    ("1e3", "", 1000), ("1E3", "", 1000), ("1,5e3", "", 1500), ("1e-3", "", 0.001),
    ("2**10", "", 1024), ("2^10", "", 1024), ("2¹⁰", "", 1024), ("10³", "", 1000),
    ("1×10^3", "", 1000), ("1.5x10^3", "", 1500), ("3*1024", "B", 3072), ("3 x 4", "", 12),
    ("2**3**2", "", 512), ("12/4", "", 3), ("6÷4", "", 1.5), ("2*-3", "", -6),
    ("½", "", 0.5), ("1½", "", 1.5), ("1 1/2", "", 1.5), ("-1 1/2", "", -1.5), ("1/3", "", 1 / 3),
    ("¾", "", 0.75), ("6万", "", 60_000), ("1.5 亿", "B", 150_000_000), ("2 million", "", 2e6),
    ("60 MiB", "MiB", 60), ("60MiB", "MiB", 60), ("60 mib", "MiB", 60), ("60M", "MiB", 60),
    ("60 兆", "MiB", 60), ("60%", "%", 60), ("60 ％", "%", 60), ("1.2×", "×", 1.2),
    ("1.2x", "×", 1.2), ("1.2 倍", "×", 1.2), ("24 B", "B", 24), ("24字节", "B", 24),
    ("24 bytes", "B", 24), ("5 个", "", 5), ("36 sbh", "", 36), ("≈ 60", "MiB", 60),
    ("~60", "MiB", 60), ("约 60 MiB", "MiB", 60), ("about 60", "MiB", 60), ("60 左右", "MiB", 60),
    ("60 or so", "MiB", 60), ("“60”", "MiB", 60),
    # another unit of the same kind
    ("0.06 GiB", "MiB", 61.44), ("61440 KiB", "MiB", 60), ("1 MiB", "B", 2**20),
    ("60 MB", "MiB", 60e6 / 2**20), ("0,5 GiB", "MiB", 512), ("1.5万字节", "B", 15_000),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "unit", "value"), ONE_MEANING)
def test_what_has_one_meaning_is_taken_and_acknowledged(typed, unit, value):
    found = read_number(typed, unit, words="The layer keeps, in units of sbh")
    assert found.value == pytest.approx(value, rel=1e-12), found
    assert not found.asks
    assert f"记下了：{shown_number(found.value)}" in found.zh
    assert f"Noted: {shown_number(found.value)}" in found.en


@pytest.mark.parametrize(
    ("typed", "unit", "zh", "en"),
    [
        ("1,234", "MiB", "可以是 1234，也可以是 1.234", "can be 1234 or 1.234"),
        ("1,024", "", "可以是 1024", "can be 1024 or 1.024"),
        ("-1,234", "", "可以是", "can be -1.234 or -1234"),
        ("2*1,234", "", "可以是", "can be 2468 or 2.468"),
        ("1,234 KiB", "MiB", "可以是", "can be"),
        ("58 6", "MiB", "一个数还是几个", "one number or several"),
        ("1 0244", "B", "一个数还是几个", "three digits behind it"),
        ("1'23", "B", "一个数还是几个", "three digits behind it"),
        ("1,23,456", "B", "哪个是小数点", "where the decimal point"),
        ("1.23,4", "B", "哪个是小数点", "where the decimal point"),
        ("3.4.5", "", "哪个是小数点", "where the decimal point"),
        ("50-60", "MiB", "范围", "a range"),
        ("50–60", "MiB", "范围", "a range"),
        ("50~60", "MiB", "范围", "a range"),
        ("50 到 60", "MiB", "范围", "a range"),
        ("50 to 60", "MiB", "范围", "a range"),
        ("60%", "MiB", "要的是字节数（MiB），写的却是百分数", r"a percentage"),
        ("60 MiB", "%", "要的是百分数", "A percentage .* this is a number of bytes"),
        ("60 MiB", "", "要的是个数", "A count is asked for"),
        ("33%", "×", "133%，也就是多 33%", "133%, or 33% more"),
        ("1.33×", "%", "133%，也就是多 33%", "133%, or 33% more"),
        ("60 apples", "MiB", "不带单位（MiB）", r"without the unit \(MiB\)"),
        ("60 MiB, I think", "MiB", "只写数字", "without the unit"),
        ("5 apples", "", "只写数字", "Type the number alone"),
        ("many", "MiB", "不是数字", "Please type a number"),
        ("六十", "MiB", "不是数字", "Please type a number"),
        ("nan", "MiB", "不是数字", "Please type a number"),
        ("inf", "", "不是数字", "Please type a number"),
        ("--3", "", "不是数字", "Please type a number"),
        ("?", "", "", ""),
        ("9" * 400, "", "太大", "too large"),
        ("1e999", "", "太大", "too large"),
        ("9**9**9", "", "太大", "too large"),
        ("1/0", "", "除以 0", "divided by 0"),
        ("(3)", "", "不是数字", "Please type a number"),
        ("import os", "", "不是数字", "Please type a number"),
        ("3 4 5 6", "", "几个", "several"),
    ],
)  # fmt: skip
def test_what_has_two_meanings_or_none_is_asked_about(typed, unit, zh, en):
    found = read_number(typed, unit)
    if found is None:  # nothing but a mark
        assert typed == "?"
        return
    assert found.value is None and found.asks, found
    assert zh in found.zh and re.search(en, found.en)
    assert HAN.search(found.zh)
    assert not HAN.search(found.en.replace(typed, ""))


@pytest.mark.parametrize(
    ("between", "value"),
    [((0, 200), 1.234), ((100, 5000), 1234), ((0, 5000), None), ((2, 100), None), (None, None)],
)
def test_the_range_of_the_question_decides_what_a_comma_is(between, value):
    assert read_number("1,234", "MiB", between).value == value
    point = None if between == (100, 5000) else 1.234  # a point, unless that cannot be
    assert read_number("1.234", "MiB", between).value == point


@pytest.mark.parametrize(
    ("typed", "zh", "en"),
    [
        ("5800", "是 5,800 MiB 吗？.*0 到 200.*29 倍", "Is it 5,800 MiB.*0 and 200.*29 times"),
        ("-3", "不会是负数", "never negative"),
        ("201", "是 201 MiB 吗", "Is it 201 MiB"),
        ("58 GiB", "是 59,392 MiB 吗", "Is it 59,392 MiB"),
    ],
)
def test_a_number_outside_the_range_is_kept_and_asked_about(typed, zh, en):
    found = read_number(typed, "MiB", (0, 200))
    assert found.asks and found.value is not None
    assert re.search(zh, found.zh) and re.search(en, found.en)


def test_another_unit_is_said_with_how_much_it_differs():
    assert "1 MiB 比 1 MB 大 4.9%" in read_number("60 MB", "MiB").zh
    assert "1 MiB is 4.9% more than 1 MB" in read_number("60 MB", "MiB").en
    assert "1 GiB = 1,024 MiB" in read_number("0.06 GiB", "MiB").en


# --- properties ---------------------------------------------------------------------------------

FULL_WIDTH = str.maketrans("0123456789.,-%", "０１２３４５６７８９．，－％")
numbers = st.decimals(min_value=0, max_value=10**9, places=3, allow_nan=False)
separators = st.sampled_from(["", ",", ".", " ", "\u2009", "\u202f", "\u00a0", "'", "’", "_"])


@given(
    numbers, separators, st.sampled_from([".", ","]), st.booleans(), st.sampled_from(sorted(UNITS))
)
def test_any_way_of_writing_a_number_is_read_as_it_or_asked_about(
    number, separator, point, full_width, unit
):
    """Never as another number."""
    written = f"{number:,.3f}".replace(",", "\0").replace(".", point).replace("\0", separator)
    if separator == point:
        return
    if full_width:
        written = written.translate(FULL_WIDTH)
    found = read_number(f"{written} {unit}", unit)
    if found.value is None:
        assert number < 1000 and unit != "B", (written, found)  # 1,234 alone may be both
    elif unit == "B" and not float(number).is_integer() and 1 <= number < 1000:
        assert found.value in (float(number), float(number) * 1000)
    else:
        assert found.value == pytest.approx(float(number), rel=1e-12), (written, found)


@given(st.integers(-(10**12), 10**12), separators, st.booleans())
def test_whole_numbers_with_any_separator(number, separator, full_width):
    written = f"{number:,}".replace(",", separator)
    found = read_number(written.translate(FULL_WIDTH) if full_width else written)
    plausible = {float(number), number / 1000} if 1000 <= abs(number) < 10**6 else {float(number)}
    if separator == "." and len(plausible) == 2:
        assert found.value == number / 1000  # 1.234: a point is a point
    elif separator == "," and len(plausible) == 2:
        assert found.value is None and "can be" in found.en
    else:
        assert found.value == number


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_what_python_writes_is_read_back(number):
    assert read_number(repr(number)).value == number


@given(st.text(max_size=30), st.sampled_from(sorted(UNITS)))
def test_nothing_typed_breaks_it(typed, unit):
    found = read_number(typed, unit, (0, 100))
    assert found is None or found.value is None or math.isfinite(found.value)
    assert found is None or (found.zh and found.en)


@given(st.text("0123456789.,'_ */^-+eEx×%½²() ", max_size=24))
def test_nor_does_anything_that_looks_like_a_number(typed):
    found = read_number(typed, "MiB")
    assert found is None or found.value is None or math.isfinite(found.value)


# --- in a prediction ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_predictions(monkeypatch):
    monkeypatch.setattr(predictions, "_predictions", {})


@pytest.mark.parametrize("chosen", ["zh", "en", "both"])
def test_a_field_answers_what_is_typed(chosen, monkeypatch):
    speak(monkeypatch, chosen)
    prediction = guess("peak", zh="峰值是", en="The peak is", between=(0, 200))
    assert prediction._note.value == ""
    for typed, value, zh, en in (
        ("58,6", 58.6, "记下了：58.6 MiB", "Noted: 58.6 MiB"),
        ("1,234", 1.234, "记下了：1.234 MiB", "Noted: 1.234 MiB"),
        ("5800", 5800, "是 5,800 MiB 吗", "Is it 5,800 MiB?"),
        ("60%", None, "写的却是百分数", "this is a percentage"),
        ("", None, "", ""),
    ):
        prediction.field.value = typed
        assert prediction.value == value
        assert zh in prediction._note.value and en in prediction._note.value
    prediction.field.value = "58.6"
    again = guess("peak", zh="峰值是", en="The peak is")
    assert "Noted: 58.6 MiB" in again._note.value


def test_the_words_of_the_question_may_stand_behind_the_number():
    prediction = guess("sbh", zh="以 sbh 为单位", en="in units of sbh", unit="")
    prediction.field.value = "36 sbh"
    assert prediction.value == 36


def test_a_measured_nothing_still_gives_a_difference():
    prediction = guess("saved", zh="降低", en="falls by", unit="%")
    for typed, off in (("25", "+25"), ("-3,5", "-3.5"), ("0", "exact")):
        prediction.field.value = typed
        assert off in str(compare("saved", 0)._table()).splitlines()[1]
        assert off in str(scoreboard())


def test_a_difference_from_a_negative_number_has_its_own_sign():
    guess("change", zh="变化", en="changes by", unit="%").field.value = "-40"
    assert "+20.0%" in str(compare("change", -50)._table())
