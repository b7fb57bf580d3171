"""Exhibit: one checkpoint around each Linear."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
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
        "Linear 本来就只保存输入，检查点也保存输入，所以一个字节不少。FLOPs 也不多，"
        "因为每次重算还没做乘法就提前停止了；多出来的只有调用的开销和随机数状态。",
        "A Linear keeps its input anyway, and the checkpoint keeps the input too, so not a byte "
        "less. Nor are there more FLOPs, since early stop ends each recomputation before its "
        "product; what is added is the overhead of the calls, and random states.",
    ),
    remedy=(
        "把几层包成一段；省下的内存要用 FLOPs 来换，因为每一段除了最后一层都要再乘一遍。",
        "Wrap several layers as one segment. That does cost FLOPs, as all products of a segment "
        "but the last are done again.",
    ),
    issues=("pytorch/pytorch#78731",),
)
