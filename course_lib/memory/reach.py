"""What a call reaches: the leaves of its arguments and results, and what its function holds on to.

Containers are PyTorch's own (tuples, lists, dicts), any other mapping, such as a tokenizer's
output, and dataclasses, such as a model's.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

GENERATORS = (torch.Generator, random.Random, numpy.random.Generator, numpy.random.RandomState)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in ``value`` that is no container, with its path: ``0.loss``, ``mask``."""
    parts = _parts(value)
    if parts is None:
        yield path, value
        return
    for name, part in parts:
        yield from leaves(part, f"{path}.{name}" if path else str(name))


def tensors(value: Any) -> list[Tensor]:
    """The tensors in ``value``, in order."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def copied(value: Any, copy_of: Callable[[Any], Any]) -> Any:
    """``value`` with ``copy_of(leaf)`` for each leaf; what occurs twice is copied once."""
    made: dict[int, Any] = {}

    def again(value: Any) -> Any:
        if id(value) not in made:
            made[id(value)] = (
                _rebuilt(value, again) if _parts(value) is not None else copy_of(value)
            )
        return made[id(value)]

    return again(value)


def _parts(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, nn.Module, Tensor)):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name, None)) for name in names]
    return None


def _rebuilt(value: Any, again: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple):
        parts = [again(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if type(value) is list:
        return [again(part) for part in value]
    new = copy.copy(value)
    for name, part in _parts(value) or ():
        if isinstance(value, (Mapping, list)):
            new[name] = again(part)
        else:
            object.__setattr__(new, name, again(part))  # also where the dataclass is frozen
    return new


def nodes_behind(ends: Iterable[Any]) -> Iterator[Any]:
    """Every node of the graphs that lead to ``ends``."""
    seen: set[Any] = set()
    waiting = [node for node in ends if node is not None]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [parent for parent, _ in node.next_functions if parent is not None]


# --- behind a function --------------------------------------------------------------------------


def behind(function: Any) -> dict[str, Any]:
    """Modules, tensors and random generators that a function holds on to, by their names there.

    Looked into are a method's object, a partial's arguments, closures, defaults, globals that the
    code names, and functions found there; an object's own attributes, if it is none of these.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def look(name: str, value: Any, deeper: bool = True) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, (nn.Module, Tensor, *GENERATORS)):
            found.setdefault(name, value)
        elif isinstance(value, functools.partial):
            for i, part in enumerate((value.func, *value.args)):
                look(f"{name}.{i}" if name else str(i), part)
            for key, part in value.keywords.items():
                look(key, part)
        elif isinstance(value, types.MethodType):
            look(name, value.__self__)
            look(name, value.__func__)
        elif isinstance(value, types.FunctionType):
            if not value.__module__ or value.__module__.split(".")[0] not in (
                "torch",
                "course_lib",
            ):
                for key, part in _held(value):
                    look(key, part)
        elif (parts := _parts(value)) is not None:
            for key, part in parts[:1000]:
                look(f"{name}.{key}" if name else str(key), part, deeper)
        elif deeper and not isinstance(value, (type, types.ModuleType)):
            for key, part in list(getattr(value, "__dict__", {}).items())[:100]:
                look(f"{name}.{key}" if name else key, part, deeper=False)

    look("", function)
    return found


def _held(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from (function.__kwdefaults__ or {}).items()
    defaults = function.__defaults__ or ()
    arguments = code.co_varnames[: code.co_argcount]
    yield from zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True)
    for name in _named(code):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _named(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):  # a lambda or a comprehension inside
            yield from _named(constant)


def names_of_modules(function: Any) -> dict[int, str]:
    """``id(module)`` → its path, for every module that a function holds on to.

    The path begins at the outermost module; where there are several, at the name each has there.
    """
    if isinstance(function, nn.Module):
        return {id(module): name for name, module in function.named_modules()}
    modules = {n: m for n, m in behind(function).items() if isinstance(m, nn.Module)}
    inside = {id(m) for root in modules.values() for m in root.modules() if m is not root}
    roots = {name: module for name, module in modules.items() if id(module) not in inside}
    names: dict[int, str] = {}
    for root_name, root in roots.items():
        for name, module in root.named_modules():
            path = [root_name, name] if len(roots) > 1 else [name]
            names.setdefault(id(module), ".".join(part for part in path if part))
    return names
