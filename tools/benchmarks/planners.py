"""Tools that say what a training step will need under a plan, each used as its manual says.

Two of them ask CUDA for one of the figures that they plan with. Without CUDA they say so in their
own way (:data:`REFUSALS`); here that one figure is counted on the CPU and filled in, and everything
else is left to them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import gc
import io
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools import MemTracker, RuntimeEstimator, SACEstimator
from torch.distributed._tools.ilp_utils import aggregate_stats, parse_module_info
from torch.distributed._tools.sac_estimator import OPS_TO_ALWAYS_SKIP
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import flop_registry

from course_lib import advise
from course_lib.wrapping import checkpoint_blocks
from support.independent import Step, bytes_before, bytes_of, count

Chain = Sequence[tuple[str, nn.Module]]


@dataclass(frozen=True)
class Case:
    """A step to plan for. ``chain``: its blocks by path, in the order in which they run.

    ``entry``: what the first block is given. ``make`` builds the step anew, each time the same;
    the optimizer's state and the gradients are there.
    """

    zh: str
    en: str
    make: Callable[[], Step]
    chain: Callable[[nn.Module], Chain]
    entry: Callable[[Step], Tensor]

    def build(self) -> Step:
        torch.manual_seed(0)
        step = self.make()
        step.run()
        gc.collect()  # what the libraries leave in cycles
        return step


@dataclass(frozen=True)
class Plan:
    """``peak``: bytes, as the tool has them. ``put_on`` carries its plan out; None: it has none.

    ``checkpoints``: how many modules the plan puts one on.
    """

    peak: int
    put_on: Callable[[nn.Module], object] | None = None
    checkpoints: int = 0


class Planner:
    """``ask(case, step, budget)``: the tool's plan for a peak of ``budget`` bytes at most."""

    zh: str
    en: str

    def ask(self, case: Case, step: Step, budget: int) -> Plan:
        raise NotImplementedError


class Ours(Planner):
    zh = en = "`advise`"

    def ask(self, case: Case, step: Step, budget: int) -> Plan:
        best = advise(step.run, step.model, step.optimizer, step.inputs, budget).best
        paths = list(best.paths)
        return Plan(best.peak, lambda model: paths and checkpoint_blocks(model, paths), len(paths))


class Accelerate(Planner):
    """`accelerate estimate-memory` of a model that is not on the hub: what its command computes."""

    zh = en = "`accelerate estimate-memory`"

    def ask(self, case: Case, step: Step, budget: int) -> Plan:
        size, _ = calculate_maximum_sizes(step.model)
        return Plan(max(estimate_training_usage(size, "float32").values()))


# --- ckptplan -----------------------------------------------------------------------------------


class CkptPlan(Planner):
    """It speaks of the blocks' activations alone; what exists and the gradients are added."""

    zh, en = "`ckptplan`，激活字节代填", "`ckptplan`, activation bytes filled in"

    def ask(self, case: Case, step: Step, budget: int) -> Plan:
        import ckptplan

        chain, entry = case.chain(step.model), case.entry(step)
        blocks = ckptplan.declare_blocks(step.model, chain)
        profiles = self.filled_in(
            ckptplan.profile_blocks(blocks, (entry,), device="cpu"), chain, entry
        )
        existing = bytes_before(step)
        plan = ckptplan.plan_checkpoints(
            profiles, blocks, target_kind="activation_budget_bytes", target_value=budget - existing
        )
        paths = [decision.block_id for decision in plan.decisions if decision.checkpointed]
        return Plan(
            existing + plan.predicted_activation_bytes_after,
            lambda model: paths and checkpoint_blocks(model, paths),
            len(paths),
        )

    def filled_in(self, profiles: Sequence[Any], chain: Chain, entry: Tensor) -> list[Any]:
        """Its profiles with the bytes that its own method finds on a GPU: see `isolated`."""
        filled, x = [], entry
        for profile, (_, block) in zip(profiles, chain, strict=True):
            filled.append(
                dataclasses.replace(
                    profile,
                    timing_only=False,
                    activation_bytes_estimate=isolated(block, x),
                    activation_bytes_method="isolated_forward_delta",
                )
            )
            with torch.no_grad():
                x = block(x)
        return filled


class CkptPlanAsItIs(CkptPlan):
    zh = en = "`ckptplan`"

    def filled_in(self, profiles: Sequence[Any], chain: Chain, entry: Tensor) -> Sequence[Any]:
        return profiles


