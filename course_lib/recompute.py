"""Checkpointing written by hand, in the five stages of lesson 02; each stage needs the one before.

A *segment* is a function whose inner values are not kept: its inputs are (they are the
checkpoint), and the backward pass runs the function again to have the rest.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# --- 1. by hand, without a graph ----------------------------------------------------------------


def step_by_hand(body: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    """The gradients of ``head(body(x))``, as its ``backward()`` adds them to ``.grad``.

    ``head`` returns the loss, a scalar. ``body`` runs twice; the inner values of the two are
    never there at the same time. Returns the loss, without a graph.
    """
    with torch.no_grad():
        middle = body(x)  # the value, and no graph that would keep what is inside
    middle.requires_grad_()
    loss = head(middle)
    loss.backward()  # ends at middle, because nobody wrote down where it came from
    gradient = middle.grad
    del middle
    again = body(x)  # the same value once more, this time with a graph
    again.backward(gradient)
    return loss.detach()


# --- 2. the same as an autograd function ----------------------------------------------------------


class Rerun(torch.autograd.Function):
    """``Rerun.apply(function, *inputs)``: ``function(*inputs)``, run again in the backward pass.

    Inputs and outputs may be several. At least one input must require a gradient, else autograd
    never calls ``backward`` and the function's parameters get none.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *inputs: Any) -> Any:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)  # autograd switches grad mode off in here

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
        with torch.enable_grad():
            outputs = ctx.function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = zip(outputs, gradients, strict=True)
        differentiable, incoming = zip(*[(y, g) for y, g in pairs if y.requires_grad], strict=True)
        torch.autograd.backward(differentiable, incoming)  # adds to the parameters' .grad
        return None, *(x.grad for x in inputs)


# --- 3. the same random numbers -------------------------------------------------------------------


class Repeatable:
    """``function``, whose every later call meets what the first call met.

    That is the random state of the CPU and of the inputs' GPUs, and autocast. The random numbers
    that others draw afterwards are not disturbed.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.random_states: dict[torch.device, Tensor] | None = None

    def __call__(self, *inputs: Any) -> Any:
        if self.random_states is None:
            self._remember(inputs)
            return self.function(*inputs)
        with contextlib.ExitStack() as stack:
            gpus = [device for device in self.random_states if device.type == "cuda"]
            stack.enter_context(torch.random.fork_rng(gpus))
            for device, state in self.random_states.items():
                _set_random_state(device, state)
            for kind, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
            return self.function(*inputs)

    def _remember(self, inputs: Sequence[Any]) -> None:
        devices = {x.device for x in inputs if isinstance(x, Tensor)} | {torch.device("cpu")}
        devices = {device for device in devices if device.type in ("cpu", "cuda")}
        self.random_states = {device: _random_state(device) for device in devices}
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({device.type for device in devices})
        ]


RANDOM_STATE_BYTES = torch.get_rng_state().nbytes  # of the CPU's generator


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def rerun_alike(function: Callable[..., Any], *inputs: Any) -> Any:
    """``function(*inputs)``, run again in the backward pass with the same random numbers."""
    return Rerun.apply(Repeatable(function), *inputs)


# --- 4. a chain in k segments ---------------------------------------------------------------------


def chain(
    layers: Sequence[nn.Module],
    segments: int,
    x: Tensor,
    checkpoint: Callable[..., Any] = rerun_alike,
) -> Tensor:
    """``layers``, one after the other, in ``segments`` checkpointed segments, the last included.

    Lengths differ by at most one. Raises ``ValueError`` unless 1 ≤ ``segments`` ≤ number of layers.
    """
    if not 1 <= segments <= len(layers):
        raise ValueError(f"segments must be from 1 to {len(layers)}, not {segments}")
    cuts = [len(layers) * i // segments for i in range(segments + 1)]
    for begin, end in itertools.pairwise(cuts):
        x = checkpoint(nn.Sequential(*layers[begin:end]), x)
    return x


# --- 5. saved-tensor hooks, without an inner backward pass ----------------------------------------


class _Enough(Exception):
    """The last saved tensor is there again: the rest of the function is not needed."""


class _Segment:
    """One call of a function: autograd saves numbers in place of tensors."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Any]):
        self.function, self.inputs = Repeatable(function), inputs
        self.saved = 0  # how many tensors autograd wanted to keep
        self.recomputed: dict[int, Tensor] = {}

    def forward(self) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack):
            return self.function(*self.inputs)

    def pack(self, tensor: Tensor) -> int:
        self.saved += 1
        return self.saved - 1

    def unpack(self, number: int) -> Tensor:
        if number not in self.recomputed:
            self.recompute()
        return self.recomputed.pop(number)

    def recompute(self) -> None:
        numbers = itertools.count()

        def keep(tensor: Tensor) -> Tensor:
            number = next(numbers)
            self.recomputed[number] = tensor = tensor.detach()
            if number == self.saved - 1:
                raise _Enough
            return tensor

        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            contextlib.suppress(_Enough),
        ):
            self.function(*self.inputs)


def checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """``function(*inputs)`` whose saved tensors are made again when the backward pass asks.

    The graph is autograd's own, so gradients flow as they do without a checkpoint, whether or not
    an input requires one. The repetition ends as soon as the last saved tensor is there.
    """
    return _Segment(function, inputs).forward()
