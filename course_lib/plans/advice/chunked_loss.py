"""The loss in checkpointed chunks, without a change to the training code: logits that wait.

The head hands out :class:`Waiting` in place of logits. ``cross_entropy`` then computes a chunk of
them at a time, each in a checkpoint; whatever else is asked of them computes them all.
The class is also what :mod:`code` pastes, so it needs only torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNKS = 8  # of a few hundred tokens or more each: further ones would hardly save more


class Waiting:
    """Logits (…, classes) not computed yet: ``head`` of ``hidden`` (…, width), as ``dtype``."""

    def __init__(
        self, head: Any, hidden: Any, classes: int, chunks: int, dtype: Any = None
    ) -> None:
        self.head, self.hidden, self.classes = head, hidden, classes
        self.chunks, self.asked = chunks, dtype

    def computed(self) -> Any:
        logits = self.head(self.hidden)
        return logits if self.asked is None else logits.to(self.asked)

    def _with(self, hidden: Any, dtype: Any = None) -> Any:
        return Waiting(self.head, hidden, self.classes, self.chunks, dtype or self.asked)

    @property
    def shape(self) -> Any:
        return torch.Size([*self.hidden.shape[:-1], self.classes])

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def float(self) -> Any:
        return self._with(self.hidden, torch.float32)

    def to(self, *to: Any) -> Any:
        if to == (self.hidden.device,):
            return self
        if len(to) == 1 and isinstance(to[0], torch.dtype):
            return self._with(self.hidden, to[0])
        return self.computed().to(*to)

    def contiguous(self) -> Any:
        return self._with(self.hidden.contiguous())

    def flatten(self, start: int = 0, end: int = -1) -> Any:
        if end % len(self.shape) == len(self.shape) - 1:
            return self.computed().flatten(start, end)
        return self._with(self.hidden.flatten(start, end))

    def reshape(self, *shape: Any) -> Any:
        shape = tuple(shape[0]) if isinstance(shape[0], (tuple, list)) else shape
        if shape[-1] != self.classes:
            return self.computed().reshape(shape)
        return self._with(self.hidden.reshape(*shape[:-1], self.hidden.shape[-1]))

    view = reshape

    def __getitem__(self, index: Any) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        whole = slice(None)
        if (Ellipsis in index or len(index) == len(self.shape)) and index[-1] not in (whole, ...):
            return self.computed()[index]
        return self._with(self.hidden[index])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.computed(), name)

    def __mul__(self, other: Any) -> Any:
        return self.computed() * other

    def __rmul__(self, other: Any) -> Any:
        return other * self.computed()

    def __truediv__(self, other: Any) -> Any:
        return self.computed() / other

    def __add__(self, other: Any) -> Any:
        return self.computed() + other

    def __sub__(self, other: Any) -> Any:
        return self.computed() - other

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        waiting = args[0] if args else None
        if func is functional.cross_entropy and isinstance(waiting, cls):
            loss = waiting._cross_entropy(*args[1:], **kwargs)
            if loss is not None:
                return loss

        def plain(value: Any) -> Any:
            return value.computed() if isinstance(value, cls) else value

        return func(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    def _cross_entropy(
        self, target: Any, weight: Any = None, size_average: Any = None, ignore_index: int = -100,
        reduce: Any = None, reduction: str = "mean", label_smoothing: Any = 0.0,
    ) -> Any:  # fmt: skip
        simple = weight is size_average is reduce is None and reduction in ("mean", "sum")
        if not simple or self.hidden.dim() != 2 or target.dim() != 1:
            return None

        def part_of_loss(hidden: Any, target: Any) -> Any:
            logits = self._with(hidden).computed()
            return functional.cross_entropy(
                logits, target, ignore_index=ignore_index, reduction="sum",
                label_smoothing=label_smoothing,
            )  # fmt: skip

        parts = zip(self.hidden.chunk(self.chunks), target.chunk(self.chunks), strict=True)
        loss = sum(
            checkpoint(part_of_loss, *part, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        )
        return loss / (target != ignore_index).sum() if reduction == "mean" else loss


class WaitingHead:
    """What stands in for the ``forward`` of a head while gradients are on."""

    def __init__(self, head: nn.Linear, chunks: int):
        self.head, self.chunks = head, chunks
        self.plain = head.forward

    def __call__(self, hidden: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return self.plain(hidden)
        return Waiting(self.plain, hidden, self.head.out_features, self.chunks)


def put_on(head: nn.Linear, chunks: int) -> None:
    """Have the loss of what this head says computed in ``chunks`` chunks."""
    vars(head)["forward"] = WaitingHead(head, chunks)


def take_off(model: nn.Module) -> None:
    """Take back every :func:`put_on` inside of ``model``."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), WaitingHead):
            del vars(module)["forward"]
