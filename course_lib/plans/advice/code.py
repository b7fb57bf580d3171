"""An option as lines to paste, for plain PyTorch and for Lightning. They need only torch."""

from __future__ import annotations

import inspect
import itertools
import re
import textwrap
from typing import TYPE_CHECKING, Any

from ...language import text
from . import segments, selective
from .chunked_loss import Waiting
from .micro_batches import LIGHTNING_LINES, LINES, WHY_BY_HAND

if TYPE_CHECKING:
    from .options import Option

_IMPORTS = """\
import functools

from torch.utils.checkpoint import checkpoint
"""

_MORE_IMPORTS = """\
from typing import Any

import torch
from torch.nn import functional
"""

_IMPORTS_FOR_SEGMENTS = """\
import functools
import inspect
import weakref

from torch.utils.checkpoint import checkpoint
"""

_IMPORTS_FOR_SELECTIVE = """\
import functools
import inspect
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
"""

_TORCH_AND_ANY = """\
from typing import Any

import torch
"""

_BLOCK = """

def checkpointed(block):
    forward = block.forward

    @functools.wraps(forward)
    def recomputed(*args, **kwargs):
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    block.forward = recomputed
"""

_LOSS = """

def loss_in_chunks(head, chunks):
    forward = head.forward

    def waiting(hidden):
        if not torch.is_grad_enabled():
            return forward(hidden)
        return Waiting(forward, hidden, head.out_features, chunks)

    head.forward = waiting
"""


_NO_CACHE = """\
for module in {model}.modules():  # a cache of keys and values is of no use in training
    if getattr(getattr(module, "config", None), "use_cache", False):
        module.config.use_cache = False
"""


def by_hand(option: Option) -> str:
    """Why an option cannot be carried out from outside, and the lines to write instead."""
    if option.micro_batches > 1:
        written = lines(option, "pytorch")
        return text(zh=f"{WHY_BY_HAND[0]}\n{written}", en=f"{WHY_BY_HAND[1]}\n{written}")
    return text(
        zh="这些块上有钩子（例如 FSDP 的），不能从外面把几个块并成一个检查点。请在调用这些块的"
        f"代码里这样写：\n{lines(option, 'pytorch')}",
        en="Hooks are on these blocks, such as those of FSDP, so several of them cannot be made "
        f"one checkpoint from outside. In the code that calls them, write:\n"
        f"{lines(option, 'pytorch')}",
    )


def _calling_code(option: Option) -> str:
    rows = "".join(f"    {paths!r},\n" for paths in option.segments).replace("'", '"')
    alone = _BLOCK + "\n\n" + _loop(option.paths, "model") if option.paths else ""
    return _CALLING_CODE.format(rows=rows) + alone


_CALLING_CODE = """\
# In place of the loop that calls the blocks one after the other; x is the hidden state, and
# more whatever else each block is given:
import functools

from torch.utils.checkpoint import checkpoint


def segment(x, blocks, *more):
    for block in blocks:
        x = block(x, *more)
    return x


for paths in (
{rows}):
    blocks = [model.get_submodule(path) for path in paths]
    x = checkpoint(segment, x, blocks, *more, use_reentrant=False)
"""


def lines(option: Option, framework: str) -> str:
    """The lines; ``ValueError`` for an unknown framework."""
    if option.micro_batches > 1 and framework in ("pytorch", "lightning"):
        written = LINES if framework == "pytorch" else LIGHTNING_LINES
        return written.format(count=option.micro_batches)
    if option.by_hand and framework in ("pytorch", "lightning"):
        return _calling_code(option)
    if framework == "pytorch":
        return _pytorch(option)
    if framework == "lightning":
        return _lightning(option)
    raise ValueError(
        text(
            zh=f'framework 只能是 "pytorch" 或 "lightning"，现在是 {framework!r}。',
            en=f'framework must be "pytorch" or "lightning", not {framework!r}.',
        )
    )


def _pytorch(option: Option) -> str:
    if not option.checkpoints and option.head is None:
        return "# nothing to change\n"
    return f"{_definitions(option)}{_carried_out(option, 'model')}"


