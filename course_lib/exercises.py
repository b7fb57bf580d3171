"""Predictions that are kept and compared, and checkers that say what is wrong and by how much."""

from __future__ import annotations

import copy
import html
import itertools
import operator
import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn
from torch.nn import functional

from .answers import remember, remembered
from .exercises_checking import (
    Answer,
    Unfinished,
    Verdict,
    Words,
    Wrong,
    briefly,
    judged,
    number,
    unfinished,
)
from .exercises_numbers import UNITS, Range, Typed, read_number, shown_number
from .language import Table, on_change, spoken, text
from .memory import measure
from .order import heading_of
from .saved import saved_tensors

__all__ = [
    "UNITS",
    "GatedMLP",
    "Prediction",
    "Verdict",
    "Wasteful",
    "check_cheapest",
    "check_kept_bytes",
    "check_segments",
    "check_thrifty",
    "compare",
    "predict",
    "scoreboard",
    "unfinished",
]

# What can come out where a question does not say: no bytes below 0, and not more than a terabyte.
_RANGES: dict[str, Range] = {
    **{unit: (0, 2**40 / size) for unit, size in UNITS.items() if unit.endswith("B")},
    "×": (0, 1000), "%": (-100, 10_000),
}  # fmt: skip

_predictions: dict[str, Prediction] = {}  # in the order in which they were asked for
_followers: list[weakref.WeakMethod] = []  # called after each change of a prediction


class Prediction(ipywidgets.HBox):
    """A question with a field for a number; :func:`compare` sets it beside what was measured.

    ``value``: the number typed, in ``unit``, or None. ``measured``: what it turned out to be, in
    the same unit, or None as long as the learner has not looked. Both are what they were when the
    question was last asked, in this kernel or in one before.
    """

    def __init__(self, key: str, *, zh: str, en: str, unit: str, between: Range | None = None):
        self.key, self.zh, self.en, self.unit = key, zh, en, unit
        self.between = between or _RANGES.get(unit)
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
        self._acknowledge()
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
        kept = {
            "typed": self.field.value,
            "value": self.value,
            "measured": self.measured,
            "unit": self.unit,
            "zh": self.zh,
            "en": self.en,
        }
        if remembered("prediction").get(self.key) != kept:
            remember("prediction", self.key, kept)
        for reference in list(_followers):
            if (follow := reference()) is not None:
                follow()
            else:
                _followers.remove(reference)

    @property
    def value(self) -> float | None:
        """What the learner typed, None if nothing or not clearly a finite number."""
        return typed.value if (typed := self._typed()) else None

    def _typed(self) -> Typed | None:
        words = f"{self.zh} {self.en}"
        return read_number(self.field.value, self.unit, self.between, words)

    def _changed(self) -> None:
        self._acknowledge()
        self._remember()

    def _acknowledge(self) -> None:
        """Say beside the field what was understood, or what is not clear."""
        typed = self._typed()
        self._note.value = spoken(typed.zh, typed.en) if typed else ""

    def _describe(self) -> None:
        self.field.tooltip = text(zh=self.zh, en=self.en)

    def __str__(self) -> str:
        shown = "?" if self.value is None else f"{self.value:.10g}"
        return f"{text(zh=self.zh, en=self.en, between=chr(10))} {shown} {self.unit}".rstrip()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        question = html.escape(f"? {self.unit}".rstrip())
        fallback = f"<p>{spoken(self.zh, self.en, tag='span')} <b>{question}</b></p>"
        return {**bundle, "text/plain": str(self), "text/html": fallback}


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


def predict(
    key: str, *, zh: str, en: str, unit: str = "MiB", between: Range | None = None
) -> Prediction:
    """Ask for a number before it is measured. A cell run again keeps what was typed.

    ``between``: what can come out, in ``unit``, bounds included; a guess outside is asked about.
    Raises ``ValueError`` for a unit that is not one of ``UNITS``.
    """
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(filter(None, UNITS))}, not {unit!r}")
    return Prediction(key, zh=zh, en=en, unit=unit, between=between)


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
        return Table([("来自", "from"), (unit, unit), ("与实测相差", "off by")], rows)

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
            value = kept.get("value")
            value = value if isinstance(value, (int, float)) else None
            yield (kept["zh"], kept["en"]), unit, value, _answered(key, unit)[1]


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
    if not value or 1e-3 <= abs(value) < 1e15:
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"
    return f"{value:.3g}"


