"""The Lightning flag: hyperparameter, config file, callbacks, two processes; and what stays away.

Every fit is a real one by the real Trainer, on a small model.
"""

import csv
import json
import logging
import re
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.imports import _RICH_AVAILABLE
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    CheckpointWrapper,
    checkpoint_wrapper,
)

from course_lib.gradients import UnequalWork
from course_lib.lessons.lightning_flag import processes, runs
from course_lib.lessons.lightning_flag.runs import (
    Run,
    largest_batch,
    same_training,
    simulated_peaks,
)
from course_lib.lightning import (
    Counting,
    GradientCheckpointing,
    LanguageModel,
    MemoryMonitor,
    StepRecord,
    main,
    quiet,
)
from course_lib.memory import Role, measurement
from course_lib.models import Block, Sizes
from course_lib.saved import saved_tensors
from course_lib.wrapping.blocks import checkpoint_blocks, checkpointed, plain_blocks

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "notebooks" / "04_config.yaml"
SMALL = {"depth": 4, "width": 32}


@pytest.fixture(autouse=True, scope="module")
def one_thread_and_no_chatter():
    threads = torch.get_num_threads()
    levels = {name: logging.getLogger(name).level for name in
              ("lightning.pytorch", "lightning.fabric")}  # fmt: skip
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        quiet()
        yield
    torch.set_num_threads(threads)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def small(**options) -> LanguageModel:
    L.seed_everything(0, verbose=False)
    return LanguageModel(**{**SMALL, **options})


