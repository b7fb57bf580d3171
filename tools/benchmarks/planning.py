"""Tools that plan checkpoints beside each other: what they say a plan takes, and what it takes."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from page import bullets, named, table
from planners import PLANNERS, REFUSALS, Case, Chain, Plan, Planner
from subjects import Layers, encoder, training
from timing import in_turns
from torch import Tensor, nn

from course_lib.memory import measure
from course_lib.models import Block, Sizes
from course_lib.wrapping import checkpoint_blocks
from support.independent import Step, count

HEADING = ("给检查点做规划", "Planning checkpoints")
TURNS = 3


# --- the steps ----------------------------------------------------------------------------------


def _stack(*layers: nn.Module) -> Step:
    return training(Layers(*layers), torch.randn(8, 64, 128), optimizer=True)


def _uneven() -> Step:
    widths = (2048, 128, 1024, 256, 512, 128)
    return _stack(
        *[nn.TransformerEncoderLayer(128, 4, width, 0.0, batch_first=True) for width in widths]
    )


def _decoder() -> Step:
    from support import zoo  # takes seconds

    config = zoo.T.LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=4, use_cache=False,
    )  # fmt: skip
    ids = torch.randint(3, config.vocab_size, (4, 64))
    inputs = {"input_ids": ids, "labels": ids}
    return zoo.training(zoo.T.LlamaForCausalLM(config).train(), inputs)


def _layers(model: nn.Module) -> Chain:
    return [(f"layers.{name}", layer) for name, layer in model.layers.named_children()]


def _of_a_decoder(model: nn.Module) -> Chain:
    inner = [(f"model.layers.{n}", layer) for n, layer in model.model.layers.named_children()]
    return [("model.embed_tokens", model.model.embed_tokens), *inner]


def _inputs(step: Step) -> Tensor:
    return step.inputs


CASES = (
    Case("编码器，4 层，d 128，8 × 64", "encoder, 4 layers, d 128, 8 × 64",
         lambda: training(encoder(4, 128), torch.randn(8, 64, 128), optimizer=True),
         _layers, _inputs),
    Case("8 个块，注意力逐步写出", "8 blocks, attention written out",
         lambda: _stack(*[Block(Sizes(width=128)) for _ in range(8)]), _layers, _inputs),
    Case("6 层，前馈宽度各不相同", "6 layers, feed-forwards of all widths",
         _uneven, _layers, _inputs),
    Case("`LlamaForCausalLM`，6 层，4 × 64 个 token", "`LlamaForCausalLM`, 6 layers, 4 × 64 tokens",
         _decoder, _of_a_decoder, lambda step: step.inputs["input_ids"]),
)  # fmt: skip
TIMED = CASES[:1]  # a solver takes its time


# --- the questions ------------------------------------------------------------------------------


def with_plan(case: Case, plan: Plan) -> Step:
    """The step, the plan carried out before its first run."""
    step = case.build()
    if plan.put_on is not None:
        plan.put_on(step.model)
    return step


def counted(case: Case, plan: Plan) -> int:
    """Bytes at the peak of the step under the plan, as the profiler counts them."""
    return count(lambda: with_plan(case, plan)).peak


def operations(case: Case, plan: Plan) -> int:
    """FLOPs of the step under the plan."""
    step = with_plan(case, plan)
    return measure(step.run, step.model, step.optimizer, step.inputs).flops


def every_block(case: Case) -> Plan:
    def put_on(model: nn.Module) -> object:
        return checkpoint_blocks(model, [path for path, _ in case.chain(model)])

    return Plan(0, put_on)


def budget_of(case: Case) -> int:
    """Half way between the peak without checkpoints and that with one on every block."""
    return (counted(case, Plan(0)) + counted(case, every_block(case))) // 2


def ask(planner: Planner, case: Case, budget: int) -> Plan | Exception:
    """The planner's answer, or what it raises."""
    try:
        return planner.ask(case, case.build(), budget)
    except Exception as problem:
        return problem


# --- the part of the page -----------------------------------------------------------------------


