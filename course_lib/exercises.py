"""Predictions that are kept and compared, and checkers that say what is wrong and by how much."""

from __future__ import annotations

import html
import math
import numbers
import operator
import reprlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import ipywidgets
import torch
from torch import Tensor, nn
from torch.nn import functional

from .answers import remember, remembered
from .language import Bilingual, Table, on_change, spoken, text
from .memory import measure
from .order import heading_of
from .saved import saved_tensors

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "×": 1, "%": 1, "": 1}

_predictions: dict[str, Prediction] = {}  # in the order in which they were asked for
_followers: list[weakref.WeakMethod] = []  # called after each change of a prediction


class Prediction(ipywidgets.HBox):
    """A question with a field for a number; :func:`compare` sets it beside what was measured.

    ``value``: the number typed, in ``unit``, or None. ``measured``: what it turned out to be, in
    the same unit, or None as long as the learner has not looked. Both are what they were when the
    question was last asked, in this kernel or in one before.
    """

    def __init__(self, key: str, *, zh: str, en: str, unit: str):
        self.key, self.zh, self.en, self.unit = key, zh, en, unit
        typed, self.measured = _answered(key, unit)
        self.field: ipywidgets.Text = ipywidgets.Text(
            value=typed,
            placeholder="?",
            continuous_update=False,
            layout={"width": "9em"},
        )
        self.field.observe(lambda _: self._changed(), "value")
        self._note = ipywidgets.HTML()
        self._question = ipywidgets.HTML(spoken(zh, en, tag="span"))
        on_change(self._describe)
        self._describe()
        super().__init__(
            [self._question, self.field, ipywidgets.HTML(html.escape(unit)), self._note],
            layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0.6em"},
        )
        _predictions[key] = self
        self._remember()

    def measure(self, measured: float) -> None:
        """Keep what it turned out to be, in ``unit``."""
        self.measured = measured
        self._remember()

    def _remember(self) -> None:
        """Keep everything that :func:`scoreboard` shows, and tell whoever shows it."""
        kept = {"typed": self.field.value, "measured": self.measured, "unit": self.unit,
                "zh": self.zh, "en": self.en}  # fmt: skip
        if remembered("prediction").get(self.key) != kept:
            remember("prediction", self.key, kept)
        for reference in list(_followers):
            if (follow := reference()) is not None:
                follow()
            else:
                _followers.remove(reference)

    @property
    def value(self) -> float | None:
        """What the learner typed, None if nothing or not a finite number."""
        return _typed_number(self.field.value)

    def _changed(self) -> None:
        broken = self.field.value.strip() and self.value is None
        self._note.value = spoken("请写一个数字。", "Please type a number.") if broken else ""
        self._remember()

    def _describe(self) -> None:
        self.field.tooltip = text(zh=self.zh, en=self.en)

    def __str__(self) -> str:
        shown = "?" if self.value is None else f"{self.value:g}"
        return f"{text(zh=self.zh, en=self.en, between=chr(10))} {shown} {self.unit}".rstrip()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        question = html.escape(f"? {self.unit}".rstrip())
        fallback = f"<p>{spoken(self.zh, self.en, tag='span')} <b>{question}</b></p>"
        return {**bundle, "text/plain": str(self), "text/html": fallback}


def _typed_number(words: str) -> float | None:
    """The finite number that ``words`` are, None if they are none."""
    try:
        typed = float(words.replace(",", "").replace("，", ""))
    except ValueError:
        return None
    return typed if math.isfinite(typed) else None


def _answered(key: str, unit: str) -> tuple[str, float | None]:
    """What was typed when this was last asked, in the same unit, and what was measured then."""
    before = remembered("prediction").get(key)
    if not isinstance(before, dict) or before.get("unit") != unit:
        return "", None
    typed, measured = before.get("typed"), before.get("measured")
    return (
        typed if isinstance(typed, str) else "",
        measured if isinstance(measured, (int, float)) else None,
    )


