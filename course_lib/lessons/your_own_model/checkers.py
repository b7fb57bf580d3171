"""The exercises of lesson 07: a decoder made ready, LoRA's bytes, and the learner's own model."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ...figures.words import size_text
from ...gradients import UnequalWork, same_gradients
from ...memory.measurement import measure
from ...notebook.checking import (
    Answer,
    Unfinished,
    Words,
    Wrong,
    briefly,
    judged,
    number,
    waiting_for,
    words_of,
)
from ...plans.advice import advise
from ...saved import saved_tensors
from ...wrapping import checkpoint_blocks

TOLERATED = 1.03  # times the peak with one checkpoint per block: the same, but for the last bytes
NOTICEABLE = 0.99  # of the peak without checkpoints: a model of one's own may have few blocks


# --- exercise 1: a Hugging Face decoder ---------------------------------------------------------


def _decoder() -> nn.Module:
    """Small, with dropout, as a model comes out of ``from_pretrained``: in eval mode, cache on."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config).eval()


def _words() -> Tensor:
    return torch.randint(0, 200, (4, 64), generator=torch.Generator().manual_seed(0))


def _train(model: nn.Module) -> None:
    model.zero_grad()
    words = _words()
    model(input_ids=words, labels=words).loss.backward()


@judged
def check_prepared(answer: Callable[[nn.Module], Any]) -> Words:
    """Check ``answer(model)``: the same decoder, training, every block in a checkpoint, no cache.

    Judged by what a step does: gradients equal to the plain model's bit for bit, all blocks run
    again, and a peak as low as with one checkpoint per block.
    """
    ask = Answer(answer)
    given = _decoder()
    with _hushed():
        model = ask(given)
        if model is None:
            raise ask.nothing(given)
        if not isinstance(model, nn.Module):
            raise Wrong(
                f"应返回模型，得到的是 {briefly(model)}。",
                f"expected the model, got {briefly(model)}.",
            )
        if not model.training:
            raise Wrong(
                "返回的模型还在 eval()：dropout 关着，Transformers 自己的检查点在那里也静默地"
                "不起作用。先调用 model.train()。",
                "The model returned is still in eval(): dropout is off, and Transformers' own "
                "checkpoints silently do nothing there. Call model.train() first.",
            )
        plain, best = _decoder().train(), _decoder().train()
        plain.config.use_cache = False  # type: ignore[union-attr]
        checkpoint_blocks(best, "LlamaDecoderLayer")
        _check_gradients(plain, model)
        high, low, mine = (_peak(one) for one in (plain, best, model))
        again = _recomputed(model)
        if mine > TOLERATED * low:
            raise Wrong(*_why_so_high(model, high, low, mine, again))
    return (
        f"梯度逐位相同，{again} 个块都重算，峰值从 {size_text(high)} 降到 {size_text(mine)}。",
        f"The gradients are the same bit for bit, all {again} blocks run again, and the peak "
        f"falls from {size_text(high)} to {size_text(mine)}.",
    )


def _check_gradients(plain: nn.Module, model: nn.Module) -> None:
    try:
        found = same_gradients(lambda: _train(plain), lambda: _train(model), model=(plain, model))
    except UnequalWork as error:
        zh, en = words_of(error)
        raise Wrong(
            f"返回的不再是同一个模型：{zh}", f"What was returned is another model: {en}"
        ) from None
    if not found:
        raise Wrong(found.zh, found.en)


def _peak(model: nn.Module) -> int:
    _train(model)  # gradients come into being, and blocks look for state
    return measure(lambda: _train(model), model, inputs=_words()).peak


def _recomputed(model: nn.Module) -> int:
    """How many of the decoder's blocks run more than once in a step.

    Told by the first Linear of their attention: it runs inside of whatever is around the block.
    """
    firsts = {id(module.q_proj) for module in _attentions(model)}
    calls: Counter[int] = Counter()

    def count(module: nn.Module, _: Any) -> None:
        if id(module) in firsts:
            calls[id(module)] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        _train(model)
    finally:
        handle.remove()
    return sum(count > 1 for count in calls.values())


def _attentions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == "LlamaAttention"]


