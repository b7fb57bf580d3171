"""What each byte is for: the one place where that is decided.

A block of memory has one role, from its first moment to its last. It shows in who holds the block,
or else in the life that it led: what made it, and what read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from .log import Operator
from .ranks import comes_from_ranks
from .trace import MemoryBlock, Phase, Role

Holding = tuple[Tensor, Role]

# --- by who holds it ----------------------------------------------------------------------------


def held(model: nn.Module | None, optimizers: Sequence[Optimizer] = ()) -> list[Holding]:
    """Every tensor that a model and its optimizers hold, with its role."""
    parameters: list[Tensor] = list(model.parameters()) if model is not None else []
    for optimizer in optimizers:
        parameters += parameters_of(optimizer)
    found: list[Holding] = [(p, Role.PARAMETER) for p in parameters]
    found += [(p.grad, Role.GRADIENT) for p in parameters if p.grad is not None]
    if model is not None:
        found += [(b, Role.BUFFER) for b in model.buffers()]
        found += [(t, Role.BUFFER) for module in model.modules() for t in _attributes_of(module)]
    return found + [(s, Role.OPTIMIZER_STATE) for one in optimizers for s in state_of(one)]


def held_by_optimizer(optimizer: Optimizer) -> list[Holding]:
    """What an optimizer works on: the same, found at each of its steps."""
    return [
        *((p, Role.PARAMETER) for p in parameters_of(optimizer)),
        *((s, Role.OPTIMIZER_STATE) for s in state_of(optimizer)),
        *((p.grad, Role.GRADIENT) for p in parameters_of(optimizer) if p.grad is not None),
    ]


def given(inputs: Any) -> list[Holding]:
    """The tensors among a step's inputs, and gradients that they already have."""
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    gradients = [(t.grad, Role.GRADIENT) for t in leaves if t.is_leaf and t.grad is not None]
    return [*((t, Role.INPUT) for t in leaves), *gradients]


def of_unmentioned(tensor: Tensor) -> Role:
    """The role of what a step reads without having made it, and which nobody named."""
    is_leaf = isinstance(tensor, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad)
    return Role.PARAMETER if is_leaf else Role.INPUT


def of_saved(saver: str) -> Role:
    """The role of what this operator, or ``checkpoint``, has autograd keep."""
    return Role.CHECKPOINT if saver == "checkpoint" else Role.ACTIVATION


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters in all of an optimizer's groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def state_of(optimizer: Optimizer) -> list[Tensor]:
    """The tensors in an optimizer's state, Adam's moments for example."""
    return [s for s in tree_leaves(list(optimizer.state.values())) if isinstance(s, Tensor)]


def _attributes_of(module: nn.Module) -> list[Tensor]:
    """The tensors that a module holds as plain attributes, as some do with a state."""
    values = [v for name, v in vars(module).items() if name not in _KEPT_BY_MODULES]
    values = [v for v in values if isinstance(v, (Tensor, list, tuple, dict))]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


_KEPT_BY_MODULES = frozenset(vars(nn.Module()))  # parameters, buffers, modules, hooks

# --- by the life that it led --------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Lifetime:
    """A block of memory while its role is being found out."""

    size: int
    known: Role | None = None  # by who holds it
    maker: Operator | None = None
    phase: Phase = "forward"  # it was born in
    is_tensor: bool = False
    read_by_backward: bool = False
    read_by_recomputation: bool = False
    across_ranks: Role | None = None  # by :func:`ranks.across_ranks`

    @property
    def role(self) -> Role:
        """The role that this life shows."""
        if self.known is not None:
            return self.known
        if self.across_ranks is Role.GATHERED:
            return Role.GATHERED
        if not self.is_tensor:
            made_outside = self.maker is None and self.size == _RANDOM_STATE_BYTES
            return Role.RANDOM_STATE if made_outside else Role.WORKSPACE
        sent = self.across_ranks is not None
        if self.maker is not None and self.maker.recomputing:
            return Role.COMMUNICATION if sent and not self.read_by_backward else Role.RECOMPUTED
        if self.phase == "forward" and self.read_by_recomputation:
            return Role.CHECKPOINT
        if self.phase == "forward" and self.read_by_backward:
            return Role.ACTIVATION
        return Role.COMMUNICATION if sent or comes_from_ranks(self.maker) else Role.TEMPORARY

    def block(self) -> MemoryBlock:
        """What a trace says of it."""
        if self.maker is None:
            return MemoryBlock(self.size, self.role)
        place = self.maker.place
        return MemoryBlock(self.size, self.role, self.maker.name, place.module, place.describe())


_RANDOM_STATE_BYTES = torch.get_rng_state().nbytes
