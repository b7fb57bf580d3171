"""The exercises of lesson 04: a flag to add, and a flag that nobody reads."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from .exercises import Verdict, raised, unfinished
from .lightning import quiet
from .lightning_ddp import digest
from .memory import measure

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


def _batch() -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(64, 32, generator=random), torch.randn(64, 1, generator=random)]


def _data() -> DataLoader:
    x, y = _batch()
    return DataLoader(TensorDataset(x.repeat(STEPS, 1), y.repeat(STEPS, 1)), batch_size=64)


@contextmanager
def _counting_calls(layers: Iterable[Layer]) -> Iterator[Counter[int]]:
    """How often each Layer's forward runs, by the Layer's identity; it begins with ``up``.

    Whatever stands in for ``forward``, and since when, the Layer's own has to run inside it.
    """
    calls: Counter[int] = Counter()

    def counter(layer: Layer) -> Callable[..., None]:
        return lambda *_: calls.update([id(layer)])

    hooks = [layer.up.register_forward_pre_hook(counter(layer)) for layer in layers]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _step(model: Any, batch: list[Tensor]) -> None:
    model.training_step(batch, 0).backward()


def forward_calls(model: nn.Module) -> list[int]:
    """How often each Layer's forward is called in one training step: 2 if it is recomputed."""
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    if isinstance(model, L.LightningModule):
        model.configure_model()
    with _counting_calls(layers) as calls:
        _step(model, _batch())
    model.zero_grad()
    return [calls[id(layer)] for layer in layers]


def _fit(model: L.LightningModule, file: Path | None = None) -> list[float]:
    """Losses of a few steps with the real Trainer, which then saves to ``file`` if it is given."""
    losses: list[float] = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

    quiet()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, callbacks=[Record()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, _data())
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


class _Fault(Exception):
    """What is wrong with an answer, in (zh, en)."""


def check_flag(answer: type[Regressor]) -> Verdict:
    """Check a subclass of ``Regressor`` that takes ``gradient_checkpointing``, False by default.

    Trains it for a few steps with the flag off and on, twice each, saves it and loads it again.
    Passes if each Layer's forward is called once per step without the flag and twice with it,
    losses and weights are bitwise equal, the peak falls, and a file saved either way loads either
    way and remembers the flag.
    """
    changed = {"__init__", "configure_model", "setup", "forward", "training_step"}
    if answer is None or not changed & set(vars(answer)):
        return Verdict(
            "unfinished",
            "这道题还没有做。写上 __init__ 和 configure_model，再运行这个单元格。",
            "Not done yet. Write __init__ and configure_model and run this cell again.",
        )
    try:
        peaks = _check_training(answer)
        with tempfile.TemporaryDirectory() as folder:
            _check_files(answer, folder)
    except _Fault as fault:
        zh, en = fault.args
        return Verdict("wrong", zh, en)
    except Exception as error:
        return raised(error)
    return Verdict(
        "right",
        f"关着时与原来一样；开着时每层重算一次，损失和权重逐位相同，峰值从 {peaks[0]:,} 降到 "
        f"{peaks[1]:,} 字节。再次 fit 不会重复包装，存下的文件两种设置都能读。",
        "Without the flag nothing changes; with it each layer is recomputed once, losses and "
        f"weights are bitwise equal, and the peak falls from {peaks[0]:,} to {peaks[1]:,} bytes. "
        "Another fit wraps nothing twice, and saved files load either way.",
    )


def _check_training(answer: type[Regressor]) -> tuple[int, int]:
    """Raises ``_Fault``; the peaks without and with the flag."""
    reference = _built(Regressor)
    expected, again = _fit(reference), _fit(reference)
    try:
        off, on = _built(answer), _built(answer, gradient_checkpointing=True)
    except TypeError as error:
        raise _Fault(
            f"构造不出来：{error}。__init__ 要接受 gradient_checkpointing，默认为 False。",
            f"It cannot be built: {error}. __init__ must take gradient_checkpointing, "
            "False by default.",
        ) from None
    if on.hparams.get("gradient_checkpointing") is not True:
        raise _Fault(
            "hparams 里没有 gradient_checkpointing=True：要调用 save_hyperparameters()。",
            "hparams has no gradient_checkpointing=True: call save_hyperparameters().",
        )
    for flag, model, wanted in ((False, off, 1), (True, on, 2)):
        _check_fit(flag, model, 1, wanted, expected)
        modules = len(list(model.modules()))
        _check_fit(flag, model, 2, wanted, again)
        if (now := len(list(model.modules()))) != modules:
            raise _Fault(
                f"第二次 fit 之后模块从 {modules} 个变成 {now} 个：configure_model 每次 fit 都会被"
                "调用，已经包好的不要再包一层。",
                f"After a second fit there are {now} modules instead of {modules}: configure_model "
                "is called for each fit and must not wrap what is wrapped already.",
            )
        if digest(model) != digest(reference):
            raise _Fault(
                f"gradient_checkpointing={flag}：损失相同，但训练后的权重或它们的名字变了。",
                f"gradient_checkpointing={flag}: losses agree, but the trained weights or their "
                "names changed.",
            )
    peaks = _peak(off), _peak(on)
    if peaks[1] >= 0.8 * peaks[0]:
        raise _Fault(
            f"开着时峰值是 {peaks[1]:,} 字节，关着时 {peaks[0]:,}：几乎没有省。每层各设一个检查点，"
            "不要把所有层放进同一个。",
            f"With the flag the peak is {peaks[1]:,} bytes, without {peaks[0]:,}: barely lower. "
            "Give each layer a checkpoint of its own, not one for all of them.",
        )
    return peaks


