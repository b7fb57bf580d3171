"""Checkers of lesson 02: five ways to recompute, judged by what they do and not how.

Each runs an answer beside plain backward on the same weights, inputs and random numbers. It looks
at the outputs, the gradients (bit for bit), the number of forward calls, the random state and the
memory, in this order, and says of the first that is off what was found and what was expected. Then
several checkpoints are open at once, and many steps must leave nothing behind.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional

from . import recompute
from .exercises_checking import (
    Answer,
    Unfinished,
    Verdict,
    Words,
    Wrong,
    briefly,
    judged,
    raised,
    waiting_for,
)
from .language import say
from .memory import MemoryTrace, measure

WIDTH, ROWS = 32, 512  # a boundary value takes 64 KiB, what is inside a block four times that
BOUNDARY = WIDTH * ROWS * 4
VALUE = 2**20  # bytes of each value in the chains that are measured
SLACK = 3 * recompute.RANDOM_STATE_BYTES  # a little more is kept by some good solutions
SEEDS = (0, 1, 2)


# --- what the answers are tried on --------------------------------------------------------------


def _mlp(dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * WIDTH, WIDTH)
    )


class _Twice(nn.Module):
    """One Linear, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(functional.gelu(self.linear(x)))


class _Pair(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        inner = functional.gelu(self.up(x)) * scale
        return self.down(inner), inner.sum(-1)


@dataclass(frozen=True)
class Case:
    """One thing to try an answer on.

    ``zh``, ``en``: what is tried, as a noun. ``module``: makes the function. ``requires_grad``: of
    each input. ``inputs``: what becomes of the leaves on their way to the function. ``reused``: the
    loss reads the first input too, as in a residual connection, and draws random numbers after the
    function has. ``accumulate``: gradients of an earlier step are still there. ``random``: the
    function draws random numbers. ``hint``: said of a gradient that is off or missing.
    """

    zh: str
    en: str
    module: Callable[[], nn.Module] = _mlp
    requires_grad: tuple[bool, ...] = (True,)
    inputs: Callable[[Tensor], Tensor] = Tensor.tanh
    reused: bool = False
    accumulate: bool = False
    autocast: bool = False
    random: bool = False
    device: str = "cpu"
    hint: Words = ("", "")


_RANDOM_HINT = (
    "第二次运行抽到了别的随机数：dropout 丢掉了另一些元素。",
    "The second run drew different random numbers, so dropout dropped different elements.",
)
_MODE_HINT = (
    "随机数状态是对的，可是第二次运行时，块里有模块的 training 与第一次不同，"
    "dropout 做的事也就不同。",
    "The random state is right, but in the second run some module of the block has another "
    "training flag than in the first, so dropout does something else.",
)
_AUTOCAST_HINT = (
    "重算时 autocast 是关着的：反向传播不在那个 with 里面。",
    "The second run was not under autocast: the backward pass is outside of that with block.",
)
_NO_AUTOCAST_HINT = (
    "第二次运行在 autocast 下面，第一次却不是。",
    "The second run was under autocast, and the first was not.",
)
PLAIN = Case("一个块", "one block", reused=True)
LEAF = Case("作为叶子的输入", "an input that is a leaf", inputs=lambda leaf: leaf)
AGAIN = Case("`.grad` 里已有的上一步的梯度", "an earlier step's gradient in `.grad`",
             accumulate=True,
             hint=("新的梯度要加上去，不能盖掉旧的。",
                   "New gradients must be added to what is there, not replace it."))  # fmt: skip
TWICE = Case("一个用了两次的参数", "a parameter that is used twice", module=_Twice)
PAIR = Case("两个输入、两个输出，第二个输入不要梯度",
            "two inputs and two outputs, the second input without a gradient",
            module=_Pair, requires_grad=(True, False))  # fmt: skip
STRIDED = Case("不连续的输入", "a non-contiguous input", inputs=lambda leaf: leaf.t())
DROPOUT = Case("dropout", "dropout", module=lambda: _mlp(0.3), reused=True, random=True)
AUTOCAST = Case("bf16 autocast", "bf16 autocast", autocast=True)
CUDA = Case("GPU 上的 dropout", "dropout on the GPU", module=lambda: _mlp(0.3), device="cuda",
            hint=("GPU 有自己的随机数状态，要一起存、一起恢复。",
                  "The GPU has a random state of its own: keep and restore it too."))  # fmt: skip
RAW = Case("原始数据，没有任何输入要梯度", "raw data, where no input requires a gradient",
           requires_grad=(False,), inputs=lambda leaf: leaf,
           hint=("参数仍然要有梯度；autograd.Function 只看输入，这里帮不上忙。",
                 "The parameters still need theirs; an autograd.Function looks only at its "
                 "inputs and cannot help here."))  # fmt: skip


@dataclass(frozen=True)
class _Start:
    """What a module met when one of its runs began; ``training``: of it and those inside."""

    module: nn.Module
    grad: bool
    autocast: bool
    training: tuple[bool, ...]
    random_state: Tensor


@dataclass
class _Run:
    """What one step did. ``calls``: how often the module began to run, by the end of forward and
    by the end of the step; ``starts``: what it met each time."""

    outputs: tuple[Tensor, ...] = ()
    differentiable: tuple[bool, ...] = ()
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    calls: tuple[int, int] = (0, 0)
    random_states: list[Tensor] = field(default_factory=list)
    starts: list[_Start] = field(default_factory=list)


class _Setting:
    """A case made concrete: the same weights, inputs and loss for whoever runs in it."""

    def __init__(self, case: Case, seed: int):
        self.case, self.seed = case, seed
        torch.manual_seed(100 + seed)
        self.module = case.module().to(case.device)
        shape = (WIDTH, ROWS) if case is STRIDED else (ROWS, WIDTH)
        self.leaves = [torch.randn(shape, device=case.device)]
        if len(case.requires_grad) > 1:
            self.leaves.append(torch.rand(ROWS, 4 * WIDTH, device=case.device))
        for leaf, requires in zip(self.leaves, case.requires_grad, strict=True):
            leaf.requires_grad_(requires)
        self.weights = [torch.randn(ROWS, WIDTH, device=case.device),
                        torch.randn(ROWS, device=case.device)]  # fmt: skip
        self.earlier = {name: torch.randn_like(leaf) for name, leaf in self.named()}

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Whatever may get a gradient."""
        for i, leaf in enumerate(self.leaves):
            yield f"x{i + 1}" if len(self.leaves) > 1 else "x", leaf
        yield from self.module.named_parameters()

    def reset(self) -> None:
        for name, leaf in self.named():
            earlier = self.case.accumulate and leaf.requires_grad
            leaf.grad = self.earlier[name].clone() if earlier else None
        torch.manual_seed(100 + self.seed)

    def run(self, call: Callable[..., Any]) -> _Run:
        """One step in which ``call(module, *inputs)`` does the forward pass."""
        self.reset()
        run = _Run()
        with _counting(self.module, run.starts), _seen(run.starts):
            loss = self.loss(call, run)
            forward_calls = len(run.starts)
            _backward(loss)
            run.calls = forward_calls, len(run.starts)
        run.random_states = [torch.get_rng_state()]
        if self.case.device == "cuda":
            run.random_states.append(torch.cuda.get_rng_state())
        run.gradients = {name: leaf.grad for name, leaf in self.named()}
        return run

    def loss(self, call: Callable[..., Any], run: _Run | None = None) -> Tensor:
        first, *others = self.leaves
        x = self.case.inputs(first)
        with torch.autocast(self.case.device, torch.bfloat16, enabled=self.case.autocast):
            outputs = call(self.module, x, *others)
        if outputs is None and isinstance(call, Answer):
            raise call.nothing(self.module, x, *others)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for output in outputs:
            if not isinstance(output, Tensor):
                raise Wrong(
                    f"输出应是张量，得到的是 {type(output).__name__}：{briefly(output)}。",
                    f"The output should be a tensor, not {type(output).__name__}: "
                    f"{briefly(output)}.",
                )
        if run is not None:
            run.outputs = tuple(output.detach() for output in outputs)
            run.differentiable = tuple(output.requires_grad for output in outputs)
            if not any(run.differentiable):
                raise _wrong(_name(self.case), (
                    "输出没有 grad_fn：计算图在你的函数里断掉了，梯度回不来。",
                    "the output has no grad_fn: the graph ends inside your function, and no "
                    "gradient can come back."), self.case.hint)  # fmt: skip
        loss = sum((y * w).sum() for y, w in zip(outputs, self.weights, strict=False))
        if self.case.reused:
            loss = loss + (functional.dropout(x) * self.weights[0]).sum()
        return loss

    def measured(self, call: Callable[..., Any]) -> MemoryTrace:
        self.reset()
        return measure(
            lambda: self.loss(call).backward(), self.module,
            inputs=(self.leaves, self.weights, list(self.earlier.values())),
        )  # fmt: skip


def _backward(loss: Tensor) -> None:
    with waiting_for(("反向传播（里面有你的代码）", "the backward pass, with your code in it")):
        loss.backward()


@contextlib.contextmanager
def _counting(module: nn.Module, starts: list[_Start]) -> Iterator[None]:
    """Note each time that ``module`` begins to run."""

    def note(module: nn.Module, _: Any) -> None:
        starts.append(_Start(
            module, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"),
            tuple(part.training for part in module.modules()), torch.get_rng_state(),
        ))  # fmt: skip

    handle = module.register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _seen(starts: list[_Start]) -> Iterator[None]:
    """Hand an exception the runs that were seen before it, for the hint that fits."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(AttributeError):
            error._starts = starts  # type: ignore[attr-defined]
        raise


# --- what can be off ----------------------------------------------------------------------------


def _check_same(case: Case, plain: _Run, theirs: _Run) -> None:
    """Raise ``Wrong`` for the first difference that matters."""
    where = _name(case)
    found, expected = len(theirs.outputs), len(plain.outputs)
    if found != expected:
        raise _wrong(where, (f"输出有 {found} 个，应有 {expected} 个。",
                             f"it returns {found} outputs, expected {expected}."))  # fmt: skip
    for mine, right in zip(theirs.outputs, plain.outputs, strict=True):
        _check_output(where, mine, right)
    _check_gradients(where, _hint_for(case, theirs.starts), plain.gradients, theirs.gradients)
    _check_calls(where, theirs.calls)
    if not all(map(torch.equal, theirs.random_states, plain.random_states)):
        raise _wrong(where, (
            "梯度对了，但这一步之后的随机数状态与不用检查点时不同："
            "之后抽的随机数都变了。重算结束后要放回原来的状态。",
            "gradients agree, but the random state after the step is not what it would be "
            "without a checkpoint: later draws get different numbers. Put the state back after the "
            "second run."))  # fmt: skip


def _name(case: Case) -> Words:
    return f"试「{case.zh}」时：", f"Tried with {case.en}: "


def _hint_for(case: Case, starts: Sequence[_Start]) -> Words:
    """Why the second run of a function may have done something else, judged by how it began."""
    if len(starts) > 1:
        first, second = starts[:2]
        if case.random and not torch.equal(first.random_state, second.random_state):
            return _RANDOM_HINT
        if first.training != second.training:
            return _MODE_HINT
        if first.autocast and not second.autocast:
            return _AUTOCAST_HINT
        if second.autocast and not first.autocast:
            return _NO_AUTOCAST_HINT
    return case.hint


def _wrong(where: Words, what: Words, hint: Words = ("", "")) -> Wrong:
    return Wrong(
        where[0] + what[0] + hint[0],
        " ".join(part for part in (where[1].strip(), what[1], hint[1]) if part),
    )


def _check_output(where: Words, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        shapes = [f"{list(t.shape)} {str(t.dtype)[6:]}" for t in (found, expected)]
        raise _wrong(where, (f"输出是 {shapes[0]}，应是 {shapes[1]}。",
                             f"the output is {shapes[0]}, expected {shapes[1]}."))  # fmt: skip
    if not torch.equal(found, expected):
        gap = (found - expected).abs().max().item()
        raise _wrong(where, (f"前向传播的输出就不一样，最多差 {gap:.2g}。",
                             f"the output of the forward pass already differs, by up to {gap:.2g}."
                             ))  # fmt: skip


def _check_gradients(
    where: Words, hint: Words, expected: dict[str, Tensor | None], found: dict[str, Tensor | None]
) -> None:
    for name, right in expected.items():
        mine = found[name]
        who = "输入" if name.startswith("x") else "参数", "input" if name[0] == "x" else "parameter"
        if right is None and mine is None:
            continue
        if right is None:
            raise _wrong(where, (f"{who[0]} {name} 不要梯度，却得到了一个。",
                                 f"{who[1]} {name} needs no gradient but got one."))  # fmt: skip
        if mine is None:
            raise _wrong(where, (f"{who[0]} {name} 没有得到梯度。",
                                 f"{who[1]} {name} got no gradient."), hint)  # fmt: skip
        if mine.shape != right.shape or mine.dtype != right.dtype:
            raise _wrong(where, (
                f"{name} 的梯度是 {list(mine.shape)}，应是 {list(right.shape)}。",
                f"the gradient of {name} is {list(mine.shape)}, expected {list(right.shape)}.",
            ))  # fmt: skip
        if torch.equal(mine, right):
            continue
        if torch.allclose(mine, 2 * right, rtol=1e-4, atol=1e-6):
            raise _wrong(where, (
                f"{name} 的梯度正好是应有的 2 倍：加了两次。",
                f"the gradient of {name} is exactly twice what it should be: it was added twice.",
            ))  # fmt: skip
        gap = (mine - right).abs().max().item()
        scale = right.abs().max().item()
        raise _wrong(where, (
            f"{name} 的梯度与普通反向传播不同，最多差 {gap:.2g}（梯度本身最大 {scale:.2g}）。",
            f"the gradient of {name} differs from plain backward's by up to {gap:.2g} (its own "
            f"largest entry is {scale:.2g}).",
        ), hint)  # fmt: skip


def _check_calls(where: Words, calls: tuple[int, int], expected: int = 2) -> None:
    forward, total = calls
    if forward != 1:
        raise _wrong(where, (f"前向传播中函数运行了 {forward} 次，应为 1 次。",
                             f"the function ran {forward} times in the forward pass, expected 1."
                             ))  # fmt: skip
    if total == 1:
        raise _wrong(where, (
            "函数总共只运行了 1 次，应为 2 次：没有重算，里面的值就都留着。",
            "the function ran only once in all, expected 2: if nothing is recomputed, everything "
            "inside was kept.",
        ))  # fmt: skip
    if total != expected:
        raise _wrong(where, (f"函数总共运行了 {total} 次，应为 {expected} 次：多跑的都要花时间。",
                             f"the function ran {total} times in all, expected {expected}: every "
                             "run takes time."))  # fmt: skip


def _kept(trace: MemoryTrace) -> int:
    return sum(trace.kept.values()) - sum(trace.before.values())


def _check_memory(
    where: Words, theirs: MemoryTrace, reference: MemoryTrace, boundary: int = BOUNDARY
) -> None:
    """Kept bytes and peak against the reference's; less than a boundary value more is let pass."""
    kept, allowed = _kept(theirs), _kept(reference) + SLACK
    if kept > allowed:
        more = kept - _kept(reference)
        hint = ("", "")
        if boundary <= more < 2 * boundary:
            hint = (
                f"多出来的约是一个输出的大小（{boundary:,}）：是谁还拿着它？",
                f"The surplus is about one output ({boundary:,}): who still holds it?",
            )
        raise _wrong(where, (
            f"前向传播结束时保存了 {kept:,} 字节，应不超过 {allowed:,}。",
            f"{kept:,} bytes are kept when the forward pass ends, expected at most {allowed:,}.",
        ), hint)  # fmt: skip
    peak, allowed = theirs.peak, reference.peak + boundary + SLACK
    if peak > allowed:
        raise _wrong(where, (
            f"峰值 {peak:,} 字节，应不超过 {allowed:,}。",
            f"the peak is {peak:,} bytes, expected at most {allowed:,}.",
        ))  # fmt: skip


_NO_GRAD_HINT = (
    "反向传播里梯度模式默认是关着的，重算没有建图：用 torch.enable_grad()。",
    "Grad mode is off inside a backward pass, so the second run built no graph: use "
    "torch.enable_grad().",
)
_NUMBERS_HINT = (
    "重算时收下的张量里没有要的那一个：编号要与前向传播时一一对上，每个也只能取一次。",
    "What the second run collected does not hold the one that was asked for: its numbers have to "
    "match those of the forward pass, and each can be taken out once only.",
)
_ERRORS: tuple[tuple[str, Words], ...] = (
    ("backward through the graph a second time", (
        "重算接在了原来的图上，反向传播一直走到了 x 之前：先 x.detach()。",
        "The second run is attached to the old graph, so its backward pass went past x: "
        "x.detach() first.")),
    ("incorrect number of gradients", (
        "forward 除 ctx 之外收下几个值，backward 就要返回几项；不要梯度的那几项返回 None。",
        "backward returns one item for each value that forward takes besides ctx, and None for "
        "those without a gradient.")),
    ("implicitly created only for scalar", (
        "backward() 需要传入输出的梯度；它还是 None，说明没有人要过那个梯度。",
        "backward() needs the gradient of that output; it is still None because nobody asked "
        "for it.")),
)  # fmt: skip


def _hint_for_error(error: Exception) -> Words:
    """What an exception in a recomputation comes from, judged by how the runs before it began."""
    starts: Sequence[_Start] = getattr(error, "_starts", ())
    if len(starts) > 1 and not starts[-1].grad and isinstance(error, (RuntimeError, LookupError)):
        return _NO_GRAD_HINT  # without a graph, pack is never asked, and nothing is collected
    if len(starts) > 1 and starts[0].autocast != starts[-1].autocast and "dtype" in str(error):
        return _AUTOCAST_HINT
    if len(starts) > 1 and isinstance(error, LookupError):
        return _NUMBERS_HINT
    found = next((hint for sign, hint in _ERRORS if sign in str(error)), ("", ""))
    more = getattr(error, "_open", ("", ""))
    return f"{found[0]}{more[0]}", " ".join(filter(None, (found[1], more[1])))


def _hinted(check: Callable[..., Words | Verdict]) -> Callable[..., Words | Verdict]:
    """Put a hint below what an exception says."""

    @functools.wraps(check)
    def hinted(answer: Any) -> Words | Verdict:
        try:
            return check(answer)
        except (Wrong, Unfinished):
            raise
        except Exception as error:
            zh, en = _hint_for_error(error)
            verdict = raised(error)
            return replace(verdict, zh=f"{verdict.zh}\n{zh}".rstrip(),
                           en=f"{verdict.en}\n{en}".rstrip())  # fmt: skip

    return hinted


def _plain(function: nn.Module, *inputs: Any) -> Any:
    return function(*inputs)


def _on_this_machine(cases: Iterable[Case]) -> list[Case]:
    return [case for case in cases if case.device == "cpu" or torch.cuda.is_available()]


def _check_checkpoint(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    cases: Sequence[Case],
    dropout: float = 0.0,
) -> Words:
    """What stages 2, 3 and 5 have in common. ``dropout``: of blocks that are open at once."""
    answer = Answer(function)
    cases = _on_this_machine(cases)
    for case in cases:
        for seed in SEEDS:
            setting = _Setting(case, seed)
            _check_same(case, setting.run(_plain), setting.run(answer))
    block = _Setting(PLAIN, 0)
    theirs, right, plain = (block.measured(call) for call in (answer, reference, _plain))
    where = _name(PLAIN)
    _check_memory(where, theirs, right)
    if theirs.flops > right.flops:
        raise _wrong(where, (
            f"做了 {theirs.flops:,} 次浮点运算，应为 {right.flops:,}：所有保存过的张量都有了之后，"
            "重算还在继续。",
            f"it does {theirs.flops:,} FLOPs, expected {right.flops:,}: the second run "
            "keeps going after all saved tensors are back.",
        ))  # fmt: skip
    _check_several(answer, dropout)
    _check_nothing_left(answer)
    return (
        f"{len(cases)} 种情形、各 {len(SEEDS)} 个随机种子，梯度全部逐位相同；函数正好运行两次。"
        f"前向传播之后保存 {_kept(theirs):,} 字节，原来是 {_kept(plain):,}。",
        f"In {len(cases)} cases with {len(SEEDS)} seeds each, all gradients are equal bit for "
        f"bit, and the function runs exactly twice. {_kept(theirs):,} bytes are kept after the "
        f"forward pass; it was {_kept(plain):,}.",
    )


# --- several at once, and many one after the other ----------------------------------------------

_OPEN_HINT = (
    "单独一个检查点时都对：每次调用要有自己的一份东西，存在类上或全局变量里的，会被下一次盖掉。",
    "With a single checkpoint all is right: each call has to keep things of its own, since what is "
    "kept on a class or in a global is overwritten by the next.",
)


class _Nest(nn.Module):
    """A block with a checkpoint inside."""

    def __init__(self, call: Callable[..., Any], inner: nn.Module, rest: nn.Module):
        super().__init__()
        self.call, self.inner, self.rest = call, inner, rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.call(self.inner, x).tanh())


def _one_after_another(call: Callable, blocks: nn.ModuleList, x: Tensor, y: Tensor) -> None:
    middle = call(blocks[0], x.tanh())
    _backward(call(blocks[1], middle.tanh()).square().sum())


def _two_batches(call: Callable, blocks: nn.ModuleList, x: Tensor, y: Tensor) -> None:
    first, second = call(blocks[0], x.tanh()), call(blocks[0], y.tanh())
    _backward(first.square().sum())  # in the order of the forward passes, not the other way round
    _backward(second.square().sum())


def _one_left_out(call: Callable, blocks: nn.ModuleList, x: Tensor, y: Tensor) -> None:
    kept = call(blocks[0], x.tanh())
    call(blocks[1], y.tanh())  # as in an evaluation: nobody asks for its gradients
    _backward(kept.square().sum())


def _nested(call: Callable, blocks: nn.ModuleList, x: Tensor, y: Tensor) -> None:
    _backward(call(_Nest(call, blocks[0], blocks[1]), x.tanh()).square().sum())


_SEVERAL = (
    (("两个接连的检查点", "two checkpoints in a row"), _one_after_another),
    (("两批数据先后前向、再先后反向", "two batches forward, then both backward"), _two_batches),
    (("两个检查点，只有前一个做反向", "two checkpoints of which only the first runs backward"),
     _one_left_out),
    (("检查点套着检查点", "a checkpoint inside a checkpoint"), _nested),
)  # fmt: skip


def _check_several(answer: Answer, dropout: float) -> None:
    """Raise ``Wrong`` if checkpoints that are open at once disturb each other."""
    for (zh, en), step in _SEVERAL:
        torch.manual_seed(0)
        blocks = nn.ModuleList(_mlp(dropout) for _ in range(2))
        leaves = [torch.randn(8, WIDTH, requires_grad=True) for _ in range(2)]
        named = {"x1": leaves[0], "x2": leaves[1], **dict(blocks.named_parameters())}
        gradients = []
        for call in (_plain, answer):
            for leaf in named.values():
                leaf.grad = None
            torch.manual_seed(1)
            try:
                step(call, blocks, *leaves)
            except Exception as error:
                with contextlib.suppress(AttributeError):
                    error._open = _OPEN_HINT  # type: ignore[attr-defined]
                raise
            gradients.append({name: leaf.grad for name, leaf in named.items()})
        _check_gradients((f"试「{zh}」时：", f"Tried with {en}: "), _OPEN_HINT, *gradients)


def _check_nothing_left(answer: Answer) -> None:
    """Raise ``Wrong`` if steps leave tensors behind that nobody can free.

    The block has operators that save their own output: where a hook hands such a tensor back with
    its graph, graph and tensor hold each other, out of reach of Python's collector.
    """
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Softmax(-1), nn.Tanh(),
                          nn.Linear(WIDTH, WIDTH))  # fmt: skip
    leaf = torch.randn(64, WIDTH, requires_grad=True)
    growth = _growth(lambda: _backward(answer(block, leaf.tanh()).sum()), block)
    if growth:
        raise Wrong(
            f"试「带 softmax 和 tanh 的块」时：每一步都多出 {growth:,} 字节收不回来。"
            "这些算子保存的是自己的输出；交给 autograd 保存的若是输出本身，连同它的计算图，"
            "图就拿着它，它又拿着图，谁也放不掉。存进全局变量或类里而不清的，也一样。",
            f"Tried with a block with softmax and tanh: each step leaves {growth:,} bytes more "
            "that are never freed. These operators save their own output; if what autograd is "
            "given to save is that output itself, with its graph, the graph holds it and it holds "
            "the graph, and neither can go. The same goes for what is put into a global or a class "
            "and never taken out.",
        )


