"""Does a checkpointed step compute the same as the plain one? The tool that finds silent faults.

``same_gradients(plain, checkpointed, x, model=model)`` runs both from one and the same start and
compares all that a training step leaves behind: outputs, gradients, weights, buffers, and the
states of the random generators.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import random
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .language import Bilingual, text
from .reach import GENERATORS, behind, copied, leaves, nodes_behind, tensors

Kind = Literal["error", "output", "gradient", "parameter", "buffer", "input", "random state"]

_KIND_ZH = {
    "output": "输出", "gradient": "梯度", "parameter": "参数", "buffer": "缓冲区",
    "input": "输入", "random state": "随机数状态",
}  # fmt: skip


class UnequalWork(ValueError):
    """The two sides cannot be compared: they do not do the same work."""


@dataclass(frozen=True)
class Difference:
    """One thing in which the checkpointed side departs from the plain one.

    ``kind``, ``name``: such as ``gradient`` of ``0.weight``. ``largest``: the largest absolute
    difference; ``scale``: the largest absolute value on the plain side; both None where numbers
    cannot say it (a gradient that is missing, an error). ``zh``, ``en``: the same in words.
    """

    kind: Kind
    name: str
    zh: str
    en: str
    largest: float | None = None
    scale: float | None = None

    @property
    def short(self) -> tuple[str, str]:
        """What differs, without numbers: (zh, en)."""
        return _titled(self.kind, self.name)


@dataclass(frozen=True)
class Agreement:
    """What :func:`same_gradients` found; true if there is no difference.

    ``differences``: in the order in which they were looked for: errors, outputs, gradients,
    parameters, buffers, inputs, random states. ``compared``: how many of each were looked at.
    ``error``: what the checkpointed side raised, if it did: a loud fault, not a silent one.
    """

    differences: tuple[Difference, ...]
    compared: dict[str, int]
    tolerance: float
    error: Exception | None = None

    def __bool__(self) -> bool:
        return not self.differences

    @property
    def first(self) -> Difference | None:
        """The first difference, None if there is none."""
        return self.differences[0] if self.differences else None

    @property
    def zh(self) -> str:
        """The verdict in Chinese."""
        if self.first is None:
            how = f"相对误差不超过 {self.tolerance:g}" if self.tolerance else "逐位相同"
            counts = "、".join(f"{n} 个{_KIND_ZH[kind]}" for kind, n in self.compared.items() if n)
            return f"✓ 相同：{counts}，{how}。"
        rest = "、".join(other.short[0] for other in self.differences[1:5])
        return f"✗ 不同：{self.first.zh}" + (f"还有：{rest}{self._more('等')}。" if rest else "")

    @property
    def en(self) -> str:
        """The verdict in English."""
        if self.first is None:
            how = f"agree within {self.tolerance:g}" if self.tolerance else "agree bit for bit"
            counts = ", ".join(
                f"{n} {kind}{'s' * (n != 1)}" for kind, n in self.compared.items() if n
            )
            return f"✓ The same: {counts} {how}."
        rest = ", ".join(other.short[1] for other in self.differences[1:5])
        return f"✗ Different: {self.first.en}" + (
            f" Also: {rest}{self._more(' and more')}." if rest else ""
        )

    def _more(self, words: str) -> str:
        return words if len(self.differences) > 5 else ""

    def __str__(self) -> str:
        return str(Bilingual(zh=self.zh, en=self.en))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return Bilingual(zh=self.zh, en=self.en)._repr_mimebundle_()


def same_gradients(
    plain: Callable[..., Any],
    checkpointed: Callable[..., Any],
    *inputs: Any,
    model: nn.Module | tuple[nn.Module, nn.Module] | None = None,
    tolerance: float = 0.0,
    seed: int = 0,
    kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Agreement:
    """Run ``plain`` and ``checkpointed`` from the same start and compare what they leave behind.

    With inputs, both are called with copies of them, ``plain(*inputs, **keywords)``, and the
    backward pass starts here from every output, weighted with fixed random numbers. Without, both
    are whole steps: functions without arguments that call ``backward()`` themselves; a result is
    compared if there is one. ``kwargs``: inputs by keyword whose names this function uses itself,
    such as ``kwargs={"seed": 3}``; all others are simply written out.

    ``model``: the module that holds what both use. It need not be named where both *are* modules;
    two different ones, or a pair in ``model``, are matched by name, and the second gets the
    first's values. Wrappers around a module or around its parts are seen through: those of
    ``torch.compile``, data-parallel and sharded training, checkpoints, averaged weights, or one's
    own without parameters. Each side starts from the same parameters, buffers, inputs, training
    flags and random states (torch, Python, NumPy, and generators that are inputs or that the
    model or a side holds on to; ``seed``), without gradients; afterwards all of these are as they
    were. ``tolerance``: relative to the largest value of each tensor; 0 asks for equal
    bits.

    Raises ``UnequalWork`` if the sides have different parameters, output shapes or dtypes, or if
    plain yields no gradient to compare with; ``TypeError`` if plain uses trainable tensors that are
    neither inputs nor in the model, or if the model is simulated.
    """
    given = inputs, {**keywords, **_checked_mapping(kwargs)}
    left, right = _matched(*_sides(model, plain, checkpointed))
    _check_values_exist(left.model, given)
    _check_alike(left, right)
    start = _Start(_values(left), left.flags(), _generators(left.model, plain), given, seed)
    with _random_states_restored():
        generators = _generators_restored(left, right, plain, checkpointed)
        with _restored(left.model), generators:
            first = _run(plain, left, start)
            _check_all_compared(first, left.model, only_parameters=not start.has_inputs)
        generators = _generators_restored(left, right, plain, checkpointed)
        with _restored(right.model), generators:
            second = _run(checkpointed, right, start)
    if first.error is None and not any(g is not None for _, g in first.gradients):
        raise UnequalWork(
            text(
                zh="plain 没有产生任何梯度，没有可比的东西：输入或参数里要有需要梯度的，"
                "完整的一步要自己调用 backward()。",
                en="plain yields no gradient, so there is nothing to compare: some input or "
                "parameter must require one, and a whole step must call backward() itself.",
            )
        )
    if second.error is not None or first.error is not None:
        differences = _compare_errors(first.error, second.error, start.has_inputs)
    else:
        differences = _compare(first, second, tolerance)
    compared = {
        "output": len(first.outputs),
        "gradient": len(first.gradients),
        "buffer": len(first.buffers),
        "random state": len(first.random_states),
    }
    return Agreement(tuple(differences), compared, tolerance, second.error)


# --- one run ------------------------------------------------------------------------------------


@dataclass
class _Start:
    """What both sides begin with. ``values``: parameters and buffers, by name."""

    values: dict[str, Tensor]
    flags: dict[str, bool]
    generators: dict[str, Any]
    inputs: tuple[tuple, dict[str, Any]]
    seed: int

    def __post_init__(self) -> None:
        self.generators = {name: _state(one) for name, one in self.generators.items()}

    @property
    def has_inputs(self) -> bool:
        return any(self.inputs)


@dataclass
class _Run:
    """What one side left behind."""

    error: Exception | None
    outputs: list[tuple[str, Tensor]]
    gradients: list[tuple[str, Tensor | None]]
    parameters: list[tuple[str, Tensor]]
    buffers: list[tuple[str, Tensor]]
    inputs: list[tuple[str, Tensor]]
    random_states: list[tuple[str, Any]]
    graph: list[Any]
    leaves: list[Tensor]


def _run(function: Callable[..., Any], side: _Side, start: _Start) -> _Run:
    _load(side, start.values)
    for name, module in side.modules():
        module.training = start.flags.get(name, module.training)
    for parameter in side.model.parameters():
        parameter.grad = None
    torch.manual_seed(start.seed)
    random.seed(start.seed)
    numpy.random.seed(start.seed)
    generators = _generators(side.model, function)
    for name, generator in generators.items():
        if name in start.generators:
            _set_state(generator, start.generators[name])
    own, own_keywords = copied(start.inputs, _copy)
    generators |= {
        name: leaf for name, leaf in leaves((own, own_keywords)) if isinstance(leaf, GENERATORS)
    }
    named = _named_inputs(own, own_keywords, {name for name, _ in side.parameters()})
    given = [*named, *side.parameters()]
    trainable = [(name, leaf) for name, leaf in given if leaf.requires_grad]
    outputs: list[tuple[str, Tensor]] = []
    error = None
    try:
        result = function(*own, **own_keywords)
        outputs = [
            (name or "0", _as_tensor(leaf)) for name, leaf in leaves(result) if _is_numeric(leaf)
        ]
        if start.has_inputs:
            _backward([output for _, output in outputs])
    except Exception as raised:
        error = raised.with_traceback(None)  # a traceback would keep the graph alive
    return _Run(
        error=error,
        outputs=_cloned(outputs),
        gradients=[
            (name, None if leaf.grad is None else _whole(leaf.grad).detach().clone())
            for name, leaf in trainable
        ],
        parameters=_cloned(side.parameters()),
        buffers=_cloned(side.buffers()),
        inputs=_cloned(named),
        random_states=_random_states() + [(n, _state(one)) for n, one in generators.items()],
        graph=[output.grad_fn for _, output in outputs if output.grad_fn is not None],
        leaves=[leaf for _, leaf in given],
    )


def _backward(outputs: list[Tensor]) -> None:
    """Backward with fixed random weights: a plain sum would hide errors that cancel."""
    ends = [output for output in outputs if output.requires_grad]
    if not ends:
        return  # the gradients stay None, and that is compared
    weights = []
    for number, output in enumerate(ends):
        generator = torch.Generator().manual_seed(number)
        weights.append(torch.randn(output.shape, generator=generator).to(output))
    torch.autograd.backward(ends, weights)


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, GENERATORS):
        return copy.deepcopy(value)
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _named_inputs(
    inputs: tuple, keywords: dict[str, Any], taken: Collection[str] = ()
) -> list[tuple[str, Tensor]]:
    """``x``, ``x1`` … by position, and the keywords; a tensor given twice counts once.

    ``taken``: names of parameters, which no input shares.
    """
    by_position = [("x" if i == 0 else f"x{i}", t) for i, t in enumerate(tensors(inputs))]
    by_name = [(name, leaf) for name, leaf in leaves(keywords) if isinstance(leaf, Tensor)]
    found: dict[int, tuple[str, Tensor]] = {}
    names = set(taken)
    for name, tensor in (*by_position, *by_name):
        if id(tensor) not in found:
            own = name
            while own in names:
                own += "′"
            names.add(own)
            found[id(tensor)] = own, tensor
    return list(found.values())


def _is_numeric(value: Any) -> bool:
    return isinstance(value, (Tensor, int, float, complex))


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(
        value, dtype=torch.complex128 if isinstance(value, complex) else torch.float64
    )


def _cloned(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    return [(name, _whole(tensor).detach().clone()) for name, tensor in named]


def _values(side: _Side) -> dict[str, Tensor]:
    return dict(_cloned([*side.parameters(), *side.buffers()]))


def _load(side: _Side, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, mine in [*side.parameters(), *side.buffers()]:
            _put(mine, values[name])


def _whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all devices; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _put(mine: Tensor, value: Tensor) -> None:
    if hasattr(mine, "full_tensor"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(mine, DTensor)
        value = distribute_tensor(value, mine.device_mesh, mine.placements)
    mine.copy_(value)


def _generators(model: nn.Module, function: Any) -> dict[str, Any]:
    """The generators of random numbers that a side holds on to itself, by name."""
    found = {
        f"{path}.{name}" if path else name: held
        for path, module in model.named_modules()
        for name, held in vars(module).items()
        if isinstance(held, GENERATORS)
    }
    known = {id(generator) for generator in found.values()}
    for name, held in behind(function).items():
        if isinstance(held, GENERATORS) and id(held) not in known:
            found.setdefault(name, held)
    return found


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, numpy.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, numpy.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


@contextlib.contextmanager
def _generators_restored(left: _Side, right: _Side, *functions: Any) -> Iterator[None]:
    before = [
        (generator, _state(generator))
        for side, function in zip((left, right), functions, strict=True)
        for generator in _generators(side.model, function).values()
    ]
    try:
        yield
    finally:
        for generator, state in before:
            _set_state(generator, state)


def _random_states() -> list[tuple[str, Any]]:
    states: list[tuple[str, Any]] = [("torch", torch.get_rng_state())]
    if torch.cuda.is_available():
        states += [(f"cuda:{i}", state) for i, state in enumerate(torch.cuda.get_rng_state_all())]
    numbers: Any = numpy.random.get_state()
    return [*states, ("random", random.getstate()), ("numpy", (*numbers[1], *numbers[2:]))]


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Give the model its values, gradients, flags and the buffers themselves back."""
    values = [(v, v.detach().clone()) for v in (*model.parameters(), *model.buffers())]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    modules = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, gradient, trainable in parameters:
            parameter.grad = gradient
            parameter.requires_grad_(trainable)
        for module, training, buffers in modules:
            module.training = training
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for mine, value in values:
                mine.copy_(value)


