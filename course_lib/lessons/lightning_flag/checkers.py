"""The exercises of lesson 04: a flag to add, and a flag that nobody reads."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from ...lightning import quiet
from ...memory.measurement import measure
from ...notebook.checking import (
    Answer,
    Verdict,
    Words,
    Wrong,
    briefly,
    judged,
    line_of,
    waiting_for,
    words_of,
)
from .processes import digest

Module = TypeVar("Module", bound=L.LightningModule)

STEPS = 3


class Layer(nn.Module):
    """Linear, GELU, Linear, added to its input: (batch, width) → the same."""

    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))


class Regressor(L.LightningModule):
    """Layers in a row and a Linear at the end; learns a number from a vector of length 32."""

    def __init__(self, depth: int = 6, width: int = 32):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return (self(x) - y).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Mute(Regressor):
    """A Regressor with a flag that does nothing."""

    def __init__(self, depth: int = 6, width: int = 32, gradient_checkpointing: bool = False):
        super().__init__(depth, width)
        self.save_hyperparameters()
        for layer in self.layers:
            layer.gradient_checkpointing = gradient_checkpointing  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if getattr(self, "gradient_checkpointing", False):
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return self.head(x)


def _batch(width: int = 32) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(64, width, generator=random), torch.randn(64, 1, generator=random)]


def _data(width: int) -> DataLoader:
    x, y = _batch(width)
    return DataLoader(TensorDataset(x.repeat(STEPS, 1), y.repeat(STEPS, 1)), batch_size=64)


@contextmanager
def _counting_calls() -> Iterator[Counter[int]]:
    """How often each Linear runs, by its identity.

    A Layer runs as often as the first Linear inside, however the Layer itself is called: by a
    wrapper, by ``checkpoint``, or through another ``forward`` that was put in its place.
    """
    calls: Counter[int] = Counter()

    def count(module: nn.Module, _: Any) -> None:
        if isinstance(module, nn.Linear):
            calls[id(module)] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def _firsts(model: nn.Module) -> list[nn.Linear]:
    """The first Linear of each Layer, in order."""
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    return [next(m for m in layer.modules() if isinstance(m, nn.Linear)) for layer in layers]


def _step(model: Any, batch: list[Tensor]) -> None:
    model.training_step(batch, 0).backward()


def forward_calls(model: nn.Module) -> list[int]:
    """How often each Layer's forward is called in one training step: 2 if it is recomputed."""
    firsts = _firsts(model)
    if isinstance(model, L.LightningModule):
        model.configure_model()
    with _counting_calls() as calls:
        _step(model, _batch(firsts[0].in_features if firsts else 32))
    model.zero_grad()
    return [calls[id(first)] for first in firsts]


@contextmanager
def _classes_restored() -> Iterator[Callable[[], list[str]]]:
    """Afterwards the lesson's classes are as they were; what is yielded names what is not."""
    classes = (Layer, Regressor, Mute)
    before = {one: dict(vars(one)) for one in classes}

    def changed() -> list[str]:
        return [
            f"{one.__name__}.{name}"
            for one in classes
            for name in {**vars(one), **before[one]}
            if not name.startswith("_abc")
            and vars(one).get(name, None) is not before[one].get(name, None)
        ]

    try:
        yield changed
    finally:
        for one in classes:
            for name in {**vars(one), **before[one]}:
                if name not in before[one]:
                    delattr(one, name)
                elif vars(one).get(name) is not before[one][name]:
                    setattr(one, name, before[one][name])


def _fit(model: L.LightningModule, file: Path | None = None, width: int = 32) -> list[float]:
    """Losses of a few steps with the real Trainer, which then saves to ``file`` if it is given."""
    losses: list[float] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    quiet()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Record()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with waiting_for((f"{STEPS} 步训练", f"{STEPS} training steps")):
        trainer.fit(model, _data(width))
    if file is not None:
        trainer.save_checkpoint(file)
    return losses


def _peak(model: L.LightningModule) -> int:
    batch = _batch()
    _step(model, batch)  # gradients come into being
    return measure(lambda: _step(model, batch), model, inputs=batch).peak


