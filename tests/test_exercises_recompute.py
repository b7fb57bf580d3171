"""Lesson 02's checkers: right answers pass however they are written, wrong ones hear why."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from course_lib import recompute
from course_lib.lessons import manual_recomputation as exercises
from course_lib.lessons.manual_recomputation.chains import chain_measured
from course_lib.recompute import Repeatable, Rerun, rerun_alike
from support.verdicts import heard, speak, verdict_on

RIGHT, WRONG = {}, {}


def right(check):
    """Enter an answer that has to pass ``check``."""

    def enter(answer):
        RIGHT[check.__name__, answer.__name__] = (check, answer)
        return answer

    return enter


def wrong(check, zh, en):
    """Enter an answer that has to fail ``check`` with a message that holds ``zh`` and ``en``."""

    def enter(answer):
        WRONG[check.__name__, answer.__name__] = (check, answer, zh, en)
        return answer

    return enter


# --- 1. by hand ---------------------------------------------------------------------------------

by_hand = exercises.check_by_hand
right(by_hand)(recompute.step_by_hand)


@right(by_hand)
def runs_body_with_a_graph_and_drops_it(body, head, x):
    middle = body(x).detach().requires_grad_()
    loss = head(middle)
    loss.backward()
    torch.autograd.backward([body(x)], [middle.grad])
    return loss.detach()


@right(by_hand)
def asks_for_gradients_and_adds_them_itself(body, head, x):
    with torch.no_grad():
        middle = body(x)
    middle.requires_grad_()
    loss = head(middle)
    parameters = list(head.parameters())
    gradient, *others = torch.autograd.grad(loss, [middle, *parameters])
    leaves = [*body.parameters(), *([x] if x.requires_grad else [])]
    others += torch.autograd.grad(body(x), leaves, gradient)
    for leaf, grad in zip([*parameters, *leaves], others, strict=True):
        leaf.grad = grad if leaf.grad is None else leaf.grad + grad
    return loss.detach()


@wrong(by_hand, "只运行了 1 次，应为 2 次", "ran only once in all, expected 2")
def keeps_everything(body, head, x):
    loss = head(body(x))
    loss.backward()
    return loss.detach()


@wrong(by_hand, "x 没有得到梯度", "x got no gradient")
def forgets_the_second_run(body, head, x):
    loss = head(body(x).detach())
    loss.backward()
    return loss.detach()


@wrong(by_hand, "x 的梯度与普通反向传播不同", "the gradient of x differs from plain backward's")
def forgets_the_gradient_of_the_middle(body, head, x):
    with torch.no_grad():
        middle = body(x)
    middle.requires_grad_()
    loss = head(middle)
    loss.backward()
    body(x).sum().backward()
    return loss.detach()


@wrong(by_hand, "没有人要过那个梯度", "nobody asked for it")
def forgets_that_the_middle_needs_a_gradient(body, head, x):
    with torch.no_grad():
        middle = body(x)
    loss = head(middle)
    loss.backward()
    body(x).backward(middle.grad)
    return loss.detach()


@wrong(by_hand, "weight 的梯度正好是应有的 2 倍", "head.block.0.weight is exactly twice")
def doubles_the_gradients_of_the_head(body, head, x):
    with torch.no_grad():
        loss = head(body(x))
    middle = body(x)
    gradient_of = middle.detach().requires_grad_()
    head(gradient_of).backward()
    head(gradient_of.detach()).backward()
    middle.backward(gradient_of.grad)
    return loss


@wrong(by_hand, "head 运行了 2 次", "head ran 2 times")
def runs_the_head_again(body, head, x):
    with torch.no_grad():
        head(body(x))
    loss = head(body(x))
    loss.backward()
    return loss.detach()


@wrong(by_hand, "峰值是", "the peak is")
def keeps_the_graph_of_the_first_run(body, head, x):
    first = body(x)
    middle = first.detach().requires_grad_()
    loss = head(middle)
    loss.backward()
    body(x).backward(middle.grad)
    return loss.detach()


@wrong(by_hand, "返回的损失还带着计算图", "the loss you return still has its graph")
def returns_the_loss_with_its_graph(body, head, x):
    with torch.no_grad():
        middle = body(x)
    middle.requires_grad_()
    loss = head(middle)
    loss.backward()
    body(x).backward(middle.grad)
    return loss


@wrong(by_hand, "运行了，却没有返回结果", "ran, but returned nothing")
def forgets_to_return_the_loss(body, head, x):
    recompute.step_by_hand(body, head, x)


@wrong(by_hand, "不能盖掉旧的", "not replace it")
def overwrites_gradients(body, head, x):
    for leaf in (x, *body.parameters(), *head.parameters()):
        leaf.grad = None
    return recompute.step_by_hand(body, head, x)


@right(by_hand)
@torch.enable_grad()
def decorated(body, head, x):
    """The graph of the first run is thrown away before head runs."""
    middle = body(x).detach_().requires_grad_(True)
    loss = head(middle)
    loss.backward()
    outputs = body(x)
    (outputs * middle.grad).sum().backward()
    return loss.detach()


@wrong(by_hand, "应返回损失（张量），得到的是 float", "Return the loss, a tensor, not float")
def returns_a_number(body, head, x):
    return recompute.step_by_hand(body, head, x).item()


@wrong(by_hand, "参数 body.0.weight 没有得到梯度", "parameter body.0.weight got no gradient")
def works_on_a_copy(body, head, x):
    return recompute.step_by_hand(copy.deepcopy(body), head, x)


history = []


@wrong(by_hand, "每一步都多出 65,536 字节收不回来", "each step leaves 65,536 bytes more")
def keeps_a_history(body, head, x):
    with torch.no_grad():
        middle = body(x)
    history.append(middle.requires_grad_())
    loss = head(middle)
    loss.backward()
    body(x).backward(middle.grad)
    return loss.detach()


@wrong(by_hand, "梯度模式关着", "grad mode is off, which it was not")
def leaves_grad_mode_off(body, head, x):
    loss = recompute.step_by_hand(body, head, x)
    torch.set_grad_enabled(False)
    return loss


@wrong(by_hand, "x 不要梯度，却得到了一个", "x needs no gradient but got one")
def makes_the_input_require_one(body, head, x):
    return recompute.step_by_hand(body, head, x.requires_grad_())


@wrong(by_hand, r"调用是 raises\(Sequential, _Head, tensor\[512, 32\]\)\n在第 \d+ 行：raise",
       r"The call was raises\(Sequential, _Head, tensor\[512, 32\]\)\nIn line \d+: r")  # fmt: skip
def raises(body, head, x):
    raise LookupError("somewhere")


# --- 2. autograd function -----------------------------------------------------------------------

function_check = exercises.check_function
RIGHT["check_function", "reference"] = (function_check, Rerun.apply)


@right(function_check)
def torchs_own_reentrant(function, *inputs):
    return torch_checkpoint(function, *inputs, use_reentrant=True)


@right(function_check)
def returns_the_parameters_gradients_too(function, *inputs):
    class WithParameters(torch.autograd.Function):
        @staticmethod
        def forward(ctx, function, count, *tensors):
            ctx.function, ctx.count = function, count
            ctx.save_for_backward(*tensors)
            return function(*tensors[:count])

        @staticmethod
        def backward(ctx, *gradients):
            wanted = [t.requires_grad for t in ctx.saved_tensors]
            leaves = [
                t.detach().requires_grad_(w) if i < ctx.count else t
                for i, (t, w) in enumerate(zip(ctx.saved_tensors, wanted, strict=True))
            ]
            with torch.enable_grad():
                outputs = ctx.function(*leaves[: ctx.count])
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            found = iter(torch.autograd.grad(
                outputs, [t for t, w in zip(leaves, wanted, strict=True) if w], gradients
            ))  # fmt: skip
            return None, None, *(next(found) if w else None for w in wanted)

    return WithParameters.apply(function, len(inputs), *inputs, *function.parameters())


def autograd_function(forward, backward):
    """``Rerun`` with another forward or backward."""
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Mine", (torch.autograd.Function,), methods).apply


@wrong(function_check, "只运行了 1 次，应为 2 次", "ran only once in all, expected 2")
def just_calls_it(function, *inputs):
    return function(*inputs)


def backward_on_the_old_graph(ctx, *gradients):
    inputs = ctx.saved_tensors
    for x in inputs:
        x.retain_grad()
    with torch.enable_grad():
        output = ctx.function(*inputs)
    torch.autograd.backward(output, *gradients)
    return None, *(x.grad for x in inputs)


@wrong(function_check, r"先 x\.detach\(\)", r"x\.detach\(\) first")
def forgets_detach(function, *inputs):
    return autograd_function(Rerun.forward, backward_on_the_old_graph)(function, *inputs)


def backward_without_grad_mode(ctx, *gradients):
    inputs = [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
    torch.autograd.backward(ctx.function(*inputs), *gradients)
    return None, *(x.grad for x in inputs)


@wrong(function_check, "用 torch.enable_grad()", "use torch.enable_grad()")
def forgets_enable_grad(function, *inputs):
    return autograd_function(Rerun.forward, backward_without_grad_mode)(function, *inputs)


def backward_for_inputs_alone(ctx, *gradients):
    inputs = [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
    with torch.enable_grad():
        output = ctx.function(*inputs)
    return None, *torch.autograd.grad(output, inputs, gradients)


@wrong(function_check, "参数 0.weight 没有得到梯度", "parameter 0.weight got no gradient")
def forgets_the_parameters(function, *inputs):
    return autograd_function(Rerun.forward, backward_for_inputs_alone)(function, *inputs)


def backward_with_ones(ctx, *gradients):
    return Rerun.backward(ctx, *map(torch.ones_like, gradients))


@wrong(function_check, "x 的梯度与普通反向传播不同", "the gradient of x differs")
def forgets_the_incoming_gradient(function, *inputs):
    return autograd_function(Rerun.forward, backward_with_ones)(function, *inputs)


def backward_twice(ctx, *gradients):
    first = Rerun.backward(ctx, *gradients)
    return tuple(g if g is None else 2 * g for g in first)


@wrong(function_check, "x 的梯度", "the gradient of x")
def doubles_the_input_gradient(function, *inputs):
    return autograd_function(Rerun.forward, backward_twice)(function, *inputs)


def forward_that_holds_the_output(ctx, function, *inputs):
    output = Rerun.forward(ctx, function, *inputs)
    ctx.output = output.clone() if isinstance(output, torch.Tensor) else output
    return output


@wrong(function_check, "谁还拿着它", "who still holds it")
def keeps_the_output_alive(function, *inputs):
    return autograd_function(forward_that_holds_the_output, Rerun.backward)(function, *inputs)


def forward_with_a_graph(ctx, function, *inputs):
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    with torch.enable_grad():
        ctx.graph = function(*leaves)
    ctx.function = function
    ctx.save_for_backward(*inputs)
    return (
        ctx.graph.detach()
        if isinstance(ctx.graph, torch.Tensor)
        else tuple(output.detach() for output in ctx.graph)
    )


@wrong(function_check, "字节，应不超过", "bytes are kept when the forward pass ends")
def keeps_the_graph_and_runs_again(function, *inputs):
    return autograd_function(forward_with_a_graph, Rerun.backward)(function, *inputs)


def backward_for_one_output(ctx, *gradients):
    inputs = [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
    with torch.enable_grad():
        outputs = ctx.function(*inputs)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    first.backward(gradients[0])
    return None, *(x.grad for x in inputs)


@wrong(function_check, "两个输入、两个输出", "two inputs and two outputs")
def forgets_the_second_output(function, *inputs):
    return autograd_function(Rerun.forward, backward_for_one_output)(function, *inputs)


@wrong(function_check, "运行了，却没有返回结果", "ran, but returned nothing")
def forgets_to_return_the_output(function, *inputs):
    Rerun.apply(function, *inputs)


@wrong(function_check, "输出没有 grad_fn", "the output has no grad_fn")
def never_comes_back(function, *inputs):
    with torch.no_grad():
        return function(*inputs)


@wrong(function_check, "总共运行了 3 次，应为 2 次", "ran 3 times in all, expected 2")
def runs_it_once_too_often(function, *inputs):
    def backward(ctx, *gradients):
        ctx.function(*ctx.saved_tensors)
        return Rerun.backward(ctx, *gradients)

    return autograd_function(Rerun.forward, backward)(function, *inputs)


@wrong(function_check, "backward 就要返回几项", "backward returns one item for each value")
def returns_too_few_gradients(function, *inputs):
    return autograd_function(Rerun.forward, lambda ctx, *gradients: (
        Rerun.backward(ctx, *gradients)[1:]))(function, *inputs)  # fmt: skip


WRONG["check_function", "the class itself"] = (
    function_check, Rerun, "要交给检查器的是 Rerun.apply", "Hand Rerun.apply to the checker",
)  # fmt: skip


class OnTheClass(torch.autograd.Function):
    """Keeps what it needs on the class: that of the last call."""

    @staticmethod
    def forward(ctx, function, *inputs):
        OnTheClass.function, OnTheClass.inputs = function, inputs
        return function(*inputs)

    @staticmethod
    def backward(ctx, *gradients):
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in OnTheClass.inputs]
        with torch.enable_grad():
            outputs = OnTheClass.function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(y, g) for y, g in zip(outputs, gradients, strict=True) if y.requires_grad]
        torch.autograd.backward(*zip(*pairs, strict=True))
        return None, *(x.grad for x in inputs)


@wrong(function_check, "每次调用要有自己的一份东西", "each call has to keep things of its own")
def state_on_the_class(function, *inputs):
    return OnTheClass.apply(function, *inputs)


class OnAStack(OnTheClass):
    """Keeps it on a stack, as if checkpoints always ran backward in the opposite order."""

    stack = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, function, *inputs):
        OnAStack.stack.append((function, inputs))
        return function(*inputs)

    @staticmethod
    def backward(ctx, *gradients):
        OnTheClass.function, OnTheClass.inputs = OnAStack.stack.pop()
        return OnTheClass.backward(ctx, *gradients)


@wrong(function_check, "每次调用要有自己的一份东西", "each call has to keep things of its own")
def state_on_a_stack(function, *inputs):
    return OnAStack.apply(function, *inputs)


@wrong(function_check, "每一步都多出 .* 字节收不回来", "put into a global or a class and never")
def keeps_all_inputs_for_ever(function, *inputs):
    history.append(inputs)
    return Rerun.apply(function, *inputs)


@right(function_check)
def by_keyword_and_partial(function, *inputs):
    """A class made anew for each call, which keeps what it needs in a closure."""

    class Mine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *given):
            ctx.save_for_backward(*given)
            return function(*given)

        @staticmethod
        def backward(ctx, *gradients):
            ctx_function = functools.partial(function)
            leaves = [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]
            with torch.enable_grad():
                outputs = ctx_function(*leaves)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            torch.autograd.backward(outputs, gradients)
            return tuple(x.grad for x in leaves)

    return Mine.apply(*inputs)


@wrong(function_check, "前向传播的输出就不一样", "the output of the forward pass already differs")
def halves_the_output(function, *inputs):
    return autograd_function(lambda ctx, f, *x: Rerun.forward(ctx, f, *x[:1], *x[1:])
                             if len(x) > 1 else Rerun.forward(ctx, f, *x) / 2,
                             Rerun.backward)(function, *inputs)  # fmt: skip


@wrong(function_check, "输出有 1 个，应有 2 个", "it returns 1 outputs, expected 2")
def drops_the_second_output(function, *inputs):
    output = Rerun.apply(function, *inputs)
    return output[0] if isinstance(output, tuple) else output


# --- 3. random state ----------------------------------------------------------------------------

random_check = exercises.check_random_state
right(random_check)(rerun_alike)


@right(random_check)
def torchs_reentrant_with_state(function, *inputs):
    return torch_checkpoint(function, *inputs, use_reentrant=True)


@right(random_check)
def sets_the_state_back_itself(function, *inputs):
    before = torch.get_rng_state()
    cast = torch.is_autocast_enabled("cpu")
    runs = []

    def again(*inputs):
        runs.append(None)
        if len(runs) == 1:
            return function(*inputs)
        now = torch.get_rng_state()
        torch.set_rng_state(before)
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                return function(*inputs)
        finally:
            torch.set_rng_state(now)

    return Rerun.apply(again, *inputs)


@wrong(random_check, "第二次运行抽到了别的随机数", "The second run drew different random numbers")
def forgets_the_random_state(function, *inputs):
    return Rerun.apply(function, *inputs)


class RemembersTooLate(Repeatable):
    def __call__(self, *inputs):
        if self.random_states is None:
            output = self.function(*inputs)
            self._remember(inputs)
            return output
        return super().__call__(*inputs)


@wrong(random_check, "第二次运行抽到了别的随机数", "The second run drew different random numbers")
def saves_the_state_after_the_first_run(function, *inputs):
    return Rerun.apply(RemembersTooLate(function), *inputs)


@wrong(random_check, "这一步之后的随机数状态", "the random state after the step")
def never_puts_the_state_back(function, *inputs):
    before, runs = torch.get_rng_state(), []

    def again(*inputs):
        runs.append(None)
        if len(runs) > 1:
            torch.set_rng_state(before)
        return function(*inputs)

    return Rerun.apply(again, *inputs)


@wrong(random_check, "前向传播的输出就不一样", "the output of the forward pass already differs")
def seeds_both_runs(function, *inputs):
    def seeded(*inputs):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return function(*inputs)

    return Rerun.apply(seeded, *inputs)


@wrong(random_check, "重算时 autocast 是关着的", "The second run was not under autocast")
def forgets_autocast(function, *inputs):
    before, runs = torch.get_rng_state(), []

    def again(*inputs):
        runs.append(None)
        if len(runs) == 1:
            return function(*inputs)
        with torch.random.fork_rng([]):
            torch.set_rng_state(before)
            return function(*inputs)

    return Rerun.apply(again, *inputs)


@wrong(random_check, "第二次运行在 autocast 下面", "The second run was under autocast, and the")
def always_under_autocast(function, *inputs):
    repeatable, runs = Repeatable(function), []

    def again(*inputs):
        runs.append(None)
        with torch.autocast("cpu", torch.bfloat16, enabled=len(runs) > 1):
            return function(*inputs) if len(runs) > 1 else repeatable(*inputs)

    return Rerun.apply(again, *inputs)


@wrong(random_check, "总共只运行了 1 次", "ran only once in all")
def avoids_the_question(function, *inputs):
    return function(*inputs)


@wrong(random_check, "training 与第一次不同", "another training flag than in the first")
def switches_dropout_off_in_the_second_run(function, *inputs):
    modules = list(function.children()) if isinstance(function, nn.Module) else []
    runs, repeatable = [], Repeatable(function)

    def again(*inputs):
        runs.append(None)
        with contextlib.ExitStack() as stack:
            for module in modules if len(runs) > 1 else []:
                module.training = False
                stack.callback(setattr, module, "training", True)
            return repeatable(*inputs)

    return Rerun.apply(again, *inputs)


states = []


@wrong(random_check, "每次调用要有自己的一份东西", "each call has to keep things of its own")
def keeps_the_last_state_in_a_global(function, *inputs):
    states[:] = [torch.get_rng_state()]
    cast = torch.is_autocast_enabled("cpu")
    runs = []

    def again(*inputs):
        runs.append(None)
        if len(runs) == 1:
            return function(*inputs)
        with torch.random.fork_rng([]), torch.autocast("cpu", torch.bfloat16, enabled=cast):
            torch.set_rng_state(states[0])
            return function(*inputs)

    return Rerun.apply(again, *inputs)


@wrong(random_check, "x 的梯度与普通反向传播不同", "the gradient of x differs")
def wrong_without_any_randomness(function, *inputs):
    return autograd_function(Rerun.forward, backward_with_ones)(Repeatable(function), *inputs)


# --- 4. chain -----------------------------------------------------------------------------------

chain_check = exercises.check_chain
right(chain_check)(recompute.chain)


@right(chain_check)
def longest_segments_first(layers, segments, x, checkpoint):
    rest = list(layers)
    for left in range(segments, 0, -1):
        size = -(-len(rest) // left)
        part, rest = rest[:size], rest[size:]
        x = checkpoint(functools.partial(functools.reduce, lambda value, f: f(value), part), x)
    return x


@right(chain_check)
def calls_itself(layers, segments, x, checkpoint):
    if segments == 0:
        return x
    cut = len(layers) // segments
    x = checkpoint(lambda t, part=layers[:cut]: nn.Sequential(*part)(t), x)
    return calls_itself(layers[cut:], segments - 1, x, checkpoint)


@wrong(chain_check, "改动了传进来的 layers", "changes the layers that were passed in")
def uses_up_the_layers(layers, segments, x, checkpoint):
    for left in range(segments, 0, -1):
        part = layers[: len(layers) // left]
        del layers[: len(part)]
        x = checkpoint(nn.Sequential(*part), x)
    return x


@wrong(chain_check, "运行了，却没有返回结果", "ran, but returned nothing")
def forgets_to_return_the_chain(layers, segments, x, checkpoint):
    recompute.chain(layers, segments, x, checkpoint)


@wrong(chain_check, "从第 4 层起没有检查点", "From layer 4 on")
def leaves_the_last_segment_out(layers, segments, x, checkpoint):
    cuts = [len(layers) * i // segments for i in range(segments + 1)]
    for begin, end in itertools.pairwise(cuts[:-1]):
        x = checkpoint(nn.Sequential(*layers[begin:end]), x)
    return nn.Sequential(*layers[cuts[-2] :])(x)


@wrong(chain_check, "读到的是最后一段的", "finds those of the last segment")
def binds_late(layers, segments, x, checkpoint):
    cuts = [len(layers) * i // segments for i in range(segments + 1)]
    for i in range(segments):
        x = checkpoint(lambda t: nn.Sequential(*layers[cuts[i] : cuts[i + 1]])(t), x)  # noqa: B023
    return x


@wrong(chain_check, "前向传播的输出就不一样", "the output of the forward pass already differs")
def drops_the_remainder(layers, segments, x, checkpoint):
    size = len(layers) // segments
    for i in range(segments):
        x = checkpoint(nn.Sequential(*layers[i * size : (i + 1) * size]), x)
    return x


@wrong(chain_check, "12 层分 5 段：段长是 2, 2, 2, 2, 4", "2, 2, 2, 2, 4, which differ by more")
def puts_the_remainder_into_the_last_segment(layers, segments, x, checkpoint):
    size = len(layers) // segments
    for i in range(segments):
        end = (i + 1) * size if i < segments - 1 else len(layers)
        x = checkpoint(nn.Sequential(*layers[i * size : end]), x)
    return x


@wrong(
    chain_check, "checkpoint 调用了 7 次，应为 3 次", "checkpoint was called 7 times, expected 3"
)
def checkpoints_every_layer(layers, segments, x, checkpoint):
    for layer in layers:
        x = checkpoint(layer, x)
    return x


@wrong(
    chain_check, "checkpoint 调用了 1 次，应为 3 次", "checkpoint was called 1 times, expected 3"
)
def checkpoints_everything_at_once(layers, segments, x, checkpoint):
    return checkpoint(nn.Sequential(*layers), x)


@wrong(chain_check, "7 层分 3 段：段长是 3, 3, 1", "3, 3, 1, which differ by more than 1")
def rounds_the_length_up(layers, segments, x, checkpoint):
    size = -(-len(layers) // segments)
    for begin in range(0, len(layers), size):
        x = checkpoint(nn.Sequential(*layers[begin : begin + size]), x)
    return x


@wrong(chain_check, "传进来的 checkpoint 一次也没有调用", "checkpoint that was passed in is never")
def takes_another_checkpoint(layers, segments, x, checkpoint):
    return recompute.chain(layers, segments, x, rerun_alike)


@wrong(chain_check, "传进来的 checkpoint 一次也没有调用", "checkpoint that was passed in is never")
def runs_the_layers_as_they_are(layers, segments, x, checkpoint):
    return nn.Sequential(*layers)(x)


@wrong(
    chain_check, "checkpoint 调用了 3 次，应为 1 次", "checkpoint was called 3 times, expected 1"
)
def always_three(layers, segments, x, checkpoint):
    return recompute.chain(layers, 3, x, checkpoint)


@wrong(chain_check, "应当每层 2 次", "each should run 2 times")
def nests_the_segments(layers, segments, x, checkpoint):
    if segments == 1:
        return checkpoint(nn.Sequential(*layers), x)
    cut = len(layers) // segments
    rest = functools.partial(nests_the_segments, layers[cut:], segments - 1, checkpoint=checkpoint)
    return checkpoint(lambda t: rest(x=nn.Sequential(*layers[:cut])(t)), x)


@wrong(chain_check, "输出没有 grad_fn", "the output has no grad_fn")
def detaches_the_input(layers, segments, x, checkpoint):
    return recompute.chain(layers, segments, x.detach(), checkpoint)


@wrong(chain_check, "的梯度", "gradient")
def halves_the_gradient_on_its_way(layers, segments, x, checkpoint):
    x = recompute.chain(layers, segments, x, checkpoint)
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient / 2)
    return x


held = []


@wrong(chain_check, "保存了", "bytes are kept")
def keeps_every_value_in_a_list(layers, segments, x, checkpoint):
    cuts = [len(layers) * i // segments for i in range(segments + 1)]
    held.clear()
    for begin, end in itertools.pairwise(cuts):
        x = checkpoint(nn.Sequential(*layers[begin:end]), x)
        held.append(x.detach().clone())
    return x


@right(chain_check)
def methods_and_partials(layers, segments, x, checkpoint):
    class Segment(nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, x, *, times=1):
            for part in self.parts:
                x = part(x)
            return x

    n = len(layers)
    for k in range(segments):
        part = Segment([layers[i] for i in range(n * k // segments, n * (k + 1) // segments)])
        x = checkpoint(functools.partial(part.forward, times=1), x)
    return x


# --- 5. hooks -----------------------------------------------------------------------------------

hooks_check = exercises.check_hooks
right(hooks_check)(recompute.checkpoint)


@right(hooks_check)
def torchs_own(function, *inputs):
    return torch_checkpoint(function, *inputs, use_reentrant=False)


def by_closures(
    function, inputs, *, grad=True, early_stop=True, detach=True, once=True, alike=True, extra=None
):
    """Stage 5 as closures, and each way to get it wrong."""
    function = Repeatable(function) if alike else function
    counted, again = [], {}

    class Enough(Exception):
        pass

    def recompute_all():
        again.clear()

        def keep(tensor):
            again[len(again)] = kept = tensor.detach() if detach else tensor
            if early_stop and len(again) == len(counted):
                raise Enough
            return kept

        with (
            torch.set_grad_enabled(grad),
            saved_tensors_hooks(keep, lambda t: t),
            contextlib.suppress(Enough),
        ):
            function(*inputs)

    def pack(tensor):
        counted.append(None)
        return len(counted) - 1

    def unpack(number):
        if number not in again or not once:
            recompute_all()
        return again.pop(number)

    with saved_tensors_hooks(pack, unpack):
        output = function(*inputs)
    if extra is not None:
        extra.append(output)
    return output


@right(hooks_check)
def closures(function, *inputs):
    return by_closures(function, inputs)


@wrong(hooks_check, "每一步都多出 24,576 字节收不回来", "each step leaves 24,576 bytes more")
def packs_the_output_itself(function, *inputs):
    return by_closures(function, inputs, detach=False)


shared = {}


@wrong(hooks_check, "有自己的一份东西", "each call has to keep things of its own")
def keeps_what_came_back_in_a_global(function, *inputs):
    function = Repeatable(function)
    counted = []
    shared.update(function=function, inputs=inputs, counted=counted)

    def pack(tensor):
        counted.append(None)
        return len(counted) - 1

    class Enough(Exception):
        pass

    def unpack(number):
        again = shared.setdefault("again", {})
        if number not in again:
            again.clear()

            def keep(tensor):
                again[len(again)] = tensor.detach()
                if len(again) == len(shared["counted"]):
                    raise Enough
                return tensor.detach()

            with (
                torch.enable_grad(),
                saved_tensors_hooks(keep, lambda t: t),
                contextlib.suppress(Enough),
            ):
                shared["function"](*shared["inputs"])
        return again.pop(number)

    with saved_tensors_hooks(pack, unpack):
        return function(*inputs)


@wrong(hooks_check, "KeyError.*编号要与前向传播时一一对上", "KeyError.*its numbers have to match")
def counts_otherwise_in_the_second_run(function, *inputs):
    function = Repeatable(function)
    counted, again = [], {}

    def pack(tensor):
        counted.append(None)
        return len(counted) - 1

    def keep(tensor):
        again[len(again) + 100] = tensor.detach()
        return tensor.detach()

    def unpack(number):
        if not again:
            with torch.enable_grad(), saved_tensors_hooks(keep, lambda t: t):
                function(*inputs)
        return again.pop(number)

    with saved_tensors_hooks(pack, unpack):
        return function(*inputs)


@right(hooks_check)
class Region:
    """In a class's style: each call makes an object."""

    def __new__(cls, function, *inputs):
        region = super().__new__(cls)
        region.function, region.inputs = Repeatable(function), inputs
        region.number, region.back = 0, None
        with saved_tensors_hooks(region.pack, region.unpack):
            return region.function(*inputs)

    def pack(self, tensor):
        self.number += 1
        return self.number

    def unpack(self, number):
        if self.back is None:
            self.back = []
            with (
                contextlib.suppress(StopIteration),
                torch.enable_grad(),
                saved_tensors_hooks(self.collect, lambda tensor: tensor),
            ):
                self.function(*self.inputs)
        tensor, self.back[number - 1] = self.back[number - 1], None
        return tensor

    def collect(self, tensor):
        self.back.append(tensor.detach())
        if len(self.back) == self.number:
            raise StopIteration
        return self.back[-1]