def predict(key: str, *, zh: str, en: str, unit: str = "MiB") -> Prediction:
    """Ask for a number before it is measured. A cell run again keeps what was typed.

    Raises ``ValueError`` for a unit that is not one of ``UNITS``.
    """
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(filter(None, UNITS))}, not {unit!r}")
    return Prediction(key, zh=zh, en=en, unit=unit)


class Comparison(ipywidgets.HTML):
    """Prediction, formula and measurement side by side; follows what the learner types later."""

    def __init__(self, key: str, rows: list[tuple[tuple[str, str], float]]):
        super().__init__()
        self._asked, self._rows = _predictions[key], rows
        _followers.append(weakref.WeakMethod(self._update))
        self._update()

    def _table(self) -> Table:
        # The field that is on the page now: its cell may have been run again.
        prediction = _predictions.get(self._asked.key, self._asked)
        measured = self._rows[-1][1]
        rows: list[list[Any]] = []
        if prediction.value is None:
            rows.append([("你的预测", "your prediction"), "?", ("还没有填", "not filled in")])
        else:
            rows.append([("你的预测", "your prediction"), _shown(prediction.value),
                         _off(prediction.value, measured)])  # fmt: skip
        rows += [[name, _shown(value), _off(value, measured)] for name, value in self._rows[:-1]]
        name, _ = self._rows[-1]
        rows.append([name, _shown(measured), ""])
        unit = prediction.unit
        return Table([("", ""), (unit, unit), ("与实测相差", "off by")], rows)

    def _update(self) -> None:
        self.value = self._table()._repr_mimebundle_()["text/html"]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        return {**bundle, **self._table()._repr_mimebundle_()}


def compare(
    key: str, measured: float, formulas: Iterable[tuple[tuple[str, str], float]] = ()
) -> Comparison:
    """Set the prediction ``key`` beside ``measured`` and the results of ``formulas``.

    ``measured`` and each formula's result are in bytes where the prediction's unit is one of
    bytes, else in that unit; ``formulas``: ((zh, en), result). Raises ``KeyError`` if no
    prediction of that name was asked for, in this kernel or in one before.
    """
    if key not in _predictions and not _asked_before(key):
        heading = heading_of("predict", f'"{key}"')
        zh, en = (f"“{heading[0]}”一节里", f", under “{heading[1]}”,") if heading else ("上面", "")
        raise KeyError(
            text(
                zh=f"还没有问过“{key}”这个预测：请先运行{zh}带输入框的单元格。",
                en=f"Prediction {key!r} has not been asked for: "
                f"run the cell with its field{en} first.",
            )
        )
    prediction = _predictions[key]
    scale = UNITS[prediction.unit]
    prediction.measure(measured / scale)
    rows = [(name, value / scale) for name, value in formulas]
    return Comparison(key, [*rows, (("实测", "measured"), measured / scale)])


def _asked_before(key: str) -> bool:
    """Take up a prediction of an earlier kernel, as if its cell had been run; False if none is."""
    kept = remembered("prediction").get(key)
    if not isinstance(kept, dict) or kept.get("unit") not in UNITS:
        return False
    Prediction(key, zh=str(kept.get("zh")), en=str(kept.get("en")), unit=kept["unit"])
    return True


class Scoreboard(ipywidgets.HTML):
    """All predictions of a lesson beside what was measured; follows what is typed later."""

    def __init__(self) -> None:
        super().__init__()
        _followers.append(weakref.WeakMethod(self._update))
        self._update()

    def _table(self) -> Table:
        return Table(
            [("问题", "question"), ("你的预测", "you"), ("实测", "measured"), ("单位", "unit"),
             ("相差", "off by")], [_score(*asked) for asked in _asked_for()],
        )  # fmt: skip

    def _update(self) -> None:
        self.value = self._table()._repr_mimebundle_()["text/html"]

    def __str__(self) -> str:
        return str(self._table())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        return {**bundle, **self._table()._repr_mimebundle_()}


