"""Noting a block's operators while it runs, as torch's selective checkpoint will see them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import SAC_IGNORED_OPS

from ...memory.operators import tensors_in
from ..advice.watch import Watch


@dataclass(frozen=True, slots=True)
class Noted:
    """What is known of an operator beside its bytes: which, its n-th call in the block, its kind.

    ``changes``: it writes into an argument. ``random``: it draws random numbers. ``changed``:
    addresses that it writes into.
    """

    operator: Any
    nth: int
    changes: bool
    random: bool
    changed: tuple[int, ...] = ()


class Operators(TorchDispatchMode):
    """Marks in the watch's stream where each operator begins and ends, and where its results lie.

    Stands where the checkpoint's own mode will stand: above the recorder, below autograd.
    """

    numbered = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch
        self.seen: Counter[Any] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in SAC_IGNORED_OPS:
            return func(*args, **kwargs)
        nth, self.seen[func] = self.seen[func], self.seen[func] + 1
        number = self.watch.operators
        self.watch.operators += 1
        address = self.watch.recorder.source.address
        changed = tuple(address(tensor) for tensor in _changed(func, args, kwargs))
        noted = Noted(func, nth, bool(changed), _draws(func, args, kwargs), changed)
        self.watch.mark("operator", number, more=noted)
        result = func(*args, **kwargs)
        places = tuple(address(tensor) for tensor in tensors_in((result,), {}))
        self.watch.mark("result", number, places)
        return result


def _changed(func: Any, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operator writes into."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    written = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            written += tensors_in((given,), {})
    return written


def _draws(func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether an operator draws random numbers: attention without dropout draws none."""
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
        return False
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[position] if position < len(args) else kwargs.get("dropout_p")
            return bool(given)
    return True