def isolated(block: nn.Module, x: Tensor) -> int:
    """Bytes more after the block's forward pass, less those of its floating-point input.

    So ``ckptplan.profiling.profiler._measure_cuda_trial`` counts them on a GPU.
    """
    held: list[Any] = []

    def make() -> Step:
        fresh = x.detach().clone()
        fresh.requires_grad_(fresh.is_floating_point())
        return Step(lambda: held.append(block(fresh)))

    counted = count(make)
    held.clear()
    return max(0, counted.after - counted.before - x.nbytes * x.is_floating_point())


# --- torch.distributed._tools -------------------------------------------------------------------


class SacMilp(Planner):
    """Its peak is of parameters, gradients and activations; the optimizer's state is added."""

    zh, en = "`sac_milp`，算子时间代填", "`sac_milp`, operators' times filled in"

    def ask(self, case: Case, step: Step, budget: int) -> Plan:
        from torch.distributed._tools import sac_ilp

        with FakeTensorMode(), contextlib.redirect_stdout(io.StringIO()):
            fake = case.build()
            tracker, runtime, estimator = MemTracker(), RuntimeEstimator(), SACEstimator()
            tracker.track_external(fake.model, fake.optimizer, fake.inputs)
            with tracker:
                fake.run()
            with self.estimating(runtime):
                fake.run()
            with self.estimating(estimator):
                fake.run()
        info = aggregate_stats(fake.model, tracker, runtime, estimator, torch.device("cpu"))
        graph = parse_module_info(info)
        state = bytes_of(tree_leaves(list(step.optimizer.state.values())) if step.optimizer else [])
        discarded, _, peak = sac_ilp.sac_milp(graph, (budget - state) / 2**30)
        if peak < 0:
            raise RuntimeError("the solver found no plan within the budget")
        saved = {
            name.partition(".")[2]: sac_ilp.get_optimal_checkpointing_policy_per_module(
                estimator.sac_mod_stats[name], 1 - share
            )
            for name, share in discarded.items()
        }
        return Plan(peak + state, lambda model: selectively(model, saved), len(saved))

    def estimating(self, estimator: Any) -> Any:
        """The estimator, told how long an operator takes: the roofline of a made-up device."""
        estimator("operator-level-cost-model")
        name = "_estimate" if hasattr(estimator, "_estimate") else "_estimate_runtime"
        setattr(estimator, name, _milliseconds)
        return estimator


class SacMilpAsItIs(SacMilp):
    """In a process of its own: without CUDA it takes the process with it."""

    zh = en = "`sac_milp`"

    def ask(self, case: Case, step: Step, budget: int) -> Plan:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_as_it_is).result()


def _as_it_is() -> Plan:
    with FakeTensorMode():
        module, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(8, 8)
        with SACEstimator()("operator-level-cost-model"):
            module(x)
    return Plan(0)


FLOPS, BYTES = 1e11, 1e10  # per second: a small CPU


def _milliseconds(operator: Any, args: Any, kwargs: Any) -> tuple[Any, float]:
    """What the operator returns, and its time: that of its operations or of its bytes."""
    kwargs = kwargs or {}
    out = operator(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
    counts = flop_registry.get(operator._overloadpacket)
    flops = counts(*args, **kwargs, out_val=out) if counts else 0
    return out, 1e3 * max(flops / FLOPS, sum(tensor.nbytes for tensor in tensors) / BYTES)


def selectively(model: nn.Module, saved: dict[str, Sequence[int]]) -> None:
    """Checkpoint these modules, keeping the results of the operators that are marked 1."""
    for path, marks in saved.items():
        module = model.get_submodule(path)
        module.forward = _checkpointed(module.forward, marks)


def _checkpointed(forward: Callable[..., Any], marks: Sequence[int]) -> Callable[..., Any]:
    def contexts() -> Any:
        seen = {False: 0, True: 0}

        def policy(ctx: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            if operator in OPS_TO_ALWAYS_SKIP:  # the estimator gave these no mark
                return CheckpointPolicy.PREFER_RECOMPUTE
            mark = marks[seen[ctx.is_recompute]]
            seen[ctx.is_recompute] += 1
            return CheckpointPolicy.MUST_SAVE if mark else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return run


PLANNERS = (Ours(), CkptPlan(), SacMilp(), Accelerate())
REFUSALS = (CkptPlanAsItIs(), SacMilpAsItIs())
