"""Which language a learner reads, where the choice is kept, and who hears of a change.

It starts from the machine's locale, is remembered from one lesson to the next, and the environment
variable ``COURSE_LANG`` (``zh``, ``en`` or ``both``) overrides it.
"""

from __future__ import annotations

import contextlib
import contextvars
import locale
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

Language = Literal["zh", "en", "both"]
LANGUAGES: tuple[Language, ...] = ("zh", "en", "both")

_chosen: Language | None = None
_listeners: list[Callable[[], None]] = []
_speaking: contextvars.ContextVar[Language | None] = contextvars.ContextVar(
    "speaking", default=None
)


def language() -> Language:
    """The language in use: ``COURSE_LANG``, else the one chosen last, else the locale's.

    Raises ``ValueError`` if ``COURSE_LANG`` holds anything but ``zh``, ``en`` or ``both``.
    """
    global _chosen
    if (spoken := _speaking.get()) is not None:
        return spoken
    if _chosen is None:
        forced = os.environ.get("COURSE_LANG")
        _chosen = _checked(forced) if forced else _remembered() or _from_locale()
    return _chosen


def choose(chosen: Language) -> None:
    """Use ``zh``, ``en`` or ``both`` from now on, redraw what listens, and remember the choice."""
    global _chosen
    _chosen = _checked(chosen)
    if "COURSE_LANG" not in os.environ:
        _remember(_chosen)
    with contextlib.ExitStack() as stack:  # one that raises does not keep the others from hearing
        for listener in reversed(_listeners):
            stack.callback(listener)


@contextlib.contextmanager
def speaking(spoken: Language) -> Iterator[None]:
    """Use another language for as long as the ``with`` lasts, in this thread; nothing is told."""
    token = _speaking.set(_checked(spoken))
    try:
        yield
    finally:
        _speaking.reset(token)


def on_change(listener: Callable[[], None]) -> Callable[[], None]:
    """Call ``listener`` after each change of language; the result takes it off again."""
    _listeners.append(listener)

    def stop() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return stop


def _checked(value: str) -> Language:
    if value not in LANGUAGES:
        raise ValueError(
            f"语言只能是 zh、en 或 both，现在是 {value!r}。 "
            f"The language must be zh, en or both, not {value!r}."
        )
    return value


def memory_folder() -> Path:
    """Where the course remembers a learner's choices from one lesson to the next."""
    from platformdirs import user_config_path

    return user_config_path("gradient-checkpointing-course")


def _memory_file() -> Path:
    return memory_folder() / "language"


def _remembered() -> Language | None:
    try:
        kept = _memory_file().read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return kept if kept in LANGUAGES else None


def _remember(chosen: Language) -> None:
    try:
        file = _memory_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(chosen, encoding="utf-8")
    except OSError:
        pass  # a read-only home: the choice then lasts as long as this kernel


def _from_locale() -> Language:
    names = [os.environ.get(name, "") for name in ("LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE")]
    first = next((name for name in names if name), "") or (locale.getlocale()[0] or "")
    return "zh" if first.lower().startswith(("zh", "chinese")) else "en"
