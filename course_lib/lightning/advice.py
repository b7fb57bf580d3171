"""A callback that prints, after one step, which blocks checkpoints are good for."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn

from ..plans.advice.advice import advising
from ..plans.advice.budget import bytes_of
from ..plans.advice.results import Advice
from ..wrapping.blocks import Blocks
from .watching import WatchedSteps


class CheckpointingAdvice(WatchedSteps):
    """Says after a training step whether checkpointing would help, where, and what it costs.

    Args:
        budget: the most memory that a step may take, in bytes or as ``"24 GiB"``; None: no limit.
        blocks: which modules are the blocks, as :class:`GradientCheckpointing` takes them; None:
            they are found.
        step: the optimizer step to watch. Adam's moments come into being at the end of step 0, so
            step 1 is the first typical one.

    Prints the advice (a :class:`course_lib.plans.advice.Advice`) and holds it in ``advice``;
    training goes on as it was. ``advice.code(framework="lightning")`` is the callback that carries
    the best option out, and where that has no segments over several blocks,
    ``GradientCheckpointing(list(advice.best.paths))`` is another. What prevents advice, a budget
    that nothing fits included, is a warning.
    """

    def __init__(
        self, budget: int | str | None = None, blocks: Blocks | None = None, step: int = 1
    ):
        super().__init__((step,))
        self.budget, self.blocks = bytes_of(budget), blocks
        self.advice: Advice | None = None

    def _watch(self, model: nn.Module, optimizers: Any, batch: Any) -> Any:
        return advising(model, optimizers, batch, self.budget, self.blocks)

    @property
    def _not_done(self) -> tuple[str, str]:
        return _NO_ADVICE

    def _seen(self, trainer: L.Trainer, result: Advice) -> None:
        self.advice = result
        print(result)


_NO_ADVICE = "这一步给不出建议", "No advice on this step"