@wrong(hooks_check, "所有保存过的张量都有了之后", "after all saved tensors are back")
def no_early_stop(function, *inputs):
    return by_closures(function, inputs, early_stop=False)


@wrong(hooks_check, "用 torch.enable_grad()", "use torch.enable_grad()")
def recomputes_without_grad_mode(function, *inputs):
    return by_closures(function, inputs, grad=False)


@wrong(hooks_check, "次，应为 2 次：多跑的都要花时间", "times in all, expected 2")
def recomputes_for_each_tensor(function, *inputs):
    return by_closures(function, inputs, once=False)


@wrong(hooks_check, "第二次运行抽到了别的随机数", "The second run drew different random numbers")
def hooks_without_random_state(function, *inputs):
    return by_closures(function, inputs, alike=False)


@wrong(hooks_check, "谁还拿着它", "who still holds it")
def hooks_that_hold_the_output(function, *inputs):
    outputs.clear()
    return by_closures(function, inputs, extra=outputs)


outputs = []


@wrong(hooks_check, "没有任何输入要梯度", "no input requires a gradient")
def an_autograd_function_again(function, *inputs):
    return rerun_alike(function, *inputs)


@wrong(hooks_check, "x 没有得到梯度", "input x got no gradient")
def detaches_the_inputs_in_forward(function, *inputs):
    return by_closures(function, [x.detach() for x in inputs])


