"""The checkers of lesson 04: right answers pass, each wrong one hears what is wrong."""

import functools
import logging
import warnings
from functools import partial

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint

from course_lib.lessons.lightning_flag.checkers import (
    Layer,
    Mute,
    Regressor,
    check_flag,
    check_repaired,
    forward_calls,
)
from course_lib.wrapping import checkpoint_blocks
from support.verdicts import heard, speak, verdict_on


@pytest.fixture(autouse=True, scope="module")
def one_thread_and_no_chatter():
    threads = torch.get_num_threads()
    names = ("lightning.pytorch", "lightning.fabric")
    levels = {name: logging.getLogger(name).level for name in names}
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(params=["zh", "en"])
def spoken(request, monkeypatch):
    speak(monkeypatch, request.param)


def is_layer(module):
    return isinstance(module, Layer)


class Taking(Regressor):
    """A Regressor with the hyperparameter, and nothing that reads it."""

    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(depth, width)
        self.save_hyperparameters()


class Solution(Taking):
    def configure_model(self):
        wrapped = any(isinstance(module, CheckpointWrapper) for module in self.modules())
        if self.hparams.gradient_checkpointing and not wrapped:
            apply_activation_checkpointing(self, check_fn=is_layer)


class ByHand(Taking):
    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(depth, width, gradient_checkpointing)

    def forward(self, x):
        for layer in self.layers:
            if self.hparams.gradient_checkpointing:
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return self.head(x)


class AtOnce(Taking):
    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(depth, width, gradient_checkpointing)
        if gradient_checkpointing:
            apply_activation_checkpointing(self, check_fn=is_layer)


class Replaced(Taking):
    """As the lesson has it: names and classes stay."""

    def configure_model(self):
        for module in self.modules() if self.hparams.gradient_checkpointing else ():
            if isinstance(module, Layer) and "forward" not in vars(module):
                module.forward = partial(checkpoint, module.forward, use_reentrant=False)


class ReplacedAtOnce(Taking):
    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(depth, width, gradient_checkpointing)
        for layer in self.layers if gradient_checkpointing else ():
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


class ByTheLibrary(Taking):
    def configure_model(self):
        if self.hparams.gradient_checkpointing:
            checkpoint_blocks(self, Layer)