def _off(value: float, measured: float) -> Any:
    """By how much a guess is off: a share of what was measured, or a number where that is 0."""
    if value == measured:
        return ("正好", "exact")
    if not measured:
        return f"{'+' * (value > 0)}{shown_number(value)}"
    return f"{(value - measured) / abs(measured):+.1%}"


# --- lesson 00 ----------------------------------------------------------------------------------


@judged
def check_segments(answer: Callable[[int, int], Any]) -> Words:
    """Check ``answer(n, k)``: k ranges that cover 0 … n-1, lengths differing by at most one.

    Tried with the lesson's own numbers, every n up to 24, and larger ones drawn anew each time.
    """
    ask = Answer(answer)
    small = [(n, k) for n in range(1, 25) for k in range(1, n + 1)]
    drawn = random.Random()
    large = [(n, drawn.randint(1, n)) for n in drawn.choices(range(25, 400), k=40)]
    fault: Words | None
    for n, k in ((12, 4), (12, 1), (12, 12), (12, 5), (7, 3), (100, 10), *small, *large):
        found = ask(n, k)
        if found is None:
            raise ask.nothing(n, k)
        try:
            if any(isinstance(part, (set, frozenset)) for part in _listed(found)):
                raise TypeError  # has no order
            rows = itertools.islice(found, 10 * n)  # an answer may count on without end
            parts = [[operator.index(x) for x in itertools.islice(row, 2 * n)] for row in rows]
        except TypeError:
            fault = (f"应返回由 {k} 个 range 组成的列表，得到的是 {briefly(found)}。",
                     f"expected a list of {k} ranges, got {briefly(found)}.")  # fmt: skip
        else:
            fault = _fault_in_segments(parts, n, k)
            if fault and _listed(found):
                shown = briefly(_listed(found))
                fault = f"{fault[0]}你的是 {shown}。", f"{fault[1]} Yours is {shown}."
        if fault:
            raise Wrong(f"n={n}, k={k}：{fault[0]}", f"n={n}, k={k}: {fault[1]}")
    return (
        "每一层恰好属于一段，段长至多差 1。",
        "Each layer is in exactly one segment, and lengths differ by at most 1.",
    )


def _listed(found: Any) -> Any:
    """A list or tuple as it is; nothing of what can be gone through only once."""
    return found if isinstance(found, (list, tuple)) else ()


def _fault_in_segments(parts: list[list[int]], n: int, k: int) -> Words | None:
    if len(parts) != k:
        return f"要 {k} 段，得到 {len(parts)} 段。", f"expected {k} segments, got {len(parts)}."
    layers = [layer for part in parts for layer in part]
    if strange := [layer for layer in layers if not 0 <= layer < n]:
        return (f"没有第 {strange[0]} 层：层号从 0 到 {n - 1}。",
                f"there is no layer {strange[0]}: layers are numbered 0 to {n - 1}.")  # fmt: skip
    if missing := sorted(set(range(n)) - set(layers)):
        return f"漏了第 {missing[0]} 层。", f"layer {missing[0]} is in no segment."
    if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
        return f"第 {twice[0]} 层在两段里都有。", f"layer {twice[0]} comes twice."
    if layers != list(range(n)):
        at = next(i for i, layer in enumerate(layers) if layer != i)
        return (f"次序不对：第 {at} 层的位置上是第 {layers[at]} 层。",
                f"out of order: in the place of layer {at} stands layer {layers[at]}.")  # fmt: skip
    shortest, longest = min(map(len, parts)), max(map(len, parts))
    if longest - shortest > 1:
        return (
            f"最长 {longest} 层，最短 {shortest} 层，差得太多。",
            f"the longest has {longest} layers, the shortest {shortest}: too uneven.",
        )
    return None


