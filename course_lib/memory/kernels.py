"""Where PyTorch's simulated operators differ from the real ones, and what is right.

Found by running PyTorch's own tests of operators and modules (OpInfo, ModuleInfo) both ways, on
contiguous, transposed, channels-last and expanded tensors, forward and backward, and comparing
shape, strides, dtype and storage of every result. A layout decides whether a later ``reshape`` or
matrix product has to copy, so that a wrong one changes what a step keeps. What can be said exactly
is corrected here; for the rest, :func:`differing` tells which operators a step met.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

aten = torch.ops.aten
Correct = Callable[[tuple, dict[str, Any], Any, Any], Any]


def corrected(func: Any, args: tuple, kwargs: dict[str, Any], result: Any, mode: Any) -> Any:
    """The result of a simulated operator, laid out as the real one lays it out on a CPU.

    ``mode``: the simulation, to be entered for making tensors.
    """
    correct = _CORRECTIONS.get(func)
    return result if correct is None else correct(args, kwargs, result, mode)


# Operators by name, and in what their simulated results still differ: (zh, en).
KNOWN_DIFFERENCES: dict[str, tuple[str, str]] = {
    "aten.mkldnn_rnn_layer": (
        "oneDNN 的 LSTM 为反向传播保存的算子工作区，模拟时大小为 0",
        "the workspace that oneDNN's LSTM keeps for backward has no bytes when simulated",
    ),
    "aten._embedding_bag": (
        "表的布局不同时，内部下标的字节数不同",
        "its inner indices take other bytes, depending on the layout of the table",
    ),
    "aten._sparse_coo_tensor_with_dims_and_tensors": (
        "稀疏梯度相加之后有几行，要看下标的值",
        "how many rows a sum of sparse gradients has depends on the values of the indices",
    ),
}


def differing(operators: Iterable[str]) -> tuple[str, ...]:
    """Those of a step's operators (``"aten.mm"``) whose simulation is known to be inexact."""
    return tuple(sorted(KNOWN_DIFFERENCES.keys() & {*operators}))


# --- layouts ------------------------------------------------------------------------------------


def _laid_out(result: Tensor, strides: tuple[int, ...], mode: Any) -> Tensor:
    if result.stride() == strides:
        return result
    with mode:
        return torch.empty_strided(result.shape, strides, dtype=result.dtype, device=result.device)


def _contiguous(*which: int) -> Correct:
    """These results are contiguous, whatever the arguments are; without ``which``, the only one."""

    def correct(args: tuple, kwargs: dict[str, Any], result: Any, mode: Any) -> Any:
        return _changed(result, which, lambda t: _laid_out(t, _strides_of(t.shape), mode))

    return correct


def _suggested(argument: int, *which: int) -> Correct:
    """These results are channels-last where the argument is, and contiguous otherwise."""

    def correct(args: tuple, kwargs: dict[str, Any], result: Any, mode: Any) -> Any:
        wanted = suggest_memory_format(args[argument])

        def lay(t: Tensor) -> Tensor:
            fits = t.dim() == args[argument].dim()
            return _laid_out(t, _strides_of(t.shape, wanted if fits else None), mode)

        return _changed(result, which, lay)

    return correct


def _iterated(*order: int) -> Correct:
    """The result is laid out as ``TensorIterator`` does it, given the arguments in this order."""

    def correct(args: tuple, kwargs: dict[str, Any], result: Any, mode: Any) -> Any:
        operands = [args[i] for i in order]
        tensors = [t for t in operands if isinstance(t, Tensor)]
        if all(t.is_contiguous() and t.shape == result.shape for t in tensors):
            return result
        with mode:
            same = [torch.empty_strided(t.shape, t.stride()) for t in tensors]
            like = aten.add.Tensor(same[0], same[1]) if len(same) > 1 else aten.neg(same[0])
        return _laid_out(result, like.stride(), mode)

    return correct


def _half_iterated(args: tuple, kwargs: dict[str, Any], result: Any, mode: Any) -> Any:
    """Of 16-bit numbers, simulated operators forget a layout if the other argument is expanded."""
    tensors = [t for t in args[:2] if isinstance(t, Tensor)]
    if len(tensors) < 2 or result.itemsize != 2 or tensors[0].dtype != tensors[1].dtype:
        return result
    if all(t.is_contiguous() for t in tensors):
        return result
    return _iterated(0, 1)(args, kwargs, result, mode)


def _like(argument: int) -> Correct:
    """The result is laid out as ``empty_like`` of the argument."""

    def correct(args: tuple, kwargs: dict[str, Any], result: Any, mode: Any) -> Any:
        with mode:
            like = torch.empty_like(args[argument])
        return _laid_out(result, like.stride(), mode)

    return correct


def _reduced(*order: int, reduction: int) -> Correct:
    """The mean or sum of a loss keeps the storage that held the loss of every element."""

    def correct(args: tuple, kwargs: dict[str, Any], result: Any, mode: Any) -> Any:
        how = args[reduction] if len(args) > reduction else kwargs.get("reduction", 1)
        if how == 0:
            return result
        count = torch.broadcast_shapes(*(args[i].shape for i in order)).numel()
        with mode:
            elements = torch.empty(count, dtype=result.dtype, device=result.device)
            return aten.as_strided.default(elements, (), ())

    return correct


