"""How many operations an operator takes: a formula for each one that multiplies matrices.

PyTorch's ``flop_counter`` has a table of such formulas, and counts as nothing whatever is not in
it: fused attention on a CPU, products of experts, matrix times vector. The formulas here are laid
over that table, which is left as it is. An operator that multiplies matrices and has no formula
is never counted as nothing: it is named.

Counted is what ``FlopCounterMode`` counts: 2 for each product that goes into a sum, in products of
matrices and vectors, convolutions, attention and recurrent layers; as in its formulas, padding and
a causal mask spare nothing. What works element by element (a sum of ``x * y`` too) counts 0.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import flop_counter

from ..language import text

Formula = Callable[..., int | None]


def flops_of(func: Any) -> Formula | None:
    """The formula of an operator: ``formula(*args, out_val=result, **kwargs)`` → operations.

    It answers None where it cannot tell. None in place of a formula: ``func`` multiplies no
    matrices. A formula that somebody has registered with ``register_flop_formula`` comes first.
    """
    higher = isinstance(func, HigherOrderOperator)
    registered = flop_counter.flop_registry.get(func if higher else func._overloadpacket)
    if registered is not None and not _is_pytorchs_own(registered):
        return _careful(registered)
    own = None if higher else _FORMULAS.get(_name(func))
    formula = own or registered
    if formula is not None:
        return _careful(formula)
    return _cannot_tell if higher or multiplies_matrices(func) else None


def multiplies_matrices(func: Any) -> bool:
    """Whether an operator multiplies matrices, or may, judged by its name and its arguments.

    Of operators from other libraries nothing is known: one that takes two tensors may.
    """
    name = _name(func)
    if name in _FORMULAS or name in NO_FORMULA:
        return True
    namespace, base = name.split("::")
    if _LOOKS_LIKE_A_PRODUCT.search(base):
        return name not in NO_PRODUCTS and not _MAKES_READY.search(base)
    tensors = sum("Tensor" in str(argument.type) for argument in func._schema.arguments)
    return namespace not in _PYTORCHS and tensors > 1


def warn_of_uncounted(names: Iterable[str], stacklevel: int) -> None:
    """Say which operators ``flops`` leaves out, if there are any."""
    if listed := ", ".join(sorted(names)):
        warnings.warn(
            text(
                zh=f"FLOPs 里没有计入这些算子：{listed}。它们做（或可能做）矩阵乘法，"
                "却没有公式可算。知道公式的话，可以登记："
                "torch.utils.flop_counter.register_flop_formula。",
                en=f"FLOPs leave out these operators: {listed}. They multiply matrices, or may, "
                "and there is no formula for them. If you know one, register it with "
                "torch.utils.flop_counter.register_flop_formula.",
            ),
            stacklevel=stacklevel + 1,
        )


def _name(func: Any) -> str:
    """``aten::addmm`` for ``aten.addmm.out`` and for ``aten.addmm_``, which does it in place."""
    name: str = func._schema.name
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _is_pytorchs_own(formula: Any) -> bool:
    return getattr(formula, "__module__", None) == flop_counter.__name__


def _careful(formula: Formula) -> Formula:
    """A formula that fails ends no training: it cannot tell."""

    @functools.wraps(formula)
    def counted(*args: Any, **kwargs: Any) -> int | None:
        try:
            return formula(*args, **kwargs)
        except Exception:
            return None

    return counted


def _cannot_tell(*_: Any, **__: Any) -> None:
    return None


# --- sizes --------------------------------------------------------------------------------------

_PLAIN = frozenset((Tensor, nn.Parameter, FakeTensor))
_SPARSE = (
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
)


def _here(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this device, all rows of a nested one below each other."""
    if type(tensor) in _PLAIN:
        return tensor
    if tensor.is_nested:
        rows: Any = tensor._values  # of layout jagged
        return rows
    return getattr(tensor, "_local_tensor", tensor)


def _count(tensor: Tensor) -> int:
    if tensor.is_nested and tensor.layout is torch.strided:
        return tensor.numel()
    return _here(tensor).numel()


def _nonzeros(tensor: Tensor) -> int | None:
    """How many values a sparse tensor stores; None for a dense one."""
    if tensor.layout not in _SPARSE:
        return None
    return tensor._nnz() if tensor.layout is torch.sparse_coo else tensor.values().numel()


# --- products of matrices and vectors -----------------------------------------------------------


