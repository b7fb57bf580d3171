"""Lesson 03's checkers: right answers pass, each wrong one is told what is wrong with it."""

import functools
import random

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from course_lib import language
from course_lib.lessons.torch_checkpoint import checkers as exercises
from course_lib.lessons.torch_checkpoint.checkers import (
    check_blind_spots,
    check_budget,
    check_repairs,
)
from course_lib.lessons.torch_checkpoint.savings import (
    KINDS,
    measure_kinds,
    savings_table,
    slowdown_table,
    time_kinds,
)
from course_lib.lessons.torch_checkpoint.segments import (
    linear_gelu_linear,
    measure_segments,
    segments_explorer,
)
from support.verdicts import heard, speak


@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setattr(language.choice, "_chosen", "en")


@pytest.fixture(params=["zh", "en"])
def spoken(request, monkeypatch):
    speak(monkeypatch, request.param)


# --- three repairs --------------------------------------------------------------------------------


def encode(model, x):
    return checkpoint(model, x, use_reentrant=False)


def shake(model, x):
    block = lambda x, strength: torch.tanh(model(x) * strength)  # noqa: E731
    return checkpoint(block, x, random.uniform(0.5, 1.5), use_reentrant=False)


def chain(layers, x):
    for layer in layers:
        x = checkpoint(layer, x, use_reentrant=False)
    return x


def nothing(*_):
    return None


def broken_encode(model, x):
    return checkpoint(model, x, use_reentrant=True)


def broken_shake(model, x):
    block = lambda x: torch.tanh(model(x) * random.uniform(0.5, 1.5))  # noqa: E731
    return checkpoint(block, x, use_reentrant=False)


def seeded_shake(model, x):
    def block(x):
        random.seed(0)
        return torch.tanh(model(x) * random.uniform(0.5, 1.5))

    return checkpoint(block, x, use_reentrant=False)


def broken_chain(layers, x):
    for layer in layers:
        x = checkpoint(lambda x: layer(x), x, use_reentrant=False)  # noqa: B023
    return x