def scoreboard() -> Scoreboard:
    """All predictions of this lesson beside what was measured, those of earlier kernels too."""
    return Scoreboard()


def _asked_for() -> Iterator[tuple[tuple[str, str], str, float | None, float | None]]:
    """Question, unit, what was typed and what was measured of each prediction of this lesson."""
    keys = dict.fromkeys([*remembered("prediction"), *_predictions])
    for key in keys:
        if (prediction := _predictions.get(key)) is not None:
            yield ((prediction.zh, prediction.en), prediction.unit, prediction.value,
                   prediction.measured)  # fmt: skip
        elif isinstance(kept := remembered("prediction")[key], dict) and set(kept) >= {"zh", "en"}:
            unit = str(kept.get("unit", ""))
            typed, measured = _answered(key, unit)
            yield (kept["zh"], kept["en"]), unit, _typed_number(typed), measured


def _score(
    question: tuple[str, str], unit: str, value: float | None, measured: float | None
) -> list[Any]:
    return [
        question,
        "?" if value is None else _shown(value),
        "?" if measured is None else _shown(measured),
        unit,
        "" if value is None or measured is None else _off(value, measured),
    ]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def _off(value: float, measured: float) -> Any:
    if value == measured:
        return ("正好", "exact")
    if not measured:
        return ""
    return f"{(value - measured) / measured:+.1%}"


# --- checkers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a checker found: not started, right, or what is wrong, in both languages."""

    state: Literal["unfinished", "right", "wrong"]
    zh: str
    en: str

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


def raised(error: Exception) -> Verdict:
    """The verdict on an answer that raised an exception."""
    what = f"{type(error).__name__}: {error}"
    return Verdict("wrong", f"你的代码抛出了异常：{what}", f"Your code raised an exception: {what}")


def _asked(answer: Callable[..., Any], cases: Iterable[tuple]) -> list[Any] | Verdict:
    """What the answer says to each case; a verdict if it raises or says nothing to any."""
    try:
        said = [answer(*case) for case in cases]
    except Exception as error:
        return raised(error)
    return unfinished() if all(value is None for value in said) else said


def _number(said: Any) -> Any | None:
    """``said`` as a number, None if it is none; a tensor may hold it."""
    if isinstance(said, Tensor) and said.numel() == 1:
        said = said.item()
    return said if isinstance(said, numbers.Real) and math.isfinite(said) else None


def _briefly(said: Any) -> str:
    return " ".join(reprlib.repr(said).split())


def check_segments(answer: Callable[[int, int], Any]) -> Verdict:
    """Check ``answer(n, k)``: k ranges that cover 0 … n-1, lengths differing by at most one."""
    cases = ((12, 4), (12, 1), (12, 12), (12, 5), (7, 3), (100, 10), (1, 1))
    said = _asked(answer, cases)
    if isinstance(said, Verdict):
        return said
    fault: tuple[str, str] | None
    for (n, k), found in zip(cases, said, strict=True):
        try:
            parts = [[operator.index(layer) for layer in part] for part in found]
        except TypeError:
            fault = (f"应返回由 {k} 个 range 组成的列表，得到的是 {_briefly(found)}。",
                     f"expected a list of {k} ranges, got {_briefly(found)}.")  # fmt: skip
        except Exception as error:  # of a generator
            return raised(error)
        else:
            fault = _fault_in_segments(parts, n, k)
        if fault:
            zh, en = fault
            return Verdict("wrong", f"n={n}, k={k}：{zh}", f"n={n}, k={k}: {en}")
    return Verdict(
        "right",
        "每一层恰好属于一段，段长至多差 1。",
        "Each layer is in exactly one segment, and lengths differ by at most 1.",
    )


