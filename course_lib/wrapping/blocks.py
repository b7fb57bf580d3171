"""Put blocks of a model into checkpoints and take them out again; plain PyTorch, no Lightning.

A block keeps its class, its place in the model and the names of its parameters: only its
``forward`` is another, as if its class called ``checkpoint`` itself. A wrapper module, as
``apply_activation_checkpointing`` puts on, would change what ``named_parameters`` says, and with
it parameter groups chosen by name, averages kept by name, and files that hold such names.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import inspect
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any

import torch
from torch import nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from ..language import Bilingual, text
from .doubts import (
    Doubt,
    expected,
    is_checkpointed,
    of_a_cache,
    of_no_trial,
    of_state,
    on_copies,
    on_inputs,
    watched,
    without_cache,
)

Blocks = str | type | Sequence[str | type] | Callable[[nn.Module], bool]


class CheckpointedForward:
    """What stands in for a block's ``forward``: the same, recomputed in the backward pass.

    Non-reentrant, and random states are kept, so that dropout repeats itself. It is ``forward``
    that is recomputed, not the call of the block: the block's own hooks, those of FSDP2 among
    them, stay outside and run once, as in the layers of Transformers. It is an attribute of the
    block, and goes with it through ``copy.deepcopy`` and ``torch.save``. It holds no reference
    that keeps the block alive.

    ``inner``: what stood on this very block in place of its class's ``forward``, if anything did.
    ``configs``: those in which ``use_cache`` was switched off for the sake of the checkpoints.
    """

    def __init__(
        self,
        block: nn.Module,
        path: str = "",
        inner: Callable | None = None,
        configs: tuple[Any, ...] = (),
        said: set[tuple] | None = None,
    ):
        self._block = weakref.ref(block)
        self.path, self.inner, self.configs = path, inner, configs
        self.on = True
        self._said = set() if said is None else said  # shared by the blocks of a model
        self._watched = False

    def __reduce__(self) -> tuple:
        made_with = self.block, self.path, self.inner, self.configs, self._said
        return type(self), made_with, {"on": self.on, "_watched": self._watched}

    @property
    def block(self) -> nn.Module:
        """The block itself; ``ReferenceError`` if there is none any more."""
        block = self._block()
        if block is None:
            raise ReferenceError(f"the block {self.path} of this forward no longer exists")
        return block

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(functools.partial(type(self.block).forward, self.block))

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """The block's forward without a checkpoint."""
        if self.inner is not None:
            return self.inner(*args, **kwargs)
        block = self.block
        return type(block).forward(block, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.on or not torch.is_grad_enabled() or self._writes_a_cache(args, kwargs):
            return self.plain(*args, **kwargs)
        if self._watched or torch.compiler.is_compiling():
            return self._checkpointed(*args, **kwargs)
        return self._first_call(args, kwargs)

    def _checkpointed(self, *args: Any, **kwargs: Any) -> Any:
        # By position, since checkpoint() notices of those alone if they are changed before the
        # backward pass; and a keyword of the block may have the name of one of checkpoint()'s own.
        names, positions = tuple(kwargs), len(args)
        block = self.block  # lives as long as the graph, also where nobody else holds it
        lent = _lent(block)

        def run(*values: Any) -> Any:
            named = dict(zip(names, values[positions:], strict=True))
            with _reparametrize_module(block, lent) if lent else contextlib.nullcontext():
                if self.inner is not None:
                    return self.inner(*values[:positions], **named)
                return type(block).forward(block, *values[:positions], **named)

        return checkpoint(run, *args, *kwargs.values(), use_reentrant=False)

    def _writes_a_cache(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the block is handed a cache of keys and values: then it cannot run twice."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, (torch.Tensor, bool, int, float, str)) or value is None:
                continue
            if hasattr(value, "get_seq_length") or hasattr(value, "key_cache"):
                if not torch.compiler.is_compiling():
                    self._say_once(("cache",), of_a_cache(self.path, type(value).__name__))
                return True
        return False

    def _first_call(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Sees whether forward changes state of the block, and if so, what that does."""
        block = self.block
        if not block.training or _get_current_dispatch_mode() is not None:
            return self._checkpointed(*args, **kwargs)  # not training, or measured: at another call
        self._watched = True
        result, found = watched(block, self._checkpointed, self.plain, args, kwargs)
        if isinstance(found, Exception):
            self._say_once((type(block),), of_no_trial(self.path, found))
        elif found is not None:
            for doubt in of_state(self.path, type(block), "", found, self._said):
                _warn(doubt)
        return result

    def _say_once(self, what: tuple, doubt: Doubt) -> None:
        if what not in self._said:
            self._said.add(what)
            _warn(doubt)


def _lent(block: nn.Module) -> dict[str, torch.Tensor]:
    """What ``torch.func.functional_call`` has put in the place of the block's parameters.

    It takes them away again before the backward pass, where the recomputation needs them.
    """
    if torch.compiler.is_compiling():
        return {}
    first = next(block.parameters(), None)
    if first is None or isinstance(first, nn.Parameter):
        return {}
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}


def _warn(doubt: Doubt) -> None:
    zh, en = doubt
    warnings.warn(text(zh=zh, en=en), stacklevel=3)


@dataclass(frozen=True)
class Wrapped:
    """What :func:`checkpoint_blocks` did: paths of the wrapped blocks, and of all it found.

    ``doubts``: what will not help or goes wrong, and what was changed besides, in (zh, en).
    """

    paths: tuple[str, ...]
    found: tuple[str, ...]
    every: int
    doubts: tuple[Doubt, ...] = ()

    @property
    def zh(self) -> str:
        """In Chinese."""
        return f"{len(self.found)} 个块中有 {len(self.paths)} 个加了检查点：{'、'.join(self.paths)}"

    @property
    def en(self) -> str:
        """In English."""
        return (
            f"{len(self.paths)} of {len(self.found)} blocks are checkpointed: "
            f"{', '.join(self.paths)}"
        )

    def __str__(self) -> str:
        return text(zh=self.zh, en=self.en, between="\n")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return Bilingual(zh=self.zh, en=self.en)._repr_mimebundle_()


def checkpoint_blocks(
    model: nn.Module,
    blocks: Blocks,
    every: int = 1,
    try_with: Callable[[], Any] | None = None,
) -> Wrapped:
    """Checkpoint every ``every``-th of ``model``'s blocks: number ``every``, twice that, and so on.

    ``blocks``: a class; the name of one, as ``"Block"``; paths, in which ``*`` stands for anything
    but a dot, as ``"model.blocks.*"``; several of these; or a function that takes a module and
    says whether it is one. Of blocks inside blocks, only the outermost count; a block that occurs
    in several places is one. Called again, it starts from the plain model.

    No name, class or place in the model changes: see :class:`CheckpointedForward`. ``use_cache``
    in the configuration of a Hugging Face model is switched off while there are checkpoints.
    ``doubts`` of the result says so, and, in (zh, en), what will not help or go wrong: above all,
    which state moves twice per step because forward runs twice. To find that out, copies of blocks
    that have state are run on random inputs that seem to fit; where none fits, the source is read,
    and the first training step tells, in a warning. ``try_with``, a function without arguments
    that calls the model once, lets it be tried at once on real inputs; all state is put back.

    Raises ``ValueError`` if nothing matches, if what matches cannot be called, or if ``every`` is
    not between 1 and the number of blocks.
    """
    plain_blocks(model)
    found = list(outermost(model, matcher(blocks)))
    if not found:
        raise ValueError(nothing_matches(model, blocks))
    if uncallable := [path for path, block in found if cannot_be_called(block)]:
        raise ValueError(
            text(
                zh=f"{uncallable[0]} 只是模块的容器，没有 forward，不能加检查点。"
                f"要的是里面的块：{uncallable[0]}.*",
                en=f"{uncallable[0]} only holds modules and has no forward: it cannot be "
                f"checkpointed. Name the blocks inside it: {uncallable[0]}.*",
            )
        )
    if scripted := [path for path, block in found if isinstance(block, torch.jit.ScriptModule)]:
        raise ValueError(
            text(
                zh=f"{scripted[0]} 已经由 torch.jit 编译，不能再加检查点。请先加检查点，再编译。",
                en=f"{scripted[0]} is compiled by torch.jit and cannot be checkpointed. Compile "
                "it afterwards.",
            )
        )
    if not isinstance(every, int) or isinstance(every, bool) or not 1 <= every <= len(found):
        raise ValueError(
            text(
                zh=f"every 必须在 1 和块的个数 {len(found)} 之间，现在是 {every!r}。",
                en=f"every must be between 1 and {len(found)}, the number of blocks, "
                f"not {every!r}.",
            )
        )
    chosen = found[every - 1 :: every]
    free = [(path, block) for path, block in chosen if not is_checkpointed(model, path)]
    said: set[tuple] = set()
    doubts = list(expected(model, chosen, free))
    doubts += on_inputs(model, free, try_with, said) if try_with is not None else []
    doubts += on_copies(model, free, said)
    configs, said_of_them = without_cache(model, [path for path, _ in free])
    doubts += said_of_them
    for path, block in free:
        inner = vars(block).get("forward")
        vars(block)["forward"] = CheckpointedForward(block, path, inner, configs, said)
    paths = tuple(path for path, _ in free), tuple(path for path, _ in found)
    return Wrapped(*paths, every, tuple(doubts))


def checkpointed(model: nn.Module) -> tuple[str, ...]:
    """Paths of the blocks that :func:`checkpoint_blocks` has put into checkpoints."""
    return tuple(path for path, block in model.named_modules() if _forwards(block))


def plain_blocks(model: nn.Module) -> int:
    """Take off what :func:`checkpoint_blocks` put on, others' wrappers not; how many there were."""
    taken = 0
    for block in list(model.modules()):
        for key, forward in _forwards(block):
            forward.on = False  # where somebody has put something around it, it calls through
            for config in forward.configs:
                config.use_cache = True
            if key == "forward" and forward.inner is None:
                del vars(block)["forward"]
            else:
                own = types.MethodType(type(block).forward, block)
                vars(block)[key] = own if forward.inner is None else forward.inner
            taken += 1
    return taken


def _forwards(block: nn.Module) -> list[tuple[str, CheckpointedForward]]:
    """Ours among a block's attributes: others keep what they replace, under names of their own."""
    attributes = list(vars(block).items())
    return [(key, value) for key, value in attributes if isinstance(value, CheckpointedForward)]


def outermost(
    model: nn.Module, matches: Callable[[str, nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    seen: set[int] = set()
    inside = None
    for path, module in model.named_modules():
        if not path or (inside is not None and path.startswith(inside)):
            continue
        inside = None
        if matches(path, module) and id(module) not in seen:
            seen.add(id(module))
            inside = path + "."
            yield path, module


def matcher(blocks: Blocks) -> Callable[[str, nn.Module], bool]:
    if isinstance(blocks, (str, type)):
        blocks = (blocks,)
    if callable(blocks):
        wanted = blocks
        return lambda path, module: bool(wanted(module))
    given = blocks if isinstance(blocks, Sequence) else ()
    classes = tuple(part for part in given if isinstance(part, type))
    words = [part for part in given if isinstance(part, str)]
    if len(classes) + len(words) != len(given) or not given:
        raise TypeError(
            text(
                zh=f"blocks 要类、类名、路径，或判断一个模块的函数，现在是 {blocks!r}。",
                en="blocks must be classes, names of classes, paths, or a function that judges a "
                f"module, not {blocks!r}.",
            )
        )

    def matches(path: str, module: nn.Module) -> bool:
        names = {kind.__name__ for kind in type(module).__mro__[:-2]}  # up to nn.Module
        return isinstance(module, classes) or any(
            word in names or _is_at(path, word) for word in words
        )

    return matches


def _is_at(path: str, pattern: str) -> bool:
    steps, wanted = path.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(map(fnmatch.fnmatchcase, steps, wanted))


def cannot_be_called(module: nn.Module) -> bool:
    return getattr_static(type(module), "forward") is nn.Module.forward


def nothing_matches(model: nn.Module, blocks: Blocks) -> str:
    kinds = Counter(type(module).__name__ for module in model.modules() if module is not model)
    there = ", ".join(f"{kind} × {count}" for kind, count in kinds.most_common(8))
    wanted = _named(blocks)
    return text(
        zh=f"模型里没有与 {wanted} 相符的模块。它有：{there}。",
        en=f"No module of the model matches {wanted}. It has: {there}.",
    )


def _named(blocks: Blocks) -> str:
    if isinstance(blocks, str):
        return repr(blocks)
    if isinstance(blocks, Sequence):
        return ", ".join(map(_named, blocks))
    return getattr(blocks, "__name__", repr(blocks))
