"""The museum's exhibits: each way in which checkpointing fails, as code that runs.

An exhibit is data and code in one place. ``code`` is what the learner is shown and exactly what
runs; ``cure`` likewise. In both, the names of ``PROVIDED`` are at hand, and ``x``, sixteen random
rows of eight numbers. The code defines ``model`` and either ``forward(x)``, whose backward pass
the museum starts, or ``step()``, which does everything itself.

The plain side of a comparison is the same code once more, with :func:`call` in the place of
``checkpoint``.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from .gradients import Agreement, same_gradients
from .language import Table, text
from .memory import measure

Loudness = Literal["error", "warning", "silent"]

LOUDNESS = {
    "error": ("报错", "raises"),
    "warning": ("只警告", "only warns"),
    "silent": ("静默", "silent"),
}


@dataclass(frozen=True)
class Exhibit:
    """One trap. Texts are (zh, en).

    ``row``: in the list of traps from which it was collected. ``code``, ``cure``: at most ten lines
    each, see the module.
    ``loudness``: how it makes itself heard. ``seen``: the kind and name of the first difference
    that ``same_gradients`` finds before the cure, None if it finds none. ``judge``: what shows the
    fault: gradients, or the peak of a measured step (``memory``). ``issues``: where it is
    discussed, such as ``pytorch/pytorch#7617``. ``quoted``: words by which its error or warning is
    recognised.
    """

    row: int
    name: str
    title: tuple[str, str]
    code: str
    cure: str
    loudness: Loudness
    why: tuple[str, str]
    remedy: tuple[str, str]
    issues: tuple[str, ...] = ()
    seen: str | None = None
    quoted: str | None = None
    judge: Literal["gradients", "memory"] = "gradients"

    def inspect(self, cured: bool = False) -> Inspection:
        """Run ``code``, or ``cure``, with and without checkpoints, and look at what happens."""
        source = self.cure if cured else self.code
        if self.judge == "memory":
            return _inspect_memory(self, source)
        return _inspect_gradients(self, source)


@dataclass(frozen=True)
class Inspection:
    """What running an exhibit showed, now, with this version of torch.

    ``error``: what it raised, as type and message. ``warned``: the first line of each warning.
    ``agreement``: the verdict of ``same_gradients``. ``peaks``: bytes of the plain and of the
    checkpointed step, where memory is the judge; ``flops``: of the same steps.
    """

    error: str | None
    warned: tuple[str, ...]
    agreement: Agreement
    peaks: tuple[int, int] | None = None
    flops: tuple[int, int] | None = None

    @property
    def loudness(self) -> Loudness:
        """Whether the step raised, at least warned, or said nothing."""
        return "error" if self.error else "warning" if self.warned else "silent"

    @property
    def seen(self) -> str | None:
        """The first difference that ``same_gradients`` found, such as ``gradient 0.weight``."""
        first = self.agreement.first
        return f"{first.kind} {first.name}".strip() if first else None

    @property
    def healthy(self) -> bool:
        """Equal results, no word of complaint, and memory saved where that is the question."""
        saved = self.peaks is None or self.peaks[1] < 0.9 * self.peaks[0]
        return bool(self.agreement) and not self.error and not self.warned and saved


def call(function: Callable, *arguments: Any, **options: Any) -> Any:
    """``checkpoint`` without the checkpoint: ``function(*arguments)``."""
    for name in _OPTIONS:
        options.pop(name, None)
    return function(*arguments, **options)


def call_sequential(functions: Any, segments: int, x: Any, **options: Any) -> Any:
    """``checkpoint_sequential`` without the checkpoints."""
    for function in functions:
        x = function(x)
    return x


_OPTIONS = (
    "use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop",
)  # fmt: skip

PROVIDED = {
    "torch": torch,
    "nn": nn,
    "random": random,
    "contextlib": contextlib,
    "functools": functools,
    "checkpoint": checkpoint,
    "checkpoint_sequential": checkpoint_sequential,
    "create_selective_checkpoint_contexts": create_selective_checkpoint_contexts,
}

_PLAIN = {"checkpoint": call, "checkpoint_sequential": call_sequential}


# --- running them ---------------------------------------------------------------------------------


def _prepared(exhibit: Exhibit, source: str, **replaced: Any) -> dict[str, Any]:
    """The names that the code defines, with equal random numbers whenever it is run."""
    file = f"<{exhibit.name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {**PROVIDED, **replaced, "__name__": file}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        names["x"] = torch.randn(16, 8)
        exec(compile(source, file, "exec"), names)
    return names


def _inspect_gradients(exhibit: Exhibit, source: str) -> Inspection:
    plain = _prepared(exhibit, source, **_PLAIN)
    checkpointed = _prepared(exhibit, source)
    pair = (plain["model"], checkpointed["model"])
    with _hearing_warnings() as heard:
        if "step" in plain:
            agreement = same_gradients(plain["step"], checkpointed["step"], model=pair)
        else:
            agreement = same_gradients(
                plain["forward"], checkpointed["forward"], plain["x"], model=pair
            )
    return Inspection(_described(agreement.error), tuple(heard), agreement)


def _inspect_memory(exhibit: Exhibit, source: str) -> Inspection:
    """The same, and the peaks and FLOPs of both sides, measured."""
    found = _inspect_gradients(exhibit, source)
    if found.error:
        return found
    traces = []
    for replaced in (_PLAIN, {}):
        names = _prepared(exhibit, source, **replaced)

        def step(names: dict[str, Any] = names) -> None:
            names["forward"](names["x"]).sum().backward()

        traces.append(measure(step, names["model"], inputs=names["x"]))
    plain, checkpointed = traces
    return replace(
        found, peaks=(plain.peak, checkpointed.peak), flops=(plain.flops, checkpointed.flops)
    )


def _described(error: Exception | None) -> str | None:
    return f"{type(error).__name__}: {str(error).strip()}" if error else None


@contextlib.contextmanager
def _hearing_warnings() -> Iterator[list[str]]:
    """Collect each different warning once, its first two lines, instead of showing it."""
    heard: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield heard
    for warning in caught:
        words = " ".join(str(warning.message).split())
        if words not in heard:
            heard.append(words)


def catalogue() -> Table:
    """All exhibits, run now: how loud each is, what ``same_gradients`` says before and after."""
    rows = []
    for exhibit in EXHIBITS:
        before, after = exhibit.inspect(), exhibit.inspect(cured=True)
        rows.append(
            [number_of(exhibit), exhibit.title, LOUDNESS[before.loudness], _found(before),
             ("✓ 已治好", "✓ cured") if after.healthy else ("✗ 仍有问题", "✗ still broken")]
        )  # fmt: skip
    return Table(
        [("№", "№"), ("展品", "exhibit"), ("动静", "how loud"),
         ("same_gradients 说", "same_gradients says"), ("治疗之后", "after the cure")], rows,
    )  # fmt: skip


def number_of(exhibit: Exhibit) -> int:
    """Its number in the catalogue: its place, from 1."""
    return EXHIBITS.index(exhibit) + 1


def _found(inspection: Inspection) -> tuple[str, str]:
    first = inspection.agreement.first
    if first is None:
        return "看不出不同", "sees no difference"
    zh, en = first.short
    return f"✗ {zh}", f"✗ {en}"


def exhibit_named(name: str) -> Exhibit:
    """The exhibit of that name. Raises ``KeyError`` if there is none."""
    for exhibit in EXHIBITS:
        if exhibit.name == name:
            return exhibit
    raise KeyError(
        text(
            zh=f"没有叫 {name!r} 的展品；有：{'、'.join(e.name for e in EXHIBITS)}。",
            en=f"No exhibit is called {name!r}; there are {', '.join(e.name for e in EXHIBITS)}.",
        )
    )


# --- the exhibits ---------------------------------------------------------------------------------

EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit(
        row=1,
        name="left-out",
        title=("没写 use_reentrant", "use_reentrant left out"),
        loudness="warning",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def forward(x):
    return checkpoint(model, x.requires_grad_())
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def forward(x):
    return checkpoint(model, x.requires_grad_(), use_reentrant=False)
""",
        quoted="the use_reentrant parameter should be passed explicitly",
        why=(
            "警告说从 2.9 起会报错，可是到了 2.13 仍然只是警告，而且默认用 True：旧的那种实现，"
            "下面好几件展品的病根。",
            "The warning announces an error from 2.9 on, yet in 2.13 it is still a warning, and "
            "the default is True: the old implementation, the root of several exhibits below.",
        ),
        remedy=("每次都写 use_reentrant=False。", "Write use_reentrant=False, every time."),
        issues=("pytorch/pytorch#160534",),
    ),
    Exhibit(
        row=2,
        name="frozen-input",
        title=("输入不需要梯度", "an input that requires no gradient"),
        loudness="warning",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

def forward(x):                                  # x is data, or a frozen embedding
    hidden = checkpoint(model[:2], x, use_reentrant=True)
    return model[2](hidden)
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

def forward(x):
    hidden = checkpoint(model[:2], x, use_reentrant=False)
    return model[2](hidden)
""",
        seen="gradient 0.weight",
        quoted="None of the inputs have requires_grad=True. Gradients will be None",
        why=(
            "旧实现是一个 autograd.Function，只看得见直接传给它的张量。它们都不需要梯度，"
            "输出也就不需要，"
            "块里的参数永远等不到梯度。loss 照样下降：后面的层还在学。",
            "The old implementation is an autograd.Function and sees only its tensor arguments. "
            "None requires a gradient, so neither does the output, and the block's parameters "
            "never get one. The loss still falls: the later layers learn.",
        ),
        remedy=(
            "use_reentrant=False 记录真正的计算图。",
            "use_reentrant=False records the real graph.",
        ),
        issues=("pytorch/pytorch#7617", "pytorch/pytorch#42812"),
    ),
    Exhibit(
        row=3,
        name="in-a-list",
        title=("张量放在列表里", "tensors inside a list"),
        loudness="warning",
        code="""\
model = nn.Linear(8, 8)

def block(pair):
    return torch.tanh(model(pair[0]) * pair[1])

def forward(x):
    x.requires_grad_()
    return checkpoint(block, [x, x.cos()], use_reentrant=True)
""",
        cure="""\
model = nn.Linear(8, 8)

def block(pair):
    return torch.tanh(model(pair[0]) * pair[1])

def forward(x):
    x.requires_grad_()
    return checkpoint(block, [x, x.cos()], use_reentrant=False)
""",
        seen="gradient weight",
        quoted="None of the inputs have requires_grad=True. Gradients will be None",
        why=(
            "旧实现不会到列表、字典里面去找张量：x 明明需要梯度，它却没看见。",
            "The old implementation does not look for tensors inside lists and dicts: x does "
            "require a gradient, but goes unseen.",
        ),
        remedy=(
            "use_reentrant=False，或者把张量一个个按位置传进去。",
            "use_reentrant=False, or pass each tensor by position.",
        ),
        issues=("pytorch/pytorch#124725",),
    ),
    Exhibit(
        row=4,
        name="dropout",
        title=("重计算时换了一张 dropout 掩码", "a different dropout mask in the recomputation"),
        loudness="silent",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))

def forward(x):
    return checkpoint(model, x, use_reentrant=False, preserve_rng_state=False)
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))

def forward(x):
    return checkpoint(model, x, use_reentrant=False)
""",
        seen="gradient 0.weight",
        why=(
            "前向用一张掩码，反向用另一张：得到的是另一个函数的梯度。形状、类型都对，"
            "没有任何检查会响。",
            "The forward pass has one mask, the backward pass another: the gradient belongs to "
            "another function. Shapes and types agree, so no check objects.",
        ),
        remedy=(
            "块里有随机数，就不要关 preserve_rng_state；"
            "省下的只是每次调用的一点时间和一份随机数状态。",
            "Leave preserve_rng_state on wherever there is randomness; off, it only saves a little "
            "time per call and one random state.",
        ),
    ),
    Exhibit(
        row=5,
        name="python-random",
        title=("不是默认生成器的随机数", "random numbers of no default generator"),
        loudness="silent",
        code="""\
model = nn.Linear(8, 8)

def block(x):               # numpy.random is no better, nor a torch.Generator of your own
    return torch.tanh(model(x) * random.uniform(0.5, 1.5))

def forward(x):
    return checkpoint(block, x, use_reentrant=False)
""",
        cure="""\
model = nn.Linear(8, 8)

def block(x, scale):
    return torch.tanh(model(x) * scale)

def forward(x):
    return checkpoint(block, x, random.uniform(0.5, 1.5), use_reentrant=False)
""",
        seen="gradient weight",
        why=(
            "checkpoint 只保存并恢复 torch 默认生成器的随机数状态。"
            "random、numpy.random 和自己建的 torch.Generator 在重计算时接着往下抽。",
            "checkpoint saves and restores the random state of torch's default generators only. "
            "random, numpy.random and a torch.Generator of one's own just keep drawing in the "
            "recomputation.",
        ),
        remedy=(
            "在检查点外面抽，把抽到的数当参数传进去。",
            "Draw outside the checkpoint and pass the number in.",
        ),
    ),
    Exhibit(
        row=6,
        name="batch-norm",
        title=("BatchNorm 的统计量更新了两次", "BatchNorm counts every batch twice"),
        loudness="silent",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())

