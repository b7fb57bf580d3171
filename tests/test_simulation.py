"""`simulated_copy`, known values, libraries that look, layouts: the same step as the real one."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from course_lib import language
from course_lib.memory import MemoryTrace, Role, measure, simulated, simulated_copy
from course_lib.memory.kernels import KNOWN_DIFFERENCES
from course_lib.memory.simulation import ValueUnknown
from course_lib.plans.chains import chain_of

UNSEEN = (Role.WORKSPACE, Role.RANDOM_STATE)


def same(one: MemoryTrace, other: MemoryTrace) -> bool:
    """Equal bytes in every role that both can see, and equal operation counts."""
    kept = [{r: n for r, n in trace.kept.items() if r not in UNSEEN} for trace in (one, other)]
    peaks = [trace.peak_without(*UNSEEN) for trace in (one, other)]
    return kept[0] == kept[1] and peaks[0] == peaks[1] and one.flops == other.flops


# --- values --------------------------------------------------------------------------------------

MASK = [True, False, True, True, False]
ASKED: dict[str, Callable[[], Any]] = {  # what a program may ask, in a real run and a simulated one
    "item": lambda: torch.tensor(2.5).item(),
    "truth": lambda: bool((torch.arange(4) < 9).all()),
    "int": lambda: int(torch.arange(5).sum()),
    "tolist": lambda: torch.arange(6).view(2, 3).t().tolist(),
    "numpy": lambda: torch.arange(3).numpy().tolist(),
    "linspace": lambda: [rate.item() for rate in torch.linspace(0, 0.2, 3)],
    "nonzero": lambda: torch.tensor(MASK).nonzero().tolist(),
    "where": lambda: [places.tolist() for places in torch.where(torch.eye(2) > 0)],
    "unique": lambda: torch.unique(torch.tensor([3, 1, 3])).tolist(),
    "one_hot": lambda: F.one_hot(torch.tensor([0, 2])).tolist(),
    "index by a mask": lambda: torch.rand(5, 4)[torch.tensor(MASK)].shape,
    "index by two masks": lambda: torch.rand(5, 4, 2)[:, torch.tensor(MASK[:4]), 1].shape,
    "masked_select": lambda: torch.rand(5, 4).masked_select(torch.tensor(MASK)[:, None]).shape,
    "repeat": lambda: torch.rand(2, 4).repeat_interleave(torch.tensor([3, 2]), 0).shape,
    "split": lambda: [len(p) for p in torch.rand(5, 2).split(torch.tensor([2, 3]).tolist())],
    "a view sees a write": lambda: _written_through_a_view(),
    "filled": lambda: torch.empty(2, dtype=torch.long).fill_(7).tolist(),
    "filled alike": lambda: torch.full_like(torch.rand(2, 900, 900).sum(0)[:1, :2], 3).tolist(),
    "padding": lambda: F.pad(torch.ones(2, dtype=torch.long), (1, 0)).tolist(),
    "permutation": lambda: sorted(torch.randperm(5).tolist()),
    "range of randint": lambda: bool((torch.randint(3, 9, (99,)) > 2).all()),
    "counter": lambda: _counted(nn.BatchNorm1d(2)),
    "step of Adam": lambda: _steps_of_adam(),
}


def _written_through_a_view() -> list:
    lengths = torch.zeros(4, dtype=torch.long)
    lengths.view(2, 2)[1] += 5
    lengths[0] = 3
    return lengths.tolist()


def _counted(norm: nn.BatchNorm1d) -> int:
    norm(torch.rand(3, 2))
    return norm.num_batches_tracked.item()


def _steps_of_adam() -> float:
    weight = nn.Parameter(torch.rand(3))
    adam = torch.optim.Adam([weight])
    for _ in range(2):
        weight.square().sum().backward()
        adam.step()
    return adam.state[weight]["step"].item()


@pytest.mark.parametrize("name", ASKED)
def test_values_that_follow_from_numbers_are_known(name: str) -> None:
    real = ASKED[name]()
    with simulated():
        assert ASKED[name]() == real


UNKNOWN: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "truth": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "index": lambda x: x[x > 0],
    "packing": lambda x: nn.utils.rnn.pack_padded_sequence(x[None], torch.tensor([x.shape[0]])),
    "written with unknown": lambda x: torch.zeros(100, 100).copy_(x).sum().item(),
    "a view was written": lambda x: _overwritten(x),
}


def _overwritten(x: Tensor) -> float:
    known = torch.zeros(2, 100)
    known[1] = x[0]
    return known[0, 0].item()


@pytest.mark.parametrize("chosen", ("zh", "en"))
@pytest.mark.parametrize("way", UNKNOWN)
def test_an_unknown_value_is_refused_with_its_line(way: str, chosen: str) -> None:
    before = language.language()
    language.choose(chosen)
    try:
        with simulated(), pytest.raises(ValueUnknown) as caught:
            UNKNOWN[way](nn.Linear(100, 100)(torch.randn(100, 100)).detach())
    finally:
        language.choose(before)
    said = str(caught.value)
    assert re.match(r"test_simulation\.py:\d+  .*(lambda x: |known)", said)
    assert "simulated_copy(model, inputs)" in said
    assert ("要看一个值" if chosen == "zh" else "asks for a value") in said


def test_random_numbers_of_the_learner_are_not_drawn() -> None:
    state, generator = torch.get_rng_state(), torch.Generator()
    before = generator.get_state()
    with simulated():
        torch.randint(0, 9, (4,)), torch.rand(3), torch.randperm(4)
        torch.randint(0, 9, (4,), generator=generator)
        drawn = torch.randint(0, 99, (8,)).tolist()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(generator.get_state(), before)
    with simulated():
        torch.randint(0, 9, (4,)), torch.rand(3), torch.randperm(4)
        torch.randint(0, 9, (4,))
        assert torch.randint(0, 99, (8,)).tolist() == drawn  # the same each time


def test_values_take_no_memory_where_they_are_not_worth_it() -> None:
    with simulated():
        huge = torch.zeros(1 << 40, dtype=torch.uint8)
        with pytest.raises(ValueUnknown):
            huge[:3].tolist()
        assert huge.fill_(1).sum().shape == ()


# --- building ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    (
        lambda: nn.init.trunc_normal_(torch.empty(30, 20), std=0.02),
        lambda: nn.init.trunc_normal_(torch.empty(30, 20), 9.0, 1.0, -2.0, 2.0),
        lambda: nn.init.orthogonal_(torch.empty(6, 5)),
        lambda: nn.init.sparse_(torch.empty(6, 5), 0.5),
        lambda: nn.init.kaiming_normal_(torch.empty(6, 5)),
        lambda: nn.init.dirac_(torch.empty(4, 4, 3)),
    ),
)
def test_initialisers_need_no_values(make: Callable[[], Tensor]) -> None:
    with simulated():
        assert isinstance(make(), FakeTensor)


def test_a_real_initialiser_still_draws_within_its_bounds() -> None:
    with simulated():
        nn.init.trunc_normal_(torch.empty(3))
    real = nn.init.trunc_normal_(torch.empty(500), std=1.0, a=-0.5, b=0.5)
    assert real.abs().max() <= 0.5


CONVERSIONS = {
    "to": lambda m: m.to(torch.bfloat16),
    "bfloat16": lambda m: m.bfloat16(),
    "to a tensor's": lambda m: m.to(torch.ones((), dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("way", CONVERSIONS)
@pytest.mark.parametrize("used", ("new", "initialised", "trained", "in a graph", "referred to"))
def test_to_another_dtype_works_every_time(way: str, used: str) -> None:
    for _ in range(3):
        with simulated():
            model = nn.Sequential(nn.TransformerEncoderLayer(8, 2), nn.Embedding(4, 8))
            weight, holds = model[1].weight, []
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            loss = model[0](torch.ones(2, 3, 8)).sum()
            if used == "initialised":
                nn.init.normal_(weight)
            elif used == "trained":
                loss.backward()
                optimizer.step()
            elif used == "in a graph":
                holds.append(loss)
            elif used == "referred to":
                holds += [weakref.ref(p) for p in model.parameters()]
            CONVERSIONS[way](model)
            assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
            assert {p.grad.dtype for p in model.parameters() if p.grad is not None} <= {
                torch.bfloat16
            }
            assert model[1].weight is weight  # so that the optimizer still holds it
            model[0](torch.ones(2, 3, 8, dtype=torch.bfloat16)).sum().backward()


def test_a_model_changes_its_dtype_outside_of_simulation_too() -> None:
    for _ in range(10):
        with simulated():
            model = nn.TransformerEncoderLayer(8, 2)
        assert model.bfloat16().linear1.weight.dtype == torch.bfloat16


def test_a_default_dtype_is_that_of_new_modules() -> None:
    with simulated():
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert nn.Linear(4, 4).weight.dtype == torch.bfloat16
        finally:
            torch.set_default_dtype(torch.float32)


def test_nothing_is_left_behind() -> None:
    import transformers.utils.import_utils as looks

    functions = torch.utils.swap_tensors, nn.init._no_grad_trunc_normal_, looks.is_fake_tensor
    with simulated():
        assert torch.utils.swap_tensors is not functions[0]
        with simulated():
            pass
        assert torch.utils.swap_tensors is not functions[0]
        with pytest.raises(ZeroDivisionError), simulated():
            _ = 1 / 0
    assert functions == (
        torch.utils.swap_tensors,
        nn.init._no_grad_trunc_normal_,
        looks.is_fake_tensor,
    )


# --- copies --------------------------------------------------------------------------------------


class Everything(nn.Module):
    """Holds tensors in all the ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.a.bias.requires_grad_(False)
        flat = torch.zeros(20)
        self.part, self.rest = nn.Parameter(flat[:12].view(4, 3).t()), nn.Parameter(flat[12:])
        self.register_buffer("positions", torch.arange(4))
        self.scale = torch.ones(4, requires_grad=True)  # no parameter
        self.more = [torch.zeros(2), {"one": nn.Parameter(torch.ones(4))}]
        self.norm, self.dropped = nn.BatchNorm1d(4), nn.Dropout(0.5).eval()
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.a.weight.kind = "tied"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.a(x))) * self.scale + self.more[1]["one"] + self.positions
        return self.parametrized(self.dropped(x)) @ self.part.t() + self.rest[0]


