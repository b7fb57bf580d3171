"""Checkpoints that leave a model's names, classes and places as they are, and what they notice.

Everything here runs for real: copies, files, compiling, sharding, hooks of other libraries.
"""

import copy
import functools
import gc
import inspect
import io
import random
import re
import warnings
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable.checkpoint_activation import checkpoint as composable
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from course_lib.gradients import same_gradients
from course_lib.memory import measure
from course_lib.wrapping.blocks import checkpoint_blocks, checkpointed, plain_blocks


class Layer(nn.Module):
    """A block that takes keyword arguments, two of them named as checkpoint()'s own."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x, scale=None, *, debug=False, use_reentrant=None):
        y = self.down(self.drop(torch.tanh(self.up(self.norm(x)))))
        return x + (y if scale is None else y * scale)


class Net(nn.Module):
    def __init__(self, depth: int = 3):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, scale=x.mean(), debug=True)
        return x


def net(depth: int = 3, **options) -> tuple[Net, Net]:
    """The same model without and with checkpoints."""
    torch.manual_seed(0)
    plain = Net(depth)
    flagged = copy.deepcopy(plain)
    checkpoint_blocks(flagged, Layer, **options)
    return plain, flagged


X = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))


def step(model) -> None:
    torch.manual_seed(0)  # for dropout
    model(X).square().sum().backward()


def calls(model) -> list[int]:
    """How often each layer's forward runs in a step."""
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    counts = [0] * len(layers)

    def count(index, *_):
        counts[index] += 1

    hooks = [layer.up.register_forward_pre_hook(functools.partial(count, i))
             for i, layer in enumerate(layers)]  # fmt: skip
    step(model)
    for hook in hooks:
        hook.remove()
    return counts


def same_grads(one, other) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(p.grad, q.grad) for p, q in pairs)


# --- nothing but forward is another -------------------------------------------------------------


def test_names_classes_and_places_stay():
    plain, flagged = net()
    assert calls(plain) == [1, 1, 1] and calls(flagged) == [2, 2, 2]
    assert same_grads(plain, flagged)
    for kind in ("named_parameters", "named_buffers", "named_modules", "state_dict"):
        names = [
            [name for name, *_ in _pairs(getattr(model, kind)())] for model in (plain, flagged)
        ]
        assert names[0] == names[1]
    assert repr(plain) == repr(flagged)
    assert [type(module) for module in flagged.modules()] == [type(m) for m in plain.modules()]
    seen: list[type] = []
    flagged.apply(lambda module: seen.append(type(module)))
    assert seen.count(Layer) == 3
    assert inspect.signature(flagged.layers[0].forward) == inspect.signature(
        plain.layers[0].forward
    )
    assert checkpointed(flagged) == ("layers.0", "layers.1", "layers.2") and not checkpointed(plain)


def _pairs(named):
    return named.items() if isinstance(named, dict) else named


def test_unwrapping_leaves_nothing():
    plain, flagged = net()
    assert plain_blocks(flagged) == 3 and plain_blocks(flagged) == 0
    for one, other in zip(plain.modules(), flagged.modules(), strict=True):
        assert list(vars(one)) == list(vars(other))
    assert calls(flagged) == [1, 1, 1]


def test_wrapping_again_does_not_pile_up():
    _, flagged = net()
    checkpoint_blocks(flagged, Layer, every=2)
    assert checkpointed(flagged) == ("layers.1",) and calls(flagged) == [1, 2, 1]


def test_a_copy_is_of_its_own():
    _, flagged = net()
    other = copy.deepcopy(flagged)
    assert checkpointed(other) == checkpointed(flagged) and calls(other) == [2, 2, 2]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(other.eval()(X), X)  # its own weights, not those of the original
    assert plain_blocks(other) == 3 and calls(flagged) == [2, 2, 2]


