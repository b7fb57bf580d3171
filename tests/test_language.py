"""The choice of language: where it comes from, what follows it."""

import pytest

from course_lib import language
from course_lib.language import Bilingual, Table, choose, on_change, text


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No choice made yet, none remembered, nobody listening."""
    monkeypatch.setattr(language, "_chosen", None)
    monkeypatch.setattr(language, "_listeners", [])
    monkeypatch.setattr(language, "memory_folder", lambda: tmp_path / "course")
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
    monkeypatch.setattr(language, "_chosen", None)  # the next kernel
    assert language.language() == "zh"


def test_the_environment_overrides_both_and_is_not_remembered(monkeypatch):
    choose("zh")
    monkeypatch.setattr(language, "_chosen", None)
    monkeypatch.setenv("COURSE_LANG", "both")
    assert language.language() == "both"
    choose("en")
    assert language.language() == "en"
    monkeypatch.delenv("COURSE_LANG")
    monkeypatch.setattr(language, "_chosen", None)
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


def test_the_switch_hides_one_language_and_redraws_what_listens():
    heard = []
    on_change(lambda: heard.append(language.language()))
    choose("en")
    switch = language.switch()
    assert switch._repr_mimebundle_()["text/plain"] == "中文 · English"
    buttons, style = switch.children
    assert buttons.value == "en"
    assert "lang=zh" in style.value
    buttons.value = "zh"
    assert "lang=en" in style.value
    buttons.value = "both"
    assert "display:none" not in style.value
    assert heard[-1] == "both"
