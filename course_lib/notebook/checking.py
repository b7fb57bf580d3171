"""What all checkers share: verdicts, how answers are asked, and surroundings that are the same.

A checker is a function that raises :class:`Wrong` with what is wrong, or returns praise; decorated
with :func:`judged` it returns a :class:`Verdict`. Answers are asked through :class:`Answer`.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import linecache
import numbers
import random
import reprlib
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, nn

from ..language import Bilingual
from ..paths import LIBRARY

Words = tuple[str, str]  # (zh, en)


class Wrong(Exception):
    """What is wrong with an answer: args are zh and en."""


class Unfinished(Exception):
    """The answer is still the stub."""


@dataclass(frozen=True)
class Verdict:
    """What a checker found: not started, right, or what is wrong, in both languages.

    ``own``: whether later cells may go on with the answer, see ``yours_or_reference``.
    """

    state: Literal["unfinished", "right", "wrong"]
    zh: str
    en: str
    own: bool = field(default=True, compare=False)

    @property
    def passed(self) -> bool:
        return self.state == "right"

    def _said(self) -> Bilingual:
        sign = {"unfinished": "✏️ ", "right": "✅ ", "wrong": "❌ "}[self.state]
        return Bilingual(zh=sign + self.zh, en=sign + self.en)

    def __str__(self) -> str:
        return str(self._said())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return self._said()._repr_mimebundle_()


def unfinished() -> Verdict:
    """The verdict on a stub."""
    return Verdict(
        "unfinished",
        "这道题还没有做。把 None 换成你的答案，再运行这个单元格。",
        "Not done yet. Put your answer in place of None and run this cell again.",
    )


def judged(check: Callable[..., Words | Verdict]) -> Callable[..., Verdict]:
    """A checker that returns a verdict: praise becomes one, and so does what is raised."""

    @functools.wraps(check)
    def judge(*arguments: Any, **options: Any) -> Verdict:
        with undisturbed(), _Watch():
            try:
                found = check(*arguments, **options)
            except Unfinished:
                return unfinished()
            except Wrong as wrong:
                zh, en = wrong.args
                return Verdict("wrong", zh, en)
            except Exception as error:
                return raised(error)
        return found if isinstance(found, Verdict) else Verdict("right", *found)

    return judge


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """As in a fresh kernel: grad mode on, float32, CPU; afterwards as the learner had it.

    An earlier cell may have left something else, and an answer may; neither is what is judged. The
    random states of torch, Python and NumPy are put back.
    """
    states: tuple[Any, ...] = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(True),
        torch.autocast("cpu", enabled=False),
    ):
        try:
            torch.set_default_dtype(torch.float32)
            if device.type != "cpu":
                torch.set_default_device("cpu")
            yield
        finally:
            torch.set_default_dtype(dtype)
            if device.type != "cpu":
                torch.set_default_device(device)
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            numpy.random.set_state(states[2])


# --- asking an answer ---------------------------------------------------------------------------


class Answer:
    """A learner's function, as checkers call it: who is waited for is known, and where it fails.

    Raises :class:`Unfinished` for None in place of a function, :class:`Wrong` for anything else
    that cannot be called.
    """

    def __init__(self, function: Any):
        if function is None:
            raise Unfinished
        if not callable(function):
            raise Wrong(
                f"要把函数本身交给检查器，不带括号；得到的是 {briefly(function)}。",
                "Hand the function itself to the checker, without parentheses; this is "
                f"{briefly(function)}.",
            )
        if isinstance(function, type) and issubclass(function, torch.autograd.Function):
            name = function.__name__
            raise Wrong(
                f"要交给检查器的是 {name}.apply，不是类 {name} 本身。",
                f"Hand {name}.apply to the checker, not the class {name} itself.",
            )
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        if owner := getattr(function, "__self__", None):  # MyRerun.apply
            self.name = f"{getattr(owner, '__name__', type(owner).__name__)}.{self.name}"
        if self.name == "<lambda>":
            self.name = "lambda"

    def __call__(self, *arguments: Any) -> Any:
        before = torch.is_grad_enabled()
        with waiting_for(self.call(arguments)):
            try:
                result = self.function(*arguments)
            except Exception as error:
                with contextlib.suppress(AttributeError, TypeError):
                    error._asked = (self.call(arguments), line_of(error))  # type: ignore[attr-defined]
                raise
        if torch.is_grad_enabled() != before:
            torch.set_grad_enabled(before)
            now = "off" if before else "on"
            raise Wrong(
                f"{self.call(arguments)} 返回之后，梯度模式{'关' if before else '开'}着，"
                "与调用之前不同：用 with，离开时会恢复原样。",
                f"after {self.call(arguments)} returned, grad mode is {now}, which it was not "
                "before: use a with block, which puts it back on leaving.",
            )
        return result

    def call(self, arguments: tuple) -> str:
        """The call as the learner would write it, with what was passed."""
        return f"{self.name}({', '.join(map(described, arguments))})"

    @property
    def is_stub(self) -> bool:
        """Whether nothing is written in it yet."""
        owner = getattr(self.function, "__self__", None)
        if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
            return _does_nothing(owner.forward) and _does_nothing(owner.backward)
        return _does_nothing(self.function)

    def nothing(self, *arguments: Any) -> Exception:
        """What it means that it returned None: a stub, or a return that is missing."""
        if self.is_stub:
            return Unfinished()
        call = self.call(arguments) if arguments else self.name
        return Wrong(
            f"{call} 运行了，却没有返回结果（得到 None）：少了 return？",
            f"{call} ran, but returned nothing (None): is a return missing?",
        )


_NOTHING = {
    "RESUME",
    "NOP",
    "CACHE",
    "LOAD_CONST",
    "RETURN_VALUE",
    "RETURN_CONST",
    "POP_TOP",
    "COPY_FREE_VARS",
    "MAKE_CELL",
}


def _does_nothing(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and all(i.opname in _NOTHING for i in dis.get_instructions(code))


def described(value: Any) -> str:
    """An argument in a few words: a number as it is, a tensor by its shape."""
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}"
    if isinstance(value, nn.Module) or callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return briefly(value)


def briefly(said: Any) -> str:
    """``repr``, cut short, on one line."""
    try:
        return " ".join(reprlib.repr(said).split())
    except Exception as error:  # of the learner's own class
        return f"<{type(said).__name__}: {type(error).__name__}>"


def number(said: Any) -> Any | None:
    """``said`` as a number, None if it is none; a tensor or an array may hold it."""
    if isinstance(said, (Tensor, numpy.ndarray)) and said.shape in ((), (1,)):
        said = said.item()
    if isinstance(said, bool) or not isinstance(said, numbers.Real):
        return None
    finite = said == said and said not in (float("inf"), float("-inf"))
    return said if finite else None


# --- exceptions ---------------------------------------------------------------------------------


def raised(error: BaseException) -> Verdict:
    """The verdict on an answer that raised an exception: which, where, with what arguments."""
    call, where = getattr(error, "_asked", (None, None))
    where = line_of(error) or where
    zh, en = words_of(error)
    zh = f"你的代码抛出了异常：{type(error).__name__}: {zh}"
    en = f"Your code raised an exception: {type(error).__name__}: {en}"
    if call:
        zh, en = f"{zh}\n调用是 {call}", f"{en}\nThe call was {call}"
    if where:
        line, source = where
        zh, en = f"{zh}\n在第 {line} 行：{source}", f"{en}\nIn line {line}: {source}"
    if isinstance(error, RecursionError):
        zh, en = f"{zh}\n函数在没完没了地调用自己。", f"{en}\nIt calls itself without end."
    return Verdict("wrong", zh, en)


def words_of(error: BaseException) -> Words:
    """What an error says in each language; the same twice where it is not the course's own."""
    said = error.args[0] if error.args else ""
    return getattr(said, "zh", str(error)), getattr(said, "en", str(error))


