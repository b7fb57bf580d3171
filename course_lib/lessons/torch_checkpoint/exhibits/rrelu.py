"""Exhibit: a block that ends in RReLU."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=27,
    name="rrelu",
    title=("以 RReLU 结尾的块", "a block that ends in RReLU"),
    loudness="silent",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.RReLU())

def forward(x):
    return checkpoint(model, x, use_reentrant=False)
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.RReLU())

def forward(x):
    return checkpoint(model, x, use_reentrant=False, early_stop=False)
""",
    seen="gradient 0.weight",
    why=(
        "RReLU 先保存一块还没填的内存，再往里写随机斜率。提前停止在“保存”那一刻就收工，"
        "斜率始终没有写进去，"
        "于是梯度乘上了内存里的垃圾。这是 PyTorch 自己的错，2026 年 8 月才有人报告，2.13 里还在。",
        "RReLU first saves memory that is still empty and then writes its random slopes into "
        "it. Early stop leaves at the moment of saving, so they are never written, and "
        "gradients are multiplied by whatever was in that memory. A bug in PyTorch itself, "
        "reported only in August 2026 and still there in 2.13.",
    ),
    remedy=(
        "这一块写 early_stop=False，或者别让 RReLU 收尾。",
        "Pass early_stop=False for this block, or do not end it with RReLU.",
    ),
    issues=("pytorch/pytorch#193671",),
)