def _fault_in_segments(parts: list[list[int]], n: int, k: int) -> tuple[str, str] | None:
    if len(parts) != k:
        return f"要 {k} 段，得到 {len(parts)} 段。", f"expected {k} segments, got {len(parts)}."
    layers = [layer for part in parts for layer in part]
    if missing := sorted(set(range(n)) - set(layers)):
        return f"漏了第 {missing[0]} 层。", f"layer {missing[0]} is in no segment."
    if layers != list(range(n)):
        return ("有的层重复、多余或次序不对。",
                "some layers come twice, do not exist, or are out of order.")  # fmt: skip
    shortest, longest = min(map(len, parts)), max(map(len, parts))
    if longest - shortest > 1:
        return (
            f"最长 {longest} 层，最短 {shortest} 层，差得太多。",
            f"the longest has {longest} layers, the shortest {shortest}: too uneven.",
        )
    return None


def check_cheapest(answer: Callable[[int, Any], Any], measured: Sequence[Any]) -> Verdict:
    """Check ``answer(budget, measured)`` for budgets at, between, below and above all peaks.

    ``measured``: results with ``checkpoints``, ``trace.peak`` and ``trace.flops``.
    """
    peaks = sorted({result.trace.peak for result in measured})
    budgets = [peaks[0] - 1, *peaks, peaks[-1] + 1]
    answers = _asked(answer, [(budget, list(measured)) for budget in budgets])
    if isinstance(answers, Verdict):
        return answers
    for budget, said in zip(budgets, answers, strict=True):
        fitting = [result for result in measured if result.trace.peak <= budget]
        fewest = min((result.trace.flops for result in fitting), default=None)
        best = [result.checkpoints for result in fitting if result.trace.flops == fewest] or [-1]
        if _number(said) not in best:
            zh, en = _fault_in_choice(said, best[0], budget, measured)
            return Verdict(
                "wrong", f"预算 {budget:,} 字节：{zh}", f"Budget of {budget:,} bytes: {en}"
            )
    return Verdict(
        "right",
        f"{len(budgets)} 个预算都选对了。",
        f"The right choice for all {len(budgets)} budgets.",
    )


def _fault_in_choice(said: Any, best: int, budget: int, measured: Sequence[Any]) -> tuple[str, str]:
    shown, said = _briefly(said), _number(said)
    chosen = next((result for result in measured if result.checkpoints == said), None)
    if best == -1:
        return (f"没有一种放得下，应返回 -1，得到 {shown}。",
                f"nothing fits: expected -1, got {shown}.")  # fmt: skip
    if said is None:
        return (f"应返回检查点的数量，得到的是 {shown}。",
                f"expected a number of checkpoints, got {shown}.")  # fmt: skip
    if chosen is None:
        return (f"得到 {said}，而 {best} 个检查点放得下。",
                f"yours is {said}, but {best} checkpoints fit.")  # fmt: skip
    if chosen.trace.peak > budget:
        over = chosen.trace.peak - budget
        return (f"{said} 个检查点的峰值超出预算 {over:,} 字节。",
                f"with {said} checkpoints the peak is {over:,} bytes over the budget.")  # fmt: skip
    best_flops = next(result.trace.flops for result in measured if result.checkpoints == best)
    more = (chosen.trace.flops - best_flops) / best_flops
    return (f"{said} 个放得下，但 {best} 个也放得下，{said} 个的 FLOPs 多 {more:.1%}。",
            f"{said} fit, but so do {best}, and {said} need {more:.1%} more FLOPs.")  # fmt: skip


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``: (batch, sequence, width) → the same."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def check_kept_bytes(answer: Callable[[int, int, int, int], Any]) -> Verdict:
    """Check ``answer(batch, sequence, width, hidden)``: bytes that a ``GatedMLP`` keeps.

    Compared with ``saved_tensors`` for four sizes, in float32, its input included.
    """
    # hidden is no small multiple of width at first, so that each fault has a number of its own
    cases = ((1, 1, 8, 20), (2, 16, 32, 64), (3, 5, 16, 128), (4, 8, 64, 24))
    answers = _asked(answer, cases)
    if isinstance(answers, Verdict):
        return answers
    for sizes, said in zip(cases, answers, strict=True):
        batch, sequence, width, hidden = sizes
        block = GatedMLP(width, hidden)
        expected = saved_tensors(block, torch.randn(batch, sequence, width)).total
        if (number := _number(said)) is None:
            return Verdict(
                "wrong",
                f"应返回字节数，得到的是 {_briefly(said)}。",
                f"expected a number of bytes, got {_briefly(said)}.",
            )
        if number != expected:
            return _wrong_kept_bytes(number, expected, sizes, block)
    return Verdict(
        "right",
        "四组尺寸都对，一个字节不差。x 有两个使用者，却只存一份；SiLU 存输入，乘法存两个因子，"
        "最后一个 Linear 存它的输入。",
        "Right for all four sizes, to the byte. x is used twice but kept once; SiLU keeps its "
        "input, the product both factors, the last Linear its input.",
    )


