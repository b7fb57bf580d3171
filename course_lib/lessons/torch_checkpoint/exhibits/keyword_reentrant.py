"""Exhibit: the reentrant implementation takes no keyword arguments."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=13,
    name="keyword-reentrant",
    title=("重入实现不收关键字参数", "use_reentrant=True takes no keyword arguments"),
    loudness="error",
    code="""\
model = nn.Linear(8, 8)

def block(x, scale=1.0):
    return torch.tanh(model(x) * scale)

def forward(x):
    return checkpoint(block, x.requires_grad_(), scale=2.0, use_reentrant=True)
""",
    cure="""\
model = nn.Linear(8, 8)

def block(x, scale=1.0):
    return torch.tanh(model(x) * scale)

def forward(x):
    return checkpoint(block, x.requires_grad_(), scale=2.0, use_reentrant=False)
""",
    seen="error",
    quoted="Unexpected keyword arguments: scale",
    why=(
        "autograd.Function 只有位置参数。",
        "An autograd.Function has positional arguments only.",
    ),
    remedy=(
        "use_reentrant=False，或者 functools.partial。",
        "use_reentrant=False, or functools.partial.",
    ),
)