def _why_so_high(model: nn.Module, high: int, low: int, mine: int, again: int) -> Words:
    blocks = len(_attentions(model))
    sizes = size_text(mine), size_text(low)
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # type: ignore[union-attr]
        without = _peak(model)
        if without < 0.98 * mine:
            return (
                f"use_cache 还开着：键和值的缓存让峰值多出 {size_text(mine - without)}。"
                "设 model.config.use_cache = False。",
                "use_cache is still on: the cache of keys and values adds "
                f"{size_text(mine - without)} to the peak. Set model.config.use_cache = False.",
            )
    if again < blocks:
        return (
            f"{blocks} 个块里重算了 {again} 个，峰值 {sizes[0]}；每块一个检查点是 {sizes[1]}。",
            f"{again} of {blocks} blocks run again and the peak is {sizes[0]}; with one "
            f"checkpoint per block it is {sizes[1]}.",
        )
    return (
        f"所有的块都重算了，峰值却有 {sizes[0]}（不用检查点 {size_text(high)}，每块一个 "
        f"{sizes[1]}）：是不是整个模型包在了一个检查点里，或者只包了块的一部分？",
        f"All blocks run again, and yet the peak is {sizes[0]} (without checkpoints "
        f"{size_text(high)}, with one per block {sizes[1]}): is the whole model in one "
        "checkpoint, or only part of each block?",
    )