@judged
def check_cheapest(answer: Callable[[int, Any], Any], measured: Sequence[Any]) -> Words:
    """Check ``answer(budget, measured)`` for budgets at, between, below and above all peaks.

    ``measured``: results with ``checkpoints``, ``trace.peak`` and ``trace.flops``. After the
    lesson's own come made-up ones: there the cheapest that fits is neither the first nor the last,
    and neither has the fewest checkpoints nor the lowest peak.
    """
    ask = Answer(answer)
    tried = 0
    for made_up, results in enumerate([list(measured), *_made_up_results()]):
        peaks = sorted({result.trace.peak for result in results})
        for budget in [peaks[0] - 1, *peaks, peaks[-1] + 1]:
            given = list(results)
            said = ask(budget, given)
            if said is None and ask.is_stub:
                raise Unfinished
            _check_choice(said, budget, results, bool(made_up))
            tried += 1
            if list(map(id, given)) != list(map(id, results)):
                raise Wrong(
                    f"{ask.name} 改动了传进来的列表 measured；之后的单元格还要用它。用 sorted(…) "
                    "之类的，另做一个新的。",
                    f"{ask.name} changes the list measured that it was given, which later cells "
                    "still need: make a new one, as sorted(…) does.",
                )
    return (
        f"{tried} 个预算都选对了，其中有的检查点更多、FLOPs 反而更少。",
        f"The right choice for all {tried} budgets, also where more checkpoints take fewer FLOPs.",
    )


def _made_up_results() -> Iterator[list[Any]]:
    """Results in no order, whose numbers are not their places; FLOPs follow no rule.

    In the first, the cheapest that fits differs from what any simpler rule picks; the others are
    drawn anew each time.
    """
    yield _results([20, 11, 14, 17, 29], [900, 500, 700, 300, 400], [1000, 1500, 1200, 1800, 1400])
    drawn = random.Random()
    for counts in ([7, 10, 4, 12], [6, 9, 0, 13, 8], [3]):
        peaks = drawn.sample(range(100, 1000), len(counts))
        yield _results(counts, peaks, drawn.sample(range(1000, 2000), len(counts)))


def _results(counts: list[int], peaks: list[int], flops: list[int]) -> list[Any]:
    return [
        SimpleNamespace(checkpoints=count, trace=SimpleNamespace(peak=peak, flops=cost))
        for count, peak, cost in zip(counts, peaks, flops, strict=True)
    ]


def _check_choice(said: Any, budget: int, measured: Sequence[Any], made_up: bool) -> None:
    """Raise ``Wrong`` unless ``said`` is the number with the fewest FLOPs that fits, or -1."""
    fitting = [result for result in measured if result.trace.peak <= budget]
    fewest = min((result.trace.flops for result in fitting), default=None)
    best = [result.checkpoints for result in fitting if result.trace.flops == fewest] or [-1]
    if number(said) in best:
        return
    zh, en = _fault_in_choice(said, best[0], budget, measured)
    if made_up:
        shown = "; ".join(f"{r.checkpoints}: {r.trace.peak:,} B, {r.trace.flops:,} FLOPs"
                          for r in measured)  # fmt: skip
        zh += f"这次传进来的 measured 是另一组结果：{shown}。"
        en += f" The list measured passed in here holds other results: {shown}."
    raise Wrong(f"预算 {budget:,} 字节：{zh}", f"Budget of {budget:,} bytes: {en}")


def _fault_in_choice(said: Any, best: int, budget: int, measured: Sequence[Any]) -> Words:
    shown, said = briefly(said), number(said)
    chosen = next((result for result in measured if result.checkpoints == said), None)
    if best == -1:
        return (f"没有一种放得下，应返回 -1，得到 {shown}。",
                f"nothing fits: expected -1, got {shown}.")  # fmt: skip
    if said is None:
        return (f"应返回检查点的数量，得到的是 {shown}。",
                f"expected a number of checkpoints, got {shown}.")  # fmt: skip
    if said == -1:
        return (f"返回了 -1，可是 {best} 个检查点放得下。",
                f"yours is -1, but {best} checkpoints fit.")  # fmt: skip
    if chosen is None:
        return (f"得到 {said}，measured 里没有 {said} 个检查点的结果：要的是 .checkpoints，"
                "不是它在列表里的位置。",
                f"yours is {said}, but no result in measured has {said} checkpoints: return its "
                ".checkpoints, not its place in the list.")  # fmt: skip
    if chosen.trace.peak > budget:
        over = chosen.trace.peak - budget
        return (f"{said} 个检查点的峰值超出预算 {over:,} 字节。",
                f"with {said} checkpoints the peak is {over:,} bytes over the budget.")  # fmt: skip
    best_flops = next(result.trace.flops for result in measured if result.checkpoints == best)
    more = (chosen.trace.flops - best_flops) / best_flops
    return (f"{said} 个放得下，但 {best} 个也放得下，{said} 个的 FLOPs 多 {more:.1%}。",
            f"{said} fit, but so do {best}, and {said} need {more:.1%} more FLOPs.")  # fmt: skip