def _wrong_kept_bytes(said: Any, expected: int, sizes: tuple, block: nn.Module) -> Verdict:
    batch, sequence, width, hidden = sizes
    values = batch * sequence * 4
    parameters = sum(parameter.nbytes for parameter in block.parameters())
    reasons = {
        expected / 4: ("看来你数的是元素个数：float32 每个 4 字节。",
                       "You seem to have counted numbers: a float32 takes 4 bytes."),
        expected + values * width: ("x 被数了两次：两个 Linear 用的是同一块存储。",
                                    "x is counted twice: both Linears use the same storage."),
        expected - values * width: ("少了输入 x：第一层 Linear 要用它求权重的梯度。",
                                    "The input x is missing: the first Linears need it for the "
                                    "gradients of their weights."),
        expected + parameters: ("参数不算：它们本来就在，不是为反向传播多存的。",
                                "Parameters do not count: they exist anyway."),
        expected - values * hidden: ("少了一个宽为 hidden 的张量：乘法要保存两个因子，"
                                     "SiLU 还要保存自己的输入。",
                                     "One tensor of width hidden is missing: the product keeps "
                                     "both factors, and SiLU keeps its own input."),
        expected + values * hidden: ("多了一个宽为 hidden 的张量：有个值两个算子共用，只存一份。",
                                     "One tensor of width hidden too many: one value serves two "
                                     "operators and is kept once."),
    }  # fmt: skip
    zh, en = reasons.get(
        said, ("试试用 saved_tensors 看看每一行。", "Look at each line of saved_tensors.")
    )
    where = f"batch={batch}, sequence={sequence}, width={width}, hidden={hidden}"
    return Verdict(
        "wrong",
        f"{where}：你得 {said:,}，实测 {expected:,} 字节，差 {said - expected:+,}。{zh}",
        f"{where}: yours is {said:,} bytes, measured {expected:,}, {said - expected:+,}. {en}",
    )


class Wasteful(nn.Module):
    """The gated block written by hand; one of its lines keeps twice what it must."""

    def __init__(self, width: int = 64, hidden: int = 256):
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        gate = gate * torch.sigmoid(gate)
        value = self.up(x) + 1.0
        return self.down(gate * value)


