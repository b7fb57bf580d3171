"""Exhibit: tensors inside a list."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=3,
    name="in-a-list",
    title=("张量放在列表里", "tensors inside a list"),
    loudness="warning",
    code="""\
model = nn.Linear(8, 8)

def block(pair):
    return torch.tanh(model(pair[0]) * pair[1])

def forward(x):
    x.requires_grad_()
    return checkpoint(block, [x, x.cos()], use_reentrant=True)
""",
    cure="""\
model = nn.Linear(8, 8)

def block(pair):
    return torch.tanh(model(pair[0]) * pair[1])

def forward(x):
    x.requires_grad_()
    return checkpoint(block, [x, x.cos()], use_reentrant=False)
""",
    seen="gradient weight",
    quoted="None of the inputs have requires_grad=True. Gradients will be None",
    why=(
        "重入实现不会到列表、字典里面去找张量，所以 x 明明需要梯度，它却没看见。",
        "The reentrant one does not look for tensors inside lists and dicts, so x does "
        "require a gradient, but goes unseen.",
    ),
    remedy=(
        "use_reentrant=False，或者把张量一个个按位置传进去。",
        "use_reentrant=False, or pass each tensor by position.",
    ),
    issues=("pytorch/pytorch#124725",),
)
