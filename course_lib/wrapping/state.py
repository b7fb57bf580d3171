"""State that a block's forward changes: found by running the block, or read in its source.

A checkpoint runs forward twice, so whatever forward counts, averages or iterates moves twice, and
where the result depends on it, the recomputation is of something else: gradients are wrong.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import inspect
import random
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

MOST_BYTES = 64 * 2**20  # a copy of a block to try may take so much


@dataclass(frozen=True)
class Slot:
    """Where a piece of state is held: ``holder[key]``, known in the block as ``name``."""

    name: str
    holder: Any
    key: Any

    @property
    def value(self) -> Any:
        """What is there now."""
        return self.holder[self.key]


@dataclass(frozen=True)
class Tried:
    """What a trial showed. ``twice``: names of what moves in forward and again when recomputed.

    ``wrong``: gradients depend on it, or the recomputation differs for another reason.
    """

    twice: tuple[str, ...]
    wrong: bool


def slots(block: nn.Module) -> list[Slot]:
    """Buffers, parameters, and tensors and numbers in attributes, one list or dict deep.

    Left out: what has no values yet, and the statistics of PyTorch's own normalizations, of which
    it is known that they move and that no gradient in training depends on them.
    """
    found: list[Slot] = []
    for path, module in block.named_modules():
        dot = path and path + "."
        if not isinstance(module, _NormBase):
            found += [Slot(dot + key, module._buffers, key) for key in module._buffers]
        found += [Slot(dot + key, module._parameters, key) for key in module._parameters]
        for key, value in vars(module).items():
            if key in _OF_EVERY_MODULE:
                continue
            found.append(Slot(dot + key, vars(module), key))
            if isinstance(value, (list, dict)):
                keys = list(value) if isinstance(value, dict) else range(len(value))
                found += [Slot(f"{dot}{key}[{inner!r}]", value, inner) for inner in keys]
    return [slot for slot in found if _is_state(slot.value)]


_OF_EVERY_MODULE = set(vars(nn.Module()))


def _is_state(value: Any) -> bool:
    if isinstance(value, Tensor):
        made_of_others = value.requires_grad and not value.is_leaf
        return not (is_lazy(value) or made_of_others)
    return isinstance(value, (bool, int, float))


class Snapshot:
    """A block's state as it was, to tell later what has moved. Large tensors are not copied."""

    def __init__(self, block: nn.Module):
        self._were = {slot.name: _print(slot.value) for slot in slots(block)}

    def moved(self, block: nn.Module) -> list[str]:
        """Names of what holds other values now; what was not there before is not among them."""
        now = {slot.name: slot.value for slot in slots(block)}
        return [
            name
            for name, then in self._were.items()
            if name in now and not _same(_print(now[name]), then)
        ]


def _print(value: Any) -> Any:
    """A copy, or of a large tensor what changes with its values."""
    if not isinstance(value, Tensor):
        return value
    known = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided
    if not known or value.is_meta:
        return value._version
    few = value.nbytes <= (2**16 if isinstance(value, nn.Parameter) else 2**24)
    if few or value.is_complex():
        return value.detach().clone()
    # In-place operators on .data leave the version as it was.
    return torch.hash_tensor(value.detach()).view(torch.int64).item()


# --- by running it ------------------------------------------------------------------------------


def tried(
    block: nn.Module,
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    parameters: Collection[str] = (),
) -> Tried:
    """Run ``forward`` and its gradients without and with a checkpoint, from the same state.

    ``forward``: the block's, plain. ``parameters``: names of those that it changes, too.
    Everything it changes in ``block`` is put back, and random states too. Raises what ``forward``
    raises.
    """
    with _put_back(block, parameters), _of_nobody(), torch.enable_grad():
        before = _values(block, parameters)
        plain = _gradients(block, forward, args, kwargs, checkpointed=False)
        moved = _values(block, parameters)
        _restore(block, before)
        again = _gradients(block, forward, args, kwargs, checkpointed=False)
        _restore(block, before)
        recomputed = _gradients(block, forward, args, kwargs, checkpointed=True)
        after = _values(block, parameters)
        twice = tuple(
            name for name in after if name in moved and not _same(after[name], moved[name])
        )
        if not _all_same(plain, again):  # not even without a checkpoint: nothing to compare
            return Tried(twice, False)
        wrong = not _all_same(plain, recomputed)
        if twice and not wrong:
            _restore(block, _a_thousand_times(before, moved, twice))
            with contextlib.suppress(Exception):  # a counter beyond its table, say
                later = _gradients(block, forward, args, kwargs, checkpointed=False)
                wrong = not _all_same(plain, later)
        return Tried(twice, wrong)


