"""The training steps on which tools for measuring memory are compared."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from course_lib.models import Block, Sizes
from support.independent import Step


@dataclass(frozen=True)
class Subject:
    """A step that ``make`` builds anew; ``simulated``: of tensors without bytes."""

    zh: str
    en: str
    make: Callable[[], Step]
    simulated: bool = False

    def build(self) -> Step:
        """The step, each time from the same seed."""
        torch.manual_seed(0)
        return self.make()

    def world(self) -> AbstractContextManager:
        """Where it is built and run."""
        return FakeTensorMode() if self.simulated else nullcontext()


class Layers(nn.Module):
    """Layers one after the other, each in a checkpoint if ``checkpointed``."""

    def __init__(self, *layers: nn.Module, checkpointed: bool = False):
        super().__init__()
        self.layers, self.checkpointed = nn.ModuleList(layers), checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return x


def encoder(layers: int, width: int, checkpointed: bool = False) -> nn.Module:
    kinds = [
        nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
        for _ in range(layers)
    ]
    return Layers(*kinds, checkpointed=checkpointed)


def training(model: nn.Module, x: Tensor, optimizer: bool = False, steps: int = 1) -> Step:
    adam = torch.optim.Adam(model.parameters()) if optimizer else None

    def run() -> None:
        for _ in range(steps):
            model.zero_grad()
            model(x).square().mean().backward()
            if adam:
                adam.step()

    return Step(run, model, adam, x)


def _large() -> Step:
    return training(encoder(8, 256), torch.randn(16, 128, 256))


def _small(checkpointed: bool = False) -> Step:
    return training(encoder(4, 128, checkpointed), torch.randn(8, 64, 128))


def _blocks(steps: int = 1) -> Step:
    """Attention written out, in blocks: no operator in it needs workspace."""
    sizes = Sizes(width=128)
    model = Layers(*[Block(sizes) for _ in range(2)])
    return training(model, torch.randn(8, 64, 128), optimizer=steps > 1, steps=steps)


def _frozen() -> Step:
    base = encoder(4, 128).requires_grad_(False)
    return training(Layers(base, nn.Linear(128, 128)), torch.randn(8, 64, 128))


def _slice() -> Step:
    data = torch.randn(64, 64, 128)
    return training(encoder(4, 128), data[16:24])


def _convolutions() -> Step:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * 16 * 16, 10),
    )  # fmt: skip
    return training(model, torch.randn(8, 3, 32, 32))


LARGE = Subject("编码器，8 层，d 256，16 × 128", "encoder, 8 layers, d 256, 16 × 128", _large)
SMALL = Subject("编码器，4 层，d 128，8 × 64", "encoder, 4 layers, d 128, 8 × 64", _small)
CHECKPOINTED = Subject(
    "后者，每层一个检查点", "the latter, a checkpoint per layer", partial(_small, checkpointed=True)
)
SUBJECTS = (
    LARGE,
    SMALL,
    CHECKPOINTED,
    Subject("后者，主干冻结，只训练输出层", "the latter, frozen, only a head trained", _frozen),
    Subject("后者，输入是数据集的切片", "the latter, on a slice of a data set", _slice),
    Subject("卷积网络，算子有工作区", "convolutions, which need workspace", _convolutions),
    Subject("2 个块，Adam，连续两步", "2 blocks, Adam, two steps in a row", partial(_blocks, 2)),
    Subject("2 个块，模拟张量", "2 blocks, simulated tensors", _blocks, simulated=True),
)
