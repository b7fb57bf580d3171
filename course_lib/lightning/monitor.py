"""A callback that measures steps of a training and logs where their memory went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import nn

from ..language import text
from ..memory.measurement import measuring
from ..memory.trace import MemoryTrace, Role
from .watching import WatchedSteps, as_a_warning

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MemoryMonitor(WatchedSteps):
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
        super().__init__(steps, every)
        self.traces: dict[int, MemoryTrace] = {}

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
                with as_a_warning(_NOT_LOGGED):
                    _ = logger.experiment

    def _watch(self, model: nn.Module, optimizers: Any, batch: Any) -> Any:
        return measuring(model, optimizers, batch, headroom=False)

    def _seen(self, trainer: L.Trainer, result: MemoryTrace) -> None:
        trace = self.traces[self._step] = result
        with as_a_warning(_NOT_LOGGED):
            self._log(trainer, trace)

    def _log(self, trainer: L.Trainer, trace: MemoryTrace) -> None:
        sizes = {Role(role).value.replace(" ", "_"): size for role, size in trace.at_peak.items()}
        metrics = {f"memory/{name}": float(size) for name, size in sizes.items()}
        loggers: list[Any] = trainer.loggers
        for logger in loggers:
            logger.log_metrics({"memory/peak": float(trace.peak), **metrics}, step=self._step)
            if hasattr(logger.experiment, "add_image"):
                image = _pixels(trace.plot())
                logger.experiment.add_image("memory/timeline", image, self._step, dataformats="HWC")


_NOT_LOGGED = "内存的测量结果没有写进日志", "The memory of this step was not logged"


def _pixels(figure: Figure) -> Any:
    """The picture as (height, width, 3) bytes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