def forward(x):
    return checkpoint(model, x, use_reentrant=False)
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())
@contextlib.contextmanager
def buffers_kept():
    before = [b.clone() for b in model.buffers()]
    try: yield
    finally: [b.copy_(old) for b, old in zip(model.buffers(), before)]

def forward(x):
    contexts = lambda: (contextlib.nullcontext(), buffers_kept())
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)
""",
        seen="buffer 1.running_mean",
        why=(
            "每次前向都会移动滑动平均，重计算也是前向。梯度没错，错的是评估时用的统计量。",
            "Every forward pass moves the running averages, and a recomputation is one. The "
            "gradients are right; the statistics used for evaluation are not.",
        ),
        remedy=(
            "让重计算不留痕迹：第二个上下文在它结束后把缓冲区还原。另一种治法是把 momentum 换成 "
            "1 − √(1 − momentum)：两次小步等于一大步，只差舍入，但 num_batches_tracked 仍数两次。",
            "Let the recomputation leave no trace: the second context restores the buffers when it "
            "ends. Or replace momentum by 1 − √(1 − momentum): two small moves then equal one, up "
            "to rounding, but num_batches_tracked still counts twice.",
        ),
        issues=("pytorch/pytorch#96136",),
    ),
    Exhibit(
        row=7,
        name="in-place",
        title=("就地修改了检查点", "the checkpoint changed in place"),
        loudness="error",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

def forward(x):
    x = model[0](x)
    y = checkpoint(torch.tanh, x, use_reentrant=False)
    x += 1                                       # nobody needs x any more?
    return model[1](y)
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

def forward(x):
    x = model[0](x)
    y = checkpoint(torch.tanh, x, use_reentrant=False)
    x = x + 1
    return model[1](y)
""",
        seen="error",
        quoted="modified by an inplace operation",
        why=(
            "不用检查点时没事：tanh 保存的是输出。检查点保存的却是输入 x，它的版本号变了，"
            "反向时就报错。",
            "Without the checkpoint this is fine: tanh keeps its output. The checkpoint keeps the "
            "input x, whose version has changed, and the backward pass raises.",
        ),
        remedy=("换成不就地修改的写法。", "Write it out of place."),
    ),
    Exhibit(
        row=8,
        name="weight-changed",
        title=("前向与反向之间改了权重", "weights changed between forward and backward"),
        loudness="silent",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def step():                                      # two losses, as in a GAN
    first, second = (checkpoint(model, part, use_reentrant=False).sum() for part in x.chunk(2))
    first.backward()
    optimizer.step()
    second.backward()
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def step():
    first, second = (checkpoint(model, part, use_reentrant=False).sum() for part in x.chunk(2))
    first.backward()
    second.backward()
    optimizer.step()
""",
        seen="error plain",
        why=(
            "普通的 autograd 会报错：它保存了权重，并且查版本号。检查点重计算时用的是新权重，"
            "没有什么可查的。",
            "Plain autograd raises: it has kept the weight and checks its version. The checkpoint "
            "recomputes with the new weight and has nothing to check.",
        ),
        remedy=(
            "先做完所有反向传播，再更新权重。",
            "Finish every backward pass, then change the weights.",
        ),
    ),
    Exhibit(
        row=9,
        name="keyword-changed",
        title=("按关键字传入的张量后来变了", "a tensor passed by keyword, changed later"),
        loudness="silent",
        code="""\
model = nn.Linear(8, 8)
scale = torch.ones(8)                            # one buffer, filled anew for every batch
def block(x, scale):
    return torch.tanh(model(x) * scale)

def forward(x):
    y = checkpoint(block, x, scale=scale.fill_(1), use_reentrant=False)
    scale.fill_(2)                               # already the next batch's
    return y
""",
        cure="""\
model = nn.Linear(8, 8)
scale = torch.ones(8)
def block(x, scale):
    return torch.tanh(model(x) * scale)

def forward(x):
    y = checkpoint(block, x, scale.fill_(1).clone(), use_reentrant=False)
    scale.fill_(2)
    return y
""",
        seen="error plain",
        why=(
            "只有自己就是一个位置参数的张量受版本检查保护。列表、关键字参数、闭包、全局变量里的张量，"
            "检查点只记得是哪个对象："
            "重计算时里面是什么，就用什么。",
            "Only a tensor that is itself a positional argument is guarded by a version check. For "
            "those in lists, keyword arguments, closures and globals, the checkpoint remembers "
            "only the object and uses whatever it holds by then.",
        ),
        remedy=(
            "直接按位置传，改动就会被查出来；传一份副本，就没有改动可言。",
            "Pass it by position, by itself, and the change is caught; pass a copy and there is no "
            "change.",
        ),
    ),
    Exhibit(
        row=10,
        name="late-binding",
        title=("循环里的 lambda", "a lambda in a loop"),
        loudness="silent",
        code="""\
model = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

def forward(x):
    for layer in model:
        x = checkpoint(lambda x: layer(x), x, use_reentrant=False)
    return x
""",
        cure="""\
model = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

def forward(x):
    for layer in model:
        x = checkpoint(layer, x, use_reentrant=False)
    return x
""",
        seen="gradient 0.0.weight",
        why=(
            "lambda 到调用时才去找 layer 是谁。反向传播时循环早已结束，layer 是最后一层："
            "三次重计算都是它。",
            "The lambda asks who layer is when it is called. By the backward pass the loop is "
            "over and layer is the last one: all three recomputations run that one.",
        ),
        remedy=(
            "直接传 layer；非写 lambda 不可时写 lambda x, layer=layer: …。",
            "Pass layer itself, or, if it must be a lambda, lambda x, layer=layer: ….",
        ),
    ),
    Exhibit(
        row=11,
        name="fewer-tensors",
        title=("第二次少算了一步", "one step fewer the second time"),
        loudness="error",
        code="""\
model = nn.Linear(8, 8)
warm = []                                        # a cache that the first call fills

def block(x):
    x = model(x).sin()
    if not warm:
        warm.append(x.detach())
        x = x.sin()
    return x.sin()
forward = lambda x: checkpoint(block, x, use_reentrant=False)
""",
        cure="""\
model = nn.Linear(8, 8)
warm = []

def block(x, first):
    x = model(x).sin()
    return x.sin().sin() if first else x.sin()
def forward(x):
    y = checkpoint(block, x, not warm, use_reentrant=False)
    warm.append(y.detach())
    return y
""",
        seen="error",
        quoted="A different number of tensors was saved",
        why=(
            "重计算存下的张量比前向少，数目对不上，这一种 checkpoint 查得出来。",
            "The recomputation saves fewer tensors than the forward pass did. The count is wrong, "
            "and this is a kind of fault that checkpoint does notice.",
        ),
        remedy=(
            "把判断移到检查点外面，结果当参数传进去。",
            "Decide outside the checkpoint and pass the decision in.",
        ),
    ),
    Exhibit(
        row=29,
        name="more-tensors",
        title=("第二次多算了一步", "one step more the second time"),
        loudness="silent",
        code="""\
model = nn.Linear(8, 8)
warm = []

def block(x):
    x = model(x)
    if warm:
        x = x.exp()
    warm.append(x.detach())
    return x.sin()
forward = lambda x: checkpoint(block, x, use_reentrant=False)
""",
        cure="""\
model = nn.Linear(8, 8)
warm = []

def block(x, first):
    x = model(x)
    return x.sin() if first else x.exp().sin()
def forward(x):
    y = checkpoint(block, x, not warm, use_reentrant=False)
    warm.append(y.detach())
    return y
""",
        seen="gradient weight",
        why=(
            "和上一件正好相反，却没有声音：提前停止在收齐前向那么多张量时就停了，"
            "多出来的那一个没人看见，"
            "错位的张量形状又都一样。early_stop=False 能让它报错。",
            "The reverse of the previous one, and it is silent: early stop ends the "
            "recomputation when it has as many tensors as the forward pass saved. The surplus one "
            "is never seen, and the shapes agree. With early_stop=False it raises.",
        ),
        remedy=("同上一件。", "As for the previous one."),
    ),
    Exhibit(
        row=12,
        name="eval-too-early",
        title=("反向之前切到 eval", "eval() before backward"),
        loudness="error",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh())

def step():
    loss = checkpoint(model, x, use_reentrant=False).sum()
    model.eval()                                 # a quick look at the validation set
    loss.backward()
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh())

def step():
    loss = checkpoint(model, x, use_reentrant=False).sum()
    loss.backward()
    model.eval()
""",
        seen="error",
        quoted="A different number of tensors was saved",
        why=(
            "前向时 dropout 存了掩码，重计算时模型在 eval，没有掩码可存，数目对不上。"
            "use_reentrant=True 没有这种检查：x 要梯度时（x.requires_grad_()）一声不响，"
            "梯度是错的；x 不要梯度时，它因为展品 2 的缘故另报一个错。",
            "In the forward pass dropout saved its mask; recomputed in eval mode there is none, "
            "and the count is wrong. use_reentrant=True has no such check: with "
            "x.requires_grad_() it is silent, and the gradients are wrong; without, it raises "
            "another error, for the reason of exhibit 2.",
        ),
        remedy=("反向传播做完再切换模式。", "Switch modes after the backward pass."),
    ),
    Exhibit(
        row=13,
        name="keyword-reentrant",
        title=("旧实现不收关键字参数", "the old implementation takes no keyword arguments"),
        loudness="error",
        code="""\
model = nn.Linear(8, 8)

def block(x, scale=1.0):
    return torch.tanh(model(x) * scale)

def forward(x):
    return checkpoint(block, x.requires_grad_(), scale=2.0, use_reentrant=True)
""",
        cure="""\
model = nn.Linear(8, 8)

def block(x, scale=1.0):
    return torch.tanh(model(x) * scale)

def forward(x):
    return checkpoint(block, x.requires_grad_(), scale=2.0, use_reentrant=False)
""",
        seen="error",
        quoted="Unexpected keyword arguments: scale",
        why=(
            "autograd.Function 只有位置参数。",
            "An autograd.Function has positional arguments only.",
        ),
        remedy=(
            "use_reentrant=False，或者 functools.partial。",
            "use_reentrant=False, or functools.partial.",
        ),
    ),
    Exhibit(
        row=19,
        name="grad-of-input",
        title=("backward(inputs=…) 与 autograd.grad", "backward(inputs=…), autograd.grad"),
        loudness="error",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    y = checkpoint(model, x.requires_grad_(), use_reentrant=True)
    y.sum().backward(inputs=[x, *model.parameters()])
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    y = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    y.sum().backward(inputs=[x, *model.parameters()])
""",
        seen="error",
        quoted="incompatible with .grad() or passing an `inputs` parameter to .backward()",
        why=(
            "旧实现在反向传播里再调用一次 backward()，那一次不知道外面只要哪几个梯度，于是拒绝。"
            "torch.autograd.grad 同样。",
            "The old one calls backward() inside the backward pass; that inner call cannot know "
            "which gradients are wanted, so it refuses. torch.autograd.grad fails likewise.",
        ),
        remedy=("use_reentrant=False。", "use_reentrant=False."),
        issues=("pytorch/pytorch#125155",),
    ),
    Exhibit(
        row=33,
        name="grad-of-weights",
        title=("同样的调用，只要参数的梯度", "the same call, for the weights alone"),
        loudness="silent",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    y = checkpoint(model, x.requires_grad_(), use_reentrant=True)
    y.sum().backward(inputs=list(model.parameters()))
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    y = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    y.sum().backward(inputs=list(model.parameters()))
""",
        seen="gradient 0.weight",
        why=(
            "比上一件只少了 x，报错就没有了，梯度也没有了：参数不在旧实现的计算图里，"
            "通往它们的路不存在，"
            "反向传播根本没走进检查点，也就没有机会拒绝。",
            "Only x is missing compared with the previous exhibit; the error is gone, and so are "
            "the gradients: the old implementation's graph does not hold the parameters. With no "
            "path to them, the backward pass never enters the checkpoint, which cannot refuse.",
        ),
        remedy=("use_reentrant=False。", "use_reentrant=False."),
    ),
    Exhibit(
        row=20,
        name="torch-func",
        title=("torch.func 的变换", "the transforms of torch.func"),
        loudness="error",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def loss(weights):
    run = lambda x: torch.func.functional_call(model, weights, x)
    return checkpoint(run, x, use_reentrant=False).sum()

def step():
    for name, gradient in torch.func.grad(loss)(dict(model.named_parameters())).items():
        model.get_parameter(name).grad = gradient
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def loss(weights):
    run = lambda x: torch.func.functional_call(model, weights, x)
    return checkpoint(run, x, use_reentrant=False).sum()

def step():
    loss(dict(model.named_parameters())).backward()
""",
        seen="error",
        quoted="don't yet support saved tensor hooks",
        why=(
            "新实现靠 saved-tensor 钩子，torch.func 的变换不支持这种钩子；"
            "旧实现是不带 setup_context 的 autograd.Function，也不行。",
            "The new implementation relies on saved-tensor hooks, which torch.func's transforms do "
            "not support; the old one, an autograd.Function without setup_context, is no better.",
        ),
        remedy=(
            "用普通的 backward() 或 torch.autograd.grad。",
            "Use plain backward() or torch.autograd.grad.",
        ),
        issues=("pytorch/pytorch#122729",),
    ),
    Exhibit(
        row=21,
        name="one-segment",
        title=("checkpoint_sequential 的最后一段", "the last segment of checkpoint_sequential"),
        loudness="silent",
        judge="memory",
        code="""\
block = lambda: nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
model = nn.Sequential(*(block() for _ in range(8)))
x = torch.randn(256, 8)

def forward(x):
    return checkpoint_sequential(model, 1, x, use_reentrant=False)
""",
        cure="""\
block = lambda: nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
model = nn.Sequential(*(block() for _ in range(8)))
x = torch.randn(256, 8)

def forward(x):
    return checkpoint_sequential(model, len(model), x, use_reentrant=False)
""",
        why=(
            "最后一段从不做检查点。只有一段时，它就是最后一段：什么都没省。",
            "The last segment is never checkpointed. With one segment, that is the whole model: "
            "nothing is saved.",
        ),
        remedy=(
            "段数取大一些，或者自己写循环，逐块 checkpoint。",
            "Use more segments, or write the loop yourself, one checkpoint per block.",
        ),
        issues=("pytorch/pytorch#68423",),
    ),
    Exhibit(
        row=30,
        name="too-many-segments",
        title=("段数比层数多", "more segments than layers"),
        loudness="error",
        code="""\
model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))