def trainer_for(*callbacks, **options) -> L.Trainer:
    usual = {
        "accelerator": "cpu", "devices": 1, "max_steps": 4, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return L.Trainer(**{**usual, **options}, callbacks=list(callbacks))


def fit(model, *callbacks, batch=4, **options) -> list[float]:
    """The losses of a short fit."""
    record = StepRecord()
    L.seed_everything(0, verbose=False)  # for dropout
    trainer_for(*callbacks, record, **options).fit(model, Counting(steps=20, batch=batch))
    return record.losses


def wrapped(model) -> list[str]:
    return list(checkpointed(model))


def same_weights(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


# --- what importing costs -----------------------------------------------------------------------


def test_our_trainers_name_their_progress_bar():
    """Where the package rich is installed, as here, Lightning takes another if not told."""
    assert _RICH_AVAILABLE
    options = ["--trainer.max_steps=1", *SHORT[2:]]
    bar = main(["fit", "--config", str(CONFIG), *options]).trainer.progress_bar_callback
    assert type(bar) is TQDMProgressBar
    none = main(["fit", "--config", str(CONFIG), *options, SHORT[1]])
    assert none.trainer.progress_bar_callback is None
    chosen = main(["fit", "--config", str(CONFIG), *options,
                   "--trainer.callbacks=RichProgressBar"])  # fmt: skip
    assert type(chosen.trainer.progress_bar_callback) is RichProgressBar


def test_the_lessons_trainings_name_their_progress_bar():
    """A fit in a lesson shows none, or the one that its stored output shows."""
    trainings = 0
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        if "Trainer" not in file.read_text(encoding="utf-8"):
            continue  # its train() is a function of its own
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and re.search(
                r"(?<!def )\btrain\(|[a-z]\.fit\(", source
            ):
                if "**options" in source and "def train(" in source:
                    continue
                trainings += 1
                assert re.search(r"enable_progress_bar=False|\[TQDMProgressBar", source), source
    assert trainings >= 5


def test_only_lightning_modules_import_lightning():
    files = (ROOT / "course_lib").rglob("*.py")
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    theirs = ("course_lib.lightning.", "course_lib.lessons.lightning_flag.checkers")
    quick = [name for name in names if not name.startswith(theirs)]
    code = (
        "import sys, importlib, course_lib\n"
        "assert 'torch' not in sys.modules\n"
        f"for name in {quick}: importlib.import_module(name)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('lightning', 'pytorch_lightning')])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert said.stdout.strip() == "[]", said.stdout + said.stderr


def test_our_module_does_not_hide_lightning():
    assert Path(L.__file__).parent.name == "lightning"
    assert "course_lib" not in L.__file__


# --- the hyperparameter -------------------------------------------------------------------------


def test_off_by_default_and_nothing_is_wrapped():
    model = small()
    fit(model)
    assert model.hparams.gradient_checkpointing is False and wrapped(model) == []


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_same_losses_and_weights_less_memory(dropout):
    runs = {}
    for flag in (False, True):
        model, monitor = small(gradient_checkpointing=flag, dropout=dropout), MemoryMonitor([2])
        runs[flag] = model, fit(model, monitor), monitor.traces[2]
    (plain, losses, before), (flagged, found, after) = runs[False], runs[True]
    assert losses == found and same_weights(plain, flagged)
    assert len(wrapped(flagged)) == SMALL["depth"]
    assert after.peak < 0.7 * before.peak and after.flops > before.flops
    assert before.at_peak[Role.CHECKPOINT] == 0 < after.at_peak[Role.CHECKPOINT]


def test_every_second_block():
    model = small(gradient_checkpointing=True, checkpoint_every=2)
    model.configure_model()
    assert wrapped(model) == ["model.blocks.1", "model.blocks.3"]


@pytest.mark.parametrize("every", (0, -1, 5))
def test_an_impossible_k_is_refused_also_with_the_flag_off(every):
    with pytest.raises(ValueError, match=f"between 1 and depth \\(4\\), not {every}"):
        small(checkpoint_every=every)


def test_configure_model_again_and_again():
    model = small(gradient_checkpointing=True)
    keys = list(small().state_dict())
    for _ in range(3):
        fit(model)
        assert wrapped(model) == [f"model.blocks.{i}" for i in range(4)]
        assert list(model.state_dict()) == keys
    trainer_for().test(model, Counting(steps=2), verbose=False)
    assert len(trainer_for().predict(model, Counting(steps=2))) == 2
    assert len(wrapped(model)) == 4


@pytest.mark.parametrize("flag", [False, True])
def test_a_file_saved_either_way_loads_either_way(flag, tmp_path):
    model = small(gradient_checkpointing=flag)
    trainer = trainer_for()
    trainer.fit(model, Counting(steps=4, batch=4))
    file = tmp_path / "model.ckpt"
    trainer.save_checkpoint(file)
    same = LanguageModel.load_from_checkpoint(file)
    assert same.hparams.gradient_checkpointing is flag
    assert bool(wrapped(same)) is flag and same_weights(model, same)
    other = LanguageModel.load_from_checkpoint(file, gradient_checkpointing=not flag)
    assert bool(wrapped(other)) is not flag and same_weights(model, other)


def test_training_goes_on_from_a_file_of_the_other_kind(tmp_path):
    """Stopped after an epoch, switched over and continued: the same as never stopped."""
    epochs = {"max_steps": -1, "logger": False}
    straight, first, second = small(), small(), small(gradient_checkpointing=True)
    trainer_for(max_epochs=2, **epochs).fit(straight, Counting(steps=2, batch=4))
    trainer = trainer_for(max_epochs=1, **epochs)
    trainer.fit(first, Counting(steps=2, batch=4))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer_for(max_epochs=2, **epochs).fit(
        second, Counting(steps=2, batch=4), ckpt_path=tmp_path / "half.ckpt"
    )
    assert wrapped(second) and same_weights(straight, second)


# --- the config file ----------------------------------------------------------------------------

SHORT = [
    "--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--data.steps=2",
    "--model.depth=2", "--model.width=16", "--model.heads=2",
]  # fmt: skip


def test_the_flag_from_the_command_line_wins_over_the_file():
    for flag in ("true", "false"):
        done = main(["fit", "--config", str(CONFIG), *SHORT,
                     f"--model.gradient_checkpointing={flag}"])  # fmt: skip
        assert done.model.hparams.gradient_checkpointing is (flag == "true")
        assert len(wrapped(done.model)) == (2 if flag == "true" else 0)
        assert done.trainer.global_step == 2


def test_the_flag_in_the_file(tmp_path):
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert config["model"]["gradient_checkpointing"] is False
    config["model"]["gradient_checkpointing"] = True
    file = tmp_path / "on.yaml"
    file.write_text(yaml.safe_dump(config))
    assert len(wrapped(main(["fit", "--config", str(file), *SHORT]).model)) == 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"gradient_checkpointing": "perhaps"}, "Expected a <class 'bool'>. Got value: perhaps"),
        ({"gradient_ckpt": True}, "gradient_ckpt"),
        ({"depth": "deep"}, "Expected a <class 'int'>. Got value: deep"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(change, complaint, tmp_path, capsys):
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["model"] |= change
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file), *SHORT])
    assert complaint in capsys.readouterr().err


