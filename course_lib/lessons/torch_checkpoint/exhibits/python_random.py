"""Exhibit: random numbers of no default generator."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
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
)