@contextlib.contextmanager
def _random_states_restored() -> Iterator[None]:
    python, numbers = random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)


_ERRORS = {
    "": ("有检查点的一边报错", "an error with checkpoints"),
    "plain": ("只有普通的一边报错", "an error without checkpoints only"),
    "both": ("两边都报错", "an error on both sides"),
}


def _titled(kind: Kind, name: str) -> tuple[str, str]:
    """What is compared, as a sentence says it."""
    if kind == "error":
        return _ERRORS[name]
    if kind == "gradient":
        return f"{name} 的梯度", f"the gradient of {name}"
    if kind == "random state":
        return f"{name} 的随机数状态", f"the random state of {name}"
    return f"{_KIND_ZH[kind]} {name}", f"{kind} {name}"


# --- comparing ----------------------------------------------------------------------------------


def _compare_errors(
    plain: Exception | None, checkpointed: Exception | None, with_inputs: bool
) -> list[Difference]:
    """The difference that an error makes; errors on both sides leave nothing else to compare."""
    said = _said(checkpointed) if checkpointed else ""
    name = ""
    if plain is None:
        zh = f"有检查点的一边抛出 {said}"
        en = f"the checkpointed side raises {said}"
    elif checkpointed is None:
        name = "plain"
        zh = f"普通的一边抛出 {_said(plain)} 有检查点的一边却一声不响地跑完了。"
        en = f"the plain side raises {_said(plain)} The checkpointed one finishes without a word."
    else:
        name = "both"
        zh = f"两边都抛出异常，没有可比的梯度；普通：{_said(plain)} 有检查点：{said}"
        en = (
            f"both sides raise, so there are no gradients to compare; plain: {_said(plain)} "
            f"Checkpointed: {said}"
        )
        if with_inputs:
            zh += (
                "所以错不在检查点：先让 plain 用这些输入单独跑通。"
                "输入怎样传给模型，就怎样写在这里，按位置或者 input_ids=… 这样按名字；"
                "要自己算损失、调用 backward() 的，写成不带参数的完整一步。"
            )
            en += (
                " So it is not the checkpoint: get plain to run by itself on these inputs first. "
                "Write them here as the model takes them, by position or by name, as in "
                "input_ids=…; what computes its own loss and calls backward() is a whole step, "
                "a function without arguments."
            )
        else:
            zh += "所以错不在检查点：没有给输入，plain 就要是不带参数的完整一步，先让它单独跑通。"
            en += (
                " So it is not the checkpoint: without inputs, plain has to be a whole step, a "
                "function without arguments; get it to run by itself first."
            )
    return [Difference("error", name, zh, en)]


