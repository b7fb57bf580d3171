"""`advise`: options are what measuring finds, code runs, bad input gets a clear sentence."""

from __future__ import annotations

import pytest
import torch

from course_lib.memory import Role, measure, simulated
from course_lib.models import Sizes, Transformer, random_tokens
from course_lib.plans.advice.advice import advise
from course_lib.plans.advice.budget import bytes_of
from course_lib.plans.advice.chunked_loss import put_on
from course_lib.wrapping.blocks import checkpoint_blocks, checkpointed, plain_blocks
from support.advice_samples import SAMPLES, Unlike, _sample


def advice_on(name, **more):
    sample = SAMPLES[name]()
    sample.step()  # the optimizer's state exists from now on
    return sample, advise(sample.step, sample.model, sample.optimizer, sample.inputs, **more)


def taken(sample):
    trace = measure(sample.step, sample.model, sample.optimizer, sample.inputs)
    return trace.peak, trace.flops


@pytest.mark.parametrize("name", SAMPLES)
def test_each_option_is_what_measuring_finds(name):
    with simulated():
        sample, advice = advice_on(name)
        assert {"none", "all", "lowest"} <= {option.key for option in advice.options}
        assert advice.best.peak == min(o.peak for o in advice.options if not o.by_hand)
        told = {
            (o.paths, o.chunks, o.segments, o.kept): o
            for o in advice.options
            if o.key not in ("every 3", "every 4")
        }
        for option in told.values():
            if option.by_hand:
                continue
            advice.apply(option)
            assert taken(sample) == (option.peak, option.flops), option.key
        advice.undo()
        assert not checkpointed(sample.model)
        assert taken(sample) == (advice["none"].peak, advice["none"].flops)


def test_the_best_fits_with_the_fewest_operations():
    with simulated():
        _, plain = advice_on("llama")
        budget = (plain["none"].peak + plain["lowest"].peak) // 2
        _, advice = advice_on("llama", budget=budget)
    assert advice.budget == budget
    assert all(option.fits is (option.peak <= budget) for option in advice.options)
    assert advice.best.fits
    assert advice.best.flops == min(o.flops for o in advice.options if o.fits and not o.by_hand)


@pytest.mark.parametrize("name", ["swin", "mixture", "unet", "llama"])
def test_the_pasted_code_does_what_was_said(name):
    with simulated():
        sample, advice = advice_on(name)
        option = advice.best
        exec(advice.code(option), {"model": sample.model})
        assert taken(sample) == (option.peak, option.flops)


def small_language_model(vocabulary=8000):
    model = Transformer(Sizes(depth=4, vocabulary=vocabulary))
    words = random_tokens(model.sizes)
    return _sample(model, words, lambda: model.loss(words), "Block")


def test_where_the_loss_is_the_peak_it_goes_in_chunks():
    """A language model of 8,000 words: per block 386 → 295 MiB, both remedies together 74.

    It is a learner's, who was led to checkpoints around blocks; sizes are close to theirs.
    """
    with simulated():
        model = Transformer(Sizes(depth=4, sequence=64, batch=43, vocabulary=8000))
        words = random_tokens(model.sizes)
        sample = _sample(model, words, lambda: model.loss(words), "Block")
        sample.step()
        advice = advise(sample.step, model, sample.optimizer, words)
        assert advice.diagnosis.cause == "logits" and advice.diagnosis.remedy == "loss"
        learners = {"none": 386, "all": 295, "loss": 164, "loss + all": 74}
        for key, size in learners.items():
            assert advice[key].peak / 2**20 == pytest.approx(size, rel=0.06), key
        assert advice.best.peak == advice["loss + all"].peak
        for key in learners:
            advice.apply(key)
            assert taken(sample) == (advice[key].peak, advice[key].flops), key
        advice.undo()
        assert taken(sample) == (advice["none"].peak, advice["none"].flops)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_loss_in_chunks_leaves_gradients_as_they_are(name):
    torch.manual_seed(0)
    sample = SAMPLES[name]()
    sample.model.eval()  # no dropout
    sample.optimizer.step = sample.optimizer.zero_grad = lambda: None
    sample.step()
    plain = [p.grad.clone() for p in sample.model.parameters()]
    sample.model.zero_grad()
    put_on(sample.model.lm_head, 3)
    sample.step()
    pairs = zip(plain, sample.model.parameters(), strict=True)
    assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in pairs)


def test_the_pasted_chunked_loss_leaves_gradients_as_they_are():
    torch.manual_seed(0)
    with simulated():
        sample = small_language_model()
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
    model = Transformer(Sizes(depth=4, sequence=16, vocabulary=8000))
    words = random_tokens(model.sizes)
    model.loss(words).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    code = advice.code("loss + all")
    assert "Waiting" in code
    exec(code, {"model": model})
    model.loss(words).backward()
    pairs = zip(plain, model.parameters(), strict=True)
    assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in pairs)


def test_the_pasted_code_leaves_gradients_as_they_are():
    torch.manual_seed(0)
    with simulated():
        _, advice = advice_on("unet")
    sample = SAMPLES["unet"]()
    model, x = sample.model, sample.inputs
    model(x).square().mean().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    exec(advice.code("all"), {"model": model})
    model(x).square().mean().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))


