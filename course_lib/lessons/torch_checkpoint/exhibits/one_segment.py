"""Exhibit: the last segment of checkpoint_sequential."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
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
        "最后一段从不加检查点。只有一段时，它就是最后一段，所以什么都没省。",
        "The last segment is never checkpointed. With one segment, that is the whole model, so "
        "nothing is saved.",
    ),
    remedy=(
        "段数取大一些，或者自己写循环，逐块 checkpoint。",
        "Use more segments, or write the loop yourself, one checkpoint per block.",
    ),
    issues=("pytorch/pytorch#68423",),
)