def _built(make: Callable[..., Module], **options: Any) -> Module:
    torch.manual_seed(0)
    return make(**options)


@judged
def check_flag(answer: type[Regressor]) -> Words | Verdict:
    """Check a subclass of ``Regressor`` that takes ``gradient_checkpointing``, False by default.

    Trains it for a few steps with the flag off and on in turn, twice each, saves it and loads it
    again. Passes if each Layer runs once per step without the flag and twice with it, and the head
    once, losses and weights are bitwise equal, the peak falls, depth and width mean what they say,
    and a file saved either way loads either way and remembers the flag.
    """
    if answer is None:
        return _NO_FLAG_YET
    if not isinstance(answer, type) or not issubclass(answer, Regressor):
        raise Wrong(
            "要把 Regressor 的一个子类交给检查器，是类本身，不是造好的模型；得到的是 "
            f"{briefly(answer)}。",
            "Hand a subclass of Regressor to the checker, the class itself and not a model built "
            f"from it; this is {briefly(answer)}.",
        )
    if answer is Regressor or not _is_written(answer):
        return _NO_FLAG_YET
    with _classes_restored():
        _check_sizes(answer)
        peaks = _check_training(answer)
        with tempfile.TemporaryDirectory() as folder:
            _check_files(answer, folder)
    return (
        f"关着时与原来一样；开着时每层重算一次，损失和权重逐位相同，峰值从 {peaks[0]:,} 降到 "
        f"{peaks[1]:,} 字节。再次 fit 不会重复包装，保存的文件两种设置都能读。",
        "Without the flag nothing changes; with it each layer is recomputed once, losses and "
        f"weights are bitwise equal, and the peak falls from {peaks[0]:,} to {peaks[1]:,} bytes. "
        "Another fit wraps nothing twice, and saved files load either way.",
    )


_NO_FLAG_YET = Verdict(
    "unfinished",
    "这道题还没有做。写上 __init__ 和 configure_model，再运行这个单元格。",
    "Not done yet. Write __init__ and configure_model and run this cell again.",
)


def _is_written(answer: type) -> bool:
    """Whether the class has anything in it but its docstring."""
    return any(
        isinstance(value, (FunctionType, property, classmethod, staticmethod))
        or not name.startswith("_")
        for name, value in vars(answer).items()
    )


def _check_sizes(answer: type[Regressor]) -> None:
    """Raise ``Wrong`` unless depth and width reach the model."""
    try:
        small = _built(answer, depth=3, width=16, gradient_checkpointing=True)
        _built(answer)
    except TypeError as error:
        if line_of(error):  # not the call itself, but a line of the answer's
            raise
        zh, en = words_of(error)
        raise Wrong(
            f"构造不出来：{zh}。__init__ 要接受 depth、width 和 gradient_checkpointing，"
            "最后一个默认为 False。",
            f"It cannot be built: {en}. __init__ must take depth, width and "
            "gradient_checkpointing, False by default.",
        ) from None
    wanted, found = (
        sum(parameter.numel() for parameter in model.parameters())
        for model in (_built(Regressor, depth=3, width=16), small)
    )
    if found != wanted:
        raise Wrong(
            f"用 depth=3、width=16 构造，却有 {found:,} 个参数，应为 {wanted:,} 个："
            "depth 和 width 传给 super().__init__ 了吗？",
            f"Built with depth=3 and width=16 it has {found:,} parameters, expected {wanted:,}: "
            "are depth and width passed on to super().__init__?",
        )