def test_a_whole_model_in_a_file():
    plain, flagged = net()
    file = io.BytesIO()
    torch.save(flagged, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert calls(loaded) == [2, 2, 2] and plain_blocks(loaded) == 3
    plain.load_state_dict(flagged.state_dict())
    flagged.load_state_dict(plain.state_dict())


def test_a_model_is_freed_without_the_cycle_collector():
    _, flagged = net()
    block = weakref.ref(flagged.layers[0])
    gc.disable()
    try:
        out = flagged(X).sum()
        del flagged
        out.backward()  # the graph needs the blocks once more
        del out
        assert block() is None
    finally:
        gc.enable()


def test_hooks_of_the_block_run_once_and_those_inside_again():
    """As in the layers of Transformers; FSDP2's hooks would gather parameters a second time."""
    _, flagged = net(1)
    seen = []
    layer = flagged.layers[0]
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    layer.norm.register_forward_hook(lambda *_: seen.append("inside"))
    step(flagged)
    assert seen == ["before", "inside", "after", "inside"]


def test_without_gradients_nothing_is_recomputed_or_kept():
    plain, flagged = net()
    with torch.no_grad():
        assert torch.equal(plain.eval()(X), flagged.eval()(X))


def test_autocast_and_random_numbers_are_repeated():
    plain, flagged = net()
    for model in (plain, flagged):
        with torch.autocast("cpu", torch.bfloat16):
            torch.manual_seed(0)
            loss = model(X).square().sum()
        loss.backward()  # outside of autocast, and after other random numbers
    assert same_grads(plain, flagged)


def test_a_keyword_changed_before_the_backward_pass_is_noticed():
    _, flagged = net(1)
    scale = torch.ones(16)
    out = flagged.layers[0](X.clone().requires_grad_(), scale=scale)
    scale.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_weights_lent_by_functional_call_are_recomputed_with():
    grads = []
    for model in net():
        lent = {name: (p * 1.5).detach().requires_grad_() for name, p in model.named_parameters()}
        torch.manual_seed(0)
        torch.func.functional_call(model, lent, (X,)).square().sum().backward()
        grads.append([weight.grad for weight in lent.values()])
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("when", ["before", "after", "after a call", "block by block"])
def test_compiled_models(when):
    plain, model = net(2)
    for drop in [m for side in (plain, model) for m in side.modules() if isinstance(m, nn.Dropout)]:
        drop.p = 0.0  # compiled code draws its own random numbers
    options = {"backend": "aot_eager", "fullgraph": True}
    torch._dynamo.reset()
    if when.startswith("after"):
        plain_blocks(model)
    compiled = model
    if when == "block by block":
        for layer in model.layers:
            layer.compile(**options)
    else:
        compiled = torch.compile(model, **options)
    if when == "after a call":
        step(compiled)
        model.zero_grad()
    if when.startswith("after"):
        assert len(checkpoint_blocks(compiled, Layer).paths) == 2
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        compiled(X)
    assert max(kept) <= 16 * 64  # weights, but nothing of the inside, 8 × 64
    assert not any(size == 8 * 64 for size in kept)
    step(plain)
    step(compiled)
    assert same_grads(plain, model)


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("first", ["checkpoints", "shards"])
def test_sharded_parameters(first, one_process):
    plain, model = net()
    if first == "shards":
        plain_blocks(model)

    def shard():
        for layer in model.layers:
            fully_shard(layer, mesh=one_process)
        fully_shard(model, mesh=one_process)

    if first == "checkpoints":
        shard()
    else:
        shard()
        checkpoint_blocks(model, Layer)
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in model.named_parameters()] == names
    assert calls(model) == [2, 2, 2]
    step(plain)
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad.full_tensor())


def test_distributed_data_parallel(one_process):
    plain, model = net()
    step(plain)
    step(DistributedDataParallel(model))
    assert same_grads(plain, model)


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_what_others_put_in_the_place_of_forward_stays(first):
    """accelerate's hooks live in the same place."""
    hooks = pytest.importorskip("accelerate.hooks")

    class Count(hooks.ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Count.calls += 1
            return args, kwargs

    model = Net(1)
    if first == "theirs":
        hooks.add_hook_to_module(model.layers[0], Count())
        checkpoint_blocks(model, Layer)
    else:
        checkpoint_blocks(model, Layer)
        hooks.add_hook_to_module(model.layers[0], Count())
    assert calls(model) == [2] and Count.calls > 0
    Count.calls = 0
    assert plain_blocks(model) == 1 and checkpointed(model) == ()
    assert calls(model) == [1] and Count.calls == 1
    hooks.remove_hook_from_module(model.layers[0])
    assert calls(model) == [1] and Count.calls == 1


def test_scripted_blocks_are_refused():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU())))
    with pytest.raises(ValueError, match="compiled by torch"):
        checkpoint_blocks(model, "0")


def test_traces_name_the_module_also_of_what_is_recomputed():
    plain, flagged = net()
    traces = [measure(lambda m=model: step(m), model, inputs=X) for model in (plain, flagged)]
    paths = [{event.module for event in trace.events} for trace in traces]
    assert paths[0] == paths[1]
    again = {event.module for event in traces[1].events if event.role == "recomputed"}
    assert {"layers.0", "layers.0.up", "layers.2.norm"} <= again


