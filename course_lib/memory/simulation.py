"""Tensors that have shapes and costs but no bytes, so that nothing is too large to try.

``with simulated():`` makes them, ``simulated_copy(model, inputs)`` turns a real model and its
inputs into them. ``FakeTensorMode`` of PyTorch does the work; here it learns what a training step
asks of it beyond that: :mod:`values` of masks and indices, initialisers that look at what they
draw, ``.to(dtype)``, and layouts as the real :mod:`kernels` give them.
"""

from __future__ import annotations

import contextlib
import copy
import linecache
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorConverter,
    FakeTensorMode,
)
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from ..language import text
from .kernels import REPLACEMENTS, corrected
from .values import Follower, copy_values, give_values, known_arguments, really, values_of

__all__ = ["ValueUnknown", "simulated", "simulated_copy"]

running = threading.Lock()  # held while something is measured


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Make tensors that have shapes and costs but no bytes (``FakeTensorMode``).

    Models and steps of any size then need next to no memory. What a model computes has no values:
    ``loss.item()`` or ``if loss < 1`` raises :class:`ValueUnknown`. Masks, positions and indices
    do, as long as they follow from numbers in the code (``torch.ones``, ``arange``, ``randint``)
    or were copied by :func:`simulated_copy`, so that whoever looks at them takes the same path as
    in a real run. ``RuntimeError`` for a device that this build of torch lacks.
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
    """Let what the body makes belong to ``simulation``, a new one or that of some tensor."""
    with simulation, _Asking(), _patches:
        try:
            yield
        except RuntimeError as error:
            if "UninitializedParameter" not in str(error):
                raise
            raise RuntimeError(_lazy_module()) from error


class ValueUnknown(DataDependentOutputException):
    """Something asked for a value that a simulated tensor does not have."""

    def __init__(self, func: Any):
        super().__init__(func)
        self.args = (_value_asked(getattr(func, "_overloadpacket", func)),)


