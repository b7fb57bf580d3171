"""Checkers of lesson 02: five ways to recompute, judged by what they do and not how.

Each runs an answer beside plain backward on the same weights, inputs and random numbers. It looks
at the outputs, the gradients (bit for bit), the number of forward calls, the random state and the
memory, in this order, and says of the first that is off what was found and what was expected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import recompute
from .exercises import Verdict, raised, unfinished
from .language import say
from .memory import MemoryTrace, measure

WIDTH, ROWS = 32, 512  # a boundary value takes 64 KiB, what is inside a block four times that
BOUNDARY = WIDTH * ROWS * 4
VALUE = 2**20  # bytes of each value in the chains that are measured
SLACK = 3 * recompute.RANDOM_STATE_BYTES  # a little more is kept by some good solutions
SEEDS = (0, 1, 2)

Words = tuple[str, str]  # (zh, en)


class _Wrong(Exception):
    """What is wrong with an answer: args are zh and en."""


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

    ``module``: makes the function. ``requires_grad``: of each input. ``inputs``: what becomes of
    the leaves on their way to the function. ``reused``: the loss reads the first input too, as in
    a residual connection, and draws random numbers after the function has. ``accumulate``:
    gradients of an earlier step are still there.
    """

    zh: str
    en: str
    module: Callable[[], nn.Module] = _mlp
    requires_grad: tuple[bool, ...] = (True,)
    inputs: Callable[[Tensor], Tensor] = Tensor.tanh
    reused: bool = False
    accumulate: bool = False
    autocast: bool = False
    device: str = "cpu"
    hint: Words = ("", "")


_RANDOM_HINT = (
    "第二次运行抽到了别的随机数：dropout 丢掉了另一些元素。",
    "The second run drew different random numbers, so dropout dropped different elements.",
)
_AUTOCAST_HINT = (
    "重算时 autocast 是关着的：反向传播不在那个 with 里面。",
    "The second run was not under autocast: the backward pass is outside of that with block.",
)
PLAIN = Case("一个块", "one block", reused=True)
LEAF = Case("输入是叶子", "the input is a leaf", inputs=lambda leaf: leaf)
AGAIN = Case("`.grad` 里已有上一步的梯度", "`.grad` holds an earlier step's gradient",
             accumulate=True,
             hint=("新的梯度要加上去，不能盖掉旧的。",
                   "New gradients must be added to what is there, not replace it."))  # fmt: skip
TWICE = Case("同一个参数用两次", "one parameter used twice", module=_Twice)
PAIR = Case("两个输入、两个输出，第二个输入不要梯度",
            "two inputs and two outputs, the second input without a gradient",
            module=_Pair, requires_grad=(True, False))  # fmt: skip
STRIDED = Case("不连续的输入", "a non-contiguous input", inputs=lambda leaf: leaf.t())
DROPOUT = Case("dropout", "dropout", module=lambda: _mlp(0.3), reused=True, hint=_RANDOM_HINT)
AUTOCAST = Case("bf16 autocast", "bf16 autocast", autocast=True, hint=_AUTOCAST_HINT)
CUDA = Case("GPU 上的 dropout", "dropout on the GPU", module=lambda: _mlp(0.3), device="cuda",
            hint=("GPU 有自己的随机数状态，要一起存、一起恢复。",
                  "The GPU has a random state of its own: keep and restore it too."))  # fmt: skip
RAW = Case("没有任何输入要梯度（原始数据）", "no input requires a gradient (raw data)",
           requires_grad=(False,), inputs=lambda leaf: leaf,
           hint=("参数仍然要有梯度；autograd.Function 只看输入，这里帮不上忙。",
                 "The parameters still need theirs; an autograd.Function looks only at its "
                 "inputs and cannot help here."))  # fmt: skip