def plain_chain(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def one_piece_chain(layers, x):
    return checkpoint(lambda x: plain_chain(layers, x), x, use_reentrant=False)


class Encoder:
    """An object with a method, and a keyword."""

    def __call__(self, model, x, *, reentrant=False):
        return checkpoint(model.forward, x, use_reentrant=reentrant)


def shake_by_partial(model, x):
    def block(strength, x):
        return torch.tanh(model(x) * strength)

    return checkpoint(functools.partial(block, random.uniform(0.5, 1.5)), x, use_reentrant=False)


def shake_with_state(model, x):
    """Draws again, from the state that the first run met."""
    state = random.getstate()
    runs = []

    def block(x):
        runs.append(random.getstate())
        if len(runs) > 1:
            random.setstate(state)
        try:
            return torch.tanh(model(x) * random.uniform(0.5, 1.5))
        finally:  # early stop leaves by an exception
            if len(runs) > 1:
                random.setstate(runs[-1])

    return checkpoint(block, x, use_reentrant=False)


def chain_of_wrappers(layers, x):
    return nn.Sequential(*map(checkpoint_wrapper, layers))(x)


def chain_by_default_argument(layers, x):
    for layer in layers:
        x = checkpoint(lambda x, layer=layer: layer(x), x, use_reentrant=False)
    return x


@pytest.mark.parametrize(
    "answers",
    [
        (encode, shake, chain),
        (Encoder(), shake_by_partial, chain_of_wrappers),
        (encode, shake_with_state, chain_by_default_argument),
        (lambda model, x: checkpoint_wrapper(model)(x), shake,
         lambda layers, x: functools.reduce(encode_swapped, layers, x)),
        (lambda model, x: checkpoint(model, x.requires_grad_(), use_reentrant=True), shake, chain),
    ],
)  # fmt: skip
def test_the_repairs_pass(answers, spoken):
    heard(check_repairs(*answers), "right", "三处都修好了", "All three are repaired")


def encode_swapped(x, layer):
    return encode(layer, x)


def test_a_stub_is_unfinished(spoken):
    heard(check_repairs(nothing, nothing, nothing), "unfinished", "还没有做", "Not done yet")
    heard(check_repairs(encode, shake, nothing), "unfinished")


def forgets_to_return(model, x):
    encode(model, x)


strengths = []


def shake_of_a_global(model, x):
    """Right for one batch; of two, the second overwrites what the first was multiplied by."""
    strengths[:] = [random.uniform(0.5, 1.5)]
    return checkpoint(lambda x: torch.tanh(model(x) * strengths[0]), x, use_reentrant=False)


def nested_chain(layers, x):
    for begin in range(0, len(layers), 2):
        x = checkpoint(chain, layers[begin : begin + 2], x, use_reentrant=False)
    return x


def fails(blocks, x):
    return x.nothing


def of_six(layers, x):
    for i in range(6):
        x = encode(layers[i], x)
    return x


def breaks_in_the_backward_pass(model, x):
    runs = []

    def block(x):
        runs.append(None)
        if len(runs) > 1:
            raise LookupError("no second time")
        return model(x)

    return checkpoint(block, x, use_reentrant=False)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ((broken_encode, shake, chain), "encode: ✗ Different: 0.weight has no gradient"),
        ((encode, broken_shake, chain), "shake: ✗ Different: the gradient of 0.weight"),
        ((encode, seeded_shake, chain), "shake: ✗ Different: output 0"),
        ((encode, shake, broken_chain), "chain: ✗ Different: the gradient of 0.0.weight"),
        ((encode, shake, plain_chain), "chain: the gradients are right, but some block ran"),
        ((lambda m, x: m(x), shake, chain), "encode: the gradients are right, but some block"),
        (
            (lambda m, x: (m(x), m(x))[1], shake, chain),
            "encode: some block runs 2 times in the for",
        ),
        ((encode, shake, one_piece_chain), "One checkpoint around the whole chain"),
        ((lambda m, x: m(x)[:3], shake, chain), "encode: The two sides do not do the same work"),
        ((lambda m, x: m(x, x), shake, chain), "Your code raised an exception: TypeError"),
        ((forgets_to_return, shake, chain), "encode: forgets_to_return.* is a return missing"),
        ((lambda m, x: "x", shake, chain), "encode: Return a tensor, not 'x'"),
        ((encode, shake_of_a_global, chain), "shake: .*does the second overwrite something"),
        ((encode, lambda m, x: encode(m, x).tanh(), chain), "shake: ✗ Different: output 0"),
        ((encode, lambda m, x: shake(nn.Sequential(*m[:2]), x), chain), "shake: "),
        ((encode, shake, nested_chain), "chain: .*instead of 2: there is a checkpoint inside"),
        ((encode, shake, of_six), "exception: .*In line"),
        ((encode, shake, lambda layers, x: chain(layers[:4], x)), "chain: ✗ Different"),
        ((encode, shake, lambda layers, x: chain(layers[::-1], x)), "chain: ✗ Different"),
        ((breaks_in_the_backward_pass, shake, chain), "LookupError: no second.*In line .*: raise"),
        ((encode(nn.Linear(1, 1), torch.ones(1)), shake, chain), "without parentheses"),
    ],
)
def test_wrong_repairs_are_told_what_is_wrong(answers, words, spoken):
    heard(check_repairs(*answers), "wrong", "", words)


# --- a budget -------------------------------------------------------------------------------------


def within_budget(blocks, x):
    for i, block in enumerate(blocks):
        if isinstance(block, exercises.Thick) or i in (1, 3):
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = block(x)
    return x


def everything(blocks, x):
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False)
    return x


def only_thick(blocks, x):
    for block in blocks:
        thick = isinstance(block, exercises.Thick)
        x = checkpoint(block, x, use_reentrant=False) if thick else block(x)
    return x


def by_slices(blocks, x):
    """The lesson's answer, taken apart by slices and put together as Sequentials."""
    for block in blocks[:4]:
        x = checkpoint(block, x, use_reentrant=False)
    for thick, dense in zip(blocks[4::2], nn.Sequential(*blocks[5::2]), strict=True):
        x = dense(checkpoint(thick, x, use_reentrant=False))
    return x


class Within:
    which = (0, 1, 2, 3, 4, 6)

    def __call__(self, blocks, x, *, reentrant=False):
        for i, block in enumerate(blocks.children()):
            run = functools.partial(checkpoint, block, use_reentrant=reentrant)
            x = (run if i in self.which else block)(x)
        return x


def wrapped(blocks, x):
    chosen = [checkpoint_wrapper(b) if i in Within.which else b for i, b in enumerate(blocks)]
    return nn.Sequential(*chosen)(x)


@pytest.mark.parametrize("answer", [within_budget, by_slices, Within(), wrapped])
def test_the_budget_can_be_kept(answer, spoken):
    heard(check_budget(answer), "right", r"\+7.4%", r"\+7.4%")


def test_a_budget_stub_is_unfinished(spoken):
    heard(check_budget(nothing), "unfinished", "还没有做", "Not done yet")


def of(*which):
    """Checkpoints on these blocks."""

    def answer(blocks, x):
        for i, block in enumerate(blocks):
            x = checkpoint(block, x, use_reentrant=False) if i in which else block(x)
        return x

    return answer