# --- lesson 01 ----------------------------------------------------------------------------------


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``: (batch, sequence, width) → the same."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


@judged
def check_kept_bytes(answer: Callable[[int, int, int, int], Any]) -> Words:
    """Check ``answer(batch, sequence, width, hidden)``: bytes that a ``GatedMLP`` keeps.

    Compared with ``saved_tensors`` for four sizes and four more drawn anew each time, in float32,
    the input included.
    """
    ask = Answer(answer)
    # hidden is no small multiple of width at first, so that each fault has a number of its own
    cases = [(1, 1, 8, 20), (2, 16, 32, 64), (3, 5, 16, 128), (4, 8, 64, 24)]
    drawn = random.Random()
    cases += [(drawn.randint(1, 6), drawn.randint(1, 12), drawn.randint(3, 40),
               drawn.randint(41, 150)) for _ in range(4)]  # fmt: skip
    for sizes in cases:
        batch, sequence, width, hidden = sizes
        said = ask(*sizes)
        if said is None and ask.is_stub:
            raise Unfinished
        if (bytes_said := number(said)) is None:
            raise Wrong(f"应返回字节数，得到的是 {briefly(said)}。",
                        f"expected a number of bytes, got {briefly(said)}.")  # fmt: skip
        block = GatedMLP(width, hidden)
        expected = saved_tensors(block, torch.randn(batch, sequence, width)).total
        if bytes_said != expected:
            raise _wrong_kept_bytes(bytes_said, expected, sizes, block)
    return (
        f"{len(cases)} 组尺寸都对，一个字节不差。x 有两个使用者，却只存一份；SiLU 存输入，"
        "乘法存两个因子，最后一个 Linear 存它的输入。",
        f"Right for all {len(cases)} sizes, to the byte. x is used twice but kept once; SiLU keeps "
        "its input, the product both factors, the last Linear its input.",
    )


