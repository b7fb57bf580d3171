"""A callback that keeps what each step's loss was and how long it took."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


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
