"""Exhibit: dropout in a checkpoint, compiled with the backend that compiles nothing."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=34,
    name="compiled-eager",
    title=(
        'torch.compile(backend="eager") 里的检查点和 dropout',
        'dropout in a checkpoint under torch.compile(backend="eager")',
    ),
    loudness="silent",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))

@torch.compile(backend="eager")
def forward(x):
    return checkpoint(model, x, use_reentrant=False)
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))

@torch.compile(backend="aot_eager")
def forward(x):
    return checkpoint(model, x, use_reentrant=False)
""",
    seen="gradient 0.weight",
    why=(
        "编译时，检查点变成图里的一个算子，preserve_rng_state 一律设成 False：随机数由编译器后面的"
        '步骤来恢复。backend="eager" 没有后面的步骤，常用来调试，重算时 dropout 就换了一张掩码。',
        "In a compiled graph a checkpoint is an operator whose preserve_rng_state is always False: "
        'a later stage of the compiler restores random numbers. backend="eager", which people use '
        "for debugging, has no later stage, so dropout is recomputed with another mask.",
    ),
    remedy=(
        '调试用 backend="aot_eager"：它同样不生成代码，但会经过 AOTAutograd，随机数状态由它恢复。',
        'Debug with backend="aot_eager": it generates no code either, but it goes through '
        "AOTAutograd, which restores the random state.",
    ),
)
