"""The checker of lesson 06's hooks: activations move, weights and small tensors stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from ...figures.words import size_text
from ...memory.pools import Pools, measure_pools
from ...notebook.checking import Answer, Words, Wrong, briefly, judged

TOKENS, WIDTH = 512, 32
LEAST = 16_384  # bytes: LayerNorm's statistics are smaller, activations and weights larger
Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


class _Block(nn.Module):
    """Query and value from slices of one weight, then an MLP: (tokens, width) → the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.both = nn.Parameter(torch.randn(8 * WIDTH, WIDTH) * WIDTH**-0.5)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        gate, value = (functional.linear(h, weight) for weight in self.both.chunk(2))
        return x + self.down(gate.sigmoid() * value)


@judged
def check_offload(answer: Callable[[nn.Module, int], Any]) -> Words:
    """Check ``answer(model, least)`` → ``(pack, unpack)`` for ``saved_tensors_hooks``.

    Judged: the gradients, bit for bit; that every saved tensor of at least ``least`` bytes is moved
    to the host, but no parameter, nor a view of one; and that it is moved back.
    """
    ask = Answer(answer)
    _, plain = _run(lambda model: None)
    found, gradients = _run(lambda model: _hooks(ask, model))
    best, _ = _run(lambda model: offload(model, LEAST))
    everything, _ = _run(lambda model: (lambda t: t.cpu(), lambda t: t.to("cpu")))
    for name, gradient in plain.items():
        if not torch.equal(gradient, gradients[name]):
            off = float((gradient - gradients[name]).abs().max() / gradient.abs().max())
            raise Wrong(
                f"{name} 的梯度变了，最多差最大值的 {off:.1e}：unpack 要交还 pack 收到的那些数，"
                "形状和 dtype 都一样。",
                f"The gradient of {name} has changed, by up to {off:.1e} of its largest number: "
                "unpack has to give back the very numbers that pack was given, of the same shape "
                "and dtype.",
            )
    _check_moved(found, best, everything)
    return (
        f"梯度逐位相同；{size_text(found.to_host)} 的激活值搬到主机又搬回来，权重和小张量没有动。",
        f"The gradients are the same bit for bit; {size_text(found.to_host)} of activations go to "
        "the host and come back, weights and small tensors stay.",
    )


def offload(model: nn.Module, least: int) -> Hooks:
    """The reference: a view of a parameter is known by its storage."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Any:
        if tensor.untyped_storage().data_ptr() in weights or tensor.nbytes < least:
            return tensor
        return tensor.device, tensor.cpu()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, tensor = packed
        return tensor.to(device)

    return pack, unpack


def _run(hooks_for: Callable[[nn.Module], Hooks | None]) -> tuple[Pools, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, x = nn.Sequential(_Block(), _Block()), torch.randn(TOKENS, WIDTH)
    hooks = hooks_for(model)

    def step() -> None:
        if hooks is None:
            loss = model(x).square().mean()
        else:
            with saved_tensors_hooks(*hooks):
                loss = model(x).square().mean()
        loss.backward()

    pools = measure_pools(step, model, inputs=x)
    return pools, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _hooks(ask: Answer, model: nn.Module) -> Hooks:
    made = ask(model, LEAST)
    if made is None:
        raise ask.nothing(model, LEAST)
    if not (isinstance(made, (tuple, list)) and len(made) == 2 and all(map(callable, made))):
        raise Wrong(
            f"应返回 (pack, unpack) 两个函数，得到的是 {briefly(made)}。",
            f"expected two functions, (pack, unpack), got {briefly(made)}.",
        )
    return Answer(made[0]), Answer(made[1])


def _check_moved(found: Pools, best: Pools, everything: Pools) -> None:
    sizes = f"{found.to_host:,}", f"{best.to_host:,}"
    zh = f"搬到主机的有 {sizes[0]} 字节，应当是 {sizes[1]}。"
    en = f"{sizes[0]} bytes go to the host, {sizes[1]} should."
    if not found.to_host:
        raise Wrong(
            f"{zh}什么也没有搬：pack 里要对激活值调用 .cpu()。",
            f"{en} Nothing is moved: in pack, call .cpu() of the activations.",
        )
    if found.to_host == everything.to_host:
        raise Wrong(
            f"{zh}权重和小张量也搬走了：保存下来的权重多半是视图（转置、切片），不是 Parameter "
            "本身，要靠底下的 storage 来认。",
            f"{en} Weights and small tensors are moved as well. A weight is mostly saved as a view "
            "(transposed, sliced), not as the Parameter itself: know it by its storage.",
        )
    small = _small_bytes()
    if found.to_host == best.to_host + small:
        raise Wrong(
            f"{zh}小于 least 的也搬了：每次搬运都有固定的开销，小张量不值得。",
            f"{en} Tensors smaller than least are moved as well: each copy has its overhead, which "
            "small ones are not worth.",
        )
    if found.to_host > best.to_host:
        raise Wrong(
            f"{zh}多出来的是权重：保存下来的是 Parameter 的转置或切片，is、isinstance 和 "
            "data_ptr() 都认不出全部，storage 认得出。",
            f"{en} The rest are weights. What is saved is a Parameter's transpose or slice, which "
            "neither `is`, isinstance nor data_ptr() always tells; the storage does.",
        )
    if found.to_host < best.to_host:
        raise Wrong(
            f"{zh}有激活值留在了设备上：不小于 least 的都要搬，视图也要。",
            f"{en} Some activations stay on the device: all of at least `least` bytes have to go, "
            "views too.",
        )
    if found.to_device != found.to_host:
        raise Wrong(
            f"搬走 {found.to_host:,} 字节，只搬回 {found.to_device:,}：在 GPU 上，反向传播不能拿"
            "主机上的张量来算，unpack 要用 .to(device)。",
            f"{found.to_host:,} bytes go to the host and {found.to_device:,} come back: on a GPU "
            "the backward pass cannot compute with a tensor of the host; unpack needs .to(device).",
        )


def _small_bytes() -> int:
    """Bytes of the saved tensors that are no parameters and smaller than ``LEAST``."""
    with_small, _ = _run(lambda model: offload(model, 0))
    without, _ = _run(lambda model: offload(model, LEAST))
    return with_small.to_host - without.to_host
