"""Exhibit: one checkpoint around the whole model."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
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
        "前向结束时几乎什么都没保留，可是反向一开始就要把整个模型重算一遍，"
        "全部激活值又一起回来了，所以峰值不变。要是把很大的输出层留在外面，它会先用完，"
        "峰值就会低一些。",
        "Hardly anything is kept after the forward pass, but the backward pass begins by "
        "recomputing the whole model, and all activations are back at once, so the peak stays. "
        "Were a large output layer left outside, it would be gone by then, and the peak lower.",
    ),
    remedy=(
        "每块一个检查点，同一时刻就只展开一块。",
        "One checkpoint per block, so that only one block is expanded at a time.",
    ),
    issues=("pytorch/pytorch#6750",),
)