def test_the_callbacks_from_a_config_file(tmp_path):
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["trainer"]["callbacks"] = [
        {"class_path": "course_lib.lightning.GradientCheckpointing",
         "init_args": {"blocks": "Block", "every": 2}},
        {"class_path": "course_lib.lightning.MemoryMonitor", "init_args": {"steps": [1]}},
    ]  # fmt: skip
    file = tmp_path / "callbacks.yaml"
    file.write_text(yaml.safe_dump(config))
    done = main(["fit", "--config", str(file), *SHORT])
    assert wrapped(done.model) == ["model.blocks.1"]
    (monitor,) = [c for c in done.trainer.callbacks if isinstance(c, MemoryMonitor)]
    assert list(monitor.traces) == [1]


@pytest.mark.slow
def test_as_a_command():
    said = subprocess.run(
        [sys.executable, "-m", "course_lib.lightning", "fit", "--config", str(CONFIG), *SHORT,
         "--model.gradient_checkpointing=true"],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr


# --- GradientCheckpointing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "blocks",
    [
        Block,
        (Block, nn.LSTM),
        "Block",
        "model.blocks.*",
        ["model.blocks.[01]", "model.blocks.[23]"],
        lambda module: isinstance(module, Block),
    ],
)
def test_ways_to_name_the_blocks(blocks):
    model, flag = small(), GradientCheckpointing(blocks)
    fit(model, flag)
    assert wrapped(model) == [f"model.blocks.{i}" for i in range(4)]
    assert flag.wrapped.paths == flag.wrapped.found == tuple(wrapped(model))
    assert "4 of 4 blocks are checkpointed: model.blocks.0" in str(flag.wrapped)


def test_any_module_gets_the_flag_and_keeps_its_losses():
    plain, flagged = small(), small()
    assert fit(plain) == fit(flagged, GradientCheckpointing(Block, every=3))
    assert wrapped(flagged) == ["model.blocks.2"] and same_weights(plain, flagged)


def test_repeated_fits_and_other_callbacks_do_not_pile_up():
    model = small()
    again = GradientCheckpointing(Block)
    for _ in range(2):
        fit(model, again)
    assert len(wrapped(model)) == 4
    fit(model, GradientCheckpointing(Block, every=2))
    assert wrapped(model) == ["model.blocks.1", "model.blocks.3"]
    trainer = trainer_for(GradientCheckpointing(Block))
    trainer.test(model, Counting(steps=1), verbose=False)
    trainer.predict(model, Counting(steps=1))
    assert wrapped(model) == ["model.blocks.1", "model.blocks.3"]


def test_undone_at_the_end_if_asked():
    model = small()
    attributes = [list(vars(module)) for module in model.model.modules()]
    fit(model, GradientCheckpointing(Block, undo=True))
    assert wrapped(model) == []
    assert [list(vars(module)) for module in model.model.modules()] == attributes


def test_undone_after_an_error_too():
    class Fails(L.Callback):
        def on_train_batch_end(self, *_):
            raise ZeroDivisionError

    model = small()
    with pytest.raises(ZeroDivisionError):
        fit(model, GradientCheckpointing(Block, undo=True), Fails())
    assert wrapped(model) == []