def _growth(step: Callable[[], Any], *models: nn.Module, steps: int = 3) -> int:
    """Bytes by which inputs and outputs of the models' parts outlive each step, on average."""
    made: dict[StorageWeakRef, int] = {}

    def note(_: nn.Module, inputs: tuple, output: Any) -> None:
        for tensor in (*inputs, output):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                made[StorageWeakRef(storage)] = storage.nbytes()

    def left_after(count: int) -> int:
        for _ in range(count):
            step()
        gc.collect()
        return sum(size for storage, size in made.items() if not storage.expired())

    handles = [part.register_forward_hook(note) for model in models for part in model.modules()]
    try:
        once = left_after(1)
        return max(0, left_after(steps) - once) // steps
    finally:
        for handle in handles:
            handle.remove()


# --- the five stages ----------------------------------------------------------------------------


class _Head(nn.Module):
    """A block and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.block = _mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).square().mean()


def _backward_at_once(body: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    loss = head(body(x))
    loss.backward()
    return loss.detach()


@judged
@_hinted
def check_by_hand(answer: Callable[[nn.Module, nn.Module, Tensor], Any]) -> Words:
    """Check stage 1, ``answer(body, head, x) -> loss``: a whole step's gradients, by hand."""
    answer = Answer(answer)
    cases = (LEAF, RAW, TWICE, STRIDED, AGAIN, AUTOCAST)
    for case in cases:
        for seed in SEEDS:
            plain, _ = _ByHand(case, seed).run(_backward_at_once)
            theirs, head_calls = _ByHand(case, seed).run(answer)
            where = _name(case)
            _check_output(where, theirs.outputs[0], plain.outputs[0])
            if theirs.differentiable[0]:
                raise _wrong(where, (
                    "返回的损失还带着计算图：谁拿着它，谁就拿着图里的一切。用 detach()。",
                    "the loss you return still has its graph: whoever holds it holds everything "
                    "in there. Use detach()."))  # fmt: skip
            hint = _hint_for(case, theirs.starts)
            _check_gradients(where, hint, plain.gradients, theirs.gradients)
            if head_calls != 1:
                raise _wrong(where, (f"head 运行了 {head_calls} 次，应为 1 次。",
                                     f"head ran {head_calls} times, expected 1."))  # fmt: skip
            _check_calls(where, (1, theirs.calls[1]))
    setting = _ByHand(LEAF, 0)
    if growth := _growth(lambda: setting.run(answer), *setting.parts.values()):
        raise Wrong(
            f"梯度都对，但每一步都多出 {growth:,} 字节收不回来：有谁把上一步的张量留着？",
            f"The gradients are right, but each step leaves {growth:,} bytes more that are never "
            "freed: who holds on to tensors of the step before?",
        )
    steps = (answer, recompute.step_by_hand, _backward_at_once)
    peak, right, usual = (_ByHand(LEAF, 0).measured(step).peak for step in steps)
    allowed = right + BOUNDARY + SLACK
    if peak > allowed:
        raise Wrong(
            f"梯度都对，但峰值是 {peak:,} 字节，应不超过 {allowed:,}（普通做法 {usual:,}）："
            "body 里面的值和 head 里面的值不该同时在场。",
            f"The gradients are right, but the peak is {peak:,} bytes, expected at most "
            f"{allowed:,} (plain backward: {usual:,}): what is inside body and what is inside "
            "head should never be in memory together.",
        )
    return (
        f"{len(cases)} 种情形、各 {len(SEEDS)} 个随机种子，梯度全部逐位相同；body 运行两次，"
        f"head 一次。峰值从 {usual:,} 降到 {peak:,} 字节。",
        f"In {len(cases)} cases with {len(SEEDS)} seeds each, all gradients are equal bit for "
        f"bit; body ran twice, head once. The peak fell from {usual:,} to {peak:,} bytes.",
    )