def _gradients(
    block: nn.Module, forward: Callable, args: Sequence, kwargs: dict, checkpointed: bool
) -> list[Tensor | None]:
    """Of what comes out, weighted at random, with respect to inputs and parameters."""
    with _seeded():
        args, kwargs = tree_map(_a_leaf, (tuple(args), dict(kwargs)))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if _needs_gradient(leaf)]
        given += [parameter for parameter in block.parameters() if _needs_gradient(parameter)]

        def run(*values: Any) -> Any:
            return forward(*values, **kwargs)

        out = checkpoint(run, *args, use_reentrant=False) if checkpointed else run(*args)
        outputs = [leaf for leaf in tree_leaves(out) if _needs_gradient(leaf)]
        if not (given and outputs):
            return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        weights = [torch.randn_like(output) for output in outputs]
        gradients = torch.autograd.grad(outputs, given, weights, allow_unused=True)
        return [*(output.detach() for output in outputs), *gradients]


def _a_leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _needs_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _of(block: nn.Module, parameters: Collection[str]) -> list[Slot]:
    return [
        slot
        for slot in slots(block)
        if not isinstance(slot.value, nn.Parameter) or slot.name in parameters
    ]


def _values(block: nn.Module, parameters: Collection[str]) -> dict[str, Any]:
    return {
        slot.name: slot.value.detach().clone() if isinstance(slot.value, Tensor) else slot.value
        for slot in _of(block, parameters)
    }


def _restore(block: nn.Module, values: dict[str, Any]) -> None:
    for slot in slots(block):
        if slot.name not in values:
            continue
        now, then = slot.value, values[slot.name]
        if not isinstance(now, Tensor):
            slot.holder[slot.key] = then
        elif isinstance(then, Tensor) and now.shape == then.shape:
            with torch.no_grad():
                now.copy_(then)
        else:
            slot.holder[slot.key] = then.clone() if isinstance(then, Tensor) else then


def _a_thousand_times(before: dict, moved: dict, names: Sequence[str]) -> dict[str, Any]:
    """The state as if it had gone on in this direction, so that what depends on it shows."""
    further = dict(before)
    for name in names:
        one, two = before.get(name), moved[name]
        if isinstance(two, bool) or one is None:
            continue
        if isinstance(two, Tensor) and (two.dtype == torch.bool or one.shape != two.shape):
            continue
        further[name] = one + 1000 * (two - one)
    return further


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return one is other or bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _all_same(one: list[Tensor | None], other: list[Tensor | None]) -> bool:
    return len(one) == len(other) and all(map(_same, one, other))


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Whatever the body does to the model's state and to random states is undone."""
    with _put_back(model, ()), _seeded(), _of_nobody():
        yield


@contextlib.contextmanager
def _of_nobody() -> Iterator[None]:
    """What autograd saves meanwhile is hidden from hooks around it, an outer checkpoint's say."""
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        yield