def _said(error: Exception) -> str:
    """The type and the first sentence of an error."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first.removesuffix('.')}."


def _compare(first: _Run, second: _Run, tolerance: float) -> list[Difference]:
    _check_outputs_alike(first, second)
    outputs = _compare_tensors("output", first.outputs, second.outputs, tolerance)
    if outputs:  # other outputs: other gradients would tell nothing new
        return outputs
    found = _compare_tensors("gradient", first.gradients, second.gradients, tolerance)
    found += _compare_tensors("parameter", first.parameters, second.parameters, tolerance)
    found += _compare_tensors("buffer", first.buffers, second.buffers, tolerance)
    found += _compare_tensors("input", first.inputs, second.inputs, tolerance)
    others = dict(second.random_states)
    for name, mine in first.random_states:
        if name in others and not _same_state(mine, others[name]):
            found.append(_other_random_state(name))
    return found


def _same_state(mine: Any, other: Any) -> bool:
    if isinstance(mine, Tensor):
        return torch.equal(mine, other)
    if isinstance(mine, numpy.ndarray):
        return numpy.array_equal(mine, other)
    if isinstance(mine, dict):
        return all(_same_state(mine[key], other[key]) for key in mine)
    if isinstance(mine, tuple):
        return all(_same_state(a, b) for a, b in zip(mine, other, strict=True))
    return bool(mine == other)


def _other_random_state(name: str) -> Difference:
    return Difference(
        "random state",
        name,
        f"{name} 的随机数生成器停在另一个位置：下一步抽到的随机数会不同。",
        f"the random generator of {name} ends up elsewhere: the next step draws different numbers.",
    )


def _compare_tensors(
    kind: Kind, plain: list, checkpointed: list, tolerance: float
) -> list[Difference]:
    found = []
    sides = dict(plain), dict(checkpointed)
    for name in {**sides[0], **sides[1]}:
        mine, other = (side.get(name) for side in sides)
        if mine is None and other is None:
            continue
        if mine is None or other is None:
            found.append(_missing(kind, name, other is None))
        elif difference := _numbers_that_differ(kind, name, mine, other, tolerance):
            found.append(difference)
    return found


def _missing(kind: Kind, name: str, on_the_checkpointed_side: bool) -> Difference:
    sides = ("普通", "plain"), ("有检查点", "checkpointed")
    (there_zh, there_en), (zh, en) = sides if on_the_checkpointed_side else sides[::-1]
    if kind == "gradient":
        return Difference(
            kind, name,
            f"{name} 在{zh}的一边没有梯度（None）。",
            f"{name} has no gradient on the {en} side (None).",
        )  # fmt: skip
    return Difference(
        kind, name,
        f"{_KIND_ZH[kind]} {name} 只在{there_zh}的一边有。",
        f"{kind} {name} exists on the {there_en} side only.",
    )  # fmt: skip


def _numbers_that_differ(
    kind: Kind, name: str, mine: Tensor, other: Tensor, tolerance: float
) -> Difference | None:
    mine, other = (tensor.to_dense() if tensor.is_sparse else tensor for tensor in (mine, other))
    if torch.equal(mine, other):
        return None
    wide = torch.complex128 if mine.is_complex() else torch.float64
    mine, other = mine.to(wide), other.to(wide)
    unequal = (mine != other) & ~(mine.isnan() & other.isnan())
    endless = float("inf")
    gap = (mine - other).abs().nan_to_num(nan=endless, posinf=endless).where(unequal, 0.0)
    largest = gap.max().item()
    scale = mine.abs().nan_to_num(nan=0.0, posinf=0.0).max().item()  # of the finite ones
    if largest <= tolerance * scale or not unequal.any():
        return None
    worst = int(gap.argmax())
    index = [int(i) for i in numpy.unravel_index(worst, tuple(mine.shape))]
    at = f" {index}" if index else ""
    a, b = (_number(tensor.flatten()[worst].item()) for tensor in (mine, other))
    count, total = int(unequal.sum()), mine.numel()
    title_zh, title_en = _titled(kind, name)
    rounding = largest <= 1e-5 * scale
    zh = (
        f"{title_zh}，{total:,} 个数里有 {count:,} 个不同，最多相差 {largest:.2g}"
        f"（最大的数是 {scale:.2g}）；{f'在{at} 处，' if at else ''}普通 {a}，有检查点 {b}。"
        + ("这只是舍入误差。" if rounding else "")
    )
    en = (
        f"{title_en}: {count:,} of {total:,} numbers differ, by up to {largest:.2g} "
        f"(the largest is {scale:.2g}); {f'at{at} ' if at else ''}plain has {a}, "
        f"checkpointed {b}." + (" That is rounding." if rounding else "")
    )
    return Difference(kind, name, zh, en, largest, scale)


def _number(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


# --- what can be wrong --------------------------------------------------------------------------


def _sides(model: Any, plain: Any, checkpointed: Any) -> tuple[nn.Module, nn.Module]:
    if model is None:
        modules = [side for side in (plain, checkpointed) if isinstance(side, nn.Module)]
        if not modules:
            return nn.Module(), nn.Module()  # functions of their inputs alone; checked later
        if len(modules) == 1:
            return modules[0], modules[0]
        return modules[0], modules[1]
    pair = model if isinstance(model, tuple) else (model, model)
    if len(pair) != 2 or not all(isinstance(side, nn.Module) for side in pair):
        raise TypeError(
            text(
                zh=f"model 是一个 nn.Module 或两个组成的元组，不能是 {type(model).__name__}。"
                "几个层可以放进 nn.ModuleList。",
                en=f"model must be one nn.Module or a tuple of two, not {type(model).__name__}. "
                "Several layers can go into an nn.ModuleList.",
            )
        )
    return pair


def _checked_mapping(kwargs: Any) -> Mapping[str, Any]:
    if kwargs is None or isinstance(kwargs, Mapping):
        return kwargs or {}
    raise TypeError(
        text(
            zh=f"kwargs 是名字到输入的字典，不能是 {type(kwargs).__name__}。",
            en=f"kwargs must be a dictionary from names to inputs, not {type(kwargs).__name__}.",
        )
    )


@dataclass(frozen=True)
class _Side:
    """A model, its tensors and modules under names that both sides share."""

    model: nn.Module
    rename: Mapping[str, str] = field(default_factory=dict)

    def _named(self, named: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return [(self.rename.get(name, name), value) for name, value in _seen_through(named)]

    def parameters(self) -> list[tuple[str, Tensor]]:
        return self._named(self.model.named_parameters())

    def buffers(self) -> list[tuple[str, Tensor]]:
        return self._named(self.model.named_buffers())

    def modules(self) -> list[tuple[str, nn.Module]]:
        return self._named(self.model.named_modules())

    def flags(self) -> dict[str, bool]:
        return {name: module.training for name, module in self.modules()}

    def described(self) -> dict[str, tuple]:
        values = [*self.parameters(), *self.buffers()]
        return {name: (tuple(v.shape), v.dtype, v.requires_grad) for name, v in values}


_INSIDE_A_WRAPPER = (  # attributes under which wrappers hold what they wrap
    "_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module", "_forward_module",
)  # fmt: skip
_WRAPPERS = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "AveragedModel"}


def _matched(left: nn.Module, right: nn.Module) -> tuple[_Side, _Side]:
    """Both sides, seen through their outermost wrappers until the names agree.

    Where they never do, wrappers may sit further inside: then without the steps that lead to an
    only child. The names are the plain side's.
    """
    pairs = [(_Side(a), _Side(b)) for a in _layers(left) for b in _layers(right)]
    for plain, other in pairs:
        if plain.described() == other.described():
            return plain, other
    for plain, other in pairs:
        back = {path: name for name, path in _shortened(plain.model).items()}
        names = _shortened(other.model).items()
        renamed = _Side(other.model, {name: back.get(path, name) for name, path in names})
        if renamed.described() == plain.described():
            return plain, renamed
    return _Side([*_layers(left, known=True)][-1]), _Side([*_layers(right, known=True)][-1])


def _layers(model: nn.Module, known: bool = False) -> Iterator[nn.Module]:
    """A module, what it wraps, what that wraps … ``known``: PyTorch's own wrappers only."""
    while True:
        yield model
        children = list(model.children())
        own = any(True for _ in model.parameters(recurse=False))
        own |= any(True for _ in model.buffers(recurse=False))
        wrapper = type(model).__name__ in _WRAPPERS
        if len(children) != 1 or (not wrapper and (own or known)):
            return
        model = children[0]


