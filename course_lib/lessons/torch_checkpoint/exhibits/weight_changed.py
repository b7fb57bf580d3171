"""Exhibit: weights changed between forward and backward."""

from ..exhibit import Exhibit

EXHIBIT = Exhibit(
    row=8,
    name="weight-changed",
    title=("前向与反向之间改了权重", "weights changed between forward and backward"),
    loudness="silent",
    code="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def step():                                      # two losses, as in a GAN
    first, second = (checkpoint(model, part, use_reentrant=False).sum() for part in x.chunk(2))
    first.backward()
    optimizer.step()
    second.backward()
""",
    cure="""\
model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def step():
    first, second = (checkpoint(model, part, use_reentrant=False).sum() for part in x.chunk(2))
    first.backward()
    second.backward()
    optimizer.step()
""",
    seen="error plain",
    why=(
        "普通的 autograd 会报错，因为它保存了权重，并且查版本号。检查点重计算时用的是新权重，"
        "没有什么可查的。",
        "Plain autograd raises, because it has kept the weight and checks its version. The "
        "checkpoint recomputes with the new weight and has nothing to check.",
    ),
    remedy=(
        "先做完所有反向传播，再更新权重。",
        "Finish every backward pass, then change the weights.",
    ),
)
