"""What autograd keeps, as ``saved_tensors`` lists it."""

import functools
import gc
import itertools
from collections import UserDict

import pytest
import torch
import torch._functorch.config as functorch_config
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from course_lib.memory import Role, measure, simulated
from course_lib.memory.operators import parts
from course_lib.memory.reach import tensors
from course_lib.models import Block, PaperBlock, Sizes, Transformer, random_tokens
from course_lib.saved import saved_tensors
from support.pytorchs_samples import pytorchs_operators

VALUES = 32 * 64 * 4  # bytes of the input below


@pytest.fixture
def x():
    return torch.randn(32, 64, requires_grad=True)


@pytest.mark.parametrize(
    ("function", "total", "summary"),
    [
        (nn.Linear(64, 64), VALUES, "input [32, 64]"),
        (functional.gelu, VALUES, "input [32, 64]"),
        (functional.relu, VALUES, "output [32, 64]"),
        (torch.tanh, VALUES, "output [32, 64]"),
        (nn.Softmax(-1), VALUES, "output [32, 64]"),
        (nn.Dropout(0.1), VALUES, "another value [32, 64]"),
        (lambda x: x + 1, 0, "nothing"),
        (lambda x: x + functional.relu(x), VALUES, "another value [32, 64]"),
        (lambda x: x * x, VALUES, "input [32, 64]"),
        (functional.silu, VALUES, "input [32, 64]"),
    ],
)
def test_each_operator_keeps_what_its_derivative_needs(x, function, total, summary):
    kept = saved_tensors(function, x)
    assert kept.total == total
    assert kept.summary()[1] == summary


def test_layer_norm_keeps_its_input_mean_and_deviation(x):
    assert saved_tensors(nn.LayerNorm(64), x).total == VALUES + 2 * 32 * 4


def test_a_storage_counts_once_however_many_use_it(x):
    kept = saved_tensors(lambda x: x.sin() + x.cos() + x.exp() * 0, x)
    assert [saved.role for saved in kept] == [Role.INPUT, Role.ACTIVATION]


def test_parameters_are_listed_but_not_counted(x):
    kept = saved_tensors(nn.Linear(64, 64), x)
    assert kept.by_role() == {Role.INPUT: VALUES, Role.PARAMETER: 64 * 64 * 4}
    assert kept.total == VALUES


def test_parameters_are_recognised_in_functions_and_bound_methods():
    model = Transformer(Sizes(depth=2, width=32, sequence=16, batch=2))
    tokens = random_tokens(model.sizes)
    for function in (model.loss, lambda tokens: model.loss(tokens)):
        kept = saved_tensors(function, tokens)
        shared = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        assert shared
        assert all(saved.module != "" for saved in kept if saved.role is Role.PARAMETER)
        assert kept.by_role()[Role.PARAMETER] < sum(p.nbytes for p in model.parameters())


def test_what_it_lists_is_what_measure_finds_at_the_end_of_forward():
    sizes = Sizes(depth=3, width=32, sequence=16, batch=2)
    model, tokens = Transformer(sizes), random_tokens(sizes)
    trace = measure(lambda: model.loss(tokens).backward(), model, None, tokens)
    listed = saved_tensors(model.loss, tokens).by_role()
    assert listed[Role.ACTIVATION] == trace.kept[Role.ACTIVATION]


def test_a_line_tells_module_operator_and_source():
    block = Block(Sizes(width=32, sequence=16))
    by_module = {saved.module: saved for saved in saved_tensors(block, torch.randn(2, 16, 32))}
    up = by_module["feed_forward.up"]
    assert up.operator == "aten.addmm"
    assert "self.up(x)" in up.line