def wraps_in_place(blocks, x):
    for i in Within.which:
        blocks[i] = checkpoint_wrapper(blocks[i])
    return plain_chain(blocks, x)


NETWORK = exercises.Mixed()


@pytest.mark.parametrize(
    ("answer", "zh", "en"),
    [
        (plain_chain, "还超出 9.02 MiB：没有一块被重算", "Still 9.02 MiB too much: no block is"),
        (only_thick, "还超出 1.24 MiB：FLOPs 还能再多 8.0%.*剩下的主要是谁的",
         "Still 1.24 MiB too much: you have 8.0% of FLOPs left.*whose is most of what remains"),
        (of(0, 2, 4, 6, 7), "FLOPs 还能再多 4.3%.*反向传播从哪里开始",
         "you have 4.3% of FLOPs left. .* where does the backward pass begin"),
        (of(0, 1, 2, 3), "还有 2 个重算起来几乎不要 FLOPs 的块",
         "2 of the blocks that take next to no"),
        (of(1, 3, 5, 7), "FLOPs 也超了 .*保存得多，重算起来又便宜",
         "over as well. Which kind of block"),
        (everything, r"上限是 \+8%。内存够了.*重算了 8 块，其中 4 块 Dense",
         r"FLOPs \+14.8%, where \+8% is allowed.*8 blocks are recomputed, 4 of them Dense"),
        (one_piece_chain, "几个块合在一个检查点里",
         "Blocks that share a checkpoint come back together"),
        (lambda blocks, x: one_piece_chain(blocks[4:], one_piece_chain(blocks[:4], x)),
         "几个块合在一个检查点里", "Blocks that share a checkpoint come back together"),
        (lambda blocks, x: plain_chain(list(blocks)[1:], x), "不同：输出", "Different: output 0"),
        (lambda blocks, x: within_budget(NETWORK, x), "不同：输出", "Different: output 0"),
        (lambda blocks, x: within_budget(blocks, torch.ones_like(x)), "不同：", "Different: "),
        (fails, "AttributeError.*第 .* 行：return", "AttributeError.*In line .*: return x.nothing"),
        (lambda blocks, x: plain_chain(blocks, x).detach(), "没有梯度", "has no gradient"),
        (forgets_to_return, "抛出了异常", "raised an exception"),
        (lambda blocks, x: (within_budget(blocks, x), None)[1], "少了 return", "a return missing"),
        (lambda blocks, x: (plain_chain(blocks, x), within_budget(blocks, x))[1],
         "在前向传播里就跑了 2 次", "runs 2 times in the forward pass"),
        (wraps_in_place, "改动了传进来的 blocks", "changes the blocks that were passed in"),
        (lambda blocks, x: list(blocks), "要返回张量", "Return a tensor"),
    ],
)  # fmt: skip
def test_what_breaks_the_budget_is_said(answer, zh, en, spoken):
    heard(check_budget(answer), "wrong", zh, en)


def test_a_slice_of_the_blocks_is_a_network_too():
    part = exercises.Mixed()[2:5]
    assert isinstance(part, exercises.Mixed) and len(part) == 3


# --- blind spots ----------------------------------------------------------------------------------

RIGHT = {
    "late-binding": "A", "batch-norm": "A", "whole-model": "B", "one-segment": "B",
    "ddp-shared": "C", "rare-branch": "D",
}  # fmt: skip


def test_blind_spots_of_a_stub_are_unfinished(spoken):
    heard(check_blind_spots(nothing), "unfinished", "还没有做", "Not done yet")


FULL_WIDTH = str.maketrans("ABCD", "ＡＢＣＤ")


@pytest.mark.parametrize(
    "answer",
    [
        lambda: RIGHT,
        lambda: {k: v.lower() for k, v in RIGHT.items()},
        lambda: {k: v.translate(FULL_WIDTH) for k, v in RIGHT.items()},
        lambda: {k: f" {v}：看得出不同" for k, v in RIGHT.items()},
        lambda: {k: f"{v}. it sees" for k, v in RIGHT.items()},
        lambda: {k.replace("-", "_"): v for k, v in RIGHT.items()},
        lambda: dict(late_binding="A", batch_norm="A") | RIGHT,
        functools.partial(dict, RIGHT),
        RIGHT,
    ],
)
def test_the_blind_spots_however_they_are_typed(answer, spoken):
    heard(check_blind_spots(answer), "right", "全对", "All correct")