# --- checkpointed by others ---------------------------------------------------------------------


class Inside(Layer):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class Switched(Layer):
    use_checkpoint = False

    def forward(self, x):
        if self.use_checkpoint:
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)
        return super().forward(x)


class Stage(nn.Module):
    """As timm's models do it."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Layer(), Layer())
        self.grad_checkpointing = False

    def forward(self, x):
        if self.grad_checkpointing:
            return checkpoint_sequential(self.blocks, 2, x, use_reentrant=False)
        return self.blocks(x)


def doubts(model, blocks, **options) -> str:
    with warnings.catch_warnings(action="error"):
        return "\n".join(en for _, en in checkpoint_blocks(model, blocks, **options).doubts)


def test_a_forward_that_calls_checkpoint_is_noticed():
    assert "0 calls checkpoint in its own forward" in doubts(nn.Sequential(Inside()), Inside)
    model = nn.Sequential(Switched())
    assert doubts(model, Switched) == ""
    model[0].use_checkpoint = True
    assert "0 calls checkpoint in its own forward" in doubts(model, Switched)


def test_a_model_whose_switch_is_on_is_noticed():
    model = Stage()
    assert doubts(model, Layer) == ""
    model.grad_checkpointing = True
    assert "grad_checkpointing is on already" in doubts(model, Layer)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m.layers.__setitem__(0, checkpoint_wrapper(m.layers[0])),
        lambda m: composable(m.layers[0]),
        lambda m: vars(m.layers[0]).update(
            forward=functools.partial(checkpoint, m.layers[0].forward, use_reentrant=False)
        ),
        lambda m: vars(m.layers[0]).update(
            forward=lambda x, f=m.layers[0].forward: checkpoint(f, x, use_reentrant=False)
        ),
    ],
    ids=["wrapper", "composable", "partial", "lambda"],
)
def test_blocks_that_others_have_checkpointed_get_no_second_one(wrap):
    model = Net()
    wrap(model)
    done = checkpoint_blocks(model, Layer)
    assert done.paths == ("layers.1", "layers.2") and len(done.found) == 3
    assert re.search(r"layers\.0\S* is checkpointed by another", done.doubts[0][1])


# --- state that moves twice ---------------------------------------------------------------------


class Around(nn.Module):
    """A block with a part that has state."""

    def __init__(self, part):
        super().__init__()
        self.part, self.out = part, nn.Conv1d(8, 8, 1)

    def forward(self, x):
        return self.out(torch.tanh(self.part(x)))


class Needy(nn.Module):
    """Wants what cannot be guessed: ``wanted`` is a string."""

    def __init__(self, part):
        super().__init__()
        self.part, self.out = part, nn.Conv1d(8, 8, 1)

    def forward(self, x, wanted):
        assert wanted == "this"
        return self.out(torch.tanh(self.part(x, wanted)))


class Part(nn.Module):
    """Counts calls in a buffer; what it does with that is up to its kind."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8, 1))
        self.register_buffer("seen", torch.zeros(8, 1))

    def forward(self, x, wanted=None):
        return x * self.scale


class Counter(Part):
    def forward(self, x, wanted=None):
        self.seen += 1
        return x * self.scale


class Average(Part):
    """A moving average that the output depends on, moved through .data."""

    def forward(self, x, wanted=None):
        self.seen.data.mul_(0.9).add_(0.1 * x.detach().mean((0, 2))[:, None])
        return x * self.scale * (1 + self.seen)


class Reassigned(Part):
    def forward(self, x, wanted=None):
        self.seen = self.seen * 0.5 + 1
        return x * self.scale + self.seen * x.square()


def moved(average, x):
    average.copy_(average.lerp(x.mean(), 0.1))


class ByAFunction(Part):
    def forward(self, x, wanted=None):
        with torch.no_grad():
            moved(self.seen, x)
        return x * self.scale


class Attribute(Part):
    def __init__(self):
        super().__init__()
        self.last = torch.zeros(())

    def forward(self, x, wanted=None):
        self.last = self.last + x.detach().abs().max()
        return x * self.scale


class PythonNumber(Part):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, x, wanted=None):
        self.steps += 1
        return x.square() * self.scale * 0.99**self.steps


class Renormalized(Part):
    """Changes a parameter while it runs."""

    def forward(self, x, wanted=None):
        with torch.no_grad():
            self.scale.mul_(0.9)
        return x * self.scale


class Reads(Part):
    def forward(self, x, wanted=None):
        return x * self.scale + self.seen