class _ByHand:
    """A body, a head that ends in a loss, and an input: the same for whoever runs the step."""

    def __init__(self, case: Case, seed: int):
        self.case = case
        torch.manual_seed(seed)
        self.parts = nn.ModuleDict({"body": case.module(), "head": _Head()})
        self.x = torch.randn((WIDTH, ROWS) if case is STRIDED else (ROWS, WIDTH))
        if case is STRIDED:
            self.x = self.x.t()
        self.x.requires_grad_(case.requires_grad[0])
        if case.accumulate:
            for leaf in (self.x, *self.parts.parameters()):
                leaf.grad = torch.randn_like(leaf)

    def run(self, step: Callable[..., Any]) -> tuple[_Run, int]:
        """What the step did, and how often the head ran."""
        body_calls: list[_Start] = []
        head_calls: list[_Start] = []
        body, head = self.parts["body"], self.parts["head"]
        with (
            _counting(body, body_calls),
            _counting(head, head_calls),
            _seen(body_calls),
            torch.autocast("cpu", torch.bfloat16, enabled=self.case.autocast),
        ):
            loss = step(body, head, self.x)
        if loss is None and isinstance(step, Answer):
            raise step.nothing(body, head, self.x)
        if not isinstance(loss, Tensor):
            raise Wrong(f"应返回损失（张量），得到的是 {type(loss).__name__}：{briefly(loss)}。",
                        f"Return the loss, a tensor, not {type(loss).__name__}: {briefly(loss)}."
                        )  # fmt: skip
        gradients = {"x": self.x.grad}
        gradients |= {name: leaf.grad for name, leaf in self.parts.named_parameters()}
        run = _Run((loss.detach(),), (loss.requires_grad,), gradients, (1, len(body_calls)),
                   starts=body_calls)  # fmt: skip
        return run, len(head_calls)

    def measured(self, step: Callable[..., Any]) -> MemoryTrace:
        body, head = self.parts["body"], self.parts["head"]
        return measure(lambda: step(body, head, self.x), self.parts, inputs=self.x)