def section() -> Iterator[str]:
    """The part of the page, paragraph by paragraph."""
    if find_spec("ckptplan") is None:
        raise RuntimeError(
            "no ckptplan here: `pip install --no-deps -r tools/benchmarks/ckptplan.txt`"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from _section()


def _section() -> Iterator[str]:
    budgets = {case: budget_of(case) for case in CASES}
    answers = {
        (case, planner): ask(planner, case, budgets[case]) for case in CASES for planner in PLANNERS
    }
    yield named(
        "每一步都带 Adam，状态已经有了。预算在没有检查点的峰值和每块一个检查点的峰值正中间。把各工"
        "具的方案真的装上，由 profiler 独立计数：误差是工具所说的减去实际的，字节；“放得下”说的是"
        "实际的峰值；运算是与没有检查点相比。`ckptplan` 只管块里的激活值，这里补上了开始前就有的和"
        "梯度；`sac_milp`（`torch.distributed._tools`）不算优化器状态，也补上了。"
        "`accelerate estimate-memory` 没有方案，只给一个总数，与没有检查点的一步相比。",
        "Each step has Adam, its state being there. The budget is half way between the peak "
        "without checkpoints and that with one on every block. Each tool's plan is carried out "
        "and counted independently by the profiler: the error is what the tool says less what it "
        "takes, in bytes; “fits” is said of the peak counted; operations are compared with no "
        "checkpoints. `ckptplan` speaks of activations in blocks; what existed and the gradients "
        "are added. `sac_milp` (`torch.distributed._tools`) leaves the optimizer's state out, "
        "which is added. `accelerate estimate-memory` has no plan but one total, compared with "
        "the step without checkpoints.",
        between="\n\n",
    )
    heads = [
        named("训练步", "step"), named("预算", "budget"), named("工具", "tool"),
        named("检查点", "checkpoints"), named("工具说的峰值", "peak, as the tool has it"),
        named("误差", "error"), named("放得下", "fits"), named("多做的运算", "more operations"),
    ]  # fmt: skip
    yield table(
        heads,
        [
            [named(case.zh, case.en), f"{budgets[case]:,}", _name(planner),
             *_told(case, answers[case, planner], budgets[case])]
            for case in CASES for planner in PLANNERS
        ],
    )  # fmt: skip
    yield bullets(
        f"{_name(planner)} · {named(case.zh, case.en)}：`{_words(answer)}`"
        for (case, planner), answer in answers.items()
        if isinstance(answer, Exception)
    )

    yield named(
        "“代填”：这两个工具做规划要用的一个数只肯从 CUDA 取，这里没有，就在 CPU 上替它数出来，其余"
        "照旧。`ckptplan`：每块激活值的字节，按它自己在 GPU 上的算法；`sac_milp`：每个算子的时间，"
        "由运算量和字节数算。照说明书原样问，它们在这台机器上的回答：",
        "“Filled in”: these two take one of the figures that they plan with from CUDA alone. There "
        "is none here, so it is found on the CPU in their place, and all else is theirs. "
        "`ckptplan`: the bytes of each block's activations, by its own method for a GPU; "
        "`sac_milp`: each operator's time, from its operations and bytes. Asked as their manuals "
        "say, on this machine they answer:",
        between="\n\n",
    )
    yield bullets(
        f"{_name(planner)}：`{_words(answer)}`"
        if isinstance(answer := ask(planner, CASES[0], budgets[CASES[0]]), Exception)
        else f"{_name(planner)}: {answer.peak:,}"
        for planner in REFUSALS
    )

    yield named(
        f"得到答案的时间：是原样运行一步的几倍，{TURNS} 轮的中位数（最小–最大）；处理器时间，求解"
        "器的进程也在内，torch 用一个线程。",
        "Time to an answer, as a multiple of the bare step: median of "
        f"{TURNS} turns (least–greatest); processor time, that of the solver's process included, "
        "torch on one thread.",
        between="\n\n",
    )
    yield table(
        [heads[0], named("原样", "bare"), *map(_name, PLANNERS)],
        [
            _times(case, budgets[case], [p for p in PLANNERS if isinstance(answers[case, p], Plan)])
            for case in TIMED
        ],
    )


def _name(planner: Planner) -> str:
    return planner.en if planner.zh == planner.en else named(planner.zh, planner.en)


def _told(case: Case, answer: Plan | Exception, budget: int) -> list[str]:
    if isinstance(answer, Exception):
        return ["✗", f"`{type(answer).__name__}`", "✗", "✗", "✗"]
    peak = counted(case, answer)
    error = f"{answer.peak - peak:+,}" if answer.peak != peak else "0"
    if answer.put_on is None:
        return ["—", f"{answer.peak:,}", error, "—", "—"]
    more = operations(case, answer) / operations(case, Plan(0)) - 1
    fits = named("是", "yes") if peak <= budget else named("否", "no")
    return [str(answer.checkpoints), f"{answer.peak:,}", error, fits, f"{more:+.1%}"]


def _words(problem: Exception) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())


def _clock() -> float:
    """Processor time of this process and of those that it has waited for, in seconds."""
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


def _times(case: Case, budget: int, answering: list[Planner]) -> list[str]:
    """One row: each tool asked about a step of its own, in turns with the bare step."""
    bare = case.build()
    runs: dict[Any, Any] = {"": bare.run}
    for planner in answering:
        step = case.build()
        runs[planner] = lambda planner=planner, step=step: planner.ask(case, step, budget)
    times = in_turns(runs, TURNS, _clock)
    return [
        named(case.zh, case.en),
        f"{times[''].median * 1e3:.0f} ms",
        *(times[p].over(times[""]) if p in times else "✗" for p in PLANNERS),
    ]
