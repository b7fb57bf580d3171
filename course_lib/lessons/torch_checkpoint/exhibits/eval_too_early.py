"""Exhibit: eval() before backward."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=12,
    name="eval-too-early",
    title=("反向之前切到 eval", "eval() before backward"),
    loudness="error",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh())

def step():
    loss = checkpoint(model, x, use_reentrant=False).sum()
    model.eval()                                 # a quick look at the validation set
    loss.backward()
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh())

def step():
    loss = checkpoint(model, x, use_reentrant=False).sum()
    loss.backward()
    model.eval()
""",
    seen="error",
    quoted="A different number of tensors was saved",
    why=(
        "前向时 dropout 存了掩码，重计算时模型在 eval，没有掩码可存，数目对不上。"
        "use_reentrant=True 没有这种检查：x 要梯度时（x.requires_grad_()）静默出错，"
        "梯度是错的；x 不要梯度时，它因为展品 2 的缘故另报一个错。",
        "In the forward pass dropout saved its mask; recomputed in eval mode there is none, "
        "and the count is wrong. use_reentrant=True has no such check: with "
        "x.requires_grad_() it is silent, and the gradients are wrong; without, it raises "
        "another error, for the reason of exhibit 2.",
    ),
    remedy=("反向传播做完再切换模式。", "Switch modes after the backward pass."),
)
