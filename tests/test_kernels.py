"""Every operator of PyTorch's own tests, real and simulated: same shapes, layouts and storage."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from course_lib.memory.kernels import KNOWN_DIFFERENCES
from course_lib.memory.simulation import Simulation
from support.pytorchs_samples import pytorchs_operators

SAMPLES = 2  # of each operator
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def transposed(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t


def channels_last(t: Tensor) -> Tensor:
    if t.dim() == 3:
        return t.transpose(1, 2).contiguous().transpose(1, 2)
    return t.contiguous(memory_format=CHANNELS_LAST.get(t.dim(), torch.contiguous_format))


def expanded(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape) if t.dim() and len(t) > 1 else t


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": transposed,
    "channels last": channels_last,
    "expanded": expanded,
}


class Compared(TorchDispatchMode):
    """Calls each operator twice, and notes where the simulated result is another."""

    def __init__(self) -> None:
        super().__init__()
        self.different: dict[str, str] = {}
        self.calls: set[str] = set()
        self.simulation = Simulation()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        call = f"{func} {[(*t.shape, t.stride(), t.dtype) for t in given if is_plain(t)]}"
        if func.namespace != "aten" or call in self.calls or not all(map(is_plain, given)):
            return func(*args, **kwargs)
        self.calls.add(call)
        twins = tree_map(
            lambda t: self.simulation.from_tensor(t.detach()) if isinstance(t, Tensor) else t,
            (args, kwargs),
        )
        real = func(*args, **kwargs)
        simulated = None
        with contextlib.suppress(DataDependentOutputException), self.simulation:
            simulated = func(*twins[0], **twins[1])
        if simulated is not None:
            known = {t.untyped_storage()._cdata for t in given}
            results = [[t for t in tree_leaves(result) if isinstance(t, Tensor) and is_plain(t)]
                       for result in (real, simulated)]  # fmt: skip
            for a, b in itertools.zip_longest(*results):
                is_new = a is not None and a.untyped_storage()._cdata not in known
                compare = 4 if is_new else 3  # a view's storage is that of the argument
                if a is None or b is None or layout(a)[:compare] != layout(b)[:compare]:
                    difference = f"{call}: {[[layout(t) for t in r] for r in results]}"
                    self.different.setdefault(str(func._overloadpacket), difference)
        return real


def is_plain(t: Tensor) -> bool:
    return t.layout is torch.strided and not t._is_zerotensor()


def layout(t: Tensor) -> tuple:
    """Shape, strides (of those dimensions where they matter), dtype and bytes of the storage."""
    strides = tuple(s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1 and t.numel())
    return tuple(t.shape), strides, t.dtype, t.untyped_storage().nbytes()


def laid_out(values: Any, lay: Callable[[Tensor], Tensor]) -> Any:
    def change(t: Any) -> Any:
        if not isinstance(t, Tensor) or t.layout is not torch.strided or not t.is_floating_point():
            return t
        return lay(t.detach()).requires_grad_(t.requires_grad)

    return tree_map(change, values)


def backward(outputs: Any) -> None:
    ends = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
    for lay in (transposed, channels_last) if ends else ():
        gradients = [lay(torch.ones_like(t)) for t in ends]
        torch.autograd.backward(ends, gradients, retain_graph=True)


def steps(dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """Forward of each operator's samples, in each layout; then of each module's."""
    operators = pytorchs_operators()
    from torch.testing._internal.common_modules import module_db

    for op in operators:
        if dtype in op.supported_dtypes("cpu") and not op.name.startswith("jiterator"):
            samples = op.sample_inputs("cpu", dtype, requires_grad=op.supports_autograd)
            for sample in itertools.islice(samples, SAMPLES):
                given = (sample.input, sample.args, sample.kwargs)
                for lay in LAYOUTS.values():
                    yield lambda op=op, g=given, lay=lay: _called(op, laid_out(g, lay))
    for info in module_db:
        if dtype not in info.dtypes:
            continue
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=True, training=True
        )
        for made in [i for i in inputs[:SAMPLES] if i.forward_input is not None]:
            module = info.module_cls(*made.constructor_input.args, **made.constructor_input.kwargs)
            module.to(dtype)
            given = (made.forward_input.args, made.forward_input.kwargs)
            for lay in LAYOUTS.values():
                yield lambda m=module, g=given, lay=lay: _forward(m, laid_out(g, lay))


def _called(op: Any, given: tuple) -> Any:
    return op(given[0], *given[1], **given[2])


def _forward(module: Any, given: tuple) -> Any:
    return module(*given[0], **given[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype, least", ((torch.float32, 7_000), (torch.bfloat16, 5_000)))
def test_simulated_operators_lay_out_their_results_as_real_ones(
    dtype: torch.dtype, least: int
) -> None:
    compared = Compared()
    for step in steps(dtype):
        compared.simulation = Simulation()
        with contextlib.suppress(RuntimeError), compared:  # samples that no longer fit, laid out so
            backward(step())
    assert len(compared.calls) > least
    assert compared.different.keys() <= KNOWN_DIFFERENCES.keys(), compared.different