@dataclass
class _Run:
    """What one step did. ``calls``: how often the module began to run, by the end of forward and
    by the end of the step."""

    outputs: tuple[Tensor, ...] = ()
    differentiable: tuple[bool, ...] = ()
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    calls: tuple[int, int] = (0, 0)
    random_states: list[Tensor] = field(default_factory=list)


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
        calls: list[nn.Module] = []
        with _counting(self.module, calls):
            loss = self.loss(call, run, calls)
            forward_calls = len(calls)
            loss.backward()
            run.calls = forward_calls, len(calls)
        run.random_states = [torch.get_rng_state()]
        if self.case.device == "cuda":
            run.random_states.append(torch.cuda.get_rng_state())
        run.gradients = {name: leaf.grad for name, leaf in self.named()}
        return run

    def loss(
        self, call: Callable[..., Any], run: _Run | None = None, calls: Sequence[Any] = ()
    ) -> Tensor:
        first, *others = self.leaves
        x = self.case.inputs(first)
        with torch.autocast(self.case.device, torch.bfloat16, enabled=self.case.autocast):
            outputs = call(self.module, x, *others)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for output in outputs:
            if not isinstance(output, Tensor):
                if output is None:
                    raise _nothing_returned(calls)
                raise _Wrong(
                    f"输出应是张量，得到的是 {type(output).__name__}。",
                    f"The output should be a tensor, not {type(output).__name__}.",
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


class _Unfinished(Exception):
    """The answer is still a stub."""


def _nothing_returned(calls: Sequence[Any]) -> Exception:
    """What None means, from an answer that made these calls."""
    if not calls:
        return _Unfinished()
    return _Wrong("函数运行了，却没有返回结果：少了 return？",
                  "it ran, but returned nothing: is a return missing?")  # fmt: skip


@contextlib.contextmanager
def _counting(module: nn.Module, calls: list[nn.Module]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda module, _: calls.append(module))
    try:
        yield
    finally:
        handle.remove()


# --- what can be off ----------------------------------------------------------------------------


def _check_same(case: Case, plain: _Run, theirs: _Run) -> None:
    """Raise ``_Wrong`` for the first difference that matters."""
    where = _name(case)
    found, expected = len(theirs.outputs), len(plain.outputs)
    if found != expected:
        raise _wrong(where, (f"输出有 {found} 个，应有 {expected} 个。",
                             f"it returns {found} outputs, expected {expected}."))  # fmt: skip
    for mine, right in zip(theirs.outputs, plain.outputs, strict=True):
        _check_output(where, mine, right)
    _check_gradients(where, case, plain.gradients, theirs.gradients)
    _check_calls(where, theirs.calls)
    if not all(map(torch.equal, theirs.random_states, plain.random_states)):
        raise _wrong(where, (
            "梯度对了，但这一步之后的随机数状态与不用检查点时不同："
            "之后抽的随机数都变了。重算结束后要放回原来的状态。",
            "gradients agree, but the random state after the step is not what it would be "
            "without a checkpoint: later draws get different numbers. Put the state back after the "
            "second run."))  # fmt: skip


def _name(case: Case) -> Words:
    return f"「{case.zh}」：", f"{case.en}: "


def _wrong(where: Words, what: Words, hint: Words = ("", "")) -> _Wrong:
    return _Wrong(
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
    where: Words, case: Case, expected: dict[str, Tensor | None], found: dict[str, Tensor | None]
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
                                 f"{who[1]} {name} got no gradient."), case.hint)  # fmt: skip
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
        ), case.hint)  # fmt: skip


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
_ERRORS: tuple[tuple[str, Words], ...] = (
    ("does not require grad", _NO_GRAD_HINT),
    ("KeyError", _NO_GRAD_HINT),  # without a graph, pack is never asked, and nothing is collected
    ("backward through the graph a second time", (
        "重算接在了原来的图上，反向传播一直走到了 x 之前：先 x.detach()。",
        "The second run is attached to the old graph, so its backward pass went past x: "
        "x.detach() first.")),
    ("implicitly created only for scalar", (
        "backward() 需要传入输出的梯度；它还是 None，说明没有人要过那个梯度。",
        "backward() needs the gradient of that output; it is still None because nobody asked "
        "for it.")),
    ("same dtype", _AUTOCAST_HINT),
)  # fmt: skip


def _judged(check: Callable[[], Words]) -> Verdict:
    """Run a check; what it raises becomes a verdict, what it returns is praise."""
    random_state = torch.get_rng_state()
    try:
        return Verdict("right", *check())
    except _Unfinished:
        return unfinished()
    except _Wrong as wrong:
        return Verdict("wrong", *wrong.args)
    except Exception as error:
        verdict = raised(error)
        for sign, (zh, en) in _ERRORS:
            if sign in verdict.en:
                return Verdict("wrong", f"{verdict.zh}\n{zh}", f"{verdict.en}\n{en}")
        return verdict
    finally:
        torch.set_rng_state(random_state)


