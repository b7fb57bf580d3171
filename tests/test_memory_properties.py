"""Random chains of layers with random checkpoints, each measured and counted independently."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from course_lib.memory import Role, measure, simulated
from support.independent import Step, bytes_before, count

CHAINS = 200
FIRST = int(os.environ.get("COURSE_SEED", "0"))
UNSEEN = {Role.WORKSPACE, Role.RANDOM_STATE}


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class AsImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.unflatten(1, (4, -1))).flatten(1)


def attention(x: Tensor) -> Tensor:
    heads = x.unflatten(1, (2, -1)).transpose(0, 1).unsqueeze(0)
    return F.scaled_dot_product_attention(heads, heads, heads)[0].transpose(0, 1).flatten(1)


# (batch, width) -> (batch, width); width a multiple of 8
LAYERS: tuple[Callable[[int], nn.Module], ...] = (
    lambda width: nn.Linear(width, width),
    lambda width: nn.Linear(width, width, bias=False).requires_grad_(False),
    lambda width: nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)),
    lambda width: Residual(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh()),
    lambda width: nn.BatchNorm1d(width),
    lambda width: nn.Dropout(0.3),
    lambda width: nn.Softmax(dim=-1),
    lambda width: AsImage(),
    lambda width: Apply(attention),
    lambda width: Apply(lambda x: x.mul(2).add_(1).relu_()),
    lambda width: Apply(lambda x: x.sin() * x.cos() + x),
    lambda width: Apply(lambda x: torch.cat([x.chunk(2, dim=1)[1], x[:, : width // 2]], dim=1)),
    lambda width: Apply(lambda x: x.unsqueeze(1).expand(-1, 3, -1).sum(1)),
    # back to rows: torch's stand-in for BatchNorm has other strides than the real one for columns
    lambda width: Apply(lambda x: (x.t().contiguous() / 3).t().contiguous()),
    lambda width: Apply(lambda x: x[torch.arange(len(x) - 1, -1, -1)]),
    lambda width: Apply(lambda x: x - x.amax(dim=1, keepdim=True)),
    lambda width: Apply(lambda x: torch.where(x > 0, x, 0.1 * x).bfloat16().float()),
)


class Chain(nn.Module):
    """Layers in a row; ``segments``: (first, one after last, reentrant, keep random state)."""

    def __init__(self, layers: list[nn.Module], segments: list[tuple[int, int, bool, bool]]):
        super().__init__()
        self.layers, self.segments = nn.ModuleList(layers), segments

    def run(self, first: int, last: int, x: Tensor) -> Tensor:
        for layer in self.layers[first:last]:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        done = 0
        for first, last, reentrant, keep in self.segments:
            x = self.run(done, first, x)
            x = checkpoint(
                self.run, first, last, x, use_reentrant=reentrant, preserve_rng_state=keep
            )
            done = last
        return self.run(done, len(self.layers), x)


def random_step(seed: int) -> Step:
    choose = random.Random(seed)
    torch.manual_seed(seed)
    width = 8 * choose.randint(1, 6)
    layers = [choose.choice(LAYERS)(width) for _ in range(choose.randint(1, 10))]
    cuts = sorted(choose.sample(range(len(layers) + 1), min(len(layers) + 1, choose.randint(0, 6))))
    segments = [(first, last, choose.random() < 0.3, choose.random() < 0.7)
                for first, last in zip(cuts[::2], cuts[1::2], strict=False)]  # fmt: skip
    if choose.random() < 0.2:  # nested
        layers, segments = [Chain(layers, segments), nn.Linear(width, width)], [(0, 2, False, True)]
    model = nn.Sequential(Chain(layers, segments), nn.Linear(width, 3))
    x = torch.randn(choose.randint(2, 17), width, requires_grad=choose.random() < 0.7)
    optimizer = choose.choice((
        None,
        torch.optim.SGD(model.parameters(), lr=0.01),
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=False),
        torch.optim.AdamW(model.parameters(), foreach=True),
    ))  # fmt: skip
    steps, set_to_none = choose.randint(1, 2), choose.random() < 0.7

    def run() -> None:
        for _ in range(steps):
            model(x).square().mean().backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=set_to_none)

    return Step(run, model, optimizer, x)


@pytest.fixture(scope="module", autouse=True)
def seeds(report: Callable[[str], None]) -> None:
    """Say at the end how to repeat this; a failing test has its seed in its name."""
    report(f"random chains: seeds {FIRST} to {FIRST + CHAINS - 1}, as COURSE_SEED={FIRST} asks")


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("seed", range(FIRST, FIRST + CHAINS))
def test_random_chain(seed: int) -> None:
    if seed == FIRST:  # one-time allocations of the operators' libraries
        for layer in LAYERS:
            layer(8)(torch.randn(2, 8, requires_grad=True)).sum().backward()
    counted = count(lambda: random_step(seed))
    step = random_step(seed)
    assert bytes_before(step) == counted.before
    trace = measure(step.run, step.model, step.optimizer, step.inputs)
    assert sum(trace.at_peak.values()) == trace.peak == counted.peak
    assert sum(trace.before.values()) == counted.before
    assert trace.events[-1].total == counted.after

    if seed % 4 == 0:  # simulating costs the most
        total = peak = counted.before
        for event in trace.events:
            if event.role not in UNSEEN:
                total += event.size
                peak = max(peak, total)
        with simulated():
            step = random_step(seed)
            assert measure(step.run, step.model, step.optimizer, step.inputs).peak == peak