def test_a_copy_is_as_the_model_was() -> None:
    model, x = Everything(), torch.randn(5, 4, requires_grad=True)
    model(x).sum().backward()
    names = [name for name, _ in model.named_parameters()]
    with simulated():
        copy, twin = simulated_copy(model, x)
    assert [name for name, _ in copy.named_parameters()] == names
    assert copy.b.weight is copy.a.weight and copy.a.weight.kind == "tied"
    assert not copy.a.bias.requires_grad and copy.scale.requires_grad
    assert copy.part.untyped_storage()._cdata == copy.rest.untyped_storage()._cdata
    assert copy.training and not copy.dropped.training
    for old, new in [(x, twin), (model.scale, copy.scale), *zip(
        [*model.parameters(), *model.buffers(), model.more[0], model.more[1]["one"]],
        [*copy.parameters(), *copy.buffers(), copy.more[0], copy.more[1]["one"]], strict=True,
    )]:  # fmt: skip
        assert isinstance(new, FakeTensor) and isinstance(new, nn.Parameter) == isinstance(
            old, nn.Parameter
        )
        for p, q in ((old, new), *([] if old.grad is None else [(old.grad, new.grad)])):
            assert (p.shape, p.stride(), p.dtype, p.storage_offset(), p.requires_grad) == (
                q.shape, q.stride(), q.dtype, q.storage_offset(), q.requires_grad)  # fmt: skip
            assert p.untyped_storage().nbytes() == q.untyped_storage().nbytes()
        assert (old.grad is None) == (new.grad is None)
    assert copy.positions.tolist() == [0, 1, 2, 3]
    assert copy.norm.num_batches_tracked.item() == 1
    assert type(model.a.weight) is nn.Parameter and type(model.a.weight.grad) is Tensor  # untouched


