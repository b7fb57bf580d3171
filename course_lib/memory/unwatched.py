"""What autograd does while nobody watches, where a dispatch mode makes it do something else.

While any dispatch mode is active, PyTorch's autograd takes a few other ways, since it cannot know
what the mode would make of an operator that changes a tensor in place or looks at its values
(``at::areAnyTensorSubclassLike``). A step that is measured would then need other bytes than the
bare step. This module knows these places, and how to have the bare step's bytes after all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)

_run_backward = torch.autograd.graph._engine_run_backward
ENGINE = _run_backward.__code__  # its frame is what calls an operator for the engine
ACCUMULATES = 2**62  # the numbers of nodes that add up a parameter's gradient are above
CLONE = torch.ops.aten.clone.default

# --- gradients that autograd computes in another way ---------------------------------------------

# Its nodes for them (torch/csrc/autograd/FunctionsManual.cpp) -> the operator, as users call it.
OTHERWISE = {
    "AminmaxBackward0": "aminmax",
    "Atan2Backward0": "atan2",
    "BinaryCrossEntropyBackward0": "binary_cross_entropy",
    "BinaryCrossEntropyWithLogitsBackward0": "binary_cross_entropy_with_logits",
    "ClampBackward0": "clamp (by tensors)",
    "CumprodBackward0": "cumprod",
    "LinalgEighBackward0": "linalg.eigh",
    "LinalgHouseholderProductBackward0": "linalg.householder_product",
    "LinalgMatrixExpBackward0": "linalg.matrix_exp",
    "MaskedFillBackward1": "masked_fill (by a tensor)",
    "MaxBackward1": "max (of all elements)",
    "MedianBackward0": "median (of all elements)",
    "MinBackward1": "min (of all elements)",
    "NanmedianBackward0": "nanmedian (of all elements)",
    "OrmqrBackward0": "ormqr",
    "ProdBackward0": "prod",
    "ProdBackward1": "prod",
    "TraceBackward0": "trace",
}
WEIGHTED_SMOOTHING = "cross_entropy (with weights and label smoothing)"
MULTIPLY = {  # matrices, inside of them
    "LinalgEighBackward0",
    "LinalgHouseholderProductBackward0",
    "LinalgMatrixExpBackward0",
    "OrmqrBackward0",
}
SPARSE = "sparse gradients"  # of a parameter: autograd keeps them as they are, or clones them


class LeftAlone:
    """Has the engine compute the gradients in ``OTHERWISE`` while ``mode`` is not there.

    ``begins(node)`` and ``ends(gradients)`` are called around each of them. Those that cannot be
    left alone, as simulated tensors cannot, or because the value of a saved tensor has to be made
    again for them, are noted in ``met`` by their operators' names.
    """

    def __init__(
        self,
        mode: TorchDispatchMode,
        begins: Callable[[Any], None],
        ends: Callable[[Sequence[Tensor | None]], None],
        simulated: bool,
    ):
        self.mode, self.begins, self.ends, self.simulated = mode, begins, ends, simulated
        self.met: set[str] = set()
        self._stack: list[TorchDispatchMode] | None = None  # while the mode is away
        self._hooks: list[Any] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """See to every backward pass of the body; afterwards no hook is left."""

        def with_care(outputs: Sequence[Tensor], *about: Any, **more: Any) -> Any:
            self._prepare(outputs)
            try:
                return _run_backward(outputs, *about, **more)
            finally:
                self._come_back()  # where a formula raised

        places = (torch.autograd, torch.autograd.graph)
        for place in places:
            place._engine_run_backward = with_care  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for place in places:
                place._engine_run_backward = _run_backward  # type: ignore[attr-defined]
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()

    def _prepare(self, outputs: Sequence[Tensor]) -> None:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return  # inside torch.func, the bare step goes the other way, too
        for node in _nodes_of(outputs):
            name = OTHERWISE.get(type(node).__name__)
            if name is None:
                continue
            if self.simulated or _is_made_again(node):
                self.met.add(name)
            else:
                self._hooks.append(node.register_prehook(self._go))
                self._hooks.append(node.register_hook(self._done))

    def _go(self, gradients: Any) -> None:
        node = torch._C._current_autograd_node()
        if self._stack is None and node is not None:
            self.begins(node)
            self._stack = _get_current_dispatch_mode_stack()
            _put(self._stack, [mode for mode in self._stack if mode is not self.mode])

    def _done(self, gradients: Sequence[Tensor | None], given: Any) -> None:
        if self._stack is not None:
            self._come_back()
            self.ends(gradients)

    def _come_back(self) -> None:
        if self._stack is not None:
            stack, self._stack = self._stack, None
            _put(_get_current_dispatch_mode_stack(), stack)


@contextlib.contextmanager
def functions_as_unwatched(met: set[str]) -> Iterator[None]:
    """Undo, in the forward pass, what ``LeftAlone`` undoes in the backward pass.

    ``ctc_loss`` reads its lengths into a list, unless anything watches: then it computes with the
    tensors (aten/src/ATen/native/LossCTC.cpp). ``cross_entropy`` with weights and label smoothing
    selects the weights that count, or masks the others (.../LossNLL.cpp), which ``met`` tells.
    """
    ctc_loss, cross_entropy = torch.ctc_loss, torch._C._nn.cross_entropy_loss

    def ctc_loss_of_lists(scores: Any, targets: Any, *others: Any, **more: Any) -> Any:
        more = {k: as_list(v) if k.endswith("_lengths") else v for k, v in more.items()}
        return ctc_loss(scores, targets, *map(as_list, others[:2]), *others[2:], **more)

    def noted_cross_entropy(
        x: Any,
        target: Any,
        weight: Any = None,
        reduction: Any = 1,
        ignore_index: Any = -100,
        label_smoothing: float = 0.0,
    ) -> Any:
        if weight is not None and label_smoothing:
            met.add(WEIGHTED_SMOOTHING)
        return cross_entropy(x, target, weight, reduction, ignore_index, label_smoothing)

    places: Any = torch, torch._C._nn
    places[0].ctc_loss, places[1].cross_entropy_loss = ctc_loss_of_lists, noted_cross_entropy
    try:
        yield
    finally:
        places[0].ctc_loss, places[1].cross_entropy_loss = ctc_loss, cross_entropy


def as_list(lengths: Any) -> Any:
    """The lengths that ``ctc_loss`` is given, as it reads them when nobody watches."""
    on_cpu = type(lengths) is Tensor and lengths.device.type == "cpu"
    return lengths.tolist() if on_cpu else lengths


def saved_by(node: Any) -> list[Tensor]:
    """The tensors that a node has saved; those that hooks hold in another form are left out."""
    return [saved.data for saved in _raw_saved(node) if isinstance(saved.data, Tensor)]


def _is_made_again(node: Any) -> bool:
    """Whether hooks hold what the node has saved, as a checkpoint's do: Python code runs then."""
    return any(saved.unpack_hook is not None for saved in _raw_saved(node))


def _raw_saved(node: Any) -> Iterator[Any]:
    """What a node holds of its saved tensors; nothing is unpacked."""
    for name in dir(node):
        if name.startswith("_raw_saved_"):
            saved = getattr(node, name)
            yield from saved if isinstance(saved, (list, tuple)) else [saved]


def _nodes_of(outputs: Sequence[Tensor]) -> list[Any]:
    """All nodes of the graph behind some tensors."""
    found = dict.fromkeys(t.grad_fn for t in outputs if t.grad_fn is not None)
    waiting = list(found)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in found:
                found[node] = None
                waiting.append(node)
    return list(found)


def _put(there: list[TorchDispatchMode], wanted: list[TorchDispatchMode]) -> None:
    """Exchange the stack of dispatch modes."""
    for _ in there:
        _pop_mode()
    for mode in wanted:
        _push_mode(mode)
