"""Choosing what to recompute: tools beside each other, the same blocks under the same budgets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from choosers import CHOOSERS
from page import bullets, named, table
from planners import REFUSALS, Case, CkptPlan, Ours, Plan, SacMilp
from planning import _clock, _name, _words, ask, every_block, with_plan
from subjects import Layers, training
from torch import nn

from course_lib.memory import measure
from course_lib.models import Block, Sizes
from support.independent import Step, count

HEADING = ("选择重算什么", "Choosing what to recompute")
SHARES = (0.75, 0.5, 0.25)  # of the way from every block checkpointed to no checkpoint
PLANNERS = (*CHOOSERS, Ours(), CkptPlan(), SacMilp())
CANNOT = {
    "plans.selective": (
        "各块同一种选择；不编译",
        "one choice for all blocks; nothing is compiled",
    ),
    "activation_memory_budget": (
        "管的是保存，不是峰值；从字节到预算没有公式，只能试",
        "limits what is kept, not the peak; no formula leads from bytes to a budget",
    ),
    "torch_remat": (
        "没有规划：标哪一段由人定，要改 forward 的源码；不保存随机数状态",
        "no planner: a person marks regions in the source of forward; no random state is kept",
    ),
    "advise": ("按块选，不进块里面", "chooses blocks, not what is inside of them"),
    "ckptplan": (
        "按块选；激活字节只在 CUDA 上量（这里代填）",
        "chooses blocks; measures activation bytes on CUDA only (filled in here)",
    ),
    "sac_milp": (
        "时间模型要 CUDA（这里代填），按模块给一个丢弃比例，再挑算子",
        "its model of time needs CUDA (filled in here); a share per module, then operators",
    ),
}


def _blocks() -> Step:
    sizes = Sizes(width=64, sequence=64)
    return training(
        Layers(*[Block(sizes) for _ in range(4)]), torch.randn(8, 64, 64), optimizer=True
    )


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(f"layers.{name}", layer) for name, layer in model.layers.named_children()]


CASE = Case(
    "4 个块，d 64，8 × 64", "4 blocks, d 64, 8 × 64", _blocks, _layers, lambda step: step.inputs
)


def counted(plan: Plan) -> int:
    """Bytes at the peak, as the profiler counts them, once everything has been compiled."""

    def make() -> Step:
        step = with_plan(CASE, plan)
        step.run()
        return step

    return count(make).peak


def operations(plan: Plan) -> int:
    step = with_plan(CASE, plan)
    step.run()
    return measure(step.run, step.model, step.optimizer, step.inputs).flops


def section() -> Iterator[str]:
    """The part of the page, paragraph by paragraph."""
    for package in ("ckptplan", "torch_remat"):
        if find_spec(package) is None:
            raise RuntimeError(
                f"no {package} here: `pip install --no-deps -r tools/benchmarks/ckptplan.txt`"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from _section()


def _section() -> Iterator[str]:
    high, low = counted(Plan(0)), counted(every_block(CASE))
    base = operations(Plan(0))
    yield named(
        f"一步：{CASE.zh}，带 Adam。不用检查点峰值 {high:,} 字节，每块一个 {low:,}；预算取在两者"
        "之间。方案真的装上再由 profiler 独立计数：误差是工具所说的减去实际的，字节；“规划”是得到"
        "方案的处理器时间，秒，torch 用一个线程，一次。编译的后端是 aot_eager_decomp_partition，"
        "不生成代码。",
        f"The step: {CASE.en}, with Adam. Its peak is {high:,} bytes without checkpoints and "
        f"{low:,} with one on every block; budgets lie between. Each plan is carried out and "
        "counted independently by the profiler: the error is what the tool says less what it "
        "takes, in bytes; “planning” is the processor time until there is a plan, in seconds, "
        "torch on one thread, once. The compiler's backend is aot_eager_decomp_partition, which "
        "generates no code.",
        between="\n\n",
    )
    heads = [
        named("预算", "budget"), named("工具", "tool"), named("峰值", "peak"),
        named("误差", "error"), named("放得下", "fits"), named("多做的运算", "more operations"),
        named("规划", "planning"),
    ]  # fmt: skip
    rows, problems = [], []
    for share in SHARES:
        budget = int(low + share * (high - low))
        for planner in PLANNERS:
            begin = _clock()
            answer = ask(planner, CASE, budget)
            seconds = _clock() - begin
            row = [f"{budget:,}", _name(planner)]
            if isinstance(answer, Exception):
                problems.append(f"{_name(planner)} · {budget:,}：`{_words(answer)}`")
                rows.append([*row, "✗", "✗", "✗", "✗", f"{seconds:.1f}"])
                continue
            peak = counted(answer)
            more = operations(answer) / base - 1
            error = f"{answer.peak - peak:+,}" if answer.peak != peak else "0"
            fits = named("是", "yes") if peak <= budget else named("否", "no")
            rows.append([*row, f"{peak:,}", error, fits, f"{more:+.1%}", f"{seconds:.1f}"])
    yield table(heads, rows)
    if problems:
        yield bullets(problems)
    yield named("各自做不到的：", "What each cannot do:", between=" ")
    yield bullets(f"`{name}`：{zh} · {en}" for name, (zh, en) in CANNOT.items())
    yield named(
        "照说明书原样问，这台机器上的回答：", "Asked as their manuals say, here:", between=" "
    )
    budget = (low + high) // 2
    yield bullets(
        f"{_name(planner)}：`{_words(answer)}`"
        for planner in REFUSALS
        if isinstance(answer := ask(planner, CASE, budget), Exception)
    )
