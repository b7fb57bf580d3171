"""What each layer of a chain does with memory in a training step, watched once.

``chain_of(layers, x)`` runs one simulated step and writes a score, layer by layer: in which order
storage comes and goes, what autograd saves, when the backward pass reads and drops it. From the
score any placement of checkpoints can be played without running the model again (:mod:`plans`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..language import text
from ..memory.flops import warn_of_uncounted
from ..memory.log import END, Found, Operator, Remark
from ..memory.recorder import Recorder
from ..memory.roles import given, held
from ..memory.simulation import Simulation, resumed, simulated_copy
from ..memory.sources import SimulatedTensors
from ..memory.surroundings import collector_resting

STATIC = -1  # storage that exists before the step: parameters, buffers, the input

Kind = Literal["make", "drop", "bump", "save", "read", "used", "forget"]


class Note(NamedTuple):
    """One thing that happens in a layer's score.

    ``make`` and ``drop``: storage ``what`` of the forward pass comes, and loses its last holder
    other than autograd. ``bump``: memory rises by at most ``size`` bytes and ends ``change``
    bytes higher; nothing in it is saved. ``save``: autograd saves storage ``storage`` in slot
    ``what`` (``size``: FLOPs that the layer's forward has done by then). ``read``: a backward
    node asks for slot ``what``; ``used``: it has finished with it; ``forget``: the slot is emptied.
    """

    kind: Kind
    what: int = 0
    size: int = 0
    change: int = 0
    storage: int = STATIC


@dataclass(frozen=True)
class Layer:
    """What one layer costs. Sizes are bytes.

    ``kept``: what autograd keeps of it for backward if it is stored, its input included, each
    storage once. ``boundary``: its output. ``gradient``: gradients that its backward leaves
    behind. ``forward_transient``, ``backward_transient``: what its forward and its backward need
    for a while beyond what they found and what they leave behind. ``flops``, ``backward_flops``:
    exact operation counts.
    """

    name: str
    kept: int
    boundary: int
    gradient: int
    forward_transient: int
    backward_transient: int
    flops: int
    backward_flops: int
    forward: tuple[Note, ...] = field(repr=False)
    backward: tuple[Note, ...] = field(repr=False)
    output: int = field(repr=False)  # the storage of its output


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers, each of which reads only the output of the one before, and the loss after them.

    ``before``: bytes that exist when the step begins. ``layers``: the loss not among them.
    ``loss``: what follows the last layer. ``sizes``: bytes of each storage of the forward pass.
    """

    before: int
    layers: tuple[Layer, ...]
    loss: Layer = field(repr=False)
    sizes: dict[int, int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def flops(self) -> int:
        """Operations of one step without recomputation."""
        return sum(layer.flops + layer.backward_flops for layer in (*self.layers, self.loss))

    def input_of(self, layer: int) -> int:
        """The storage that a layer reads."""
        return self.layers[layer - 1].output if layer else STATIC


def chain_of(
    layers: Iterable[nn.Module], x: Tensor, loss: Callable[[Tensor], Tensor] = torch.sum
) -> Chain:
    """Watch one training step, ``loss(layer(…layer(x)))`` and its backward pass, simulated.

    ``layers``: modules, each called with the output of the one before. ``x``: the first one's
    input. ``loss``: from the last output to a scalar. Gradients that parameters already have are
    added to, as in a second step; without, they come into being. Real modules are copied as
    simulated ones and left untouched. Random state and operators' workspace are not counted, as
    under ``simulated()``.

    Raises ``ValueError`` for an empty chain, ``TypeError`` if a layer is no module or does not
    return one tensor. Warns of operators that multiply matrices and whose FLOPs cannot be counted.
    """
    modules = list(layers)
    _check_layers(modules)
    with contextlib.ExitStack() as stack:
        modules, x = _simulated_copy(modules, x, stack)
        existing = nn.ModuleList(modules)
        gradients = [(leaf, leaf.grad) for leaf in (*existing.parameters(), x) if leaf.is_leaf]
        try:
            watch = _Watch(modules, x)
            chain = watch.run(loss)
        finally:  # what was added to them has no values, so that nothing needs undoing
            for leaf, gradient in gradients:
                leaf.grad = gradient
    warn_of_uncounted(watch.recorder.recording.uncounted, stacklevel=2)
    return chain


def _check_layers(modules: Sequence[Any]) -> None:
    if not modules:
        raise ValueError(text(zh="链里一层也没有。", en="The chain has no layers."))
    for i, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise TypeError(
                text(
                    zh=f"第 {i} 层必须是 nn.Module，现在是 {type(module).__name__}。",
                    en=f"Layer {i} must be an nn.Module, not {type(module).__name__}.",
                )
            )


def _simulated_copy(
    modules: list[nn.Module], x: Tensor, stack: contextlib.ExitStack
) -> tuple[list[nn.Module], Tensor]:
    """The layers and the input as simulated tensors, and the simulation entered."""
    if isinstance(x, FakeTensor):
        if detect_fake_mode() is None:
            stack.enter_context(resumed(x.fake_mode))
        return modules, x
    stack.enter_context(resumed(Simulation(allow_non_fake_inputs=True)))
    copies, twin = simulated_copy(nn.ModuleList(modules), x)
    return list(copies), twin


# --- watching -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mark(Remark):
    """An entry of the recorder's log that only this module writes.

    ``kind``: ``layer`` (one has returned; ``address``: its output's), ``node`` (a backward
    operator runs; ``what``: its node's number), ``private`` and ``public`` (around what the
    watching itself allocates), or a kind of :class:`Note` about slot ``what``.
    """

    kind: Kind | Literal["layer", "node", "private", "public"]
    what: int = 0
    address: int = 0
    flops: int = 0


class _Packed:
    """Stands in autograd's graph for a saved tensor; when it goes, the slot is forgotten.

    The tensor itself is not held, so that storage is seen to lose its last other holder.
    """

    def __init__(self, watch: _Watch, slot: int, tensor: Tensor):
        self.watch, self.slot = watch, slot
        self.size, self.stride, self.dtype = tensor.shape, tensor.stride(), tensor.dtype

    def __del__(self) -> None:
        self.watch.mark("forget", self.slot)


class _NodeNumbers(TorchDispatchMode):
    """Marks which backward node each operator belongs to. Entered before, so called after."""

    def __init__(self, watch: _Watch):
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._current_graph_task_id() != -1:
            self.watch.mark_node()
        return func(*args, **(kwargs or {}))


class _Watch:
    """Runs the step once and turns the recorder's stream into scores."""

    def __init__(self, modules: list[nn.Module], x: Tensor):
        self.modules, self.x = modules, x
        self.model = nn.ModuleList(modules)
        self.recorder = Recorder(SimulatedTensors(), self.model)
        self.recorder.existed_before(held(self.model) + given(x))
        self.slots = 0
        self.had_gradient = {id(p) for p in self.model.parameters() if p.grad is not None}
        self.first_node: list[int] = []  # number that each layer's first autograd node got

    def mark(self, kind: Any, what: int = 0, address: int = 0) -> None:
        self.recorder.note(_Mark(kind, what, address, self.recorder.recording.flops))

    def mark_node(self) -> None:
        node = torch._C._current_autograd_node()
        if node is not None:
            self.mark("node", node._sequence_nr())

    def run(self, loss: Callable[[Tensor], Tensor]) -> Chain:
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        with collector_resting():
            with torch.enable_grad(), _NodeNumbers(self), self.recorder.listening(self.model):
                with hooks:
                    result = self._forward(loss)
                result.backward()
                del result
            return _Score(self).chain()

    def _forward(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        result = loss(self._through_layers(self.x))
        self.mark("layer")
        return result

    def _through_layers(self, x: Tensor) -> Tensor:
        for i, module in enumerate(self.modules):
            self.first_node.append(torch.autograd._get_sequence_nr())
            x = module(x)
            if not isinstance(x, Tensor):
                raise TypeError(
                    text(
                        zh=f"第 {i} 层要返回一个张量，返回的是 {type(x).__name__}。",
                        en=f"Layer {i} must return one tensor, not a {type(x).__name__}.",
                    )
                )
            self.mark("layer", i, self.recorder.source.address(x))
        self.first_node.append(torch.autograd._get_sequence_nr())
        return x

    def _pack(self, tensor: Tensor) -> _Packed:
        slot, self.slots = self.slots, self.slots + 1
        self.mark("save", slot, self.recorder.source.address(tensor))
        return _Packed(self, slot, tensor)

    def _unpack(self, packed: _Packed) -> Tensor:
        self.mark_node()
        self.mark("read", packed.slot)
        self.mark("private", packed.slot)
        stand_in = torch.empty_strided(packed.size, packed.stride, dtype=packed.dtype)
        self.mark("public")
        return stand_in


class _Score:
    """Sorts a stream of allocations and marks into scores, one per layer and direction."""

    def __init__(self, watch: _Watch):
        self.watch = watch
        count = len(watch.modules) + 1
        self.raw: list[list[list[Note]]] = [[[] for _ in range(count)] for _ in range(2)]
        self.flops = [[0] * count for _ in range(2)]
        self.outputs = [STATIC] * count
        self.sizes: dict[int, int] = {}
        self.before = sum(size for _, size in watch.recorder.recording.before.values())
        self._at, self._backward = 0, False
        self._alive: dict[int, int] = {}  # address -> storage
        self._private: dict[int, int] = {}  # address -> slot that it stands in for
        self._flops_done = 0
        self._replay()

    def _note(self, note: Note) -> None:
        self.raw[self._backward][self._at].append(note)

    def _make(self, address: int, size: int) -> None:
        storage = len(self.sizes)
        self.sizes[storage] = size
        self._alive[address] = storage
        self._note(Note("make", storage, size))

    def _drop(self, address: int) -> None:
        if address in self._private:
            self._note(Note("used", self._private.pop(address)))
        elif (storage := self._alive.pop(address, None)) is not None:
            self._note(Note("drop", storage, self.sizes[storage]))

    def _replay(self) -> None:
        log = self.watch.recorder.recording.entries
        private: int | None = None
        operator: Operator | None = None  # that is running
        for happening in self.watch.recorder.recording.stream:
            if happening.kind == "allocate":
                if private is not None:
                    self._private[happening.address] = private
                elif operator and operator.continues(happening.address, self._alive):
                    self._alive[happening.address] = self._alive.pop(operator.reads[0])
                else:
                    self._make(happening.address, happening.size)
            elif happening.kind == "free":
                self._drop(happening.address)
            else:
                entry = log[happening.address]
                if isinstance(entry, _Mark):
                    if entry.kind in ("private", "public"):
                        private = entry.what if entry.kind == "private" else None
                    else:
                        self._marked(entry)
                elif isinstance(entry, Operator):
                    operator = entry
                    if entry.phase == "backward" and not self._backward:
                        self._backward = True
                elif entry is END:
                    operator = None
                elif isinstance(entry, Found):
                    self.before += entry.size
        self.flops[self._backward][self._at] += (
            self.watch.recorder.recording.flops - self._flops_done
        )

    def _marked(self, mark: _Mark) -> None:
        if mark.kind == "layer":
            self._count_flops(mark)
            self.outputs[self._at] = self._alive.get(mark.address, STATIC)
            self._at = min(self._at + 1, len(self.outputs) - 1)
        elif mark.kind == "node":
            if mark.what < 2**62:  # else it adds up a parameter's gradient: part of the layer
                self._enter(mark.what, mark)
        elif mark.kind == "save":
            storage = self._alive.get(mark.address, STATIC)
            self._note(Note("save", mark.what, mark.flops - self._flops_done, storage=storage))
        elif mark.kind in ("read", "forget"):
            self._note(Note(mark.kind, mark.what))

    def _enter(self, node: int, mark: _Mark) -> None:
        """Backward nodes run in the reverse order of their numbers, so layer after layer."""
        while self._at and node < self.watch.first_node[self._at]:
            self._count_flops(mark)
            self._at -= 1

    def _count_flops(self, mark: _Mark) -> None:
        self.flops[self._backward][self._at] += mark.flops - self._flops_done
        self._flops_done = mark.flops

    def chain(self) -> Chain:
        named = set(self.outputs)  # storage that plans must be able to tell apart
        fleeting = set()
        for notes in self.raw[0]:
            here = {note.what for note in notes if note.kind == "make"}
            fleeting |= {note.what for note in notes if note.kind == "drop" and note.what in here}
            named |= {note.storage for note in notes if note.kind == "save"}
        made_forward = {n.what for notes in self.raw[0] for n in notes if n.kind == "make"}
        loose = (fleeting - named) | (self.sizes.keys() - made_forward)
        forward = [_condensed(notes, loose) for notes in self.raw[0]]
        backward = [_condensed(notes, loose) for notes in self.raw[1]]
        layers = [self._layer(i, forward[i], backward[i]) for i in range(len(self.outputs))]
        sizes = {storage: self.sizes[storage] for storage in self.sizes if storage not in loose}
        return Chain(self.before, tuple(layers[:-1]), layers[-1], sizes)

    def _layer(self, i: int, forward: tuple[Note, ...], backward: tuple[Note, ...]) -> Layer:
        modules = self.watch.modules
        name = type(modules[i]).__name__ if i < len(modules) else "loss"
        new = [
            p.grad
            for p in (modules[i].parameters() if i < len(modules) else ())
            if p.grad is not None and id(p) not in self.watch.had_gradient
        ]
        saved = {note.storage for note in forward if note.kind == "save"} - {STATIC}
        rise, end = _rise(self.raw[0][i])
        rise_back, end_back = _rise(self.raw[1][i])
        return Layer(
            name,
            kept=sum(self.sizes[storage] for storage in saved),
            boundary=self.sizes.get(self.outputs[i], 0),
            gradient=sum(gradient.untyped_storage().nbytes() for gradient in new),
            forward_transient=rise - max(end, 0),
            backward_transient=rise_back - max(end_back, 0),
            flops=self.flops[0][i],
            backward_flops=self.flops[1][i],
            forward=forward,
            backward=backward,
            output=self.outputs[i],
        )


def _condensed(notes: Iterable[Note], loose: set[int]) -> tuple[Note, ...]:
    """The score with everything that no plan can change folded into ``bump`` notes."""
    short: list[Note] = []
    level = highest = 0
    for note in notes:
        if note.kind in ("make", "drop") and note.what in loose:
            level += note.size if note.kind == "make" else -note.size
            highest = max(highest, level)
            continue
        if level or highest:
            short.append(Note("bump", size=highest, change=level))
            level = highest = 0
        short.append(note)
    if level or highest:
        short.append(Note("bump", size=highest, change=level))
    return tuple(short)


def _rise(notes: Iterable[Note]) -> tuple[int, int]:
    """The highest level and the last one, of what comes and goes by itself."""
    level = highest = 0
    for note in notes:
        if note.kind in ("make", "drop"):
            level += note.size if note.kind == "make" else -note.size
            highest = max(highest, level)
    return highest, level