@judged
@_hinted
def check_function(answer: Callable[..., Any]) -> Words:
    """Check stage 2, ``answer(function, *inputs)``: a checkpoint by ``torch.autograd.Function``."""
    cases = (PLAIN, LEAF, AGAIN, TWICE, PAIR, STRIDED)
    return _check_checkpoint(answer, recompute.Rerun.apply, cases)


@judged
@_hinted
def check_random_state(answer: Callable[..., Any]) -> Words:
    """Check stage 3, ``answer(function, *inputs)``: as stage 2, with dropout and autocast."""
    cases = (PLAIN, PAIR, DROPOUT, AUTOCAST, CUDA)
    return _check_checkpoint(answer, recompute.rerun_alike, cases, dropout=0.3)


@judged
@_hinted
def check_hooks(answer: Callable[..., Any]) -> Words:
    """Check stage 5, ``answer(function, *inputs)``: by saved-tensor hooks, with early stop."""
    cases = (LEAF, PLAIN, RAW, AGAIN, TWICE, PAIR, STRIDED, DROPOUT, AUTOCAST, CUDA)
    return _check_checkpoint(answer, recompute.checkpoint, cases, dropout=0.3)


@judged
@_hinted
def check_chain(answer: Callable[..., Any]) -> Words | Verdict:
    """Check stage 4, ``answer(layers, segments, x, checkpoint)``, for chains of several lengths.

    Segments may be cut in any way in which lengths differ by at most one. Later cells go on with
    the answer only if its peaks are those that the lesson explains, with a longest segment last.
    """
    ask = Answer(answer)
    for layers, segments in ((7, 3), (10, 1), (10, 3), (10, 10), (12, 5)):
        _check_chain_gradients(ask, layers, segments)
    for layers in (10, 11, 16):
        for segments in range(1, layers + 1):
            _check_chain_gradients(ask, layers, segments, backward=False)
    peaks: list[tuple[float, float]] = []
    for segments in range(1, 11):
        theirs, right = (_chain_measured(call, segments) for call in (ask, recompute.chain))
        _check_memory(_chain_name(10, segments), theirs, right, VALUE // 2)
        peaks.append((theirs.peak / VALUE, right.peak / VALUE))
    one, three, ten = (f"{peaks[segments - 1][0]:.2f}" for segments in (1, 3, 10))
    praise = (
        "梯度逐位相同，每层正好运行两次，最后一段也不例外。10 层、每个值 1 MiB，分 1、3、10 段时，"
        f"峰值是 {one}、{three}、{ten} MiB。",
        "Gradients are equal bit for bit, and every layer runs exactly twice, those of the last "
        "segment too. With 10 layers and values of 1 MiB, in 1, 3 and 10 segments the peak is "
        f"{one}, {three} and {ten} MiB.",
    )
    lower = [k for k, (theirs, right) in enumerate(peaks, 1) if theirs < right - 0.5]
    if not lower:
        return praise
    mine, usual = (f"{peak:.2f}" for peak in peaks[lower[0] - 1])
    return Verdict(
        "right",
        f"{praise[0]}\n你把长的段放在了前面，峰值更低：{lower[0]} 段时是 {mine} MiB，最后一段最长的"
        f"话是 {usual}。最后一段重算时所有检查点都在场，轮到第一段时别的都已经放掉。后面的单元格按"
        "最后一段最长来讲，所以用 recompute.chain。",
        f"{praise[1]}\nYours puts longer segments first, and peaks lower: with {lower[0]} segments "
        f"{mine} MiB, instead of {usual} with a longest one last. All checkpoints are there while "
        "the last segment is recomputed; at the first one the others are gone. Later cells explain "
        "the case of a longest segment last, and so use recompute.chain.",
        own=False,
    )


def _chain_name(layers: int, segments: int) -> Words:
    return f"{layers} 层分 {segments} 段：", f"{layers} layers in {segments} segments: "


class _Noting:
    """The ``checkpoint`` that a chain is given; notes which layers run in which of its calls.

    ``segments``: their numbers, for each call; ``outside``: layers that ran in none.
    """

    def __init__(self, layers: Iterable[nn.Module], active: bool):
        self.active = active
        self.segments: list[list[int]] = []
        self.outside: list[int] = []
        self._inside = 0
        self.__name__ = "checkpoint"  # as it is called in messages
        self._handles = [
            layer.register_forward_pre_hook(functools.partial(self._note, i))
            for i, layer in enumerate(layers)
        ]

    def _note(self, number: int, *_: Any) -> None:
        (self.segments[-1] if self._inside else self.outside).append(number)

    def __call__(self, function: Callable[..., Any], *inputs: Any) -> Any:
        self.segments.append([])
        self._inside += 1
        try:
            return recompute.rerun_alike(function, *inputs) if self.active else function(*inputs)
        finally:
            self._inside -= 1

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()


def _check_chain_gradients(ask: Answer, count: int, segments: int, backward: bool = True) -> None:
    """Raise ``Wrong`` if a chain's outputs or segments are off; ``backward``: gradients too."""
    where = _chain_name(count, segments)
    torch.manual_seed(count)
    layers = nn.ModuleList(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2), nn.SiLU()) for _ in range(count)
    )
    leaf, weight = torch.randn(8, WIDTH, requires_grad=True), torch.randn(8, WIDTH)

    def run(call: Callable[..., Any]) -> tuple[_Run, list[int], _Noting]:
        layers.zero_grad()
        leaf.grad = None
        torch.manual_seed(segments)
        starts: list[_Start] = []
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(_counting(layer, starts))
            noting = _Noting(layers, active=backward)
            stack.callback(noting.stop)
            given = nn.ModuleList(layers)
            output = call(given, segments, leaf.tanh(), noting)
            if output is None and isinstance(call, Answer):
                raise call.nothing(given, segments, leaf, noting)
            if not isinstance(output, Tensor):
                raise _wrong(where, (f"输出应是张量，得到的是 {type(output).__name__}。",
                                     f"the output should be a tensor, not {type(output).__name__}."
                                     ))  # fmt: skip
            if list(given) != list(layers):
                raise _wrong(where, (
                    "你的函数改动了传进来的 layers：后面的单元格会把模型自己的块交给它。"
                    "切出一段用 layers[begin:end]，不要删。",
                    "your function changes the layers that were passed in, and later cells pass it "
                    "a model's own blocks: take a slice, layers[begin:end], and delete nothing.",
                ))  # fmt: skip
            noting.stop()
            if backward and not output.requires_grad:
                raise _wrong(where, (
                    "输出没有 grad_fn：计算图在你的函数里断掉了，梯度回不来。",
                    "the output has no grad_fn: the graph ends inside your function, and no "
                    "gradient can come back."))  # fmt: skip
            if backward:
                _backward((output * weight).sum())
        gradients: dict[str, Tensor | None] = {"x": leaf.grad}
        gradients |= {f"layers.{name}": p.grad for name, p in layers.named_parameters()}
        run = _Run((output.detach(),), (output.requires_grad,), gradients,
                   random_states=[torch.get_rng_state()])  # fmt: skip
        return run, [sum(s.module is layer for s in starts) for layer in layers], noting

    plain, *_ = run(lambda layers, segments, x, checkpoint: nn.Sequential(*layers)(x))
    theirs, calls, noting = run(ask)
    _check_output(where, theirs.outputs[0], plain.outputs[0])
    if backward and calls != [2] * count:
        shown = "".join(map(str, calls))
        raise _wrong(where, (f"各层运行的次数是 {shown}，应当每层 2 次。",
                             f"the layers ran {shown} times; each should run 2 times."),
                     _hint_for_calls(calls, noting))  # fmt: skip
    _check_segments(where, noting, segments)
    if backward:
        _check_gradients(where, ("", ""), plain.gradients, theirs.gradients)