def check_thrifty(answer: Callable[[Wasteful, Tensor], Any]) -> Verdict:
    """Check ``answer(block, x)``: the block's own result and gradients, with less kept.

    Passes if outputs and all gradients agree (relative 1e-4) and no more is kept than a block
    without the wasted tensor needs, by ``saved_tensors`` and by ``measure`` alike.
    """
    torch.manual_seed(0)
    block = Wasteful()
    x = torch.randn(4, 16, 64, requires_grad=True)
    hidden_bytes = 4 * 16 * 256 * 4
    wasteful = saved_tensors(block, x).total
    budget = wasteful - hidden_bytes
    expected, expected_gradients = _result_and_gradients(block, block, x)
    try:
        found = answer(block, x)
        if found is None:
            return unfinished()
        if _kind(found) != _kind(expected):
            wanted, got = _kind(expected), _kind(found)
            return Verdict(
                "wrong",
                f"结果应是形状 {wanted} 的张量，得到的是 {got}。",
                f"The result should be a tensor of shape {wanted}, not {got}.",
            )
        kept = saved_tensors(partial(answer, block), x).total
        gap = (found - expected).abs().max().item()
        if not gap <= 1e-4 * expected.abs().max().item():  # nan is no agreement
            return Verdict(
                "wrong",
                f"输出变了：最大相差 {gap:.2g}。换写法，不能换函数。",
                f"The output changed, by up to {gap:.2g}. Write it differently, but keep the "
                "function.",
            )
        _, gradients = _result_and_gradients(partial(answer, block), block, x)
    except Exception as error:
        return raised(error)
    for name, gradient in expected_gradients.items():
        other = gradients[name]
        assert gradient is not None  # the block as it is uses them all
        if other is None or not torch.allclose(other, gradient, rtol=1e-4, atol=1e-5):
            return Verdict(
                "wrong",
                f"输出一样，但 {name} 的梯度{'没有了' if other is None else '变了'}："
                "计算图在哪里断开了？",
                f"The output agrees, but the gradient of {name} "
                f"{'is gone' if other is None else 'changed'}: where was the graph cut?",
            )
    if kept > budget:
        return Verdict(
            "wrong",
            f"保存了 {kept:,} 字节，原来是 {wasteful:,}，能做到 {budget:,}。"
            "哪一行同时保存了 sigmoid 的输入和输出？",
            f"It keeps {kept:,} bytes; it was {wasteful:,} and can be {budget:,}. "
            "Which line keeps both the input and the output of sigmoid?",
        )
    try:
        held, allowed = (_held(call, block, x) for call in (partial(answer, block), block))
    except Exception as error:
        return raised(error)
    allowed -= hidden_bytes
    if held > allowed + hidden_bytes // 4:  # something small beside it does not matter
        return Verdict(
            "wrong",
            "saved_tensors 看不见那些值了，可它们还在：前向传播结束时，实测比开始时多 "
            f"{held:,} 字节，能做到 {allowed:,}。",
            "saved_tensors no longer sees those values, but they are still there: measured at the "
            f"end of forward, {held:,} bytes more than at its start, and it can be {allowed:,}.",
        )
    return Verdict(
        "right",
        f"保存的字节从 {wasteful:,} 降到 {kept:,}，输出和梯度不变。",
        f"Kept bytes fell from {wasteful:,} to {kept:,}; output and gradients are the same.",
    )


def _kind(result: Any) -> str:
    if not isinstance(result, Tensor):
        return type(result).__name__
    return f"{list(result.shape)} {str(result.dtype).removeprefix('torch.')}"


def _result_and_gradients(
    function: Callable[[Tensor], Tensor], block: nn.Module, x: Tensor
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """``function(x)`` and the gradients of its squared sum; nothing is left in ``.grad``."""
    leaves = {"x": x, **dict(block.named_parameters())}
    for leaf in leaves.values():
        leaf.grad = None
    result = function(x)
    if result.requires_grad:
        result.square().sum().backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    for leaf in leaves.values():
        leaf.grad = None
    return result.detach(), gradients


def _held(function: Callable[[Tensor], Tensor], block: nn.Module, x: Tensor) -> int:
    """Bytes at the end of the forward pass that were not there at its start, as measured."""
    trace = measure(lambda: _result_and_gradients(function, block, x), block, inputs=x)
    return sum(trace.kept.values()) - sum(trace.before.values())
