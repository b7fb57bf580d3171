"""Run one side from the common start, and read off what it leaves behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import random
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ..language import text
from ..memory.reach import GENERATORS, copied, leaves, nodes_behind, tensors
from .randomness import generators_of, random_states, set_state, state_of
from .sides import Side, all_cloned, gathered, load_values


@dataclass
class Start:
    """What both sides begin with. ``values``: parameters and buffers, by name."""

    values: dict[str, Tensor]
    flags: dict[str, bool]
    generators: dict[str, Any]
    inputs: tuple[tuple, dict[str, Any]]
    seed: int

    def __post_init__(self) -> None:
        self.generators = {name: state_of(one) for name, one in self.generators.items()}

    @property
    def has_inputs(self) -> bool:
        return any(self.inputs)


@dataclass
class Run:
    """What one side left behind."""

    error: Exception | None
    outputs: list[tuple[str, Tensor]]
    gradients: list[tuple[str, Tensor | None]]
    parameters: list[tuple[str, Tensor]]
    buffers: list[tuple[str, Tensor]]
    inputs: list[tuple[str, Tensor]]
    random_states: list[tuple[str, Any]]
    graph: list[Any]
    leaves: list[Tensor]


def run_side(function: Callable[..., Any], side: Side, start: Start) -> Run:
    load_values(side, start.values)
    for name, module in side.modules():
        module.training = start.flags.get(name, module.training)
    for parameter in side.model.parameters():
        parameter.grad = None
    torch.manual_seed(start.seed)
    random.seed(start.seed)
    numpy.random.seed(start.seed)
    generators = generators_of(side.model, function)
    for name, generator in generators.items():
        if name in start.generators:
            set_state(generator, start.generators[name])
    own, own_keywords = copied(start.inputs, _copy)
    generators |= {
        name: leaf for name, leaf in leaves((own, own_keywords)) if isinstance(leaf, GENERATORS)
    }
    named = _named_inputs(own, own_keywords, {name for name, _ in side.parameters()})
    given = [*named, *side.parameters()]
    trainable = [(name, leaf) for name, leaf in given if leaf.requires_grad]
    outputs: list[tuple[str, Tensor]] = []
    error = None
    try:
        result = function(*own, **own_keywords)
        outputs = [
            (name or "0", _as_tensor(leaf)) for name, leaf in leaves(result) if _is_numeric(leaf)
        ]
        if start.has_inputs:
            _backward([output for _, output in outputs])
    except Exception as raised:
        error = raised.with_traceback(None)  # a traceback would keep the graph alive
    return Run(
        error=error,
        outputs=all_cloned(outputs),
        gradients=[
            (name, None if leaf.grad is None else gathered(leaf.grad).detach().clone())
            for name, leaf in trainable
        ],
        parameters=all_cloned(side.parameters()),
        buffers=all_cloned(side.buffers()),
        inputs=all_cloned(named),
        random_states=random_states() + [(n, state_of(one)) for n, one in generators.items()],
        graph=[output.grad_fn for _, output in outputs if output.grad_fn is not None],
        leaves=[leaf for _, leaf in given],
    )


def _backward(outputs: list[Tensor]) -> None:
    """Backward with fixed random weights: a plain sum would hide errors that cancel."""
    ends = [output for output in outputs if output.requires_grad]
    if not ends:
        return  # the gradients stay None, and that is compared
    weights = []
    for number, output in enumerate(ends):
        generator = torch.Generator().manual_seed(number)
        weights.append(torch.randn(output.shape, generator=generator).to(output))
    torch.autograd.backward(ends, weights)


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, GENERATORS):
        return copy.deepcopy(value)
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _named_inputs(
    inputs: tuple, keywords: dict[str, Any], taken: Collection[str] = ()
) -> list[tuple[str, Tensor]]:
    """``x``, ``x1`` … by position, and the keywords; a tensor given twice counts once.

    ``taken``: names of parameters, which no input shares.
    """
    by_position = [("x" if i == 0 else f"x{i}", t) for i, t in enumerate(tensors(inputs))]
    by_name = [(name, leaf) for name, leaf in leaves(keywords) if isinstance(leaf, Tensor)]
    found: dict[int, tuple[str, Tensor]] = {}
    names = set(taken)
    for name, tensor in (*by_position, *by_name):
        if id(tensor) not in found:
            own = name
            while own in names:
                own += "′"
            names.add(own)
            found[id(tensor)] = own, tensor
    return list(found.values())


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (Tensor, int, float, complex))


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(
        value, dtype=torch.complex128 if isinstance(value, complex) else torch.float64
    )


@contextlib.contextmanager
def module_restored(model: nn.Module) -> Iterator[None]:
    """Give the model its values, gradients, flags and the buffers themselves back."""
    values = [(v, v.detach().clone()) for v in (*model.parameters(), *model.buffers())]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    modules = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, gradient, trainable in parameters:
            parameter.grad = gradient
            parameter.requires_grad_(trainable)
        for module, training, buffers in modules:
            module.training = training
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for mine, value in values:
                mine.copy_(value)


def check_all_compared(run: Run, model: nn.Module, only_parameters: bool) -> None:
    """A gradient that went uncompared could differ unseen: rather ask for the tensor.

    ``only_parameters``: a whole step has no inputs, so that its own data may require gradients.
    Tensors that plain made for itself, such as those whose gradient it takes inside, are gone as
    soon as its graph is: nobody could read their gradients.
    """
    missed = _missed(run)
    run.graph.clear()
    if any(leaf() is not None for leaf, _, _ in missed):
        gc.collect()
    missed = [one for one in missed if one[0]() is not None]
    any_parameters = any(True for _ in model.parameters())
    if not any_parameters and any(is_parameter for _, is_parameter, _ in missed):
        raise TypeError(
            text(
                zh="plain 用到了参数，但不知道是哪个模型的：请写 model=…，"
                "这样参数的梯度和缓冲区才会被比较。",
                en="plain uses parameters, but of which model? Pass model=…, so that their "
                "gradients and the buffers are compared.",
            )
        )
    for _, is_parameter, shape in missed:
        if is_parameter or not only_parameters:
            raise TypeError(
                text(
                    zh=f"plain 用到一个需要梯度的张量（形状 {shape}），它既不是输入，"
                    "也不在 model 里：它的梯度没有人比较。请把它也传进来；"
                    "传不进来的话，写成完整的一步来比："
                    "same_gradients(lambda: loss(plain(x)).backward(), lambda: "
                    "loss(checkpointed(x)).backward(), model=model)。",
                    en=f"plain uses a tensor of shape {shape} that requires a gradient "
                    "and is neither an input nor in model: its gradient would go uncompared. Pass "
                    "it, too; where it cannot be passed, compare whole steps: "
                    "same_gradients(lambda: loss(plain(x)).backward(), lambda: "
                    "loss(checkpointed(x)).backward(), model=model).",
                )
            )


def _missed(run: Run) -> list[tuple[weakref.ref, bool, list[int]]]:
    """Leaves of the graph that nobody compares: held weakly, is it a parameter, its shape."""
    compared = {id(leaf) for leaf in run.leaves}
    found = []
    for node in nodes_behind(run.graph):
        leaf: Any = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in compared:
            found.append((weakref.ref(leaf), isinstance(leaf, nn.Parameter), list(leaf.shape)))
    return found
