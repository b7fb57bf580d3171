"""What callbacks share that watch some steps of a training, and never end it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from ..language import text
from ..plans.advice.results import BudgetTooSmall


class WatchedSteps(Callback):
    """Watches chosen training steps from outside. What prevents it is a warning: training goes on.

    ``steps``, ``every``: see :class:`MemoryMonitor`.
    """

    def __init__(self, steps: Iterable[int], every: int | None = None):
        self.steps, self.every = frozenset(steps), every
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self._step = -1
        self._watching: contextlib.ExitStack | None = None
        self._result: Any = None

    @property
    def _not_done(self) -> tuple[str, str]:
        """What to say when something prevents it."""
        return _NOT_MEASURED

    def _watch(self, model: nn.Module, optimizers: Any, batch: Any) -> Any:
        """A context around the step; its value is a function that returns what was seen."""
        raise NotImplementedError

    def _seen(self, trainer: L.Trainer, result: Any) -> None:
        raise NotImplementedError

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step
        chosen = self._step in self.steps or (self.every and self._step % self.every == 0)
        if not (chosen and trainer.is_global_zero and _optimizer_steps_after(trainer, batch_idx)):
            return
        with as_a_warning(self._not_done), contextlib.ExitStack() as stack:
            optimizers: Any = trainer.optimizers
            if len(optimizers) < 2:
                optimizers = optimizers[0] if optimizers else None
            self._result = stack.enter_context(self._watch(pl_module, optimizers, batch))
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
        with as_a_warning(self._not_done):
            watching.close()
            self._seen(trainer, self._result())

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
            # what watches passes on what it is given
            with as_a_warning(self._not_done), contextlib.suppress(type(error)):
                watching.__exit__(type(error), error, error.__traceback__)


def _optimizer_steps_after(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether gradients are complete after this batch."""
    last = batch_idx + 1 == trainer.num_training_batches
    return last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


_NOT_MEASURED = "这一步的内存没有测", "The memory of this step was not measured"


@contextlib.contextmanager
def as_a_warning(what: tuple[str, str] = _NOT_MEASURED) -> Any:
    """Whatever goes wrong with a measurement must not end the training."""
    try:
        yield
    except Exception as problem:
        kind = type(problem).__name__
        own = isinstance(problem, (RuntimeError, BudgetTooSmall))
        said = str(problem) if own else f"{kind}: {problem}"
        zh, en = what
        rank_zero_warn(text(zh=f"{zh}：{said}", en=f"{en}: {said}"))