def forward(x):
    return checkpoint_sequential(model, 5, x, use_reentrant=False)
""",
        cure="""\
model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))

def forward(x):
    return checkpoint_sequential(model, min(5, len(model)), x, use_reentrant=False)
""",
        seen="error",
        quoted="range() arg 3 must not be zero",
        why=(
            "段长是 4 // 5 = 0，接着 range(…, 0) 抱怨自己的第三个参数。",
            "The segment length is 4 // 5 = 0, and then range(…, 0) complains about its third "
            "argument.",
        ),
        remedy=("段数不要超过层数。", "No more segments than layers."),
        issues=("pytorch/pytorch#152752",),
    ),
    Exhibit(
        row=22,
        name="whole-model",
        title=("整个模型一个检查点", "one checkpoint around the whole model"),
        loudness="silent",
        judge="memory",
        code="""\
block = lambda: nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
model = nn.Sequential(*(block() for _ in range(8)))
x = torch.randn(256, 8)

def forward(x):
    return checkpoint(model, x, use_reentrant=False)
""",
        cure="""\
block = lambda: nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
model = nn.Sequential(*(block() for _ in range(8)))
x = torch.randn(256, 8)

def forward(x):
    for layer in model:
        x = checkpoint(layer, x, use_reentrant=False)
    return x