def _statistics(weight: int, first: Correct | None = None) -> Correct:
    """Of 16-bit numbers, mean and deviation are 32-bit on a CPU where the weights are."""

    def correct(args: tuple, kwargs: dict[str, Any], result: Any, mode: Any) -> Any:
        if first is not None:
            result = first(args, kwargs, result, mode)
        weights = args[weight]
        if weights is None or weights.itemsize < 4 or result[0].itemsize != 2:
            return result

        def widened(t: Tensor) -> Tensor:
            with mode:
                return torch.empty_like(t, dtype=weights.dtype)

        return _changed(result, (1, 2), widened)

    return correct


def _changed(result: Any, which: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(result, Tensor):
        return change(result)
    return tuple(
        change(t) if isinstance(t, Tensor) and (not which or i in which) else t
        for i, t in enumerate(result)
    )


@functools.cache
def _strides_of(shape: torch.Size, memory_format: Any = None) -> tuple[int, ...]:
    given = {} if memory_format is None else {"memory_format": memory_format}
    return torch.empty(shape, device="meta", **given).stride()


_CORRECTIONS: dict[Any, Correct] = {
    aten.native_layer_norm.default: _statistics(2),
    aten.native_group_norm.default: _statistics(1),
    aten.native_layer_norm_backward.default: _contiguous(),
    aten.native_batch_norm.default: _statistics(1, _suggested(0, 0)),
    aten._native_batch_norm_legit.default: _statistics(1, _suggested(0, 0)),
    aten._native_batch_norm_legit.no_stats: _statistics(1, _suggested(0, 0)),
    aten._batch_norm_with_update.default: _suggested(0, 0),
    aten.native_batch_norm_backward.default: _suggested(1, 0),
    aten.batch_norm_backward.default: _suggested(1, 0),
    aten._log_softmax_backward_data.default: _contiguous(),
    aten.log_sigmoid_forward.default: _contiguous(),
    aten.huber_loss_backward.default: _contiguous(),
    aten.mse_loss_backward.default: _contiguous(),
    aten.smooth_l1_loss_backward.default: _contiguous(),
    aten.soft_margin_loss_backward.default: _iterated(2, 1),
    aten.binary_cross_entropy_backward.default: _like(1),
    aten.normal.Tensor_Tensor: _contiguous(),
    aten.pow.Scalar: _contiguous(),
    aten.channel_shuffle.default: _suggested(0),
    aten.max_unpool2d.default: _suggested(0),
    aten.reflection_pad3d.default: _suggested(0),
    aten.replication_pad3d.default: _suggested(0),
    aten.reflection_pad2d_backward.default: _suggested(1),
    aten.reflection_pad3d_backward.default: _suggested(1),
    aten.replication_pad2d_backward.default: _suggested(1),
    aten.replication_pad3d_backward.default: _suggested(1),
    aten.hardtanh_backward.default: _iterated(0, 1),
    aten.hardswish_backward.default: _iterated(0, 1),
    aten.elu_backward.default: _iterated(0, 5),
    aten.softplus_backward.default: _iterated(0, 1),
    aten.logit_backward.default: _iterated(0, 1),
    aten.native_dropout_backward.default: _iterated(0, 1),
    aten.leaky_relu_backward.default: _iterated(1, 0),
    aten.threshold_backward.default: _iterated(1, 0),
    aten.xlogy.Tensor: _iterated(0, 1),
    aten.special_xlog1py.default: _iterated(0, 1),
    aten.heaviside.default: _iterated(0, 1),
    aten.logaddexp.default: _iterated(0, 1),
    aten.logical_and.default: _iterated(0, 1),
    aten.logical_or.default: _iterated(0, 1),
    aten.logical_xor.default: _iterated(0, 1),
    aten.copysign.Tensor: _iterated(0, 1),
    aten.div.Tensor_mode: _iterated(0, 1),
    aten.floor_divide.default: _iterated(0, 1),
    aten.mul.Tensor: _half_iterated,
    aten.add.Tensor: _half_iterated,
    aten.sub.Tensor: _half_iterated,
    aten.div.Tensor: _half_iterated,
    aten.mse_loss.default: _reduced(0, 1, reduction=2),
    aten.smooth_l1_loss.default: _reduced(0, 1, reduction=2),
    aten.soft_margin_loss.default: _reduced(0, 1, reduction=2),
    aten.binary_cross_entropy.default: _reduced(0, 1, reduction=3),
}


# --- operators that the simulated kernels refuse -------------------------------------------------


def _grouped_mm(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Matrix products of groups of rows, which a CPU does for any floating-point dtype."""
    groups = () if offs is None else offs.shape
    if a.dim() == 2:
        shape = (*groups, a.shape[0], b.shape[1]) if b.dim() == 2 else (a.shape[0], b.shape[2])
    else:
        shape = (a.shape[1], b.shape[1]) if b.dim() == 2 else (*a.shape[:2], b.shape[2])
    dtype = out_dtype or a.dtype
    aligned = 16 // dtype.itemsize  # rows begin at multiples of 16 bytes
    row = -(-shape[-1] // aligned) * aligned
    strides = (row, 1) if len(shape) == 2 else (row * shape[1], row, 1)
    return torch.empty_strided(shape, strides, dtype=dtype, device=a.device)


REPLACEMENTS: dict[Any, Callable[..., Any]] = {aten._grouped_mm.default: _grouped_mm}
if torch.distributed.is_available():
    # The real one returns what it was given; that of torch's simulation makes another tensor.
    REPLACEMENTS[torch.ops._c10d_functional.wait_tensor.default] = lambda tensor: tensor
