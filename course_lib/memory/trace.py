"""What a measurement says: every byte at the peak, by role, module, operator and source line."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Phase = Literal["forward", "backward", "optimizer step"]


class Role(StrEnum):
    """What a byte is there for. A block of memory keeps one role for its whole life."""

    PARAMETER = "parameter"
    GRADIENT = "gradient"  # of a parameter, or of an input that requires one
    OPTIMIZER_STATE = "optimizer state"
    BUFFER = "buffer"
    INPUT = "input"  # whatever came from outside the step and is none of the above
    CHECKPOINT = "checkpoint"  # made in the forward pass, kept, read by a recomputation
    ACTIVATION = "activation"  # made in the forward pass, kept, read by the backward pass
    RECOMPUTED = "recomputed"  # made again during the backward pass
    TEMPORARY = "temporary"  # any other tensor, gradients of activations included
    WORKSPACE = "workspace"  # inside an operator, never seen as a tensor
    RANDOM_STATE = "random state"  # a generator's state, saved to repeat dropout
    OFFLOADED = "offloaded"  # moved to the host's memory: see :mod:`pools`
    # Of a rank only:
    GATHERED = "gathered parameter"  # whole for a while, of shards that lie on several ranks
    COMMUNICATION = "communication buffer"  # what ranks send and receive, and nobody else holds

    @property
    def names(self) -> tuple[str, str]:
        """What the role is called: (zh, en)."""
        return _CHINESE[self], self.value


_CHINESE = {
    Role.PARAMETER: "参数",
    Role.GRADIENT: "梯度",
    Role.OPTIMIZER_STATE: "优化器状态",
    Role.BUFFER: "缓冲区",
    Role.INPUT: "输入",
    Role.CHECKPOINT: "检查点",
    Role.ACTIVATION: "激活值",
    Role.RECOMPUTED: "重计算",
    Role.TEMPORARY: "临时量",
    Role.WORKSPACE: "算子工作区",
    Role.RANDOM_STATE: "随机数状态",
    Role.OFFLOADED: "卸载",
    Role.GATHERED: "聚合的参数",
    Role.COMMUNICATION: "通信缓冲区",
}


KEPT = (Role.ACTIVATION, Role.CHECKPOINT, Role.RANDOM_STATE)  # for the backward pass


@dataclass(frozen=True, slots=True)
class MemoryBlock:
    """One piece of memory: who made it, and what for.

    ``size``: bytes. ``operator``: such as ``aten.addmm``; None if it was made outside of any or
    existed before. ``module``: path in the model, ``""`` at its top. ``line``: the line of the
    learner's own code; for a backward operator, that of the forward operator it belongs to.
    """

    size: int
    role: Role
    operator: str | None = None
    module: str | None = None
    line: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One allocation (``size`` > 0) or free (``size`` < 0) on the timeline.

    ``time``: seconds since the start, None under :func:`simulated`. ``size``: bytes, signed.
    ``total``: bytes handed out after the event.
    """

    time: float | None
    size: int
    total: int
    phase: Phase
    role: Role
    operator: str | None
    module: str | None
    line: str | None


@dataclass(frozen=True)
class MemoryTrace:
    """What one step did with memory. All sizes are bytes.

    ``at_peak``, ``kept`` and ``before`` hold every role that the source can see, 0 where there was
    none of it; a role that cannot be had (workspace of simulated tensors; gathered parameters and
    communication buffers outside of a process group) is absent, and so is ``offloaded`` where
    nothing was.
    ``kept``: what is alive at the end of the forward pass (the largest, if there were several), or
    at the end of the step if there was no backward pass. ``before``: what existed at the start.
    ``peak_index``: the event in ``events`` that reached the peak, -1 if nothing rose above
    ``before``. ``alive_at_peak``: the blocks that make up the peak, largest first. ``otherwise``:
    operators of the step whose gradients autograd computes in another way, and with other bytes,
    while it is watched: see :func:`measure`. ``doubtful``: operators that a simulated step met and
    whose simulation is known to be inexact; what is wrong with each stands in
    ``course_lib.memory.kernels.KNOWN_DIFFERENCES``. ``uncounted``: operators that multiply
    matrices, or may, and that ``flops`` leaves out for want of a formula.
    """

    peak: int
    at_peak: dict[Role, int]
    peak_phase: Phase
    kept: dict[Role, int]
    before: dict[Role, int]
    flops: int
    source: str
    peak_index: int
    alive_at_peak: tuple[MemoryBlock, ...] = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)
    otherwise: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()

    def peak_of(self, *roles: Role) -> int:
        """The highest total of these roles alone, in bytes; it may fall elsewhere than the peak."""
        total = peak = sum(size for role, size in self.before.items() if role in roles)
        for event in self.events:
            if event.role in roles:
                total += event.size
                peak = max(peak, total)
        return peak

    def peak_without(self, *roles: Role) -> int:
        """:meth:`peak_of` everything but ``roles``.

        Without workspace, it is the same on every machine: how much workspace an operator takes
        depends on the CPU's instructions and the number of threads.
        """
        return self.peak_of(*(role for role in Role if role not in roles))

    def kept_for_backward(self) -> int:
        """What "kept" means throughout: bytes that the forward pass left for the backward pass.

        Activations, checkpoints and, where they can be seen, random states, at the end of the
        forward pass. Not what exists anyway, nor what is on its way, as the loss is.
        """
        return sum(self.kept.get(role, 0) for role in KEPT)

    def plot(self) -> Figure:
        """Memory over time, stacked by role, the peak marked."""
        from ..figures.timeline import timeline

        return timeline(self)