def _plain(function: nn.Module, *inputs: Any) -> Any:
    return function(*inputs)


def _on_this_machine(cases: Iterable[Case]) -> list[Case]:
    return [case for case in cases if case.device == "cpu" or torch.cuda.is_available()]


def _check_checkpoint(
    answer: Callable[..., Any], reference: Callable[..., Any], cases: Sequence[Case]
) -> Words:
    """What stages 2, 3 and 5 have in common."""
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
    return (
        f"{len(cases)} 种情形、各 {len(SEEDS)} 个随机种子，梯度全部逐位相同；函数正好运行两次。"
        f"前向传播之后保存 {_kept(theirs):,} 字节，原来是 {_kept(plain):,}。",
        f"In {len(cases)} cases with {len(SEEDS)} seeds each, all gradients are equal bit for "
        f"bit, and the function runs exactly twice. {_kept(theirs):,} bytes are kept after the "
        f"forward pass; it was {_kept(plain):,}.",
    )


# --- the five stages ----------------------------------------------------------------------------


def check_by_hand(answer: Callable[[nn.Module, nn.Module, Tensor], Any]) -> Verdict:
    """Check stage 1, ``answer(body, head, x) -> loss``: a whole step's gradients, by hand."""
    return _judged(lambda: _check_by_hand(answer))


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


