"""Exhibit: selective: only one backward pass."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=32,
    name="selective-twice",
    title=("选择性检查点只能反向一次", "selective: only one backward pass"),
    loudness="error",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
keep = [torch.ops.aten.addmm.default]
contexts = functools.partial(create_selective_checkpoint_contexts, keep)

def step():
    y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    y.sum().backward(retain_graph=True)
    y.square().sum().backward()
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
keep = [torch.ops.aten.addmm.default]
contexts = functools.partial(create_selective_checkpoint_contexts, keep)

def step():
    y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
    (y.sum() + y.square().sum()).backward()
""",
    seen="error",
    quoted="Trying to backward an extra time",
    why=(
        "保留下来的结果用一次就放掉了。普通的检查点可以反向多次，每次都重算。",
        "The kept results are released at their first use. An ordinary checkpoint can go "
        "backward several times, recomputing each time.",
    ),
    remedy=("把损失加起来，反向一次。", "Add the losses and go backward once."),
    issues=("pytorch/pytorch#142862",),
)