def _check_training(answer: type[Regressor]) -> tuple[int, int]:
    """Raises ``Wrong``; the peaks without and with the flag."""
    reference = _built(Regressor)
    expected = [_fit(reference)]
    digests = [digest(reference)]
    expected.append(_fit(reference))
    digests.append(digest(reference))
    off, on = _built(answer), _built(answer, gradient_checkpointing=True)
    if on.hparams.get("gradient_checkpointing") is not True:
        raise Wrong(
            "hparams 里没有 gradient_checkpointing=True：要调用 save_hyperparameters()。",
            "hparams has no gradient_checkpointing=True: call save_hyperparameters().",
        )
    modules: dict[bool, int] = {}
    for fit in (1, 2):
        for flag, model, wanted in ((False, off, 1), (True, on, 2)):
            _check_fit(flag, model, fit, wanted, expected[fit - 1])
            now = len(list(model.modules()))
            if now != modules.setdefault(flag, now):
                raise Wrong(
                    f"第二次 fit 之后模块从 {modules[flag]} 个变成 {now} 个：每次 fit 都会调用 "
                    "configure_model，已经包好的不要再包一层。",
                    f"After a second fit there are {now} modules instead of {modules[flag]}: "
                    "configure_model is called for each fit and must not wrap what is wrapped "
                    "already.",
                )
            if digest(model) != digests[fit - 1]:
                raise Wrong(
                    f"gradient_checkpointing={flag}：损失相同，但训练后的权重或它们的名字变了。",
                    f"gradient_checkpointing={flag}: losses agree, but the trained weights or "
                    "their names changed.",
                )
    peaks = _peak(off), _peak(on)
    if peaks[1] >= 0.8 * peaks[0]:
        raise Wrong(
            f"开着时峰值是 {peaks[1]:,} 字节，关着时 {peaks[0]:,}：几乎没有省。每层各加一个检查点，"
            "不要把所有层放进同一个。",
            f"With the flag the peak is {peaks[1]:,} bytes, without {peaks[0]:,}: barely lower. "
            "Give each layer a checkpoint of its own, not one for all of them.",
        )
    return peaks


def _check_fit(flag: bool, model: Regressor, fit: int, wanted: int, losses: list[float]) -> None:
    firsts = _firsts(model)
    others = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    with _counting_calls() as calls:
        found = _fit(model)
    counts = {calls[id(first)] / STEPS for first in firsts}
    if counts != {wanted}:
        shown = ", ".join(f"{count:g}" for count in sorted(counts))
        zh, en = _why(flag, max(counts), model)
        raise Wrong(
            f"gradient_checkpointing={flag}，第 {fit} 次 fit：每步每层的 forward 调用 {shown} 次，"
            f"应是 {wanted} 次。{zh}",
            f"gradient_checkpointing={flag}, fit {fit}: each layer's forward is called {shown} "
            f"times per step, not {wanted}. {en}",
        )
    if heads := [calls[id(head)] / STEPS for head in others if calls[id(head)] > STEPS]:
        raise Wrong(
            f"gradient_checkpointing={flag}：每层重算一次，可是最后的 head 每步也运行了 "
            f"{heads[0]:g} 次：只给每个 Layer 加检查点。",
            f"gradient_checkpointing={flag}: each layer is recomputed once, but the head at the "
            f"end runs {heads[0]:g} times per step too: checkpoint each Layer, and nothing else.",
        )
    for step, (one, other) in enumerate(zip(losses, found, strict=True)):
        if one != other:
            raise Wrong(
                f"gradient_checkpointing={flag}：第 {step} 步的损失是 {other!r}，原来是 {one!r}。",
                f"gradient_checkpointing={flag}: the loss of step {step} is {other!r}; it was "
                f"{one!r}.",
            )


def _why(flag: bool, most: float, model: nn.Module) -> Words:
    if not flag:
        return "没有要求时不该重算。", "Nothing should be recomputed unless asked for."
    if most > 2:
        wrappers = sum(isinstance(module, CheckpointWrapper) for module in model.modules())
        layers = sum(isinstance(module, Layer) for module in model.modules())
        if wrappers > layers:
            return (
                f"有的层重算了不止一次：包装有 {wrappers} 个，Layer 只有 {layers} 个，"
                "包装里面又有包装。",
                f"Some layers are recomputed more than once: there are {wrappers} wrappers for "
                f"{layers} Layers, one inside another.",
            )
        return "有的层重算了不止一次。", "Some layers are recomputed more than once."
    if most < 2:
        return "没有一层重算：开关没有接上。", "No layer is recomputed: the flag is not connected."
    return "有的层没有加检查点。", "Some layers are not checkpointed."