class ByPartials(Taking):
    """Another ``forward`` in place of each Layer's own; takes keywords only."""

    def __init__(self, *, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(depth, width, gradient_checkpointing)
        if gradient_checkpointing:
            for layer in self.layers:
                layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


class WithTheRest(Regressor):
    """Passes on whatever else there is."""

    def __init__(self, gradient_checkpointing=False, **others):
        super().__init__(**others)
        self.save_hyperparameters()

    def setup(self, stage):
        for i, layer in enumerate(self.layers):
            if self.hparams.gradient_checkpointing and not isinstance(layer, CheckpointWrapper):
                self.layers[i] = checkpoint_wrapper(layer)


class Lean(Layer):
    def forward(self, x, *, on=True):
        return checkpoint(super().forward, x, use_reentrant=False) if on else super().forward(x)


class OfAnotherClass(Taking):
    def configure_model(self):
        if self.hparams.gradient_checkpointing:
            for layer in self.layers:
                layer.__class__ = Lean


@pytest.mark.parametrize(
    "answer",
    [
        Solution,
        ByHand,
        AtOnce,
        Replaced,
        ReplacedAtOnce,
        ByTheLibrary,
        ByPartials,
        WithTheRest,
        OfAnotherClass,
    ],
)
def test_right_flags_pass(answer, spoken):
    heard(verdict_on(check_flag, answer), "right", "峰值从", "the peak falls from")


class Stub(Regressor):
    """As the notebook has it."""


class NoHyperparameter(Regressor):
    def configure_model(self):
        pass


class NotSaved(Regressor):
    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(depth, width)
        self._hparams.pop("gradient_checkpointing", None)


class Deaf(Taking):
    def configure_model(self):
        self.gradient_checkpointing = self.hparams.gradient_checkpointing


class Always(Taking):
    def configure_model(self):
        if not any(isinstance(module, CheckpointWrapper) for module in self.modules()):
            apply_activation_checkpointing(self, check_fn=is_layer)


class AgainAndAgain(Taking):
    def configure_model(self):
        if self.hparams.gradient_checkpointing:
            apply_activation_checkpointing(self, check_fn=is_layer)


class OnlyOne(Taking):
    def configure_model(self):
        if self.hparams.gradient_checkpointing:
            self.layers[0] = checkpoint_wrapper(self.layers[0])


class AllInOne(Taking):
    def run(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x):
        if self.hparams.gradient_checkpointing:
            return self.head(checkpoint(self.run, x, use_reentrant=False))
        return self.head(self.run(x))

    def configure_model(self):
        pass


class OtherNumbers(Solution):
    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(depth, width, gradient_checkpointing)

    def forward(self, x):
        return super().forward(x) * (1.001 if self.hparams.gradient_checkpointing else 1)


class OtherKeys(Solution):
    def configure_model(self):
        super().configure_model()
        if self.hparams.gradient_checkpointing:
            self.trunk = self.layers


class TwiceOver(ByHand):
    def training_step(self, batch, batch_idx):
        if self.hparams.gradient_checkpointing:
            super().training_step(batch, batch_idx)
        return super().training_step(batch, batch_idx)


class Raises(Taking):
    def configure_model(self):
        raise LookupError("where are the layers?")


class SizesNotPassedOn(Solution):
    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        Regressor.__init__(self)
        self.save_hyperparameters()


class DepthIsFixed(Solution):
    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(6, width, gradient_checkpointing)


class WrapsEverything(Taking):
    """Twenty wrappers, one inside another."""

    def configure_model(self):
        wrapped = any(isinstance(module, CheckpointWrapper) for module in self.modules())
        if self.hparams.gradient_checkpointing and not wrapped:
            apply_activation_checkpointing(self)


class TheHeadToo(Solution):
    def configure_model(self):
        super().configure_model()
        if self.hparams.gradient_checkpointing and isinstance(self.head, torch.nn.Linear):
            self.head = checkpoint_wrapper(self.head)


class OnTheClass(Taking):
    """Whatever was built last decides for all."""

    flag = False

    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(depth, width, gradient_checkpointing)
        OnTheClass.flag = gradient_checkpointing

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.flag else layer(x)
        return self.head(x)


class PatchesTheLayer(Taking):
    """Every other model recomputes from then on."""

    def configure_model(self):
        if self.hparams.gradient_checkpointing and Layer.forward.__name__ == "forward":
            original = Layer.forward
            Layer.forward = lambda layer, x: checkpoint(original, layer, x, use_reentrant=False)


class NotADefault(Solution):
    def __init__(self, depth=6, width=32, gradient_checkpointing=True):
        super().__init__(depth, width, gradient_checkpointing)


class ATypeErrorOfItsOwn(Taking):
    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__(depth, width, gradient_checkpointing)
        len(depth)


@pytest.mark.parametrize(
    ("answer", "zh", "en"),
    [
        (NoHyperparameter, "要接受 depth、width 和 gradient_checkpointing",
         "must take .*gradient_checkpointing, False by default"),
        (NotSaved, "要调用 save_hyperparameters", "call save_hyperparameters"),
        (SizesNotPassedOn, "50,145 个参数，应为 6,401.*传给 super",
         "depth=3 and width=16 .* 50,145 parameters, expected 6,401.*passed on to super"),
        (DepthIsFixed, "传给 super", "are depth and width passed on"),
        (Deaf, "1 次，应是 2 次。没有一层", "called 1 times per step, not 2. No layer is"),
        (Always, "没有要求时不该", "gradient_checkpointing=False, fit 1.*Nothing should be"),
        (NotADefault, "没有要求时不该", "gradient_checkpointing=False.*Nothing should be"),
        (OnTheClass, "没有要求时不该", "gradient_checkpointing=False, fit 1.*Nothing should be"),
        (PatchesTheLayer, "没有要求时不该", "gradient_checkpointing=False, fit 2.*Nothing should"),
        (AgainAndAgain, "已经包好的不要再包", "After a second fit there are .* modules"),
        (WrapsEverything, "个，Layer 只有 6 个，包装里面又有包装",
         "more than once: there are 20 wrappers for 6 Layers, one inside another"),
        (TheHeadToo, "head 每步也运行了 2 次", "head at the end runs 2 times per step"),
        (OnlyOne, "有的层没有加检查点", "called 1, 2 times per step, not 2. Some layers are not"),
        (AllInOne, "几乎没有省", "barely lower. Give each layer a checkpoint of its own"),
        (OtherNumbers, "第 0 步的损失", "the loss of step 0 is"),
        (OtherKeys, "名字变了", "names changed"),
        (TwiceOver, "重算了不止一次", "called 3 times per step, not 2. Some layers are recomputed"),
        (Raises, "LookupError: where are the layers.*在第", "LookupError: where are.*In line"),
        (ATypeErrorOfItsOwn, "TypeError.*len\\(depth\\)", "TypeError.*In line .*: len\\(depth"),
        (Solution(), "是类本身", "the class itself and not a model"),
        (Layer, "Regressor 的一个子类", "a subclass of Regressor"),
    ],
)  # fmt: skip
def test_wrong_flags_hear_why(answer, zh, en, spoken):
    heard(verdict_on(check_flag, answer), "wrong", zh, en)


def test_stubs_are_kindly_unfinished(spoken):
    for verdict in (check_flag(Stub), check_flag(None), check_flag(Regressor),
                    check_repaired(lambda model: None)):  # fmt: skip
        heard(verdict, "unfinished", "还没有做", "Not done yet")


def test_the_mute_flag_does_nothing():
    assert forward_calls(Mute(gradient_checkpointing=True)) == [1] * 6
    assert forward_calls(Solution(gradient_checkpointing=True)) == [2] * 6


def on_the_module(model):
    model.gradient_checkpointing = model.hparams.gradient_checkpointing
    return model


def wrapped(model):
    if model.hparams.gradient_checkpointing:
        apply_activation_checkpointing(model, check_fn=is_layer)
    return model


def the_class_itself(model):
    """Mends the class: all models then do as their own hparams say."""

    def forward(self, x):
        for layer in self.layers:
            on = self.hparams.gradient_checkpointing
            x = checkpoint(layer, x, use_reentrant=False) if on else layer(x)
        return self.head(x)

    Mute.forward = forward
    return model


def another_model(model):
    fresh = Solution(**model.hparams)
    fresh.load_state_dict(model.state_dict())
    return fresh


def partials(model):
    if model.hparams["gradient_checkpointing"]:
        for layer in model.layers:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    return model


@pytest.mark.parametrize("answer", [on_the_module, wrapped, the_class_itself, another_model,
                                    partials])  # fmt: skip
def test_right_repairs_pass(answer, spoken):
    heard(verdict_on(check_repaired, answer), "right", "逐位相同", "bitwise equal")


def on_the_layers(model):
    for layer in model.layers:
        layer.gradient_checkpointing = True
    return model


def always(model):
    model.gradient_checkpointing = True
    return model


def some(model):
    if model.hparams.gradient_checkpointing:
        model.layers[0] = checkpoint_wrapper(model.layers[0])
    return model


def retrained(model):
    with torch.no_grad():
        model.head.bias += 1
    return on_the_module(model)


def with_one_more(model):
    """Losses as before, and weights that a Regressor does not have."""
    model.more = torch.nn.Linear(1, 1)
    return on_the_module(model)


def on_the_class(model):
    Mute.gradient_checkpointing = model.hparams.gradient_checkpointing
    return model


def everything(model):
    if model.hparams.gradient_checkpointing:
        apply_activation_checkpointing(model)
    return model


def changes_it_in_place(model):
    on_the_module(model)


def fails(model):
    return model.nothing


@pytest.mark.parametrize(
    ("answer", "zh", "en"),
    [
        (with_one_more, "损失或权重", "different losses or weights"),
        (on_the_layers, "没有一层重算", "Still nothing is recomputed"),
        (lambda model: model, "哪个对象", "on which object"),
        (always, "要看 model.hparams", "A model with its flag off recomputes too"),
        (some, "有的少了", "Some layers have too many, some too few"),
        (on_the_class, "你改的是 Mute.gradient_checkpointing，整个类共用",
         "You changed Mute.gradient_checkpointing, which all models share"),
        (everything, "检查点套着检查点", "a checkpoint inside a checkpoint"),
        (retrained, "损失或权重", "different losses or weights"),
        (changes_it_in_place, "少了 return", "a return missing"),
        (lambda model: True, "要返回模型，得到的是 bool", "not a bool"),
        (lambda model: model.parameters(), "得到的是 generator", "not a generator"),
        (fails, "AttributeError.*调用是 fails\\(Mute\\)", "The call was fails\\(Mute\\)\nIn line"),
        (on_the_module(Mute()), "得到的是|抛出", "raised|not "),
    ],
)  # fmt: skip
def test_wrong_repairs_hear_why(answer, zh, en, spoken):
    heard(verdict_on(check_repaired, answer), "wrong", zh, en)


def test_checking_leaves_the_layer_as_it_was():
    before = [dict(vars(one)) for one in (Layer, Regressor, Mute)]
    check_flag(Solution)
    check_flag(PatchesTheLayer)
    check_repaired(the_class_itself)
    check_repaired(on_the_class)
    assert [dict(vars(one)) for one in (Layer, Regressor, Mute)] == before
