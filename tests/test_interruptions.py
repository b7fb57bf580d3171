"""Interrupt and restart in real kernels: afterwards everything is as if it had not happened."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.notebooks import (
    IGNORED_OUTPUT,
    Kernel,
    Lesson,
    kernel,
    lessons,
    python,
    shown_text,
    tags,
)
from support.out_of_order import MISSING, made_by, needs, wanted

pytestmark = pytest.mark.slow

LESSONS = {str(lesson)[:2]: lesson for lesson in lessons()}

# What a measurement could leave behind, and whether the next one is exact.
BEGIN = """\
import sys
sys.path.insert(0, {tests!r})
import json, time, warnings
from pathlib import Path
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from test_memory import surroundings
from support.independent import count
from support.steps import STEPS
from course_lib.memory import measure

torch.set_num_threads(1)


def exact(name="checkpoints"):
    step = STEPS[name]()
    peak = measure(step.run, step.model, step.optimizer, step.inputs).peak
    return peak == count(STEPS[name]).peak


def state():
    return json.dumps(surroundings(), default=repr)


def left():
    # What differs from the state before; steps made meanwhile have drawn random numbers.
    found, was = json.loads(state()), json.loads(before)
    return [name for name in was if found[name] != was[name] and name not in excepted]


started = Path({started!r})


def linger():
    started.touch()
    for _ in range(10**9):
        torch.ones(64) * 2


class Lingers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, where):
        ctx.where = where
        if where == "forward" or where == "recomputation" and started.with_suffix(".once").exists():
            linger()
        started.with_suffix(".once").touch()
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.where == "backward":
            linger()
        return gradient, None


layer, x = nn.Linear(64, 64), torch.randn(8, 64)
optimizer = torch.optim.Adam(layer.parameters())
optimizer.register_step_pre_hook(lambda *_: linger() if where == "optimizer" else None)


def step():
    y = checkpoint(lambda x: Lingers.apply(layer(x), where).sin(), x, use_reentrant=False)
    y.sum().backward()
    optimizer.step()


exact()"""
AFTER = "[left(), exact()]"


@pytest.fixture(scope="module")
def measuring(tmp_path_factory) -> Iterator[tuple[Kernel, Path]]:
    """A kernel that can measure a step which lingers, and the file that says it does."""
    folder = tmp_path_factory.mktemp("measuring")
    started = folder / "started"
    with kernel("en", folder) as live:
        begin = BEGIN.format(tests=str(Path(__file__).parent), started=str(started))
        begun = live.run_code(begin)
        assert not begun.error and begun.texts == ["True"]
        yield live, started


@pytest.mark.parametrize("where", ("forward", "backward", "recomputation", "optimizer"))
def test_an_interrupted_measurement_leaves_nothing_behind(where, measuring):
    live, started = measuring
    for path in (started, started.with_suffix(".once")):
        path.unlink(missing_ok=True)
    live.run_code(f"where, before, excepted = {where!r}, state(), ()")
    ran = live.run_until(started.exists, python("measure(step, layer, optimizer, x)"))
    assert ran.interrupted
    assert live.run_code(AFTER).texts == ["[[], True]"]


def test_interrupts_at_any_moment_leave_nothing_behind(measuring):
    """Also between steps, while a measurement begins, and while it is evaluated."""
    live, _ = measuring
    cell = python("while True:\n    exact('mlp')")
    live.run_code("before, excepted = state(), ('random state',)")
    for seed in range(12):
        late = time.monotonic() + random.Random(seed).uniform(0.05, 1)
        ran = live.run_until(lambda late=late: time.monotonic() > late, cell)
        assert ran.interrupted, f"seed {seed}"
        after = live.run_code(AFTER)
        assert after.texts == ["[[], True]"], f"seed {seed}: {after.error or after.texts}"


# Sweeps of the lessons

BARS = """\
from ipywidgets import IntProgress, widgets
[w for w in widgets.widget._instances.values() if isinstance(w, IntProgress)]"""
SWEEPS = {  # lesson: a line of the cell that sweeps
    "00": "measured = measure_first(",
    "02": "films = player(",
    "04": "every = {k: train_every(k)",
    "05": "budgets = plan_budgets(",
}


@pytest.mark.parametrize("number", SWEEPS)
def test_an_interrupted_sweep_can_be_run_again(number, tmp_path):
    """Then the lesson's figures are those that are stored with it."""
    lesson = LESSONS[number]
    setup, *cells = lesson.code
    sweep = next(cell for cell in cells if SWEEPS[number] in cell.source)
    earlier_cells = cells[: cells.index(sweep)]
    asked = [cell for cell in earlier_cells if "predict" in tags(cell)]
    needed = set().union(*(needs(cell, cells) for cell in (sweep, *asked)))
    before = [c for c in earlier_cells if c in asked or made_by(c.source) & needed]
    there = {name for cell in (*before, sweep) for name in made_by(cell.source)}
    after = [cell for cell in cells[cells.index(sweep) + 1 :] if needs(cell, cells) <= there]
    with kernel("en", tmp_path) as live:
        for cell in (setup, *before):
            assert not live.run(cell).error
        earlier = len(live.bars())
        in_the_middle = lambda: any(bar["value"] >= 1 for bar in live.bars()[earlier:])  # noqa: E731
        interrupted = live.run_until(in_the_middle, sweep)
        assert interrupted.interrupted
        assert live.bars()[-1]["value"] < live.bars()[-1]["max"] - 1
        assert live.run_code(BARS).texts == ["[]"]
        compared = 0
        for cell in (sweep, *after):
            ran = live.run(cell)
            assert not ran.error and not ran.stderr
            # The scoreboard shows the predictions that were asked for, and few were.
            if IGNORED_OUTPUT not in tags(cell) and "scoreboard()" not in cell.source:
                assert ran.texts == [shown_text(output) for output in cell.outputs]
                compared += bool(ran.texts)
        assert compared and live.run_code(BARS).texts == ["[]"]


# Restart


def follow(live: Kernel, lesson: Lesson, place: int) -> list[int]:
    """Run a cell, and run what its message asks for until it works: the cells run on the way."""
    went: list[int] = []
    waiting = [place]
    while waiting:
        assert len(went) < 5 * len(lesson.code), went
        ran = live.run(lesson.code[waiting[-1]])
        if not ran.error:
            went.append(waiting.pop())
            continue
        line = wanted(ran.error)
        assert line, ran.error
        above = range(waiting[-1] - 1, -1, -1)
        first = next(i for i in above if line in lesson.code[i].source)
        assert first not in waiting, f"{waiting} again wants {first}"
        waiting.append(first)
    return went


def test_a_restart_and_then_a_cell_in_the_middle(tmp_path):
    lesson = LESSONS["03"]
    middle = len(lesson.code) // 2
    with kernel("zh", tmp_path) as live:
        for cell in lesson.code[:middle]:
            assert not live.run(cell).error
        live.restart()
        went = follow(live, lesson, middle)
        assert len(went) > 3 and set(went) < set(range(middle + 1))
        live.restart()
        assert MISSING.search(live.run(lesson.code[middle]).error)
        assert [ran.error for ran in map(live.run, lesson.code) if ran.error] == []
