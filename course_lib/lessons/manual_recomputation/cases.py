"""What answers of lesson 02 are tried on: modules, inputs, and settings to run them in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ... import recompute
from ...memory.measurement import measure
from ...memory.trace import MemoryTrace
from ...notebook.checking import (
    Answer,
    Words,
    Wrong,
    briefly,
    waiting_for,
)

WIDTH, ROWS = 32, 512  # a boundary value takes 64 KiB, what is inside a block four times that


BOUNDARY = WIDTH * ROWS * 4


VALUE = 2**20  # bytes of each value in the chains that are measured


SLACK = 3 * recompute.RANDOM_STATE_BYTES  # a little more is kept by some good solutions


SEEDS = (0, 1, 2)


def mlp(dropout: float = 0.0) -> nn.Sequential:
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
    module: Callable[[], nn.Module] = mlp
    requires_grad: tuple[bool, ...] = (True,)
    inputs: Callable[[Tensor], Tensor] = Tensor.tanh
    reused: bool = False
    accumulate: bool = False
    autocast: bool = False
    random: bool = False
    device: str = "cpu"
    hint: Words = ("", "")


RANDOM_HINT = (
    "第二次运行抽到了别的随机数：dropout 丢掉了另一些元素。",
    "The second run drew different random numbers, so dropout dropped different elements.",
)


MODE_HINT = (
    "随机数状态是对的，可是第二次运行时，块里有模块的 training 与第一次不同，"
    "dropout 做的事也就不同。",
    "The random state is right, but in the second run some module of the block has another "
    "training flag than in the first, so dropout does something else.",
)


AUTOCAST_HINT = (
    "重算时 autocast 是关着的：反向传播不在那个 with 里面。",
    "The second run was not under autocast: the backward pass is outside of that with block.",
)


NO_AUTOCAST_HINT = (
    "第二次运行在 autocast 下面，第一次却不是。",
    "The second run was under autocast, and the first was not.",
)


PLAIN = Case("一个块", "one block", reused=True)


LEAF = Case("作为叶子的输入", "an input that is a leaf", inputs=lambda leaf: leaf)


AGAIN = Case(
    "`.grad` 里已有的上一步的梯度",
    "an earlier step's gradient in `.grad`",
    accumulate=True,
    hint=(
        "新的梯度要加上去，不能盖掉旧的。",
        "New gradients must be added to what is there, not replace it.",
    ),
)


TWICE = Case("一个用了两次的参数", "a parameter that is used twice", module=_Twice)


PAIR = Case(
    "两个输入、两个输出，第二个输入不要梯度",
    "two inputs and two outputs, the second input without a gradient",
    module=_Pair,
    requires_grad=(True, False),
)


STRIDED = Case("不连续的输入", "a non-contiguous input", inputs=lambda leaf: leaf.t())


DROPOUT = Case("dropout", "dropout", module=lambda: mlp(0.3), reused=True, random=True)


AUTOCAST = Case("bf16 autocast", "bf16 autocast", autocast=True)


CUDA = Case(
    "GPU 上的 dropout",
    "dropout on the GPU",
    module=lambda: mlp(0.3),
    device="cuda",
    hint=(
        "GPU 有自己的随机数状态，要一起存、一起恢复。",
        "The GPU has a random state of its own: keep and restore it too.",
    ),
)


RAW = Case(
    "原始数据，没有任何输入要梯度",
    "raw data, where no input requires a gradient",
    requires_grad=(False,),
    inputs=lambda leaf: leaf,
    hint=(
        "参数仍然要有梯度；autograd.Function 只看输入，这里帮不上忙。",
        "The parameters still need theirs; an autograd.Function looks only at its "
        "inputs and cannot help here.",
    ),
)


@dataclass(frozen=True)
class Start:
    """What a module met when one of its runs began; ``training``: of it and those inside."""

    module: nn.Module
    grad: bool
    autocast: bool
    training: tuple[bool, ...]
    random_state: Tensor


@dataclass
class Run:
    """What one step did. ``calls``: how often the module began to run, by the end of forward and
    by the end of the step; ``starts``: what it met each time."""

    outputs: tuple[Tensor, ...] = ()
    differentiable: tuple[bool, ...] = ()
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    calls: tuple[int, int] = (0, 0)
    random_states: list[Tensor] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)


class Setting:
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
        self.weights = [
            torch.randn(ROWS, WIDTH, device=case.device),
            torch.randn(ROWS, device=case.device),
        ]
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

    def run(self, call: Callable[..., Any]) -> Run:
        """One step in which ``call(module, *inputs)`` does the forward pass."""
        self.reset()
        run = Run()
        with counting(self.module, run.starts), seen_starts(run.starts):
            loss = self.loss(call, run)
            forward_calls = len(run.starts)
            run_backward(loss)
            run.calls = forward_calls, len(run.starts)
        run.random_states = [torch.get_rng_state()]
        if self.case.device == "cuda":
            run.random_states.append(torch.cuda.get_rng_state())
        run.gradients = {name: leaf.grad for name, leaf in self.named()}
        return run

    def loss(self, call: Callable[..., Any], run: Run | None = None) -> Tensor:
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
                raise wrong_at(
                    case_name(self.case),
                    (
                        "输出没有 grad_fn：计算图在你的函数里断掉了，梯度回不来。",
                        "the output has no grad_fn: the graph ends inside your function, and no "
                        "gradient can come back.",
                    ),
                    self.case.hint,
                )
        loss = sum((y * w).sum() for y, w in zip(outputs, self.weights, strict=False))
        if self.case.reused:
            loss = loss + (functional.dropout(x) * self.weights[0]).sum()
        return loss

    def measured(self, call: Callable[..., Any]) -> MemoryTrace:
        self.reset()
        return measure(
            lambda: self.loss(call).backward(),
            self.module,
            inputs=(self.leaves, self.weights, list(self.earlier.values())),
        )


def run_backward(loss: Tensor) -> None:
    with waiting_for(("反向传播（里面有你的代码）", "the backward pass, with your code in it")):
        loss.backward()


@contextlib.contextmanager
def counting(module: nn.Module, starts: list[Start]) -> Iterator[None]:
    """Note each time that ``module`` begins to run."""

    def note(module: nn.Module, _: Any) -> None:
        starts.append(
            Start(
                module,
                torch.is_grad_enabled(),
                torch.is_autocast_enabled("cpu"),
                tuple(part.training for part in module.modules()),
                torch.get_rng_state(),
            )
        )

    handle = module.register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def seen_starts(starts: list[Start]) -> Iterator[None]:
    """Hand an exception the runs that were seen before it, for the hint that fits."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(AttributeError):
            error._starts = starts  # type: ignore[attr-defined]
        raise


def case_name(case: Case) -> Words:
    return f"试「{case.zh}」时：", f"Tried with {case.en}: "


def wrong_at(where: Words, what: Words, hint: Words = ("", "")) -> Wrong:
    return Wrong(
        where[0] + what[0] + hint[0],
        " ".join(part for part in (where[1].strip(), what[1], hint[1]) if part),
    )
