"""The exercises of lesson 08: what a rank holds, a sharded decoder, a router that runs twice."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from ...figures.words import size_text
from ...memory.measurement import measure
from ...memory.trace import MemoryTrace, Role
from ...notebook.checking import Answer, Unfinished, Words, Wrong, briefly, judged, number
from ...one_rank import one_rank_of
from ...wrapping import checkpoint_blocks
from .decoder import small_batch, small_decoder
from .ranks_table import SHARDED, Sharded, spread

# --- exercise 1: what a rank holds --------------------------------------------------------------

_LAYERS, _WIDTH = 8, 64
_PARAMETERS = _LAYERS * _WIDTH * _WIDTH
_WORLDS = (2, 4, 8)
_FOR_THE_MODEL = (
    Role.PARAMETER, Role.GRADIENT, Role.OPTIMIZER_STATE, Role.GATHERED, Role.COMMUNICATION,
)  # fmt: skip


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(_LAYERS)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@judged
def check_held(answer: Callable[[int, int, str], Any]) -> Words:
    """Check ``answer(parameters, ranks, sharded)``: bytes of a rank at the end of forward.

    Those that are there for the model's sake: parameters, gathered ones included, gradients, and
    the moments of AdamW, whose counters of steps are left out. Measured, on layers in float32.
    """
    ask = Answer(answer)
    for ranks in _WORLDS:
        for sharded in SHARDED:
            said = ask(_PARAMETERS, ranks, sharded)
            if said is None:
                raise ask.nothing(_PARAMETERS, ranks, sharded)
            held = _held(ranks, sharded)
            if number(said) != held:
                raise Wrong(*_fault_in_held(said, held, ranks, sharded))
    count = len(_WORLDS) * len(SHARDED)
    return (
        f"{count} 种情形都与实测一字节不差。",
        f"All {count} cases agree with the measurement to the byte.",
    )


def _held(ranks: int, sharded: Sharded) -> int:
    with one_rank_of(ranks) as mesh, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer = spread(_Layers(), sharded, mesh)
        x = torch.ones(2, _WIDTH)

        def step() -> None:
            model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        step()
        trace = measure(step, model, optimizer, x)
        steps = getattr(optimizer, "optim", optimizer).state
    return sum(trace.kept[role] for role in _FOR_THE_MODEL) - 4 * len(steps)


def _fault_in_held(said: Any, held: int, ranks: int, sharded: Sharded) -> Words:
    given = number(said)
    where = f"parameters={_PARAMETERS:,}, ranks={ranks}, sharded={sharded!r}"
    if given is None:
        return (
            f"{where}：应返回一个数，得到的是 {briefly(said)}。",
            f"{where}: expected a number, got {briefly(said)}.",
        )
    zh, en = _guess(given, held, ranks, sharded)
    return (
        f"{where}：实测 {held:,} 字节，你的是 {given:,}，差 {given - held:+,}。{zh}",
        f"{where}: measured {held:,} bytes, yours is {given:,}, off by {given - held:+,}. {en}",
    )


def _guess(given: Any, held: int, ranks: int, sharded: Sharded) -> Words:
    """What a wrong number leaves out or counts twice, as far as can be told."""
    whole = 4 * _PARAMETERS
    if given * 4 == held:
        return (
            "这是元素的个数：float32 每个 4 字节。",
            "That is the number of elements: a float32 takes 4 bytes.",
        )
    if sharded in ("nothing", "optimizer state") and held - given == whole:
        return (
            "DDP 的桶不随 zero_grad() 消失：梯度的内存一直在。",
            "DDP's buckets do not go with zero_grad(): the memory of gradients is always there.",
        )
    if sharded == "gradients" and held - given == whole:
        return (
            "reshard_after_forward=False：前向结束时，聚合的参数还在。",
            "reshard_after_forward=False: at the end of forward, gathered parameters are there.",
        )
    if sharded == "parameters" and given - held == whole:
        return (
            "前向一过，每层聚合的参数就放掉了。",
            "Each layer's gathered parameters go as soon as its forward is done.",
        )
    if given - held == whole / ranks or given - held == whole:
        return (
            "FSDP2 在前向结束时没有梯度：zero_grad() 放掉了，反向还没有开始。",
            "FSDP2 has no gradients at the end of forward: zero_grad() let them go, and backward "
            "has not begun.",
        )
    return (
        "一样一样地想：参数、聚合的参数、梯度、AdamW 的两个动量，各是 4 字节乘以多少个？",
        "Take them one by one: parameters, gathered parameters, gradients, AdamW's two moments. "
        "Each is 4 bytes times how many?",
    )


# --- exercise 2: a sharded decoder --------------------------------------------------------------

_RANKS = 8
_BLOCKS = 4
_TOLERATED = 1.03  # times the peak of the reference
_PARTS = 1.1  # times its share may be what a rank holds of parameters: rows do not always divide


@judged
def check_spread(answer: Callable[[nn.Module, Any], Any]) -> Words:
    """Check ``answer(model, mesh)``: a decoder sharded and checkpointed in place, over 8 ranks.

    Judged by a step of one rank: what it holds of the parameters, what it gathers at once, which
    blocks run again, and its peak.
    """
    ask = Answer(answer)
    if ask.is_stub:
        raise Unfinished
    best = _trace(_reference)
    mine = _trace(ask)
    whole = sum(parameter.nbytes for parameter in _decoder().parameters())
    _check_shards(mine, whole)
    sizes = size_text(mine.peak), size_text(best.peak)
    if _peak(mine) > _TOLERATED * _peak(best):
        zh, en = _why_so_high(mine, best, whole)
        raise Wrong(
            f"峰值 {sizes[0]}，可以是 {sizes[1]}。{zh}",
            f"The peak is {sizes[0]} and can be {sizes[1]}. {en}",
        )
    plain = _trace(lambda model, mesh: None)
    return (
        f"每个 rank 的峰值从 {size_text(plain.peak)} 降到 {sizes[0]}；一次最多聚合 "
        f"{size_text(mine.peak_of(Role.GATHERED))}，参数一共 {size_text(whole)}。",
        f"The peak of each rank falls from {size_text(plain.peak)} to {sizes[0]}; at most "
        f"{size_text(mine.peak_of(Role.GATHERED))} are gathered at once, of {size_text(whole)}.",
    )


def _decoder() -> nn.Module:
    return small_decoder(layers=_BLOCKS)


def _reference(model: nn.Module, mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    checkpoint_blocks(model, "Block")
    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _trace(spread_out: Callable[[nn.Module, Any], Any]) -> MemoryTrace:
    with one_rank_of(_RANKS) as mesh, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, words = _decoder(), small_batch()
        returned = spread_out(model, mesh)
        model = returned if isinstance(returned, nn.Module) else model
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)

        def step() -> None:
            model(words, words).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        return measure(step, model, optimizer, words)


def _peak(trace: MemoryTrace) -> int:
    return trace.peak_without(Role.WORKSPACE)


def _check_shards(mine: MemoryTrace, whole: int) -> None:
    held = mine.before[Role.PARAMETER]
    if held <= _PARTS * whole / _RANKS:
        return
    sizes = size_text(held), size_text(whole / _RANKS)
    if held == whole:
        raise Wrong(
            f"每个 rank 还拿着全部参数（{sizes[0]}）：fully_shard 没有切到任何一个。",
            f"Each rank still holds all parameters ({sizes[0]}): fully_shard has sharded none.",
        )
    raise Wrong(
        f"每个 rank 拿着 {sizes[0]} 参数，八分之一是 {sizes[1]}：有的没有切，"
        "块以外的（嵌入、输出层）要靠 fully_shard(model)。",
        f"Each rank holds {sizes[0]} of parameters, and an eighth is {sizes[1]}: some are not "
        "sharded; those outside the blocks (embedding, head) take fully_shard(model).",
    )


def _why_so_high(mine: MemoryTrace, best: MemoryTrace, whole: int) -> Words:
    gathered = mine.peak_of(Role.GATHERED), best.peak_of(Role.GATHERED)
    if mine.flops < best.flops:
        return (
            f"有的块没有重算：FLOPs 是每块都重算时的 {mine.flops / best.flops:.0%}。"
            "按类名找块的话，fully_shard 之后类名已经变成 FSDPBlock 了。",
            f"Not every block runs again: FLOPs are {mine.flops / best.flops:.0%} of those when "
            "all do. If blocks are found by the name of their class, that is FSDPBlock after "
            "fully_shard.",
        )
    if mine.kept[Role.GATHERED] > 1.2 * best.kept[Role.GATHERED]:
        return (
            f"前向结束时还聚合着 {size_text(mine.kept[Role.GATHERED])} 参数：一层用完就该放掉，"
            "要么逐块 fully_shard，要么别写 reshard_after_forward=False。",
            f"At the end of forward {size_text(mine.kept[Role.GATHERED])} of parameters are still "
            "gathered, where each layer should let go of its own: shard block by block, and "
            "without reshard_after_forward=False.",
        )
    return (
        f"一次聚合了 {size_text(gathered[0])} 参数（一共 {size_text(whole)}），可以只是 "
        f"{size_text(gathered[1])}。",
        f"{size_text(gathered[0])} of parameters are gathered at once, of {size_text(whole)}; it "
        f"can be {size_text(gathered[1])}.",
    )


# --- exercise 3: a router under recomputation ---------------------------------------------------

_EXPERTS, _TOKENS, _STEPS, _RATE = 4, 48, 3, 0.25


class RoutedBlock(nn.Module):
    """A block of experts: ``route(block, scores)`` says which one each token goes to.

    ``seen``: how many tokens each expert has had since the training began. ``bias``: added to the
    scores when choosing. Both (experts,).
    """

    seen: Tensor
    bias: Tensor

    def __init__(self, route: Callable[..., Any], width: int = 8):
        super().__init__()
        self.route, self.rate = route, _RATE
        self.router = nn.Linear(width, _EXPERTS)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(_EXPERTS))
        self.register_buffer("seen", torch.zeros(_EXPERTS))
        self.register_buffer("bias", torch.zeros(_EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x)
        chosen, weight = self.route(self, scores.detach()), scores.softmax(-1)
        y = x
        for i, expert in enumerate(self.experts):
            mine = (chosen == i).nonzero()[:, 0]
            y = y.index_add(0, mine, weight[mine, i, None] * expert(x[mine]).tanh())
        return y


@judged
def check_routing(route: Callable[..., Any], after_step: Callable[..., Any]) -> Words:
    """Check ``route(block, scores)`` and ``after_step(block)`` with and without checkpoints.

    Over a few steps, ``seen`` has to count each token once, ``bias`` to move once, tokens to go to
    the largest ``scores + bias``, and the gradients to be the same.
    """
    ask, after = Answer(route), Answer(after_step)
    if ask.is_stub:
        raise Unfinished
    torch.manual_seed(0)
    plain = nn.Sequential(*(RoutedBlock(_Checked(ask)) for _ in range(2)))
    again = copy.deepcopy(plain)
    for block in again:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    for i in range(_STEPS):
        x = torch.randn(_TOKENS, 8)
        for blocks, with_checkpoints in ((plain, False), (again, True)):
            _take_step(blocks, x, after, i, with_checkpoints)
        for (name, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
            if one.grad is None or other.grad is None or not torch.equal(one.grad, other.grad):
                raise Wrong(
                    f"第 {i + 1} 步：有检查点时 {name} 的梯度不同。",
                    f"In step {i + 1} the gradient of {name} is another with checkpoints.",
                )
    return (
        f"{_STEPS} 步，每个 token 数一次，偏置动一次，梯度逐位相同，有没有检查点都一样。",
        f"In {_STEPS} steps each token was counted once and the bias moved once, with checkpoints "
        "and without; the gradients are the same bit for bit.",
    )


class _Checked:
    """The learner's ``route``, whose choices are looked at."""

    def __init__(self, ask: Answer):
        self.ask = ask
        self.counts: dict[int, Tensor] = {}  # of the last forward pass, by block

    def __deepcopy__(self, memo: dict) -> _Checked:
        return _Checked(self.ask)

    def __call__(self, block: RoutedBlock, scores: Tensor) -> Tensor:
        bias = block.bias.clone()
        chosen = self.ask(block, scores)
        if chosen is None:
            raise self.ask.nothing(block, scores)
        if not isinstance(chosen, Tensor) or chosen.shape != scores.shape[:1]:
            shape = list(chosen.shape) if isinstance(chosen, Tensor) else briefly(chosen)
            raise Wrong(
                f"route 应返回每个 token 的专家编号，一共 {len(scores)} 个；得到的形状是 {shape}。",
                f"route must return the number of an expert for each token, shape "
                f"({len(scores)},); this is {shape}.",
            )
        right = (scores + bias).argmax(-1)
        off = int((chosen != right).sum())
        if off:
            raise Wrong(
                f"{len(scores)} 个 token 里有 {off} 个没有去 scores + bias 最大的专家。",
                f"{off} of {len(scores)} tokens do not go to the expert whose scores + bias is "
                "largest.",
            )
        if torch._C._current_graph_task_id() == -1:  # not in a recomputation
            self.counts[id(block)] = torch.bincount(right, minlength=_EXPERTS)
        return chosen