@pytest.mark.parametrize(
    ("change", "zh", "en"),
    [
        ({"batch-norm": "B"}, "batch-norm 不是 B.*运行它：✗ 不同：缓冲区",
         "Run it: ✗ Different: buffer 1.running_mean"),
        ({"late-binding": "D"}, "late-binding 不是 D", "Run it: ✗ Different: the gradient of 0.0"),
        ({"whole-model": "A"}, "峰值：普通 1.17 MiB", "Peaks: plain 1.17 MiB"),
        ({"one-segment": "D"}, "one-segment 不是 D", "one-segment is not D.*Run it"),
        ({"ddp-shared": "A"}, "附馆", "annexe"),
        ({"rare-branch": "A"}, "千分之一", "one batch in a thousand"),
        ({"rare-branch": "E"}, "只能是 A、B、C、D，得到的是 'E'", "A, B, C or D, not 'E'"),
        ({"rare-branch": "AB"}, "得到的是 'AB'", "not 'AB'"),
        ({"rare-branch": None}, "得到的是 None", "not None"),
        ({"rare-branch": ["D"]}, "得到的是 ", "not "),
        (dict.fromkeys(RIGHT, "A"), "whole-model 不是 A", "whole-model is not A"),
    ],
)  # fmt: skip
def test_wrong_reasons_meet_evidence(change, zh, en, spoken):
    heard(check_blind_spots(lambda: RIGHT | change), "wrong", zh, en)


def test_other_answers_are_refused_politely(spoken):
    def but(**others):
        return {name: letter for name, letter in RIGHT.items() if name != "ddp-shared"} | others

    for answer, zh, en in (
        (but, "少了 ddp-shared。", "ddp-shared is missing"),
        (lambda: but(ddpshared="C"), "“ddpshared”是写错了吗", "Is 'ddpshared' a slip"),
        (lambda: list(RIGHT), "要返回一个字典", "Return a dict, not"),
        (lambda: "AABBCD", "得到的是 'AABBCD'", "not 'AABBCD'"),
        (lambda: print(end=""), "少了 return", "a return missing"),
        (lambda: 1 / 0, "ZeroDivisionError", "ZeroDivisionError"),
    ):
        heard(check_blind_spots(answer), "wrong", zh, en)


# --- the sweeps behind the lesson's tables and its slider -----------------------------------------


@pytest.fixture(scope="module")
def segments():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(linear_gelu_linear(16) for _ in range(10)))
    return measure_segments(model, torch.randn(64, 16), range(1, 13))


def test_the_last_segment_is_never_checkpointed(segments):
    calls = {one.segments: "".join(map(str, one.calls)) for one in segments}
    assert calls[1] == "1111111111"
    assert calls[2] == "2222211111"
    assert calls[3] == calls[4] == "2222221111"
    assert calls[10] == "2222222221"
    for one in segments[:10]:
        assert sum(one.lengths()) == 10
        assert one.calls == (2,) * sum(one.lengths()[:-1]) + (1,) * one.lengths()[-1]


def test_more_segments_than_layers_raise_and_are_kept_as_data(segments):
    assert [one.error for one in segments[10:]] == [
        "ValueError: range() arg 3 must not be zero"
    ] * 2
    assert segments[10].peak is None


def test_more_segments_can_need_more_memory(segments):
    peaks = [one.peak for one in segments[:10]]
    assert peaks[5] > peaks[4], "6 segments leave 5 layers at the end, 5 segments only 2"
    assert min(peaks) == peaks[9]


@pytest.mark.parametrize("chosen", ["zh", "en", "both"])
def test_every_position_of_the_slider_draws(segments, chosen, monkeypatch):
    monkeypatch.setattr(language.choice, "_chosen", chosen)
    explorer = segments_explorer(segments)
    for position in explorer.positions():
        explorer.move(**position)
        assert explorer.caption


def test_what_checkpoints_save_depends_on_the_kind_of_model():
    found = {(one.kind.name[1], one.each): one for one in measure_kinds(KINDS[1:], (0, 1))}

    def change(kind, what):
        return getattr(found[kind, 1], what) / getattr(found[kind, 0], what) - 1

    assert change("Transformer, batch 1", "peak") == 0, "the optimizer step is the peak"
    assert change("Transformer, batch 1", "kept") < -0.9
    assert change("Linear + ReLU", "kept") == 0
    assert change("Linear + ReLU", "flops") > 0.3
    assert change("convolutional net", "peak") < -0.5
    assert change("MLP, 4 times as wide inside", "flops") == pytest.approx(1 / 6, abs=0.01)
    assert change("MLP, 4 times as wide inside", "kept") < -0.85
    rows = savings_table(list(found.values())).rows
    assert len(rows) == len(found)


def test_times_are_ratios_of_neighbours():
    found = time_kinds(KINDS[4:], rounds=3)
    assert len(found[0].ratios) == 3 and found[0].quartiles[0] <= found[0].median
    assert len(slowdown_table(found).rows) == 1
