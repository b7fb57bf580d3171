"""Exhibit: one step more the second time."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=29,
    name="more-tensors",
    title=("第二次多算了一步", "one step more the second time"),
    loudness="silent",
    code="""\
model = nn.Linear(8, 8)
warm = []

def block(x):
    x = model(x)
    if warm:
        x = x.exp()
    warm.append(x.detach())
    return x.sin()
forward = lambda x: checkpoint(block, x, use_reentrant=False)
""",
    cure="""\
model = nn.Linear(8, 8)
warm = []

def block(x, first):
    x = model(x)
    return x.sin() if first else x.exp().sin()
def forward(x):
    y = checkpoint(block, x, not warm, use_reentrant=False)
    warm.append(y.detach())
    return y
""",
    seen="gradient weight",
    why=(
        "和上一件正好相反，却是静默的，因为提前停止在收齐前向那么多张量时就停了，"
        "多出来的那一个没人看见，"
        "错位的张量形状又都一样。early_stop=False 能让它报错。",
        "The reverse of the previous one, and silent, because early stop ends the "
        "recomputation when it has as many tensors as the forward pass saved. The surplus one "
        "is never seen, and the shapes agree. With early_stop=False it raises.",
    ),
    remedy=("同上一件。", "As for the previous one."),
)
