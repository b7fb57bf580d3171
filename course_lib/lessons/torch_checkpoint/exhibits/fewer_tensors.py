"""Exhibit: one step fewer the second time."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
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
        "重计算保存的张量比前向少，数目对不上，这一种 checkpoint 查得出来。",
        "The recomputation saves fewer tensors than the forward pass did. The count is wrong, "
        "and this is a kind of fault that checkpoint does notice.",
    ),
    remedy=(
        "把判断移到检查点外面，结果当参数传进去。",
        "Decide outside the checkpoint and pass the decision in.",
    ),
)
