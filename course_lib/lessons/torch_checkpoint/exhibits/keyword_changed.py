"""Exhibit: a tensor passed by keyword, changed later."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=9,
    name="keyword-changed",
    title=("按关键字传入的张量后来变了", "a tensor passed by keyword, changed later"),
    loudness="silent",
    code="""\
model = nn.Linear(8, 8)
scale = torch.ones(8)                            # one buffer, filled anew for every batch
def block(x, scale):
    return torch.tanh(model(x) * scale)

def forward(x):
    y = checkpoint(block, x, scale=scale.fill_(1), use_reentrant=False)
    scale.fill_(2)                               # already the next batch's
    return y
""",
    cure="""\
model = nn.Linear(8, 8)
scale = torch.ones(8)
def block(x, scale):
    return torch.tanh(model(x) * scale)

def forward(x):
    y = checkpoint(block, x, scale.fill_(1).clone(), use_reentrant=False)
    scale.fill_(2)
    return y
""",
    seen="error plain",
    why=(
        "只有直接按位置传入的张量受版本检查保护。列表、关键字参数、闭包、全局变量里的张量，"
        "检查点只记得是哪个对象，"
        "重计算时它里面是什么，就用什么。",
        "Only a tensor that is itself a positional argument is guarded by a version check. For "
        "those in lists, keyword arguments, closures and globals, the checkpoint remembers "
        "only the object and uses whatever it holds by then.",
    ),
    remedy=(
        "直接按位置传，改动就会被查出来；传一份副本，就没有改动可言。",
        "Pass it by position, by itself, and the change is caught; pass a copy and there is no "
        "change.",
    ),
)