def _check_by_hand(answer: Callable[[nn.Module, nn.Module, Tensor], Any]) -> Words:
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
            _check_gradients(where, case, plain.gradients, theirs.gradients)
            if head_calls != 1:
                raise _wrong(where, (f"head 运行了 {head_calls} 次，应为 1 次。",
                                     f"head ran {head_calls} times, expected 1."))  # fmt: skip
            _check_calls(where, (1, theirs.calls[1]))
    steps = (answer, recompute.step_by_hand, _backward_at_once)
    peak, right, usual = (_ByHand(LEAF, 0).measured(step).peak for step in steps)
    allowed = right + BOUNDARY + SLACK
    if peak > allowed:
        raise _Wrong(
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
        body_calls: list[nn.Module] = []
        head_calls: list[nn.Module] = []
        body, head = self.parts["body"], self.parts["head"]
        with (
            _counting(body, body_calls),
            _counting(head, head_calls),
            torch.autocast("cpu", torch.bfloat16, enabled=self.case.autocast),
        ):
            loss = step(body, head, self.x)
        if loss is None:
            raise _nothing_returned(body_calls)
        if not isinstance(loss, Tensor):
            raise _Wrong(f"应返回损失（张量），得到的是 {type(loss).__name__}。",
                         f"Return the loss, a tensor, not {type(loss).__name__}.")  # fmt: skip
        gradients = {"x": self.x.grad}
        gradients |= {name: leaf.grad for name, leaf in self.parts.named_parameters()}
        run = _Run((loss.detach(),), (loss.requires_grad,), gradients, (1, len(body_calls)))
        return run, len(head_calls)

    def measured(self, step: Callable[..., Any]) -> MemoryTrace:
        body, head = self.parts["body"], self.parts["head"]
        return measure(lambda: step(body, head, self.x), self.parts, inputs=self.x)


def check_function(answer: Callable[..., Any]) -> Verdict:
    """Check stage 2, ``answer(function, *inputs)``: a checkpoint by ``torch.autograd.Function``."""
    cases = (PLAIN, LEAF, AGAIN, TWICE, PAIR, STRIDED)
    return _judged(lambda: _check_checkpoint(answer, recompute.Rerun.apply, cases))


def check_random_state(answer: Callable[..., Any]) -> Verdict:
    """Check stage 3, ``answer(function, *inputs)``: as stage 2, with dropout and autocast."""
    cases = (DROPOUT, PLAIN, PAIR, AUTOCAST, CUDA)
    return _judged(lambda: _check_checkpoint(answer, recompute.rerun_alike, cases))


def check_hooks(answer: Callable[..., Any]) -> Verdict:
    """Check stage 5, ``answer(function, *inputs)``: by saved-tensor hooks, with early stop."""
    cases = (LEAF, PLAIN, RAW, AGAIN, TWICE, PAIR, STRIDED, DROPOUT, AUTOCAST, CUDA)
    return _judged(lambda: _check_checkpoint(answer, recompute.checkpoint, cases))


def check_chain(answer: Callable[..., Any]) -> Verdict:
    """Check stage 4, ``answer(layers, segments, x, checkpoint)``, for chains of 7 and 10 layers."""
    return _judged(lambda: _check_chain(answer))


def _check_chain(answer: Callable[..., Any]) -> Words:
    for layers, segments in ((7, 3), (10, 1), (10, 3), (10, 10)):
        _check_chain_gradients(answer, layers, segments)
    for segments in range(1, 11):
        where = _chain_name(10, segments)
        theirs, right = (_chain_measured(call, segments) for call in (answer, recompute.chain))
        _check_memory(where, theirs, right, VALUE // 2)
    peaks = [_chain_measured(answer, segments).peak / VALUE for segments in (1, 3, 10)]
    one, three, ten = (f"{peak:.2f}" for peak in peaks)
    return (
        "梯度逐位相同，每层正好运行两次，最后一段也不例外。10 层、每个值 1 MiB，分 1、3、10 段时，"
        f"峰值是 {one}、{three}、{ten} MiB。",
        "Gradients are equal bit for bit, and every layer runs exactly twice, those of the last "
        "segment too. With 10 layers and values of 1 MiB, in 1, 3 and 10 segments the peak is "
        f"{one}, {three} and {ten} MiB.",
    )


def _chain_name(layers: int, segments: int) -> Words:
    return f"{layers} 层分 {segments} 段：", f"{layers} layers in {segments} segments: "


def _check_chain_gradients(answer: Callable[..., Any], count: int, segments: int) -> None:
    where = _chain_name(count, segments)
    torch.manual_seed(count)
    layers = nn.ModuleList(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2), nn.SiLU()) for _ in range(count)
    )
    leaf, weight = torch.randn(8, WIDTH, requires_grad=True), torch.randn(8, WIDTH)

    def run(call: Callable[..., Any]) -> tuple[_Run, list[int]]:
        layers.zero_grad()
        leaf.grad = None
        torch.manual_seed(segments)
        calls: list[nn.Module] = []
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(_counting(layer, calls))
            own = nn.ModuleList(layers)  # a list of the answer's own, should it change it
            output = call(own, segments, leaf.tanh(), recompute.rerun_alike)
            if output is None:
                raise _nothing_returned(calls)
            if not isinstance(output, Tensor):
                raise _wrong(where, (f"输出应是张量，得到的是 {type(output).__name__}。",
                                     f"the output should be a tensor, not {type(output).__name__}."
                                     ))  # fmt: skip
            (output * weight).sum().backward()
        gradients: dict[str, Tensor | None] = {"x": leaf.grad}
        gradients |= {f"layers.{name}": p.grad for name, p in layers.named_parameters()}
        run = _Run((output.detach(),), (output.requires_grad,), gradients,
                   random_states=[torch.get_rng_state()])  # fmt: skip
        return run, [sum(called is layer for called in calls) for layer in layers]

    plain, _ = run(lambda layers, segments, x, checkpoint: nn.Sequential(*layers)(x))
    theirs, calls = run(answer)
    _check_output(where, theirs.outputs[0], plain.outputs[0])
    if calls != [2] * count:
        shown = "".join(map(str, calls))
        raise _wrong(where, (f"各层运行的次数是 {shown}，应当每层 2 次。",
                             f"the layers ran {shown} times; each should run 2 times."),
                     _hint_for_calls(calls))  # fmt: skip
    _check_gradients(where, PLAIN, plain.gradients, theirs.gradients)


def _hint_for_calls(calls: list[int]) -> Words:
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
    if check(answer).passed:
        say(zh="接下来用的是你写的。", en="From here on, your own is used.")
        return answer
    name = getattr(reference, "__self__", reference).__name__  # Rerun of Rerun.apply
    say(
        zh=f"你的还没有通过检查，接下来先用 recompute.{name}。",
        en=f"Yours has not passed its check yet: from here on, recompute.{name} is used.",
    )
    return reference
