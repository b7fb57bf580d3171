"""``same_gradients`` finds what differs, says it in words and numbers, refuses unequal work."""

import collections
import contextlib
import copy
import dataclasses
import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import course_lib  # noqa: F401  first: it sets two options that torch reads while loading
from course_lib.gradients import Agreement, UnequalWork, same_gradients
from course_lib.memory import simulated
from course_lib.models import Sizes, Transformer, random_tokens


@pytest.fixture(autouse=True)
def english(monkeypatch):
    from course_lib import language

    monkeypatch.setattr(language.choice, "_chosen", "en")


def mlp(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 8), *middle, nn.Linear(8, 8), nn.Tanh())


def checkpointed(model: nn.Module, **options):
    return lambda x: checkpoint(model, x, use_reentrant=False, **options)


X = torch.randn(16, 8)


# --- agreement ----------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", [(), (nn.Dropout(0.5),), (nn.GELU(), nn.LayerNorm(8))])
def test_a_correct_checkpoint_agrees_bit_for_bit(middle):
    model = mlp(*middle)
    found = same_gradients(model, checkpointed(model), X)
    assert found and found.first is None and found.error is None
    assert "agree bit for bit" in found.en and "逐位相同" in found.zh
    assert found.compared["gradient"] == len(list(model.parameters()))


def test_reentrant_agrees_where_the_input_requires_a_gradient():
    model = mlp(nn.Dropout(0.5))
    found = same_gradients(
        model, lambda x: checkpoint(model, x, use_reentrant=True), X.clone().requires_grad_()
    )
    assert found and found.compared["gradient"] == len(list(model.parameters())) + 1


