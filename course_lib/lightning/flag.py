"""The flag for any LightningModule: a callback that puts checkpoints in, and takes them out."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from ..language import text
from ..wrapping.blocks import Blocks, Wrapped, checkpoint_blocks, plain_blocks


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
        take_out_names_of_wrappers(checkpoint)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._undo(pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._undo(pl_module)

    def _undo(self, model: nn.Module) -> None:
        if self.undo:
            plain_blocks(model)


def take_out_names_of_wrappers(checkpoint: dict[str, Any]) -> None:
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
