"""What autograd keeps, as ``saved_tensors`` lists it."""

import pytest
import torch
import torch._functorch.config as functorch_config
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from course_lib.memory import Role, measure, simulated
from course_lib.models import Block, PaperBlock, Sizes, Transformer, random_tokens
from course_lib.saved import saved_tensors

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