@pytest.mark.parametrize("reentrant", [True, False])
def test_inside_checkpoints_it_shows_what_is_really_kept(x, reentrant):
    calls = []

    def segment(x):
        calls.append(1)
        return functional.gelu(functional.gelu(x))

    def model(x):
        x = checkpoint(segment, x, use_reentrant=reentrant)
        return checkpoint(segment, x, use_reentrant=reentrant)

    kept = saved_tensors(model, x)
    assert [saved.operator for saved in kept] == ["checkpoint", "checkpoint"]
    assert kept.by_role() == {Role.INPUT: VALUES, Role.CHECKPOINT: VALUES}
    assert len(calls) == 2, "listing must not recompute"


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
def test_a_compiled_module_is_seen_as_it_runs(x):
    """With a small budget it keeps its input and makes the rest again."""
    torch._dynamo.reset()
    module = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    with functorch_config.patch(activation_memory_budget=0):
        compiled = torch.compile(module, backend="aot_eager")
        compiled(x).sum().backward()
        kept = saved_tensors(compiled, x)
        trace = measure(lambda: compiled(x).sum().backward(), module, inputs=x)
    assert kept.total == VALUES
    assert trace.kept[Role.ACTIVATION] == 0
    torch._dynamo.reset()


def test_an_own_function_is_named():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 2 * x * grad

    (saved,) = saved_tensors(lambda x: Square.apply(x * 1), torch.ones(3, requires_grad=True))
    assert saved.operator == "Square"


def test_what_is_dropped_before_the_end_does_not_count(x):
    def wasteful(x):
        functional.gelu(x * 2).sum()
        return x + 1

    assert len(saved_tensors(wasteful, x)) == 0


def test_nothing_is_left_behind(x):
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    with pytest.raises(ZeroDivisionError):
        saved_tensors(lambda x: 1 / 0, x)
    assert torch.utils._python_dispatch._get_current_dispatch_mode_stack() == modes
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    y = functional.gelu(x)
    assert y.grad_fn._raw_saved_self is not None
    y.sum().backward()
    assert x.grad is not None


def test_simulated_tensors_have_the_same_bytes():
    sizes = Sizes(sequence=128, batch=2, width=256, heads=4)
    real = saved_tensors(PaperBlock(sizes, fused_dropout=True), torch.randn(128, 2, 256))
    with simulated():
        block, x = PaperBlock(sizes, fused_dropout=True), torch.randn(128, 2, 256)
        assert saved_tensors(block, x).total == real.total


@pytest.mark.parametrize(("sequence", "heads"), [(128, 4), (256, 8)])
def test_the_papers_formula_holds_at_16_bit(sequence, heads):
    sizes = Sizes(sequence=sequence, batch=2, width=256, heads=heads)
    x = torch.randn(sequence, 2, 256, dtype=torch.bfloat16)
    found = saved_tensors(PaperBlock(sizes, fused_dropout=True).bfloat16(), x).total
    values = sequence * 2 * 256
    norms = 4 * sequence * 2 * 2  # mean and deviation, twice, which the formula leaves out
    assert found == values * (34 + 5 * heads * sequence / 256) + norms


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="callable, not int"):
        saved_tensors(3)


# --- any call, any function ---------------------------------------------------------------------


def listed(kept):
    return [(saved.size, saved.role, saved.operator, saved.module) for saved in kept]


MODEL = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))


def through(model, x):
    return model(x)


class Holder:
    def __init__(self, model):
        self.model = model

    def run(self, x):
        return self.model(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: MODEL(x),
        lambda x: through(MODEL, x),
        lambda x, model=MODEL: model(x),
        functools.partial(through, MODEL),
        functools.partial(lambda x, model: model(x), model=MODEL),
        Holder(MODEL).run,
        lambda x: [block(x) for block in [MODEL]],
    ],
)
def test_paths_are_those_of_the_model_that_a_function_holds_on_to(x, function):
    assert listed(saved_tensors(function, x)) == listed(saved_tensors(MODEL, x))
    assert {saved.module for saved in saved_tensors(function, x)} == {"0", "1", "2"}