class BuiltOnce(Part):
    """A mask made when first needed, and what was last computed, kept to look at."""

    def __init__(self):
        super().__init__()
        self.mask = None

    def forward(self, x, wanted=None):
        if self.mask is None:
            self.mask = torch.ones(x.shape[-1])
        self.shown = (x * self.scale).detach()
        return x * self.scale * self.mask


MOVES = {Counter: "seen", ByAFunction: "seen", Attribute: "last"}
WRONG = {Average: "seen", Reassigned: "seen", PythonNumber: "steps", Renormalized: "scale"}
SIGNAL = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", [*MOVES, *WRONG])
def test_state_that_moves_twice_is_found_by_trying(kind):
    model = nn.Sequential(Around(kind()), Around(kind()))
    said = doubts(model, Around)
    name = {**MOVES, **WRONG}[kind]
    assert f"0.part.{name}" in said and ("WRONG" in said) == (kind in WRONG), said
    assert said.count("\n") == 0  # once for all blocks of a kind
    with warnings.catch_warnings(action="error"):  # and not again while training
        model(SIGNAL).sum().backward()


@pytest.mark.parametrize("kind", [Reads, BuiltOnce, Part])
def test_what_is_only_read_is_not_doubted(kind):
    model = nn.Sequential(Around(kind()), Around(kind()))
    assert doubts(model, Around) == ""
    with warnings.catch_warnings(action="error"):
        for _ in range(2):
            model(SIGNAL).sum().backward()
    assert same_gradients(
        nn.Sequential(Around(kind())), copy.deepcopy(nn.Sequential(Around(kind()))), SIGNAL
    ) is not None  # fmt: skip


class Wants(nn.Sequential):
    def forward(self, x):
        for block in self:
            x = block(x, "this")
        return x


class OnlyThis(Average):
    def forward(self, x, wanted):
        assert wanted == "this"
        return super().forward(x)


class OnlyThisCounter(Counter):
    def forward(self, x, wanted):
        assert wanted == "this"
        return super().forward(x)


