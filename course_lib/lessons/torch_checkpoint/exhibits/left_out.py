"""Exhibit: use_reentrant left out."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
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
        "警告说从 2.9 起会报错，可是到了 2.13 仍然只是警告，而且默认用 True，也就是重入实现，"
        "下面好几件展品的病根就是它。",
        "The warning announces an error from 2.9 on, yet in 2.13 it is still a warning, and "
        "the default is True, the reentrant one, the root of several exhibits below.",
    ),
    remedy=("每次都写 use_reentrant=False。", "Write use_reentrant=False, every time."),
    issues=("pytorch/pytorch#160534",),
)
