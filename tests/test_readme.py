"""What the README says of the course is so."""

import re
from pathlib import Path

from course_lib.contents import LESSONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_both_languages_list_every_lesson_with_its_minutes():
    for lesson in LESSONS:
        if not lesson.exists:
            continue
        for name, able in ((lesson.zh, lesson.able[0]), (lesson.en, lesson.able[1])):
            row = f"| {lesson.number} | [{name}](notebooks/{lesson.name}.ipynb) | {able} | "
            assert f"{row}{lesson.minutes} |" in README


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 10
    for link in links:
        if link.startswith("#"):
            assert f"## {link[1:]}" in README.lower(), link
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link


def test_the_two_commands_stand_at_the_top():
    top = README[:400]
    assert "python course.py " in top
    assert "python course.py test" in top