""",
        why=(
            "前向结束时几乎什么都没留，可是反向一开始就要把整个模型重算一遍，"
            "全部激活值又一起回来了：峰值不变。要是把很大的输出层留在外面，它会先用完，"
            "峰值就会低一些。",
            "Hardly anything is kept after the forward pass, but the backward pass begins by "
            "recomputing the whole model, and all activations are back at once: the same peak. "
            "Were a large output layer left outside, it would be gone by then, and the peak lower.",
        ),
        remedy=(
            "每块一个检查点：同一时刻只展开一块。",
            "One checkpoint per block: only one block is expanded at a time.",
        ),
        issues=("pytorch/pytorch#6750",),
    ),
    Exhibit(
        row=31,
        name="single-layers",
        title=("每个 Linear 一个检查点", "one checkpoint around each Linear"),
        loudness="silent",
        judge="memory",
        code="""\
model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
x = torch.randn(256, 64)

def forward(x):
    for layer in model:
        x = checkpoint(layer, x, use_reentrant=False)
    return x
""",
        cure="""\
model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
x = torch.randn(256, 64)

def forward(x):
    for start in range(0, 8, 3):
        x = checkpoint(model[start : start + 3], x, use_reentrant=False)
    return x
""",
        why=(
            "Linear 本来就只保存输入，检查点也保存输入：一个字节不少。FLOPs 也不多，"
            "因为每次重算还没做乘法就提前停止了；多出来的只有调用的开销和随机数状态。",
            "A Linear keeps its input anyway, and the checkpoint keeps the input too: not a byte "
            "less. Nor are there more FLOPs, since early stop ends each recomputation before its "
            "product; what is added is the overhead of the calls, and random states.",
        ),
        remedy=(
            "把几层包成一段；省下的内存要用 FLOPs 来换：每一段除了最后一层都要再乘一遍。",
            "Wrap several layers as one segment. That does cost FLOPs: all products of a segment "
            "but the last are done again.",
        ),
        issues=("pytorch/pytorch#78731",),
    ),
    Exhibit(
        row=24,
        name="operator-packet",
        title=("选择性检查点：写了算子包", "selective: a packet instead of an operator"),
        loudness="error",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
keep = [torch.ops.aten.addmm]

def forward(x):
    contexts = functools.partial(create_selective_checkpoint_contexts, keep)
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
keep = [torch.ops.aten.addmm.default]

def forward(x):
    contexts = functools.partial(create_selective_checkpoint_contexts, keep)
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)
""",
        seen="error",
        quoted="Expected op in `op_list` to be an OpOverload",
        why=(
            "aten.addmm 是一组重载，列表里要的是其中一个。",
            "aten.addmm is a set of overloads; the list wants one of them.",
        ),
        remedy=("写 aten.addmm.default。", "Write aten.addmm.default."),
    ),
    Exhibit(
        row=32,
        name="selective-twice",
        title=("选择性检查点只能反向一次", "selective: only one backward pass"),
        loudness="error",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
keep = [torch.ops.aten.addmm.default]
contexts = functools.partial(create_selective_checkpoint_contexts, keep)

def step():
    y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    y.sum().backward(retain_graph=True)
    y.square().sum().backward()
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
keep = [torch.ops.aten.addmm.default]
contexts = functools.partial(create_selective_checkpoint_contexts, keep)

def step():
    y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    (y.sum() + y.square().sum()).backward()
""",
        seen="error",
        quoted="Trying to backward an extra time",
        why=(
            "保留下来的结果用一次就放掉了。普通的检查点可以反向多次，每次都重算。",
            "The kept results are released at their first use. An ordinary checkpoint can go "
            "backward several times, recomputing each time.",
        ),
        remedy=("把损失加起来，反向一次。", "Add the losses and go backward once."),
        issues=("pytorch/pytorch#142862",),
    ),
    Exhibit(
        row=25,
        name="budget-elsewhere",
        title=("博客里的配置项不存在", "a setting that exists only in a blog"),
        loudness="error",
        code="""\
import torch._dynamo.config, torch._functorch.config
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    torch._dynamo.config.activation_memory_budget = 0.5
    model(x).sum().backward()
""",
        cure="""\
import torch._dynamo.config, torch._functorch.config
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    with torch._functorch.config.patch(activation_memory_budget=0.5):
        model(x).sum().backward()
""",
        seen="error both",
        quoted="torch._dynamo.config.activation_memory_budget does not exist",
        why=(
            "PyTorch 讲检查点技术的博客和许多转载写的是 torch._dynamo.config；预算其实在 "
            "torch._functorch.config。",
            "PyTorch's blog on checkpointing techniques, and many copies of it, say "
            "torch._dynamo.config; the budget is in fact in torch._functorch.config.",
        ),
        remedy=(
            "用 torch._functorch.config.patch 限定范围。编译器拿预算做什么，不在这门课里。",
            "Set it with torch._functorch.config.patch. What the compiler makes of a budget "
            "is beyond this course.",
        ),
        issues=("pytorch/pytorch#161650",),
    ),
    Exhibit(
        row=27,
        name="rrelu",
        title=("以 RReLU 结尾的块", "a block that ends in RReLU"),
        loudness="silent",
        code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.RReLU())

def forward(x):
    return checkpoint(model, x, use_reentrant=False)
""",
        cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.RReLU())

