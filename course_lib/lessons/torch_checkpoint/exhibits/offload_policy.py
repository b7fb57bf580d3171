"""Exhibit: selective: a policy that says offload, and recomputes."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=33,
    name="offload-policy",
    title=("策略写的是卸载，做的是重计算", "a policy that says offload, and recomputes"),
    loudness="silent",
    judge="operations",
    code="""\
from torch.utils.checkpoint import CheckpointPolicy
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8), nn.GELU())

def policy(context, op, *args, **kwargs):
    return CheckpointPolicy.MUST_CPU_OFFLOAD

def forward(x):
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(model, x, use_reentrant=False, context_fn=contexts)
""",
    cure="""\
from torch.autograd.graph import save_on_cpu
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8), nn.GELU())

def forward(x):
    with save_on_cpu(pin_memory=True):
        return model(x)
""",
    why=(
        "CheckpointPolicy 有 MUST_CPU_OFFLOAD 这个值，eager 模式下的检查点却只分保存和不保存，"
        "不是保存，就重算。于是什么也没有搬走，运算却多做了一遍，梯度又是对的，谁也看不出来。",
        "CheckpointPolicy has a value MUST_CPU_OFFLOAD, but in eager mode a checkpoint only knows "
        "saved from not saved, and what is not saved is recomputed. Nothing is moved, the "
        "operations are done again, and since the gradients are right nobody notices.",
    ),
    remedy=(
        "要卸载，就用 save_on_cpu，或者 offload_wrapper（第 06 课）；运算一次也不会多做。",
        "To offload, use save_on_cpu or offload_wrapper (lesson 06): not one operation more.",
    ),
    issues=("pytorch/pytorch#196956",),
)