def test_blocks_made_in_configure_model_are_found():
    class Late(LanguageModel):
        def configure_model(self):
            self.more = nn.ModuleList(Block(Sizes(width=32)) for _ in range(2))

    flag = GradientCheckpointing("more.*")
    fit(Late(**SMALL), flag, max_steps=1)
    assert flag.wrapped.paths == ("more.0", "more.1")


class Zoo(nn.Module):
    """Things that are hard to wrap."""

    def __init__(self):
        super().__init__()
        self.first = Nested()
        self.again = self.first  # the same in two places
        self.norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.single = nn.Linear(4, 4)
        self.list = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU())])


class Nested(nn.Module):
    def __init__(self, inner: bool = True):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.inner = Nested(False) if inner else None

    def forward(self, x):
        return self.body(x) if self.inner is None else self.inner(self.body(x))


def test_shared_and_nested_blocks():
    zoo = Zoo()
    done = checkpoint_blocks(zoo, Nested)
    assert done.paths == ("first",)
    assert zoo.first is zoo.again and type(zoo.first) is Nested and wrapped(zoo) == ["first"]
    assert plain_blocks(zoo) == 1 and wrapped(zoo) == [] and plain_blocks(zoo) == 0


def test_the_training_mode_stays():
    zoo = Zoo()
    zoo.first.eval()
    checkpoint_blocks(zoo, Nested)
    assert zoo.first.training is False


@pytest.mark.parametrize(
    ("blocks", "every", "error", "words"),
    [
        ("Blok", 1, ValueError, r"No module of the model matches 'Blok'.*Linear × "),
        (nn.Conv2d, 1, ValueError, "matches Conv2d"),
        ("list", 1, ValueError, r"only holds modules and has no forward.*list\.\*"),
        (Nested, 2, ValueError, "between 1 and 1, the number of blocks, not 2"),
        (Nested, 0, ValueError, "not 0"),
        (Nested, True, ValueError, "not True"),
        (3, 1, TypeError, "not 3"),
        ([3], 1, TypeError, "classes, names of classes, paths"),
        ([], 1, TypeError, "classes, names of classes, paths"),
    ],
)
def test_errors_name_what_was_looked_for(blocks, every, error, words):
    with pytest.raises(error, match=words):
        checkpoint_blocks(Zoo(), blocks, every)


def test_nothing_matches_ends_the_fit_at_its_start():
    with pytest.raises(ValueError, match="Blok"):
        fit(small(), GradientCheckpointing("Blok"))


def doubts(model, blocks) -> str:
    return "\n".join(en for _, en in checkpoint_blocks(model, blocks).doubts)


def test_warns_of_single_operators():
    assert "single is a single operator" in doubts(Zoo(), "single")
    assert doubts(nn.Sequential(nn.LSTM(4, 4)), nn.LSTM) == ""
    assert doubts(nn.Sequential(nn.RMSNorm(4)), nn.RMSNorm) == ""
    assert doubts(small(), Block) == ""


@pytest.mark.parametrize("layer", [nn.Linear(64, 64), nn.LayerNorm(64), nn.Softmax(-1), nn.GELU()])
def test_a_single_operator_keeps_hardly_more_than_a_checkpoint_does(layer):
    x = torch.randn(32, 64, requires_grad=True)
    assert saved_tensors(layer, x).total < 1.05 * x.nbytes
    assert saved_tensors(nn.RMSNorm(64), x).total > 1.9 * x.nbytes, "why that one is no such"


def test_warns_of_the_whole_model_in_one():
    assert "in one checkpoint" in doubts(small(), "model")
    model = nn.Sequential(nn.Sequential(Nested(), Nested(), Nested()), nn.Linear(4, 4))
    assert "0 holds 86% of all parameters in one checkpoint" in doubts(model, "0")


def test_warns_of_batch_norm():
    assert "norm.1 is a BatchNorm" in doubts(Zoo(), "norm")


