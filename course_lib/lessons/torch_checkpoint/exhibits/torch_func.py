"""Exhibit: the transforms of torch.func."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=20,
    name="torch-func",
    title=("torch.func 的变换", "the transforms of torch.func"),
    loudness="error",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def loss(weights):
    run = lambda x: torch.func.functional_call(model, weights, x)
    return checkpoint(run, x, use_reentrant=False).sum()

def step():
    for name, gradient in torch.func.grad(loss)(dict(model.named_parameters())).items():
        model.get_parameter(name).grad = gradient
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

def loss(weights):
    run = lambda x: torch.func.functional_call(model, weights, x)
    return checkpoint(run, x, use_reentrant=False).sum()

def step():
    loss(dict(model.named_parameters())).backward()
""",
    seen="error",
    quoted="don't yet support saved tensor hooks",
    why=(
        "非重入实现靠 saved-tensor 钩子，torch.func 的变换不支持这种钩子；"
        "重入实现是不带 setup_context 的 autograd.Function，也不行。",
        "The non-reentrant one relies on saved-tensor hooks, which torch.func's transforms do "
        "not support; the reentrant one, an autograd.Function without setup_context, is no better.",
    ),
    remedy=(
        "用普通的 backward() 或 torch.autograd.grad。",
        "Use plain backward() or torch.autograd.grad.",
    ),
    issues=("pytorch/pytorch#122729",),
)
