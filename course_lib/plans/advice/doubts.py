"""What has to be said beside an advice's figures."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...wrapping.doubts import Doubt
from .found_blocks import already_checkpointed
from .record import Record


def others_checkpoints(model: nn.Module) -> list[str]:
    """Paths of the outermost modules that others have put checkpoints on."""
    found: list[str] = []
    for path in already_checkpointed(model, [path for path, _ in model.named_modules() if path]):
        if not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    return found


def caches(model: nn.Module) -> bool:
    """Whether a Hugging Face model's cache of keys and values is on."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    return any(getattr(config, "use_cache", False) is True for config in configs)


def doubts_of(record: Record, others: list[str], drew: bool, cached: bool) -> list[Doubt]:
    """``others``: modules with checkpoints of somebody else's. ``drew``: random numbers of Python
    or NumPy were drawn. ``cached``: ``use_cache`` is on."""
    doubts = []
    if others:
        named = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        doubts.append((
            f"{len(others)} 个模块已经有别人加的检查点（{named}）：给出的数字都包括它们在内。",
            f"Checkpoints of somebody else's are on {len(others)} of the modules ({named}): all "
            "figures include them.",
        ))  # fmt: skip
    if drew:
        doubts.append((
            "这一步抽取了 Python 或 NumPy 的随机数。要是由它们决定运行哪些层（如 LayerDrop），"
            "每一步的内存就都不一样，这里的数字只属于看到的这一步。",
            "The step drew random numbers of Python or NumPy. If they decide which layers run, as "
            "in LayerDrop, every step takes other memory, and these figures are those of the one "
            "that was watched.",
        ))  # fmt: skip
    if cached:
        doubts.append((
            "use_cache 开着：这一步留住了键和值的缓存。加检查点时会把它关掉，所以有检查点的做法实际"
            "占用的与这里说的不同。请先设 model.config.use_cache = False，再问一次。",
            "use_cache is on: the step keeps a cache of keys and values. Checkpoints switch it "
            "off, so options with checkpoints take other memory than is said here. Set "
            "model.config.use_cache = False and ask again.",
        ))  # fmt: skip
    if record.uncounted:
        named = ", ".join(record.uncounted)
        doubts.append((
            f"{named} 的运算量数不出来，没有计入。",
            f"The operations of {named} cannot be counted and are left out.",
        ))  # fmt: skip
    return doubts


def simulate_it(head: str) -> Doubt:
    """Real tensors do not get the loss in chunks as an option."""
    return (
        f"损失分块计算（{head}）要另看一遍这一步，真实的张量不看第二遍：在 simulated() 里建好"
        "模型再问，就有这种做法。",
        f"The loss in chunks ({head}) takes a second look at the step, which real tensors do not "
        "get: build the model inside of simulated() and ask again to have it among the options.",
    )


def not_in_chunks(head: str, trouble: Exception | None) -> Doubt:
    """The second look, with the loss in chunks, came to nothing."""
    if trouble is None:
        return (
            f"{head} 的结果很大，但损失不是由 cross_entropy 直接算出的，没法自动"
            "分块：请自己分块计算。",
            f"What {head} gives is large, but its loss is not taken by cross_entropy, which could "
            "be chunked from outside: compute it in checkpointed chunks yourself.",
        )
    said = f"{type(trouble).__name__}: {trouble}".split("\n")[0]
    return (
        f"没能试成损失分块计算（{head}）：这一步再运行一次时出错（{said}）。",
        f"The loss in chunks ({head}) could not be tried: the step failed when it ran once more "
        f"({said}).",
    )