@pytest.mark.parametrize("steps_before", (0, 1))
def test_a_copy_needs_what_the_model_needs(steps_before: int) -> None:
    model, x = Everything(), torch.randn(5, 4, requires_grad=True)
    for _ in range(steps_before):
        model(x).sum().backward()
    with simulated():
        copy, twin = simulated_copy(model, x)
        trace = measure(lambda: copy(twin).sum().backward(), copy, inputs=twin)
    real = measure(lambda: model(x).sum().backward(), model, inputs=x)
    assert trace.source == "simulated" and same(real, trace)
    assert trace.before == {r: n for r, n in real.before.items() if r not in UNSEEN}


@dataclass
class Batch:
    ids: Tensor
    name: str = "first"


Pair = namedtuple("Pair", "mask, more")


def test_inputs_may_be_nested_in_any_way() -> None:
    from transformers.modeling_outputs import CausalLMOutput

    ids = torch.tensor([[1, 2]])
    inputs = {
        "batch": Batch(ids),
        "pair": Pair(torch.tensor([True, False]), [ids, None, 3]),
        "output": CausalLMOutput(logits=torch.ones(2, 3)),
        "view": ids[:, 1:],
        "sparse": torch.eye(3).to_sparse(),
    }
    with simulated():
        _, copy = simulated_copy(nn.Identity(), inputs)
        assert copy["batch"].ids.tolist() == [[1, 2]] and copy["batch"].name == "first"
        assert copy["pair"].mask.any() and copy["pair"].more[0] is copy["batch"].ids
        assert copy["pair"].more[1:] == [None, 3]
        assert isinstance(copy["output"].logits, FakeTensor)
        copy["batch"].ids.add_(1)
        assert copy["view"].tolist() == [[3]]  # the same memory
        assert copy["sparse"]._values().shape == (3,)
    assert ids.tolist() == [[1, 2]]


