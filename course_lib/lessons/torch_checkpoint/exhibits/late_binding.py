"""Exhibit: a lambda in a loop."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=10,
    name="late-binding",
    title=("循环里的 lambda", "a lambda in a loop"),
    loudness="silent",
    code="""\
model = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

def forward(x):
    for layer in model:
        x = checkpoint(lambda x: layer(x), x, use_reentrant=False)
    return x
""",
    cure="""\
model = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

def forward(x):
    for layer in model:
        x = checkpoint(layer, x, use_reentrant=False)
    return x
""",
    seen="gradient 0.0.weight",
    why=(
        "lambda 到调用时才去找 layer 是谁。反向传播时循环早已结束，layer 是最后一层，"
        "所以三次重计算都是它。",
        "The lambda asks who layer is when it is called. By the backward pass the loop is "
        "over and layer is the last one, so all three recomputations run it.",
    ),
    remedy=(
        "直接传 layer；非写 lambda 不可时写 lambda x, layer=layer: …。",
        "Pass layer itself, or, if it must be a lambda, lambda x, layer=layer: ….",
    ),
)
