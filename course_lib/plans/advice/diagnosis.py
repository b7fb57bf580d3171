"""Where a step's peak falls, what it is made of, and the one thing to do next."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...language import Bilingual, Table, one_below_another, shortened, text
from ...memory.trace import Phase, Role
from ...wrapping.doubts import is_one_operator
from . import remedies
from .at_peak import AtPeak, Large, at_peak
from .budget import readable
from .looks import Looks, in_training, no_wrappers
from .options import Option, Planner
from .record import Record
from .score import Score

Cause = Literal[
    "activations", "logits", "optimizer step", "cache", "communication buffers",
    "checkpoints not active", "children wrapped", "no activations",
]  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """What the peak of the step is made of, without any checkpoints of this library's.

    ``peak``, ``before`` (what existed), ``by_role``: bytes. ``largest``: the largest tensors that
    the step made, largest first. ``saves``: bytes by which the remedy lowers the peak; None where
    only trying it on real tensors could tell. ``remedy``: the key of the option that it is, if it
    is one. ``where``: the peak and its roles in words (zh, en); ``then``: the cause, and what to do
    next. ``zh``, ``en``: all of it.
    """

    cause: Cause
    phase: Phase
    peak: int
    before: int
    by_role: dict[Role, int]
    largest: tuple[Large, ...]
    where: tuple[str, str]
    then: tuple[str, str]
    saves: int | None = None
    remedy: str | None = None

    @property
    def zh(self) -> str:
        return "\n".join([self.where[0], "最大的张量：", *self._lines(), self.then[0]])

    @property
    def en(self) -> str:
        return "\n".join([self.where[1], "The largest tensors:", *self._lines(), self.then[1]])

    def _lines(self) -> list[str]:
        return [f"  {one}" for one in self.largest]

    def table(self) -> Table:
        """The largest tensors."""
        return Table(
            [("最大的张量", "largest tensors"), ("角色", "role"), ("算子", "operator"),
             ("模块", "module"), ("代码", "line")],
            [[readable(one.size), one.role.names, (one.operator or "—").removeprefix("aten."),
              one.module or "—", shortened(one.line or "—", _LETTERS)] for one in self.largest],
        )  # fmt: skip

    def __str__(self) -> str:
        return text(zh=self.zh, en=self.en, between="\n")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        where, then = (Bilingual(zh=zh, en=en) for zh, en in (self.where, self.then))
        return {"text/plain": str(self), "text/html": one_below_another(where, self.table(), then)}


_LETTERS = 32  # of a line of source in a table


@dataclass(frozen=True)
class Surroundings:
    """What else there is to know about a step.

    ``head``: the path of the one whose results go into the loss, if that is large. ``own``,
    ``others``: paths of the modules with checkpoints, this library's and others'. ``cached``: a
    cache of keys and values is on. ``looks``: for remedies that only a second look can tell;
    None for real tensors.
    """

    head: str | None
    own: tuple[str, ...]
    others: tuple[str, ...]
    cached: bool
    looks: Looks | None


_WORTH_SAYING = 64  # a remedy has to save this fraction of the peak


def diagnose(
    model: nn.Module, score: Score, planner: Planner, options: Sequence[Option],
    around: Surroundings,
) -> Diagnosis:  # fmt: skip
    """The first cause that there is evidence of, and what its remedy saves.

    ``score``: of the step as it is; ``planner``: what played the options.
    """
    there = at_peak(score)
    cause, size, remedy = _cause(model, score, planner, options, there, around)
    where, peak = where_and_what(there), readable(there.peak)
    saves = None if remedy is None else max(0, remedy.saves)
    option = remedy.option if saves and remedy is not None else None
    return Diagnosis(
        cause, there.phase, there.peak, there.before, there.by_role, there.largest,
        (f"峰值 {peak} {where[0]}。", f"The peak, {peak}, {where[1]}."),
        _words(_NEXT[cause], size, remedy), saves, option.key if option is not None else None,
    )  # fmt: skip


@dataclass(frozen=True)
class _Remedy:
    """Bytes that it lowers the peak by; the option, if it is one."""

    saves: int
    option: Option | None = None


def _cause(
    model: nn.Module, score: Score, planner: Planner, options: Sequence[Option], there: AtPeak,
    around: Surroundings,
) -> tuple[Cause, int, _Remedy | None]:  # fmt: skip
    peak = there.peak
    activations = sum(size for role, size in there.by_role.items() if role not in _LASTING)
    if isinstance(model, DistributedDataParallel) and not model.gradient_as_bucket_view:
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        remedy = _Remedy(peak - remedies.gradients_in_buckets(score))
        if _worth(remedy, peak):
            return "communication buffers", gradients, remedy
    if there.phase == "optimizer step":
        remedy = _Remedy(peak - remedies.lean_update(score))
        if _worth(remedy, peak):
            return "optimizer step", peak - there.before, remedy
        return _no_activations(score, there)
    if around.cached:
        without = None
        if planner.cache_off:
            without = _Remedy(peak - planner.score.foretell().peak)
        if _worth(without, peak) or (without is None and (around.own or around.others)):
            return "cache", 0, without
    if _inactive(model):
        trained = _looked(peak, around.looks, in_training(model))
        if trained is None or _worth(trained, peak):
            return "checkpoints not active", activations, trained
    logits = _bytes_of_logits(score.record, there.alive, around.head)
    if 2 * logits > activations:
        return "logits", logits, _lowest([o for o in options if o.key == "loss"], peak)
    if 4 * activations < peak:
        return _no_activations(score, there)
    if (around.own or around.others) and _inside(model, planner, (*around.own, *around.others)):
        return "children wrapped", activations, _around_blocks(model, planner, options, around)
    return "activations", activations, _lowest(options, peak)


def _worth(remedy: _Remedy | None, peak: int) -> bool:
    return remedy is not None and remedy.saves * _WORTH_SAYING >= peak


_LASTING = Role.PARAMETER, Role.GRADIENT, Role.OPTIMIZER_STATE, Role.BUFFER, Role.INPUT


def _no_activations(score: Score, there: AtPeak) -> tuple[Cause, int, _Remedy]:
    lasting = sum(size for role, size in there.by_role.items() if role in _LASTING)
    return "no activations", lasting, _Remedy(there.peak - remedies.no_state(score))


def _looked(
    peak: int, looks: Looks | None, change: contextlib.AbstractContextManager[None]
) -> _Remedy | None:
    record = looks.again(change) if looks is not None else None
    return None if record is None else _Remedy(peak - Score(record).foretell().peak)


def _lowest(options: Sequence[Option], peak: int) -> _Remedy | None:
    """The option with the lowest peak, or the first one that saves nearly as much."""
    most = max((peak - option.peak for option in options), default=0)
    for option in options:
        if peak - option.peak >= _NEARLY * most:
            return _Remedy(peak - option.peak, option)
    return None


_NEARLY = 0.9


def _inside(model: nn.Module, planner: Planner, wrapped: Sequence[str]) -> bool:
    """All of them are single operators, or lie within blocks and are none themselves."""
    blocks = {path for level in planner.given_levels for path in level.blocks}
    return all(
        _is_one_operator(model.get_submodule(path))
        or (path not in blocks and any(path.startswith(f"{block}.") for block in blocks))
        for path in wrapped
    )


def _is_one_operator(module: nn.Module) -> bool:
    return is_one_operator(getattr(module, "_checkpoint_wrapped_module", module))


def _around_blocks(
    model: nn.Module, planner: Planner, options: Sequence[Option], around: Surroundings
) -> _Remedy | None:
    if around.others:
        record = around.looks.again(no_wrappers(model)) if around.looks is not None else None
        if record is None:
            return None
        lifted = Planner(model, record, planner.given_levels, None, set())
        lifted.play()
        told = planner.score.foretell().peak
        return _lowest([lifted.options["all"]], told) if "all" in lifted.options else None
    now = planner.score.foretell(planner.parts_at(around.own)).peak
    return _lowest([o for o in options if o.key == "all"], now)


def _bytes_of_logits(record: Record, alive: Sequence[int], head: str | None) -> int:
    """Of what is alive: tensors as large as a head's result, or two or four times as large.

    Those are the logits, their copy in 32 bits, their logarithms, and the gradients of these.
    """
    sizes: set[int] = set()
    for call in record.calls:
        if call.path == head:
            made = [s.size for s in record.storages if call.begin < s.made < call.end]
            if made:
                sizes |= {max(made), 2 * max(made), 4 * max(made)}
    return sum(record.storages[n].size for n in alive if record.storages[n].size in sizes)


def _inactive(model: nn.Module) -> bool:
    """A library's own checkpoints are switched on, and the module is not being trained."""
    return any(
        getattr(module, "gradient_checkpointing", False) is True and not module.training
        for module in model.modules()
    )