def test_several_models_are_told_apart_by_their_names(x):
    first, second = MODEL, nn.ModuleDict({"tanh": nn.Tanh()})
    kept = saved_tensors(lambda x: second["tanh"](first(x)), x)
    assert {saved.module for saved in kept} == {"first.0", "first.1", "first.2", "second.tanh"}
    blocks = [MODEL, nn.Tanh()]
    kept = saved_tensors(lambda x: blocks[1](blocks[0](x)), x)
    assert {saved.module for saved in kept} == {
        "blocks.0.0",
        "blocks.0.1",
        "blocks.0.2",
        "blocks.1",
    }


def test_a_module_that_the_function_makes_is_named_by_its_class(x):
    kept = saved_tensors(lambda x: nn.Sequential(nn.Linear(64, 64), nn.Tanh())(x), x)
    assert {saved.module for saved in kept} == {"Sequential.0", "Sequential.1"}


def test_keyword_arguments_are_inputs_too(x):
    def scaled(x, *, by):
        return x * by["factor"]

    factor = torch.randn(32, 64)
    kept = saved_tensors(scaled, x, by={"factor": factor})
    assert kept.by_role() == {Role.INPUT: VALUES}
    assert saved_tensors(scaled, x=x, by=UserDict(factor=factor)).by_role() == kept.by_role()


def test_what_a_function_holds_on_to_existed_before(x):
    mask = torch.randn(32, 64)
    assert saved_tensors(lambda x: x * mask, x).by_role() == {Role.INPUT: VALUES}
    norm = nn.BatchNorm1d(64)
    kept = saved_tensors(norm, x)
    assert kept.by_role()[Role.BUFFER] == 2 * 64 * 4
    assert kept.total == VALUES + 2 * 64 * 4  # its input, mean and deviation


def test_what_an_own_function_keeps_by_hand_is_listed(x):
    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.factor = x * 2
            return x * ctx.factor

        @staticmethod
        def backward(ctx, grad):
            return grad * 2 * ctx.factor

    (saved,) = saved_tensors(ByHand.apply, x)
    assert (saved.size, saved.operator, saved.role) == (VALUES, "ByHand", Role.ACTIVATION)


def test_a_chunked_loss_keeps_the_gradients_it_has_taken():
    hidden, head = torch.randn(64, 16, requires_grad=True), nn.Parameter(torch.randn(100, 16))
    kept = saved_tensors(
        functional.linear_cross_entropy, hidden, head, torch.zeros(64, dtype=torch.long),
        options=nn.LinearCrossEntropyOptions(),
    )  # fmt: skip
    assert kept.by_role() == {Role.ACTIVATION: 64 * 16 * 4 + 100 * 16 * 4}
    assert "linear_cross_entropy" in kept.tensors[0].operator


@pytest.mark.parametrize("call", [functional.ctc_loss, torch.ctc_loss])
def test_a_loss_that_goes_another_way_when_watched_keeps_what_it_does_unwatched(call):
    log_probs = torch.randn(20, 4, 10).log_softmax(-1).requires_grad_()
    targets, lengths = torch.randint(1, 10, (4, 6)), torch.full((4,), 20)

    def loss(log_probs, targets, **lengths):
        return call(log_probs, targets, **lengths)

    kept = saved_tensors(
        loss, log_probs, targets, input_lengths=lengths, target_lengths=torch.full((4,), 6)
    )
    # Where a dispatch mode is seen, the lengths are kept as well, and as integers of 8 bytes.
    made = [saved for saved in kept if saved.role is Role.ACTIVATION]
    result = 0 if any(saved.is_output for saved in made) else 4
    target_lengths = torch.full((4,), 6)
    assert sum(saved.size for saved in made) + result == bytes_kept_unwatched(
        lambda: loss(log_probs, targets, input_lengths=lengths, target_lengths=target_lengths)
    )
    assert kept.by_role()[Role.INPUT] == log_probs.nbytes + targets.nbytes