def _check_files(answer: type[Regressor], folder: str) -> None:
    for flag in (False, True):
        model = _built(answer, depth=3, width=16, gradient_checkpointing=flag)
        file = Path(folder) / f"{flag}.ckpt"
        _fit(model, file, width=16)
        restored = answer.load_from_checkpoint(file, map_location="cpu")
        if restored.hparams.get("gradient_checkpointing") is not flag:
            raise Wrong(
                f"用 gradient_checkpointing={flag} 训练并保存，读回来却是 "
                f"{restored.hparams.get('gradient_checkpointing')}。",
                f"Trained and saved with gradient_checkpointing={flag}, loaded as "
                f"{restored.hparams.get('gradient_checkpointing')}.",
            )
        other = answer.load_from_checkpoint(file, gradient_checkpointing=not flag)
        if digest(other) != digest(model):
            raise Wrong(
                f"用 gradient_checkpointing={flag} 保存的文件，换另一种设置读进来权重就不同了。",
                f"A file saved with gradient_checkpointing={flag} gives different weights when "
                "loaded with the other setting.",
            )


@judged
def check_repaired(answer: Callable[[Mute], Any]) -> Words:
    """Check ``answer(model)``: makes a ``Mute(gradient_checkpointing=True)`` mean what it says.

    It returns the model, or changes it in place and returns it. Passes if each Layer is then
    recomputed once per step, with losses and weights bitwise those of a ``Regressor``; a model
    built with the flag off must stay as it is, also while one with the flag on is there.
    """
    ask = Answer(answer)
    with _classes_restored() as changed:
        models = {}
        for flag in (True, False):
            given = _built(Mute, gradient_checkpointing=flag)
            models[flag] = ask(given)
            if models[flag] is None:
                raise ask.nothing(given)
            if not isinstance(models[flag], L.LightningModule):
                raise Wrong(
                    f"要返回模型，得到的是 {type(models[flag]).__name__}。",
                    f"Return the model, not a {type(models[flag]).__name__}.",
                )
        for flag, wanted in ((True, 2), (False, 1), (True, 2)):
            counts = forward_calls(models[flag])
            if set(counts) != {wanted}:
                raise _not_repaired(flag, counts, wanted, changed())
        for flag, model in models.items():
            reference = _built(Regressor)
            if _fit(model) != _fit(reference) or digest(model) != digest(reference):
                raise Wrong(
                    f"gradient_checkpointing={flag}：重算的次数对了，但损失或权重与原来的不同。",
                    f"gradient_checkpointing={flag}: the right number of recomputations, but "
                    "different losses or weights.",
                )
    return (
        "开着时每层重算一次，关着时不重算，损失和权重逐位相同。"
        "以后看见 gradient_checkpointing=True，先数一数 forward。",
        "With the flag each layer is recomputed once, without it none, and losses and weights are "
        "bitwise equal. Next time you see gradient_checkpointing=True, count forward calls first.",
    )


def _not_repaired(flag: bool, counts: list[int], wanted: int, changed: list[str]) -> Wrong:
    if changed:
        zh, en = (
            f"你改的是 {changed[0]}，整个类共用，后一个模型的设置盖掉了前一个的。",
            f"You changed {changed[0]}, which all models share: the setting of the one "
            "repaired last holds for all.",
        )
    elif not flag:
        zh, en = (
            "没有打开开关的模型也重算了：要看 model.hparams。",
            "A model with its flag off recomputes too: look at model.hparams.",
        )
    elif max(counts, default=1) == 1:
        zh, en = (
            "还是没有一层重算。谁读 gradient_checkpointing，从哪个对象上读？",
            "Still nothing is recomputed. Who reads gradient_checkpointing, and on which object?",
        )
    elif max(counts) > 2:
        zh, en = (
            "有的层重算了不止一次：检查点套着检查点。",
            "Some layers are recomputed more than once: a checkpoint inside a checkpoint.",
        )
    else:
        zh, en = "有的层调用次数多了，有的少了。", "Some layers have too many, some too few."
    return Wrong(
        f"gradient_checkpointing={flag}：各层 forward 调用 {counts} 次，应都是 {wanted}。{zh}",
        f"gradient_checkpointing={flag}: forward is called {counts} times, all should be "
        f"{wanted}. {en}",
    )