@contextlib.contextmanager
def _put_back(block: nn.Module, parameters: Collection[str]) -> Iterator[None]:
    """Whatever the body changes in the block's modules: attributes, buffers, their values."""
    modules = list(block.modules())
    attributes = [(vars(module), dict(vars(module))) for module in modules]
    attributes += [(module._buffers, dict(module._buffers)) for module in modules]
    tensors = [slot.value for slot in _of(block, parameters) if isinstance(slot.value, Tensor)]
    tensors += [
        buffer
        for module in modules
        if isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    values = [tensor.detach().clone() for tensor in tensors]
    usual = tuple(t for t in tensors if type(t) in (Tensor, nn.Parameter))
    # A graph that has saved one of them must not find it changed.
    with torch.autograd._unsafe_preserve_version_counter(usual):
        try:
            yield
        finally:
            for now, then in attributes:
                now.clear()
                now.update(then)
            with torch.no_grad():
                for tensor, value in zip(tensors, values, strict=True):
                    tensor.copy_(value)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The body draws the same random numbers each time, and nobody else's."""
    drawn = random.getstate()
    numpy = sys.modules.get("numpy")
    drawn_by_numpy = numpy.random.get_state() if numpy else None
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if cuda else []
    try:
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(0)
            if devices:
                torch.cuda.manual_seed_all(0)
            yield
    finally:
        random.setstate(drawn)
        if numpy:
            numpy.random.set_state(drawn_by_numpy)


# --- without inputs -----------------------------------------------------------------------------


def tried_on_copies(block: nn.Module, training: bool) -> tuple[list[tuple[str, Tried]], set[str]]:
    """Try a copy of the block, or else of its parts that have state, with random inputs that fit.

    ``training``: in training mode, rather than in the block's own. What came of it, with the path
    of the part, ``""`` for the block; and the names of all state in parts that ran. Nothing is
    tried whose values do not exist or that belongs to several processes.
    """
    found: list[tuple[str, Tried]] = []
    names: set[str] = set()
    if not _can_be_copied(block):
        return found, names
    state = worth_trying(block)
    for path, part in block.named_modules():
        dot = path and path + "."
        inside = {name for name in state if name.startswith(dot)} - names
        if not inside or _bytes(part) > MOST_BYTES or type(part).forward is nn.Module.forward:
            continue
        result = _tried_on_guesses(part, training, whole=not path)
        if result is not None:
            names |= inside
            found.append((path, result))
    return found, names


def worth_trying(block: nn.Module) -> list[str]:
    """Names of tensors that are no parameters, and of whatever else the source seems to change."""
    written = written_in_source(block)
    return [
        slot.name
        for slot in slots(block)
        if slot.name in written
        or (isinstance(slot.value, Tensor) and not isinstance(slot.value, nn.Parameter))
    ]


def _tried_on_guesses(part: nn.Module, training: bool, whole: bool) -> Tried | None:
    """With the first guess that runs; None if none does.

    ``whole``: it is the block, whose own hooks stay outside of the checkpoint.
    """
    with _seeded():
        for arguments in _guesses(part):
            with contextlib.suppress(Exception):  # it was a guess
                again = copy.deepcopy(part).cpu()
                _without_others_hooks(again)
                if training:
                    again.train()
                everything = [name for name, _ in again.named_parameters()]
                return tried(again, again.forward if whole else again, arguments, {}, everything)
    return None


def _without_others_hooks(copied: nn.Module) -> None:
    """Functions are not copied: what hooks count or collect is the model's own."""
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch."):
                    del hooks[key]


def _can_be_copied(block: nn.Module) -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    held = [slot.value for slot in slots(block) if isinstance(slot.value, Tensor)]
    return not distributed and not any(
        isinstance(t, FakeTensor) or t.is_meta or is_traceable_wrapper_subclass(t) for t in held
    )


def _bytes(module: nn.Module) -> int:
    held = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in held if not is_lazy(tensor))


def _guesses(module: nn.Module) -> Iterator[tuple[Tensor]]:
    """Inputs that such a module may take: one tensor of the width that its first parts want."""
    try:
        signature = inspect.signature(module.forward)
        signature.bind(None)
    except (TypeError, ValueError):
        return
    widths: dict[int, None] = {}
    dimensions: dict[int, None] = {}
    for part in module.modules():
        for name in ("in_features", "in_channels", "num_features", "embed_dim", "num_channels"):
            if isinstance(width := getattr(part, name, None), int):
                widths[width] = None
        if (kind := type(part).__name__)[-2:] in ("1d", "2d", "3d"):
            dimensions[int(kind[-2])] = None
        if isinstance(part, nn.Embedding):
            yield (torch.randint(part.num_embeddings, (2, 6)),)
    for tensor in [*module.parameters(), *module.buffers()]:
        if not is_lazy(tensor) and tensor.ndim:
            widths[tensor.shape[-1]] = None
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    for width in list(widths)[:4]:
        spatial = [
            (2, width, *(8,) * d)
            for d in [*dimensions, *(d for d in (1, 2, 3) if d not in dimensions)]
        ]
        flat: list[tuple[int, ...]] = [(6, width), (2, 6, width)]
        for shape in (*spatial, *flat) if dimensions else (*flat, *spatial):
            yield (torch.randn(shape, dtype=dtype, requires_grad=True),)


# --- in its source ------------------------------------------------------------------------------


def written_in_source(block: nn.Module) -> list[str]:
    """Names of state that the source of forward, and of what it calls, seems to change.

    A hint: the source tells neither whether a line is reached, nor what happens elsewhere.
    """
    found: dict[str, None] = {}
    for path, module in block.named_modules():
        if type(module).__module__.startswith("torch.nn.modules."):
            continue
        own = {slot.name for slot in slots(module) if "." not in slot.name}
        functions = [type(module).forward]
        functions += [
            hook if inspect.isfunction(hook) else type(hook).__call__
            for hook in module._forward_pre_hooks.values()
            if path  # those of the block itself stay outside of the checkpoint
        ]
        written = _Writes(module, own)
        for function in functions:
            written.read(function)
        found |= dict.fromkeys(f"{path}.{name}".lstrip(".") for name in written.names)
    return list(found)


