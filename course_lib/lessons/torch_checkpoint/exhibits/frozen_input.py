"""Exhibit: an input that requires no gradient."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=2,
    name="frozen-input",
    title=("输入不需要梯度", "an input that requires no gradient"),
    loudness="warning",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

def forward(x):                                  # x is data, or a frozen embedding
    hidden = checkpoint(model[:2], x, use_reentrant=True)
    return model[2](hidden)
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

def forward(x):
    hidden = checkpoint(model[:2], x, use_reentrant=False)
    return model[2](hidden)
""",
    seen="gradient 0.weight",
    quoted="None of the inputs have requires_grad=True. Gradients will be None",
    why=(
        "重入实现是一个 autograd.Function，只看得见直接传给它的张量。它们都不需要梯度，"
        "输出也就不需要，"
        "块里的参数永远等不到梯度。loss 照样下降，因为后面的层还在学。",
        "The reentrant one is an autograd.Function and sees only its tensor arguments. "
        "None requires a gradient, so neither does the output, and the block's parameters "
        "never get one. The loss still falls, because the later layers learn.",
    ),
    remedy=(
        "use_reentrant=False 记录真正的计算图。",
        "use_reentrant=False records the real graph.",
    ),
    issues=("pytorch/pytorch#7617", "pytorch/pytorch#42812"),
)
