"""What a ``PaperBlock`` keeps: each tensor's name, who keeps it, and why the derivative needs it.

In the order in which autograd saves them; a storage that two operators share stands once, with the
first of them.
"""

from __future__ import annotations

from dataclasses import dataclass

Words = tuple[str, str]  # (zh, en)

ROWS: dict[str, Words] = {
    "norm1": ("LayerNorm", "LayerNorm"),
    "project": ("Q、K、V", "Q, K, V"),
    "square": ("s × s", "s × s"),
    "out": ("输出投影", "output\nprojection"),
    "norm2": ("LayerNorm", "LayerNorm"),
    "mlp": ("MLP", "MLP"),
}


@dataclass(frozen=True)
class KeptTensor:
    """``row``: of ``ROWS``; ``name``, ``keeper``, ``why``: (zh, en)."""

    row: str
    name: Words
    keeper: Words
    why: Words

    def sentence(self, size: str, shape: list[int], forgotten: bool) -> Words:
        """What is read when the box is touched."""
        zh, en = ("（检查点忘掉了它）", " (forgotten by the checkpoint)") if forgotten else ("", "")
        return (
            f"{self.name[0]} {shape}，{size}{zh}。{self.keeper[0]} 保存：{self.why[0]}。",
            f"{self.name[1]} {shape}, {size}{en}. Kept by {self.keeper[1]}: {self.why[1]}.",
        )


_NORM = (
    "求导要用归一化后的值，由输入、均值和 1/标准差当场算出",
    "its derivative needs the normalised values, which input, mean and 1/std give at once",
)
_LINEAR = (
    "权重的梯度是 grad.T @ 输入",
    "the gradient of the weight is grad.T @ input",
)
_MASK = (
    "丢掉的元素没有梯度，得记住丢了谁",
    "what was dropped gets no gradient, so it has to remember what that was",
)
_FUSED = (
    "反向传播时从 Q、K、V 分块重算 s × s 的矩阵，所以矩阵本身不用保存",
    "the backward pass recomputes the s × s matrix from Q, K and V, tile by tile",
)
_STATS = ("LayerNorm", "LayerNorm")


def _stats(row: str, number: int) -> dict[str, KeptTensor]:
    return {
        f"mean{number}": KeptTensor(row, ("均值", "mean"), _STATS, _NORM),
        f"std{number}": KeptTensor(row, ("1/标准差", "1/std"), _STATS, _NORM),
    }


KEPT: dict[str, KeptTensor] = {
    "x": KeptTensor("norm1", ("块的输入", "the block's input"), _STATS, _NORM),
    **_stats("norm1", 1),
    "normed": KeptTensor(
        "project", ("共用的输入", "shared input"), ("三个投影", "the three projections"), _LINEAR
    ),
    "q": KeptTensor("project", ("Q", "Q"), ("Q @ K.T", "Q @ K.T"), (
        "K 的梯度要用 Q", "the gradient of K needs Q")),
    "k": KeptTensor("project", ("K", "K"), ("Q @ K.T", "Q @ K.T"), (
        "Q 的梯度要用 K", "the gradient of Q needs K")),
    "v": KeptTensor("project", ("V", "V"), ("权重 @ V", "weights @ V"), (
        "注意力权重的梯度要用 V", "the gradient of the attention weights needs V")),
    "softmax": KeptTensor("square", ("softmax 的输出", "softmax output"), ("softmax", "softmax"), (
        "它的导数能用输出表示", "its derivative can be written with the output")),
    "dropped": KeptTensor(
        "square", ("dropout 之后的权重", "weights after dropout"), ("权重 @ V", "weights @ V"), (
            "V 的梯度要用这些权重", "the gradient of V needs these weights")),
    "mask": KeptTensor("square", ("dropout 的掩码", "dropout mask"), ("dropout", "dropout"), _MASK),
    "lse": KeptTensor("square", ("每行一个归一化常数", "one number per row"), (
        "融合注意力", "fused attention"), (
        "有了它，重算一块矩阵时不必再看整行", "with it a tile can be recomputed alone")),
    "q fused": KeptTensor("project", ("Q", "Q"), ("融合注意力", "fused attention"), _FUSED),
    "k fused": KeptTensor("project", ("K", "K"), ("融合注意力", "fused attention"), _FUSED),
    "v fused": KeptTensor("project", ("V", "V"), ("融合注意力", "fused attention"), _FUSED),
    "mixed": KeptTensor("out", ("输入", "input"), ("输出投影", "the output projection"), _LINEAR),
    "mask out": KeptTensor("out", ("掩码", "mask"), ("dropout", "dropout"), _MASK),
    "middle": KeptTensor("norm2", ("输入", "input"), _STATS, _NORM),
    **_stats("norm2", 2),
    "up": KeptTensor("mlp", ("第一个 Linear 的输入", "first Linear's input"), (
        "第一个 Linear", "the first Linear"), _LINEAR),
    "gelu": KeptTensor("mlp", ("GELU 的输入", "GELU's input"), ("GELU", "GELU"), (
        "它的导数是输入的函数", "its derivative is a function of the input")),
    "down": KeptTensor("mlp", ("第二个 Linear 的输入", "second Linear's input"), (
        "第二个 Linear", "the second Linear"), _LINEAR),
    "mask down": KeptTensor("mlp", ("掩码", "mask"), ("dropout", "dropout"), _MASK),
}  # fmt: skip

_BEFORE = ("x", "mean1", "std1", "normed")
_WRITTEN = ("k", "q", "softmax", "mask", "v", "dropped", "mixed")
_FUSED_KEYS = ("q fused", "k fused", "v fused", "lse", "mixed")
_AFTER = ("mask out", "middle", "mean2", "std2", "up", "gelu", "down", "mask down")
CHECKPOINTED = ("x",)


def keys_in_order(fused_attention: bool) -> tuple[str, ...]:
    """Which of ``KEPT`` a block saves, in that order."""
    return (*_BEFORE, *(_FUSED_KEYS if fused_attention else _WRITTEN), *_AFTER)
