"""Tensors that have shapes and costs but no bytes, so that nothing is too large to try.

``with simulated():`` makes them; ``FakeTensorMode`` of PyTorch does the work.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from .language import text

__all__ = ["simulated"]

running = threading.Lock()  # held while something is measured


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Make tensors that have shapes and costs but no bytes (``FakeTensorMode``).

    Models and steps of any size then need next to no memory. Values do not exist, so ``.item()``
    or ``if loss < 1`` raises. ``RuntimeError`` for a device that this build of torch lacks.
    """
    if running.locked():
        raise RuntimeError(
            text(
                zh="测量已经开始，不能再换成模拟张量：请反过来，把 measure 放进 simulated() 里面。",
                en="A measurement is running already, of real tensors or of other simulated ones. "
                "Do it the other way round: measure inside simulated().",
            )
        )
    with resumed(Simulation()):
        yield


@contextlib.contextmanager
def resumed(simulation: FakeTensorMode) -> Iterator[None]:
    with simulation, _RefuseMissingDevices():
        yield


class Simulation(FakeTensorMode):
    """Fake tensors, on devices that are there: others abort the process in some of torch's code.

    Here, below everything, a device is known however it was asked for.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # FakeTensorMode has that wrapper already; another would only cost time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs and "device" in kwargs:
            _check_device(kwargs["device"])
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except AssertionError as error:
            if "convert all Tensors to FakeTensors" not in str(error):
                raise
            raise RuntimeError(_real_among_simulated(func)) from error


def _real_among_simulated(func: Any) -> str:
    name = str(func._overloadpacket)
    return text(
        zh=f"在 simulated() 里面，{name} 收到了真实张量。模型、输入和优化器都要在 "
        "with simulated(): 里面新建。",
        en=f"{name} was given real tensors under simulated(): build the model, its inputs and the "
        "optimizer inside the `with simulated():` too.",
    )


class _RefuseMissingDevices(TorchFunctionMode):
    """Refuse ``x.to("cuda")`` and ``x.cuda()``, which fail before anything is dispatched."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "to":
            for asked in (*args[1:2], kwargs.get("device")):
                if isinstance(asked, (str, torch.device)):
                    _check_device(asked)
        elif name in ("cuda", "xpu", "hpu", "mtia"):
            _check_device(name)
        return func(*args, **kwargs)


def _check_device(device: Any) -> None:
    if device is None:
        return
    kind = device.type if isinstance(device, torch.device) else torch.device(device).type
    if kind in ("cpu", "meta"):
        return
    module = getattr(torch, kind, None)
    if module is None or not module.is_available():
        raise RuntimeError(
            text(
                zh=f"这里的 torch 没有可用的 {kind} 设备。模拟张量不占内存，留在 cpu 上就行。",
                en=f"This torch has no {kind} device here. Simulated tensors take no memory: "
                "leave them on the cpu.",
            )
        )
