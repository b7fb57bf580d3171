"""Random states: torch's, Python's, NumPy's, and those of generators that a side holds."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import nn

from ..memory.reach import GENERATORS, behind
from .sides import Side


def generators_of(model: nn.Module, function: Any) -> dict[str, Any]:
    """The generators of random numbers that a side holds on to itself, by name."""
    found = {
        f"{path}.{name}" if path else name: held
        for path, module in model.named_modules()
        for name, held in vars(module).items()
        if isinstance(held, GENERATORS)
    }
    known = {id(generator) for generator in found.values()}
    for name, held in behind(function).items():
        if isinstance(held, GENERATORS) and id(held) not in known:
            found.setdefault(name, held)
    return found


def state_of(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, numpy.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.get_state()


def set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, numpy.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


@contextlib.contextmanager
def generators_restored(left: Side, right: Side, *functions: Any) -> Iterator[None]:
    before = [
        (generator, state_of(generator))
        for side, function in zip((left, right), functions, strict=True)
        for generator in generators_of(side.model, function).values()
    ]
    try:
        yield
    finally:
        for generator, state in before:
            set_state(generator, state)


def random_states() -> list[tuple[str, Any]]:
    states: list[tuple[str, Any]] = [("torch", torch.get_rng_state())]
    if torch.cuda.is_available():
        states += [(f"cuda:{i}", state) for i, state in enumerate(torch.cuda.get_rng_state_all())]
    numbers: Any = numpy.random.get_state()
    return [*states, ("random", random.getstate()), ("numpy", (*numbers[1], *numbers[2:]))]


@contextlib.contextmanager
def random_states_restored() -> Iterator[None]:
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)
