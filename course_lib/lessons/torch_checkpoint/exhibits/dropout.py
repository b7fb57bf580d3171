"""Exhibit: a different dropout mask in the recomputation."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=4,
    name="dropout",
    title=("重计算时换了一张 dropout 掩码", "a different dropout mask in the recomputation"),
    loudness="silent",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))

def forward(x):
    return checkpoint(model, x, use_reentrant=False, preserve_rng_state=False)
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))

def forward(x):
    return checkpoint(model, x, use_reentrant=False)
""",
    seen="gradient 0.weight",
    why=(
        "前向用一张掩码，反向用另一张，得到的是另一个函数的梯度。形状、类型都对，"
        "没有任何检查会响。",
        "The forward pass has one mask, the backward pass another: the gradient belongs to "
        "another function. Shapes and types agree, so no check objects.",
    ),
    remedy=(
        "块里有随机数，就不要关 preserve_rng_state；省下的只是每次调用的一点时间和一份随机数状态。",
        "Leave preserve_rng_state on wherever there is randomness; off, it only saves a little "
        "time per call and one random state.",
    ),
)
