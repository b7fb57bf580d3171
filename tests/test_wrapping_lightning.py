"""Checkpointed blocks and monitored steps in training as it is really done: stopped and resumed,
frozen and averaged, grouped by name, with several optimizers, with what cannot be measured.
"""

import re
import threading
import warnings
from functools import partial
from itertools import product

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from course_lib.lightning import GradientCheckpointing, MemoryMonitor, quiet
from course_lib.memory import Role, measurement
from course_lib.wrapping.blocks import checkpoint_blocks, plain_blocks


@pytest.fixture(autouse=True)
def no_chatter():
    with warnings.catch_warnings():
        quiet()
        warnings.filterwarnings("ignore", "Swapping scheduler|.*lr_scheduler.step.*")
        yield


class Layer(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Plain(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(*[Layer() for _ in range(3)])
        self.head = nn.Linear(16, 1)

    def training_step(self, batch, index):
        return self.head(self.backbone(batch[0])).square().mean()

    def configure_optimizers(self):
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trainable, lr=1e-2)


class Recipe(Plain):
    """As lesson 04 writes it."""

    def configure_model(self):
        for module in self.modules():
            if isinstance(module, Layer) and "forward" not in vars(module):
                module.forward = partial(checkpoint, module.forward, use_reentrant=False)


class Library(Plain):
    def configure_model(self):
        checkpoint_blocks(self, Layer)


class Wrapper(Plain):
    """As lesson 04 wrote it once, and as many others do."""

    def configure_model(self):
        if not checkpointed_by_wrapper(self):
            apply_activation_checkpointing(self, check_fn=lambda m: isinstance(m, Layer))


def checkpointed_by_wrapper(model) -> bool:
    return any("_checkpoint_wrapped_module" in name for name, _ in model.named_parameters())


def data() -> DataLoader:
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x), batch_size=8)


def fit(model, *callbacks, file=None, **options) -> L.Trainer:
    usual = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    trainer = L.Trainer(**{**usual, **options}, callbacks=list(callbacks))
    trainer.fit(model, data(), ckpt_path=file)
    return trainer


def same_weights(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


WAYS = {
    "plain": (Plain, list),
    "callback": (Plain, lambda: [GradientCheckpointing(Layer)]),
    "recipe": (Recipe, list),
    "library": (Library, list),
}


def finetuning():
    return BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)


@pytest.fixture(scope="module")
def without_checkpoints(tmp_path_factory):
    """Stopped and resumed without any."""
    file, model = tmp_path_factory.mktemp("plain") / "half.ckpt", Plain()
    fit(Plain(), finetuning(), max_epochs=2).save_checkpoint(file)
    fit(model, finetuning(), file=file, max_epochs=4)
    return model