def _take_step(
    blocks: nn.Sequential, x: Tensor, after: Answer, i: int, with_checkpoints: bool
) -> None:
    routed: list[Any] = list(blocks)
    before = [(block.seen.clone(), block.bias.clone()) for block in routed]
    blocks.zero_grad()
    try:
        blocks(x.clone().requires_grad_()).square().mean().backward()
    except CheckpointError as error:
        raise Wrong(
            f"第 {i + 1} 步：重算时路由变了（CheckpointError）。"
            "前向里动了 bias，重算读到的就是动过的。",
            f"In step {i + 1} the recomputation routes otherwise (CheckpointError): the bias moved "
            "in forward, and the recomputation reads what it has become.",
        ) from error
    side = ("有检查点", "with checkpoints") if with_checkpoints else ("没有检查点", "without")
    for block, (seen, bias) in zip(routed, before, strict=True):
        after(block)
        counts = block.route.counts[id(block)]
        _check_seen(block.seen - seen, counts, i, side)
        _check_bias(block.bias - bias, _RATE * (counts.float().mean() - counts).sign(), i, side)


def _check_seen(counted: Tensor, counts: Tensor, i: int, side: Words) -> None:
    if torch.equal(counted, counts.to(counted.dtype)):
        return
    there, said = int(counts.sum()), round(float(counted.sum()))
    zh, en = "", ""
    if torch.equal(counted, 2 * counts):
        zh, en = "每个都数了两次：重算又运行了一遍 route。", (
            " Each is counted twice: the recomputation has run route again."
        )  # fmt: skip
    raise Wrong(
        f"第 {i + 1} 步（{side[0]}）：seen 增加了 {said}，而 token 有 {there} 个。{zh}",
        f"In step {i + 1} ({side[1]}), seen grew by {said}, and there were {there} tokens.{en}",
    )


def _check_bias(moved: Tensor, right: Tensor, i: int, side: Words) -> None:
    if torch.allclose(moved, right, atol=1e-6):
        return
    zh, en = "", ""
    if torch.allclose(moved, 2 * right, atol=1e-6):
        zh, en = "动了两次。", " It moved twice."
    elif torch.allclose(moved, -right, atol=1e-6):
        zh, en = "方向反了：忙的专家要减。", (
            " That is the wrong way: a busy expert's bias goes down."
        )  # fmt: skip
    raise Wrong(
        f"第 {i + 1} 步（{side[0]}）：bias 应改变 {_listed(right)}，"
        f"实际改变 {_listed(moved)}。{zh}",
        f"In step {i + 1} ({side[1]}), bias must change by {_listed(right)}, and changed by "
        f"{_listed(moved)}.{en}",
    )


def _listed(numbers: Tensor) -> str:
    return "[" + ", ".join(f"{n:+.2f}" for n in numbers.tolist()) + "]"
