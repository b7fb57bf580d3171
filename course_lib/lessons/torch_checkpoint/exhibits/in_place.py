"""Exhibit: the checkpoint changed in place."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=7,
    name="in-place",
    title=("就地修改了检查点", "the checkpoint changed in place"),
    loudness="error",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

def forward(x):
    x = model[0](x)
    y = checkpoint(torch.tanh, x, use_reentrant=False)
    x += 1                                       # nobody needs x any more?
    return model[1](y)
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

def forward(x):
    x = model[0](x)
    y = checkpoint(torch.tanh, x, use_reentrant=False)
    x = x + 1
    return model[1](y)
""",
    seen="error",
    quoted="modified by an inplace operation",
    why=(
        "不用检查点时没事，因为 tanh 保存的是输出。检查点保存的却是输入 x，它的版本号变了，"
        "反向时就报错。",
        "Without the checkpoint this is fine, as tanh keeps its output. The checkpoint keeps the "
        "input x, whose version has changed, and the backward pass raises.",
    ),
    remedy=("换成不就地修改的写法。", "Write it out of place."),
)