def _check_fit(flag: bool, model: Regressor, fit: int, wanted: int, losses: list[float]) -> None:
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    with _counting_calls(layers) as calls:
        found = _fit(model)
    counts = {calls[id(layer)] / STEPS for layer in layers}
    if counts != {wanted}:
        shown = ", ".join(f"{count:g}" for count in sorted(counts))
        zh, en = _why(flag, max(counts))
        raise _Fault(
            f"gradient_checkpointing={flag}，第 {fit} 次 fit：每步每层的 forward 调用 {shown} 次，"
            f"应是 {wanted} 次。{zh}",
            f"gradient_checkpointing={flag}, fit {fit}: each layer's forward is called {shown} "
            f"times per step, not {wanted}. {en}",
        )
    for step, (one, other) in enumerate(zip(losses, found, strict=True)):
        if one != other:
            raise _Fault(
                f"gradient_checkpointing={flag}：第 {step} 步的损失是 {other!r}，原来是 {one!r}。",
                f"gradient_checkpointing={flag}: the loss of step {step} is {other!r}; it was "
                f"{one!r}.",
            )


def _why(flag: bool, most: float) -> tuple[str, str]:
    if not flag:
        return "没有要求时不该重算。", "Nothing should be recomputed unless asked for."
    if most > 2:
        return "有的层重算了不止一次。", "Some layers are recomputed more than once."
    if most < 2:
        return "没有一层重算：开关没有接上。", "No layer is recomputed: the flag is not connected."
    return "有的层没有设检查点。", "Some layers are not checkpointed."


def _check_files(answer: type[Regressor], folder: str) -> None:
    for flag in (False, True):
        model = _built(answer, gradient_checkpointing=flag)
        file = Path(folder) / f"{flag}.ckpt"
        _fit(model, file)
        restored = answer.load_from_checkpoint(file, map_location="cpu")
        if restored.hparams.get("gradient_checkpointing") is not flag:
            raise _Fault(
                f"用 gradient_checkpointing={flag} 训练并保存，读回来却是 "
                f"{restored.hparams.get('gradient_checkpointing')}。",
                f"Trained and saved with gradient_checkpointing={flag}, loaded as "
                f"{restored.hparams.get('gradient_checkpointing')}.",
            )
        other = answer.load_from_checkpoint(file, gradient_checkpointing=not flag)
        if digest(other) != digest(model):
            raise _Fault(
                f"用 gradient_checkpointing={flag} 存下的文件，换另一种设置读进来权重就不同了。",
                f"A file saved with gradient_checkpointing={flag} gives different weights when "
                "loaded with the other setting.",
            )


def check_repaired(answer: Callable[[Mute], Any]) -> Verdict:
    """Check ``answer(model)``: makes a ``Mute(gradient_checkpointing=True)`` mean what it says.

    It returns the model, or changes it in place and returns it. Passes if each Layer is then
    recomputed once per step, with losses and weights bitwise those of a ``Regressor``; a model
    built with the flag off must stay as it is.
    """
    reference = _built(Regressor)
    expected = _fit(reference)
    try:
        for flag, wanted in ((True, 2), (False, 1)):
            model = answer(_built(Mute, gradient_checkpointing=flag))
            if model is None:
                return unfinished()
            if not isinstance(model, L.LightningModule):
                return Verdict(
                    "wrong",
                    f"要返回模型，得到的是 {type(model).__name__}。",
                    f"Return the model, not a {type(model).__name__}.",
                )
            counts = forward_calls(model)
            if set(counts) != {wanted}:
                return _not_repaired(flag, counts, wanted)
            found = _fit(model)
            if found != expected or digest(model) != digest(reference):
                return Verdict(
                    "wrong",
                    "重算的次数对了，但损失或权重与原来的不同。",
                    "The right number of recomputations, but different losses or weights.",
                )
    except Exception as error:
        return raised(error)
    return Verdict(
        "right",
        "开着时每层重算一次，关着时不重算，损失和权重逐位相同。"
        "以后看见 gradient_checkpointing=True，先数一数 forward。",
        "With the flag each layer is recomputed once, without it none, and losses and weights are "
        "bitwise equal. Next time you see gradient_checkpointing=True, count forward calls first.",
    )


def _not_repaired(flag: bool, counts: list[int], wanted: int) -> Verdict:
    if not flag:
        zh, en = ("没有打开开关的模型也重算了：要看 model.hparams。",
                  "A model with its flag off recomputes too: look at model.hparams.")  # fmt: skip
    elif max(counts) == 1:
        zh, en = ("还是没有一层重算。谁读 gradient_checkpointing，从哪个对象上读？",
                  "Still nothing is recomputed. Who reads gradient_checkpointing, and on which "
                  "object?")  # fmt: skip
    else:
        zh, en = "有的层调用次数多了，有的少了。", "Some layers have too many, some too few."
    return Verdict(
        "wrong",
        f"gradient_checkpointing={flag}：各层 forward 调用 {counts} 次，应都是 {wanted}。{zh}",
        f"gradient_checkpointing={flag}: forward is called {counts} times, all should be "
        f"{wanted}. {en}",
    )