def forward(x):
    return checkpoint(model, x, use_reentrant=False, early_stop=False)
""",
        seen="gradient 0.weight",
        why=(
            "RReLU 先保存一块还没填的内存，再往里写随机斜率。提前停止在“保存”那一刻就收工，"
            "斜率始终没有写进去："
            "梯度乘上了内存里的垃圾。这是 PyTorch 自己的错，2026 年 8 月才有人报告，2.13 里还在。",
            "RReLU first saves memory that is still empty and then writes its random slopes into "
            "it. Early stop leaves at the moment of saving, so they are never written, and "
            "gradients are multiplied by whatever was in that memory. A bug in PyTorch itself, "
            "reported only in August 2026 and still there in 2.13.",
        ),
        remedy=(
            "这一块写 early_stop=False，或者别让 RReLU 收尾。",
            "Pass early_stop=False for this block, or do not end it with RReLU.",
        ),
        issues=("pytorch/pytorch#193671",),
    ),
    Exhibit(
        row=28,
        name="unpacked-twice",
        title=("saved_tensors 读了两次", "saved_tensors read twice"),
        loudness="error",
        code="""\
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x); return x * x
    @staticmethod
    def backward(ctx, g): return g * ctx.saved_tensors[0] + g * ctx.saved_tensors[0]

model = nn.Linear(8, 8)
forward = lambda x: checkpoint(lambda x: Square.apply(model(x)), x, use_reentrant=False)
""",
        cure="""\
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x); return x * x
    @staticmethod
    def backward(ctx, g): (x,) = ctx.saved_tensors; return g * x + g * x

model = nn.Linear(8, 8)
forward = lambda x: checkpoint(lambda x: Square.apply(model(x)), x, use_reentrant=False)
""",
        seen="error",
        quoted="already unpacked once",
        why=(
            "每读一次 ctx.saved_tensors 就解包一次，而重计算的值只交出一次。自己写的算子平时没事，"
            "一进检查点就报错。",
            "Each read of ctx.saved_tensors unpacks again, but a recomputed value is handed over "
            "only once. Your own operator works, until it runs inside a checkpoint.",
        ),
        remedy=("读一次，存进局部变量。", "Read it once, into local variables."),
        issues=("state-spaces/mamba#1020",),
    ),
)
