"""The step in smaller micro-batches, whose gradients add up before the optimizer uses them.

From outside, a step cannot be told to do so: it holds its batch itself. To see what it would take,
a simulated step runs once for each part, with its inputs cut down meanwhile and an optimizer that
waits for the last part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...memory.reach import tensors

COUNTS = 2, 4


def batch_of(inputs: Any) -> list[Tensor]:
    """Those of the inputs that hold one entry for each sample: as long as the first of them."""
    found = list({id(t): t for t in tensors(inputs)}.values())
    simple = [t for t in found if t.layout is torch.strided and t.dim() and not t.requires_grad]
    return [t for t in simple if len(t) == len(simple[0])]


class MicroBatches:
    """A step in ``count`` parts: to be entered, and its :meth:`step` called meanwhile."""

    def __init__(
        self, step: Callable[[], Any], model: nn.Module, optimizers: Sequence[Any],
        batch: Sequence[Tensor], count: int,
    ):  # fmt: skip
        self.whole_step, self.optimizers, self.count = step, optimizers, count
        self.model, self.batch = model, batch
        self.whole = [tensor.detach() for tensor in batch]
        self.part, self.learned = 0, False  # learned: this part's gradients are there

    def __enter__(self) -> None:
        self._stack = contextlib.ExitStack()
        for optimizer in self.optimizers:
            self._stack.enter_context(replaced(optimizer, "step", self._stepping))
            self._stack.enter_context(replaced(optimizer, "zero_grad", self._zeroing))
        self._stack.enter_context(replaced(self.model, "zero_grad", self._zeroing))
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(self._arrived)
                self._stack.callback(handle.remove)

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._give(self.whole)

    def step(self) -> None:
        for part in range(self.count):
            self.part, self.learned = part, False
            self._give([tensor.chunk(self.count)[part] for tensor in self.whole])
            self.whole_step()

    def _give(self, values: Sequence[Tensor]) -> None:
        for tensor, value in zip(self.batch, values, strict=True):
            tensor.data = value

    def _stepping(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            return plain(*args, **kwargs) if self.part == self.count - 1 else None

        return step

    def _arrived(self, parameter: Tensor) -> None:
        self.learned = True

    def _zeroing(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def zero_grad(*args: Any, **kwargs: Any) -> None:
            if self.part == (self.count - 1 if self.learned else 0):
                plain(*args, **kwargs)

        return zero_grad


@contextlib.contextmanager
def replaced(
    of: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """``of`` with another method of its own meanwhile."""
    own = vars(of).get(name)
    vars(of)[name] = around(getattr(of, name))
    try:
        yield
    finally:
        if own is None:
            del vars(of)[name]
        else:
            vars(of)[name] = own


LINES = """\
# The step in {count} micro-batches. forward_and_backward is yours: it computes the loss of what it
# is given (all that has one entry for each sample) and ends with
#     loss.backward(torch.full_like(loss, 1 / {count}))
# which is right for a loss that is a mean; of one that is a sum, loss.backward(). If the mean is
# over tokens, and parts hold unlike numbers of them, weigh each part by its own.
def step(*batch):
    for part in zip(*(one.chunk({count}) for one in batch)):
        forward_and_backward(*part)
    optimizer.step()
    optimizer.zero_grad()
"""

LIGHTNING_LINES = """\
# A DataLoader whose batch_size is a {count}th of what it is now, and
# Trainer(accumulate_grad_batches={count})
"""

WHY_BY_HAND = (
    "这一步的批量在训练代码自己手里，从外面切不开。请在训练代码里这样写：",
    "The training code holds its batch itself, which nothing can cut from outside. In that code, "
    "write:",
)
