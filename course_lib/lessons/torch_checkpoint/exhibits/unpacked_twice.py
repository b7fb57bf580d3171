"""Exhibit: saved_tensors read twice."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=28,
    name="unpacked-twice",
    title=("saved_tensors 读了两次", "saved_tensors read twice"),
    loudness="error",
    code="""\
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x); return x * x
    @staticmethod
    def backward(ctx, g): return g * ctx.saved_tensors[0] + g * ctx.saved_tensors[0]

model = nn.Linear(8, 8)
forward = lambda x: checkpoint(lambda x: Square.apply(model(x)), x, use_reentrant=False)
""",
    cure="""\
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x); return x * x
    @staticmethod
    def backward(ctx, g): (x,) = ctx.saved_tensors; return g * x + g * x

model = nn.Linear(8, 8)
forward = lambda x: checkpoint(lambda x: Square.apply(model(x)), x, use_reentrant=False)
""",
    seen="error",
    quoted="already unpacked once",
    why=(
        "每读一次 ctx.saved_tensors 就解包一次，而重计算的值只交出一次。自己写的算子平时没事，"
        "一进检查点就报错。",
        "Each read of ctx.saved_tensors unpacks again, but a recomputed value is handed over "
        "only once. Your own operator works, until it runs inside a checkpoint.",
    ),
    remedy=("读一次，存进局部变量。", "Read it once, into local variables."),
    issues=("state-spaces/mamba#1020",),
)