def test_a_transformer_with_a_checkpoint_per_block():
    sizes = Sizes(depth=3, width=32, sequence=16, batch=2, dropout=0.1)
    model, tokens = Transformer(sizes), random_tokens(sizes)

    def wrapped():
        x = model.embed(tokens[:, :-1])
        for block in model.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        loss = nn.functional.cross_entropy(model.read_out(x).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        return loss

    def plain():
        loss = model.loss(tokens)
        loss.backward()
        return loss

    assert same_gradients(plain, wrapped, model=model)


def test_two_models_are_matched_by_name_and_get_the_same_values():
    plain = mlp()
    other = mlp()
    with torch.no_grad():
        other[0].weight.add_(1)

    class Wrapped(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    wrapped = Wrapped(*other)
    before = wrapped[0].weight.clone()
    assert same_gradients(plain, wrapped, X)
    assert torch.equal(wrapped[0].weight, before)


def test_pytorchs_own_wrapper_is_matched_by_name():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    plain = nn.Sequential(mlp(), mlp())
    wrapped = copy.deepcopy(plain)
    apply_activation_checkpointing(wrapped, check_fn=lambda m: m is wrapped[0])
    assert same_gradients(plain, wrapped, X)


# --- differences --------------------------------------------------------------------------------


def test_dropout_with_other_random_numbers_is_a_difference_in_gradients():
    model = mlp(nn.Dropout(0.5))
    found = same_gradients(model, checkpointed(model, preserve_rng_state=False), X)
    assert not found
    assert (found.first.kind, found.first.name) == ("gradient", "0.weight")
    assert found.first.largest > 1e-3 and found.first.scale > 0
    assert "64 of 64 numbers differ" in found.en and "64 个数里有 64 个不同" in found.zh
    assert "random state" in {difference.kind for difference in found.differences}


def test_a_missing_gradient_is_named():
    model = mlp()
    with pytest.warns(UserWarning, match="None of the inputs"):
        found = same_gradients(model, lambda x: checkpoint(model, x, use_reentrant=True), X)
    assert found.first.en == "0.weight has no gradient on the checkpointed side (None)."
    assert found.first.zh == "0.weight 在有检查点的一边没有梯度（None）。"


def test_batch_norm_counted_twice_is_a_difference_in_buffers_only():
    model = mlp(nn.BatchNorm1d(8))
    found = same_gradients(model, checkpointed(model), X)
    assert {difference.kind for difference in found.differences} == {"buffer"}
    counter = next(d for d in found.differences if d.name == "1.num_batches_tracked")
    assert "plain has 1, checkpointed 2" in counter.en and "普通 1，有检查点 2" in counter.zh


def test_batch_norm_cured_agrees():
    model = mlp(nn.BatchNorm1d(8))

    @contextlib.contextmanager
    def buffers_kept():
        before = [buffer.clone() for buffer in model.buffers()]
        try:
            yield
        finally:
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)

    contexts = lambda: (contextlib.nullcontext(), buffers_kept())  # noqa: E731
    assert same_gradients(model, checkpointed(model, context_fn=contexts), X)


def test_the_momentum_cure_leaves_rounding_and_a_counter():
    model = mlp(nn.BatchNorm1d(8))
    cured = copy.deepcopy(model)
    cured[1].momentum = 1 - (1 - 0.1) ** 0.5
    found = same_gradients(model, checkpointed(cured), X, model=(model, cured), tolerance=1e-5)
    assert [difference.name for difference in found.differences] == ["1.num_batches_tracked"]
    exact = same_gradients(model, checkpointed(cured), X, model=(model, cured))
    assert "That is rounding." in exact.first.en


def test_python_and_numpy_random_numbers_are_seen():
    for draw in (random.random, numpy.random.random):
        model = mlp()
        scaled = lambda x, draw=draw, model=model: (model(x) * (1 + draw())).sin()  # noqa: E731
        found = same_gradients(scaled, checkpointed(scaled), X, model=model)
        assert {"gradient", "random state"} == {difference.kind for difference in found.differences}


def test_a_random_state_alone_is_a_difference():
    model = mlp()
    noisy = lambda x: model(x) + 0 * torch.rand(1) * x.detach()  # noqa: E731
    found = same_gradients(model, noisy, X, model=model)
    assert [(d.kind, d.name) for d in found.differences] == [("random state", "torch")]
    assert "the next step draws different numbers" in found.en


def test_other_outputs_are_reported_and_end_the_comparison():
    model = mlp()
    found = same_gradients(model, lambda x: model(x) * 1.5, X, model=model)
    assert {difference.kind for difference in found.differences} == {"output"}


def test_an_error_on_the_checkpointed_side():
    model = mlp(nn.Dropout(0.5))

    def step(run):
        loss = run(X).sum()
        model.eval()
        loss.backward()

    found = same_gradients(lambda: step(model), lambda: step(checkpointed(model)), model=model)
    assert type(found.error).__name__ == "CheckpointError"
    assert "the checkpointed side raises CheckpointError" in found.en
    assert model.training, "training flags come back"


def test_an_error_on_the_plain_side_alone():
    model = mlp()

    def step(run):
        loss = run(X.clone().requires_grad_()).sum()
        with torch.no_grad():
            model[1].weight.mul_(2)
        loss.backward()

    found = same_gradients(lambda: step(model), lambda: step(checkpointed(model)), model=model)
    assert not found and found.error is None
    assert "The checkpointed one finishes without a word" in found.en


def test_an_error_on_both_sides_leaves_nothing_to_compare():
    def fails(x):
        raise OverflowError("too much")

    found = same_gradients(fails, fails, X, model=mlp())
    assert not found and found.first.kind == "error"
    assert "both sides raise" in found.en and "OverflowError: too much" in found.en
    assert "两边都抛出异常" in found.zh and str(found) == found.en


def test_a_parameter_that_neither_side_uses_is_no_difference():
    model = nn.ModuleDict({"used": nn.Linear(8, 8), "idle": nn.Linear(8, 8)})
    run = model["used"]
    found = same_gradients(run, lambda x: checkpoint(run, x, use_reentrant=False), X, model=model)
    assert found and found.compared["gradient"] == 4
    found = same_gradients(run, lambda x: run(x) + 0 * model["idle"](x), X, model=model)
    assert found.first.name == "idle.weight"


def test_gradients_that_a_plain_sum_would_hide_are_seen():
    x = torch.randn(6, requires_grad=True)
    mixed = lambda x: x.detach() + x.mean() - x.mean().detach()  # noqa: E731  sums to the same
    assert same_gradients(lambda x: x * 1, mixed, x, tolerance=1e-6).first.kind == "gradient"


def test_nan_on_both_sides_is_equal():
    x = torch.tensor([-1.0, 4.0], requires_grad=True)
    root = lambda x: x.sqrt()  # noqa: E731
    assert same_gradients(root, lambda x: checkpoint(root, x, use_reentrant=False), x)


def test_tolerance_is_relative():
    x = torch.full((4,), 1e6, requires_grad=True)
    nearly = lambda x: x * x.detach() * (1 + 1e-6) + x.detach() ** 2 * -1e-6  # noqa: E731
    plain = lambda x: x * x.detach()  # noqa: E731
    assert not same_gradients(plain, nearly, x)
    assert same_gradients(plain, nearly, x, tolerance=1e-5)


# --- refusing -----------------------------------------------------------------------------------


def test_refuses_other_shapes():
    model = mlp()
    with pytest.raises(UnequalWork, match=r"plain returns shapes \[\[16, 8\]\], checkpointed"):
        same_gradients(model, lambda x: model(x[:8]), X, model=model)


def test_refuses_another_model():
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.Tanh())
    with pytest.raises(UnequalWork, match=r"1\.weight"):
        same_gradients(mlp(), other, X)


