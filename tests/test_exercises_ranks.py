"""The checkers of lesson 08: right answers pass, each wrong one hears what is wrong."""

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import fully_shard

from course_lib.lessons.more_than_one_device import Block
from course_lib.lessons.more_than_one_device.checkers import (
    check_held,
    check_routing,
    check_spread,
)
from course_lib.wrapping import checkpoint_blocks
from support.verdicts import heard, speak, verdict_on


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["zh", "en"])
def spoken(request, monkeypatch):
    speak(monkeypatch, request.param)


# Exercise 1


def held(parameters, ranks, sharded):
    """In multiples of the parameters, what is whole and what is divided."""
    whole, divided = {
        "nothing": (4, 0),
        "optimizer state": (2, 2),
        "gradients": (1, 3),
        "parameters": (0, 3),
    }[sharded]
    return 4 * parameters * whole + 4 * parameters * divided // ranks


def of_stages(parameters, ranks, sharded):
    stage = ["nothing", "optimizer state", "gradients", "parameters"].index(sharded)
    sizes = [4 * parameters, 4 * parameters, 8 * parameters]  # parameters, gradients, moments
    if stage >= 1:
        sizes[2] /= ranks
    if stage >= 2:
        sizes[1] = sizes[0] / ranks  # no gradients; a share besides what is gathered
    if stage == 3:
        sizes[0] = 0
    return torch.tensor(sum(sizes))


@pytest.mark.parametrize("answer", [held, of_stages])
def test_right_bytes_pass(answer, spoken):
    heard(verdict_on(check_held, answer), "right", "一字节不差", "to the byte")


def changed(at, more):
    """The right answer, but for one stage."""
    return lambda p, n, sharded: held(p, n, sharded) + (more(p, n) if sharded == at else 0)


