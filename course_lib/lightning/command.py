"""Lightning's command line for the lessons' model and data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L

from .data import Counting
from .model import LanguageModel


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
            LanguageModel,
            Counting,
            save_config_callback=None,
            args=None if arguments is None else list(arguments),
        )
