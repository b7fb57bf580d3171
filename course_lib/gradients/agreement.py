"""What comparing two sides found, in both languages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..language import Bilingual

DifferenceKind = Literal[
    "error", "output", "gradient", "parameter", "buffer", "input", "random state"
]


KIND_ZH = {
    "output": "输出",
    "gradient": "梯度",
    "parameter": "参数",
    "buffer": "缓冲区",
    "input": "输入",
    "random state": "随机数状态",
}


class UnequalWork(ValueError):
    """The two sides cannot be compared: they do not do the same work."""


@dataclass(frozen=True)
class Difference:
    """One thing in which the checkpointed side departs from the plain one.

    ``kind``, ``name``: such as ``gradient`` of ``0.weight``. ``largest``: the largest absolute
    difference; ``scale``: the largest absolute value on the plain side; both None where numbers
    cannot say it (a gradient that is missing, an error). ``zh``, ``en``: the same in words.
    """

    kind: DifferenceKind
    name: str
    zh: str
    en: str
    largest: float | None = None
    scale: float | None = None

    @property
    def short(self) -> tuple[str, str]:
        """What differs, without numbers: (zh, en)."""
        return title_of(self.kind, self.name)


@dataclass(frozen=True)
class Agreement:
    """What :func:`same_gradients` found; true if there is no difference.

    ``differences``: in the order in which they were looked for: errors, outputs, gradients,
    parameters, buffers, inputs, random states. ``compared``: how many of each were looked at.
    ``error``: what the checkpointed side raised, if it did: a loud fault, not a silent one.
    """

    differences: tuple[Difference, ...]
    compared: dict[str, int]
    tolerance: float
    error: Exception | None = None

    def __bool__(self) -> bool:
        return not self.differences

    @property
    def first(self) -> Difference | None:
        """The first difference, None if there is none."""
        return self.differences[0] if self.differences else None

    @property
    def zh(self) -> str:
        """The verdict in Chinese."""
        if self.first is None:
            how = f"相对误差不超过 {self.tolerance:g}" if self.tolerance else "逐位相同"
            counts = "、".join(f"{n} 个{KIND_ZH[kind]}" for kind, n in self.compared.items() if n)
            return f"✓ 相同：{counts}，{how}。"
        rest = "、".join(other.short[0] for other in self.differences[1:5])
        return f"✗ 不同：{self.first.zh}" + (f"还有：{rest}{self._more('等')}。" if rest else "")

    @property
    def en(self) -> str:
        """The verdict in English."""
        if self.first is None:
            how = f"agree within {self.tolerance:g}" if self.tolerance else "agree bit for bit"
            counts = ", ".join(
                f"{n} {kind}{'s' * (n != 1)}" for kind, n in self.compared.items() if n
            )
            return f"✓ The same: {counts} {how}."
        rest = ", ".join(other.short[1] for other in self.differences[1:5])
        return f"✗ Different: {self.first.en}" + (
            f" Also: {rest}{self._more(' and more')}." if rest else ""
        )

    def _more(self, words: str) -> str:
        return words if len(self.differences) > 5 else ""

    def __str__(self) -> str:
        return str(Bilingual(zh=self.zh, en=self.en))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return Bilingual(zh=self.zh, en=self.en)._repr_mimebundle_()


_ERRORS = {
    "": ("有检查点的一边报错", "an error with checkpoints"),
    "plain": ("只有普通的一边报错", "an error without checkpoints only"),
    "both": ("两边都报错", "an error on both sides"),
}


def title_of(kind: DifferenceKind, name: str) -> tuple[str, str]:
    """What is compared, as a sentence says it."""
    if kind == "error":
        return _ERRORS[name]
    if kind == "gradient":
        return f"{name} 的梯度", f"the gradient of {name}"
    if kind == "random state":
        return f"{name} 的随机数状态", f"the random state of {name}"
    return f"{KIND_ZH[kind]} {name}", f"{kind} {name}"