@pytest.mark.parametrize(
    ("answer", "zh", "en"),
    [
        (lambda p, n, s: held(p, n, s) // 4, "元素的个数", "number of elements"),
        (changed("nothing", lambda p, n: -4 * p), "差 -131,072.*DDP 的桶", "DDP's buckets"),
        (changed("optimizer state", lambda p, n: -4 * p), "DDP 的桶", "DDP's buckets"),
        (changed("gradients", lambda p, n: -4 * p), "聚合的参数还在", "gathered parameters are"),
        (changed("parameters", lambda p, n: 4 * p), "就放掉了", "go as soon as"),
        (changed("gradients", lambda p, n: 4 * p // n), "没有梯度", "no gradients"),
        (changed("parameters", lambda p, n: 4 * p // n), "没有梯度", "no gradients"),
        (changed("optimizer state", lambda p, n: 8 * p), "一样一样地想", "one by one"),
        (lambda p, n, s: "a lot", "应返回一个数", "expected a number"),
        (lambda p, n, s: float("inf"), "应返回一个数", "expected a number"),
        (lambda p, n, s: p / 0, "ZeroDivisionError", "ZeroDivisionError"),
    ],
)
def test_wrong_bytes_are_told_by_how_much(answer, zh, en, spoken):
    heard(verdict_on(check_held, answer), "wrong", zh, en)


# Exercise 2


def block_by_block(model, mesh):
    checkpoint_blocks(model, "Block")
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def sharded_first(model, mesh):
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, Block))


def wrapped_by_hand(model, mesh):
    for i, block in enumerate(model.blocks):
        model.blocks[i] = fully_shard(checkpoint_wrapper(block), mesh=mesh)
    return fully_shard(model, mesh=mesh, reshard_after_forward=False)


@pytest.mark.parametrize("answer", [block_by_block, sharded_first, wrapped_by_hand])
def test_right_decoders_pass(answer, spoken):
    heard(verdict_on(check_spread, answer), "right", "峰值从", "The peak of each rank falls")


def only_checkpoints(model, mesh):
    checkpoint_blocks(model, "Block")


def only_blocks(model, mesh):
    checkpoint_blocks(model, "Block")
    for block in model.blocks:
        fully_shard(block, mesh=mesh)


def all_in_one(model, mesh):
    checkpoint_blocks(model, "Block")
    fully_shard(model, mesh=mesh)


def kept_gathered(model, mesh):
    checkpoint_blocks(model, "Block")
    for block in model.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh)


def only_shards(model, mesh):
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def every_second(model, mesh):
    checkpoint_blocks(model, "Block", every=2)
    only_shards(model, mesh)


def by_the_name_of_the_class(model, mesh):
    only_shards(model, mesh)
    apply_activation_checkpointing(model, check_fn=lambda m: type(m).__name__ == "Block")


def two_groups(model, mesh):
    checkpoint_blocks(model, "Block")
    half = len(model.blocks) // 2
    fully_shard(list(model.blocks[:half]), mesh=mesh)
    fully_shard(list(model.blocks[half:]), mesh=mesh)
    fully_shard(model, mesh=mesh)


def raises(model, mesh):
    raise LookupError("where are the blocks?")


@pytest.mark.parametrize(
    ("answer", "zh", "en"),
    [
        (only_checkpoints, "还拿着全部参数", "still holds all parameters"),
        (only_blocks, "八分之一是.*块以外的", "an eighth is.*outside the blocks"),
        (all_in_one, "聚合", "gathered"),
        (kept_gathered, "前向结束时还聚合着", "At the end of forward"),
        (only_shards, "有的块没有重算", "Not every block runs again"),
        (every_second, "有的块没有重算", "Not every block runs again"),
        (by_the_name_of_the_class, "FSDPBlock", "FSDPBlock"),
        (two_groups, "聚合", "gathered"),
        (raises, "LookupError", "where are the blocks"),
    ],
)
def test_wrong_decoders_are_told_why(answer, zh, en, spoken):
    heard(verdict_on(check_spread, answer), "wrong", zh, en)


# Exercise 3


def choose(block, scores):
    return (scores + block.bias).argmax(-1)


def tokens_of(block, chosen):
    return torch.bincount(chosen, minlength=len(block.seen))


def note_down(block, scores):
    block.tokens = tokens_of(block, choose(block, scores))
    return choose(block, scores)


def count(block):
    block.seen += block.tokens


def balance(block, sign=1):
    block.bias += sign * block.rate * (block.tokens.float().mean() - block.tokens).sign()


def both(block):
    count(block)
    balance(block)


def keep_choice(block, scores):
    block.chosen = torch.topk(scores + block.bias, 1).indices[:, 0]
    return block.chosen


def from_choice(block):
    block.tokens = tokens_of(block, block.chosen)
    both(block)


def add_unless_recomputed(block, scores):
    chosen = choose(block, scores)
    if torch._C._current_graph_task_id() == -1:
        block.tokens = tokens_of(block, chosen)
        block.seen += block.tokens
    return chosen


@pytest.mark.parametrize(
    ("route", "after"),
    [(note_down, both), (keep_choice, from_choice), (add_unless_recomputed, balance)],
)
def test_right_routers_pass(route, after, spoken):
    heard(verdict_on(check_routing, route, after), "right", "每个 token 数一次", "counted once")


def counts_in_forward(block, scores):
    chosen = note_down(block, scores)
    block.seen += block.tokens
    return chosen


def moves_in_forward(block, scores):
    chosen = note_down(block, scores)
    balance(block)
    return chosen


def adds_up(block, scores):
    chosen = choose(block, scores)
    block.tokens = getattr(block, "tokens", 0) + tokens_of(block, chosen)
    return chosen


def without_bias(block, scores):
    block.tokens = tokens_of(block, scores.argmax(-1))
    return scores.argmax(-1)


def one_hot(block, scores):
    note_down(block, scores)
    return torch.nn.functional.one_hot(choose(block, scores), len(block.seen))


def says_nothing(block, scores):
    note_down(block, scores)


def twice(block):
    count(block)
    balance(block)
    balance(block)


def wrong_way(block):
    count(block)
    balance(block, -1)


@pytest.mark.parametrize(
    ("route", "after", "zh", "en"),
    [
        (counts_in_forward, balance, r"有检查点.*96.*48 个.*数了两次", "96.*48 tokens.*twice"),
        (moves_in_forward, count, "CheckpointError", "CheckpointError"),
        (adds_up, both, "有检查点.*seen 增加了 96", "with checkpoints.*grew by 96"),
        (without_bias, both, "没有去 scores", "do not go to the expert"),
        (one_hot, both, "形状", "shape"),
        (says_nothing, both, "少了 return", "is a return missing"),
        (note_down, twice, "动了两次", "moved twice"),
        (note_down, wrong_way, "方向反了", "wrong way"),
        (note_down, count, r"bias 应改变", "bias must change by"),
        (note_down, lambda block: None, "seen 增加了 0", "seen grew by 0"),
    ],
)
def test_wrong_routers_are_told_why(route, after, zh, en, spoken):
    heard(verdict_on(check_routing, route, after), "wrong", zh, en)


def test_stubs_are_unfinished(spoken):
    heard(verdict_on(check_held, lambda parameters, ranks, sharded: None), "unfinished")
    heard(verdict_on(check_spread, lambda model, mesh: None), "unfinished")
    heard(verdict_on(check_routing, lambda block, scores: None, lambda block: None), "unfinished")