def test_refuses_a_model_that_lacks_a_layer():
    with pytest.raises(UnequalWork, match=r"2\.weight is \[8, 8\].* on the plain side and missing"):
        same_gradients(X.mul, X.mul, X, model=(mlp(nn.GELU()), mlp()[:1]))


def test_refuses_a_frozen_copy():
    frozen = copy.deepcopy(mlp()).requires_grad_(False)
    with pytest.raises(UnequalWork, match="requires_grad=False"):
        same_gradients(mlp(), frozen, X)


def test_refuses_a_plain_side_without_gradients():
    with pytest.raises(UnequalWork, match="nothing to compare"):
        same_gradients(torch.sin, torch.sin, X)
    model = mlp()
    with pytest.raises(UnequalWork, match="call backward"):
        same_gradients(lambda: model(X), lambda: model(X), model=model)


def test_asks_for_the_model_rather_than_skip_its_gradients():
    model = mlp()
    with pytest.raises(TypeError, match="Pass model="):
        same_gradients(lambda x: model(x), lambda x: model(x), X)


def test_refuses_simulated_tensors():
    with simulated():
        model, x = mlp(), torch.randn(2, 8)
    with pytest.raises(TypeError, match="no values"):
        same_gradients(model, model, x)


def test_refuses_a_list_as_model():
    with pytest.raises(TypeError, match="ModuleList"):
        same_gradients(torch.sin, torch.sin, X, model=[mlp()])


# --- leaving no trace ---------------------------------------------------------------------------


def test_everything_is_as_it_was():
    model = mlp(nn.BatchNorm1d(8), nn.Dropout(0.5))
    model(X).sum().backward()
    gradient = model[0].weight.grad
    values = copy.deepcopy(model.state_dict())
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
    expected = torch.rand(1), random.random(), numpy.random.random()
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
    same_gradients(model, checkpointed(model, preserve_rng_state=False), X)
    assert (torch.rand(1), random.random(), numpy.random.random()) == expected
    assert model[0].weight.grad is gradient
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def test_the_verdict_is_shown_in_both_languages():
    found = same_gradients(mlp(), mlp(), X)
    assert isinstance(found, Agreement)
    bundle = found._repr_mimebundle_()
    assert found.zh in bundle["text/html"] and found.en in bundle["text/html"]
    assert bundle["text/plain"] == found.en


# --- attempts to fool it ------------------------------------------------------------------------