@pytest.mark.parametrize(("saved", "resumed"), product(WAYS, WAYS))
def test_every_way_of_saving_resumes_in_every_way(saved, resumed, without_checkpoints, tmp_path):
    """A frozen backbone is thawed in epoch 1; what is unfrozen is kept by the names of weights."""
    make, callbacks = WAYS[saved]
    trainer = fit(make(), finetuning(), *callbacks(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    make, callbacks = WAYS[resumed]
    model = make()
    fit(model, finetuning(), *callbacks(), file=tmp_path / "half.ckpt", max_epochs=4)
    assert same_weights(model, without_checkpoints)
    loaded = make.load_from_checkpoint(tmp_path / "half.ckpt", strict=True)
    assert same_weights(loaded, trainer.model)


def test_files_with_the_names_of_wrapper_modules_resume(without_checkpoints, tmp_path):
    trainer = fit(Wrapper(), finetuning(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    kept = torch.load(tmp_path / "old.ckpt", weights_only=False)["callbacks"]
    assert "_checkpoint_wrapped_module" in str(kept)
    model = Plain()
    callbacks = finetuning(), GradientCheckpointing(Layer)
    fit(model, *callbacks, file=tmp_path / "old.ckpt", max_epochs=4)
    assert same_weights(model, without_checkpoints)


@pytest.mark.parametrize(
    "average",
    [
        lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
        lambda: EMAWeightAveraging(decay=0.5),
    ],
    ids=["stochastic", "exponential"],
)
@pytest.mark.parametrize("way", ["callback", "recipe", "library"])
def test_averages_of_weights(average, way, tmp_path):
    plain = Plain()
    fit(plain, average(), max_epochs=3)
    make, callbacks = WAYS[way]
    first, second = make(), make()
    trainer = fit(first, average(), *callbacks(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit(second, average(), *callbacks(), file=tmp_path / "half.ckpt", max_epochs=3)
    straight = make()
    fit(straight, average(), *callbacks(), max_epochs=3)
    assert same_weights(straight, plain)
    resumed = Plain()  # as without checkpoints
    fit(Plain(), average(), max_epochs=2).save_checkpoint(tmp_path / "plain.ckpt")
    fit(resumed, average(), file=tmp_path / "plain.ckpt", max_epochs=3)
    assert same_weights(second, resumed)


@pytest.mark.parametrize("way", ["callback", "recipe", "library"])
def test_averages_and_groups_by_name(way):
    """An optimizer that spares the norms the decay, by their names, trains the same."""

    def with_groups(make):
        class Grouped(make):
            def configure_optimizers(self):
                pattern = r"backbone\.\d+\.norm\.\w+"
                names = dict(self.named_parameters())
                spared = [p for name, p in names.items() if re.fullmatch(pattern, name)]
                assert len(spared) == 6
                rest = [p for name, p in names.items() if not re.fullmatch(pattern, name)]
                groups = [{"params": rest, "weight_decay": 0.5},
                          {"params": spared, "weight_decay": 0.0}]  # fmt: skip
                return torch.optim.AdamW(groups, lr=1e-2)

        return Grouped()

    make, callbacks = WAYS[way]
    plain, model = with_groups(Plain), with_groups(make)
    fit(plain)
    fit(model, *callbacks())
    assert same_weights(plain, model)
    average = {name: parameter.detach() for name, parameter in model.named_parameters()}
    plain.load_state_dict(average)


# --- MemoryMonitor ------------------------------------------------------------------------------


class Cond(Plain):
    def training_step(self, batch, index):
        y = self.backbone(batch[0])
        y = torch.cond(y.sum() > 0, lambda t: t.sin(), lambda t: t.cos(), (y,))
        return self.head(y).square().mean()


class Nested(Plain):
    def training_step(self, batch, index):
        x = torch.nested.nested_tensor([batch[0][:3], batch[0][3:]], layout=torch.jagged)
        return self.head(self.backbone(x).values()).square().mean()


class Sharded(Plain):
    def configure_model(self):
        if not hasattr(self, "sharded"):
            self.sharded = [fully_shard(part, mesh=self.device_mesh["data_parallel"])
                            for part in (*self.backbone, self.backbone, self.head)]  # fmt: skip


class Compiled(Plain):
    def __init__(self):
        super().__init__()
        torch._dynamo.reset()
        for layer in self.backbone:
            layer.compile(backend="aot_eager")


class Threaded(Plain):
    def training_step(self, batch, index):
        thread = threading.Thread(target=lambda: self.head(batch[0]))
        thread.start()
        thread.join()
        return super().training_step(batch, index)


@pytest.mark.parametrize(
    "make",
    [Cond, Nested, Sharded, Compiled, Threaded],
)
def test_training_goes_on_whatever_becomes_of_the_measuring(make):
    options = {}
    if make is Sharded:
        options["strategy"] = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    plain, watched = make(), make()
    fit(plain, **options)
    if make is Sharded:
        options["strategy"] = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    monitor = MemoryMonitor([1])
    if make is Threaded:
        with pytest.warns(UserWarning, match="was not measured: The step used another thread"):
            trainer = fit(watched, monitor, **options)
    else:
        trainer = fit(watched, monitor, **options)
    assert trainer.global_step == 4
    assert same_weights(plain, watched)
    assert measurement.measure(lambda: torch.zeros(8)).peak == 32  # nothing was left running
    if make is Compiled:
        assert monitor.traces[1].peak > 0


def test_a_profiler_that_is_running_already_is_a_warning():
    plain, watched = Plain(), Plain()
    fit(plain)
    monitor = MemoryMonitor([1])
    with (
        pytest.warns(UserWarning, match="was not measured"),
        profile(activities=[ProfilerActivity.CPU]),
    ):
        fit(watched, monitor)
    assert monitor.traces == {} and same_weights(plain, watched)


@pytest.mark.parametrize("moment", ["begin", "end", "logging"])
def test_whatever_the_measuring_raises_is_a_warning(moment, monkeypatch, tmp_path):
    """At its begin, at its end and in the logger; ours are the errors, the training is real."""
    real = measurement.measuring

    def breaks(*arguments, **options):
        if moment == "begin":
            raise LookupError("no such thing")

        class Both:
            def __enter__(self):
                self.inner = real(*arguments, **options)
                return self.inner.__enter__()

            def __exit__(self, *about):
                self.inner.__exit__(*about)
                if moment == "end":
                    raise LookupError("no such thing")

        return Both()

    class Refuses(CSVLogger):
        def log_metrics(self, metrics, step=None):
            if "memory/peak" in metrics:
                raise LookupError("no such thing")
            super().log_metrics(metrics, step)

    monkeypatch.setattr("course_lib.lightning.monitor.measuring", breaks)
    plain, watched = Plain(), Plain()
    fit(plain)
    monitor = MemoryMonitor([1])
    options = {"logger": Refuses(tmp_path)} if moment == "logging" else {}
    what = "logged" if moment == "logging" else "measured"
    with pytest.warns(UserWarning, match=f"was not {what}: LookupError: no such thing"):
        fit(watched, monitor, **options)
    assert list(monitor.traces) == ([1] if moment == "logging" else [])
    assert same_weights(plain, watched)
    monkeypatch.undo()
    assert measurement.measure(lambda: torch.zeros(8)).peak == 32


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError, KeyboardInterrupt])
def test_the_trainings_own_errors_pass_unchanged(error):
    class Broken(Plain):
        def training_step(self, batch, index):
            if index == 1:
                raise error("in the step")
            return super().training_step(batch, index)

    monitor = MemoryMonitor([1])
    with pytest.raises((error, SystemExit)) as caught:
        fit(Broken(), monitor)
    assert caught.type is SystemExit or str(caught.value) == "in the step"
    assert monitor.traces == {}
    assert measurement.measure(lambda: torch.zeros(8)).peak == 32


class Two(Plain):
    """As a GAN's: two optimizers that take turns."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return (torch.optim.Adam(self.backbone.parameters()),
                torch.optim.Adam(self.head.parameters()))  # fmt: skip

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


@pytest.mark.parametrize("make", [Plain, Two])
def test_every_optimizer_is_handed_to_the_measuring(make, monkeypatch):
    """One as it is, several as a list."""
    given = []

    def noted(model, optimizer, inputs, headroom):
        given.append(optimizer)
        assert not headroom  # nothing of the measuring may refuse a step of the training
        raise LookupError

    monkeypatch.setattr("course_lib.lightning.monitor.measuring", noted)
    with warnings.catch_warnings(action="ignore"):
        trainer = fit(make(), MemoryMonitor([2]))
    expected = trainer.optimizers if make is Two else trainer.optimizers[0]
    assert make is Plain or len(expected) == 2
    if given:  # of a manual training, Lightning counts the steps of every optimizer
        assert given == [expected]
    assert given


def test_the_moments_of_every_optimizer_are_its_state():
    model, monitor = Two(), MemoryMonitor([4])
    fit(model, monitor)
    parameters = sum(p.nbytes for p in model.parameters())
    state = monitor.traces[4].before[Role.OPTIMIZER_STATE]
    assert state == 2 * parameters + 4 * len(list(model.parameters()))


def test_undoing_leaves_the_module_as_it_was():
    model = Plain()
    before = [list(vars(module)) for module in model.backbone.modules()]
    fit(model, GradientCheckpointing(Layer, undo=True))
    assert [list(vars(module)) for module in model.backbone.modules()] == before
    assert plain_blocks(model) == 0
