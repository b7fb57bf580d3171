"""Exhibit: a setting that exists only in a blog."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
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
        "用 torch._functorch.config.patch 限定范围。编译器拿预算做什么，第 06 课里量给你看。",
        "Set it with torch._functorch.config.patch. What the compiler makes of a budget is "
        "measured in lesson 06.",
    ),
    issues=("pytorch/pytorch#161650",),
)