class _Writes:
    """Collects which of ``names``, attributes of one object, functions change."""

    def __init__(self, module: nn.Module, names: set[str]):
        self.module, self.known = module, names
        self.names: dict[str, None] = {}
        self._seen: set[tuple] = set()

    def read(
        self, function: Any, is_method: bool = True, held: dict[str, str] | None = None
    ) -> None:
        """``is_method``: its first argument is the object. ``held``: what it calls the others."""
        function = inspect.unwrap(function)
        once = (function, tuple(sorted((held or {}).items())))
        if once in self._seen or len(self._seen) > 50:
            return
        self._seen.add(once)
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):  # made without a file, or in C
            return
        parameters = list(inspect.signature(function).parameters)
        owner = parameters[0] if is_method and parameters else None
        self._function, self._owner, self._held = function, owner, dict(held or {})
        for node in ast.walk(tree):
            self._visit(node)
            self._function, self._owner = function, owner

    def _visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._target(target, node.value)
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            self._target(node.target, None, changes=isinstance(node, ast.AugAssign))
        elif isinstance(node, ast.Call):
            self._call(node)

    def _target(self, target: ast.AST, value: ast.AST | None, changes: bool = False) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self._target(part, None)
        elif isinstance(target, ast.Name):
            if (name := self._name(value)) is not None:  # another name for it
                self._held[target.id] = name
            elif changes and target.id in self._held:
                self._note(self._held[target.id])
        else:
            self._note(self._name(target))

    def _call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg == "out":
                self._note(self._name(keyword.value))
        called = node.func
        if isinstance(called, ast.Attribute):
            in_place = called.attr.endswith("_") and not called.attr.endswith("__")
            if in_place:
                self._note(self._name(called.value))
                for argument in node.args[:1]:  # torch.relu_(self.x), nn.init.normal_(self.x)
                    self._note(self._name(argument))
            if isinstance(called.value, ast.Name) and called.value.id == self._owner:
                method = getattr(type(self.module), called.attr, None)
                if inspect.isfunction(method) and method is not nn.Module.forward:
                    self._follow(method, node, skip=1)
                return
        function = self._function_of(called)
        if function is setattr and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            self._note(str(node.args[1].value))
        elif inspect.isfunction(function) and not function.__module__.startswith("torch."):
            self._follow(function, node, skip=0)

    def _follow(self, function: Any, node: ast.Call, skip: int) -> None:
        """Read what is called here, where the object or its attributes are handed over."""
        before = self._function, self._owner, self._held
        parameters = list(inspect.signature(function).parameters)
        held = {}
        for parameter, argument in zip(parameters[skip:], node.args, strict=False):
            if (name := self._name(argument)) is not None:
                held[parameter] = name
        for keyword in node.keywords:
            if keyword.arg and (name := self._name(keyword.value)) is not None:
                held[keyword.arg] = name
        if skip or held:
            self.read(function, bool(skip), held)
        self._function, self._owner, self._held = before

    def _function_of(self, called: ast.AST) -> Any:
        names = []
        while isinstance(called, ast.Attribute):
            names.append(called.attr)
            called = called.value
        if not isinstance(called, ast.Name):
            return None
        space = getattr(self._function, "__globals__", {})
        found = space.get(called.id, {"setattr": setattr}.get(called.id))
        for name in reversed(names):
            found = getattr(found, name, None) if inspect.ismodule(found) else None
        return found

    def _name(self, node: ast.AST | None) -> str | None:
        """The attribute that an expression leads to: ``self.x``, ``self.x.data[0]``, ``x``."""
        inner: str | None = None
        while True:
            if isinstance(node, ast.Subscript):
                node = node.value
            elif isinstance(node, ast.Attribute):
                inner, node = node.attr, node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr not in ("detach", "view", "squeeze", "flatten", "unbind"):
                    return None
                node = node.func.value
            else:
                break
        if not isinstance(node, ast.Name):
            return None
        if node.id in self._held:
            return self._held[node.id]
        return inner if node.id == self._owner else None

    def _note(self, name: str | None) -> None:
        if name in self.known:
            self.names[str(name)] = None