@pytest.mark.parametrize(("kind", "wrong"), [(OnlyThis, True), (OnlyThisCounter, False)])
def test_where_no_guess_runs_the_first_training_step_tells(kind, wrong):
    torch.manual_seed(0)
    model = Wants(Needy(kind()), Needy(kind()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint_blocks(model, Needy)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.warns(UserWarning) as caught:
        loss = model(SIGNAL).sum()
    said = [str(warning.message) for warning in caught]
    assert len(said) == 1 and "part.seen" in said[0] and ("WRONG" in said[0]) == wrong
    once = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings(action="error"):
        loss.backward()
        model(SIGNAL).sum().backward()
    plain = Wants(Needy(kind()), Needy(kind()))
    plain.load_state_dict(before)
    plain(SIGNAL)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, once[name])  # trying it left no trace in the step


def test_the_source_gives_a_hint_where_nothing_can_be_tried():
    class Own(Part):
        def forward(self, x, wanted):
            self._move(x)
            return x * self.scale

        def _move(self, x):
            mine = self.seen
            mine.add_(1)

    said = doubts(Wants(Needy(Own())), Needy)
    assert re.search(r"By its source, forward changes 0\.part\.seen", said)


def test_real_inputs_settle_it_at_once():
    torch.manual_seed(0)
    model = Wants(Needy(OnlyThis()), Needy(OnlyThis()))
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    random.seed(3)
    said = doubts(model, Needy, try_with=lambda: model(SIGNAL))
    drawn = torch.rand(()), random.random()
    torch.manual_seed(3)
    random.seed(3)
    assert drawn == (torch.rand(()), random.random())
    assert said.startswith("WRONG gradients") and "0.part.seen" in said and "\n" not in said
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with warnings.catch_warnings(action="error"):
        model(SIGNAL).sum().backward()
    assert checkpointed(model) == ("0", "1")


KNOWN = {
    "spectral_norm": (lambda: spectral_norm(nn.Conv1d(8, 8, 3, padding=1)), True),
    "old spectral_norm": (lambda: old_spectral_norm(nn.Conv1d(8, 8, 3, padding=1)), True),
    "BatchNorm": (lambda: nn.BatchNorm1d(8), False),
    "LazyBatchNorm": (nn.LazyBatchNorm1d, False),
    "InstanceNorm": (lambda: nn.InstanceNorm1d(8, track_running_stats=True), False),
}


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("guessable", [True, False])
def test_known_kinds_of_state(kind, guessable):
    make, wrong = KNOWN[kind]

    class Alone(nn.Sequential):
        def forward(self, x, wanted):
            return self[0](x)

    if guessable:
        said = doubts(nn.Sequential(Around(make())), Around)
    else:
        said = doubts(Wants(Needy(Alone(make()))), Needy)
    assert said and ("WRONG" in said) == wrong, said


def test_an_expert_counter_that_routing_reads_is_wrong():
    class Mixture(nn.Module):
        def __init__(self, live):
            super().__init__()
            self.router, self.live = nn.Linear(32, 4), live
            self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
            self.register_buffer("tokens_per_expert", torch.zeros(4))

        def forward(self, x):
            score = self.router(x).softmax(-1)
            bias = 0.05 * self.tokens_per_expert / len(x) if self.live else 0
            choice = (score.detach() - bias).argmax(-1)
            self.tokens_per_expert += torch.bincount(choice, minlength=4)
            out = torch.zeros_like(x)
            for i, expert in enumerate(self.experts):
                at = (choice == i).nonzero()[:, 0]
                out = out.index_add(0, at, expert(x[at]) * score[at, i, None])
            return x + out

    for live in (False, True):
        torch.manual_seed(0)
        said = doubts(nn.Sequential(Mixture(live), Mixture(live)), Mixture)
        assert "0.tokens_per_expert" in said and ("WRONG" in said) == live


def test_a_block_unlike_the_others_of_its_kind_is_found_while_training():
    class Sometimes(Part):
        used = False

        def forward(self, x, wanted=None):
            self.seen += 1
            return x * self.scale * (self.seen if self.used else 1)

    model = nn.Sequential(Around(Sometimes()), Around(Sometimes()))
    model[1].part.used = True
    said = doubts(model, Around)
    assert "0.part.seen" in said and "WRONG" not in said
    with pytest.warns(UserWarning, match=r"WRONG.*1\.part\.seen"):
        model(SIGNAL).sum().backward()


def test_a_frozen_part_in_evaluation_does_not_move():
    class Still(Part):
        def forward(self, x, wanted=None):
            if self.training:
                self.seen += 1
            return x * self.scale

    model = nn.Sequential(Around(Still()))
    model[0].part.eval()
    assert doubts(model, Around) == ""
    model.eval()  # as from_pretrained leaves it: it will be set to training
    assert "0.part.seen" in doubts(model, Around)


def test_trying_a_copy_runs_no_hook_of_the_model():
    model = nn.Sequential(Around(Counter()))
    seen = []
    model[0].out.register_forward_hook(lambda *_: seen.append("after"))
    model[0].part.register_forward_pre_hook(lambda *_: seen.append("before"))
    assert "0.part.seen" in doubts(model, Around) and seen == []


def test_no_random_number_is_drawn_by_trying():
    torch.manual_seed(0)
    model = nn.Sequential(Around(Average()))
    state = torch.get_rng_state()
    checkpoint_blocks(model, Around)
    assert torch.equal(state, torch.get_rng_state())


def test_measuring_the_first_step_measures_that_step_alone():
    """The trial waits for a step that is not measured."""
    torch.manual_seed(0)
    model = Wants(Needy(OnlyThis()))
    checkpoint_blocks(model, Needy)
    with warnings.catch_warnings(action="error"):
        first = measure(lambda: model(SIGNAL).sum().backward(), model, inputs=SIGNAL)
    with pytest.warns(UserWarning, match="WRONG"):
        model(SIGNAL).sum().backward()
    model.zero_grad()
    assert (
        measure(lambda: model(SIGNAL).sum().backward(), model, inputs=SIGNAL).flops == first.flops
    )


def test_a_trial_that_fails_is_said_and_the_step_goes_on():
    class Once(Part):
        def forward(self, x, wanted):
            self.seen += 1
            if self.seen.max() > 1.5:
                raise OSError("no more")
            return x * self.scale

    model = Wants(Needy(Once()))
    checkpoint_blocks(model, Needy)
    with pytest.warns(UserWarning, match="could not be tried .OSError: no more"):
        assert model(SIGNAL).shape == SIGNAL.shape
    assert model[0].part.seen.max() == 1


def test_inside_another_checkpoint_trying_adds_nothing():
    torch.manual_seed(0)
    model = Wants(Needy(OnlyThisCounter()))
    checkpoint_blocks(model, Needy)
    with pytest.warns(UserWarning, match="part.seen"):
        out = checkpoint(model, SIGNAL.clone().requires_grad_(), use_reentrant=False)
    out.sum().backward()
