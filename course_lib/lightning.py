"""The flag that Lightning never had: ``gradient_checkpointing: true``, from a config file.

``LanguageModel`` has it as a hyperparameter; ``GradientCheckpointing`` gives it to any other
``LightningModule``; ``MemoryMonitor`` tells whether it worked. To train from a config::

    python -m course_lib.lightning fit --config notebooks/04_config.yaml \\
        --model.gradient_checkpointing=true
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from .language import text
from .memory import MemoryTrace, Role, measuring
from .models import Block, Sizes, Transformer
from .wrapping import Blocks, Wrapped, checkpoint_blocks, plain_blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Counting",
    "GradientCheckpointing",
    "LanguageModel",
    "MemoryMonitor",
    "StepRecord",
    "main",
    "quiet",
]


class LanguageModel(L.LightningModule):
    """A small causal Transformer that can checkpoint its blocks.

    Args:
        depth: number of blocks.
        width: length of the vector that stands for each token; a multiple of ``heads``.
        heads: attention heads per block.
        sequence: the longest input, in tokens.
        vocabulary: how many tokens there are.
        dropout: probability of dropout.
        learning_rate: of AdamW.
        gradient_checkpointing: recompute blocks in the backward pass instead of keeping their
            activations.
        checkpoint_every: checkpoint every k-th block only.

    Raises ``ValueError`` if ``checkpoint_every`` is not between 1 and ``depth``.
    """

    def __init__(
        self,
        depth: int = 8,
        width: int = 32,
        heads: int = 4,
        sequence: int = 32,
        vocabulary: int = 32,
        dropout: float = 0.0,
        learning_rate: float = 3e-3,
        gradient_checkpointing: bool = False,
        checkpoint_every: int = 1,
    ):
        super().__init__()
        if not 1 <= checkpoint_every <= depth:
            raise ValueError(
                text(
                    zh=f"checkpoint_every 必须在 1 和 depth（{depth}）之间，"
                    f"现在是 {checkpoint_every}。",
                    en=f"checkpoint_every must be between 1 and depth ({depth}), "
                    f"not {checkpoint_every}.",
                )
            )
        self.save_hyperparameters()
        self.model = Transformer(
            Sizes(depth, width, heads, sequence, vocabulary=vocabulary, dropout=dropout)
        )

    def configure_model(self) -> None:
        """Lightning calls this before each fit: a second call must not wrap a second time."""
        if self.hparams["gradient_checkpointing"]:
            checkpoint_blocks(self, Block, self.hparams["checkpoint_every"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read files of the days when each block was wrapped in a module."""
        _names_of_wrappers_taken_out(checkpoint)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch that holds tokens, (batch, sequence + 1)."""
        (tokens,) = batch
        loss = self.model.loss(tokens)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The same, without gradients."""
        loss = self.model.loss(batch[0])
        self.log("test_loss", loss)
        return loss

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """The likeliest token after each, (batch, sequence)."""
        return self.model(batch[0][:, :-1]).argmax(-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # In one operator for all parameters: a step of so small a model is mostly operator calls.
        rate = self.hparams["learning_rate"]
        return torch.optim.AdamW(self.parameters(), lr=rate, fused=True)


class Counting(L.LightningDataModule):
    """Sequences that count: ``(start + i · stride) mod v``, start and stride drawn at random.

    Two tokens tell how the rest goes on, so a model that attends to them can learn it.

    Args:
        steps: how many batches there are.
        batch: sequences in a batch.
        sequence: tokens of each that the model reads; one more to predict.
        vocabulary: v, how many tokens there are.
        seed: the same seed gives the same sequences.
    """

    def __init__(
        self,
        steps: int = 200,
        batch: int = 16,
        sequence: int = 32,
        vocabulary: int = 32,
        seed: int = 0,
    ):
        super().__init__()
        self.batch = batch
        random = torch.Generator().manual_seed(seed)
        drawn = torch.randint(7 * vocabulary, (steps * batch, 1), generator=random)
        start, stride = drawn % vocabulary, 1 + drawn // vocabulary
        self.tokens = (start + stride * torch.arange(sequence + 1)) % vocabulary

    def train_dataloader(self) -> DataLoader:
        """All sequences in order; of several processes, each gets every n-th."""
        data = TensorDataset(self.tokens)
        processes, rank = 1, 0
        if self.trainer is not None:
            processes, rank = self.trainer.world_size, self.trainer.global_rank
        # In distributed training Lightning would put in a sampler that shuffles.
        sampler: DistributedSampler[Any] = DistributedSampler(data, processes, rank, shuffle=False)
        return DataLoader(data, batch_size=self.batch, sampler=sampler)

    test_dataloader = predict_dataloader = train_dataloader


class GradientCheckpointing(Callback):
    """Gradient checkpointing for any LightningModule: ``Trainer(callbacks=[...])``.

    Args:
        blocks: which modules: a class, the name of one (``"Block"``), paths (``"model.blocks.*"``),
            several of these, or a function that says of a module whether it is one.
        every: checkpoint every k-th of them only.
        undo: take the checkpoints out again when the fit ends.

    Blocks are wrapped when a fit starts, after ``configure_model``; testing and predicting build
    no graph and need none. No name changes, so a file saved with the callback resumes without it,
    and the other way round. ``use_cache`` of a Hugging Face model is switched off meanwhile.
    ``wrapped`` says what was done. Raises ``ValueError`` at the start of the fit if nothing
    matches; warns where checkpointing will not help or do harm.
    """

    def __init__(self, blocks: Blocks, every: int = 1, undo: bool = False):
        self.blocks, self.every, self.undo = blocks, every, undo
        self.wrapped: Wrapped | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.wrapped = checkpoint_blocks(pl_module, self.blocks, self.every)
        rank_zero_info(str(self.wrapped))
        for zh, en in self.wrapped.doubts:
            rank_zero_warn(text(zh=zh, en=en))

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        _names_of_wrappers_taken_out(checkpoint)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._undo(pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._undo(pl_module)

    def _undo(self, model: nn.Module) -> None:
        if self.undo:
            plain_blocks(model)


class MemoryMonitor(Callback):
    """Peak memory of chosen training steps, and its bytes by role, in every logger there is.

    Args:
        steps: the optimizer steps to watch, counted from 0 as ``trainer.global_step`` does. Adam's
            moments come into being at the end of step 0, so step 1 is the first typical one.
        every: watch every n-th step as well.

    Logs ``memory/peak`` and, for example, ``memory/activation``, all in bytes, under the step that
    was watched; to TensorBoard also the step's timeline as an image. ``traces`` holds a
    :class:`MemoryTrace` for each. With gradients accumulated over several batches, a step's last
    one is watched. Other steps are left alone. What prevents a measurement is a warning: training
    goes on.
    """

    def __init__(self, steps: Iterable[int] = (1,), every: int | None = None):
        self.steps, self.every = frozenset(steps), every
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.traces: dict[int, MemoryTrace] = {}
        self._step = -1
        self._watching: contextlib.ExitStack | None = None
        self._result: Any = None

    def plot(self, step: int | None = None) -> Figure:
        """The timeline of a watched step; of the last one if None.

        Raises ``KeyError`` for a step that was not watched.
        """
        if not self.traces or (step is not None and step not in self.traces):
            raise KeyError(
                text(
                    zh=f"没有测过这一步：{step}。测过的有 {sorted(self.traces)}。",
                    en=f"Step {step} was not measured; these were: {sorted(self.traces)}.",
                )
            )
        return self.traces[max(self.traces) if step is None else step].plot()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            loggers: list[Any] = trainer.loggers
            for logger in loggers:  # some start a thread when first used
                with _as_a_warning(_NOT_LOGGED):
                    _ = logger.experiment

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step
        chosen = self._step in self.steps or (self.every and self._step % self.every == 0)
        if not (chosen and trainer.is_global_zero and _optimizer_steps_after(trainer, batch_idx)):
            return
        with _as_a_warning(), contextlib.ExitStack() as stack:
            optimizers: Any = trainer.optimizers
            if len(optimizers) < 2:
                optimizers = optimizers[0] if optimizers else None
            self._result = stack.enter_context(
                measuring(pl_module, optimizers, batch, headroom=False)
            )
            self._watching = stack.pop_all()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._watching is None:
            return
        watching, self._watching = self._watching, None
        with _as_a_warning():
            watching.close()
            trace = self.traces[self._step] = self._result()
            with _as_a_warning(_NOT_LOGGED):
                self._log(trainer, trace)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._abandon(exception)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._abandon()  # a hook ended the epoch in the middle of a batch

    def _abandon(self, error: BaseException | None = None) -> None:
        if self._watching is not None:
            watching, self._watching = self._watching, None
            error = error or StopIteration("the batch was skipped")
            # measuring passes on what it is given
            with _as_a_warning(), contextlib.suppress(type(error)):
                watching.__exit__(type(error), error, error.__traceback__)

    def _log(self, trainer: L.Trainer, trace: MemoryTrace) -> None:
        sizes = {Role(role).value.replace(" ", "_"): size for role, size in trace.at_peak.items()}
        metrics = {f"memory/{name}": float(size) for name, size in sizes.items()}
        loggers: list[Any] = trainer.loggers
        for logger in loggers:
            logger.log_metrics({"memory/peak": float(trace.peak), **metrics}, step=self._step)
            if hasattr(logger.experiment, "add_image"):
                image = _pixels(trace.plot())
                logger.experiment.add_image("memory/timeline", image, self._step, dataformats="HWC")


class StepRecord(Callback):
    """The loss and the wall time, in seconds, of each training step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        self.seconds.append(time.perf_counter() - self._begin)
        self.losses.append(float(outputs["loss"]))


def quiet() -> None:
    """Switch off what Lightning says again before each fit, for the rest of the process.

    That is: which devices there are, the seed, how the fit ended; that more workers would load
    data faster and that log intervals are long; and a deprecation in its own code. Errors and all
    other warnings stay.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",  # a line of Lightning's own
    ):
        warnings.filterwarnings("ignore", advice)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Lightning's command line for :class:`LanguageModel` and :class:`Counting`.

    ``arguments``: such as ``["fit", "--config", "04_config.yaml"]``; those of the process if None.
    """
    from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
    from lightning.pytorch.cli import LightningCLI

    class CommandLine(LightningCLI):
        """With the same progress bar everywhere: Lightning takes another where rich is there."""

        def instantiate_trainer(self, **options: Any) -> L.Trainer:
            config = self.config_init[self.subcommand].trainer
            given = config.callbacks or []
            callbacks = given if isinstance(given, list) else [given]
            has_one = any(isinstance(callback, ProgressBar) for callback in callbacks)
            if config.enable_progress_bar is not False and not has_one:
                options["callbacks"] = [*callbacks, TQDMProgressBar()]
            return super().instantiate_trainer(**options)

    with warnings.catch_warnings():
        # That sys.argv holds arguments too, as a notebook's always does.
        warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
        # What Lightning's own lines call in jsonargparse.
        warnings.filterwarnings("ignore", module="lightning.pytorch.cli")
        return CommandLine(
            LanguageModel, Counting, save_config_callback=None,
            args=None if arguments is None else list(arguments),
        )  # fmt: skip


def _optimizer_steps_after(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether gradients are complete after this batch."""
    last = batch_idx + 1 == trainer.num_training_batches
    return last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


_NOT_MEASURED = "这一步的内存没有测", "The memory of this step was not measured"
_NOT_LOGGED = "内存的测量结果没有写进日志", "The memory of this step was not logged"


@contextlib.contextmanager
def _as_a_warning(what: tuple[str, str] = _NOT_MEASURED) -> Any:
    """Whatever goes wrong with a measurement must not end the training."""
    try:
        yield
    except Exception as problem:
        kind = type(problem).__name__
        said = str(problem) if isinstance(problem, RuntimeError) else f"{kind}: {problem}"
        zh, en = what
        rank_zero_warn(text(zh=f"{zh}：{said}", en=f"{en}: {said}"))


def _names_of_wrappers_taken_out(checkpoint: dict[str, Any]) -> None:
    """From what callbacks have saved, such as the parameters that a fine-tuning has unfrozen.

    Files hold such names if their blocks were wrapped in modules, as
    ``apply_activation_checkpointing`` does. The weights' own names never held any.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("_checkpoint_wrapped_module.", "")
        if isinstance(value, dict):
            return type(value)((plain(key), plain(held)) for key, held in value.items())
        if type(value) in (list, tuple):
            return type(value)(map(plain, value))
        return value

    if "callbacks" in checkpoint:
        checkpoint["callbacks"] = plain(checkpoint["callbacks"])


def _pixels(figure: Figure) -> Any:
    """The picture as (height, width, 3) bytes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


if __name__ == "__main__":
    # Under its full name, so that classes are the same however they are reached.
    from course_lib.lightning import main as run

    run()
