"""Tools that choose what to recompute inside a block, each used as its manual says.

The library's choice is exact; the compiler's has no way from bytes to its budget, so its budgets
are tried; ``torch_remat`` carries out what a person marks, so all of its marks are tried.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch._functorch.config as functorch_config
from planners import Case, Plan, Planner
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from course_lib.memory import measure
from course_lib.plans.selective import score_of
from support.independent import Step

BUDGETS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
REGIONS = ("attention", "feed_forward")


class Exact(Planner):
    """The same choice for every block, by operators: of all there are, the best."""

    zh, en = "逐个算子（`plans.selective`）", "by operators (`plans.selective`)"

    def ask(self, case: Case, step: Step, budget: int) -> Plan:
        blocks = [block for _, block in case.chain(step.model)]
        score = score_of(step.run, step.model, blocks, step.inputs)
        best = score.best(budget)
        contexts = score.contexts(best.stored)

        def put_on(model: nn.Module) -> None:
            for _, block in case.chain(model):
                block.forward = functools.partial(
                    checkpoint, block.forward, use_reentrant=False, context_fn=contexts
                )

        return Plan(best.peak, put_on, len(blocks))


class Compiler(Planner):
    """Of ``BUDGETS``, the one that fits and adds the fewest FLOPs."""

    zh, en = "`activation_memory_budget`，逐个试", "`activation_memory_budget`, each tried"

    def ask(self, case: Case, step: Step, budget: int) -> Plan:
        plans = [functools.partial(compiled, budget=share) for share in BUDGETS]
        return _best_tried(case, plans, budget)


def compiled(model: nn.Module, budget: float) -> None:
    """Compile the model in place; the budget is read when it first runs."""
    torch._dynamo.reset()
    forward = torch.compile(model.forward, backend="aot_eager_decomp_partition")

    def within(*args: Any, **kwargs: Any) -> Any:
        with functorch_config.patch(activation_memory_budget=budget):
            return forward(*args, **kwargs)

    model.forward = within  # type: ignore[method-assign]


class Regions(Planner):
    """Of all ways to mark a block's two halves, the best that fits: it has no planner itself."""

    zh, en = "`torch_remat`，两半各试", "`torch_remat`, each half tried"

    def ask(self, case: Case, step: Step, budget: int) -> Plan:
        marks = itertools.chain.from_iterable(
            itertools.combinations(REGIONS, n) for n in range(len(REGIONS) + 1)
        )
        plans = [functools.partial(marked, case=case, kept=kept) for kept in marks]
        return _best_tried(case, plans, budget)


def marked(model: nn.Module, case: Case, kept: Collection[str]) -> None:
    """Each block in a checkpoint of ``torch_remat`` that keeps what these halves save."""
    import torch_remat as remat

    for path, block in case.chain(model):
        block.forward = remat.checkpoint(region_name=path)(_in_regions(block, kept))


def _in_regions(block: Any, kept: Collection[str]) -> Callable[[Tensor], Tensor]:
    """The forward of ``course_lib.models.Block``, its halves as regions."""
    import torch_remat as remat

    def run(name: str, x: Tensor) -> Tensor:
        y = remat.region(getattr(block, name), name, recompute=name not in kept)(x)
        if name in kept:
            remat.recompute_needs_tensor(y)
        return y

    def forward(x: Tensor) -> Tensor:
        x = x + run("attention", block.norm1(x))
        return x + run("feed_forward", block.norm2(x))

    return forward


def _best_tried(case: Case, plans: list[Callable[[nn.Module], None]], budget: int) -> Plan:
    """The plan with the fewest FLOPs among those whose measured peak fits."""
    tried = []
    for number, put_on in enumerate(plans):
        step = case.build()
        put_on(step.model)  # type: ignore[arg-type]
        step.run()  # what is compiled is compiled now
        trace = measure(step.run, step.model, step.optimizer, step.inputs)
        tried.append((trace.flops, trace.peak, number))
    fitting = [one for one in tried if one[1] <= budget]
    if not fitting:
        least = min(peak for _, peak, _ in tried)
        raise ValueError(f"nothing fits {budget:,} bytes; the least is {least:,}")
    _, peak, number = min(fitting)
    return Plan(peak, plans[number])


CHOOSERS = (Exact(), Compiler(), Regions())