def _seen_through(named: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Names without what PyTorch's wrappers put in between."""
    return [
        (".".join(part for part in name.split(".") if part not in _INSIDE_A_WRAPPER), value)
        for name, value in named
    ]


def _shortened(model: nn.Module) -> dict[str, str]:
    """Each name of a parameter, buffer or module → the same without steps to an only child."""
    short: dict[str, str] = {}

    def visit(module: nn.Module, path: str, shorter: str) -> None:
        own = [*module._parameters, *module._buffers]
        short[path] = shorter
        children = list(module.named_children())
        for name in own:
            short[f"{path}.{name}" if path else name] = f"{shorter}.{name}" if shorter else name
        for name, child in children:
            alone = len(children) == 1 and not own
            below = shorter if alone else f"{shorter}.{name}" if shorter else name
            visit(child, f"{path}.{name}" if path else name, below)

    visit(model, "", "")
    return {new: path for (new, path) in _seen_through(short.items())}


def _check_values_exist(model: nn.Module, inputs: Any) -> None:
    for value in [*model.parameters(), *model.buffers(), *tensors(inputs)]:
        if isinstance(value, FakeTensor):
            raise TypeError(
                text(
                    zh="模拟张量只有形状，没有数值，梯度无从比较。请在真实的小模型上运行。",
                    en="Simulated tensors have shapes but no values, so gradients cannot be "
                    "compared. Use a small real model.",
                )
            )


def _check_alike(left: _Side, right: _Side) -> None:
    described = left.described(), right.described()
    if described[0] == described[1]:
        return
    for name in [*described[0], *described[1]]:
        mine, other = described[0].get(name), described[1].get(name)
        if mine != other:
            raise UnequalWork(
                text(
                    zh=f"两边不是同一个模型：{name} 在普通的一边是{_described(mine, '没有的')}，"
                    f"在有检查点的一边是{_described(other, '没有的')}。",
                    en=f"The two sides are not the same model: {name} is "
                    f"{_described(mine, 'missing').strip()} on the plain side and "
                    f"{_described(other, 'missing').strip()} on the checkpointed one.",
                )
            )


def _described(value: tuple | None, missing: str) -> str:
    if value is None:
        return missing
    shape, dtype, trainable = value
    return f" {list(shape)} {dtype}, requires_grad={trainable}"


def _check_outputs_alike(first: _Run, second: _Run) -> None:
    """Outputs that are equal in value but of another dtype are other outputs, too."""
    shapes = [_shapes(run.outputs) for run in (first, second)]
    if shapes[0] != shapes[1]:
        raise UnequalWork(
            text(
                zh=f"两边做的不是同样的事：普通的一边输出形状 {shapes[0]}，"
                f"有检查点的一边输出 {shapes[1]}。",
                en=f"The two sides do not do the same work: plain returns shapes {shapes[0]}, "
                f"checkpointed {shapes[1]}.",
            )
        )
    for (_, mine), (_, other) in zip(first.outputs, second.outputs, strict=True):
        if mine.dtype != other.dtype:
            raise UnequalWork(
                text(
                    zh=f"两边做的不是同样的事：普通的一边输出 {mine.dtype}，"
                    f"有检查点的一边输出 {other.dtype}。",
                    en=f"The two sides do not do the same work: plain returns {mine.dtype}, "
                    f"checkpointed {other.dtype}.",
                )
            )


def _shapes(outputs: list[tuple[str, Tensor]]) -> Any:
    if all(name.isdecimal() for name, _ in outputs):
        return [list(output.shape) for _, output in outputs]
    return {name: list(output.shape) for name, output in outputs}


def _check_all_compared(run: _Run, model: nn.Module, only_parameters: bool) -> None:
    """A gradient that went uncompared could differ unseen: rather ask for the tensor.

    ``only_parameters``: a whole step has no inputs, so that its own data may require gradients.
    Tensors that plain made for itself, such as those whose gradient it takes inside, are gone as
    soon as its graph is: nobody could read their gradients.
    """
    missed = _missed(run)
    run.graph.clear()
    if any(leaf() is not None for leaf, _, _ in missed):
        gc.collect()
    missed = [one for one in missed if one[0]() is not None]
    any_parameters = any(True for _ in model.parameters())
    if not any_parameters and any(is_parameter for _, is_parameter, _ in missed):
        raise TypeError(
            text(
                zh="plain 用到了参数，但不知道是哪个模型的：请写 model=…，"
                "这样参数的梯度和缓冲区才会被比较。",
                en="plain uses parameters, but of which model? Pass model=…, so that their "
                "gradients and the buffers are compared.",
            )
        )
    for _, is_parameter, shape in missed:
        if is_parameter or not only_parameters:
            raise TypeError(
                text(
                    zh=f"plain 用到一个需要梯度的张量（形状 {shape}），它既不是输入，"
                    "也不在 model 里：它的梯度没有人比较。请把它也传进来；"
                    "传不进来的话，写成完整的一步来比："
                    "same_gradients(lambda: loss(plain(x)).backward(), lambda: "
                    "loss(checkpointed(x)).backward(), model=model)。",
                    en=f"plain uses a tensor of shape {shape} that requires a gradient "
                    "and is neither an input nor in model: its gradient would go uncompared. Pass "
                    "it, too; where it cannot be passed, compare whole steps: "
                    "same_gradients(lambda: loss(plain(x)).backward(), lambda: "
                    "loss(checkpointed(x)).backward(), model=model).",
                )
            )


def _missed(run: _Run) -> list[tuple[weakref.ref, bool, list[int]]]:
    """Leaves of the graph that nobody compares: held weakly, is it a parameter, its shape."""
    compared = {id(leaf) for leaf in run.leaves}
    found = []
    for node in nodes_behind(run.graph):
        leaf: Any = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in compared:
            found.append((weakref.ref(leaf), isinstance(leaf, nn.Parameter), list(leaf.shape)))
    return found
