"""Does a checkpointed step compute the same as the plain one? The tool that finds silent faults.

``same_gradients(plain, checkpointed, x, model=model)`` runs both from one and the same start and
compares all that a training step leaves behind: outputs, gradients, weights, buffers, and the
states of the random generators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..language import text
from .agreement import Agreement, UnequalWork
from .comparing import compare_errors, compare_runs
from .randomness import generators_of, generators_restored, random_states_restored
from .running import Start, check_all_compared, module_restored, run_side
from .sides import check_alike, check_values_exist, matched_sides, sides_of, values_of


def same_gradients(
    plain: Callable[..., Any],
    checkpointed: Callable[..., Any],
    *inputs: Any,
    model: nn.Module | tuple[nn.Module, nn.Module] | None = None,
    tolerance: float = 0.0,
    seed: int = 0,
    kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Agreement:
    """Run ``plain`` and ``checkpointed`` from the same start and compare what they leave behind.

    With inputs, both are called with copies of them, ``plain(*inputs, **keywords)``, and the
    backward pass starts here from every output, weighted with fixed random numbers. Without, both
    are whole steps: functions without arguments that call ``backward()`` themselves; a result is
    compared if there is one. ``kwargs``: inputs by keyword whose names this function uses itself,
    such as ``kwargs={"seed": 3}``; all others are simply written out.

    ``model``: the module that holds what both use. It need not be named where both *are* modules;
    two different ones, or a pair in ``model``, are matched by name, and the second gets the
    first's values. Wrappers around a module or around its parts are seen through: those of
    ``torch.compile``, data-parallel and sharded training, checkpoints, averaged weights, or one's
    own without parameters. Each side starts from the same parameters, buffers, inputs, training
    flags and random states (torch, Python, NumPy, and generators that are inputs or that the
    model or a side holds on to; ``seed``), without gradients; afterwards all of these are as they
    were. ``tolerance``: relative to the largest value of each tensor; 0 asks for equal
    bits.

    Raises ``UnequalWork`` if the sides have different parameters, output shapes or dtypes, or if
    plain yields no gradient to compare with; ``TypeError`` if plain uses trainable tensors that are
    neither inputs nor in the model, or if the model is simulated.
    """
    given = inputs, {**keywords, **_checked_mapping(kwargs)}
    left, right = matched_sides(*sides_of(model, plain, checkpointed))
    check_values_exist(left.model, given)
    check_alike(left, right)
    start = Start(values_of(left), left.flags(), generators_of(left.model, plain), given, seed)
    with random_states_restored():
        generators = generators_restored(left, right, plain, checkpointed)
        with module_restored(left.model), generators:
            first = run_side(plain, left, start)
            check_all_compared(first, left.model, only_parameters=not start.has_inputs)
        generators = generators_restored(left, right, plain, checkpointed)
        with module_restored(right.model), generators:
            second = run_side(checkpointed, right, start)
    if first.error is None and not any(g is not None for _, g in first.gradients):
        raise UnequalWork(
            text(
                zh="plain 没有产生任何梯度，没有可比的东西：输入或参数里要有需要梯度的，"
                "完整的一步要自己调用 backward()。",
                en="plain yields no gradient, so there is nothing to compare: some input or "
                "parameter must require one, and a whole step must call backward() itself.",
            )
        )
    if second.error is not None or first.error is not None:
        differences = compare_errors(first.error, second.error, start.has_inputs)
    else:
        differences = compare_runs(first, second, tolerance)
    compared = {
        "output": len(first.outputs),
        "gradient": len(first.gradients),
        "buffer": len(first.buffers),
        "random state": len(first.random_states),
    }
    return Agreement(tuple(differences), compared, tolerance, second.error)


def _checked_mapping(kwargs: Any) -> Mapping[str, Any]:
    if kwargs is None or isinstance(kwargs, Mapping):
        return kwargs or {}
    raise TypeError(
        text(
            zh=f"kwargs 是名字到输入的字典，不能是 {type(kwargs).__name__}。",
            en=f"kwargs must be a dictionary from names to inputs, not {type(kwargs).__name__}.",
        )
    )
