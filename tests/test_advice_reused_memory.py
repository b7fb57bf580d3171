"""Memory that a step frees and hands out again is not taken for what existed before it."""

import torch
from torch import nn

from course_lib import advise, measure


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inside, self.outside = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outside(self.inside(x).relu())


def test_gradients_that_the_step_frees_leave_their_addresses_to_activations():
    """Where they come to lie differs from run to run; what is told must not."""
    for width in (16, 32, 64, 256):
        torch.manual_seed(0)
        model = nn.Sequential(*(Block(width) for _ in range(8)))
        x = torch.randn(width, width)  # an activation fits where a gradient lay

        def step(model: nn.Module = model, x: torch.Tensor = x) -> None:
            model.zero_grad()
            model(x).square().mean().backward()

        step()  # gradients exist from here on
        told = [advise(step, model, inputs=x, blocks=Block) for _ in range(6)]
        told[0].apply("all")
        step()
        assert {advice["all"].peak for advice in told} == {measure(step, model, inputs=x).peak}
        told[0].undo()