def _wrong_kept_bytes(said: Any, expected: int, sizes: tuple, block: nn.Module) -> Wrong:
    batch, sequence, width, hidden = sizes
    values = batch * sequence * 4
    parameters = sum(parameter.nbytes for parameter in block.parameters())
    weights = sum(p.nbytes for p in block.parameters() if p.ndim > 1)
    reasons = {
        expected / 2**20: ("这是 MiB；要的是字节。", "This is in MiB; bytes are asked for."),
        expected / 2**10: ("这是 KiB；要的是字节。", "This is in KiB; bytes are asked for."),
        expected + weights: ("参数不算：它们本来就在，不是为反向传播多存的。",
                             "Parameters do not count: they exist anyway."),
        expected / 4: ("看来你数的是元素个数：float32 每个 4 字节。",
                       "You seem to have counted numbers: a float32 takes 4 bytes."),
        expected / 2: ("float32 每个元素 4 字节，不是 2。", "A float32 takes 4 bytes, not 2."),
        expected * 2: ("正好是两倍：float32 每个元素 4 字节，每份只存一次。",
                       "Exactly twice: a float32 takes 4 bytes, and each value is kept once."),
        expected / batch: ("少乘了 batch？", "Is batch left out?"),
        expected / sequence: ("少乘了 sequence？", "Is sequence left out?"),
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
    return Wrong(
        f"{where}：你得 {said:,.10g}，实测 {expected:,} 字节，差 {said - expected:+,.10g}。{zh}",
        f"{where}: yours is {said:,.10g} bytes, measured {expected:,}, "
        f"{said - expected:+,.10g}. {en}",
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


@judged
def check_thrifty(answer: Callable[[Wasteful, Tensor], Any]) -> Words:
    """Check ``answer(block, x)``: the block's own result and gradients, with less kept.

    Passes if outputs and all gradients agree (relative 1e-4) and no more is kept than a block
    without the wasted tensor needs, by ``saved_tensors`` and by ``measure`` alike; for two blocks
    of other sizes, each answer on a copy of its own, which it may change.
    """
    ask = Answer(answer)
    results = [_check_thrifty(ask, *sizes) for sizes in ((4, 16, 64, 256), (3, 8, 24, 160))]
    wasteful, kept = results[0]
    return (
        f"保存的字节从 {wasteful:,} 降到 {kept:,}，输出和梯度不变。",
        f"Kept bytes fell from {wasteful:,} to {kept:,}; output and gradients are the same.",
    )


def _check_thrifty(
    ask: Answer, batch: int, sequence: int, width: int, hidden: int
) -> tuple[int, int]:
    """Raise ``Wrong`` unless the answer keeps less; bytes kept by the block and by the answer."""
    torch.manual_seed(batch)
    block = Wasteful(width, hidden)
    x = torch.randn(batch, sequence, width, requires_grad=True)
    hidden_bytes = batch * sequence * hidden * 4
    wasteful = saved_tensors(block, x).total
    budget = wasteful - hidden_bytes
    expected, expected_gradients = _result_and_gradients(block, block, x)
    allowed = _held(block, block, x) - hidden_bytes
    before = copy.deepcopy(block.state_dict()), x.detach().clone()
    own = copy.deepcopy(block)  # which an answer may give another forward
    found = ask(own, x)
    if found is None:
        raise ask.nothing(own, x)
    if _kind(found) != _kind(expected):
        wanted, got = _kind(expected), _kind(found)
        raise Wrong(
            f"结果应是形状 {wanted} 的张量，得到的是 {got}。",
            f"The result should be a tensor of shape {wanted}, not {got}.",
        )
    _check_unchanged(own, x, *before)
    kept = saved_tensors(partial(ask, own), x).total
    gap = (found - expected).abs().max().item()
    if not gap <= 1e-4 * expected.abs().max().item():  # nan is no agreement
        raise Wrong(
            f"输出变了：最大相差 {gap:.2g}。换写法，不能换函数，也不能换掉传进来的 block。",
            f"The output changed, by up to {gap:.2g}. Write it differently, but keep the "
            "function, and the block that was passed in.",
        )
    _, gradients = _result_and_gradients(partial(ask, own), own, x)
    for name, gradient in expected_gradients.items():
        other = gradients.get(name)
        assert gradient is not None  # the block as it is uses them all
        if other is None:
            raise Wrong(
                f"输出一样，但 {name} 的梯度没有了：计算图在哪里断开了？",
                f"The output agrees, but the gradient of {name} is gone: where was the graph cut?",
            )
        if not torch.allclose(other, gradient, rtol=1e-4, atol=1e-5):
            gap = (other - gradient).abs().max().item()
            raise Wrong(
                f"输出一样，但 {name} 的梯度变了，最多差 {gap:.2g}：反向传播读到的值与前向算出的"
                "不同？",
                f"The output agrees, but the gradient of {name} changed, by up to {gap:.2g}: does "
                "the backward pass read other values than the forward pass made?",
            )
    if kept > budget:
        raise Wrong(
            f"保存了 {kept:,} 字节，原来是 {wasteful:,}，能做到 {budget:,}。"
            "哪一行同时保存了 sigmoid 的输入和输出？",
            f"It keeps {kept:,} bytes; it was {wasteful:,} and can be {budget:,}. "
            "Which line keeps both the input and the output of sigmoid?",
        )
    held = _held(partial(ask, own), own, x)
    if held > allowed + hidden_bytes // 4:  # something small beside it does not matter
        raise Wrong(
            "saved_tensors 看不见那些值了，可它们还在：前向传播结束时，实测比开始时多 "
            f"{held:,} 字节，能做到 {allowed:,}。",
            "saved_tensors no longer sees those values, but they are still there: measured at the "
            f"end of forward, {held:,} bytes more than at its start, and it can be {allowed:,}.",
        )
    return wasteful, kept


def _check_unchanged(block: nn.Module, x: Tensor, weights: dict[str, Tensor], was: Tensor) -> None:
    now = block.state_dict()
    changed = [name for name, value in weights.items()
               if name not in now or not torch.equal(now[name], value)]  # fmt: skip
    if not torch.equal(x, was):
        changed.insert(0, "x")
    if changed:
        raise Wrong(
            f"你的函数改动了传进来的 {changed[0]}：要另算一个新张量，不要就地修改。",
            f"Your function changes {changed[0]}, which was passed in: make a new tensor instead "
            "of changing it in place.",
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