def test_a_meta_model_and_simulated_inputs() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1 << 16, 1 << 16), nn.BatchNorm1d(1 << 16))
    with simulated():
        x = torch.ones(2, 1 << 16)
        copy, twin = simulated_copy(model, x)
        assert twin is x and copy[0].weight.device.type == "cpu"
        trace = measure(lambda: copy(x).sum().backward(), copy, inputs=x)
    assert trace.at_peak[Role.PARAMETER] == (2**32 + 3 * 2**16) * 4


def test_wrapped_tensors_and_simulated_models_are_copied_too() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(TwoTensor(torch.ones(4, 4), torch.ones(4, 4)))
    with simulated():
        copy, _ = simulated_copy(model)
        assert isinstance(copy.weight.a, FakeTensor)
        assert copy(torch.ones(2, 4)).shape == (2, 4)
    with simulated():
        first = nn.Linear(2, 2)
        second, _ = simulated_copy(first)
        assert second.weight is not first.weight
    with simulated():
        third, x = simulated_copy(second, torch.ones(1, 2))
        assert third(x).shape == (1, 2)


def test_a_chain_changes_no_real_tensor() -> None:
    counter, layer, x = torch.zeros(3), nn.Linear(4, 4), torch.ones(2, 4)

    def loss(y: Tensor) -> Tensor:
        counter.add_(torch.ones(3))
        return y.sum() * 2

    chain_of([layer, layer], x, loss)
    assert counter.tolist() == [0, 0, 0]
    assert type(layer.weight) is nn.Parameter and layer.weight.grad is None


def test_a_copy_leaves_no_memory_behind() -> None:
    model = nn.Linear(1000, 1000)
    with simulated():
        copy, _ = simulated_copy(model)
        seen = weakref.ref(copy.weight)
        del copy
        gc.collect()
        assert seen() is None


REFUSED: dict[str, tuple[type, str, str, Callable[[], Any]]] = {
    "no module": (TypeError, "必须是 nn.Module", "must be an nn.Module", lambda: len),
    "lazy": (TypeError, "还没有形状", "has no shape yet", lambda: nn.LazyLinear(3)),
    "uncopyable": (TypeError, "不能复制", "cannot be copied", lambda: _with_a_generator()),
}


def _with_a_generator() -> nn.Module:
    model = nn.Linear(2, 2)
    model.source = (i for i in range(3))
    return model


@pytest.mark.parametrize("chosen", ("zh", "en"))
@pytest.mark.parametrize("case", [*REFUSED, "outside"])
def test_what_cannot_be_copied_is_refused(case: str, chosen: str) -> None:
    before = language.language()
    language.choose(chosen)
    try:
        if case == "outside":
            words = "simulated_copy 要在" if chosen == "zh" else "Call simulated_copy inside"
            with pytest.raises(RuntimeError, match=words):
                simulated_copy(nn.Linear(2, 2))
            return
        kind, zh, en, make = REFUSED[case]
        model = make()
        with simulated(), pytest.raises(kind, match=zh if chosen == "zh" else en):
            simulated_copy(model)
    finally:
        language.choose(before)


# --- libraries that look -------------------------------------------------------------------------


def llama(**more: Any) -> nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=37, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, **more,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def ids() -> Tensor:
    return torch.randint(3, 99, (2, 16))


def padded(tokens: Tensor) -> Tensor:
    mask = torch.ones_like(tokens)
    mask[0, 10:] = 0
    return mask


