"""Two pools of memory, the device's and the host's: what offloading moves, and where it then lies.

Where there is a GPU, tensors that are moved to the CPU leave its allocator, and only their own
count is new here. Where there is none, this machine plays both: its memory is the device's, and
whatever the step moves to the CPU is copied, as it would be, into memory that plays the host's. So
also for simulated tensors, because torch aborts the process when a simulated CUDA tensor meets the
engine of a build without CUDA.

Host memory is a role, ``offloaded``, and no second set of roles: a block keeps one role for life,
everything that is moved is moved for the same purpose, and a trace stays one stream whose roles
add up to its total. Which pool a block is in follows from its role.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .checks import check_step
from .log import Held
from .measurement import Optimizers, measure
from .recorder import Recorder
from .trace import MemoryTrace, Role


@dataclass(frozen=True)
class Pools:
    """What one step did with the device's memory and with the host's. All sizes are bytes.

    ``device_peak``, ``host_peak``: each pool's own highest total; they may fall at different
    moments. ``at_device_peak``: the roles that make up the former. ``to_host``, ``to_device``: how
    much was moved, a tensor that is moved twice counted twice. ``trace``: both pools in one, except
    on a GPU, where it holds the device's alone.
    """

    device_peak: int
    host_peak: int
    at_device_peak: dict[Role, int]
    to_host: int
    to_device: int
    trace: MemoryTrace

    @property
    def moved(self) -> int:
        """Bytes that crossed between the pools, in either direction."""
        return self.to_host + self.to_device


def measure_pools(
    step: Callable[[], Any],
    model: nn.Module | None = None,
    optimizer: Optimizers = None,
    inputs: Any = (),
) -> Pools:
    """Run ``step()`` once, as :func:`measure` does, and tell the device's bytes from the host's.

    Moved to the host is what the step moves there by ``.cpu()``, by ``.pin_memory()``, or by
    copying into a tensor made with ``pin_memory=…``, as ``torch.autograd.graph.save_on_cpu`` and
    ``offload_wrapper`` do; moved back, what it then sends ``.to(device)``. On a machine without a
    GPU, these copies are made as they would be there, so that bytes and results are those of a
    device; ``.to("cpu")`` of a tensor that is on the device is no move there, because ``"cpu"`` is
    what the device is called. Raises what :func:`measure` raises.
    """
    check_step(step)
    host = _Host()

    def moving() -> None:
        with host.watching():
            step()

    trace = measure(moving, model, optimizer, inputs)
    device_peak, at_device_peak = _peak_of_device(trace)
    return Pools(device_peak, host.peak, at_device_peak, host.to_host, host.to_device, trace)


def _peak_of_device(trace: MemoryTrace) -> tuple[int, dict[Role, int]]:
    """The highest total of all roles but ``offloaded``, and what it is made of."""
    by_role: dict[Role, int] = dict(trace.before)
    by_role.pop(Role.OFFLOADED, None)
    total = peak = sum(by_role.values())
    at_peak = dict(by_role)
    for event in trace.events:
        if event.role is Role.OFFLOADED:
            continue
        by_role[event.role] += event.size
        total += event.size
        if total > peak:
            peak, at_peak = total, dict(by_role)
    return peak, at_peak


class _Host:
    """Sees what Python code moves between the pools, and does it where there is only one.

    ``peak``: bytes. A storage belongs to the host from its first byte to its last.
    """

    def __init__(self) -> None:
        self.peak = self.to_host = self.to_device = 0
        self._inside = False  # of one of its methods
        self._alive: dict[int, tuple[int, weakref.ref]] = {}  # the storage's identity -> its bytes

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Meanwhile the methods that move tensors are those of this object.

        A mode for torch's functions would not do: it is off while autograd packs and unpacks what
        an operator saves, since the operator, or ``backward()``, is itself within the mode.
        """
        kind: Any = Tensor
        methods: dict[str, Callable] = {
            "cpu": self._moved_away,
            "pin_memory": self._pinned,
            "to": self._moved_back,
            "copy_": self._copied,
        }
        inherited = {name for name in methods if name not in vars(kind)}
        originals = {name: getattr(kind, name) for name in methods}
        empty = torch.empty
        for name, method in methods.items():
            setattr(kind, name, self._once(method, originals[name]))
        torch.empty = self._once(self._made, empty)
        try:
            yield
        finally:
            torch.empty = empty
            for name, original in originals.items():
                if name in inherited:
                    delattr(kind, name)
                else:
                    setattr(kind, name, original)

    def _once(self, method: Callable, original: Callable) -> Callable:
        """``method(original, …)``, and the original alone where it is called from inside of one.

        A mode for torch's functions, as a simulation has, looks the function up by its name again.
        """

        def called(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(*args, **kwargs)
            self._inside = True
            try:
                return method(original, *args, **kwargs)
            finally:
                self._inside = False

        return called

    def _moved_away(self, move: Callable, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._is_here(tensor):
            return tensor
        host = _copy(tensor) if tensor.device.type == "cpu" else move(tensor, *args, **kwargs)
        self.to_host += tensor.nbytes
        self._takes_in(host)
        return host

    def _pinned(self, pin: Callable, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.cuda.is_available():
            return pin(tensor, *args, **kwargs)
        return self._moved_away(pin, tensor)

    def _moved_back(self, to: Callable, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = to(tensor, *args, **kwargs)
        if not (self._is_here(tensor) and _is_device(kwargs.get("device", args and args[0]))):
            return result
        if result.device.type == "cpu":
            result = _copy(result)
        self.to_device += tensor.nbytes
        _tell(Role.ACTIVATION, result)  # which it is again
        return result

    def _copied(
        self, copy: Callable, into: Tensor, out_of: Tensor, *more: Any, **kwargs: Any
    ) -> Tensor:
        if self._is_here(into) and not self._is_here(out_of):
            self.to_host += out_of.nbytes
        elif self._is_here(out_of) and not self._is_here(into):
            self.to_device += out_of.nbytes
        return copy(into, out_of, *more, **kwargs)

    def _made(self, empty: Callable, *args: Any, **kwargs: Any) -> Tensor:
        # Operators' decompositions ask for memory that is not pinned, on a device that they name.
        pinned = kwargs.get("pin_memory")
        if pinned is None or (not pinned and "device" in kwargs):
            return empty(*args, **kwargs)
        if not torch.cuda.is_available():  # else it would be refused
            del kwargs["pin_memory"]
        host = empty(*args, **kwargs)
        self._takes_in(host)
        return host

    def _is_here(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata in self._alive

    def _takes_in(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        alive, identity = self._alive, storage._cdata

        def gone(_: weakref.ref) -> None:
            alive.pop(identity, None)

        alive[identity] = storage.nbytes(), weakref.ref(storage, gone)
        self.peak = max(self.peak, sum(size for size, _ in alive.values()))
        _tell(Role.OFFLOADED, tensor)


def _is_device(given: Any) -> bool:
    return isinstance(given, (str, torch.device))


def _copy(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.clone()


def _tell(role: Role, tensor: Tensor) -> None:
    """Have whoever records the step note what the tensor's memory is for."""
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, Recorder):
            mode.note(Held(role, (mode.source.address(tensor),)))