def test_the_lightning_code_runs():
    lightning = pytest.importorskip("lightning")
    with simulated():
        _, advice = advice_on("unlike")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.blocks = Unlike().blocks

    names = {}
    exec(advice.code("all", framework="lightning"), names)
    module = Module()
    names["Checkpoints"]().on_fit_start(None, module)
    assert all("forward" in vars(block) for block in module.blocks)


@pytest.mark.parametrize("name", ["unlike", "llama", "vit", "unet"])
def test_real_tensors_are_told_with_workspace_and_random_state(name):
    sample, advice = advice_on(name)
    for option in advice.options:
        advice.apply(option)
        sample.step()  # the first call of a checkpointed block looks for state
        trace = measure(sample.step, sample.model, sample.optimizer, sample.inputs)
        assert (option.peak, option.flops) == (trace.peak, trace.flops), option.key
        told = {Role.RANDOM_STATE: option.random_state, Role.WORKSPACE: option.workspace}
        assert told == {role: trace.at_peak[role] for role in told}, option.key
        named = advice.at_peak(option).by_role
        assert sum(named.values()) == option.peak
        assert all(named.get(role, 0) == size for role, size in told.items()), option.key
        assert str(advice.table()).count("workspace") == 1
    advice.undo()


@pytest.mark.parametrize("name", ["unlike", "llama", "chain"])
def test_real_tensors_differ_by_workspace_and_random_state(name):
    with simulated():
        _, simple = advice_on(name)
    _, real = advice_on(name)
    for option in simple.options:
        # These take a second look, which real tensors do not get.
        if option.chunks or option.kept or option.micro_batches > 1:
            continue
        other = real[option.key]
        if (other.paths, other.segments) == (option.paths, option.segments):
            named = other.workspace + other.random_state
            assert (other.peak - named, other.flops) == (option.peak, option.flops), option.key
        assert not option.workspace and not option.random_state


def test_a_notebook_shows_diagnosis_doubts_and_options_in_both_languages():
    sample = SAMPLES["llama"]()
    sample.model.config.use_cache = True
    advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
    shown = advice._repr_mimebundle_()
    assert {"text/plain", "text/html"} <= set(shown)
    for words in (advice.diagnosis, *(option for option in advice.options)):
        assert words.zh.splitlines()[0] in shown["text/html"]
        assert words.en.splitlines()[0] in shown["text/html"]
    assert all(zh in shown["text/html"] and en in shown["text/html"] for zh, en in advice.doubts)


def test_a_real_step_has_its_effects():
    torch.manual_seed(0)
    watched = SAMPLES["unlike"]()
    torch.manual_seed(0)
    bare = SAMPLES["unlike"]()
    advise(watched.step, watched.model, watched.optimizer, watched.inputs)
    bare.step()
    ours, theirs = watched.model.parameters(), bare.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any("forward" in vars(module) for module in watched.model.modules())


def test_checkpoints_that_were_there_come_back():
    with simulated():
        sample = SAMPLES["unet"]()
        checkpoint_blocks(sample.model, "Convolutions", every=2)
        before = checkpointed(sample.model)
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        assert checkpointed(sample.model) == before
        advice.apply("all")
        assert len(checkpointed(sample.model)) > len(before)
        advice.undo()
        assert checkpointed(sample.model) == before
        plain_blocks(sample.model)


@pytest.mark.parametrize(
    ("words", "size"),
    [(5, 5), ("24 GiB", 24 * 2**30), ("500MB", 500 * 10**6), ("1.5g", 1_500_000_000), ("7", 7)],
)
def test_budgets_in_words(words, size):
    assert bytes_of(words) == size


@pytest.mark.parametrize(
    "nonsense", ["", "much", "24 GiBs", 0, -3, "0 MiB", 2.5, float("nan"), True, [1]]
)
def test_nonsense_for_a_budget_is_refused(nonsense):
    with pytest.raises(ValueError) as refused:
        bytes_of(nonsense)
    said = refused.value.args[0]
    assert said.en.startswith("budget must be") and said.zh.startswith("budget 要字节数")
    assert repr(nonsense) in said.en and repr(nonsense) in said.zh


def test_a_real_cache_that_checkpoints_would_switch_off_is_doubted():
    sample = SAMPLES["llama"]()
    sample.model.config.use_cache = True
    advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
    assert any("use_cache" in zh and "use_cache" in en for zh, en in advice.doubts)


def test_a_simulated_cache_goes_with_every_option():
    with simulated():
        sample = SAMPLES["llama"]()
        sample.model.config.use_cache = True
        sample.step()
        advice = advise(sample.step, sample.model, sample.optimizer, sample.inputs)
        assert not advice.doubts and sample.model.config.use_cache is True
        for key in ("none", "all", "lowest", "loss", "none"):
            advice.apply(key)
            assert taken(sample) == (advice[key].peak, advice[key].flops), key
            assert sample.model.config.use_cache is (key == "none")
        advice.undo()
        assert sample.model.config.use_cache is True
        exec(advice.code("all"), {"model": sample.model})
        assert taken(sample) == (advice["all"].peak, advice["all"].flops)
