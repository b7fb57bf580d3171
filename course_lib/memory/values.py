"""What simulated tensors know of their values: masks, positions, lengths, indices.

Libraries look at such tensors to choose a path ("is anything masked at all?") or a shape. Their
values follow from numbers that are there, so they are known without the model being computed:
beside the storage of a simulated tensor there may be a *twin*, real memory of the same size that
holds them. Every view of the storage then knows its values too; whatever writes to it writes to
the twin as well, or, where that cannot be, the twin is dropped and the values are unknown.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# The most elements whose values are worth computing: of whole numbers and truth values, which
# masks and indices are made of, of other numbers, and of random ones.
WHOLE, BROKEN, DRAWN = 1 << 22, 1 << 16, 1 << 8

_TWIN = "_twin_with_values"  # the storage's attribute


def values_of(tensor: Tensor) -> Tensor | None:
    """The values of a tensor as a real one on the CPU, or None; they share memory with its twin."""
    if not isinstance(tensor, FakeTensor):
        if type(tensor) is not Tensor or not _worth_knowing(tensor):
            return None
        with really():
            return tensor.to("cpu", copy=True)  # the learner's own, which nothing here may change
    if tensor.layout is not torch.strided:
        return None
    with really():
        storage = tensor.untyped_storage()
        twin = getattr(storage, _TWIN, None)
        if twin is None or twin.nbytes() != storage.nbytes():  # the storage was resized
            return None
        place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        return torch.empty(0, dtype=tensor.dtype, device="cpu").set_(twin, *place)


def give_values(simulated: Tensor, values: Tensor) -> None:
    """Let a simulated tensor know its values, if they are worth it."""
    fits = simulated.layout is torch.strided and simulated.shape == values.shape
    if not (fits and values.layout is torch.strided and _worth_knowing(simulated)):
        return
    with really():
        if values_of(simulated) is None and not _own_twin(simulated):
            return
        known = values_of(simulated)
        assert known is not None
        known.copy_(values)


def copy_values(tensor: Tensor, simulated: Tensor) -> None:
    """Let the storage of ``simulated`` know all that the storage of ``tensor`` holds."""
    with really():
        storage: Any = tensor.untyped_storage()
        if isinstance(tensor, FakeTensor):
            storage = getattr(storage, _TWIN, None)
        if storage is None or tensor.device.type == "meta" or not _worth_knowing(tensor):
            return
        if storage.nbytes() <= 8 * (WHOLE if _is_whole(tensor) else BROKEN):
            setattr(simulated.untyped_storage(), _TWIN, storage.cpu().clone())


def forget_values(simulated: Tensor) -> None:
    """From now on the values of this tensor, and of all that share its storage, are unknown."""
    if simulated.layout is not torch.strided:
        return
    with really():
        storage = simulated.untyped_storage()
        if getattr(storage, _TWIN, None) is not None:
            setattr(storage, _TWIN, None)


def _own_twin(simulated: Tensor) -> bool:
    """Make a twin of the tensor's storage, with no values yet, unless that is too large."""
    with really():
        storage = simulated.untyped_storage()
        if storage.nbytes() > 8 * WHOLE:
            return False
        setattr(storage, _TWIN, torch.UntypedStorage(storage.nbytes(), device="cpu"))
        return True


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)


def _worth_knowing(tensor: Tensor) -> bool:
    if tensor.device.type == "meta" or tensor.dtype.is_complex or tensor.is_quantized:
        return False
    return tensor.numel() <= (BROKEN if tensor.dtype.is_floating_point else WHOLE)


@contextlib.contextmanager
def really() -> Iterator[None]:
    """The body works on real tensors, whatever simulation, mode or autograd is on."""
    with (
        torch._C.DisableTorchFunction(),
        torch._C._DisableTorchDispatch(),
        torch._C._AutoDispatchBelowAutograd(),
    ):
        yield


# --- operators ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
    writes: tuple[int | str, ...]  # the arguments that it changes
    makes: bool  # results that are not its arguments
    draws: bool
    numbers: bool  # makes its results from numbers alone


