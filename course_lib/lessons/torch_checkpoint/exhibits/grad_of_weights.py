"""Exhibit: the same call, for the weights alone."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=33,
    name="grad-of-weights",
    title=("同样的调用，只要参数的梯度", "the same call, for the weights alone"),
    loudness="silent",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    y = checkpoint(model, x.requires_grad_(), use_reentrant=True)
    y.sum().backward(inputs=list(model.parameters()))
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    y = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    y.sum().backward(inputs=list(model.parameters()))
""",
    seen="gradient 0.weight",
    why=(
        "比上一件只少了 x，报错就没有了，梯度也没有了，因为参数不在重入实现的计算图里，"
        "通往它们的路不存在，"
        "反向传播根本没走进检查点，也就没有机会拒绝。",
        "Only x is missing compared with the previous exhibit; the error is gone, and so are "
        "the gradients: the reentrant one's graph does not hold the parameters. With no "
        "path to them, the backward pass never enters the checkpoint, which cannot refuse.",
    ),
    remedy=("use_reentrant=False。", "use_reentrant=False."),
)