def _lightning(option: Option) -> str:
    if not option.checkpoints and option.head is None:
        return "# nothing to change\n"
    body = textwrap.indent(_carried_out(option, "module"), "        ")
    return (
        "import lightning\n"
        f"{_definitions(option)}"
        "class Checkpoints(lightning.Callback):\n"
        "    def on_fit_start(self, trainer, module):\n"
        f"{body}"
        "\n\n# Trainer(callbacks=[Checkpoints()])\n"
    )


def _definitions(option: Option) -> str:
    found = _IMPORTS if option.head is None else _IMPORTS + _MORE_IMPORTS
    if option.segments:
        found = _IMPORTS_FOR_SEGMENTS
        found += _MORE_IMPORTS if option.head is not None else _TORCH_AND_ANY
    if option.kept:
        found = _IMPORTS_FOR_SELECTIVE
        found += "".join(f"\n\n{_source(pasted)}" for pasted in selective.PASTED)
    elif option.paths:
        found += _BLOCK
    if option.segments:
        found += "".join(f"\n\n{_source(pasted)}" for pasted in segments.PASTED)
    if option.head is not None:
        found += f"\n\n{_source(Waiting)}{_LOSS}"
    return found + "\n\n"


def _source(pasted: Any) -> str:
    """The lines of a class or function, without docstrings: those are in one language only."""
    return re.sub(r'(?m)^ +"""(?:[^"]|"(?!""))*"""\n\n?', "", inspect.getsource(pasted))


def _carried_out(option: Option, model: str) -> str:
    result = _NO_CACHE.format(model=model) if option.cache_off else ""
    if option.kept:
        result += f"kept = {option.kept!r}\n".replace("'", '"')
        return result + _loop(option.paths, model, "block.forward = Selective(block.forward, kept)")
    result += _loop(option.paths, model) if option.paths else ""
    result += _segments(option.segments, model) if option.segments else ""
    if option.head is not None:
        result += f'loss_in_chunks({model}.get_submodule("{option.head}"), {option.chunks})\n'
    return result


def _segments(found: tuple[tuple[str, ...], ...], model: str) -> str:
    rows = "".join(f"    {paths!r},\n" for paths in found).replace("'", '"')
    return (
        f"for paths in (\n{rows}):\n"
        f"    one_checkpoint([{model}.get_submodule(path) for path in paths])\n"
    )


def _loop(paths: tuple[str, ...], model: str, more: str = "") -> str:
    """``for i in (0, 2, 4): checkpointed(model.get_submodule(f"blocks.{i}"))``, or names."""
    shapes: dict[str, list[int]] = {}
    for path in paths:
        found = re.search(r"(?<![^.])\d+(?![^.])", path)
        if found is None:
            return _names(paths, model, more)
        shape = f"{path[: found.start()]}{{i}}{path[found.end() :]}"
        shapes.setdefault(shape, []).append(int(found[0]))
    result = ""
    for shape, numbers in shapes.items():
        if len(numbers) == 1:
            block = f'{model}.get_submodule("{shape.format(i=numbers[0])}")'
            result += textwrap.dedent(_done_to(block, more))
            continue
        written = _numbers(numbers)
        block = f'{model}.get_submodule(f"{shape}")'
        result += f"for i in {written}:\n{_done_to(block, more)}"
    return result


def _numbers(numbers: list[int]) -> str:
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and (step := steps.pop()) > 0:
        end = numbers[-1] + 1
        if step == 1:
            return f"range({end})" if numbers[0] == 0 else f"range({numbers[0]}, {end})"
        return f"range({numbers[0]}, {end}, {step})"
    return f"({', '.join(map(str, numbers))}{',' if len(numbers) == 1 else ''})"


def _done_to(block: str, more: str) -> str:
    return f"    block = {block}\n    {more}\n" if more else f"    checkpointed({block})\n"


def _names(paths: tuple[str, ...], model: str, more: str = "") -> str:
    rows = "".join(f'    "{path}",\n' for path in paths)
    return f"for path in (\n{rows}):\n{_done_to(f'{model}.get_submodule(path)', more)}"
