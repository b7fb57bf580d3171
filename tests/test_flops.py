"""How many operations an operator takes, against counts that know nothing of the formulas."""

import contextlib
import itertools
import math
import re
import warnings

import pytest
import torch
import torch.distributed.tensor.experimental
import torch.nn.attention.varlen
import torch.nn.modules.linear_cross_entropy
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from course_lib import language
from course_lib.memory import flops, measure, simulated
from course_lib.plans import best_plan, chain_of, keep_all, predict, smallest_peak
from support.pytorchs_samples import pytorchs_operators

sdpa = functional.scaled_dot_product_attention


def x(*shape):
    return torch.randn(*shape, requires_grad=True)


def counted(run, *inputs):
    """FLOPs of ``run()`` as measured, which has to know every formula."""
    trace = measure(run, inputs=inputs)
    assert trace.uncounted == ()
    return trace.flops


def counted_by_pytorch(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def with_backward(function):
    def run(*inputs):
        outputs = [out for out in tree_leaves(function(*inputs)) if torch.is_tensor(out)]
        ends = [out for out in outputs if out.requires_grad]
        torch.autograd.backward(ends, [torch.ones_like(out) for out in ends])

    return run


# --- attention ----------------------------------------------------------------------------------

SHAPES = {  # query, key, value
    "self-attention": ((2, 4, 64, 16),) * 3,
    "other lengths": ((2, 4, 32, 16), (2, 4, 48, 16), (2, 4, 48, 16)),
    "grouped queries": ((2, 4, 64, 16), (2, 2, 64, 16), (2, 2, 64, 16)),
}


def written_out(q, k, v):
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("are_simulated", [False, True], ids=["real", "simulated"])
def test_fused_attention_counts_its_products_on_a_cpu(shapes, are_simulated):
    grouped = shapes[0][1] != shapes[1][1]

    def fused(q, k, v, **options):
        return sdpa(q, k, v, enable_gqa=grouped, **options)

    def made():
        return [x(*shape) for shape in shapes]

    forward = counted_by_pytorch(lambda: written_out(*made()))
    backward = flop_counter.sdpa_backward_flop_count(shapes[0], *shapes)
    assert backward == counted_by_pytorch(lambda: with_backward(written_out)(*made())) - (
        forward - forward // 2  # the forward pass, less the scores, computed again
    )
    if are_simulated:
        with simulated():
            inputs = made()
    else:
        inputs = made()
    with torch.no_grad():
        assert counted(lambda: fused(*inputs), *inputs) == forward
    for function, again in (
        (fused, 0),
        (lambda *t: fused(*t, scale=0.1), 0),
        (lambda *t: checkpoint(fused, *t, use_reentrant=False), forward),
    ):
        step = with_backward(function)
        assert counted(lambda step=step: step(*inputs), *inputs) == forward + backward + again


@pytest.mark.parametrize("how", ["causal", "mask"])
def test_masks_spare_nothing_as_in_pytorchs_formulas(how):
    inputs = [x(2, 4, 64, 16) for _ in range(3)]
    masks = {"causal": {"is_causal": True}, "mask": {"attn_mask": torch.ones(64, 64).tril().bool()}}
    step = with_backward(lambda *t: sdpa(*t, **masks[how]))
    assert counted(lambda: step(*inputs)) == counted(lambda: with_backward(sdpa)(*inputs)) > 0


def test_an_encoder_layer_counts_alike_fused_written_out_and_in_the_fast_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    tokens = torch.randn(2, 8, 16)
    products = 2 * 2 * 8 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * 2 * 8 * 8 * 16
    with torch.no_grad():
        assert counted(lambda: layer(tokens)) == products  # dropout: attention is written out
        assert counted(lambda: layer.eval()(tokens)) == products
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    with torch.no_grad():
        trace = measure(lambda: attention(tokens, tokens, tokens, need_weights=False))
    assert trace.flops == products - 2 * 2 * 8 * 2 * 16 * 32


class Count(TorchDispatchMode):
    """Counts by the formulas alone."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flops.flops_of(func) if func.namespace == "aten" else None
        self.total += formula(*args, **(kwargs or {}), out_val=result) if formula else 0
        return result


def by_formula(run):
    with Count() as count:
        run()
    return count.total


def test_the_fast_path_counts_nested_sequences_by_their_length():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    tokens, padding = torch.randn(2, 8, 16), torch.zeros(2, 8, dtype=torch.bool)
    padding[1, 5:] = True
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the interface of nested tensors is a prototype
        found = by_formula(lambda: encoder(tokens, src_key_padding_mask=padding))
    assert found == 2 * 13 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * (8 * 8 + 5 * 5) * 16


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return x + self.out(sdpa(q, k, v).transpose(1, 2).reshape(b, n, d))


def test_the_planner_does_not_take_attention_for_free():
    width, length = 64, 2048
    with simulated():
        layers = []
        for _ in range(4):
            mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU())
            layers += [Attention(width, 4), nn.Sequential(*mlp, nn.Linear(4 * width, width))]
        chain = chain_of(layers, torch.empty(1, length, width))
    products = 2 * length * 4 * width * width
    assert chain.layers[0].flops == products + 4 * length * length * width
    assert chain.layers[1].flops == 2 * products
    least, most = smallest_peak(chain).prediction.peak, predict(keep_all(chain), chain).peak
    best = best_plan(chain, (least + most) // 2)
    assert best.prediction.recomputed_flops < chain.layers[0].flops  # it recomputes no attention


# --- products, each written in another way ------------------------------------------------------


def experts(rows, weights, ends):
    starts = [0, *ends[:-1]]
    pairs = zip(starts, ends, strict=True)
    return [rows[a:b] @ w for (a, b), w in zip(pairs, weights, strict=True)]


ENDS = torch.tensor([8, 16, 32], dtype=torch.int32)
SPARSE = torch.eye(6).roll(1, 1)[:4]  # 4 values
ALIKE = {  # function, the same in products PyTorch counts, shapes
    "mv": (torch.mv, lambda a, b: a @ b[:, None], [(3, 4), (4,)], "forward"),
    "dot": (torch.dot, lambda a, b: a[None] @ b[:, None], [(4,), (4,)], "forward"),
    "vdot": (torch.vdot, lambda a, b: a[None] @ b[:, None], [(4,), (4,)], "forward"),
    "addmv": (torch.addmv, lambda c, a, b: c[:, None] + a @ b[:, None], [(3,), (3, 4), (4,)],
              "forward"),
    "addbmm": (torch.addbmm, lambda c, a, b: c + (a @ b).sum(0), [(3, 5), (2, 3, 4), (2, 4, 5)]),
    "baddbmm in place": (lambda c, a, b: (c * 1).baddbmm_(a, b), lambda c, a, b: c + a @ b,
                         [(2, 3, 5), (2, 3, 4), (2, 4, 5)]),
    "addmm in place": (lambda c, a, b: (c * 1).addmm_(a, b), lambda c, a, b: c + a @ b,
                       [(3, 5), (3, 4), (4, 5)]),
    "linear": (functional.linear, lambda a, w: a @ w.T, [(2, 3, 4), (5, 4)]),
    "bilinear": (functional.bilinear,
                 lambda a, b, w: torch.einsum("boj,bj->bo", torch.einsum("bi,oij->boj", a, w), b),
                 [(5, 4), (5, 3), (6, 4, 3)], "forward"),
    "multi_dot": (lambda *m: torch.linalg.multi_dot(m), lambda a, b, c: a @ b @ c,
                  [(3, 4), (4, 5), (5, 6)]),
    "experts, by rows": (lambda a, w: functional.grouped_mm(a, w, offs=ENDS),
                         lambda a, w: experts(a, w, ENDS.tolist()), [(32, 16), (3, 16, 8)]),
    "experts, by columns": (lambda w, b: functional.grouped_mm(w, b, offs=ENDS),
                            lambda w, b: [m.T for m in experts(b.T, w.mT, ENDS.tolist())],
                            [(3, 8, 16), (16, 32)], "forward"),
    "experts, by inner dimension": (lambda a, b: functional.grouped_mm(a, b, offs=ENDS),
                                    lambda a, b: [a[:, i:j] @ b[i:j] for i, j in
                                                  itertools.pairwise([0, *ENDS.tolist()])],
                                    [(8, 32), (32, 16)], "forward"),
    "experts of one size": (functional.grouped_mm, torch.bmm, [(3, 8, 16), (3, 16, 8)]),
    "sparse times dense": (lambda b: SPARSE.to_sparse() @ b, lambda b: torch.ones(2, 2) @ b[:2],
                           [(6, 5)], "forward"),
    "compressed sparse": (lambda b: SPARSE.to_sparse_csr() @ b, lambda b: torch.ones(2, 2) @ b[:2],
                          [(6, 5)], "forward"),
    "depthwise": (lambda a, w: functional.conv2d(a, w, groups=4),
                  lambda a, w: [functional.conv2d(a[:, i : i + 1], w[i : i + 1]) for i in range(4)],
                  [(2, 4, 8, 8), (4, 1, 3, 3)]),
    "grouped convolution": (lambda a, w: functional.conv1d(a, w, groups=2),
                            lambda a, w: [functional.conv1d(a[:, :2], w[:3]),
                                          functional.conv1d(a[:, 2:], w[3:])],
                            [(2, 4, 8), (6, 2, 3)]),
    "grouped, transposed": (lambda a, w: functional.conv_transpose1d(a, w, groups=2),
                            lambda a, w: [functional.conv_transpose1d(a[:, :2], w[:2]),
                                          functional.conv_transpose1d(a[:, 2:], w[2:])],
                            [(2, 4, 8), (4, 3, 3)]),
    "convolution": (functional.conv2d, functional.conv2d, [(2, 3, 8, 8), (4, 3, 3, 3)]),
    "strided": (lambda a, w: functional.conv2d(a, w, stride=2, padding=1),
                lambda a, w: functional.conv2d(a, w, stride=2, padding=1),
                [(2, 3, 9, 9), (4, 3, 3, 3)]),
    "transposed": (functional.conv_transpose2d, functional.conv_transpose2d,
                   [(2, 3, 8, 8), (3, 4, 3, 3)]),
    "over time": (lambda a, w: torch.conv_tbc(a, w, torch.zeros(5)),
                  lambda a, w: functional.conv1d(a.permute(1, 2, 0), w.permute(2, 1, 0)),
                  [(7, 2, 4), (3, 4, 5)], "forward"),
    "distances": (torch.cdist, lambda a, b: functional.pad(a, (0, 2)) @ functional.pad(b, (0, 2)).T,
                  [(40, 4), (30, 4)], "forward"),
    "few distances": (torch.cdist, lambda a, b: a.sum() + b.sum(), [(5, 4), (6, 4)]),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_products_count_as_the_same_products_written_otherwise(name):
    function, otherwise, shapes, *only = ALIKE[name]
    inputs = [x(*shape) for shape in shapes]
    if "forward" in only:
        with torch.no_grad():
            assert counted(lambda: function(*inputs)) == counted_by_pytorch(
                lambda: otherwise(*inputs)
            )
    else:
        assert counted(lambda: with_backward(function)(*inputs)) == counted_by_pytorch(
            lambda: with_backward(otherwise)(*inputs)
        )


def test_experts_of_a_mixture_count_alike_however_they_are_multiplied():
    transformers = pytest.importorskip("transformers")
    words = torch.randint(50, (2, 8))
    found = {}
    for way in ("eager", "batched_mm", "grouped_mm"):
        torch.manual_seed(0)  # the same routes
        model = transformers.MixtralForCausalLM(
            transformers.MixtralConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=50, num_local_experts=4,
            )
        )  # fmt: skip
        model.set_experts_implementation(way)
        found[way] = counted(
            lambda model=model: model(input_ids=words, labels=words).loss.backward(), words
        )
    assert len({*found.values()}) == 1
    experts = 3 * 2 * 16 * 2 * 3 * 32 * 64  # forward and backward, two experts each, three products
    assert found["eager"] > experts


def test_simulated_experts_and_recurrent_layers_count_as_real_ones():
    def made():
        rows = torch.randn(32, 16, dtype=torch.bfloat16, requires_grad=True)
        weights = torch.randn(3, 16, 8, dtype=torch.bfloat16, requires_grad=True)
        return rows, weights, torch.tensor([8, 16, 32], dtype=torch.int32), nn.LSTM(16, 8)

    found = []
    for context in (simulated(), contextlib.nullcontext()):
        with context:
            rows, weights, ends, rnn = made()
            sequences = torch.randn(7, 2, 16)

        def step(rows=rows, weights=weights, ends=ends):
            functional.grouped_mm(rows, weights, offs=ends).square().sum().backward()

        trace = measure(step, inputs=(rows, weights, ends))
        again = measure(lambda n=rnn, s=sequences: n(s)[0].sum().backward(), rnn, None, sequences)
        found.append((trace.flops, again.flops))
    assert found[0] == found[1]
    assert found[0][0] == 3 * 2 * 32 * 16 * 8


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_recurrent_layers_meet_every_weight_at_every_step(layer, options):
    rnn = layer(4, 8, **options)
    matrices = sum(weight.numel() for weight in rnn.parameters() if weight.dim() == 2)
    sequences = torch.randn(7, 2, 4)
    with torch.no_grad():
        assert counted(lambda: rnn(sequences)) == 2 * 7 * 2 * matrices
    sequences.requires_grad_()
    forward_and_backward = counted(lambda: rnn(sequences)[0].sum().backward())
    last_of_each = 2 * 2 * matrices  # no gradient flows into the first hidden state
    assert 6 * 7 * 2 * matrices - last_of_each <= forward_and_backward <= 6 * 7 * 2 * matrices


def test_packed_sequences_count_the_steps_there_are():
    rnn = nn.LSTM(4, 8)
    packed = nn.utils.rnn.pack_sequence([torch.randn(5, 4), torch.randn(3, 4)])
    with torch.no_grad():
        assert counted(lambda: rnn(packed)) == 2 * 8 * (32 * 4 + 32 * 8)


def test_a_chunked_loss_counts_its_three_products():
    hidden, head = x(64, 16), x(100, 16)
    target = torch.randint(100, (64,))
    options = nn.LinearCrossEntropyOptions()
    once = 2 * 64 * 16 * 100

    def step(**how):
        loss = functional.linear_cross_entropy(hidden, head, target, options=options, **how)
        loss.sum().backward()

    # The loss by rows goes through operators that are seen; it takes the logits twice.
    vectors = counted(lambda: step(reduction="none")) - 4 * once
    assert vectors == 2 * 2 * 64
    assert counted(step) == 3 * once + vectors


def test_nested_sequences_count_the_rows_there_are():
    rows = [torch.randn(3, 4), torch.randn(5, 4)]
    layer = nn.Linear(4, 6)
    jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    with torch.no_grad():
        assert by_formula(lambda: layer(jagged)) == 2 * 8 * 4 * 6
        assert by_formula(lambda: jagged @ torch.randn(4, 6)) == 2 * 8 * 4 * 6
    jagged.requires_grad_()
    assert by_formula(lambda: layer(jagged).values().sum().backward()) == 3 * 2 * 8 * 4 * 6


def test_integers_and_packed_weights():
    a, b = torch.ones(32, 64, dtype=torch.int8), torch.ones(64, 16, dtype=torch.int8)
    assert counted(lambda: torch._int_mm(a, b)) == 2 * 32 * 64 * 16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it will move to another package
        layer = torch.ao.nn.quantized.dynamic.Linear(64, 16)
        assert counted(lambda: layer(torch.randn(32, 64))) == 2 * 32 * 64 * 16


def test_results_that_are_written_into_count_too():
    a, b, out = torch.randn(3, 4), torch.randn(4, 5), torch.empty(3, 5)
    assert counted(lambda: torch.mm(a, b, out=out)) == 2 * 3 * 4 * 5


def test_recurrent_layers_of_a_gpu_count_as_on_a_cpu():
    rnn, sequences = nn.LSTM(4, 8, 2), torch.randn(7, 2, 4)
    with torch.no_grad():
        here = counted(lambda: rnn(sequences))
    weights = list(rnn.parameters())
    for name in ("_cudnn_rnn", "miopen_rnn"):
        formula = flops.flops_of(getattr(torch.ops.aten, name).default)
        assert formula(sequences, weights, 4, None, out_val=None) == here
        backward = flops.flops_of(getattr(torch.ops.aten, f"{name}_backward").default)
        assert backward(sequences, weights, 4, None, out_val=None) == 2 * here


# --- what has no formula ------------------------------------------------------------------------


@pytest.mark.parametrize(("chosen", "words"), [("zh", "没有计入"), ("en", "leave out")])
def test_an_operator_without_a_formula_is_named(chosen, words, monkeypatch):
    monkeypatch.setattr(language.choice, "_chosen", chosen)
    matrix = x(4, 4)
    with pytest.warns(UserWarning, match=rf"{words}.*aten\.linalg_inv_ex") as caught:
        trace = measure(lambda: (torch.linalg.inv(matrix) @ matrix).sum().backward())
    (named,) = [w for w in caught if "linalg_inv_ex" in str(w.message)]
    assert named.filename == __file__
    assert trace.uncounted == ("aten.linalg_inv_ex",)
    assert trace.flops == 2 * 4**3 * 5  # the product, its gradients and the inverse's


def test_the_planner_names_them_too():
    class Inverse(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x)

    with pytest.warns(UserWarning, match=r"leave out.*linalg_inv_ex") as caught:
        chain_of([nn.Linear(4, 4), Inverse()], torch.randn(4, 4))
    assert [w.filename for w in caught] == [__file__]


@torch.library.custom_op("course_test::times", mutates_args=())
def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


@torch.library.custom_op("course_test::alone", mutates_args=())
def alone(a: torch.Tensor) -> torch.Tensor:
    return a.sin()


def test_an_operator_of_another_library_may_multiply_until_it_has_a_formula():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    with pytest.warns(UserWarning, match=r"course_test\.times"):
        assert measure(lambda: times(a, b)).uncounted == ("course_test.times",)
    assert counted(lambda: alone(a)) == 0
    packet = torch.ops.course_test.times
    # Asked for anew at every step in the recorder, except for what it has met already.
    flop_counter.register_flop_formula(packet)(lambda a, b, **_: 2 * math.prod((*a, b[-1])))
    try:
        assert flops.flops_of(packet.default)(a, b, out_val=a @ b) == 2 * 3 * 4 * 5
    finally:
        del flop_counter.flop_registry[packet]


def test_a_formula_that_fails_ends_no_step():
    packet = torch.ops.course_test.alone
    flop_counter.flop_registry[packet] = lambda *_, **__: 1 / 0
    try:
        assert flops.flops_of(packet.default)(torch.ones(2), out_val=None) is None
    finally:
        del flop_counter.flop_registry[packet]


def test_a_formula_that_somebody_registered_comes_first():
    packet = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    assert packet not in flop_counter.flop_registry  # PyTorch's table is left as it is
    flop_counter.register_flop_formula(packet)(lambda *_, **__: 42)
    try:
        assert flops.flops_of(packet.default)(*[torch.ones(1, 1, 2, 2)] * 3, out_val=None) == 42
    finally:
        del flop_counter.flop_registry[packet]


# --- all operators of this PyTorch --------------------------------------------------------------


def operators():
    """Every operator that a dispatch mode can meet: those not made of others.

    Parts of torch bring theirs once they are imported: see the imports of this file.
    """
    for schema in torch._C._jit_get_all_schemas():
        namespace, base = schema.name.split("::")
        overload = schema.overload_name
        try:
            made_of_others = torch._C._dispatch_has_kernel_for_dispatch_key(
                f"{schema.name}.{overload}" if overload else schema.name,
                "CompositeImplicitAutograd",
            )
            packet = getattr(getattr(torch.ops, namespace), base)
            operator = getattr(packet, overload or "default")
        except (RuntimeError, AttributeError):  # known to scripts only
            continue
        if not made_of_others:
            yield operator


def test_every_operator_that_multiplies_matrices_is_counted_or_named_with_its_reason():
    seen, unknown = set(), set()
    for operator in operators():
        name, formula = flops._name(operator), flops.flops_of(operator)
        seen.add(name)
        if name.split("::")[0] == "course_test":
            continue
        if formula is flops._cannot_tell and name not in flops.NO_FORMULA:
            unknown.add(name)
    assert len(seen) > 1000
    assert not unknown, "give each a formula, or a reason in NO_FORMULA, or put it in NO_PRODUCTS"
    assert seen >= {name for name in flops.NO_PRODUCTS if name.startswith("aten::")}
    assert all(re.fullmatch(r"[a-z ]{20,}", reason) for reason in flops.NO_FORMULA.values())
    assert not flops.NO_FORMULA.keys() & flops._FORMULAS.keys()
    registered = {str(p).replace(".", "::") for p in flop_counter.flop_registry}
    assert not registered & flops.NO_FORMULA.keys()


PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::mv", "aten::addmv",
            "aten::dot", "aten::vdot", "aten::convolution", "aten::_int_mm"}  # fmt: skip


class Named(TorchDispatchMode):
    """Opens a range of the profiler around each operator that is counted as no product, or is."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("prim", "profiler"):
            return func(*args, **(kwargs or {}))
        sort = "free" if flops.flops_of(func) is None else "product"
        with torch._C._profiler._RecordFunctionFast(f"{sort} {func._schema.name}"):
            return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_operator_that_counts_as_free_calls_a_product():
    """PyTorch's own samples of all its operators, forward and backward, under the profiler."""
    inside: dict[str, set[str]] = {"free": set(), "product": set()}
    for op in pytorchs_operators():
        grad = op.supports_autograd
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for sample in itertools.islice(
                op.sample_inputs("cpu", torch.float32, requires_grad=grad), 4
            ):
                try:
                    with Named():
                        with_backward(op)(sample.input, *sample.args, **sample.kwargs)
                except Exception:
                    continue  # an operator that this mode or this machine cannot run
        events = [
            (e.name(), e.start_ns(), e.end_ns()) for e in profiler.profiler.kineto_results.events()
        ]
        called = [(start, end) for name, start, end in events if name in PRODUCTS]
        for name, start, end in events:
            sort, _, operator = name.partition(" ")
            if sort in inside and any(start <= a and b <= end for a, b in called):
                inside[sort].add(operator)
    assert not inside["free"]
    assert inside["product"] >= {"aten::_trilinear", "aten::bmm"}  # so it would have been seen
