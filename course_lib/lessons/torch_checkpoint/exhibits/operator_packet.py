"""Exhibit: selective: a packet instead of an operator."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=24,
    name="operator-packet",
    title=("选择性检查点：写了算子包", "selective: a packet instead of an operator"),
    loudness="error",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
keep = [torch.ops.aten.addmm]

def forward(x):
    contexts = functools.partial(create_selective_checkpoint_contexts, keep)
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
keep = [torch.ops.aten.addmm.default]

def forward(x):
    contexts = functools.partial(create_selective_checkpoint_contexts, keep)
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)
""",
    seen="error",
    quoted="Expected op in `op_list` to be an OpOverload",
    why=(
        "aten.addmm 是一组重载，列表里要的是其中一个。",
        "aten.addmm is a set of overloads; the list wants one of them.",
    ),
    remedy=("写 aten.addmm.default。", "Write aten.addmm.default."),
)