class Simulation(FakeTensorMode):
    """Fake tensors, on devices that are there: others abort the process in some of torch's code.

    Here, below everything, a device is known however it was asked for.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.fake_tensor_converter = _Converter(copy_data=False, export=False)
        self._follower = Follower()
        self._inside = False  # of an operator that torch takes apart into others

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # FakeTensorMode has that wrapper already; another would only cost time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _patches.apply()
        if "device" in kwargs:
            _check_device(kwargs["device"])
        if self._inside or not isinstance(func, torch._ops.OpOverload):
            return self._simulate(func, types, args, kwargs)
        known = known_arguments(func, args, kwargs) if func.namespace == "aten" else None
        self._inside = True
        try:
            result = self._simulate(func, types, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return self._from_values(func, args, kwargs, known)
        finally:
            self._inside = False
        if result is not NotImplemented and func.namespace in ("aten", "prims"):
            self._follower.follow(func, args, kwargs, known, result)
        return result

    def _simulate(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        replacement = REPLACEMENTS.get(func)
        if replacement is not None:
            with self:
                return replacement(*args, **kwargs)
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
            if result is NotImplemented:
                return result
            return corrected(func, args, kwargs, result, self)
        except AssertionError as error:
            if "Mixing fake modes" in str(error):
                raise RuntimeError(_of_another_simulation(func)) from error
            if "convert all Tensors to FakeTensors" not in str(error):
                raise
            raise RuntimeError(_real_among_simulated(func)) from error

    def _from_values(
        self, func: Any, args: tuple, kwargs: dict[str, Any], known: tuple | None
    ) -> Any:
        """The result of an operator that needs values to know even the shape of its result."""
        if known is not None:
            real = self._follower.compute(func, known)
            return torch.utils._pytree.tree_map_only(Tensor, self.twin_of, real)
        if func is _INDEX:
            indices = [self._places(index) for index in args[1]]
            places = [place for some in indices if some is not None for place in some]
            if None not in indices:
                with self:
                    return func(args[0], places)
        if func is _MASKED_SELECT:
            mask = values_of(args[1])
            if mask is not None:
                count = int(mask.expand(torch.broadcast_shapes(args[0].shape, mask.shape)).sum())
                with self:
                    return args[0].new_empty(count)
        if func in _CTC_LOSS:  # (log probabilities, targets, lengths of inputs, of targets, …)
            values = values_of(args[3]) if isinstance(args[3], Tensor) else args[3]
            if values is not None:
                lengths = [int(length) for length in values]
                steps, batch = args[0].shape[0], len(lengths)
                with self:
                    loss = args[0].new_empty(batch)
                    return loss, args[0].new_empty(batch, steps, 2 * max(lengths) + 1)
        raise ValueUnknown(func) from None

    def _places(self, index: Any) -> list[Any] | None:
        """An index of truth values as indices of whole numbers; None if its values are unknown."""
        if not isinstance(index, Tensor) or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        values = values_of(index)
        if values is None:
            return None
        return [self.twin_of(places) for places in values.nonzero(as_tuple=True)]

    def twin_of(self, real: Tensor) -> Tensor:
        """A simulated tensor with the layout of a real one, and with its values if worth it."""
        device = "cpu" if real.device.type == "meta" else real.device
        with self:
            twin = torch.empty_strided(real.size(), real.stride(), dtype=real.dtype, device=device)
        give_values(twin, real)
        return twin


class _Converter(FakeTensorConverter):
    """Remembers no result by the tensor that it came from.

    That memory is a weak reference, here and there, with which a parameter cannot change its dtype.
    """

    def from_meta_and_device(
        self, fake_mode: FakeTensorMode, t: Tensor, device: torch.device, *others: Any, **more: Any
    ) -> FakeTensor:
        return FakeTensor(fake_mode, t, device, *others, **more)


_CTC_LOSS = {torch.ops.aten._ctc_loss.default, torch.ops.aten._ctc_loss.Tensor}
_INDEX = torch.ops.aten.index.Tensor
_MASKED_SELECT = torch.ops.aten.masked_select.default


# --- what does not go through operators ---------------------------------------------------------


class _Asking(TorchFunctionMode):
    """Sees what is asked of simulated tensors before anything is dispatched.

    ``x.to("cuda")`` and ``x.cuda()`` fail before; ``x.tolist()`` and NumPy ask for values.
    """

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
        elif func is Tensor.__deepcopy__ and isinstance(args[0], FakeTensor) and args[0].is_leaf:
            return _deep_copy(*args)
        elif name in ("tolist", "numpy", "__array__") and isinstance(args[0], FakeTensor):
            values = values_of(args[0])
            if values is None:
                raise ValueUnknown(name)
            with really():
                return func(values.clone(), *args[1:], **kwargs)
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if "its data is not allocated yet" not in str(error):
                raise
            raise ValueUnknown(name) from error  # code of PyTorch's that reads lengths, for example


def _deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """As ``Tensor.__deepcopy__``, which would copy the storage, whose device is another one.

    Tensors that share their storage go on sharing it; values that are known are copied.
    """
    if id(tensor) in memo:
        return memo[id(tensor)]
    storage = tensor.untyped_storage()
    if storage._cdata not in memo:
        with torch.no_grad():
            whole = tensor.as_strided((storage.nbytes() // tensor.itemsize,), (1,), 0)
            memo[storage._cdata] = whole.clone()
    whole = memo[storage._cdata]
    if whole.dtype != tensor.dtype:
        whole = whole.view(tensor.dtype)
    copied = whole.as_strided(tensor.shape, tensor.stride(), int(tensor.storage_offset()))
    copied = copied.detach().requires_grad_(tensor.requires_grad)
    memo[id(tensor)] = copied
    if tensor.grad is not None:
        copied.grad = _deep_copy(tensor.grad, memo)
    return copied


def _of_another_simulation(func: Any) -> str:
    name = str(func._overloadpacket)
    return text(
        zh=f"{name} 收到了另一个 with simulated(): 里建的张量。请在同一个 with 里建好模型和输入，"
        "也在那里用；或者出了 with 再调用 measure，它会接着用张量自己的那一个。",
        en=f"{name} was given tensors of another `with simulated():`. Build the model and its "
        "inputs in one block and use them there, or call measure after the block: it goes on with "
        "the simulation that the tensors belong to.",
    )


def _lazy_module() -> str:
    return text(
        zh="simulated() 里面建不了 nn.LazyLinear 这类懒模块：它们的参数要等第一次前向才有形状。"
        "请写明大小，或者先真的跑一次前向，再用 simulated_copy 换成模拟的。",
        en="Lazy modules such as nn.LazyLinear cannot be built inside simulated(): their "
        "parameters have no shape before the first forward pass. Give the sizes, or run the model "
        "forward once for real and make it simulated with simulated_copy.",
    )


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


# --- what looks for itself whether tensors are real ----------------------------------------------


class _Patches:
    """Functions that treat fake tensors apart, where that makes a simulated step another one.

    They are in place while any simulation is on; a library's as soon as it has been imported.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._originals: dict[tuple[str, str], Any] = {}
        self.caches: list[Any] = []  # of functions, that hold simulated tensors

    def __enter__(self) -> None:
        self._depth += 1
        self.apply()

    def __exit__(self, *exception: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            for (module, name), original in self._originals.items():
                setattr(sys.modules[module], name, original)
            self._originals.clear()
            for cache in self.caches:
                cache.cache_clear()
            self.caches.clear()

    def apply(self) -> None:
        if self._depth == 0 or len(self._originals) == len(_REPLACED):
            return
        if len(self._originals) == _TORCHS and "transformers" not in sys.modules:
            return  # asked for each operator
        for place, patch in _REPLACED.items():
            if place not in self._originals and place[0] in sys.modules:
                module = sys.modules[place[0]]
                original = getattr(module, place[1], None)
                if original is not None:  # else it is still being imported, or another version
                    self._originals[place] = original
                    setattr(module, place[1], patch(original))


def _swapping(original: Callable) -> Callable:
    """``model.to(dtype)`` gives a real parameter other data, but swaps a fake one with another.

    That fails while anything else holds the parameter: a graph, a weak reference.
    """

    def swap_tensors(one: Tensor, other: Tensor) -> None:
        if isinstance(one, FakeTensor) and isinstance(other, FakeTensor):
            one.data, one.constant = other.data, other.constant
        else:
            original(one, other)

    return swap_tensors


def _initialising(original: Callable) -> Callable:
    """``trunc_normal_`` draws again and again until no number lies outside of its bounds."""

    def _no_grad_trunc_normal_(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(tensor, FakeTensor):
            with torch.no_grad():
                return tensor.normal_()
        return original(tensor, *args, **kwargs)

    return _no_grad_trunc_normal_


def _looking(original: Callable) -> Callable:
    """Transformers looks neither at a fake mask nor at the shapes of fake images.

    It then builds masks, and interpolates position embeddings, that a real run goes without.
    """

    def is_fake_tensor(x: Any) -> bool:
        if not original(x) or not isinstance(x.fake_mode, Simulation):
            return original(x)
        if values_of(x) is not None:
            return False
        asker = sys._getframe(2)  # 1: is_tracing
        looks_at_values = asker.f_globals.get("__name__") == "transformers.masking_utils"
        if looks_at_values:
            _warn_of_mask()
        return looks_at_values

    return is_fake_tensor


def _caching_apart(original: Callable) -> Callable:
    """Transformers keeps some tables for later; a simulated one must not get into a real run."""

    def is_torchdynamo_compiling() -> bool:
        cache = sys._getframe(1).f_locals.get("func_with_cache")
        if cache is not None and cache not in _patches.caches:
            _patches.caches.append(cache)
            cache.cache_clear()
        return original()

    return is_torchdynamo_compiling


_REPLACED: dict[tuple[str, str], Callable[[Callable], Callable]] = {
    ("torch.utils", "swap_tensors"): _swapping,
    ("torch.nn.init", "_no_grad_trunc_normal_"): _initialising,
    ("transformers.utils.import_utils", "is_fake_tensor"): _looking,
    ("transformers.pytorch_utils", "is_torchdynamo_compiling"): _caching_apart,
}
_TORCHS = 2  # the first of these
_patches = _Patches()


# --- copies -------------------------------------------------------------------------------------

M = TypeVar("M", bound=nn.Module)


def simulated_copy(model: M, inputs: Any = ()) -> tuple[M, Any]:
    """A simulated model and simulated inputs, made of a real (or ``meta``) model and its inputs.

    Call it inside ``with simulated():``. ``inputs``: a tensor or whatever holds tensors: tuples,
    lists, dicts, dataclasses, a library's outputs, other objects; what is no tensor is copied.
    Neither ``model`` nor ``inputs`` is changed, and their memory is not copied.

    Everything that a step can see is as it was: tied weights and shared storage, strides, dtypes,
    ``requires_grad``, gradients, buffers, training flags, hooks, parametrizations, tensors that a
    module holds as plain attributes. The values of inputs and buffers are known where they are
    masks, positions or indices, or few. A tensor with a graph becomes one without. Inputs that
    are simulated already stay as they are. The optimizer is made anew, for the copy's parameters.

    Raises ``RuntimeError`` outside of ``simulated()``, ``TypeError`` if ``model`` is no module or
    something in it or in ``inputs`` cannot be copied.
    """
    simulation = detect_fake_mode()
    if not isinstance(simulation, Simulation):
        raise RuntimeError(
            text(
                zh="simulated_copy 要在 with simulated(): 里面调用。",
                en="Call simulated_copy inside `with simulated():`.",
            )
        )
    if not isinstance(model, nn.Module):
        raise TypeError(
            text(
                zh=f"model 必须是 nn.Module，现在是 {type(model).__name__}。",
                en=f"model must be an nn.Module, not {type(model).__name__}.",
            )
        )
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(parameter):
            raise TypeError(
                text(
                    zh=f"{name} 还没有形状（Lazy 模块）：先用真实的输入把 model 运行一次。",
                    en=f"{name} has no shape yet (a lazy module): run the model once, for real.",
                )
            )
    memo: dict[int, Any] = {}
    copying = _Copying(simulation, memo)
    try:
        with copying:
            copying.tensors_of(model)
            twin = copy.deepcopy(model, memo)
            copying.keeps_simulated = True
            return twin, copy.deepcopy(inputs, memo)
    except (TypeError, RuntimeError, AttributeError) as error:
        raise TypeError(
            text(
                zh=f"model 或 inputs 里有不能复制的东西：{error}",
                en=f"Something in model or in inputs cannot be copied: {error}",
            )
        ) from error


class _Copying(TorchFunctionMode):
    """``copy.deepcopy`` in which every tensor's copy is a simulated one."""

    def __init__(self, simulation: Simulation, memo: dict[int, Any]):
        super().__init__()
        self.simulation, self.memo = simulation, memo
        self.keeps_simulated = False
        self._storages: dict[int, torch.UntypedStorage] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self.simulate(tensor)
            return memo[id(tensor)]
        if func is torch._C.TensorBase.clone and not isinstance(args[0], FakeTensor):
            return self.simulate(args[0])  # of a parameter that no module has registered
        return func(*args, **(kwargs or {}))

    def tensors_of(self, model: nn.Module) -> None:
        """Make the copies of all tensors that the modules hold, parameters and others."""
        for module in model.modules():
            for value in vars(module).values():
                for leaf in torch.utils._pytree.tree_leaves(value):
                    if isinstance(leaf, Tensor) and id(leaf) not in self.memo:
                        self.memo[id(leaf)] = self.simulate(leaf)

    def simulate(self, tensor: Tensor) -> Tensor:
        """The simulated tensor in place of this one, its gradient included."""
        ours = isinstance(tensor, FakeTensor) and tensor.fake_mode is self.simulation
        if ours and self.keeps_simulated:
            return tensor
        with torch.no_grad():
            if type(tensor) in _PLAIN and tensor.layout is torch.strided:
                twin = self._strided(tensor)
            elif type(tensor) in _PLAIN and tensor.layout is torch.sparse_coo:
                with _disable_current_modes():
                    parts = (tensor._indices(), tensor._values())
                indices, numbers = (self._strided(part) for part in parts)
                twin = torch.sparse_coo_tensor(
                    indices,
                    numbers,
                    tensor.shape,
                    is_coalesced=tensor.is_coalesced(),
                    check_invariants=False,
                )
            else:  # wrappers and other layouts: torch knows what they are made of
                with _disable_current_modes():
                    twin = self.simulation.from_tensor(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            twin = nn.Parameter(twin, tensor.requires_grad)
        else:
            twin.requires_grad_(tensor.requires_grad)
        for name, value in vars(tensor).items():
            if name not in vars(twin):
                setattr(twin, name, copy.deepcopy(value, self.memo))
        if tensor.is_leaf and tensor.grad is not None:
            twin.grad = self.simulate(tensor.grad)
        return twin

    def _strided(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        device = "cpu" if tensor.device.type == "meta" else tensor.device
        if storage._cdata not in self._storages:
            flat = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device)
            self._storages[storage._cdata] = flat.untyped_storage()
            if not isinstance(tensor, nn.Parameter):
                copy_values(tensor, flat)
        place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        empty = torch.empty(0, dtype=tensor.dtype, device=device)
        return empty.set_(self._storages[storage._cdata], *place)


_PLAIN = {Tensor, nn.Parameter, FakeTensor}


# --- words --------------------------------------------------------------------------------------


def _real_among_simulated(func: Any) -> str:
    name = str(func._overloadpacket)
    return text(
        zh=f"在 simulated() 里面，{name} 收到了真实张量。模型、输入和优化器都要在 "
        "with simulated(): 里面新建；已经建好的，用 simulated_copy(model, inputs) 换成模拟的。",
        en=f"{name} was given real tensors under simulated(): build the model, its inputs and the "
        "optimizer inside the `with simulated():` too, or turn those that you have into simulated "
        "ones with simulated_copy(model, inputs).",
    )


def _value_asked(what: Any) -> str:
    line = asking_line()
    return text(
        zh=f"{line} 要看一个值（{what}），而模拟张量算出来的结果没有值。"
        "如果是在建模型：在 simulated() 外面建好，再到里面用 "
        "model, inputs = simulated_copy(model, inputs) 换成模拟的，掩码和下标的值会一起带过去。"
        "如果这一步本身要看算出来的值，就只能用真实张量测，模型可以小一些。",
        en=f"{line} asks for a value ({what}), and what simulated tensors compute has none. If a "
        "model is being built here: build it outside of simulated(), and inside take "
        "model, inputs = simulated_copy(model, inputs), which brings the values of masks and "
        "indices along. If the step itself depends on what it computes, measure it with real "
        "tensors, of a smaller model perhaps.",
    )


def _warn_of_mask() -> None:
    warnings.warn(
        text(
            zh="Transformers 要看注意力掩码里的值，来决定要不要真的建掩码；这个掩码的值在 "
            "simulated() 里不知道，所以按要建来算，结果可能比真实的一步多。掩码用 torch.ones "
            "之类直接写出来，或用 simulated_copy 从真实的复制过来，就知道了。",
            en="Transformers looks at the values of the attention mask to see whether it is needed "
            "at all. Those of this one are unknown under simulated(), so it is built, and the step "
            "may need more than a real one. Write the mask out (torch.ones, say), or copy a real "
            "one with simulated_copy, and its values are known.",
        ),
        stacklevel=5,
    )


def asking_line() -> str:
    """The line that is running: a library's, then the learner's in brackets, or the latter."""
    frame = sys._getframe(1)
    lines: list[str] = []
    while frame is not None and len(lines) < 2:
        file = frame.f_code.co_filename
        library = "site-packages" in file or "dist-packages" in file
        if not file.startswith(_NOT_ASKING) and not (library and lines):
            lines.append(_described(file, frame.f_lineno))
            if not library:
                break
        frame = frame.f_back  # type: ignore[assignment]
    return lines[0] + (f" ({lines[1]})" if len(lines) > 1 else "") if lines else "?"


_NOT_ASKING = (
    str(Path(torch.__file__).parent),
    contextlib.__file__,
    str(Path(__file__).parent),
    "<",
)


def _described(file: str, line: int) -> str:
    path = Path(file)
    where = "cell" if "ipykernel" in path.parent.name else path.name
    return f"{where}:{line}  {linecache.getline(file, line).strip()}".rstrip()
