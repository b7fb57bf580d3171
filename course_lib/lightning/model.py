"""The language model of the lessons as a LightningModule, with the flag as a hyperparameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ..language import text
from ..models import Block, Sizes, Transformer
from ..wrapping.blocks import checkpoint_blocks
from .flag import take_out_names_of_wrappers


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
        take_out_names_of_wrappers(checkpoint)

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
