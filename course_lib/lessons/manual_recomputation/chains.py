"""The last stage of lesson 02: a chain in segments, its calls, gradients and memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ... import recompute
from ...memory.measurement import measure
from ...memory.trace import MemoryTrace
from ...notebook.checking import (
    Answer,
    Words,
)
from .cases import VALUE, WIDTH, Run, Start, counting, run_backward, wrong_at
from .judging import check_gradients, check_output


def chain_name(layers: int, segments: int) -> Words:
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


def check_chain_gradients(ask: Answer, count: int, segments: int, backward: bool = True) -> None:
    """Raise ``Wrong`` if a chain's outputs or segments are off; ``backward``: gradients too."""
    where = chain_name(count, segments)
    torch.manual_seed(count)
    layers = nn.ModuleList(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2), nn.SiLU()) for _ in range(count)
    )
    leaf, weight = torch.randn(8, WIDTH, requires_grad=True), torch.randn(8, WIDTH)

    def run(call: Callable[..., Any]) -> tuple[Run, list[int], _Noting]:
        layers.zero_grad()
        leaf.grad = None
        torch.manual_seed(segments)
        starts: list[Start] = []
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(counting(layer, starts))
            noting = _Noting(layers, active=backward)
            stack.callback(noting.stop)
            given = nn.ModuleList(layers)
            output = call(given, segments, leaf.tanh(), noting)
            if output is None and isinstance(call, Answer):
                raise call.nothing(given, segments, leaf, noting)
            if not isinstance(output, Tensor):
                raise wrong_at(
                    where,
                    (
                        f"输出应是张量，得到的是 {type(output).__name__}。",
                        f"the output should be a tensor, not {type(output).__name__}.",
                    ),
                )
            if list(given) != list(layers):
                raise wrong_at(
                    where,
                    (
                        "你的函数改动了传进来的 layers：后面的单元格会把模型自己的块交给它。"
                        "切出一段用 layers[begin:end]，不要删。",
                        "your function changes the layers that were passed in, and later cells "
                        "pass it a model's own blocks: take a slice, layers[begin:end], and delete "
                        "nothing.",
                    ),
                )
            noting.stop()
            if backward and not output.requires_grad:
                raise wrong_at(
                    where,
                    (
                        "输出没有 grad_fn：计算图在你的函数里断掉了，梯度回不来。",
                        "the output has no grad_fn: the graph ends inside your function, and no "
                        "gradient can come back.",
                    ),
                )
            if backward:
                run_backward((output * weight).sum())
        gradients: dict[str, Tensor | None] = {"x": leaf.grad}
        gradients |= {f"layers.{name}": p.grad for name, p in layers.named_parameters()}
        run = Run(
            (output.detach(),),
            (output.requires_grad,),
            gradients,
            random_states=[torch.get_rng_state()],
        )
        return run, [sum(s.module is layer for s in starts) for layer in layers], noting

    plain, *_ = run(lambda layers, segments, x, checkpoint: nn.Sequential(*layers)(x))
    theirs, calls, noting = run(ask)
    check_output(where, theirs.outputs[0], plain.outputs[0])
    if backward and calls != [2] * count:
        shown = "".join(map(str, calls))
        raise wrong_at(
            where,
            (
                f"各层运行的次数是 {shown}，应当每层 2 次。",
                f"the layers ran {shown} times; each should run 2 times.",
            ),
            _hint_for_calls(calls, noting),
        )
    _check_segments(where, noting, segments)
    if backward:
        check_gradients(where, ("", ""), plain.gradients, theirs.gradients)


def _check_segments(where: Words, noting: _Noting, expected: int) -> None:
    """Raise ``Wrong`` unless so many segments, all about as long, went through ``checkpoint``."""
    lengths = [len(segment) for segment in noting.segments]
    shown = ", ".join(map(str, lengths))
    if not lengths:
        raise wrong_at(where, _NOT_ASKED)
    if len(lengths) != expected:
        raise wrong_at(
            where,
            (
                f"checkpoint 调用了 {len(lengths)} 次，应为 {expected} 次；段长是 {shown}。",
                f"checkpoint was called {len(lengths)} times, expected {expected}; the segments' "
                f"lengths are {shown}.",
            ),
        )
    if noting.outside:
        raise wrong_at(
            where,
            (
                f"第 {noting.outside[0]} 层不在任何一段里。",
                f"layer {noting.outside[0]} is in no segment.",
            ),
        )
    if max(lengths) - min(lengths) > 1:
        raise wrong_at(
            where,
            (
                f"段长是 {shown}，相差不止 1 层。",
                f"the segments' lengths are {shown}, which differ by more than 1.",
            ),
        )


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
        return (
            f"从第 {first} 层起没有检查点（从 0 数起）。",
            f"From layer {first} on, counted from 0, there is no checkpoint.",
        )
    if max(calls) > 2 and calls[-1] == max(calls) and min(calls) == 1:
        return (
            "循环里的 lambda 到重算时才去读循环变量，读到的是最后一段的。",
            "A lambda in a loop reads the loop's variables only when it is run again, and "
            "finds those of the last segment.",
        )
    return "", ""


def chain_measured(call: Callable[..., Any], segments: int) -> MemoryTrace:
    layers = nn.ModuleList(nn.SiLU() for _ in range(10))
    x = torch.ones(VALUE // 4, requires_grad=True)
    own = nn.ModuleList(layers)
    return measure(
        lambda: call(own, segments, x, recompute.rerun_alike).sum().backward(), layers, inputs=x
    )
