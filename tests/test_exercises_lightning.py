"""The checkers of lesson 04: right answers pass, each wrong one hears what is wrong."""

import logging
import re
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

from course_lib.exercises_lightning import (
    Layer,
    Mute,
    Regressor,
    check_flag,
    check_repaired,
    forward_calls,
)
from course_lib.wrapping import checkpoint_blocks


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


@pytest.mark.parametrize(
    "answer", [Solution, ByHand, AtOnce, Replaced, ReplacedAtOnce, ByTheLibrary]
)
def test_right_flags_pass(answer):
    verdict = check_flag(answer)
    assert verdict.passed, str(verdict)


class Stub(Regressor):
    """As the notebook has it."""


class NoHyperparameter(Regressor):
    def configure_model(self):
        pass


class NotSaved(Regressor):
    def __init__(self, depth=6, width=32, gradient_checkpointing=False):
        super().__init__()
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


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (NoHyperparameter, "must take gradient_checkpointing, False by default"),
        (NotSaved, "call save_hyperparameters"),
        (Deaf, "called 1 times per step, not 2. No layer is recomputed"),
        (Always, "gradient_checkpointing=False, fit 1.*Nothing should be recomputed"),
        (AgainAndAgain, "After a second fit there are .* modules"),
        (OnlyOne, "called 1, 2 times per step, not 2. Some layers are not"),
        (AllInOne, "barely lower. Give each layer a checkpoint of its own"),
        (OtherNumbers, "the loss of step 0 is"),
        (OtherKeys, "names changed"),
        (TwiceOver, "called 3 times per step, not 2. Some layers are recomputed more than once"),
        (Raises, "LookupError: where are the layers"),
    ],
)
def test_wrong_flags_hear_why(answer, words):
    verdict = check_flag(answer)
    assert verdict.state == "wrong"
    assert re.search(words, str(verdict)), str(verdict)


def test_stubs_are_kindly_unfinished():
    for verdict in (check_flag(Stub), check_flag(None), check_repaired(lambda model: None)):
        assert verdict.state == "unfinished" and "Not done yet" in str(verdict)


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


@pytest.mark.parametrize("answer", [on_the_module, wrapped])
def test_right_repairs_pass(answer):
    verdict = check_repaired(answer)
    assert verdict.passed, str(verdict)


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


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (with_one_more, "different losses or weights"),
        (on_the_layers, "Still nothing is recomputed"),
        (lambda model: model, "on which object"),
        (always, "A model with its flag off recomputes too"),
        (some, "Some layers have too many, some too few"),
        (retrained, "different losses or weights"),
        (lambda model: True, "not a bool"),
        (lambda model: model.nothing, "AttributeError"),
    ],
)
def test_wrong_repairs_hear_why(answer, words):
    verdict = check_repaired(answer)
    assert verdict.state == "wrong" and words in str(verdict), str(verdict)


def test_checking_leaves_the_layer_as_it_was():
    before = Layer.forward
    check_flag(Solution)
    assert Layer.forward is before
    model = Mute()
    forward_calls(model)
    assert not any(layer.up._forward_pre_hooks for layer in model.layers)
