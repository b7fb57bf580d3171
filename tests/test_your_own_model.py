"""Lesson 07's room: the error message, the packages, switches side by side, and what fits."""

import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_lib import advise, language
from course_lib.lessons.your_own_model import (
    compare_switches,
    fits_explorer,
    quiet,
    read_error,
    require,
    sweep_sizes,
)
from course_lib.lessons.your_own_model.what_fits import CARDS, SHOWN, smallest_card
from course_lib.memory import measure, simulated
from course_lib.wrapping import checkpoint_blocks
from support.verdicts import HAN

GIB = 2**30


@pytest.fixture(autouse=True)
def every_language():
    yield
    language.choose("en")


# The error message, in the words of torch's CUDACachingAllocator.cpp

MESSAGE = (
    "CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 23.64 GiB of "
    "which 1.05 GiB is free. {process}Including non-PyTorch memory, this process has {mine} memory "
    "in use. Of the allocated memory {allocated} is allocated by PyTorch, and {idle} is reserved "
    "by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


def message(
    asked="2.00 GiB", process="", mine="22.58 GiB", allocated="20.10 GiB", idle="512.50 MiB"
):
    return MESSAGE.format(asked=asked, process=process, mine=mine, allocated=allocated, idle=idle)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (message(), "the step"),
        (message(idle="2.01 GiB"), "fragments"),
        (message(idle="2.00 GiB"), "fragments"),
        (message(asked="20.00 MiB", idle="19.99 MiB"), "the step"),
        (message(process="Process 71 has 15.00 GiB memory in use. ", mine="6.00 GiB",
                 allocated="5.00 GiB"), "another process"),
        (message(process="Process 71 has 1.00 GiB memory in use. Process 72 has 400.00 MiB "
                         "memory in use. "), "the step"),
    ],
)  # fmt: skip
def test_the_message_says_what_comes_first(said, cause):
    found = read_error(said)
    assert found.cause == cause
    assert HAN.search(found.zh) and not HAN.search(found.en)


def test_every_number_of_the_message_is_read():
    others = "Process 71 has 1.00 GiB memory in use. Process 72 has 512.00 MiB memory in use. "
    found = read_error(message(process=others).replace(" allocated by", "\n  allocated by"))
    assert (found.asked, found.capacity) == (2 * GIB, round(23.64 * GIB))
    assert (found.free, found.others) == (round(1.05 * GIB), 1.5 * GIB)
    assert (found.allocated, found.idle) == (round(20.1 * GIB), 512.5 * 2**20)
    assert len(found.table().rows) == 6
    assert "expandable_segments" not in str(found)


def test_a_cpu_says_only_what_was_asked_for():
    found = read_error(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
    )
    assert (found.asked, found.capacity, found.idle) == (2**42, None, None)
    assert found.cause == "the step"


@pytest.mark.parametrize("said", ["", "RuntimeError: shape '[2]' is invalid", "out of memory"])
def test_what_is_no_such_message_is_refused(said):
    with pytest.raises(ValueError, match="Tried to allocate"):
        read_error(said)


# The packages


def test_a_missing_package_is_answered_with_the_line_that_installs_it(tmp_path):
    pins = tmp_path / "requirements.txt"
    pins.write_text("torch==1.0\n# no_such_package==7\nno_such_package==3.2\n")
    with pytest.raises(ModuleNotFoundError) as missing:
        require("torch", "no_such_package", "nor_this", requirements=pins)
    said = missing.value.args[0]
    for words in (said.zh, said.en):
        assert words.endswith("    %pip install no_such_package==3.2 nor_this")
    assert HAN.search(said.zh) and not HAN.search(said.en)


def test_what_is_here_is_pinned_and_not_complained_about():
    require("transformers", "peft")
    with pytest.raises(ModuleNotFoundError, match=r"transformers==5\.24"):
        from course_lib.lessons.your_own_model import needed

        raise ModuleNotFoundError(needed._pinned("transformers", needed._REQUIREMENTS))