def test_nested_sequences_are_listed_by_their_parts():
    rows = [torch.randn(3, 64), torch.randn(5, 64)]
    block = nn.Sequential(nn.Linear(64, 64), nn.GELU())
    for layout in (torch.jagged, torch.strided):
        kept = saved_tensors(block, torch.nested.nested_tensor(rows, layout=layout))
        sizes = [saved.size for saved in kept if saved.operator == "aten.gelu"]
        assert sizes == [8 * 64 * 4], layout


def test_sparse_tensors_are_listed_by_their_parts():
    eye = torch.eye(32).to_sparse()
    kept = saved_tensors(lambda x: torch.sparse.mm(eye, x), torch.randn(32, 64, requires_grad=True))
    assert kept.by_role() == {Role.INPUT: 2 * 32 * 8 + 32 * 4}  # indices and values


@pytest.mark.parametrize("name", ["cond", "while", "scan"])
def test_operators_that_take_functions_keep_what_they_do_unwatched(name):
    def cond(x):
        return torch.cond(x.sum() > 0, lambda x: x.sin().exp(), lambda x: x.cos(), (x,))

    def loop(x):
        start = torch.tensor(0)
        body = lambda i, x: (i + 1, x.sin())  # noqa: E731
        return torch._higher_order_ops.while_loop(lambda i, x: i < 3, body, (start, x))[1]

    def scan(x):
        times = torch._higher_order_ops.associative_scan
        return times(lambda a, b: a * b, x, 0, combine_mode="generic")

    function = {"cond": cond, "while": loop, "scan": scan}[name]
    x = torch.randn(4, 8, requires_grad=True)
    kept = saved_tensors(function, x)
    made = [saved for saved in kept if saved.role is Role.ACTIVATION]
    result = 0 if any(saved.is_output for saved in made) else x.nbytes
    assert sum(saved.size for saved in made) + result == bytes_kept_unwatched(lambda: function(x))


def bytes_kept_unwatched(run):
    """What the allocator has handed out and not got back when ``run()`` has returned."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events = profiler.profiler.kineto_results.events()
    del result
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


# PyTorch keeps a number of 8 bytes that it made of a Python number; no hook is told of it.
WITH_NUMBERS = {
    "nn.functional.local_response_norm": 8, "nn.functional.multilabel_soft_margin_loss": 8,
    "nn.functional.gaussian_nll_loss": 8, "nn.functional.multi_head_attention_forward": 8,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pytorchs_own_samples_keep_what_is_listed_to_the_byte():
    """Every operator with autograd: two samples each, against the allocator."""

    def storages(value):
        return {
            part.untyped_storage()._cdata: part.untyped_storage().nbytes()
            for tensor in tensors(value) for part in parts(tensor)
        }  # fmt: skip

    tried, differ = 0, {}
    gc.collect()
    gc.disable()
    try:
        for op in pytorchs_operators():
            samples = op.sample_inputs("cpu", torch.float32, requires_grad=True)
            for sample in itertools.islice(samples, 2) if op.supports_autograd else ():
                inputs = (sample.input, *sample.args)
                torch.manual_seed(0)
                result = None  # of the sample before: not to be freed while the profiler looks
                try:
                    op(*inputs, **sample.kwargs)
                    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
                        torch.manual_seed(0)
                        result = op(*inputs, **sample.kwargs)
                except Exception:
                    continue  # nothing that this machine can run
                if not any(tensor.requires_grad for tensor in tensors(result)):
                    continue
                memory = p.profiler.kineto_results.events()
                live = sum(event.nbytes() for event in memory if event.name() == "[memory]")
                torch.manual_seed(0)
                kept = saved_tensors(op, *inputs, **sample.kwargs)
                made = [saved for saved in kept if saved.role is Role.ACTIVATION]
                given = storages((inputs, sample.kwargs))
                results = sum(n for key, n in storages(result).items() if key not in given)
                total = sum(saved.size for saved in made if not saved.is_output) + results
                del result
                tried += 1
                if live - total not in (0, WITH_NUMBERS.get(op.name)):
                    differ[op.name] = live, total, str(kept)
    finally:
        gc.enable()
    assert not differ
    assert tried > 900