MASKS: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "none": lambda i: {},
    "without a cache": lambda i: {"use_cache": False},
    "ones": lambda i: {"attention_mask": torch.ones_like(i)},
    "ones, of truth values": lambda i: {"attention_mask": torch.ones(2, 16, dtype=torch.bool)},
    "padded": lambda i: {"attention_mask": padded(i)},
    "given whole": lambda i: {"attention_mask": torch.ones(2, 1, 16, 16, dtype=torch.bool)},
    "packed": lambda i: {"position_ids": torch.arange(16).view(1, 16) % 8, "use_cache": False},
}


def trained(model: nn.Module, batch: dict[str, Any]) -> MemoryTrace:
    model.train()

    def step() -> None:
        model(**batch).loss.backward()

    step()
    model.zero_grad()
    return measure(step, model, None, batch)


@pytest.mark.parametrize("mask", MASKS)
def test_transformers_builds_the_mask_of_a_real_run(mask: str) -> None:
    def batch() -> dict[str, Any]:
        tokens = ids()
        return {"input_ids": tokens, "labels": tokens, **MASKS[mask](tokens)}

    model, given = llama(), batch()
    real = trained(model, given)
    model.zero_grad()
    with simulated():
        built = trained(llama(), batch())
        copied = trained(*simulated_copy(model, given))
    assert same(real, built) and same(real, copied)
    assert built.doubtful == copied.doubtful == real.doubtful == ()


@pytest.mark.parametrize("chosen, words", (("zh", "掩码里的值"), ("en", "values of the attention")))
def test_a_mask_with_unknown_values_is_warned_of(chosen: str, words: str) -> None:
    before = language.language()
    language.choose(chosen)
    try:
        with simulated():
            tokens = ids()
            mask = (torch.randn(2, 16, 999).sum(-1) > 0).long()
            with pytest.warns(UserWarning, match=words):
                llama()(input_ids=tokens, attention_mask=mask)
    finally:
        language.choose(before)


def test_tables_that_a_library_keeps_are_not_simulated_later() -> None:
    import transformers

    config = transformers.BeitConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8, use_relative_position_bias=True,
    )  # fmt: skip
    model = transformers.BeitForImageClassification(config)
    images = torch.randn(1, 3, 16, 16)
    for _ in range(2):
        real = model(images).logits
        with simulated():
            assert simulated_copy(model)[0](torch.randn(1, 3, 16, 16)).logits.shape == real.shape


def test_an_llm_is_built_in_its_dtype() -> None:
    import transformers

    with simulated():
        assert llama().to(torch.bfloat16).dtype == torch.bfloat16
        built = transformers.LlamaForCausalLM._from_config(llama().config, dtype=torch.bfloat16)
        assert built.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


# --- layouts -------------------------------------------------------------------------------------


class Norm(nn.Module):
    """BatchNorm over the channels of a (batch, length, channels) tensor, as PatchTST does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q, self.k = nn.BatchNorm1d(32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.q(y) * self.k(y)


class Pool(nn.Module):
    """LayerNorm, then pooling over the length, as Swin does."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(self.norm(self.up(x)).transpose(1, 2), 1)


@pytest.mark.parametrize("make", (Norm, Pool))
def test_layouts_are_those_of_real_kernels(make: Callable[[], nn.Module]) -> None:
    model, x = make(), torch.randn(8, 16, 32)
    with simulated():
        copy, twin = simulated_copy(model, x)
        trace = measure(lambda: copy(twin).square().sum().backward(), copy, inputs=twin)
    assert same(measure(lambda: model(x).square().sum().backward(), model, inputs=x), trace)


def test_the_mean_of_a_loss_holds_as_much_as_a_real_one() -> None:
    x = torch.randn(50, 20, requires_grad=True)
    for loss in (F.mse_loss, F.smooth_l1_loss, F.soft_margin_loss, F.huber_loss):
        real = measure(lambda loss=loss: loss(x, x.detach()).backward(), inputs=x)
        x.grad = None
        with simulated():
            twin = torch.randn(50, 20, requires_grad=True)
            trace = measure(
                lambda loss=loss, twin=twin: loss(twin, twin.detach()).backward(), inputs=twin
            )
        assert same(real, trace), loss.__name__


