"""The last stage of lesson 02 beside PyTorch's own checkpoint: what each costs.

That both keep the same bytes is a test, in ``tests/test_recompute.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from page import named, table
from timing import in_turns
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from course_lib import recompute
from course_lib.models import Sizes, Transformer, random_tokens

WAYS: dict[str, Callable[..., Any]] = {
    "ours": recompute.checkpoint,
    "torch": partial(torch_checkpoint, use_reentrant=False),
    "none": lambda function, *inputs: function(*inputs),
}
MODELS = {
    ("有 dropout", "with dropout"): Sizes(depth=8, width=256, sequence=128, batch=8, dropout=0.1),
    ("没有 dropout", "without dropout"): Sizes(depth=8, width=256, sequence=128, batch=8),
    ("很小", "tiny"): Sizes(depth=8, width=64, sequence=32, batch=4, dropout=0.1),
}
TURNS = 7
HEADING = ("第 02 课手写的检查点", "The checkpoint written by hand in lesson 02")


def section() -> Iterator[str]:
    yield named(
        f"8 个块，每块一个检查点；一步的处理器时间之比，{TURNS} 轮的中位数（最小–最大）。",
        "8 blocks, a checkpoint around each; ratios of the processor time of a step, median of "
        f"{TURNS} turns (least–greatest).",
        between="\n\n",
    )
    heads = [
        named("模型", "model"), named("没有检查点", "no checkpoint"),
        named("torch 的 / 没有", "torch's / none"), named("手写的 / 没有", "by hand / none"),
        named("手写的 / torch 的", "by hand / torch's"),
    ]  # fmt: skip
    yield table(heads, [_row(named(*words), sizes) for words, sizes in MODELS.items()])


def _row(name: str, sizes: Sizes) -> list[str]:
    torch.manual_seed(0)
    model, tokens = Transformer(sizes), random_tokens(sizes)

    def step(checkpoint: Callable[..., Any]) -> None:
        model.run_blocks = lambda x: recompute.chain(model.blocks, sizes.depth, x, checkpoint)
        model.zero_grad()
        model.loss(tokens).backward()

    times = in_turns({way: partial(step, WAYS[way]) for way in WAYS}, TURNS)
    ours, theirs, none = (times[way] for way in WAYS)
    return [name, f"{none.median * 1e3:.0f} ms", theirs.over(none), ours.over(none),
            ours.over(theirs)]  # fmt: skip
