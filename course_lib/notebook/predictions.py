"""Predictions that are asked for, kept, and set beside what was measured."""

from __future__ import annotations

import html
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import ipywidgets

from ..language import Table, bilingual_html, on_change, text
from .answers import remember, remembered
from .missing_names import heading_of
from .typed_numbers import UNITS, Range, Typed, read_number, shown_number

# What can come out where a question does not say: no bytes below 0, and not more than a terabyte.
_RANGES: dict[str, Range] = {
    **{unit: (0, 2**40 / size) for unit, size in UNITS.items() if unit.endswith("B")},
    "×": (0, 1000),
    "%": (-100, 10_000),
}


_predictions: dict[str, Guess] = {}  # in the order in which they were asked for


_followers: list[weakref.WeakMethod] = []  # called after each change of a prediction


class Guess(ipywidgets.HBox):
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
        self._question = ipywidgets.HTML(bilingual_html(zh, en, tag="span"))
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
        self._note.value = bilingual_html(typed.zh, typed.en) if typed else ""

    def _describe(self) -> None:
        self.field.tooltip = text(zh=self.zh, en=self.en)

    def __str__(self) -> str:
        shown = "?" if self.value is None else f"{self.value:.10g}"
        return f"{text(zh=self.zh, en=self.en, between=chr(10))} {shown} {self.unit}".rstrip()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        question = html.escape(f"? {self.unit}".rstrip())
        fallback = f"<p>{bilingual_html(self.zh, self.en, tag='span')} <b>{question}</b></p>"
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


def guess(key: str, *, zh: str, en: str, unit: str = "MiB", between: Range | None = None) -> Guess:
    """Ask for a number before it is measured. A cell run again keeps what was typed.

    ``between``: what can come out, in ``unit``, bounds included; a guess outside is asked about.
    Raises ``ValueError`` for a unit that is not one of ``UNITS``.
    """
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(filter(None, UNITS))}, not {unit!r}")
    return Guess(key, zh=zh, en=en, unit=unit, between=between)


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
            rows.append(
                [
                    ("你的预测", "your prediction"),
                    _shown(prediction.value),
                    _off(prediction.value, measured),
                ]
            )
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
        heading = heading_of("guess", f'"{key}"')
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
    Guess(key, zh=str(kept.get("zh")), en=str(kept.get("en")), unit=kept["unit"])
    return True


class Scoreboard(ipywidgets.HTML):
    """All predictions of a lesson beside what was measured; follows what is typed later."""

    def __init__(self) -> None:
        super().__init__()
        _followers.append(weakref.WeakMethod(self._update))
        self._update()

    def _table(self) -> Table:
        return Table(
            [
                ("问题", "question"),
                ("你的预测", "you"),
                ("实测", "measured"),
                ("单位", "unit"),
                ("相差", "off by"),
            ],
            [_score(*asked) for asked in _asked_for()],
        )

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
            yield (
                (prediction.zh, prediction.en),
                prediction.unit,
                prediction.value,
                prediction.measured,
            )
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
