"""A second look at a simulated step, with something about the model changed meanwhile.

Values of simulated tensors are nobody's, so such a step may run again; a real one never does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper

from .chunked_loss import CHUNKS, put_on, take_off
from .record import Record
from .watch import record_step


class State:
    """Which gradients and which state of optimizers there are: each look has to find the same.

    Holds no tensor but parameters.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Any]):
        self.optimizers = optimizers
        self.gradients = [(p, p.grad is not None) for p in model.parameters()]
        self.known = [set(optimizer.state) for optimizer in optimizers]

    def restore(self) -> None:
        for optimizer, known in zip(self.optimizers, self.known, strict=True):
            for parameter in set(optimizer.state) - known:
                del optimizer.state[parameter]
        for parameter, had in self.gradients:
            if had and parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            elif not had:
                parameter.grad = None


class Looks:
    """The step, to be run again. ``before``: the state that the first look found.

    ``trouble``: what went wrong in a look. Gradients and the optimizers' state are afterwards what
    they were before a look, however it ended.
    """

    def __init__(
        self, step: Callable[[], Any], model: nn.Module, optimizers: Sequence[Any], inputs: Any,
        watched: Mapping[str, nn.Module], before: State,
    ):  # fmt: skip
        self.step, self.model, self.optimizers = step, model, optimizers
        self.inputs, self.watched, self.before = inputs, watched, before
        self.trouble: Exception | None = None

    def again(
        self, change: contextlib.AbstractContextManager[Any],
        step: Callable[[], Any] | None = None,
    ) -> Record | None:  # fmt: skip
        """The record with ``change`` entered; None if the step cannot run like that.

        ``step``: what to run in its place.
        """
        after = State(self.model, self.optimizers)
        self.before.restore()
        try:
            with change:
                return record_step(
                    step or self.step,
                    self.model,
                    self.optimizers,
                    self.inputs,
                    self.watched,
                )
        except Exception as trouble:  # the step is the learner's: the advice goes on without it
            self.trouble = trouble
            return None
        finally:
            after.restore()


def switch_cache_off(model: nn.Module) -> list[Any]:
    """The configurations whose ``use_cache`` was on; it is off now."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    on = [config for config in configs if getattr(config, "use_cache", False) is True]
    for config in on:
        config.use_cache = False
    return on


# --- changes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_chunks(model: nn.Module, head: nn.Linear) -> Iterator[None]:
    """The loss of what this head says, in chunks."""
    put_on(head, CHUNKS)
    try:
        yield
    finally:
        take_off(model)


@contextlib.contextmanager
def in_training(model: nn.Module) -> Iterator[None]:
    """As after ``model.train()``."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def no_cache(model: nn.Module) -> Iterator[None]:
    """With ``use_cache`` off wherever a configuration has it on."""
    on = switch_cache_off(model)
    try:
        yield
    finally:
        for config in on:
            config.use_cache = True


@contextlib.contextmanager
def no_wrappers(model: nn.Module) -> Iterator[None]:
    """Without the checkpoints of PyTorch's ``checkpoint_wrapper``."""
    wrappers = [module for module in model.modules() if isinstance(module, ActivationWrapper)]
    try:
        for wrapper in wrappers:
            vars(wrapper)["forward"] = wrapper._checkpoint_wrapped_module
        yield
    finally:
        for wrapper in wrappers:
            vars(wrapper).pop("forward", None)
