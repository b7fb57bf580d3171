"""Lesson 04's LightningModule, sharded: its flag first, then FSDP2."""

from __future__ import annotations

from torch.distributed.fsdp import fully_shard

from .model import LanguageModel


class ShardedLanguageModel(LanguageModel):
    """For Lightning's ``ModelParallelStrategy``, which hands over the mesh in ``device_mesh``."""

    def configure_model(self) -> None:
        super().configure_model()  # the flag: checkpoints on the blocks
        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
