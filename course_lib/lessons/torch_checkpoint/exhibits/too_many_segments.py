"""Exhibit: more segments than layers."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
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
)