def _check_segments(where: Words, noting: _Noting, expected: int) -> None:
    """Raise ``Wrong`` unless so many segments, all about as long, went through ``checkpoint``."""
    lengths = [len(segment) for segment in noting.segments]
    shown = ", ".join(map(str, lengths))
    if not lengths:
        raise _wrong(where, _NOT_ASKED)
    if len(lengths) != expected:
        raise _wrong(where, (
            f"checkpoint 调用了 {len(lengths)} 次，应为 {expected} 次；段长是 {shown}。",
            f"checkpoint was called {len(lengths)} times, expected {expected}; the segments' "
            f"lengths are {shown}.",
        ))  # fmt: skip
    if noting.outside:
        raise _wrong(where, (f"第 {noting.outside[0]} 层不在任何一段里。",
                             f"layer {noting.outside[0]} is in no segment."))  # fmt: skip
    if max(lengths) - min(lengths) > 1:
        raise _wrong(where, (f"段长是 {shown}，相差不止 1 层。",
                             f"the segments' lengths are {shown}, which differ by more than 1."
                             ))  # fmt: skip


_NOT_ASKED = (
    "传进来的 checkpoint 一次也没有调用：每一段都要交给它，后面的单元格会换成别的。",
    "the checkpoint that was passed in is never called: each segment has to go through it, since "
    "later cells pass in others.",
)