@functools.cache
def _kind(func: torch._ops.OpOverload) -> _Kind:
    arguments, returns = func._schema.arguments, func._schema.returns
    writes = tuple(
        argument.name if argument.kwarg_only else i
        for i, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    takes_tensors = any("Tensor" in str(argument.type) for argument in arguments)
    return _Kind(
        writes,
        makes=not all(returned.alias_info for returned in returns),
        draws=torch.Tag.nondeterministic_seeded in func.tags,
        numbers=not takes_tensors and not func._schema.name.startswith("aten::empty"),
    )


def known_arguments(func: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
    """The arguments with values in place of simulated tensors; None if some are unknown."""
    if func in _ALIKE:
        return args, kwargs  # their own values are not needed
    try:
        values = tuple(_known(argument) for argument in args)
        others = {name: _known(argument) for name, argument in kwargs.items()}
    except _Unknown:
        return None
    if others.get("device") is not None:
        others["device"] = "cpu"
    if "generator" in others:
        others["generator"] = None
    return values, others


class _Unknown(Exception):
    pass


def _known(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        values = values_of(argument)
        if values is None:
            raise _Unknown
        return values
    if isinstance(argument, (list, tuple)):
        return [_known(item) for item in argument]
    return argument


class Follower:
    """Keeps the twins of a simulation's tensors up to date, operator by operator."""

    def __init__(self) -> None:
        self._random = torch.Generator(device="cpu").manual_seed(0).get_state()

    def follow(
        self, func: Any, args: tuple, kwargs: dict[str, Any], known: tuple | None, result: Any
    ) -> None:
        """``func`` has been simulated with ``result``; ``known``: :func:`known_arguments`."""
        kind = _kind(func)
        if torch.Tag.inplace_view in func.tags:
            return  # changes no value, but what of its storage a tensor shows, or which storage
        if func in _LIFT:
            if known is not None and not isinstance(args[0], FakeTensor):
                give_values(result, args[0])
        elif kind.writes:
            self._written(func, kind, args, kwargs, known)
        elif kind.makes and known is not None:
            self._made(func, kind, known, result)

    def _written(
        self, func: Any, kind: _Kind, args: tuple, kwargs: dict[str, Any], known: tuple | None
    ) -> None:
        written = [
            kwargs.get(at) if isinstance(at, str) else args[at]
            for at in kind.writes
            if isinstance(at, str) or at < len(args)
        ]
        changed = [
            t
            for item in written
            for t in (item if isinstance(item, list) else [item])
            if isinstance(t, FakeTensor)
        ]
        drawn = kind.draws and all(_is_whole(t) or t.numel() == 1 for t in changed)
        anew = (func in _FILLS or drawn) and _is_all_of_its_storage(args[0])
        if known is None and anew and _worth_knowing(args[0]) and _own_twin(args[0]):
            known = known_arguments(func, args, kwargs)  # None: filled with what is unknown
        if known is None or (kind.draws and not drawn):
            for tensor in changed:
                forget_values(tensor)
        else:
            self.compute(func, known)

    def _made(self, func: Any, kind: _Kind, known: tuple, result: Any) -> None:
        made = result if isinstance(result, (list, tuple)) else [result]
        tensors = [t for t in made if isinstance(t, FakeTensor)]
        if func._schema.name.startswith("aten::empty") or func in _EMPTY:
            return
        worth = _worth_drawing if kind.draws else _worth_knowing
        if not tensors or not all(worth(t) for t in tensors):
            return
        if func in _ALIKE:
            with really():
                values = torch.empty(result.shape, dtype=result.dtype, device="cpu")
                give_values(result, values.fill_(_ALIKE[func](known[0], known[1])))
            return
        values = self.compute(func, known)
        for tensor, value in zip(made, values if made is result else [values], strict=True):
            if isinstance(tensor, FakeTensor):
                give_values(tensor, value)

    def compute(self, func: Any, known: tuple) -> Any:
        """What ``func`` does with real arguments; its random numbers are the follower's own."""
        with really():
            if not _kind(func).draws:
                return func(*known[0], **known[1])
            state = torch.get_rng_state()
            torch.set_rng_state(self._random)
            try:
                return func(*known[0], **known[1])
            finally:
                self._random = torch.get_rng_state()
                torch.set_rng_state(state)


def _worth_drawing(tensor: Tensor) -> bool:
    return _worth_knowing(tensor) and (_is_whole(tensor) or tensor.numel() <= DRAWN)


def _is_all_of_its_storage(tensor: Any) -> bool:
    if not isinstance(tensor, FakeTensor) or tensor.layout is not torch.strided:
        return False
    size = tensor.numel() * tensor.itemsize
    return tensor.is_contiguous() and size == tensor.untyped_storage().nbytes()


aten = torch.ops.aten
_LIFT = {aten.lift_fresh.default, aten.lift.default, aten.lift_fresh_copy.default}
_FILLS = {aten.zero_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.copy_.default}
_EMPTY = {aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default}
_ALIKE = {  # made after the likeness of a tensor, whose values do not matter: what they hold
    aten.zeros_like.default: lambda args, kwargs: 0,
    aten.ones_like.default: lambda args, kwargs: 1,
    aten.full_like.default: lambda args, kwargs: args[1],
    aten.new_zeros.default: lambda args, kwargs: 0,
    aten.new_ones.default: lambda args, kwargs: 1,
    aten.new_full.default: lambda args, kwargs: args[2],
}
