"""Tools for measuring memory beside each other: their errors in bytes, and what they cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from page import bullets, named, table
from subjects import CHECKPOINTED, LARGE, SMALL, SUBJECTS, Subject
from timing import in_turns
from trackers import TOOLS, Answer

from support.independent import count

TURNS = {LARGE: 3, SMALL: 7, CHECKPOINTED: 7}
HEADING = ("测量一步训练的内存", "Measuring the memory of a training step")


def section() -> Iterator[str]:
    """The part of the page, paragraph by paragraph."""
    truths = {subject: count(subject.build).peak for subject in SUBJECTS}
    answers = {
        (subject, tool.name): ask(tool, subject) for subject in SUBJECTS for tool in TOOLS
    }  # fmt: skip
    heads = [named("训练步", "step"), *(tool.name for tool in TOOLS)]

    yield named(
        "峰值误差，字节：工具所说的减去分配器实际给出的（由 profiler 独立计数）。模拟张量那一行的"
        "实际值来自同一步骤的真实运行。保存张量的钩子和 torchinfo 只看前向传播留下的东西，这里"
        "补上了开始前就有的和梯度（torchinfo 取它自己的合计）；RSS 取新进程里的增长。",
        "Error of the peak in bytes: what the tool says less what the allocator handed out (an "
        "independent count by the profiler). For simulated tensors that is the same step run for "
        "real. Saved-tensor hooks and torchinfo see what forward keeps; to the hooks' count is "
        "added what existed and the gradients, of torchinfo it is its own total. RSS is the growth "
        "of a fresh process.",
        between="\n\n",
    )
    yield table(
        [heads[0], named("峰值", "peak"), *heads[1:]],
        [
            [named(subject.zh, subject.en), f"{truths[subject]:,}",
             *(_error(answers[subject, tool.name], truths[subject]) for tool in TOOLS)]
            for subject in SUBJECTS
        ],
    )  # fmt: skip
    yield bullets(
        f"{tool.name} · {named(subject.zh, subject.en)}：`{_words(problem)}`"
        for subject in SUBJECTS
        for tool in TOOLS
        if isinstance(problem := answers[subject, tool.name], Exception)
    )

    yield named(
        "峰值时，工具自己也说不出用途（“其他”“未知”）的字节；其余的工具不区分用途。",
        "Bytes at the peak that the tool itself calls other or unknown. The tools left out tell no "
        "purposes apart.",
        between="\n\n",
    )
    speaking = [
        tool for tool in TOOLS
        if any(isinstance(a := answers[s, tool.name], Answer) and a.named is not None
               for s in SUBJECTS)
    ]  # fmt: skip
    yield table(
        [heads[0], *(tool.name for tool in speaking)],
        [
            [named(subject.zh, subject.en),
             *(_unnamed(answers[subject, tool.name]) for tool in speaking)]
            for subject in SUBJECTS if not subject.simulated
        ],
    )  # fmt: skip

    yield named(
        "时间：是原样运行一步的几倍，各轮的中位数（最小–最大），处理器时间，torch 用一个线程。",
        "Time, as a multiple of the bare step: median of the turns (least–greatest), processor "
        "time, torch on one thread.",
        between="\n\n",
    )
    yield table(
        [heads[0], named("原样", "bare"), *heads[1:]],
        [_times(subject, turns) for subject, turns in TURNS.items()],
    )


def ask(tool, subject: Subject) -> Answer | Exception:
    """What the tool says of the subject, or what it raises."""
    try:
        return tool.about(subject)
    except Exception as problem:
        return problem


def _error(answer: Answer | Exception, truth: int) -> str:
    if isinstance(answer, Exception):
        return f"✗ `{type(answer).__name__}`"
    return f"{answer.peak - truth:+,}" if answer.peak != truth else "0"


def _unnamed(answer: Answer | Exception) -> str:
    if isinstance(answer, Exception):
        return f"✗ `{type(answer).__name__}`"
    return f"{answer.peak - answer.named:,}"


def _words(problem: Exception) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())


def _times(subject: Subject, turns: int) -> list[str]:
    """One row: each tool on a step of its own, in turns with the bare step."""
    bare = subject.build()
    runs = {"": bare.run}
    for tool in TOOLS:
        step = subject.build()
        runs[tool.name] = lambda tool=tool, step=step: tool.ask(step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = in_turns(runs, turns)
    return [
        f"{named(subject.zh, subject.en)}, {named(f'{turns} 轮', f'{turns} turns')}",
        f"{times[''].median * 1e3:.0f} ms",
        *(times[tool.name].over(times[""]) for tool in TOOLS),
    ]