@contextmanager
def _hushed() -> Iterator[None]:
    """Transformers warns of what it switches off; the verdict says what matters."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


# --- exercise 2: what LoRA keeps ----------------------------------------------------------------

_SHAPES = ((64, 32, 128, 4), (1, 8, 8, 1), (100, 48, 64, 16), (33, 64, 256, 2), (256, 16, 40, 8))


@judged
def check_lora_bytes(answer: Callable[[int, int, int, int], Any]) -> Words:
    """Check ``answer(tokens, width, hidden, rank)`` against what autograd keeps, in bytes.

    The module: Linear, GELU, Linear, frozen, with a LoRA of PEFT on both Linears, float32.
    """
    ask = Answer(answer)
    for shape in _SHAPES:
        said = ask(*shape)
        if said is None:
            raise ask.nothing(*shape)
        kept = _kept(*shape)
        if number(said) != kept:
            raise Wrong(*_fault_in_bytes(said, kept, shape))
    return (
        f"{len(_SHAPES)} 种形状都一字节不差：冻结的是权重，激活值一个也没有少存。",
        f"Right to the byte for all {len(_SHAPES)} shapes: the weights are frozen, and not one "
        "activation fewer is kept.",
    )


@functools.cache
def _kept(tokens: int, width: int, hidden: int, rank: int) -> int:
    from peft import LoraConfig, get_peft_model

    plain = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(plain, LoraConfig(r=rank, target_modules=["0", "2"]))
    return saved_tensors(model, torch.ones(tokens, width, requires_grad=True)).total


def _fault_in_bytes(said: Any, kept: int, shape: tuple[int, int, int, int]) -> Words:
    tokens, width, hidden, rank = shape
    where = f"tokens={tokens}, width={width}, hidden={hidden}, rank={rank}"
    given = number(said)
    if given is None:
        return (
            f"{where}：应返回一个数，得到的是 {briefly(said)}。",
            f"{where}: expected a number, got {briefly(said)}.",
        )
    zh, en = _guess(given, kept, shape)
    return (
        f"{where}：实测 {kept:,} 字节，你的是 {given:,}，差 {given - kept:+,}。{zh}",
        f"{where}: measured {kept:,} bytes, yours is {given:,}, off by {given - kept:+,}. {en}",
    )


def _guess(given: Any, kept: int, shape: tuple[int, int, int, int]) -> Words:
    """What a wrong number is the right one of, as far as can be told."""
    tokens, width, hidden, rank = shape
    known: dict[int, Words] = {
        kept // 4: (
            "这是元素的个数：float32 每个 4 字节。",
            "That is the number of elements: a float32 takes 4 bytes.",
        ),
        4 * tokens * (width + 2 * hidden): (
            "这是全部训练时的：LoRA 的两个小矩阵之间还有一个值，每个 token rank 个数。",
            "That is what full training keeps: between LoRA's two small matrices lies one more "
            "value, rank numbers per token.",
        ),
        4 * tokens * hidden: (
            "这是底座全部冻结、没有 LoRA 时的：lora_A 的梯度要用到它的输入。",
            "That is a frozen base without LoRA: the gradient of lora_A needs its input.",
        ),
        4 * tokens * (width + 2 * hidden + rank): (
            "两个 Linear 都有 LoRA，各有一个中间值。",
            "Both Linears have a LoRA, and each has a value in the middle.",
        ),
    }
    return known.get(
        given,
        (
            "逐个算子想：谁的权重要梯度，谁就要存自己的输入；GELU 总要存。",
            "Take it operator by operator: whose weight needs a gradient keeps its input, and GELU "
            "always keeps its own.",
        ),
    )


# --- exercise 3: the learner's own --------------------------------------------------------------


@judged
def check_yours(build: Callable[[], Any], switch_on: Callable[[nn.Module], Any]) -> Words:
    """Check a model of the learner's own: ``build()`` → ``(model, step)``, ``switch_on(model)``.

    ``step(model)`` runs forward and backward. ``switch_on`` puts checkpoints on the model in place,
    or returns what to use in its stead. Judged: the step trains, its gradients with checkpoints
    are the plain ones, and its peak is lower.
    """
    ask, put_on = Answer(build), Answer(switch_on)
    with _hushed():
        plain, step = _built(ask)
        other, _ = _built(ask)
        _check_trains(plain, step)
        used = put_on(other)
        if used is None and put_on.is_stub:
            raise Unfinished
        used = other if not isinstance(used, nn.Module) else used
        _check_same(plain, used, step)
        before, after = (_measured(model, step) for model in (plain, used))
        if after.peak > NOTICEABLE * before.peak:
            raise Wrong(*_no_lower(plain, used, step, before.peak, after.peak))
    more = f"{after.flops / before.flops - 1:+.1%}" if before.flops else "—"
    sizes = size_text(before.peak), size_text(after.peak)
    return (
        f"梯度相同，峰值从 {sizes[0]} 降到 {sizes[1]}，FLOPs {more}。",
        f"The same gradients; the peak falls from {sizes[0]} to {sizes[1]}, FLOPs {more}.",
    )


def _built(ask: Answer) -> tuple[nn.Module, Callable[[nn.Module], Any]]:
    torch.manual_seed(0)
    made = ask()
    if made is None:
        raise ask.nothing()
    try:
        model, step = made
    except (TypeError, ValueError):
        model = step = None
    if not isinstance(model, nn.Module) or not callable(step):
        raise Wrong(
            "build 应返回 (model, step)：一个模型，和一个运行一步的函数；得到的是 "
            f"{briefly(made)}。",
            "build must return (model, step), a model and a function that runs one step; this is "
            f"{briefly(made)}.",
        )
    return model, Answer(step)


def _check_trains(model: nn.Module, step: Callable[[nn.Module], Any]) -> None:
    model.zero_grad()
    step(model)
    if all(parameter.grad is None for parameter in model.parameters()):
        raise Wrong(
            "step(model) 之后没有一个参数有梯度：前向之后要调用 loss.backward()，"
            "最后不要清掉梯度。",
            "After step(model), no parameter has a gradient: call loss.backward() after the "
            "forward pass, and do not clear the gradients at the end.",
        )


def _from_zero(step: Callable[[nn.Module], Any], model: nn.Module) -> None:
    model.zero_grad()
    step(model)


def _check_same(plain: nn.Module, used: nn.Module, step: Callable[[nn.Module], Any]) -> None:
    once = functools.partial(_from_zero, step)
    with waiting_for(("核对梯度", "the comparison of gradients")):
        try:
            found = same_gradients(lambda: once(plain), lambda: once(used), model=(plain, used))
        except UnequalWork as error:
            zh, en = words_of(error)
            raise Wrong(
                f"加了检查点的不再是同一个模型：{zh}", f"With checkpoints it is another model: {en}"
            ) from None
    if found:
        return
    if found.error is not None:
        raise found.error
    first = found.first
    if first is not None and first.kind == "buffer":
        raise Wrong(
            f"{found.zh}反向传播时前向又跑了一遍，状态也跟着多动了一次：把这一层留在检查点外面，"
            "或者换成没有状态的。",
            f"{found.en} The forward pass ran again during backward, and its state moved once "
            "more: leave that layer outside of checkpoints, or use one without state.",
        )
    raise Wrong(found.zh, found.en)


def _measured(model: nn.Module, step: Callable[[nn.Module], Any]) -> Any:
    _from_zero(step, model)
    return measure(functools.partial(_from_zero, step, model), model)


def _no_lower(
    plain: nn.Module, used: nn.Module, step: Callable[[nn.Module], Any], before: int, after: int
) -> Words:
    sizes = size_text(before), size_text(after)
    zh = f"检查点没有让峰值降下来：原来 {sizes[0]}，现在 {sizes[1]}。"
    en = f"The checkpoints do not lower the peak: {sizes[0]} before, {sizes[1]} now."
    if not used.training:
        return (
            f"{zh}模型处在 eval()：库自己的开关在那里不起作用。",
            f"{en} The model is in eval(), where a library's own switch does nothing.",
        )
    try:
        plain.zero_grad()
        advice = advise(lambda: step(plain), plain)
    except (TypeError, ValueError):  # no blocks, say: then there is nothing to add
        return zh, en
    best = min(advice.options, key=lambda option: option.peak)
    if best.peak > NOTICEABLE * before:
        last = advice.diagnosis.zh.splitlines()[-1], advice.diagnosis.en.splitlines()[-1]
        return f"{zh}advise 说：{last[0]}", f"{en} advise says: {last[1]}"
    return (
        f"{zh}advise 在 {advice.took} 里找到一种做法，峰值是 {size_text(best.peak)}：{best.zh}。",
        f"{en} Among {advice.took}, advise finds one with a peak of {size_text(best.peak)}: "
        f"{best.en}.",
    )
