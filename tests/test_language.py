"""The choice of language: where it comes from, what follows it."""

import re

import ipywidgets
import pytest
from traitlets import TraitError

from course_lib import language
from course_lib.language import Bilingual, Table, bilingual_html, choose, on_change, text


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No choice made yet, none remembered, nobody listening."""
    monkeypatch.setattr(language.choice, "_chosen", None)
    monkeypatch.setattr(language.choice, "_listeners", [])
    monkeypatch.setattr(language.choice, "memory_folder", lambda: tmp_path / "course")
    for name in ("COURSE_LANG", "LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("locale", "expected"),
    [("zh_CN.UTF-8", "zh"), ("zh_TW", "zh"), ("Chinese (Simplified)", "zh"), ("en_US", "en"),
     ("de_DE.UTF-8", "en"), ("C", "en")],
)  # fmt: skip
def test_it_starts_from_the_locale(monkeypatch, locale, expected):
    monkeypatch.setenv("LANG", locale)
    assert language.language() == expected


def test_a_choice_is_remembered_for_the_next_lesson(monkeypatch):
    monkeypatch.setenv("LANG", "en_US")
    choose("zh")
    monkeypatch.setattr(language.choice, "_chosen", None)  # the next kernel
    assert language.language() == "zh"


def test_the_environment_overrides_both_and_is_not_remembered(monkeypatch):
    choose("zh")
    monkeypatch.setattr(language.choice, "_chosen", None)
    monkeypatch.setenv("COURSE_LANG", "both")
    assert language.language() == "both"
    choose("en")
    assert language.language() == "en"
    monkeypatch.delenv("COURSE_LANG")
    monkeypatch.setattr(language.choice, "_chosen", None)
    assert language.language() == "zh"


@pytest.mark.parametrize("wrong", ["fr", "ZH", ""])
def test_other_languages_are_refused(monkeypatch, wrong):
    with pytest.raises(ValueError, match="must be zh, en or both"):
        choose(wrong)
    if wrong:
        monkeypatch.setenv("COURSE_LANG", wrong)
        with pytest.raises(ValueError, match=wrong):
            language.language()


def test_a_file_that_holds_nonsense_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setenv("LANG", "zh_CN")
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "language").write_text("klingon")
    assert language.language() == "zh"


def test_a_home_that_cannot_be_written_loses_nothing_but_the_memory(monkeypatch, tmp_path):
    (tmp_path / "course").write_text("a file where the folder should be")
    choose("zh")
    assert language.language() == "zh"


def test_text_follows_the_choice():
    choose("zh")
    assert text(zh="峰值", en="peak") == "峰值"
    choose("en")
    assert text(zh="峰值", en="peak") == "peak"
    choose("both")
    assert text(zh="峰值", en="peak") == "峰值 · peak"
    assert text(zh="MiB", en="MiB") == "MiB"


def test_listeners_hear_each_change_until_they_stop():
    heard = []
    stop = on_change(lambda: heard.append(language.language()))
    choose("zh")
    choose("en")
    stop()
    choose("zh")
    assert heard == ["zh", "en"]


def test_a_listener_that_raises_does_not_keep_the_others_from_hearing():
    heard = []

    def broken():
        raise ZeroDivisionError

    on_change(broken)
    on_change(lambda: heard.append(language.language()))
    with pytest.raises(ZeroDivisionError):
        choose("zh")
    assert heard == ["zh"]


def test_html_holds_both_languages_and_plain_text_the_chosen_one():
    choose("zh")
    bundle = Bilingual(zh="小于 <1>", en="less <1>")._repr_mimebundle_()
    assert bundle["text/plain"] == "小于 <1>"
    assert bundle["text/html"] == (
        '<div lang="zh">小于 &lt;1&gt;</div><div lang="en">less &lt;1&gt;</div>'
    )


def test_a_table_lines_up_also_with_wide_letters():
    choose("zh")
    table = Table([("角色", "role"), ("字节", "bytes")], [(("参数", "parameter"), "1,024"),
                                                      ("ab", 7)])  # fmt: skip
    assert str(table).split("\n") == ["角色   字节", "参数  1,024", "ab        7"]
    assert '<span lang="en">parameter</span>' in table._repr_mimebundle_()["text/html"]


def test_words_on_one_line_are_kept_apart_and_what_is_the_same_stands_once():
    assert bilingual_html("包", "package", tag="span") == (
        '<span lang="zh">包</span><span class="course-between"> · </span>'
        '<span lang="en">package</span>'
    )
    assert bilingual_html("MiB", "MiB", tag="span") == "<span>MiB</span>"
    assert bilingual_html("<b>3</b>", "<b>3</b>", markup=True) == "<div><b>3</b></div>"
    assert (
        bilingual_html("", "only", tag="span")
        == '<span lang="zh"></span><span lang="en">only</span>'
    )
    choose("both")
    table = Table([("包", "package"), ("MiB", "MiB")], [[("甲", "A"), 1], [("7 B", "7 B"), 2]])
    lines = [line.split("  ") for line in str(table).split("\n")]
    assert [line[0] for line in lines] == ["包 · package", "甲 · A", "7 B"]
    words = re.sub("<[^>]*>", " ", table._repr_mimebundle_()["text/html"]).split()
    assert words == ["包", "·", "package", "MiB", "甲", "·", "A", "1", "7", "B", "2"]


def test_the_switch_follows_and_is_followed():
    heard = []
    on_change(lambda: heard.append(language.language()))
    choose("en")
    switch = language.switch()
    assert switch._repr_mimebundle_()[0]["text/plain"] == "中文 · English"
    assert switch.language == "en"
    switch.set_state({"language": "zh"})  # as from the page
    assert (language.language(), heard) == ("zh", ["en", "zh"])
    other = language.switch()
    other.set_state({"language": "both"})
    assert switch.language == "both" and heard == ["en", "zh", "both"]
    with pytest.raises(TraitError):
        switch.set_state({"language": "fr"})
    switch.close()
    choose("en")
    assert (switch.language, other.language) == ("both", "en")


def test_where_no_front_end_of_its_own_runs_the_switch_is_plain_buttons(monkeypatch):
    """ipywidgets 7, as on Colab."""
    monkeypatch.setattr(ipywidgets, "__version__", "7.7.1")
    choose("en")
    buttons = language.switch()
    assert buttons.value == "en"
    buttons.value = "zh"
    assert language.language() == "zh"


@pytest.mark.parametrize(
    ("cell", "right"),
    [(3, True), ("1,234", True), ("+3.5%", True), ("2.1 (2.0–2.2)", True), ("1e-05", True),
     ("1.5x", True), ("0.weight", False), ("3rd", False), ("✓", False), ("(0) 1", False)],
)  # fmt: skip
def test_figures_are_set_flush_right_and_names_are_not(cell: object, right: bool) -> None:
    html = Table([("表头", "head")], [[cell]])._repr_mimebundle_()["text/html"]
    assert ("text-align:right" in html) is right
