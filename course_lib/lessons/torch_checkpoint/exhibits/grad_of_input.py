"""Exhibit: backward(inputs=…), autograd.grad."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=19,
    name="grad-of-input",
    title=("backward(inputs=…) 与 autograd.grad", "backward(inputs=…), autograd.grad"),
    loudness="error",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    y = checkpoint(model, x.requires_grad_(), use_reentrant=True)
    y.sum().backward(inputs=[x, *model.parameters()])
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def step():
    y = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    y.sum().backward(inputs=[x, *model.parameters()])
""",
    seen="error",
    quoted="incompatible with .grad() or passing an `inputs` parameter to .backward()",
    why=(
        "重入实现在反向传播里再调用一次 backward()，那一次不知道外面只要哪几个梯度，于是拒绝。"
        "torch.autograd.grad 同样。",
        "The reentrant one calls backward() inside the backward pass; that inner call cannot know "
        "which gradients are wanted, so it refuses. torch.autograd.grad fails likewise.",
    ),
    remedy=("use_reentrant=False。", "use_reentrant=False."),
    issues=("pytorch/pytorch#125155",),
)