def test_warns_of_others_wrappers_and_leaves_them():
    zoo = Zoo()
    zoo.list[0] = checkpoint_wrapper(zoo.list[0])
    assert "list.0 is checkpointed by another wrapper" in doubts(zoo, "list.*")
    assert type(zoo.list[0]) is CheckpointWrapper
    plain_blocks(zoo)
    assert type(zoo.list[0]) is CheckpointWrapper


def test_warns_of_reentrant():
    zoo = Zoo()
    zoo.list[0] = checkpoint_wrapper(zoo.list[0], CheckpointImpl.REENTRANT)
    assert "list.0 uses the reentrant implementation" in doubts(zoo, Nested)


def test_warns_of_a_model_that_checkpoints_itself():
    zoo = Zoo()
    zoo.first.gradient_checkpointing = True
    zoo.first._gradient_checkpointing_func = print
    assert "first.gradient_checkpointing is on already" in doubts(zoo, Nested)


def test_doubts_become_warnings():
    with pytest.warns(UserWarning, match="single operator"):
        fit(small(), GradientCheckpointing("model.head"), max_steps=1)


def test_chinese(monkeypatch):
    monkeypatch.setattr("course_lib.language.choice._chosen", "zh")
    with pytest.raises(ValueError, match="没有与 'Blok' 相符的模块"):
        checkpoint_blocks(Zoo(), "Blok")
    assert "4 个块中有 4 个加了检查点" in str(checkpoint_blocks(small(), Block))


# --- MemoryMonitor ------------------------------------------------------------------------------


def test_the_monitor_equals_a_direct_measurement():
    """What the Trainer adds to a step is next to nothing."""
    monitor = MemoryMonitor([2])
    fit(small(), monitor)
    trace = monitor.traces[2]
    assert sum(trace.at_peak.values()) == trace.peak
    model = small().model
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.zeros(4, 33, dtype=torch.long)

    def step():  # in Lightning's order
        loss = model.loss(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    step()
    direct = measurement.measure(step, model, optimizer, tokens)
    assert trace.flops == direct.flops
    assert 0 <= trace.peak - direct.peak < 200
    assert trace.at_peak[Role.ACTIVATION] == direct.at_peak[Role.ACTIVATION]


def test_watching_changes_nothing_about_the_training():
    plain, watched = small(dropout=0.1), small(dropout=0.1)
    assert fit(plain) == fit(watched, MemoryMonitor(every=1)) and same_weights(plain, watched)


def test_unwatched_steps_are_left_alone(monkeypatch):
    calls = []
    real = measurement.measuring
    monkeypatch.setattr(
        "course_lib.lightning.monitor.measuring", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    monitor = MemoryMonitor([1, 3])
    modes = []

    class Look(L.Callback):
        def on_before_backward(self, trainer, *_):
            modes.append(
                (
                    trainer.global_step,
                    len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
                )
            )

    fit(small(), monitor, Look(), max_steps=5)
    assert len(calls) == 2 and list(monitor.traces) == [1, 3]
    assert modes == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]


def test_every_nth_step_and_steps_together():
    monitor = MemoryMonitor([1], every=3)
    fit(small(), monitor, max_steps=5)
    assert list(monitor.traces) == [0, 1, 3]


def test_csv_and_tensorboard_get_peak_and_roles(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    monitor = MemoryMonitor([1])
    fit(small(), monitor, logger=loggers, log_every_n_steps=1, enable_progress_bar=True)
    trace = monitor.traces[1]

    (file,) = (tmp_path / "csv").rglob("metrics.csv")
    rows = [row for row in csv.DictReader(file.open()) if row["memory/peak"]]
    assert [(float(row["memory/peak"]), row["step"]) for row in rows] == [(trace.peak, "1")]
    roles = {key: float(size) for key, size in rows[0].items() if key.startswith("memory/")}
    assert roles.pop("memory/peak") == sum(roles.values())
    assert roles["memory/optimizer_state"] == trace.at_peak[Role.OPTIMIZER_STATE]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / "board").rglob("events*")).parent))
    events.Reload()
    (peak,) = events.Scalars("memory/peak")
    assert (peak.step, peak.value) == (1, trace.peak)
    (image,) = events.Images("memory/timeline")
    assert image.step == 1 and image.width > 500 and image.height > 300