def _hint_for_calls(calls: list[int], noting: _Noting) -> Words:
    if not noting.segments:
        return _NOT_ASKED[0], f"{_NOT_ASKED[1][:1].upper()}{_NOT_ASKED[1][1:]}"
    if set(calls) <= {1, 2} and calls == sorted(calls, reverse=True):
        first = calls.index(1)
        return (f"从第 {first} 层起没有检查点（从 0 数起）。",
                f"From layer {first} on, counted from 0, there is no checkpoint.")  # fmt: skip
    if max(calls) > 2 and calls[-1] == max(calls) and min(calls) == 1:
        return ("循环里的 lambda 到重算时才去读循环变量，读到的是最后一段的。",
                "A lambda in a loop reads the loop's variables only when it is run again, and "
                "finds those of the last segment.")  # fmt: skip
    return "", ""


def _chain_measured(call: Callable[..., Any], segments: int) -> MemoryTrace:
    layers = nn.ModuleList(nn.SiLU() for _ in range(10))
    x = torch.ones(VALUE // 4, requires_grad=True)
    own = nn.ModuleList(layers)
    return measure(
        lambda: call(own, segments, x, recompute.rerun_alike).sum().backward(), layers, inputs=x
    )


# --- going on with what there is ----------------------------------------------------------------


def yours_or_reference(
    answer: Callable[..., Any], check: Callable[..., Verdict], reference: Callable[..., Any]
) -> Callable[..., Any]:
    """``answer`` if it passes ``check``, else ``reference``; says which."""
    verdict = check(answer)
    if verdict.passed and verdict.own:
        say(zh="接下来用的是你写的。", en="From here on, your own is used.")
        return answer
    name = getattr(reference, "__self__", reference).__name__  # Rerun of Rerun.apply
    if verdict.passed:
        say(
            zh=f"你的也对，但分法与后面讲的不同：接下来用 recompute.{name}。",
            en="Yours is right too, but cuts differently from what is explained below: from here "
            f"on, recompute.{name} is used.",
        )
        return reference
    say(
        zh=f"你的还没有通过检查，接下来先用 recompute.{name}。",
        en=f"Yours has not passed its check yet: from here on, recompute.{name} is used.",
    )
    return reference
