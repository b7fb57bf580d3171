"""Numbers as people type them: 58.6 and 58,6, 1 234, 60 MiB, 3 GiB for MiB, ½, 2**10.

What has one meaning is taken; what has two is asked about, and what has none is said to have none.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "×": 1, "%": 1, "": 1}

Range = tuple[float, float]
Words = tuple[str, str]  # (zh, en)


@dataclass(frozen=True)
class Typed:
    """What was understood. ``value``: in the question's unit, None if that is not clear.

    ``zh``, ``en``: an acknowledgement, or what to ask. ``asks``: which of the two.
    """

    value: float | None
    zh: str
    en: str
    asks: bool = False


class _Unclear(Exception):
    """Nothing, or more than one thing, that it can mean: args are zh and en."""


# --- the characters -----------------------------------------------------------------------------

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SPACES = "\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t"
_SAME = str.maketrans(
    {
        **dict.fromkeys(_SPACES, " "),
        **dict.fromkeys("\u200b\u200e\u200f\ufeff\u2060", None),
        **dict.fromkeys("−‒\ufe63\uff0d", "-"),
        **dict.fromkeys("×✕✖·∙⋅", "*"),
        **dict.fromkeys("’ʼ`´", "'"),
        "⁄": "/",
        "∕": "/",
        "÷": "/",
        "٫": ".",
        "٬": "'",
        "，": ",",
        "\ufe50": ",",
        "\uff0e": ".",
    }
)


def _plain(typed: str) -> str:
    """The same in plain characters: ASCII digits, one kind of space, minus, times and divided."""
    typed = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: "**" + m[0].translate(_SUPERSCRIPTS), typed)
    letters = []
    for letter in typed:
        if "⁄" in (fraction := unicodedata.normalize("NFKC", letter)) and letter != "⁄":
            letters.append(f" {fraction}")  # ½, alone or after a whole number
        elif (digit := unicodedata.decimal(letter, None)) is not None:
            letters.append(str(digit))  # of any script
        else:
            letters.append(letter)
    plain = "".join(letters).translate(_SAME)
    plain = unicodedata.normalize("NFKC", plain).translate(_SAME)
    plain = re.sub(r"(?<=\d)。(?=\d)", ".", plain)  # the full stop of a Chinese keyboard
    return re.sub(r" +", " ", plain).strip(' 。!?;:"“”「」').replace("^", "**")


# --- one number ---------------------------------------------------------------------------------

_NUMBER = r"(?:\d(?:[\d.,'_]| (?=\d))*|[.,]\d+)(?:[eE][+-]?\d+)?"
_TIMES = r" ?(?:\*\*|\*|/|[xX](?= ?[\d.,])) ?"
_EXPRESSION = re.compile(rf"[+-]? ?{_NUMBER}(?:{_TIMES}[+-]?{_NUMBER})*")
_MIXED = re.compile(r"([+-]?)(\d+) (\d+)/(\d+)(?![\d.,/*])")
_ABOUT = [
    "about",
    "around",
    "approximately",
    r"approx\.?",
    "roughly",
    "circa",
    r"ca\.",
    "大约",
    "大概",
    "约",
    "≈",
    "~",
    "～",
    "=",
]
_ROUGHLY = re.compile(rf"(?:{'|'.join(_ABOUT)})\s*", re.IGNORECASE)
_UP_TO = re.compile(rf"\s*(?:[-–—~+]|{'|'.join(['到', '至', 'to'])})\s*\d")
_OR_SO = re.compile(rf"\s*(?:{'|'.join(['左右', '上下', 'or so'])}|[.,])$")
_GROUPS = r"[1-9]\d{0,2}(?:%s\d{3})+"  # a thousands separator has three digits behind it


def _readings(token: str) -> list[float]:
    """What one number can mean, the likeliest first."""
    token, _, exponent = token.lower().partition("e")
    scale = f"e{exponent}" if exponent else ""
    return [float(reading + scale) for reading in _plain_readings(token)]


def _plain_readings(token: str) -> list[str]:
    if re.search("[ '_]", token):
        for gap in " ", "'", "_":
            if re.fullmatch(rf"{_GROUPS % gap}(?:[.,]\d*)?", token):
                return [token.replace(gap, "").replace(",", ".")]
        if re.fullmatch(r"\d+(?:_\d+)+(?:[.,]\d*)?", token):  # as Python has it
            return [token.replace("_", "").replace(",", ".")]
        parts = " ".join(re.split("[ '_]+", token))
        raise _Unclear(
            f"“{token}”是一个数还是几个？千位分隔符后面要有三位数字；小数点写 “.”。",
            f"is “{parts}” one number or several? A thousands separator has three digits behind "
            "it; a decimal point is “.”.",
        )
    dots, commas = token.count("."), token.count(",")
    if dots and commas:
        point = max(".,", key=token.rfind)
        other = "," if point == "." else "."
        if re.fullmatch(rf"{_GROUPS % re.escape(other)}{re.escape(point)}\d*", token):
            return [token.replace(other, "").replace(point, ".")]
    elif dots + commas > 1:
        mark = "." if dots else ","
        if re.fullmatch(_GROUPS % re.escape(mark), token):
            return [token.replace(mark, "")]
    else:
        decimal = token.replace(",", ".")
        if re.fullmatch(_GROUPS % "[.,]", token):
            grouped = token.replace(",", "").replace(".", "")
            return [grouped, decimal] if commas else [decimal, grouped]
        return [decimal]
    raise _Unclear(
        f"看不出“{token}”里哪个是小数点：千位分隔符后面要有三位数字。",
        f"it is not clear where the decimal point of “{token}” is: a thousands separator has "
        "three digits behind it.",
    )


def _values(expression: str) -> list[float]:
    """What a product, quotient or power of numbers can mean, the likeliest first."""
    if mixed := _MIXED.fullmatch(expression):
        sign, whole, top, bottom = mixed.groups()
        return [float(sign + "1") * (int(whole) + _divided(int(top), int(bottom)))]
    tokens = re.findall(rf"(\*\*|[*/xX](?![eE]))? ?([+-]?) ?({_NUMBER})", expression)
    choices = [_readings(token) for _, _, token in tokens]
    if math.prod(map(len, choices)) > 8:
        raise _Unclear(
            f"“{expression}”太长了，请先算好。", f"“{expression}” is too long: work it out first."
        )
    signs = [-1.0 if sign == "-" else 1.0 for _, sign, _ in tokens]
    operators = [operator.lower().replace("x", "*") for operator, _, _ in tokens[1:]]
    return [_product(numbers, signs, operators) for numbers in itertools.product(*choices)]


def _product(numbers: Sequence[float], signs: Sequence[float], operators: Sequence[str]) -> float:
    factors = list(numbers)
    signed = list(signs)
    rest = list(operators)
    for i in reversed(range(len(rest))):  # powers first, from the right
        if rest[i] == "**":
            try:
                factors[i] = factors[i] ** (signed[i + 1] * factors[i + 1])
            except (OverflowError, ZeroDivisionError):
                factors[i] = math.inf
            del factors[i + 1], signed[i + 1], rest[i]
    result = signed[0] * factors[0]
    for operator, sign, factor in zip(rest, signed[1:], factors[1:], strict=True):
        result = result * sign * factor if operator == "*" else _divided(result, sign * factor)
    return result


def _divided(top: float, bottom: float) -> float:
    if not bottom:
        raise _Unclear("不能除以 0。", "nothing can be divided by 0.")
    return top / bottom


# --- the unit behind it -------------------------------------------------------------------------

_BINARY = {"k": "KiB", "m": "MiB", "g": "GiB", "兆": "MiB"}
_BYTES = {"b": 1.0, "byte": 1.0, "bytes": 1.0, "字节": 1.0, "个字节": 1.0}
_BYTES |= {f"{letter}ib": 2.0 ** (10 * i) for i, letter in enumerate("kmgt", 1)}
_BYTES |= {f"{letter}b": 10.0 ** (3 * i) for i, letter in enumerate("kmgt", 1)}
_BYTES |= {letter: float(UNITS[unit]) for letter, unit in _BINARY.items()}
_KINDS = {
    **dict.fromkeys(_BYTES, "bytes"),
    **dict.fromkeys(["%", "percent", "per cent", "个百分点"], "%"),
    **dict.fromkeys(["×", "*", "x", "倍", "times", "fold"], "×"),
}
_NAMES = {
    "bytes": ("字节数", "a number of bytes"),
    "%": ("百分数", "a percentage"),
    "×": ("倍数", "a factor"),
}
_LARGE = {"万": 1e4, "亿": 1e8, "千": 1e3, "百万": 1e6, "thousand": 1e3, "million": 1e6}
_COUNTED = set("个段层块遍次份条种倍步")


def _in_unit(suffix: str, unit: str, words: str) -> tuple[float, Words | None]:
    """The factor from what stands behind the number to ``unit``, and a remark on it."""
    suffix = _OR_SO.sub("", suffix.strip().lower()).strip()
    large = next((name for name in _LARGE if suffix == name or suffix.startswith(name)), None)
    if large and suffix not in _KINDS:
        factor, remark = _in_unit(suffix.removeprefix(large), unit, words)
        return factor * _LARGE[large], remark
    if not suffix or suffix == unit.lower():
        return 1.0, None
    asked = "bytes" if unit.lower() in _BYTES else unit
    kind = _KINDS.get(suffix)
    if kind is not None and kind == asked:
        if kind != "bytes" or _BYTES[suffix] == UNITS[unit]:
            return 1.0, None
        return _BYTES[suffix] / UNITS[unit], _conversion(suffix, unit)
    if not unit and (suffix in words.lower() or suffix in _COUNTED):
        return 1.0, None  # 36 sbh, where the question asks for units of sbh
    if kind is not None:
        raise _wrong_kind(kind, asked, unit)
    without = (f"，不带单位（{unit}）", f", without the unit ({unit})") if unit else ("", "")
    raise _Unclear(
        f"看不懂数字后面的“{suffix}”。只写数字{without[0]}。",
        f"“{suffix}” behind the number is not understood. Type the number alone{without[1]}.",
    )


def _conversion(suffix: str, unit: str) -> Words:
    name = suffix.upper().replace("IB", "iB") if suffix.isascii() and len(suffix) > 1 else suffix
    factor = _BYTES[suffix] / UNITS[unit]
    if len(suffix) == 2 and suffix != "字节" and factor < 1 and factor > 0.9:  # MB for MiB
        more = f"{1 / factor - 1:.1%}"
        return (f"1 {unit} 比 1 {name} 大 {more}", f"1 {unit} is {more} more than 1 {name}")
    shown = (
        f"1 {name} = {factor:,.6g} {unit}"
        if factor >= 1
        else f"1 {unit} = {1 / factor:,.6g} {name}"
    )
    return shown, shown


def _wrong_kind(kind: str, asked: str, unit: str) -> _Unclear:
    if {kind, asked} == {"%", "×"}:
        return _Unclear(
            f"这里要的是{_NAMES[asked][0]}（{unit}），写的却是{_NAMES[kind][0]}："
            "变成 1.33 倍，就是 133%，也就是多 33%。请按题目的单位写。",
            f"{_NAMES[asked][1]} ({unit}) is asked for, and this is {_NAMES[kind][1]}: 1.33 times "
            "as much is 133%, or 33% more. Type it in the unit of the question.",
        )
    wanted = _NAMES.get(asked, ("个数", "a count"))
    shown = f"（{unit}）" if unit else "", f" ({unit})" if unit else ""
    return _Unclear(
        f"这里要的是{wanted[0]}{shown[0]}，写的却是{_NAMES[kind][0]}。",
        f"{wanted[1]}{shown[1]} is asked for, and this is {_NAMES[kind][1]}.",
    )


# --- the whole ----------------------------------------------------------------------------------


def read_number(
    typed: str, unit: str = "", between: Range | None = None, words: str = ""
) -> Typed | None:
    """What a learner typed for a question in ``unit``; None if nothing was typed.

    ``between``: what an answer can be, bounds included, in ``unit``. It decides where a comma can
    be read in two ways, and a number outside is kept but asked about. ``words``: of the question.
    """
    plain = _plain(typed)
    if not plain:
        return None
    try:
        values, remark = _understood(plain, unit, words)
        value = _chosen(values, plain, unit, between)
    except _Unclear as unclear:
        zh, en = unclear.args
        return Typed(None, zh, f"{en[:1].upper()}{en[1:]}", asks=True)
    return _acknowledged(value, unit, between, remark)


def _understood(plain: str, unit: str, words: str) -> tuple[list[float], Words | None]:
    rest = _ROUGHLY.sub("", plain, count=1) if _ROUGHLY.match(plain) else plain
    found = _MIXED.match(rest) or _EXPRESSION.match(rest)
    if found is None:
        raise _Unclear(
            f"“{plain}”不是数字。请写一个数字，例如 58.6。",
            f"“{plain}” is no number. Please type a number, such as 58.6.",
        )
    expression, suffix = found[0].rstrip(), rest[found.end() :]
    if _UP_TO.match(suffix):
        raise _Unclear(
            f"“{plain}”是一个范围。请写一个数字，例如中间的那个。",
            f"“{plain}” is a range. Please type a number, the middle of it for example.",
        )
    if re.match(r"\s*[\d.,*/'_(^-]", suffix) and suffix.strip() not in _KINDS | {".": "", ",": ""}:
        raise _Unclear(
            f"看不懂“{plain}”。请写一个数字，例如 58.6。",
            f"“{plain}” is not understood. Please type a number, such as 58.6.",
        )
    factor, remark = _in_unit(suffix, unit, words)
    try:
        values = [value * factor for value in _values(expression)]
    except (OverflowError, ValueError):
        values = [math.inf]
    if not all(isinstance(value, float) and math.isfinite(value) for value in values):
        raise _Unclear(
            "这个数太大了。请写一个数字，例如 58.6。",
            "this number is too large. Please type a number, such as 58.6.",
        )
    return values, remark


def _chosen(values: list[float], plain: str, unit: str, between: Range | None) -> float:
    """The one that is meant. Raises ``_Unclear`` if it cannot be told."""
    inside = [value for value in values if _lies(value, between)]
    whole = [value for value in inside if value.is_integer()]
    if unit == "B" and whole:
        values = inside = whole  # there are no parts of bytes
    if len(set(values)) == 1:
        return values[0]
    if len(inside) == 1 and between is not None and (inside[0] == values[0] or "," in plain):
        return inside[0]
    if "," not in plain and (values[0] in inside or not inside):
        return values[0]  # 1.234: a point is a point, unless only the other reading is possible
    one, other = (f"{value:.10g}" for value in sorted(set(values), reverse=True)[:2])
    raise _Unclear(
        f"“{plain}”可以是 {one}，也可以是 {other}：写成其中一个。",
        f"“{plain}” can be {one} or {other}: type one of them.",
    )


def _lies(value: float, between: Range | None) -> bool:
    return between is None or between[0] <= value <= between[1]


def _acknowledged(value: float, unit: str, between: Range | None, remark: Words | None) -> Typed:
    shown = shown_number(value)
    with_unit = f"{shown}{unit}" if unit == "%" else f"{shown} {unit}".rstrip()
    if between is not None and not _lies(value, between):
        low, high = (shown_number(bound) for bound in between)
        far = _beyond(value, between)
        zh = f"是 {with_unit} 吗？这里能有的答案在 {low} 到 {high} 之间{far[0]}。"
        en = f"Is it {with_unit}? What can come out here lies between {low} and {high}{far[1]}."
        return Typed(value, zh, en, asks=True)
    zh, en = f"✓ 记下了：{with_unit}", f"✓ Noted: {with_unit}"
    if remark is not None:
        zh, en = f"{zh}（{remark[0]}）", f"{en} ({remark[1]})"
    return Typed(value, zh, en)


def _beyond(value: float, between: Range) -> Words:
    """How far outside, where that tells something: a factor that a lost point or unit explains."""
    low, high = between
    if high > 0 and value >= 2 * high:
        times = f"{value / high:,.3g}"
        return f"，这个数是上限的 {times} 倍", f"; this is {times} times the most"
    if value < 0 <= low:
        return "，不会是负数", ", and is never negative"
    return "", ""


def shown_number(value: float) -> str:
    """A number as the course writes it: 1,234.5."""
    if value and not 1e-4 <= abs(value) < 1e15:
        return f"{value:.6g}"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.6f}".rstrip("0")