def _product(left: Tensor, right: Tensor, out: Tensor) -> int | None:
    """``left @ right``; either may be a vector, a batch, sparse, nested or sharded."""
    stored = _nonzeros(left), _nonzeros(right)
    if stored[0] is not None:  # each value meets a row of the other
        return None if stored[1] is not None else 2 * stored[0] * (prod(right.shape[1:]) or 0)
    if stored[1] is not None:
        return 2 * stored[1] * prod(left.shape[:-1])
    return 2 * _count(out) * _here(left).shape[-1]


def _first_two(left: Tensor, right: Tensor, *_: Any, out_val: Any, **__: Any) -> int | None:
    return _product(left, right, out_val)


def _added(_self: Any, left: Tensor, right: Tensor, *_: Any, out_val: Any, **__: Any) -> int | None:
    return _product(left, right, out_val)


def _added_over_batch(_self: Any, left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _count(left) * right.shape[-1]


def _linear(x: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    """The weights may be packed; what they multiply shows their size."""
    return 2 * _count(out_val) * x.shape[-1]


def _linear_backward(_x: Any, grad: Tensor, weight: Tensor, mask: Any, **_: Any) -> int:
    return 2 * _count(grad) * weight.shape[-1] * sum(mask[:2])


def _matmul_backward(grad: Tensor, left: Tensor, _right: Any, mask: Any, **_: Any) -> int:
    return 2 * _count(grad) * _here(left).shape[-1] * sum(mask)


def _linear_backward_input(_size: Any, grad: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _count(grad) * weight.shape[-1]


def _linear_backward_weight(grad: Tensor, x: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _count(grad) * x.shape[-1]


def _each(lefts: list[Tensor], _rights: Any, *_: Any, out_val: Any, **__: Any) -> int:
    return sum(2 * _count(out) * left.shape[-1] for left, out in zip(lefts, out_val, strict=True))


def _two_products(a: Tensor, _b: Any, c: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return 2 * _count(out_val) * (a.shape[-1] + c.shape[-1])


def _grouped(left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    """One product per group (expert). Where ``offs`` cuts a dimension, all of it counts once."""
    groups = left.shape[0] if left.dim() == right.dim() == 3 else 1
    return 2 * groups * left.shape[-2] * left.shape[-1] * right.shape[-1]


def _grouped_backward(left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _grouped(left, right)


def _sampled(at: Tensor, left: Tensor, *_: Any, **__: Any) -> int | None:
    stored = _nonzeros(at)
    return None if stored is None else 2 * stored * left.shape[-1]


def _trilinear(
    i1: Tensor,
    i2: Tensor,
    i3: Tensor,
    expand1: Any,
    expand2: Any,
    expand3: Any,
    sumdim: Any,
    *_: Any,
    **__: Any,
) -> int:
    """``(i1 * i2 * i3)`` summed over ``sumdim``, as two products of two (``Linear.cpp``)."""

    def widened(tensor: Tensor, expanded: list[int]) -> list[int]:
        sizes = iter(tensor.shape)
        dimensions = tensor.dim() + len(expanded)
        return [1 if i in expanded else next(sizes) for i in range(dimensions)]

    both = [max(pair) for pair in zip(widened(i1, expand1), widened(i2, expand2), strict=True)]
    first = [i for i in sumdim if i in expand3]
    left = [1 if i in first else size for i, size in enumerate(both)]
    whole = [max(pair) for pair in zip(left, widened(i3, expand3), strict=True)]
    second = len(first) < len(sumdim)
    return (2 * prod(both) if first else 0) + (2 * prod(whole) if second else 0)


def _distances(_x1: Any, x2: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    """Euclidean distances by one product, whose rows have the squares and ones added."""
    return 2 * _count(out_val) * (x2.shape[-1] + 2)


def _cdist(x1: Tensor, x2: Tensor, p: float, mode: int | None, *_: Any, out_val: Any) -> int:
    """``Distance.cpp`` goes by a product from 26 points on; below, it takes differences."""
    many = x1.shape[-2] > 25 or x2.shape[-2] > 25
    by_product = p == 2 and (mode == 1 or (not mode and many))
    return _distances(x1, x2, out_val=out_val) if by_product else 0


def _chunked_loss(
    x: Tensor,
    weight: Tensor,
    target: Any,
    bias: Any,
    weights: Any,
    reduction: str,
    ignored: Any,
    smoothing: Any,
    chunk: Any,
    policy: Any,
    dtype: Any,
    again: Any,
    input_grad: bool,
    weight_grad: bool,
    *_: Any,
    **__: Any,
) -> int:
    """``linear_cross_entropy`` in chunks: its forward pass takes the gradients as well.

    Beside the large products it multiplies two vectors, as long as there are rows.
    """
    return _chunked_losses(x, weight) * (1 + input_grad + weight_grad) + 4 * x.shape[0]


def _chunked_losses(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _count(x) * weight.shape[0]


# --- convolutions -------------------------------------------------------------------------------


def _conv(x: Tensor, weight: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return 2 * _count(out_val) * prod(weight.shape[1:])


def _conv_transposed(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _count(x) * prod(weight.shape[1:])


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *_: Any,
    out_val: Any,
    **__: Any,
) -> int:
    return _conv_transposed(x, weight) if transposed else _conv(x, weight, out_val=out_val)


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: Any,
    mask: Any,
    **_: Any,
) -> int:
    """Each of the two gradients has the forward pass's products, in groups too.

    (PyTorch's formula takes the weight's gradient for one without groups.)
    """
    once = _conv_transposed(x, weight) if transposed else _conv(x, weight, out_val=grad)
    return once * sum(mask[:2])


def _conv_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    return _conv(x, weight, out_val=grad) * sum(rest[3][:2])  # after kernel, stride and padding


def _conv_over_time(x: Tensor, weight: Tensor, *_: Any, out_val: Any, **__: Any) -> int:
    return 2 * _count(out_val) * prod(weight.shape[:2])  # the weight: time, from, to


# --- attention ----------------------------------------------------------------------------------


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return flop_counter.sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    """Five products: the scores are computed again."""
    shapes = grad.shape, query.shape, key.shape, value.shape
    return flop_counter.sdpa_backward_flop_count(*shapes)


def _sequences(x: Tensor) -> list[int]:
    """The lengths of the sequences in ``[batch, length, width]``, nested or not."""
    if x.is_nested:
        return [length for length, _ in x._nested_tensor_size().tolist()]
    return [x.shape[1]] * x.shape[0]


def _native_attention(
    query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, *_: Any, **__: Any
) -> int:
    """Projections of query, key, value and result, and attention between."""
    lengths = [_sequences(x) for x in (query, key, value)]
    projected = sum(sum(each) for each in lengths) + sum(lengths[0])
    scores = sum(q * k for q, k in zip(*lengths[:2], strict=True))
    return 2 * projected * width * width + 4 * scores * width


def _encoder_layer(src: Tensor, width: int, heads: int, *weights: Any, **_: Any) -> int:
    widening, narrowing = weights[11], weights[13]
    in_the_middle = 2 * sum(_sequences(src)) * (widening.numel() + narrowing.numel())
    return _native_attention(src, src, src, width, heads) + in_the_middle


# --- recurrent layers ---------------------------------------------------------------------------


def _rnn(x: Tensor, *weights: Any, **_: Any) -> int:
    """Every step of every sequence meets all weights: of the input and of the hidden state."""
    matrices = [w for w in weights[:2] if isinstance(w, Tensor)]
    return 2 * prod(x.shape[:-1]) * sum(w.numel() for w in matrices)


def _rnn_backward(x: Tensor, *weights: Any, **_: Any) -> int:
    return 2 * _rnn(x, *weights)


def _rnn_layers(x: Tensor, weights: list[Tensor], *_: Any, **__: Any) -> int:
    return 2 * prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.dim() == 2)


def _rnn_layers_backward(x: Tensor, weights: list[Tensor], *_: Any, **__: Any) -> int:
    return 2 * _rnn_layers(x, weights)


# --- the tables ---------------------------------------------------------------------------------


def _table(*families: tuple[Formula, str, str]) -> dict[str, Formula]:
    return {
        f"{namespace}::{name}": formula
        for formula, namespace, names in families
        for name in names.split()
    }


_FORMULAS = _table(
    (_first_two, "aten", "mm bmm mv dot vdot matmul _int_mm _scaled_mm _scaled_mm_v2 hspmm"),
    (_first_two, "quantized", "matmul"),
    (_added, "aten", "addmm baddbmm addmv _addmm_activation _sparse_addmm sspaddmm"),
    (_added_over_batch, "aten", "addbmm"),
    (
        _linear,
        "aten",
        "linear mkldnn_linear _weight_int4pack_mm _weight_int4pack_mm_for_cpu "
        "_weight_int4pack_mm_with_scales_and_zeros _weight_int8pack_mm _dyn_quant_matmul_4bit "
        "_mixed_dtypes_linear",
    ),
    (
        _linear,
        "quantized",
        "linear linear_dynamic linear_dynamic_fp16 linear_leaky_relu "
        "linear_dynamic_fp16_unpacked_weight linear_relu linear_relu_dynamic linear_tanh "
        "linear_relu_dynamic_fp16 linear_with_input_q_dq_qweight_dq_output_fp32 "
        "linear_with_input_q_dq_qweight_dq_relu_output_fp32 int4mm_packed_weight_cpu",
    ),
    (
        _linear,
        "_quantized",
        "linear linear_dynamic wrapped_quantized_linear "
        "wrapped_fbgemm_linear_fp16_weight _wrapped_quantized_linear_prepacked",
    ),
    (_linear, "onednn", "linear_dynamic_fp16 linear_relu_dynamic_fp16 qlinear_pointwise"),
    (_linear, "sparse", "qlinear qlinear_dynamic qlinear_relu qlinear_relu_dynamic"),
    (_linear, "mkldnn", "_linear_pointwise"),
    (_linear, "mkl", "_mkl_linear"),
    (_linear_backward, "aten", "linear_backward mkldnn_linear_backward"),
    (_linear_backward_input, "aten", "mkldnn_linear_backward_input"),
    (_linear_backward_weight, "aten", "mkldnn_linear_backward_weights"),
    (_matmul_backward, "aten", "matmul_backward"),
    (_each, "aten", "_foreach_mm"),
    (_each, "_native", "_foreach_mm_native_0"),
    (_two_products, "inductor", "_mm_plus_mm"),
    (_grouped, "aten", "_grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2"),
    (_grouped, "transformers", "grouped_mm_fallback"),
    (_grouped_backward, "transformers", "grouped_mm_fallback_backward"),
    (_sampled, "aten", "sparse_sampled_addmm"),
    (_trilinear, "aten", "_trilinear"),
    (_distances, "aten", "_euclidean_dist"),
    (_cdist, "aten", "_cdist_forward"),
    (_chunked_loss, "torch_nn", "_linear_cross_entropy_batch_chunked"),
    (_chunked_losses, "torch_nn", "_linear_cross_entropy_batch_chunked_no_reduction"),
    (_convolution, "aten", "convolution _convolution convolution_overrideable"),
    (_convolution_backward, "aten", "convolution_backward convolution_backward_overrideable"),
    (
        _conv,
        "aten",
        "_conv_depthwise2d conv_depthwise3d _slow_conv2d_forward slow_conv3d_forward "
        "slow_conv_dilated2d slow_conv_dilated3d mkldnn_convolution _nnpack_spatial_convolution "
        "cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu miopen_convolution "
        "miopen_convolution_relu miopen_convolution_add_relu miopen_depthwise_convolution "
        "_mps_convolution",
    ),
    (_conv, "mkldnn", "_convolution_pointwise"),
    (_conv_backward, "aten", "_slow_conv2d_backward"),
    (
        _conv_transposed,
        "aten",
        "slow_conv_transpose2d slow_conv_transpose3d "
        "cudnn_convolution_transpose miopen_convolution_transpose _mps_convolution_transpose",
    ),
    (_conv_over_time, "aten", "conv_tbc"),
    (
        _attention,
        "aten",
        "_scaled_dot_product_flash_attention_for_cpu "
        "_scaled_dot_product_attention_math_for_mps _triton_scaled_dot_attention "
        "_scaled_dot_product_fused_attention_overrideable",
    ),
    (
        _attention_backward,
        "aten",
        "_scaled_dot_product_flash_attention_for_cpu_backward "
        "_scaled_dot_product_fused_attention_overrideable_backward",
    ),
    (_native_attention, "aten", "_native_multi_head_attention _triton_multi_head_attention"),
    (_encoder_layer, "aten", "_transformer_encoder_layer_fwd"),
    (_rnn, "aten", "mkldnn_rnn_layer"),
    (_rnn_backward, "aten", "mkldnn_rnn_layer_backward"),
    (_rnn_layers, "aten", "_cudnn_rnn miopen_rnn"),
    (_rnn_layers_backward, "aten", "_cudnn_rnn_backward miopen_rnn_backward"),
)


def _reasons(**names: str) -> dict[str, str]:
    return {
        name if "::" in name else f"aten::{name}": reason.replace("_", " ")
        for reason, each in names.items()
        for name in each.split()
    }


def _words(names: str, before: str = "") -> frozenset[str]:
    return frozenset(before + name for name in names.split())


# Operator → why there is no formula. A step that meets one is told so.
NO_FORMULA = _reasons(
    steps_depend_on_the_values="""
        _linalg_eigh _linalg_eigvals _linalg_svd linalg_eig linalg_eigvals linalg_pinv prims::svd
        linalg_matrix_exp _compute_linear_combination _sparse_sparse_matmul""",
    a_factorisation_or_solver_whose_steps_the_library_chooses="""
        _cholesky_solve_helper _linalg_det _linalg_slogdet _linalg_solve_ex _spsolve cholesky
        cholesky_inverse cholesky_solve geqrf linalg_cholesky_ex linalg_householder_product
        linalg_inv_ex linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_lu
        linalg_lu_factor_ex linalg_lu_solve linalg_qr linalg_solve_triangular ormqr
        triangular_solve""",
    the_weights_are_packed_and_their_size_is_hidden="""
        _quantized::conv2d _quantized::conv2d_relu _quantized::conv3d _quantized::conv3d_relu
        _quantized::conv_transpose1d _quantized::conv_transpose2d mkldnn_prepacked::conv2d_run
        mkldnn::_convolution_transpose_pointwise onednn::qconv1d_pointwise
        onednn::qconv2d_pointwise onednn::qconv3d_pointwise onednn::qconv_pointwise
        quantized::conv1d quantized::conv1d_dynamic quantized::conv1d_relu quantized::conv2d
        quantized::conv2d_add quantized::conv2d_add_relu quantized::conv2d_dynamic
        quantized::conv2d_relu quantized::conv3d quantized::conv3d_dynamic quantized::conv3d_relu
        quantized::conv_transpose1d quantized::conv_transpose1d_dynamic
        quantized::conv_transpose2d quantized::conv_transpose2d_dynamic
        quantized::conv_transpose3d quantized::conv_transpose3d_dynamic quantized_gru
        quantized_lstm quantized::quantized_gru_cell_dynamic quantized::quantized_lstm_cell_dynamic
        quantized::quantized_rnn_relu_cell_dynamic quantized::quantized_rnn_tanh_cell_dynamic""",
    only_on_devices_where_it_could_not_be_tried="""
        _cslt_sparse_mm _cslt_sparse_mm_search _cudnn_attention_backward _cudnn_attention_forward
        _flash_attention_forward_no_dropout_inplace _sparse_mm_reduce_impl
        _sparse_mm_reduce_impl_backward _sparse_semi_structured_addmm
        _lstm_mps
        _sparse_semi_structured_linear _sparse_semi_structured_mm lstm_mps_backward
        mps_convolution_backward mps_convolution_transpose_backward
        symm_mem::_async_input_mm symm_mem::fused_all_gather_matmul
        symm_mem::fused_all_gather_scaled_matmul symm_mem::fused_matmul_reduce_scatter
        symm_mem::fused_scaled_matmul_reduce_scatter""",
)

# A name with one of these in it multiplies matrices, unless it stands below.
_LOOKS_LIKE_A_PRODUCT = re.compile(
    r"(?<![ao])mm(?=_|$|\d)|matmul|gemm|conv(?!ert)|linear|attention|attn|dot|(?:^|_|add)mv$"
    r"|lstm|gru|rnn|einsum|linalg|solve|cholesky|matrix|transformer|multi_head|householder"
    r"|cdist|euclid|sampled_add|linear_comb|tensordot|pinverse|lstsq|moe|expert"
    r"|(?:^|_)(?:lu|qr|svd|eigh?|symeig|det|slogdet|logdet|inverse|ormqr|orgqr|geqrf|ssm)(?:_|$)"
)
_MAKES_READY = re.compile(r"prepack(?!ed)|unpack(?!ed)|reorder|flatten_weight|(?:^|_)pack_")
NO_PRODUCTS = _words(
    """
    _cdist_backward _linalg_check_errors _thnn_fused_gru_cell _thnn_fused_gru_cell_backward
    _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl _upsample_bilinear2d_aa
    _upsample_bilinear2d_aa_backward linalg__powsum linalg_cross linalg_vector_norm slice_inverse
    upsample_bilinear2d upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward
    upsample_trilinear3d upsample_trilinear3d_backward""",
    "aten::",
)
_PYTORCHS = _words(
    """aten prim prims rngprims debugprims inductor inductor_prims quantized _quantized
    quantization quantized_decomposed mkldnn mkldnn_prepacked mkl onednn sparse _native torch_nn
    torch_attn semi_structured c10d c10d_functional _c10d_functional _c10d_functional_autograd
    symm_mem _dtensor fsdp ao profiler static_runtime onnx export streams triton debug_mode_ops
    bucketing flex_lib cplib torchvision torchaudio _test"""
)