@wrong(hooks_check, "只运行了 1 次，应为 2 次", "ran only once in all, expected 2")
def hooks_that_keep(function, *inputs):
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        return function(*inputs)


# --- the tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", ["zh", "en"])
@pytest.mark.parametrize(("check", "answer"), RIGHT.values(), ids=map("-".join, RIGHT))
def test_a_right_answer_passes_however_it_is_written(check, answer, chosen, monkeypatch):
    speak(monkeypatch, chosen)
    heard(verdict_on(check, answer), "right", "逐位相同", "bit for bit")


@pytest.mark.parametrize("chosen", ["zh", "en"])
@pytest.mark.parametrize(("check", "answer", "zh", "en"), WRONG.values(), ids=map("-".join, WRONG))
def test_a_wrong_answer_hears_what_is_wrong(check, answer, zh, en, chosen, monkeypatch):
    speak(monkeypatch, chosen)
    heard(verdict_on(check, answer), "wrong", zh, en)


CHECKS = [by_hand, function_check, random_check, chain_check, hooks_check]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
class TestEveryStage:
    def test_a_stub_is_unfinished(self, check):
        assert check(lambda *arguments: None).state == "unfinished"

    def test_an_error_is_reported_as_the_answers_own(self, check):
        def broken(*arguments):
            raise ZeroDivisionError("my own fault")

        verdict = check(broken)
        assert verdict.state == "wrong"
        assert "ZeroDivisionError: my own fault" in verdict.en

    def test_something_else_than_a_tensor(self, check):
        verdict = check(lambda *arguments: "a string")
        assert verdict.state == "wrong"
        assert "str" in verdict.zh and "not str" in verdict.en

    def test_random_state_is_left_alone(self, check):
        before = torch.get_rng_state()
        check(lambda *arguments: None)
        assert torch.equal(torch.get_rng_state(), before)

    def test_enough_answers_are_tried(self, check):
        assert sum(name == check.__name__ for name, _ in WRONG) >= 5
        assert sum(name == check.__name__ for name, _ in RIGHT) >= 2

    def test_a_verdict_says_the_same_each_time(self, check):
        answer = next(answer for name, (_, answer) in
                      ((key[0], value) for key, value in RIGHT.items())
                      if name == check.__name__)  # fmt: skip
        assert check(answer) == check(answer)


