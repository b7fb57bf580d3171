"""Random uneven chains and random plans for the tests of plans."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from course_lib.models import Block, Sizes
from course_lib.plans import Plan


class Residual(nn.Module):
    def __init__(self, width: int, inside: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inside), nn.Linear(inside, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


class Lambda(nn.Module):
    """A layer without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.forward = function


def in_two_parts(x: Tensor) -> Tensor:
    return torch.cat([x[:, :2] * 2, x[:, 2:]], 1)


def with_a_dead_end(x: Tensor) -> Tensor:
    unused = (x * x).sin()
    return x.exp() if unused is not None else x


POINTWISE: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Identity, lambda: nn.Dropout(0.1),
    lambda: Lambda(lambda x: x + 1), lambda: Lambda(in_two_parts), lambda: Lambda(with_a_dead_end),
)  # fmt: skip


def mlp(pick: random.Random, most: int = 8) -> tuple[list[nn.Module], tuple[int, ...]]:
    width = first = pick.choice([3, 8, 33])
    layers: list[nn.Module] = []
    for _ in range(pick.randint(1, most)):
        kind = pick.choice(["linear", "pointwise", "pointwise", "residual", "norm", "sequence"])
        if kind == "linear":
            layers.append(
                nn.Linear(width, after := pick.choice([3, 17, 64]), bias=pick.random() < 0.7)
            )
            width = after
        elif kind == "sequence":
            inside = pick.choice([5, 100])
            layers.append(
                nn.Sequential(nn.Linear(width, inside), nn.SiLU(), nn.Linear(inside, width))
            )
        elif kind == "residual":
            layers.append(Residual(width, pick.choice([5, 50])))
        else:
            layers.append(nn.LayerNorm(width) if kind == "norm" else pick.choice(POINTWISE)())
    return layers, (pick.choice([4, 77]), first)


def convolution(pick: random.Random, most: int = 6) -> tuple[list[nn.Module], tuple[int, ...]]:
    channels = first = pick.choice([3, 8])
    layers: list[nn.Module] = []
    for _ in range(pick.randint(1, most)):
        kind = pick.choice(["conv", "conv", "batch norm", "relu", "max", "average", "group norm"])
        if kind == "conv":
            after = pick.choice([3, 4, 8])
            layers.append(nn.Conv2d(channels, after, 3, padding=1, stride=pick.choice([1, 2])))
            channels = after
        else:
            layers.append(
                {
                    "batch norm": lambda c: nn.BatchNorm2d(c),
                    "relu": lambda c: nn.ReLU(),
                    "max": lambda c: nn.MaxPool2d(2, ceil_mode=True),
                    "average": lambda c: nn.AvgPool2d(3, 1, 1),
                    "group norm": lambda c: nn.GroupNorm(1, c),
                }[kind](channels)
            )
    if pick.random() < 0.5:
        layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, 10)]
    return layers, (pick.choice([1, 3]), first, 16, 16)


def transformer(pick: random.Random, most: int = 2) -> tuple[list[nn.Module], tuple[int, ...]]:
    layers: list[nn.Module] = []
    for _ in range(pick.randint(1, most)):
        if pick.random() < 0.6:
            sizes = Sizes(width=16, heads=pick.choice([1, 2]), dropout=pick.choice([0.0, 0.1]))
            layers.append(Block(sizes))
        else:
            layers.append(
                nn.TransformerEncoderLayer(
                    16, 2, pick.choice([8, 40]), batch_first=True, norm_first=pick.random() < 0.5
                )
            )
    return layers, (2, pick.choice([5, 16]), 16)


def mixed(pick: random.Random, most: int = 1) -> tuple[list[nn.Module], tuple[int, ...]]:
    stem = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(2),
            Lambda(lambda x: x.transpose(1, 2)), nn.Linear(8, 16)]  # fmt: skip
    head = [nn.Linear(16, pick.choice([4, 50])), nn.ReLU()]
    return [*stem, *transformer(pick, most)[0], *head], (2, 3, 4, 4)


LOSSES: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sum, torch.mean, lambda y: y.square().mean(), lambda y: functional.relu(y).sum(),
)  # fmt: skip


@dataclass
class Sample:
    layers: list[nn.Module]
    x: Tensor
    loss: Callable[[Tensor], Tensor]
    gradients: bool  # whether those of an earlier step are there


def sample(seed: int, kinds: tuple[Callable, ...] = (mlp, mlp, convolution, transformer, mixed),
           **limits: int) -> Sample:  # fmt: skip
    """A random chain; call it under ``simulated()``."""
    pick = random.Random(seed)
    layers, shape = kinds[seed % len(kinds)](pick, **limits)
    x = torch.empty(shape, requires_grad=pick.random() < 0.5)
    if not any(True for layer in layers for _ in layer.parameters()):
        x.requires_grad_()
    found = Sample(layers, x, pick.choice(LOSSES), gradients=pick.random() < 0.3)
    if found.gradients:
        found.loss(nn.Sequential(*layers)(x)).backward()
    return found


def random_plan(pick: random.Random, layers: int, depth: int = 2) -> Plan:
    def parts(begin: int, end: int, depth: int) -> tuple:
        found: list = []
        while begin < end:
            if depth and pick.random() < 0.6:
                after = pick.randint(begin + 1, end)
                found.append(parts(begin, after, depth - 1))
                begin = after
            else:
                found.append(begin)
                begin += 1
        return tuple(found)

    return Plan(parts(0, layers, depth))


def nested_plans(layers: int) -> list[Plan]:
    """Every plan, but for segments in which there is nothing but another segment."""
    return [plan for plan, _ in cheaper_plans([0] * layers, 1)]


def cheaper_plans(flops: list[int], most: int) -> list[tuple[Plan, int]]:
    """Every such plan that recomputes fewer than ``most`` FLOPs, with them.

    ``flops``: of each layer, which saves something as the last thing it does: a segment is then
    recomputed to its end, or to the beginning of the segment with which it ends.
    """

    def first(part: int | tuple) -> int:
        return first(part[0]) if isinstance(part, tuple) else part

    @functools.cache
    def after(begin: int, end: int) -> list[tuple[tuple, int]]:
        if begin == end:
            return [((), 0)]
        kept = [((begin, *rest), cost) for rest, cost in after(begin + 1, end)]
        return kept + cut(begin, end, last=end)

    def cut(begin: int, end: int, last: int) -> list[tuple[tuple, int]]:
        return [
            ((part, *rest), cost + more)
            for middle in range(begin + 1, last + 1)
            for part, cost in segments(begin, middle)
            for rest, more in after(middle, end)
            if cost + more < most
        ]

    @functools.cache
    def segments(begin: int, end: int) -> list[tuple[tuple, int]]:
        inside = [((begin, *rest), cost) for rest, cost in after(begin + 1, end)]
        found = []
        for parts, cost in inside + cut(begin, end, last=end - 1):
            to = first(parts[-1]) if isinstance(parts[-1], tuple) else end
            cost += sum(flops[begin:to])
            if cost < most:
                found.append((parts, cost))
        return found

    return [(Plan(parts), cost) for parts, cost in after(0, len(flops)) if cost < most]


def flat_plans(layers: int) -> list[Plan]:
    """Every plan without nesting."""

    def parts(begin: int) -> list[tuple]:
        if begin == layers:
            return [()]
        found = [(begin, *rest) for rest in parts(begin + 1)]
        for end in range(begin + 1, layers + 1):
            found += [(tuple(range(begin, end)), *rest) for rest in parts(end)]
        return found

    return [Plan(each) for each in parts(0)]
