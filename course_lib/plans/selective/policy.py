"""Carrying a choice out: a policy for torch's selective checkpoint that names single operators."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

Operator = tuple[Any, int]  # an operator, and how often it ran in this call before


class Keeping:
    """A ``context_fn`` for ``checkpoint``: the results of these operators are stored.

    ``operators``: ``(operator, n)``, the n-th call of that operator within the checkpoint, counted
    from 0. Every other result is computed again.
    """

    def __init__(self, operators: Iterable[Operator]) -> None:
        self.operators = frozenset(operators)

    def __call__(self) -> tuple[Any, Any]:
        seen: Counter[Any] = Counter()  # of one call of the checkpoint, which asks for it anew

        def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            nth, seen[operator] = seen[operator], seen[operator] + 1
            if (operator, nth) in self.operators:
                return CheckpointPolicy.MUST_SAVE
            return CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)


class _Checkpointed:
    """Stands in for a block's ``forward`` meanwhile."""

    def __init__(self, forward: Any, contexts: Keeping) -> None:
        self.forward, self.contexts = forward, contexts
        self.__signature__ = inspect.signature(forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(
            self.forward, *args, use_reentrant=False, context_fn=self.contexts, **kwargs
        )


@contextlib.contextmanager
def keeping(blocks: Iterable[nn.Module], operators: Iterable[Operator]) -> Iterator[None]:
    """Meanwhile each block is checkpointed, and keeps the results of these operators."""
    contexts = Keeping(operators)
    put: list[tuple[nn.Module, Any]] = []
    try:
        for block in blocks:
            put.append((block, vars(block).get("forward")))
            vars(block)["forward"] = _Checkpointed(block.forward, contexts)
        yield
    finally:
        for block, own in put:
            if own is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = own
