"""Checkpoints that keep what is dear to compute, and recompute the rest.

:class:`Selective` and its companions are also what :mod:`code` pastes, so they need only torch.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

KEPT = "mm", "addmm", "bmm", "baddbmm", "convolution", "attention"  # all fused kinds of it


class Selective:
    """What stands in for the ``forward`` of a block: what ``kept`` names is not recomputed.

    ``kept``: operators, or a part of their names.
    """

    __name__ = "checkpointed selectively"

    def __init__(self, forward: Any, kept: Any) -> None:
        self.forward, self.kept = forward, kept
        self.__signature__ = inspect.signature(forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        names, positions = tuple(kwargs), len(args)

        def block(*values: Any) -> Any:
            named = dict(zip(names, values[positions:], strict=True))
            return self.forward(*values[:positions], **named)

        policy = functools.partial(keep, self.kept)
        contexts = functools.partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(block, *args, *kwargs.values(), use_reentrant=False, context_fn=contexts)


def keep(kept: Any, context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
    name = str(operator).removeprefix("aten.").split(".")[0]
    if name in kept or ("attention" in kept and "attention" in name):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


PASTED = Selective, keep


def put_on(model: nn.Module, paths: Iterable[str], kept: tuple[str, ...]) -> None:
    """Checkpoint the modules at these paths, each on its own, but keep what ``kept`` names."""
    for path in paths:
        block = model.get_submodule(path)
        vars(block)["forward"] = Selective(block.forward, kept)


def take_off(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Take back every :func:`put_on` inside of ``model``: path → what was kept there."""
    found: dict[str, tuple[str, ...]] = {}
    for path, module in model.named_modules():
        forward = vars(module).get("forward")
        if isinstance(forward, Selective):
            found[path] = forward.kept
            del vars(module)["forward"]
            if module.forward != forward.forward:  # somebody else's was there before
                vars(module)["forward"] = forward.forward
    return found


@contextlib.contextmanager
def selectively(model: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """With these modules checkpointed so meanwhile."""
    put_on(model, paths, KEPT)
    try:
        yield
    finally:
        take_off(model)


def put_back(model: nn.Module, there: dict[str, tuple[str, ...]]) -> None:
    """What :func:`take_off` has taken off."""
    for path, kept in there.items():
        put_on(model, [path], kept)
