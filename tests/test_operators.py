"""PyTorch's own operator tests, made into training steps: every float32 operator with autograd.

Forward and backward of each sample: measured, the step must not break, need the very bytes that it
needs unmeasured, as an independent count says, and have the very same gradients.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from course_lib.memory import measure, simulated
from course_lib.memory.unwatched import OTHERWISE
from support.independent import peak_and_sum
from support.pytorchs_samples import pytorchs_operators

SAMPLES = 12  # of each operator, at most
PARTS = 4
# Some thirty bytes, at the very beginning: `measure` names them.
CHECKED_UNWATCHED = ("quantile", "nanquantile", "linalg_eig,")


def steps(part: int) -> Iterator[tuple[str, Callable[[], object], list[Tensor]]]:
    """One in ``PARTS`` of the operators: a name, a step, and the tensors that it starts from."""
    wanted = [op for op in pytorchs_operators() if op.supports_autograd]
    wanted = [op for op in wanted if torch.float32 in op.supported_dtypes("cpu")]
    for op in wanted[part::PARTS]:
        samples = op.sample_inputs("cpu", torch.float32, requires_grad=True)
        for number, sample in enumerate(itertools.islice(samples, SAMPLES)):
            given = (sample.input, sample.args, sample.kwargs)
            leaves = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]

            def step(op=op, sample=sample):
                result = tree_leaves(op(sample.input, *sample.args, **sample.kwargs))
                ends = [t for t in result if isinstance(t, Tensor) and t.requires_grad]
                if ends:
                    torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])

            yield f"{op.formatted_name}, sample {number}", step, leaves


def gradients_after(step: Callable[[], object], leaves: list[Tensor]) -> list[Tensor | None]:
    """The step's gradients, from a fixed seed; taken off the tensors again."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            step()
            return [leaf.grad for leaf in leaves]
        finally:
            for leaf in leaves:
                leaf.grad = None


def equal(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(torch.nan_to_num(first.to_dense()), torch.nan_to_num(second.to_dense()))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_operator_is_measured_as_it_runs(part: int, report: Callable[[str], None]) -> None:
    right = 0
    wrong: list[str] = []
    for name, step, leaves in steps(part):
        try:
            plain = gradients_after(step, leaves)  # a first time: some set something up
        except Exception:
            continue  # a sample that is no training step
        gradients: list[Tensor | None] = []

        def run(step=step, leaves=leaves, into=gradients):
            into[:] = gradients_after(step, leaves)

        peak, handed_out = peak_and_sum(run)
        gradients.clear()
        try:
            trace = measure(run, inputs=leaves)
        except Exception as problem:
            wrong.append(f"{name}: {type(problem).__name__}: {problem}")
            continue
        difference = trace.peak - sum(trace.before.values()) - peak
        more = sum(event.size for event in trace.events if event.size > 0) - handed_out
        if difference:
            wrong.append(f"{name}: {peak:,} bytes, measured {difference:+,}")
        elif more and not (-37 <= more < 0 and name.startswith(CHECKED_UNWATCHED)):
            wrong.append(f"{name}: {handed_out:,} bytes handed out in all, measured {more:+,}")
        elif not all(map(equal, plain, gradients)):
            wrong.append(f"{name}: other gradients when measured")
        elif trace.otherwise:
            wrong.append(f"{name}: the gradient of {trace.otherwise} was not left alone")
        else:
            right += 1
    report(f"operators, part {part + 1} of {PARTS}: {right} steps equal, {len(wrong)} not")
    assert not wrong, "\n".join(wrong)
    assert right > 500


def _gradient_of(name: str) -> Callable[[Tensor], Tensor]:
    """A function with that node in its graph."""
    square = lambda x: x[:16].view(4, 4)  # noqa: E731
    functional = torch.nn.functional
    return {
        "AminmaxBackward0": lambda x: sum(torch.aminmax(x)),
        "Atan2Backward0": lambda x: torch.atan2(x, x.detach()),
        "BinaryCrossEntropyBackward0": lambda x: functional.binary_cross_entropy(
            x.sigmoid(), x.detach().sigmoid()
        ),
        "BinaryCrossEntropyWithLogitsBackward0": lambda x: (
            functional.binary_cross_entropy_with_logits(x, x.detach(), pos_weight=x.detach())
        ),
        "ClampBackward0": lambda x: torch.clamp(x, x.detach() - 1, x.detach() + 1),
        "CumprodBackward0": lambda x: x.cumprod(0),
        "LinalgEighBackward0": lambda x: sum(torch.linalg.eigh(square(x))),
        "LinalgMatrixExpBackward0": lambda x: torch.linalg.matrix_exp(square(x)),
        "LinalgHouseholderProductBackward0": lambda x: torch.linalg.householder_product(
            square(x), x[:4].detach()
        ),
        "MaskedFillBackward1": lambda x: x.masked_fill(x > 0, x[0]),
        "MaxBackward1": torch.max,
        "MedianBackward0": torch.median,
        "MinBackward1": torch.min,
        "NanmedianBackward0": torch.nanmedian,
        "OrmqrBackward0": lambda x: torch.ormqr(square(x), x[:4].detach(), square(x.detach())),
        "ProdBackward0": torch.prod,
        "ProdBackward1": lambda x: x.view(2, -1).prod(0),
        "TraceBackward0": lambda x: torch.trace(square(x)),
    }[name]


SAVES_NOTHING = {"TraceBackward0"}  # and so nothing has to be made again for it


@pytest.mark.parametrize("name", OTHERWISE)
@pytest.mark.parametrize("where", ["bare", "checkpoint", "simulated"])
def test_what_cannot_be_left_alone_is_named(name: str, where: str) -> None:
    function = _gradient_of(name)
    with simulated() if where == "simulated" else contextlib.nullcontext():
        x = torch.linspace(0.1, 0.9, 64).requires_grad_()

    def step():
        if where == "checkpoint":
            y = torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)
        else:
            y = function(x)
        assert where == "checkpoint" or name in _nodes(y)
        y.sum().backward()

    trace = measure(step, inputs=x)
    alone = where == "bare" or (where == "checkpoint" and name in SAVES_NOTHING)
    assert trace.otherwise == (() if alone else (OTHERWISE[name],))
    assert OTHERWISE[name] in " ".join((measure.__doc__ or "").split())


def _nodes(y: Tensor) -> set[str]:
    found, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            found.add(type(node).__name__)
            waiting += [edge[0] for edge in node.next_functions]
    return found


def test_a_formula_that_raises_leaves_the_measuring_as_it_was() -> None:
    x = torch.ones(4, requires_grad=True)
    y = x.prod()
    with pytest.raises(RuntimeError, match="second time"):
        measure(lambda: [y.backward(), y.backward()], inputs=x)
    assert torch.utils._python_dispatch._get_current_dispatch_mode_stack() == []
    assert measure(lambda: x.prod().backward(), inputs=x).otherwise == ()


def test_transformed_functions_are_measured_as_they_run() -> None:
    from torch.func import grad, vmap

    x = torch.linspace(0.1, 0.9, 20).view(5, 4)
    per_sample = vmap(grad(lambda row: row.prod() + row.max()))
    for function in (lambda: grad(lambda t: (t * 2).prod())(x), lambda: per_sample(x)):
        expected = function()
        peak, handed_out = peak_and_sum(function)
        found: list[Tensor] = []
        trace = measure(lambda function=function, found=found: found.append(function()), inputs=x)
        assert trace.peak - sum(trace.before.values()) >= peak
        assert sum(event.size for event in trace.events if event.size > 0) == handed_out
        assert torch.equal(found[0], expected)