def test_the_timeline_as_a_figure():
    monitor = MemoryMonitor([1, 2])
    with pytest.raises(KeyError, match="not measured"):
        monitor.plot()
    fit(small(), monitor)
    assert monitor.plot().png() and monitor.plot(1).png()
    with pytest.raises(KeyError, match=r"these were: \[1, 2\]"):
        monitor.plot(3)


def test_accumulated_gradients_are_watched_when_complete():
    monitor = MemoryMonitor([1])
    fit(small(), monitor, accumulate_grad_batches=2, max_steps=3)
    phases = {event.phase for event in monitor.traces[1].events}
    assert phases == {"forward", "backward", "optimizer step"}
    assert monitor.traces[1].before[Role.GRADIENT] > 0


def test_an_error_in_the_step_passes_and_measuring_goes_on_elsewhere():
    class Broken(LanguageModel):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise ZeroDivisionError("in the step")
            return super().training_step(batch, batch_idx)

    with pytest.raises(ZeroDivisionError, match="in the step"):
        fit(Broken(**SMALL), MemoryMonitor([1]))
    assert measurement.measure(lambda: torch.zeros(8)).peak == 32  # nothing was left running


def test_a_skipped_batch_leaves_nothing_running():
    class Skips(LanguageModel):
        def on_train_batch_start(self, batch, batch_idx):
            return -1

    monitor = MemoryMonitor([0])
    fit(Skips(**SMALL), monitor, max_epochs=1, max_steps=-1)
    assert monitor.traces == {}
    assert measurement.measure(lambda: torch.zeros(8)).peak == 32


def test_what_prevents_a_measurement_is_a_warning():
    class StartsAThread(LanguageModel):
        def training_step(self, batch, batch_idx):
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
            return super().training_step(batch, batch_idx)

    monitor = MemoryMonitor([1])
    with pytest.warns(UserWarning, match="was not measured: The step used another thread"):
        assert len(fit(StartsAThread(**SMALL), monitor)) == 4
    assert monitor.traces == {}

    with pytest.warns(UserWarning, match="A measurement is still running"):
        measurement.measure(lambda: fit(small(), MemoryMonitor([0]), max_steps=1))


def test_bad_arguments_of_the_monitor():
    with pytest.raises(ValueError, match="at least 1"):
        MemoryMonitor(every=0)


# --- other ways ---------------------------------------------------------------------------------

WAYS = {
    "accumulate": lambda: {"accumulate_grad_batches": 2},
    "bf16": lambda: {"precision": "bf16-mixed"},
    "model parallel": lambda: {"strategy": ModelParallelStrategy()},
}


@pytest.mark.parametrize("way", WAYS)
def test_other_ways_give_the_same_losses_with_the_flag(way):
    plain, flagged = small(), small(gradient_checkpointing=True)
    losses = fit(plain, **WAYS[way]())
    assert fit(flagged, **WAYS[way]()) == losses and same_weights(plain, flagged)
    if way == "model parallel":  # on one device, the plain run
        assert losses == fit(small())


def test_accumulating_is_the_larger_batch():
    halves = fit(small(), accumulate_grad_batches=2)  # each divided by 2 already
    whole = fit(small(), batch=8)
    pairs = [one + other for one, other in zip(halves[::2], halves[1::2], strict=True)]
    assert pairs == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
def test_distributed_strategies_in_processes_of_their_own():
    """A notebook refuses these strategies. Processes that serve one go on to serve the next."""
    found = processes.train_in_processes({"ddp": 2, "model parallel": 1}, steps=4, batch=8)
    record = StepRecord()
    L.seed_everything(0, verbose=False)
    trainer_for(record).fit(LanguageModel(), Counting(steps=4, batch=8))
    for strategy, count in (("ddp", 2), ("model parallel", 1)):
        off, on = found[strategy][False], found[strategy][True]
        assert off.losses == on.losses and (off.wrapped, on.wrapped) == (0, 8)
        assert len(off.weights) == len(on.weights) == count
        assert len({*off.weights, *on.weights}) == 1
    assert found["ddp"][True].losses == pytest.approx(record.losses, rel=1e-4)
    assert list(found["model parallel"][True].losses) == record.losses


