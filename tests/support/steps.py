"""Training steps of many kinds, each built anew by a function, for tests to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from support.independent import Step

Make = Callable[[], Step]
STEPS: dict[str, Make] = {}


def a_step(make: Make) -> Make:
    """Enter a maker of steps in ``STEPS``, always built from the same seed."""

    def seeded() -> Step:
        torch.manual_seed(0)
        return make()

    STEPS[make.__name__] = seeded
    return seeded


def training(
    model: nn.Module,
    x: Tensor,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    steps: int = 1,
) -> Step:
    """Forward, backward and, with an optimizer, update and ``zero_grad``, ``steps`` times."""
    stepping = optimizer(model.parameters()) if optimizer else None

    def run() -> None:
        for _ in range(steps):
            if stepping:
                stepping.zero_grad()
            output = model(x)
            loss = output.float().square().mean()
            del output
            loss.backward()
            if stepping:
                stepping.step()

    return Step(run, model, stepping, x)


def plain(function: Callable[..., Tensor], *tensors: Tensor) -> Step:
    """Backward through a function that is no module."""
    return Step(lambda: function(*tensors).sum().backward(), inputs=tensors)


def leaf(*shape: int, **kind: object) -> Tensor:
    return torch.randn(*shape, **kind).requires_grad_()


class Block(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float = 0.0):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.down(self.act(self.up(x))))


class Blocks(nn.Module):
    """Eight blocks, each in a checkpoint of its own if ``kind`` says how."""

    def __init__(self, kind: str = "", residual: bool = False, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList([Block(64, 256, dropout) for _ in range(8)])
        self.kind, self.residual = kind, residual

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.kind:
                y = checkpoint(block, x, use_reentrant=self.kind == "reentrant")
            else:
                y = block(x)
            x = x + y if self.residual else y
        return x


# --- layers ---------------------------------------------------------------------------------


@a_step
def mlp() -> Step:
    return training(Blocks(), torch.randn(32, 64))


def _encoder(layers: int, **options: object) -> nn.Module:
    return nn.Sequential(
        *[nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, **options)
          for _ in range(layers)]
    )  # fmt: skip


@a_step
def transformer_encoder() -> Step:
    return training(_encoder(3, dropout=0.1), torch.randn(4, 16, 64))


@a_step
def transformer_norm_first() -> Step:
    return training(_encoder(3, norm_first=True), torch.randn(4, 16, 64))


@a_step
def sdpa() -> Step:
    function = partial(F.scaled_dot_product_attention, is_causal=True)
    return plain(function, *[leaf(2, 4, 128, 16) for _ in range(3)])


@a_step
def conv_net() -> Step:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    return training(model, torch.randn(4, 3, 32, 32))


class Last(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


@a_step
def lstm() -> Step:
    return training(Last(nn.LSTM(32, 48, num_layers=2)), torch.randn(10, 4, 32))


@a_step
def gru() -> Step:
    return training(Last(nn.GRU(32, 48, bidirectional=True)), torch.randn(10, 4, 32))


@a_step
def bf16_matmul() -> Step:
    return plain(torch.matmul, *[leaf(128, 128, dtype=torch.bfloat16) for _ in range(2)])


@a_step
def autocast() -> Step:
    model, x = Blocks(), torch.randn(32, 64)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x).square().mean()
        loss.backward()

    return Step(run, model, None, x)


class Tied(nn.Module):
    def __init__(self, sparse: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(100, 32, sparse=sparse)
        self.block = Block(32, 64)
        self.head = nn.Linear(32, 100, bias=False)
        if not sparse:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embedding(tokens)))


@a_step
def tied_embedding() -> Step:
    model, tokens, labels = Tied(), torch.randint(100, (4, 16)), torch.randint(100, (64,))

    def run() -> None:
        F.cross_entropy(model(tokens).flatten(0, 1), labels).backward()

    return Step(run, model, None, (tokens, {"labels": labels}))


@a_step
def sparse_embedding() -> Step:
    model = Tied(sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(100, (4, 16))

    def run() -> None:
        for _ in range(2):
            model(tokens).square().mean().backward()
            optimizer.step()

    return Step(run, model, optimizer, tokens)


@a_step
def frozen_base() -> Step:
    model = nn.Sequential(*[Block(64, 256) for _ in range(4)], nn.Linear(64, 10))
    model[:4].requires_grad_(False)
    return training(model, torch.randn(32, 64), partial(torch.optim.SGD, lr=0.1))


# --- ways to write it -----------------------------------------------------------------------


@a_step
def in_place() -> Step:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        y.add_(1).relu_()
        z = torch.zeros_like(y)
        z[:, :8] = y[:, 8:16]
        z.mul_(y)
        return z.exp_()

    return plain(function, leaf(32, 64))


@a_step
def views_and_expands() -> Step:
    def function(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        wide = a.unsqueeze(0).expand(5, -1, -1)
        joined = torch.cat([wide.reshape(-1, 8), b.T.contiguous().view(-1, 8)])
        return joined[::2].transpose(0, 1).sigmoid().flatten()

    return plain(function, leaf(32, 16))


@a_step
def view_of_a_large_storage() -> Step:
    large = torch.randn(1000, 64)
    return plain(lambda x, y: (x * y).relu(), large[10:20], leaf(10, 64))


@a_step
def plain_function() -> Step:
    weight = leaf(64, 64)  # neither in a module nor in inputs: found because it is read
    x = torch.randn(32, 64)
    return Step(lambda: (x @ weight).tanh().sum().backward(), inputs=x)


@a_step
def from_numpy() -> Step:
    x = torch.from_numpy(numpy.ones((32, 64), numpy.float32))
    block = Block(64, 256)
    return Step(lambda: block(x).sum().backward(), block, None, x, outside=x.nbytes)


@a_step
def empty_tensors() -> Step:
    large = torch.randn(100, 64)

    def function(x: Tensor) -> Tensor:
        nothing = torch.cat([x[:0], x.new_zeros(0, 64), large[50:50]])
        return torch.cat([nothing * 2, x, large[7:7]]).relu()

    return Step(lambda: function(y).sum().backward(), inputs=(large, y := leaf(8, 64)))


@a_step
def complex_numbers() -> Step:
    def function(x: Tensor) -> Tensor:
        z = torch.fft.fft(x)
        return (z * z.conj()).real.sqrt() + z.imag

    return plain(function, leaf(16, 64))


@a_step
def data_dependent_shapes() -> Step:
    def function(x: Tensor) -> Tensor:
        chosen = x[x > 0]
        return chosen[torch.nonzero(chosen > 0.5).squeeze(1)].exp()

    return plain(function, leaf(64, 64))


@a_step
def resized_in_place() -> Step:
    def run() -> None:
        x = torch.zeros(16, 16)
        x.resize_(64, 64).zero_()
        torch.mm(torch.ones(32, 8), torch.ones(8, 32), out=(y := torch.empty(0)))
        (leaf(64, 64) * x).sum().backward()
        y.resize_(4)

    return Step(run)


@a_step
def bytes_as_large_as_a_mark() -> Step:
    return _bytes_in_the_way([4099] * 10)


@a_step
def bytes_as_large_as_every_mark() -> Step:
    return _bytes_in_the_way(range(4099, 4099 + 2 * 64, 2))


def _bytes_in_the_way(sizes: Iterable[int]) -> Step:
    def run() -> None:
        for size in sizes:
            x = torch.zeros(size, dtype=torch.uint8)
            x = x + 1
            torch.UntypedStorage(size)
        (leaf(64) * x[:64]).sum().backward()

    return Step(run)


@a_step
def retained_graph() -> Step:
    block, x = Block(64, 256), torch.randn(32, 64)

    def run() -> None:
        loss = block(x).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()

    return Step(run, block, None, x)


@a_step
def gradients_set_to_none() -> Step:
    model, x = Blocks(), torch.randn(32, 64)
    model(x).sum().backward()

    def run() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        model(x).square().mean().backward()

    return Step(run, model, None, x)


@a_step
def gradients_set_to_zero() -> Step:
    model, x = Blocks(), torch.randn(32, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run() -> None:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=False)
            model(x).square().mean().backward()
            optimizer.step()

    return Step(run, model, optimizer, x)


@a_step
def gradient_accumulation() -> Step:
    model, x = Blocks(), torch.randn(32, 64)

    def run() -> None:
        for part in x.chunk(4):
            model(part).square().mean().backward()

    return Step(run, model, None, x)


@a_step
def residual_fan_out() -> Step:
    return training(Blocks(residual=True), torch.randn(32, 64))


@a_step
def many_users_of_one_value() -> Step:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        return y.sin() * y.cos() + y.exp() + y.T.contiguous().T + y[:, :1] + y

    return plain(function, leaf(32, 32))


@a_step
def inference() -> Step:
    model, x = Blocks(), torch.randn(32, 64)

    def run() -> None:
        with torch.inference_mode():
            model(x)

    return Step(run, model, None, x)


# --- autograd -------------------------------------------------------------------------------


@a_step
def double_backward() -> Step:
    block, x = Block(32, 64), leaf(16, 32)

    def run() -> None:
        (gradient,) = torch.autograd.grad(block(x).tanh().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    return Step(run, block, None, x)


@a_step
def autograd_grad() -> Step:
    block, x = Block(64, 256), torch.randn(32, 64)

    def run() -> None:
        found = torch.autograd.grad(block(x).square().mean(), list(block.parameters()))
        for parameter, gradient in zip(block.parameters(), found, strict=True):
            parameter.grad = gradient

    return Step(run, block, None, x)


@a_step
def cumulative_maximum() -> Step:
    """Its gradient is scattered into zeros, in place when nobody watches."""
    x = leaf(8, 8)
    return plain(lambda x: x.cummax(0)[0], x)


@a_step
def func_jvp() -> Step:
    """Forward-mode: tangents that are zero have no memory at all."""
    linear, x = nn.Linear(16, 4), torch.randn(8, 16)
    return Step(lambda: torch.func.jvp(linear, (x,), (torch.ones_like(x),)), linear, inputs=x)


@a_step
def func_grad() -> Step:
    block, x = Block(64, 256), torch.randn(32, 64)
    weights = {name: p.detach() for name, p in block.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(block, weights, (x,)).square().mean()

    return Step(lambda: torch.func.grad(loss)(weights), block, None, x)


class RecomputingFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        torch.autograd.backward(y, gradient)
        return None, x.grad


@a_step
def function_that_recomputes() -> Step:
    model = Blocks()

    def run(x: Tensor = leaf(32, 64)) -> None:  # noqa: B008
        y = x
        for block in model.blocks:
            y = RecomputingFunction.apply(block, y)
        y.square().mean().backward()

    return Step(run, model, None, run.__defaults__[0])


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@a_step
def hooks_that_recompute() -> Step:
    """Sines are not kept: the hook makes them again from their input, without a graph."""
    x = leaf(64, 64)

    def again(packed: tuple) -> Tensor:
        return sine(packed[0]) if packed[1] else packed[0]

    def sine(x: Tensor) -> Tensor:
        return x.sin()

    def run() -> None:
        y = x * 2
        for _ in range(3):
            before, y = y, sine(y)
            made = _identity(y)

            def keep(t: Tensor, before: Tensor = before, made: int = made) -> tuple:
                return (before.detach(), True) if _identity(t) == made else (t, False)

            with torch.autograd.graph.saved_tensors_hooks(keep, again):
                y = y.exp() * y
            del before, keep
        y.sum().backward()

    return Step(run, None, None, x)


# --- checkpoints ----------------------------------------------------------------------------


@a_step
def checkpoints() -> Step:
    return training(Blocks("non-reentrant", dropout=0.1), torch.randn(32, 64))


@a_step
def reentrant_checkpoints() -> Step:
    return training(Blocks("reentrant", dropout=0.1), leaf(32, 64))


@a_step
def residual_checkpoints() -> Step:
    return training(Blocks("non-reentrant", residual=True), torch.randn(32, 64))


@a_step
def nested_checkpoints() -> Step:
    model, x = Blocks("non-reentrant"), torch.randn(32, 64)

    def run() -> None:
        y = checkpoint(lambda x: checkpoint(model, x, use_reentrant=False), x, use_reentrant=False)
        y.square().mean().backward()

    return Step(run, model, None, x)


@a_step
def checkpoint_in_a_loop() -> Step:
    block, x = Block(64, 256), torch.randn(32, 64)

    def run() -> None:
        y = x
        for _ in range(5):
            y = checkpoint(block, y, use_reentrant=False, preserve_rng_state=False)
        y.square().mean().backward()

    return Step(run, block, None, x)


@a_step
def checkpointed_segments() -> Step:
    model, x = nn.Sequential(*[Block(64, 256) for _ in range(9)]), torch.randn(32, 64)

    def run() -> None:
        checkpoint_sequential(model, 3, x, use_reentrant=False).square().mean().backward()

    return Step(run, model, None, x)


@a_step
def checkpointed_conv_net() -> Step:
    model = nn.Sequential(
        *[nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
          for _ in range(4)]
    )  # fmt: skip
    x = torch.randn(2, 8, 32, 32)

    def run() -> None:
        y = x
        for layer in model:
            y = checkpoint(layer, y, use_reentrant=False)
        y.square().mean().backward()

    return Step(run, model, None, x)


# --- optimizers -----------------------------------------------------------------------------


def _optimizer_step(name: str, optimizer: Callable, steps: int = 2) -> None:
    def make() -> Step:
        return training(Blocks(), torch.randn(32, 64), optimizer, steps)

    make.__name__ = name
    a_step(make)


for _foreach in (False, True):
    _suffix = "foreach" if _foreach else "for_loop"
    _optimizer_step(
        f"sgd_momentum_{_suffix}",
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, foreach=_foreach),
    )
    _optimizer_step(f"adamw_{_suffix}", partial(torch.optim.AdamW, foreach=_foreach))
_optimizer_step("adamw_fused", partial(torch.optim.AdamW, fused=True))
_optimizer_step("sgd_many_steps", partial(torch.optim.SGD, lr=0.1), steps=5)


@a_step
def trained_before() -> Step:
    """Gradients and optimizer state exist when the step begins, and gradients go in it."""
    step = training(Blocks(), torch.randn(32, 64), torch.optim.AdamW)
    step.run()
    return step


@a_step
def clipped_gradients() -> Step:
    model, x = Blocks(), torch.randn(32, 64)
    optimizer = torch.optim.AdamW(model.parameters())

    def run() -> None:
        model(x).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Step(run, model, optimizer, x)


@a_step
def lbfgs() -> Step:
    block, x = Block(16, 32), torch.randn(8, 16)
    optimizer = torch.optim.LBFGS(block.parameters(), max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = block(x).square().mean()
        loss.backward()
        return loss

    return Step(lambda: optimizer.step(closure), block, optimizer, x)


@a_step
def optimizer_in_backward() -> Step:
    model, x = Blocks(), torch.randn(32, 64)
    optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    return Step(lambda: model(x).square().mean().backward(), model, None, x)
