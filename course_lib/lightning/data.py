"""A data module whose batches are easy to predict."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


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