def test_the_batch_is_an_equal_part_in_each_process():
    with pytest.raises(ValueError, match="multiple of 2"):
        processes.train_in_processes({"ddp": 2}, batch=3)


# --- comparing runs -----------------------------------------------------------------------------


def a_run(losses=(1.0,), weight=0.0, **options) -> Run:
    x = torch.zeros(8, 8, requires_grad=True)
    trace = measurement.measure(lambda: (x @ x).sum().backward())
    return Run(losses, (0.1,), {"w": torch.tensor(weight)}, trace, **options)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: a_run((2.0,)), "losses of step 0 differ: 1.0 and 2.0"),
        (lambda: a_run((1.0, 1.0)), "numbers of steps differ: 1 and 2"),
        (lambda: a_run(weight=1e-9), "The final w differs"),
    ],
)
def test_unequal_work_is_refused(other, words):
    same_training(a_run(), a_run())
    for compare in (
        lambda: same_training(a_run(), other()),
        lambda: runs.runs_table({False: a_run(), True: other()}),
        lambda: runs.show_runs({False: a_run(), True: other()}),
        lambda: runs.every_explorer({0: a_run(), 1: other()}, 4),
    ):
        with pytest.raises(UnequalWork, match=words):
            compare()


def test_pictures_in_every_language(monkeypatch):
    of = {0: a_run(), 1: a_run(), 2: a_run()}
    for chosen in ("zh", "en", "both"):
        monkeypatch.setattr("course_lib.language.choice._chosen", chosen)
        runs.show_runs({False: of[0], True: of[1]}).close()
        explorer = runs.every_explorer(of, 4)
        for position in explorer.positions():
            explorer.move(**position)
            assert explorer.caption
        explorer.close()


def test_runs_whose_steps_scatter_tell_no_extra_time(monkeypatch):
    monkeypatch.setattr("course_lib.language.choice._chosen", "en")
    plain = replace(a_run(), seconds=(0.1, 0.11, 0.1, 0.12))
    for seconds, told, titled in (
        ((0.2, 0.21, 0.2, 0.22), "time +95% (+", True),
        ((0.05, 0.3, 0.05, 0.3), "time: cannot be told", False),
    ):
        shown = runs.show_runs({False: plain, True: replace(plain, seconds=seconds)})
        assert told in shown.caption
        runs._draw_runs(shown._picture, shown._frame())
        assert ("more time" in str(shown._picture)) == titled


@pytest.mark.parametrize("flag", [False, True])
def test_the_largest_batch_fits_and_the_next_does_not(flag):
    sizes = Sizes(depth=2, width=32, heads=2, sequence=16, vocabulary=32)
    budget = next(simulated_peaks(sizes, flag, [9])) + 100
    batch = largest_batch(sizes, flag, budget)
    fits, too_large = simulated_peaks(sizes, flag, [batch, batch + 1])
    assert fits <= budget < too_large and batch == 9
    assert largest_batch(sizes, flag, 1000) == 0


def test_trainings_take_turns_when_their_speed_is_compared(monkeypatch):
    sizes, turns = Sizes(depth=2, width=32, sequence=8, vocabulary=16), []
    make = runs._training

    def noted(sizes, flag):
        *rest, step = make(sizes, flag)
        return *rest, lambda tokens: (turns.append((flag, len(tokens))), step(tokens))

    monkeypatch.setattr(runs, "_training", noted)
    settings = [(False, 1), (True, 2)]
    found = runs.sequences_per_second(sizes, settings, rounds=3)
    assert turns == 4 * settings
    assert all(0 < low <= middle <= high for low, middle, high in found) and len(found) == 2
