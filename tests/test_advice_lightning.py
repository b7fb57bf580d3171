"""Advice inside of a real Trainer: printed after a step; training goes on as it was."""

import copy
import warnings

import lightning as L
import pytest
import torch

from course_lib import advise
from course_lib.lightning import (
    CheckpointingAdvice,
    Counting,
    GradientCheckpointing,
    LanguageModel,
    MemoryMonitor,
    StepRecord,
    quiet,
)
from course_lib.memory import simulated
from course_lib.plans.advice import BudgetTooSmall


@pytest.fixture(autouse=True)
def no_chatter():
    with warnings.catch_warnings():
        quiet()
        yield


def fitted(*callbacks, steps=3, **options):
    L.seed_everything(0, verbose=False)
    model = LanguageModel(depth=4)
    record = StepRecord()
    L.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks, record],
        **options,
    ).fit(model, Counting(steps=20, batch=4))  # fmt: skip
    return model, record.losses


def peak(*callbacks):
    monitor = MemoryMonitor(steps=(1,))
    fitted(*callbacks, monitor)
    return monitor.traces[1].peak, monitor.traces[1].flops


def test_it_prints_what_the_trainers_steps_then_take(capsys):
    plain, losses = fitted()
    callback = CheckpointingAdvice()
    watched, same = fitted(callback)
    assert losses == same
    pairs = zip(plain.parameters(), watched.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not any("forward" in vars(module) for module in watched.modules())
    advice = callback.advice
    printed = capsys.readouterr().out
    assert printed.rstrip() == str(advice).rstrip() and advice.took == "4 × Block"
    assert peak() == (advice["none"].peak, advice["none"].flops)
    for key in ("all", "lowest", "every 2"):
        option = advice[key]
        found = peak(GradientCheckpointing(list(option.paths)))
        assert found == (option.peak, option.flops), key


def test_the_code_for_lightning_is_a_callback_that_does_what_was_said():
    callback = CheckpointingAdvice(blocks="Block")
    fitted(callback)
    names = {}
    exec(callback.advice.code("all", framework="lightning"), names)
    assert peak(names["Checkpoints"]()) == (
        callback.advice["all"].peak, callback.advice["all"].flops,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"budget": 1000}, "Nothing fits"), ({"blocks": "Blok"}, "Blok")],
)
def test_what_prevents_advice_is_a_warning(settings, words):
    callback = CheckpointingAdvice(**settings)
    with pytest.warns(UserWarning, match=words) as said:
        _, losses = fitted(callback)
    assert any("No advice on this step" in str(one.message) for one in said)
    assert callback.advice is None and len(losses) == 3
    assert losses == fitted()[1]


def test_nonsense_for_a_budget_is_refused_at_once():
    with pytest.raises(ValueError, match="budget must be"):
        CheckpointingAdvice(budget="plenty")


def test_a_step_that_fails_leaves_nothing_behind():
    class Failing(LanguageModel):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    model = Failing(depth=2)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[CheckpointingAdvice()],
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        trainer.fit(model, Counting(steps=20, batch=4))
    assert not any("forward" in vars(module) for module in model.modules())
    assert CheckpointingAdvice().advice is None
    callback = CheckpointingAdvice()  # another watching may begin
    fitted(callback)
    assert callback.advice is not None


def test_a_lightning_module_works_as_it_is():
    """Without a Trainer: its own training step and optimizer, simulated."""
    with simulated(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # self.log without a Trainer
        module = LanguageModel(depth=4, vocabulary=4000)
        batch = (torch.zeros(8, 33, dtype=torch.long),)
        optimizer = module.configure_optimizers()

        def step():
            module.training_step(batch, 0).backward()
            optimizer.step()
            optimizer.zero_grad()

        advice = advise(step, module, optimizer, batch)
        assert advice.took == "4 × Block" and advice.diagnosis.cause in ("logits", "no activations")
        with pytest.raises(BudgetTooSmall):
            advise(step, module, optimizer, batch, budget=1000)
        assert copy.deepcopy(module.hparams)