def test_old_names_are_not_warned_of():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        quiet()
        tiny().gradient_checkpointing_enable()
        warnings.warn("is_gradient_checkpointing is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("something else", FutureWarning, stacklevel=1)
    assert [str(one.message) for one in heard] == ["something else"]


# Switches


def tiny(layers=3):
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 96, "use_cache": False,
             "num_hidden_layers": layers, "num_attention_heads": 2}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**sizes)).train()


WORDS = torch.arange(128).view(2, 64) % 96


def train(model):
    model.zero_grad()
    model(input_ids=WORDS, labels=WORDS).loss.backward()


def test_switches_are_measured_beside_the_plain_model():
    def other_weights(model):
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.forward = lambda x: x[..., :32] * 0

    ways = {
        ("不设", "none"): lambda model: None,
        "theirs": lambda model: model.activation_checkpointing_enable(),
        "ours": lambda model: checkpoint_blocks(model, "LlamaDecoderLayer"),
        "wrong": other_weights,
    }
    rows = compare_switches(tiny, train, ways, WORDS).rows
    assert [row[0] for row in rows] == list(ways)
    plain = tiny()
    train(plain)
    assert rows[0][1] == f"{measure(lambda: train(plain), plain, inputs=WORDS).peak:,}"
    assert rows[1][1:] == rows[2][1:] and rows[1][1] != rows[0][1]
    assert [row[4][1] for row in rows] == ["—", "yes", "yes", "no"]


# What fits


def one(model, words):
    model(input_ids=words, labels=words).loss.backward()
    model.zero_grad()


def swept(batches=(1, 2, 4), sequences=(32, 64)):
    with simulated():
        model = tiny()

        def ask(batch, sequence):
            words = torch.zeros(batch, sequence, dtype=torch.long)
            return advise(lambda: one(model, words), model, inputs=words)

        return sweep_sizes(ask, batches, sequences)


@pytest.fixture(scope="module")
def sizes():
    return swept()


def test_each_peak_is_what_measuring_finds(sizes):
    with simulated():
        model = tiny()
        words = torch.zeros(4, 32, dtype=torch.long)

        for key in ("none", "all"):
            found = measure(lambda: one(model, words), model, inputs=words)
            assert sizes.peak(key, 4, 32) == found.peak
            model.activation_checkpointing_enable()
    assert sizes.batches == (1, 2, 4) and sizes.sequences == (32, 64)


@pytest.mark.parametrize("spoken", language.LANGUAGES)
def test_every_position_is_drawn_and_said(sizes, spoken):
    language.choose(spoken)
    explorer = fits_explorer(sizes)
    captions = set()
    for position in explorer.positions():
        explorer.move(**position)
        captions.add(explorer.caption)
    assert len(captions) == 6
    assert all(("批" in words) == (spoken != "en") for words in captions)


def test_an_option_that_a_size_lacks_is_no_number(sizes):
    fewer = type(sizes)({size: dict(options) for size, options in sizes.found.items()})
    del fewer.found[2, 64]["all"]
    assert fewer.peak("all", 2, 64) is None
    fits_explorer(fewer).move(batch=2, sequence=64)


def test_the_largest_batch_that_fits_and_the_smallest_card(sizes):
    assert set(sizes.keys) <= set(SHOWN)
    assert sizes.largest_batch("none", 64, 8) == 4
    big = type(sizes)({(b, 1): {"none": Sized(b * 8 * GIB)} for b in (1, 2, 4)})
    assert [big.largest_batch("none", 1, card) for card in (7, *CARDS)] == [None, 1, 2, 2, 4, 4]
    assert [smallest_card(n) for n in (8 * GIB, 8 * GIB + 1, 80 * GIB, 80 * GIB + 1)] == [
        8, 16, 80, None
    ]  # fmt: skip


class Sized:
    def __init__(self, peak):
        self.peak = peak
