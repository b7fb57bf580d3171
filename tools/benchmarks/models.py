"""Real models: what measuring costs per operator on small ones; full size, simulated."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from typing import Any

import psutil
from page import named, table
from timing import Times, in_turns, with_spread
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.memory import Role, measure, simulated
from support.independent import Step

HEADING = ("真实的模型", "Real models")
TURNS = 5
TINY = 0.02  # seconds that a bare step takes at most
SHOWN = (
    "LlamaForCausalLM", "GPT2LMHeadModel", "Qwen3MoeForCausalLM", "T5ForConditionalGeneration",
    "BertForMaskedLM", "ViTForImageClassification", "ResNetForImageClassification",
    "MambaForCausalLM", "RwkvForCausalLM",
)  # fmt: skip


def section() -> Iterator[str]:
    """The part of the page, paragraph by paragraph."""
    from support import zoo  # takes seconds: not when the benchmarks are merely listed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from _per_operator(zoo)
        yield from _full_size(zoo)


# --- many tiny operators ------------------------------------------------------------------------


def _per_operator(zoo: Any) -> Iterator[str]:
    timed = {}
    for name in zoo.MODELS:
        times, operators = timed_step(zoo.STEPS[name]())
        if times["bare"].median < TINY:
            timed[name] = times, operators
    multiples = [times["measured"].median / times["bare"].median for times, _ in timed.values()]
    micros = [_microseconds(times, operators) for times, operators in timed.values()]
    yield named(
        f"`transformers` 里 {len(timed)} 个小模型的一步（AdamW），原样运行不到 {TINY * 1e3:.0f} "
        "毫秒：全是小算子，时间花在每个算子的固定开销上。测量一步要多久，是原样的 "
        f"{with_spread(multiples, '.1f')} 倍；每个算子多 {with_spread(micros, '.0f')} 微秒"
        "（各模型的中位数，括号里是最小–最大）。其中几个：",
        f"One step (AdamW) of {len(timed)} small models of `transformers` that takes less than "
        f"{TINY * 1e3:.0f} ms bare: tiny operators only, so that what counts is the fixed cost of "
        f"each. Measured, a step takes {with_spread(multiples, '.1f')} times as long: "
        f"{with_spread(micros, '.0f')} µs more per operator (median of the models, least and "
        "greatest). Some of them:",
        between="\n\n",
    )
    heads = [
        named("模型", "model"), named("算子", "operators"), named("原样，毫秒", "bare, ms"),
        named("`measure`，毫秒", "`measure`, ms"), named("倍数", "multiple"),
        named("每个算子多几微秒", "µs more per operator"),
    ]  # fmt: skip
    yield table(heads, [_row(name, *timed[name]) for name in SHOWN if name in timed])


def timed_step(step: Step) -> tuple[dict[str, Times], int]:
    """Times of the bare and of the measured step, and how many operators it has."""
    runs = {
        "bare": step.run,
        "measured": lambda: measure(step.run, step.model, step.optimizer, step.inputs),
    }
    times = in_turns(runs, TURNS)
    with _Counting() as counting:
        step.run()
    return times, counting.operators


class _Counting(TorchDispatchMode):
    operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


def _microseconds(times: dict[str, Times], operators: int) -> float:
    return (times["measured"].median - times["bare"].median) / operators * 1e6


def _row(name: str, times: dict[str, Times], operators: int) -> list[str]:
    return [
        f"`{name}`", f"{operators:,}", f"{times['bare'].median * 1e3:.1f}",
        f"{times['measured'].median * 1e3:.1f}", times["measured"].over(times["bare"]),
        f"{_microseconds(times, operators):.0f}",
    ]  # fmt: skip


# --- full size ----------------------------------------------------------------------------------


def _full_size(zoo: Any) -> Iterator[str]:
    yield named(
        "整个大小的解码器，模拟张量：Llama 3 的形状（词表 128,256，分组查询注意力），AdamW，"
        "1 × 4,096 个 token，一整步。处理器时间，各轮的中位数（最小–最大）；“进程”是从造模型之前"
        "到测完，本进程内存多了多少。",
        "Decoders of full size, simulated: the shape of Llama 3 (vocabulary 128,256, grouped-query "
        "attention), AdamW, 1 × 4,096 tokens, a whole step. Processor time, median of the turns "
        "(least–greatest); “process” is how much memory this process takes more, from before the "
        "model is built to after it was measured.",
        between="\n\n",
    )
    heads = [
        named("参数，十亿", "parameters, 10⁹"), named("检查点", "checkpoints"),
        named("峰值，GiB", "peak, GiB"), named("其中激活值", "of which activations"),
        named("原样，秒", "bare, s"), named("`measure`，秒", "`measure`, s"),
        named("倍数", "multiple"), named("进程，MiB", "process, MiB"),
    ]  # fmt: skip
    yield table(
        heads,
        [
            _full_row(zoo, size, checkpointed)
            for size in zoo.FULL_SIZE
            for checkpointed in (False, True)
        ],
    )


def _full_row(zoo: Any, size: str, checkpointed: bool) -> list[str]:
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    with simulated():
        step = zoo.full_size(size, checkpointed)
        step.run()  # the optimizer's state exists from here on
        trace = measure(step.run, step.model, step.optimizer, step.inputs)
        grown = process.memory_info().rss - before
        times = in_turns(
            {
                "bare": step.run,
                "measured": lambda: measure(step.run, step.model, step.optimizer, step.inputs),
            },
            max(1, TURNS // 2),
        )
    numbers = sum(parameter.numel() for parameter in step.model.parameters())
    kept = sum(trace.at_peak[role] for role in (Role.ACTIVATION, Role.CHECKPOINT, Role.RECOMPUTED))
    return [
        f"{numbers / 1e9:.1f}", named("每层", "each layer") if checkpointed else "—",
        f"{trace.peak / 2**30:,.1f}", f"{kept / 2**30:,.1f}",
        *(with_spread(times[way].seconds, ".2f") for way in times),
        times["measured"].over(times["bare"]), f"{grown / 2**20:.0f}",
    ]  # fmt: skip