def test_the_learners_function_is_used_once_it_is_right(capsys):
    reference = recompute.chain
    chosen = exercises.yours_or_reference(calls_itself, chain_check, reference)
    assert chosen is calls_itself
    for answer in (lambda *arguments: None, drops_the_remainder):
        assert exercises.yours_or_reference(answer, chain_check, reference) is reference


def test_longer_segments_first_are_right_and_the_lesson_goes_on_with_its_own(capsys):
    """What is explained below, peaks and the best k, is about a longest segment last."""
    verdict = verdict_on(chain_check, longest_segments_first)
    assert verdict.passed and "with 3 segments 7.01 MiB, instead of 8.01" in verdict.en
    chosen = exercises.yours_or_reference(longest_segments_first, chain_check, recompute.chain)
    assert chosen is recompute.chain
    assert "Yours is right too" in capsys.readouterr().out
    peaks = {k: chain_measured(chosen, k).peak for k in range(1, 11)}
    assert min(peaks, key=peaks.get) == 2  # as the lesson says


def test_grad_mode_left_off_by_an_earlier_cell_makes_no_difference():
    torch.set_grad_enabled(False)
    try:
        assert by_hand(recompute.step_by_hand).passed
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


def test_a_stub_of_an_autograd_function_is_unfinished_and_half_of_one_is_not():
    class Stub(torch.autograd.Function):
        @staticmethod
        def forward(ctx, function, *inputs):
            return None

        @staticmethod
        def backward(ctx, *gradients):
            return None

    class Half(Stub):
        backward = Rerun.backward

    assert function_check(Stub.apply).state == "unfinished"
    heard(function_check(Half.apply), "wrong", "少了 return", "Half.apply.* is a return missing")


def test_a_right_chain_hears_its_peaks():
    """k + n/k + 1 values, and a random state per checkpoint."""
    said = chain_check(recompute.chain).en
    assert "in 1, 3 and 10 segments the peak is 12.00, 8.01 and 12.05 MiB" in said
