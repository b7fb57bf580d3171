"""Several checkpoints at once, and many one after the other: nothing mixed up, nothing left."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ...notebook.checking import (
    Answer,
    Wrong,
)
from .cases import WIDTH, mlp, run_backward
from .judging import called_plainly, check_gradients

_OPEN_HINT = (
    "单独一个检查点时都对：每次调用要有自己的一份东西，存在类上或全局变量里的，会被下一次盖掉。",
    "With a single checkpoint all is right: each call has to keep things of its own, since what is "
    "kept on a class or in a global is overwritten by the next.",
)


class _Nest(nn.Module):
    """A block with a checkpoint inside."""

    def __init__(self, call: Callable[..., Any], inner: nn.Module, rest: nn.Module):
        super().__init__()
        self.call, self.inner, self.rest = call, inner, rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.call(self.inner, x).tanh())


def _one_after_another(call: Callable, blocks: nn.ModuleList, x: Tensor, y: Tensor) -> None:
    middle = call(blocks[0], x.tanh())
    run_backward(call(blocks[1], middle.tanh()).square().sum())


def _two_batches(call: Callable, blocks: nn.ModuleList, x: Tensor, y: Tensor) -> None:
    first, second = call(blocks[0], x.tanh()), call(blocks[0], y.tanh())
    run_backward(first.square().sum())  # in the forward passes' order, not reversed
    run_backward(second.square().sum())


def _one_left_out(call: Callable, blocks: nn.ModuleList, x: Tensor, y: Tensor) -> None:
    kept = call(blocks[0], x.tanh())
    call(blocks[1], y.tanh())  # as in an evaluation: nobody asks for its gradients
    run_backward(kept.square().sum())


def _nested(call: Callable, blocks: nn.ModuleList, x: Tensor, y: Tensor) -> None:
    run_backward(call(_Nest(call, blocks[0], blocks[1]), x.tanh()).square().sum())


_SEVERAL = (
    (("两个接连的检查点", "two checkpoints in a row"), _one_after_another),
    (("两批数据先后前向、再先后反向", "two batches forward, then both backward"), _two_batches),
    (
        ("两个检查点，只有前一个做反向", "two checkpoints of which only the first runs backward"),
        _one_left_out,
    ),
    (("检查点套着检查点", "a checkpoint inside a checkpoint"), _nested),
)


def check_several(answer: Answer, dropout: float) -> None:
    """Raise ``Wrong`` if checkpoints that are open at once disturb each other."""
    for (zh, en), step in _SEVERAL:
        torch.manual_seed(0)
        blocks = nn.ModuleList(mlp(dropout) for _ in range(2))
        leaves = [torch.randn(8, WIDTH, requires_grad=True) for _ in range(2)]
        named = {"x1": leaves[0], "x2": leaves[1], **dict(blocks.named_parameters())}
        gradients = []
        for call in (called_plainly, answer):
            for leaf in named.values():
                leaf.grad = None
            torch.manual_seed(1)
            try:
                step(call, blocks, *leaves)
            except Exception as error:
                with contextlib.suppress(AttributeError):
                    error._open = _OPEN_HINT  # type: ignore[attr-defined]
                raise
            gradients.append({name: leaf.grad for name, leaf in named.items()})
        check_gradients((f"试「{zh}」时：", f"Tried with {en}: "), _OPEN_HINT, *gradients)


def check_nothing_left(answer: Answer) -> None:
    """Raise ``Wrong`` if steps leave tensors behind that nobody can free.

    The block has operators that save their own output: where a hook hands such a tensor back with
    its graph, graph and tensor hold each other, out of reach of Python's collector.
    """
    torch.manual_seed(0)
    block = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Softmax(-1), nn.Tanh(), nn.Linear(WIDTH, WIDTH)
    )
    leaf = torch.randn(64, WIDTH, requires_grad=True)
    growth = bytes_grown(lambda: run_backward(answer(block, leaf.tanh()).sum()), block)
    if growth:
        raise Wrong(
            f"试「带 softmax 和 tanh 的块」时：每一步都多出 {growth:,} 字节收不回来。"
            "这些算子保存的是自己的输出；交给 autograd 保存的若是输出本身，连同它的计算图，"
            "图就拿着它，它又拿着图，谁也放不掉。存进全局变量或类里而不清的，也一样。",
            f"Tried with a block with softmax and tanh: each step leaves {growth:,} bytes more "
            "that are never freed. These operators save their own output; if what autograd is "
            "given to save is that output itself, with its graph, the graph holds it and it holds "
            "the graph, and neither can go. The same goes for what is put into a global or a class "
            "and never taken out.",
        )


def bytes_grown(step: Callable[[], Any], *models: nn.Module, steps: int = 3) -> int:
    """Bytes by which inputs and outputs of the models' parts outlive each step, on average."""
    made: dict[StorageWeakRef, int] = {}

    def note(_: nn.Module, inputs: tuple, output: Any) -> None:
        for tensor in (*inputs, output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                made[StorageWeakRef(storage)] = storage.nbytes()

    def left_after(count: int) -> int:
        for _ in range(count):
            step()
        gc.collect()
        return sum(size for storage, size in made.items() if not storage.expired())

    handles = [part.register_forward_hook(note) for model in models for part in model.modules()]
    try:
        once = left_after(1)
        return max(0, left_after(steps) - once) // steps
    finally:
        for handle in handles:
            handle.remove()