class Remembers(nn.Module):
    """A Linear with a buffer that does not exist before the first call and is replaced after."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("calls", None)

    def forward(self, x):
        self.calls = torch.ones(1) if self.calls is None else self.calls + 1
        return self.linear(x)


def test_a_buffer_that_is_born_in_the_forward_pass():
    model = Remembers()
    found = same_gradients(model, checkpointed(model), X)
    assert [(d.kind, d.name) for d in found.differences] == [("buffer", "calls")]
    assert "plain has 1, checkpointed 2" in found.en
    assert model.calls is None, "as it was"


def test_a_buffer_that_only_one_side_has():
    model = Remembers()
    found = same_gradients(model, lambda x: model.linear(x), X)
    assert found.first.en == "buffer calls exists on the plain side only."
    assert found.first.zh == "缓冲区 calls 只在普通的一边有。"


def test_a_buffer_that_is_replaced_comes_back_itself():
    model = Remembers()
    model(X)
    before = model.calls
    same_gradients(model, checkpointed(model), X)
    assert model.calls is before and before.item() == 1


def test_refuses_another_dtype():
    model = mlp()
    with pytest.raises(UnequalWork, match=r"plain returns torch\.float32, checkpointed torch\.fl"):
        same_gradients(model, lambda x: model(x).double(), X, model=model)


def test_a_side_that_freezes_a_parameter_is_named_and_undone():
    model = mlp()

    def frozen(x):
        model[1].weight.requires_grad_(False)
        return model(x)

    found = same_gradients(model, frozen, X, model=model)
    assert found.en == "✗ Different: 1.weight has no gradient on the checkpointed side (None)."
    assert model[1].weight.requires_grad


def test_sparse_gradients_are_compared():
    table, words = nn.Embedding(6, 4, sparse=True), torch.tensor([1, 2, 2])
    assert same_gradients(table, checkpointed(table), words)
    doubled = lambda x: table(x) * 2 - table(x).detach()  # noqa: E731
    found = same_gradients(table, doubled, words, model=table)
    assert (found.first.kind, found.first.name) == ("gradient", "weight")


def test_a_number_that_is_returned_counts():
    model = mlp()
    found = same_gradients(lambda x: (model(x), 0.5), lambda x: (model(x), 0.25), X, model=model)
    assert found.first.kind == "output" and "plain has 0.5, checkpointed 0.25" in found.en


def test_an_input_changed_once_more_is_seen():
    """A cache that is passed by keyword: nothing guards it, and no gradient shows it."""
    model = mlp()

    def block(x, cache):
        cache.add_(1)
        return model(x)

    found = same_gradients(
        block, lambda x, cache: checkpoint(block, x, cache=cache, use_reentrant=False),
        X, torch.zeros(3), model=model,
    )  # fmt: skip
    assert [(d.kind, d.name) for d in found.differences] == [("input", "x1")]
    assert "输入 x1" in found.zh and "plain has 1, checkpointed 2" in found.en


def test_an_infinite_number_does_not_excuse_the_others():
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    found = same_gradients(lambda x: 1 / x, lambda x: 1 / x + 0.5, x, tolerance=1e-3)
    assert found.first.kind == "output" and "[1] plain has 1, checkpointed 1.5" in found.en


def test_asks_for_what_is_in_neither_the_model_nor_the_inputs():
    model, weight = mlp(), torch.randn(8, 8, requires_grad=True)
    with pytest.raises(TypeError, match="neither an input nor in model"):
        same_gradients(lambda x: model(x) @ weight, lambda x: model(x) @ weight, X, model=model)
    other = nn.Parameter(torch.randn(8, 8))
    with pytest.raises(TypeError, match="neither an input nor in model"):
        same_gradients(lambda x: model(x) @ other, lambda x: model(x), X, model=model)


# --- wrappers -----------------------------------------------------------------------------------


def blocks():
    torch.manual_seed(3)
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2)))


class OwnCheckpoint(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def wrapped_blocks():
    return nn.Sequential(*(OwnCheckpoint(block) for block in blocks()))


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "compiled": compiled,
    "data-parallel": nn.parallel.DistributedDataParallel,
    "in threads": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "own": OwnCheckpoint,
    "compiled, then data-parallel": lambda model: nn.parallel.DistributedDataParallel(
        compiled(model)
    ),
    "data-parallel, then compiled": lambda model: compiled(
        nn.parallel.DistributedDataParallel(model)
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("on_the_left", [False, True])
def test_wrappers_are_seen_through(name, on_the_left, one_rank):
    sides = [blocks(), WRAPPERS[name](wrapped_blocks())]
    if on_the_left:
        sides.reverse()
    found = same_gradients(*sides, X)
    assert found and found.compared["gradient"] == 4
    wrong = sides[1 - on_the_left]
    linear = next(module for module in wrong.modules() if isinstance(module, nn.Linear))
    linear.weight.register_hook(lambda gradient: gradient * 2)
    found = same_gradients(*sides, X)
    assert [d.kind for d in found.differences] == ["gradient"]
    if not on_the_left:
        assert found.first.name == "0.0.weight", "as the plain side calls it"


def test_sharded_parameters_are_compared_whole(one_rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded = wrapped_blocks()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    plain = blocks()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    assert same_gradients(plain, sharded, X)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_wrapper_around_another_model_is_still_another_model():
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.Tanh())
    with pytest.raises(UnequalWork, match=r"1\.weight"):
        same_gradients(mlp(), compiled(other), X)


def test_parts_in_another_order_are_matched_by_name():
    plain = mlp()
    other = nn.Module()
    for name, part in reversed([*plain.named_children()]):
        other.add_module(name, copy.deepcopy(part))
    other.forward = lambda x: other.get_submodule("2")(
        other.get_submodule("1")(other.get_submodule("0")(x))
    )
    assert same_gradients(plain, other, X)


# --- inputs and outputs -------------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor
    cache: None = None


class Language(nn.Module):
    """Called as a language model is."""

    def __init__(self, wrap=False):
        super().__init__()
        torch.manual_seed(3)
        self.words, self.head, self.wrap = nn.Embedding(10, 8), nn.Linear(8, 10), wrap

    def forward(self, input_ids=None, attention_mask=None, seed=0.0):
        hidden = self.words(input_ids) * attention_mask[..., None] + seed
        run = (lambda h: checkpoint(self.head, h, use_reentrant=False)) if self.wrap else self.head
        logits = run(hidden)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), input_ids.flatten())
        return Output(loss, logits)


WORDS = {"input_ids": torch.randint(10, (2, 5)), "attention_mask": torch.ones(2, 5)}


def test_keyword_arguments():
    found = same_gradients(Language(), Language(wrap=True), **WORDS)
    assert found and found.compared["gradient"] == 3 and found.compared["output"] == 2
    found = same_gradients(Language(), Language(wrap=True), WORDS["input_ids"], WORDS["input_ids"])
    assert found, "by position, the same tensor twice"


def test_names_that_same_gradients_uses_itself_go_into_kwargs():
    shift = torch.ones(1, requires_grad=True)
    found = same_gradients(
        Language(), Language(wrap=True), **WORDS, seed=3, kwargs={"seed": shift}
    )  # fmt: skip
    assert found and found.compared["gradient"] == 4
    doubled = Language(wrap=True)
    doubled.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"seed": kwargs["seed"] * 1.5}),
        with_kwargs=True,
    )
    found = same_gradients(Language(), doubled, **WORDS, kwargs={"seed": shift})
    assert (found.first.kind, found.first.name) == ("output", "loss")


@pytest.mark.parametrize("mapping", [dict, collections.UserDict, collections.OrderedDict])
def test_dictionaries(mapping):
    plain, wrapped = (lambda batch, m=m: m(**batch) for m in (Language(), Language(wrap=True)))
    model = Language()
    plain, wrapped = lambda batch: model(**batch), lambda batch: model(**dict(batch))
    batch = mapping({**WORDS, "seed": torch.zeros(1, requires_grad=True)})
    assert same_gradients(plain, wrapped, batch, model=model).compared["gradient"] == 4

    def spoils(batch):
        batch["attention_mask"].mul_(2)
        return model(**batch)

    found = same_gradients(plain, spoils, batch, model=model)
    assert not found
    assert torch.equal(WORDS["attention_mask"], torch.ones(2, 5)), "both sides get copies"


def test_an_input_given_twice_stays_one():
    model = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.0)
    x = torch.randn(2, 4, 8, requires_grad=True)

    def changes(query, key, value):
        query.data.mul_(1)
        assert query is key is value
        return model(query, key, value)

    assert same_gradients(changes, changes, x, x, x, model=model).compared["gradient"] == 5


def test_inputs_that_are_no_leaves_or_no_floats():
    table = nn.Embedding(10, 8)
    hidden = table(torch.arange(4))
    model = mlp()
    found = same_gradients(model, checkpointed(model), hidden)
    assert found.compared["gradient"] == len(list(model.parameters())) + 1
    assert table.weight.grad is None
    assert same_gradients(
        table, lambda x: checkpoint(table, x, use_reentrant=False), torch.arange(4)
    )


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator().manual_seed(1), lambda g: torch.rand(1, generator=g)),
        (random.Random(1), lambda g: g.random()),
        (numpy.random.default_rng(1), lambda g: float(g.random())),
        (numpy.random.RandomState(1), lambda g: float(g.random_sample())),
    ],
    ids=["torch", "random", "numpy", "old numpy"],
)
def test_ones_own_generator_starts_alike_and_is_compared(generator, draw):
    model = mlp()
    given = lambda x, g: model(x) * (1 + draw(g))  # noqa: E731
    held = lambda x: (model(x) * (1 + draw(generator))).sin()  # noqa: E731
    assert same_gradients(given, given, X, generator, model=model)
    first = draw(generator)
    assert same_gradients(held, held, X, model=model)
    assert draw(generator) != first

    found = same_gradients(held, checkpointed(held), X, model=model)
    assert "random state" in {d.kind for d in found.differences}
    assert any(d.name == "generator" for d in found.differences)


def test_inputs_and_parameters_of_one_name_are_told_apart():
    """Were one of them lost, a gradient would go uncompared."""
    model = nn.Linear(8, 8)

    def scaled(first, *, x, weight, wrong=1.0):
        return model(first) * weight + x + (wrong - 1) * (x - x.detach())

    given = {"x": X.clone().requires_grad_(), "weight": X.clone().requires_grad_()}
    run = lambda first, **k: scaled(first, **k)  # noqa: E731
    found = same_gradients(run, run, X.clone().requires_grad_(), **given, model=model)
    assert found.compared["gradient"] == 5
    wrong = lambda first, **k: scaled(first, **k, wrong=2.0)  # noqa: E731
    found = same_gradients(run, wrong, X.clone().requires_grad_(), **given, model=model)
    assert [(d.kind, d.name) for d in found.differences] == [("gradient", "x′")]


def test_refuses_kwargs_that_are_no_dictionary():
    with pytest.raises(TypeError, match="from names to inputs, not list"):
        same_gradients(mlp(), mlp(), X, kwargs=[X])


def test_outputs_are_named_as_they_are_called():
    model = Language()
    other = lambda **words: dataclasses.replace(model(**words), logits=None)  # noqa: E731
    with pytest.raises(UnequalWork, match=r"plain returns shapes \{'loss': \[\], 'logits'"):
        same_gradients(model, other, **WORDS)


# --- gradients taken inside ---------------------------------------------------------------------


def test_a_gradient_taken_inside_is_compared():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def force(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]

    again = lambda x: checkpoint(force, x, use_reentrant=False)  # noqa: E731
    assert same_gradients(force, again, X, model=model).compared["gradient"] == 4
    twice = lambda x: force(x) * 2 - force(x).detach()  # noqa: E731
    found = same_gradients(force, twice, X, model=model)
    assert found.first.kind == "gradient"


def test_a_tensor_that_cannot_be_passed_is_told_the_whole_step():
    model, weight = mlp(), torch.randn(8, 8, requires_grad=True)
    run = lambda x: model(x) @ weight  # noqa: E731
    with pytest.raises(TypeError, match=r"whole steps: same_gradients\(lambda: loss"):
        same_gradients(run, run, X, model=model)
    step = lambda: run(X).sum().backward()  # noqa: E731
    assert same_gradients(step, step, model=model)


def test_what_to_do_when_both_sides_raise():
    found = same_gradients(Language(), Language(wrap=True), WORDS)
    assert not found and "get plain to run by itself" in found.en and "input_ids=…" in found.en
    assert "按名字" in found.zh
    model = mlp()
    found = same_gradients(model, model)
    assert "whole step" in found.en and "完整一步" in found.zh
