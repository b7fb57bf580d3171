"""What can be wrong with what is to be measured, or turns out to be: one sentence for each."""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..language import text
from .roles import parameters_of


def check_step(step: Any) -> None:
    if not callable(step):
        raise TypeError(
            text(
                zh=f"step 必须是函数，现在是 {type(step).__name__}。要测 f(x)，"
                "写 measure(lambda: f(x))。",
                en=f"step must be a function, not {type(step).__name__}. "
                "To measure f(x), write measure(lambda: f(x)).",
            )
        )
    bare = inspect.unwrap(step.func if isinstance(step, functools.partial) else step)
    if inspect.isgeneratorfunction(bare) or inspect.iscoroutinefunction(bare):
        raise TypeError(
            text(
                zh="step 是生成器或 async 函数，调用它什么也不会运行。请写一个普通函数，"
                "在里面把它跑完。",
                en="step is a generator or async function: calling it runs nothing. Write an "
                "ordinary function that runs it to its end.",
            )
        )
    try:
        signature = inspect.signature(step.forward if isinstance(step, nn.Module) else step)
    except ValueError:  # some builtins have none; the call itself will tell
        return
    try:
        signature.bind()
    except TypeError as problem:
        raise TypeError(
            text(
                zh=f"step 会被不带参数地调用，可它要参数（{problem}）。"
                "写 lambda: step(x)，并把 x 放进 inputs=。",
                en=f"step is called without arguments but needs some ({problem}). "
                "Write lambda: step(x), and pass x in inputs=.",
            )
        ) from None


def optimizers_in(given: Any) -> list[Optimizer]:
    """The optimizers, out of what libraries put around one, such as Lightning and Accelerate."""
    if given is None:
        return []
    found: list[Any] = []
    for value in given if isinstance(given, (list, tuple)) else [given]:
        inner = getattr(value, "optimizer", None)
        found.append(inner if isinstance(inner, Optimizer) else value)
    return found


def check_model(model: Any, optimizers: list[Any]) -> None:
    given: list[tuple[str, Any, type]] = [("optimizer", one, Optimizer) for one in optimizers]
    if model is not None:
        given.insert(0, ("model", model, nn.Module))
    for name, value, kind in given:
        if not isinstance(value, kind):
            raise TypeError(
                text(
                    zh=f"{name} 必须是 {kind.__name__}，现在是 {type(value).__name__}。",
                    en=f"{name} must be of type {kind.__name__}, not {type(value).__name__}.",
                )
            )
    if model is not None and optimizers:
        ours = {id(parameter) for parameter in model.parameters()}
        theirs = [parameter for one in optimizers for parameter in parameters_of(one)]
        if not any(id(parameter) in ours for parameter in theirs):
            raise ValueError(
                text(
                    zh="optimizer 里没有 model 的任何参数：它是为别的模型建的。",
                    en="optimizer holds no parameter of model: it was made for another one.",
                )
            )


def not_watched(trouble: Exception) -> str:
    words = f"{type(trouble).__name__}: {trouble}"
    return text(
        zh=f"这一步照常跑完了，但没能全程测量：{words}",
        en=f"The step ran as it does unmeasured, but could not be watched to its end: {words}",
    )


def check_threads(names: list[str]) -> None:
    if names:
        raise RuntimeError(
            text(
                zh=f"step 用了别的线程（{names[0]}）。PyTorch 按线程报告内存分配，"
                "别的线程里的数不到。请在当前线程里做完（DataLoader 用 num_workers=0）。",
                en=f"The step used another thread ({names[0]}). PyTorch reports allocations per "
                "thread, so those of other threads are missed. Do the work in this one "
                "(a DataLoader with num_workers=0).",
            )
        )


def memory_of_a_gpu() -> str:
    return text(
        zh="step 用了显存，而 model、optimizer 和 inputs 都在 CPU 上，所以这次测的是 CPU 的内存。"
        "请把 GPU 上的模型或输入交给 measure。",
        en="The step used memory of a GPU, but model, optimizer and inputs are on the CPU, so the "
        "CPU's was measured. Hand measure the model or the inputs that are on the GPU.",
    )


def warn_without_backward() -> None:
    warnings.warn(
        text(
            zh="step 没有调用 backward()。没有反向传播去读，就分不出哪些值是为它保存的："
            "前向传播产生的值都算作临时量。",
            en="The step never called backward(). With no backward pass to read them, kept values "
            "cannot be told from others: all that the forward pass made counts as temporary.",
        ),
        stacklevel=5,
    )
