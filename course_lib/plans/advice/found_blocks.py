"""Which modules of a model are its blocks, and which parts the blocks have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from ...language import text
from ...wrapping.blocks import Blocks, cannot_be_called, matcher, nothing_matches, outermost
from ...wrapping.doubts import is_checkpointed, is_one_operator

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Level:
    """Modules of one depth of nesting: path → module, none inside another."""

    blocks: dict[str, nn.Module]

    @property
    def kinds(self) -> str:
        """``12 × Block, 2 × Stage``."""
        count = Counter(type(block).__name__ for block in self.blocks.values())
        return ", ".join(f"{number} × {kind}" for kind, number in count.most_common())


def levels_of(model: nn.Module, blocks: Blocks | None) -> list[Level]:
    """The model's blocks, outermost level first: repeated modules in lists and sequences.

    ``blocks`` as in :func:`course_lib.wrapping.blocks.checkpoint_blocks`; then there is one level.
    Raises ``ValueError`` if nothing matches, or nothing is found.
    """
    if blocks is not None:
        found = dict(outermost(model, matcher(blocks)))
        found = {path: block for path, block in found.items() if not cannot_be_called(block)}
        if not found:
            raise ValueError(nothing_matches(model, blocks))
        return [Level(found)]
    depths: dict[int, dict[str, nn.Module]] = {}
    seen: set[int] = set()
    _look(model, "", 0, depths, seen)
    levels = [Level(found) for _, found in sorted(depths.items()) if len(found) > 1]
    if not levels:
        found = {path: m for path, m in model.named_children() if _may_be_block(m)}
        levels = [Level(found)] if len(found) > 1 else []
    if not levels:
        raise ValueError(_no_blocks(model))
    return levels


def _look(
    module: nn.Module, path: str, depth: int, depths: dict[int, dict[str, nn.Module]],
    seen: set[int],
) -> None:  # fmt: skip
    inside = isinstance(module, _CONTAINERS)
    for name, child in module.named_children():
        here = f"{path}.{name}" if path else name
        if inside and _may_be_block(child) and id(child) not in seen:
            seen.add(id(child))
            depths.setdefault(depth, {})[here] = child
            _look(child, here, depth + 1, depths, seen)
        else:
            _look(child, here, depth, depths, seen)


def _may_be_block(module: nn.Module) -> bool:
    return not is_one_operator(module) and not cannot_be_called(module)


def parts_of(block: nn.Module) -> dict[str, nn.Module]:
    """A block's attention, feed-forward and the like: children that do more than one thing."""
    found: dict[str, nn.Module] = {}
    for name, child in block.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            inner = {f"{name}.{key}": part for key, part in child.named_children()}
        else:
            inner = {name: child}
        found |= {path: part for path, part in inner.items() if _has_parts(part)}
    return found


def _has_parts(part: nn.Module) -> bool:
    return _may_be_block(part) and sum(1 for _ in part.modules()) > 1


def heads_of(model: nn.Module, levels: list[Level]) -> dict[str, nn.Linear]:
    """Linear modules outside of all blocks: one of them may be what says the logits."""
    blocks = [f"{path}." for level in levels for path in level.blocks]
    return {
        path: module for path, module in model.named_modules()
        if type(module) is nn.Linear and "forward" not in vars(module)
        and not any(f"{path}.".startswith(block) for block in blocks)
    }  # fmt: skip


def already_checkpointed(model: nn.Module, paths: list[str]) -> list[str]:
    """Those of the blocks that others' checkpoints are on."""
    return [path for path in paths if is_checkpointed(model, path)]


def _no_blocks(model: nn.Module) -> str:
    kinds = Counter(type(module).__name__ for module in model.modules() if module is not model)
    there = ", ".join(f"{kind} × {count}" for kind, count in kinds.most_common(8)) or "—"
    name = type(model).__name__
    return text(
        zh=f"在 {name} 里没有找到块：没有哪个列表（ModuleList、Sequential）里有多于一个由多个算子"
        f"组成的模块。它有：{there}。请用 blocks= 说明哪些模块是块，例如类名或路径。",
        en=f"No blocks were found in {name}: no list (ModuleList, Sequential) holds more than one "
        f"module made of several operators. It has: {there}. Say with blocks= which modules are "
        "blocks, by class or path.",
    )
