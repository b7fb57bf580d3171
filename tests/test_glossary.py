"""The glossary page says what its one source says, and the lessons use its words."""

import re

import pytest

from course_lib.site.contents import GLOSSARY
from course_lib.site.glossary import PHRASES, TERMS, written
from support import notebook_rules as rules
from support.glossary import missing_terms, wrong_words
from support.notebooks import FOLDER, Lesson, lessons

PAGE = FOLDER / f"{GLOSSARY.name}.ipynb"
SHOWN = [term for term in TERMS if term.is_shown()]


def test_the_page_is_written_from_the_source():
    assert PAGE.read_text(encoding="utf-8") == written(), "run: python -m course_lib.site.glossary"


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_the_page_keeps_the_rules_of_a_lesson_without_exercises(rule):
    if rule is not rules.anatomy:
        assert rule(Lesson(PAGE)) == []


def test_each_term_has_one_entry_with_a_meaning_in_both_languages():
    assert len({term.heading for term in TERMS}) == len(TERMS) > 20
    for term in TERMS:
        zh, en = term.means
        assert zh.endswith("。") and en.endswith("."), term.heading
        assert re.search(term.zh_said, term.zh), term.heading
        assert re.fullmatch(term.en_said, term.en), term.heading
        assert wrong_words(zh, "zh") + wrong_words(en, "en") + missing_terms(zh, en) == []


@pytest.mark.parametrize("term", SHOWN, ids=lambda term: term.en)
def test_the_lesson_that_an_entry_points_to_uses_the_term(term):
    """Under the names that the entry has as its heading, Chinese and English."""
    (lesson,) = (lesson for lesson in lessons() if str(lesson).startswith(term.lesson))
    zh, en = (
        "\n".join(cell.source for cell in cells) for cells in zip(*lesson.pairs(), strict=True)
    )
    assert term.zh.removesuffix("量") in zh
    assert re.search(rf"\b(?:{term.en_said})\b", en, re.I)


@pytest.mark.parametrize(
    ("zh", "en"),
    [*((term.zh, term.en) for term in TERMS), ("峰值内存", "peak memory"), ("权衡", "trade-off")],
)
def test_a_term_that_chinese_lacks_is_noticed(zh, en):
    assert missing_terms(f"这里说{zh}。", f"Here is a {en}.") == []
    assert missing_terms("这里什么也不说。", f"Here is a {en}.") != []


def test_every_phrase_is_among_those_tried_above():
    assert [zh for zh, _ in PHRASES] == [r"峰值内存|峰值显存", r"权衡"]