def test_grouped_products_of_experts_are_simulated() -> None:
    offsets = torch.tensor([3, 7, 10], dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(10, 16, dtype=dtype)
        b = torch.randn(3, 16, 24, dtype=dtype, requires_grad=True)
        real = measure(lambda a=a, b=b: F.grouped_mm(a, b, offs=offsets).square().sum().backward(),
                       inputs=(a, b, offsets))  # fmt: skip
        b.grad = None
        with simulated():
            _, given = simulated_copy(nn.Identity(), (a, b, offsets))
            trace = measure(
                lambda given=given: (
                    F.grouped_mm(*given[:2], offs=given[2]).square().sum().backward()
                ),
                inputs=given,
            )
        assert same(real, trace), dtype


def test_a_trace_names_the_operators_that_are_not_exact() -> None:
    with simulated():
        lstm, x = nn.LSTM(8, 8), torch.randn(3, 2, 8)
        trace = measure(lambda: lstm(x)[0].sum().backward(), lstm, inputs=x)
        table, ids = nn.Embedding(9, 4, sparse=True), torch.arange(3)
        sparse = measure(lambda: table(ids).square().sum().backward(), table, inputs=ids)
    assert trace.doubtful == ("aten.mkldnn_rnn_layer",)
    assert sparse.doubtful == ("aten._sparse_coo_tensor_with_dims_and_tensors",)
    assert all(len(KNOWN_DIFFERENCES[name]) == 2 for name in trace.doubtful + sparse.doubtful)
    real = nn.LSTM(8, 8)
    x = torch.randn(3, 2, 8)
    assert measure(lambda: real(x)[0].sum().backward(), real, inputs=x).doubtful == ()


def test_a_deep_copy_is_one() -> None:
    with simulated():
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        mask = torch.tensor([True, False])
        whole = torch.ones(8)
        held = {"view": whole[2:4], "whole": whole, "mask": mask}
        twin, others = copy.deepcopy(model), copy.deepcopy(held)
        assert others["mask"].tolist() == [True, False]
    assert [b.shape for b in twin.buffers()] == [b.shape for b in model.buffers()]
    mine = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    assert not mine & {t.untyped_storage()._cdata for t in (*twin.parameters(), *twin.buffers())}
    assert others["view"].untyped_storage()._cdata == others["whole"].untyped_storage()._cdata
    assert others["whole"].untyped_storage()._cdata != whole.untyped_storage()._cdata
    assert others["view"].storage_offset() == 2


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_dtype_of_statistics_is_the_real_one(weights: torch.dtype) -> None:
    def dtypes() -> list[torch.dtype]:
        x, w = torch.randn(2, 4, 8).bfloat16(), torch.ones(4, dtype=weights)
        across = torch.ones(8, dtype=weights)
        found = [
            *torch.native_group_norm(x, w, w, 2, 4, 8, 2, 1e-5),
            *torch.native_batch_norm(x, w, w, None, None, True, 0.1, 1e-5),
            *torch.native_layer_norm(x, (8,), across, across, 1e-5),
            *torch.native_layer_norm(x, (8,), None, None, 1e-5),
        ]
        return [tensor.dtype for tensor in found]

    real = dtypes()
    with simulated():
        assert dtypes() == real


def test_a_loss_that_keeps_the_storage_of_its_elements_lets_it_go() -> None:
    def step_and_inputs():
        x, y = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)
        return lambda: nn.functional.mse_loss(x, y).backward(), (x, y)

    step, inputs = step_and_inputs()
    real = measure(step, inputs=inputs)
    with simulated():
        step, inputs = step_and_inputs()
        trace = measure(step, inputs=inputs)
    assert trace.events[-1].total == real.events[-1].total


@pytest.mark.parametrize("spoken", ["zh", "en"])
def test_a_lazy_module_is_refused_in_words(spoken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language.choice, "_chosen", spoken)
    with pytest.raises(RuntimeError, match=r"LazyLinear.*simulated_copy"), simulated():
        nn.LazyLinear(8)


@pytest.mark.parametrize("spoken", ["zh", "en"])
def test_two_simulations_do_not_mix(spoken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language.choice, "_chosen", spoken)
    with simulated():
        model, x = nn.Linear(4, 4), torch.ones(2, 4)
    with pytest.raises(RuntimeError, match=r"with simulated\(\):.*measure"), simulated():
        model(x)
    assert measure(lambda: model(x).sum().backward(), model, inputs=x).source == "simulated"