_PATHS = sysconfig.get_paths()
_NOT_THE_LEARNERS = tuple(
    str(Path(path))
    for path in (
        LIBRARY,
        Path(torch.__file__).parent,
        _PATHS["stdlib"],
        _PATHS["platstdlib"],
        _PATHS["purelib"],
        _PATHS["platlib"],
    )
)


def line_of(error: BaseException) -> tuple[int, str] | None:
    """Number and text of the innermost line of the learner's own that an error passed through."""
    found = None
    step: TracebackType | None = error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if not file.startswith((*_NOT_THE_LEARNERS, "<frozen")):
            found = step.tb_lineno, file, step.tb_frame.f_globals
        step = step.tb_next
    if found is None:
        return None
    line, file, names = found
    return line, linecache.getline(file, line, names).strip()


# --- waiting ------------------------------------------------------------------------------------

PATIENCE = 5.0  # seconds that one call may take before the learner hears what is waited for

_under_way: list[tuple[float, Words]] = []  # calls that have not returned: since when, and what


@contextlib.contextmanager
def waiting_for(what: str | Words) -> Iterator[None]:
    """Meanwhile ``what`` is what the checker waits for."""
    words = (what, what) if isinstance(what, str) else what
    _under_way.append((time.monotonic(), words))
    try:
        yield
    finally:
        _under_way.pop()


class _Watch:
    """Says, after some seconds, which call the checker is waiting for; takes it back afterwards."""

    def __enter__(self) -> None:
        self._done = threading.Event()
        _under_way.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        handle = None
        while not self._done.wait(min(0.5, PATIENCE)):
            try:
                since, (zh, en) = _under_way[-1]
            except IndexError:
                continue
            if handle is None and time.monotonic() - since > PATIENCE:
                handle = _show(
                    Bilingual(
                        zh=f"已经 {PATIENCE:g} 秒：检查器在等 {zh} 做完。有停不下来的循环吗？"
                        "按停止按钮（■）可以中断，改好再运行。",
                        en=f"{PATIENCE:g} seconds: the checker is waiting for {en} to finish. Does "
                        "a loop in it never end? The stop button (■) interrupts it.",
                    )
                )
        if handle is not None:
            handle.update(Bilingual(zh="", en=""))


def _show(words: Bilingual) -> Any:
    """Show words under the cell; what they are taken back with."""
    from IPython.display import display

    return display(words, display_id=True)