_PHASES = {
    "forward": ("前向传播", "the forward pass"),
    "backward": ("反向传播", "the backward pass"),
    "optimizer step": ("参数更新阶段", "the optimizer step"),
}


def where_and_what(there: AtPeak) -> tuple[str, str]:
    """Where a peak falls, and its roles with their bytes."""
    where, what = _PHASES[there.phase], there.in_words()
    return f"出现在{where[0]}，其中{what[0]}", f"falls in {where[1]}: {what[1]}"


def _words(said: tuple[str, str], size: int, remedy: _Remedy | None) -> tuple[str, str]:
    zh, en = said[0].format(size=readable(size)), said[1].format(size=readable(size))
    if remedy is not None and remedy.saves > 0:
        less = readable(remedy.saves)
        option = remedy.option
        zh += f"峰值会低 {less}" + (f"（{option.zh}）。" if option is not None else "。")
        en += f" The peak falls by {less}"
        en += f" with {option.en}." if option is not None else "."
    elif remedy is not None:
        zh += "可是在这里，这样做并不能让峰值更低。"
        en += " Here, however, that does not lower the peak."
    return zh, en


_NEXT: dict[Cause, tuple[str, str]] = {
    "activations": (
        "主要是块里为反向传播保存的激活值（{size}，连同临时量）：给块加检查点。",
        "Most of it is activations of the blocks ({size} with temporaries): checkpoint blocks.",
    ),
    "logits": (
        "主要是 logits 和损失（{size}）：给块加检查点帮不上多少，先把损失分块计算。",
        "Most of it is logits and loss ({size}): checkpoints around blocks do little. Compute the "
        "loss in chunks first.",
    ),
    "optimizer step": (
        "峰值在参数更新时（这一步里多出 {size}），检查点够不着它：用 fused=True 去掉优化器的"
        "临时量，没有 fused 的地方用 foreach=False。",
        "The peak falls while parameters are updated ({size} on top of what existed), out of reach "
        "of checkpoints: fused=True does without the optimizer's temporaries; where there is none, "
        "use foreach=False.",
    ),
    "cache": (
        "use_cache 开着，每一层的键和值都留在 KV 缓存里：训练用不着它，设 "
        "model.config.use_cache = False。",
        "use_cache is on: the keys and values of every layer stay in a KV cache, which training "
        "does not need. Set model.config.use_cache = False.",
    ),
    "communication buffers": (
        "DDP 的通信缓冲区里有梯度的另一份（{size}）：用 gradient_as_bucket_view=True，"
        "梯度就直接放在缓冲区里。",
        "DDP holds gradients a second time, in its communication buffers ({size}): with "
        "gradient_as_bucket_view=True, gradients lie in the buffers themselves.",
    ),
    "checkpoints not active": (
        "检查点开着，却没有生效：模型处在 eval()，那里库自己的检查点会静默关闭。"
        "先调用 model.train()。",
        "Checkpoints are switched on but not active: the model is in eval(), where the library's "
        "own ones silently do nothing. Call model.train() first.",
    ),
    "children wrapped": (
        "检查点加在了块里面的部件上，而不是块上：每个部件的输入仍然都保存着，省下的很少。"
        "请改成给块加检查点。",
        "Checkpoints are around parts inside of blocks where blocks were meant: every part's input "
        "is still kept, so little is saved. Checkpoint the blocks instead.",
    ),
    "no activations": (
        "主要不是激活值，而是参数、梯度和优化器状态（{size}），检查点省不了它们：试试 LoRA、"
        "把它们切分到多个设备（FSDP），或状态更少的优化器，比如完全没有状态的 SGD。",
        "Most of it is no activations but parameters, gradients and optimizer state ({size}), of "
        "which checkpoints save nothing: try LoRA, sharding (FSDP), or an optimizer with less "
        "state, such as plain SGD, which has none.",
    ),
}
