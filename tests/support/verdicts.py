"""What every verdict has to hold, in the language that is chosen."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from course_lib import language
from course_lib.notebook.checking import Verdict

HAN = re.compile("[\u4e00-\u9fff]")
SIGNS = {"unfinished": "✏️", "right": "✅", "wrong": "❌"}


def speak(monkeypatch, chosen: str) -> None:
    """As if the course had been started with ``COURSE_LANG=chosen``."""
    monkeypatch.setenv("COURSE_LANG", chosen)
    monkeypatch.setattr(language.choice, "_chosen", None)


@functools.cache
def verdict_on(check: Callable[..., Verdict], *answers: Any) -> Verdict:
    """Reached while the course speaks Chinese; what it says in English must not depend on that."""
    with pytest.MonkeyPatch.context() as patch:
        speak(patch, "zh")
        return check(*answers)


def heard(verdict: Verdict, state: str, zh: str = "", en: str = "") -> None:
    """The verdict is ``state``; its sides hold ``zh`` and ``en`` (patterns), each in its language.

    What is shown is the side of the language in use.
    """
    assert verdict.state == state, f"{verdict.zh}\n{verdict.en}"
    assert re.search(zh, verdict.zh, re.S), verdict.zh
    assert re.search(en, verdict.en, re.S), verdict.en
    assert HAN.search(verdict.zh), verdict.zh
    assert not HAN.search(verdict.en), verdict.en
    shown = str(verdict)
    sides = {"zh": (verdict.zh,), "en": (verdict.en,), "both": (verdict.zh, verdict.en)}
    assert shown == "\n".join(f"{SIGNS[state]} {side}" for side in sides[language.language()])
