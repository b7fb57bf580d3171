"""Exhibit: BatchNorm counts every batch twice."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=6,
    name="batch-norm",
    title=("BatchNorm 的统计量更新了两次", "BatchNorm counts every batch twice"),
    loudness="silent",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())

def forward(x):
    return checkpoint(model, x, use_reentrant=False)
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())
@contextlib.contextmanager
def buffers_kept():
    before = [b.clone() for b in model.buffers()]
    try: yield
    finally: [b.copy_(old) for b, old in zip(model.buffers(), before)]

def forward(x):
    contexts = lambda: (contextlib.nullcontext(), buffers_kept())
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)
""",
    seen="buffer 1.running_mean",
    why=(
        "每次前向都会移动滑动平均，重计算也是前向。梯度没错，错的是评估时用的统计量。",
        "Every forward pass moves the running averages, and a recomputation is one. The "
        "gradients are right; the statistics used for evaluation are not.",
    ),
    remedy=(
        "让重计算不留痕迹，由第二个上下文在它结束后把缓冲区还原。另一种治法是把 momentum 换成 "
        "1 − √(1 − momentum)，因为两次小步等于一大步，只差舍入，但 num_batches_tracked 仍数两次。",
        "Let the recomputation leave no trace: the second context restores the buffers when it "
        "ends. Or replace momentum by 1 − √(1 − momentum): two small moves then equal one, up "
        "to rounding, but num_batches_tracked still counts twice.",
    ),
    issues=("pytorch/pytorch#96136",),
)
