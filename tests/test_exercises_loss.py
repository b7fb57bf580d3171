"""The checkers of lesson 06's loss and offloading: right answers pass, wrong ones hear why."""

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from course_lib.lessons.choosing_what_to_recompute.loss_checkers import (
    check_chunked_loss,
    chunked_loss,
)
from course_lib.lessons.choosing_what_to_recompute.offload_checkers import check_offload, offload
from support.verdicts import heard, speak, verdict_on


@pytest.fixture(params=["zh", "en"])
def spoken(request, monkeypatch):
    speak(monkeypatch, request.param)


# --- the chunked loss ---------------------------------------------------------------------------


def part(head, h, t):
    return functional.cross_entropy(head(h), t, reduction="sum")


def pieces(hidden, targets, chunks):
    return list(zip(hidden.chunk(chunks), targets.chunk(chunks), strict=True))


def again(*args):
    return checkpoint(*args, use_reentrant=False)


def by_slices(hidden, head, targets, chunks):
    size = -(-len(targets) // chunks)
    counted = targets.ne(-100).sum()
    loss = 0.0
    for start in range(0, len(targets), size):
        cut = slice(start, start + size)
        loss = loss + again(part, head, hidden[cut], targets[cut]) / counted
    return loss


class GradientsAtOnce(Function):
    """As ``linear_cross_entropy`` with options: gradients in the forward pass, nothing again."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, chunks):
        counted = targets.ne(-100).sum()
        total, gh, gw = 0.0, [], torch.zeros_like(weight)
        gb = None if bias is None else torch.zeros_like(bias)
        for h, t in pieces(hidden, targets, chunks):
            keep = t.ne(-100)
            scores = functional.linear(h, weight, bias).log_softmax(-1)
            total = total + functional.nll_loss(scores, t, reduction="sum")
            g = scores.exp_()
            g[torch.arange(len(t)), t.clamp(min=0)] -= 1
            g *= keep[:, None] / counted
            gh.append(g @ weight)
            gw.addmm_(g.T, h)
            if gb is not None:
                gb += g.sum(0)
            del scores, g
        ctx.save_for_backward(torch.cat(gh), gw, *([] if gb is None else [gb]))
        return total / counted

    @staticmethod
    def backward(ctx, grad):
        gh, gw, *gb = ctx.saved_tensors
        return grad * gh, grad * gw, grad * gb[0] if gb else None, None, None


def by_function(hidden, head, targets, chunks):
    return GradientsAtOnce.apply(hidden, head.weight, head.bias, targets, chunks)


@pytest.mark.parametrize("answer", [chunked_loss, by_slices, by_function])
def test_right_losses_pass(answer, spoken):
    heard(
        verdict_on(check_chunked_loss, answer),
        "right",
        "损失和梯度都对",
        "in 16 chunks the peak falls",
    )


def not_done(hidden, head, targets, chunks):
    return None


def no_return(hidden, head, targets, chunks):
    sum(again(part, head, h, t) for h, t in pieces(hidden, targets, chunks))


def as_number(hidden, head, targets, chunks):
    return chunked_loss(hidden, head, targets, chunks).item()


def per_token(hidden, head, targets, chunks):
    return functional.cross_entropy(head(hidden), targets, reduction="none")


def backward_inside(hidden, head, targets, chunks):
    loss = chunked_loss(hidden, head, targets, chunks)
    loss.backward()
    return loss.detach()


def mean_of_means(hidden, head, targets, chunks):
    losses = [again(lambda h, t: functional.cross_entropy(head(h), t), h, t)
              for h, t in pieces(hidden, targets, chunks)]  # fmt: skip
    return torch.stack(losses).mean()


def sum_of_means(hidden, head, targets, chunks):
    return sum(again(lambda h, t: functional.cross_entropy(head(h), t), h, t)
               for h, t in pieces(hidden, targets, chunks))  # fmt: skip


def not_divided(hidden, head, targets, chunks):
    return sum(again(part, head, h, t) for h, t in pieces(hidden, targets, chunks))


def padding_counted(hidden, head, targets, chunks):
    return not_divided(hidden, head, targets, chunks) / len(targets)


def rest_lost(hidden, head, targets, chunks):
    size = len(targets) // chunks
    starts = range(0, size * chunks, size)
    total = sum(again(part, head, hidden[i : i + size], targets[i : i + size]) for i in starts)
    return total / targets.ne(-100).sum()


def late_binding(hidden, head, targets, chunks):
    total = 0.0
    for h, t in pieces(hidden, targets, chunks):
        total = total + again(lambda h: part(head, h, t), h)  # noqa: B023
    return total / targets.ne(-100).sum()


def detached(hidden, head, targets, chunks):
    return chunked_loss(hidden.detach(), head, targets, chunks)


def reentrant(hidden, head, targets, chunks):
    total = sum(
        checkpoint(part, head, h, t, use_reentrant=True) for h, t in pieces(hidden, targets, chunks)
    )
    return total / targets.ne(-100).sum()


def no_checkpoint(hidden, head, targets, chunks):
    total = sum(part(head, h, t) for h, t in pieces(hidden, targets, chunks))
    return total / targets.ne(-100).sum()


def all_logits_first(hidden, head, targets, chunks):
    logits = head(hidden)
    total = sum(
        again(lambda z, t: functional.cross_entropy(z, t, reduction="sum"), z, t)
        for z, t in pieces(logits, targets, chunks)
    )
    return total / targets.ne(-100).sum()


def only_the_loss(hidden, head, targets, chunks):
    total = sum(
        again(lambda z, t: functional.cross_entropy(z, t, reduction="sum"), head(h), t)
        for h, t in pieces(hidden, targets, chunks)
    )
    return total / targets.ne(-100).sum()


def one_around_all(hidden, head, targets, chunks):
    return again(no_checkpoint, hidden, head, targets, chunks)


def not_at_all(hidden, head, targets, chunks):
    return functional.cross_entropy(head(hidden), targets)


def always_two(hidden, head, targets, chunks):
    return chunked_loss(hidden, head, targets, min(chunks, 2))


def token_by_token(hidden, head, targets, chunks):
    return chunked_loss(hidden, head, targets, len(targets) if chunks > 1 else 1)


WRONG_LOSSES = {
    no_return: ("少了 return", "is a return missing"),
    as_number: ("应返回一个标量张量", "expected a tensor with one number"),
    per_token: ("应返回一个标量张量", "expected a tensor with one number"),
    backward_inside: ("没有计算图", "has no graph"),
    mean_of_means: ("各块平均值的平均", "mean of the chunks' means"),
    sum_of_means: ("各块平均值之和", "sum of the chunks' means"),
    not_divided: ("这是总和", "That is the sum"),
    padding_counted: ("填充", "Padding"),
    rest_lost: ("最后几个 token 丢了", "last tokens are lost"),
    late_binding: ("循环变量", "loop variable"),
    detached: ("hidden 没有梯度", "hidden has no gradient"),
    reentrant: ("重入", "reentrant"),
    no_checkpoint: ("各块的 logits 都还保留着", "logits of all chunks are still kept"),
    all_logits_first: ("一次就算了出来", "computed at once"),
    only_the_loss: ("各块的 logits 都还保留着", "logits of all chunks are still kept"),
    one_around_all: ("只有一个检查点", "one checkpoint around all"),
    not_at_all: ("一次就算了出来", "computed at once"),
    always_two: ("只切了 2 块", "cut only 2"),
    token_by_token: ("每块都有固定的开销", "each has its overhead"),
}


@pytest.mark.parametrize("answer", WRONG_LOSSES)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_wrong_loss_hears_what_is_wrong(answer, spoken):
    heard(verdict_on(check_chunked_loss, answer), "wrong", *WRONG_LOSSES[answer])


def test_the_stub_of_the_loss_is_not_done(spoken):
    heard(verdict_on(check_chunked_loss, not_done), "unfinished", "还没有做", "Not done yet")


# --- hooks that offload -------------------------------------------------------------------------


def storages(model):
    return {p.untyped_storage().data_ptr() for p in model.parameters()}


def by_class(model, least):
    class Offload:
        def __init__(self):
            self.own = storages(model)

        def away(self, t):
            stays = t.nbytes < least or t.untyped_storage().data_ptr() in self.own
            return (t, None) if stays else (t.to("cpu").cpu(), t.device)

        def back(self, packed):
            t, device = packed
            return t if device is None else t.to(device)

    one = Offload()
    return one.away, one.back


def pinned(model, least):
    own = storages(model)

    def pack(t):
        if t.untyped_storage().data_ptr() in own or t.nbytes < least:
            return t, False
        host = torch.empty(t.size(), dtype=t.dtype, pin_memory=True)
        host.copy_(t)
        return host, True

    return pack, lambda packed: packed[0].to("cpu") if packed[1] else packed[0]


@pytest.mark.parametrize("answer", [offload, by_class, pinned])
def test_right_hooks_pass(answer, spoken):
    heard(verdict_on(check_offload, answer), "right", "梯度逐位相同", "the same bit for bit")


def hooks_not_done(model, least):
    return None


def hooks_forgotten(model, least):
    offload(model, least)


def only_pack(model, least):
    return offload(model, least)[0]


def nothing_moves(model, least):
    return (lambda t: t), (lambda t: t)


def everything_moves(model, least):
    return (lambda t: t.cpu()), (lambda t: t.to("cpu"))


def small_too(model, least):
    return offload(model, 0)


def by_type(model, least):
    def pack(t):
        if isinstance(t, nn.Parameter) or t.nbytes < least:
            return t, False
        return t.cpu(), True

    return pack, lambda packed: packed[0].to("cpu") if packed[1] else packed[0]


def by_address(model, least):
    own = {p.data_ptr() for p in model.parameters()}

    def pack(t):
        if t.data_ptr() in own or t.nbytes < least:
            return t, False
        return t.cpu(), True

    return pack, lambda packed: packed[0].to("cpu") if packed[1] else packed[0]


def only_the_large(model, least):
    return offload(model, 8 * least)


def never_back(model, least):
    pack, _ = offload(model, least)
    return pack, lambda packed: packed if isinstance(packed, torch.Tensor) else packed[1]


def in_half(model, least):
    pack, unpack = offload(model, least)

    def smaller(t):
        packed = pack(t)
        return t if isinstance(packed, torch.Tensor) else (packed[0], t.half().cpu())

    return smaller, lambda p: p if isinstance(p, torch.Tensor) else unpack(p).float()


WRONG_HOOKS = {
    hooks_forgotten: ("少了 return", "is a return missing"),
    only_pack: ("两个函数", "two functions"),
    nothing_moves: ("什么也没有搬", "Nothing is moved"),
    everything_moves: ("权重和小张量也搬走了", "Weights and small tensors are moved"),
    small_too: ("小于 least 的也搬了", "smaller than least are moved"),
    by_type: ("多出来的是权重", "The rest are weights"),
    by_address: ("多出来的是权重", "The rest are weights"),
    only_the_large: ("留在了设备上", "stay on the device"),
    never_back: ("只搬回 0", "0 come back"),
    in_half: ("梯度变了", "has changed"),
}


@pytest.mark.parametrize("answer", WRONG_HOOKS)
def test_wrong_hooks_hear_what_is_wrong(answer, spoken):
    heard(verdict_on(check_offload, answer), "wrong", *WRONG_HOOKS[answer])


def test_the_stub_of_the_hooks_is_not_done(spoken):
    heard(verdict_on(check_offload, hooks_not_done), "unfinished", "还没有做", "Not done yet")
