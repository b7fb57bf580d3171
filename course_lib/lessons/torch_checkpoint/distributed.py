"""The museum's annexe: exhibits that need two processes, run as two processes.

Each exhibit's code defines ``model``, wrapped in ``DistributedDataParallel``, and ``step()``; ``x``
is another random batch in each process. All codes go to one pair of processes, one after the
other, because starting them takes longer than all the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from ...language import Table
from ...processes import run_ranks
from .collection import EXHIBITS
from .exhibit import Trap

SECONDS = 90  # for both processes together; they take about five

WORKER = """\
import datetime, json, os, sys, warnings

rank, codes = int(os.environ["LOCAL_RANK"]), json.loads(sys.argv[1])

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint

warnings.simplefilter("ignore")
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=os.environ["MEETING_POINT"], rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=30),
)
for code in codes:
    torch.manual_seed(rank)  # another batch in each process; DDP gives both the same weights
    names = {"torch": torch, "nn": nn, "DDP": DDP, "checkpoint": checkpoint}
    names["x"] = torch.randn(2, 4)
    report = {"error": None, "gradients": None}
    try:
        exec(code, names)
        names["step"]()
        parameters = [p for p in names["model"].parameters() if p.grad is not None]
        report["gradients"] = [p.grad.flatten().tolist() for p in parameters]
    except Exception as error:
        report["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(report), flush=True)
dist.destroy_process_group()
"""


@dataclass(frozen=True, kw_only=True)
class DistributedExhibit(Trap):
    """A trap that takes two processes to show.

    ``altered``: (what is different, code), a variant that makes itself heard in another way.
    """

    altered: tuple[tuple[str, str], str] | None = None


@dataclass(frozen=True)
class TwoRanks:
    """What one code did in both processes.

    ``error``: of the first process that raised. ``apart``: the largest difference between the
    gradients that the two hold after the step; 0 is what DDP promises.
    """

    error: str | None
    apart: float | None

    @property
    def healthy(self) -> bool:
        """No error, and the same gradients in both."""
        return self.error is None and self.apart == 0


def two_processes(codes: Iterable[str]) -> list[TwoRanks]:
    """Run each code in two processes that are joined by gloo; they end before this returns.

    Raises ``RuntimeError`` if one of them dies or both take longer than ``SECONDS``.
    """
    printed = run_ranks(["-c", WORKER, json.dumps(list(codes))], 2, SECONDS)
    reports = [
        [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
        for lines in printed
    ]
    return [_together(mine, other) for mine, other in zip(*reports, strict=True)]


def _together(mine: dict, other: dict) -> TwoRanks:
    error = mine["error"] or other["error"]
    if error:
        return TwoRanks(error, None)
    pairs = [
        abs(a - b)
        for left, right in zip(mine["gradients"], other["gradients"], strict=True)
        for a, b in zip(left, right, strict=True)
    ]
    return TwoRanks(None, max(pairs, default=0.0))


def annexe() -> Table:
    """The exhibits of the annexe and their variants, run now, before and after the cure."""
    shown: list[tuple[int, tuple[str, str], str, str | None]] = []
    for number, exhibit in enumerate(DISTRIBUTED, len(EXHIBITS) + 1):
        shown.append((number, exhibit.title, exhibit.code, exhibit.cure))
        if exhibit.altered:
            (zh, en), code = exhibit.altered
            shown.append((number, (f"同上，{zh}", f"the same, {en}"), code, None))
    found = iter(two_processes(code for *_, a, b in shown for code in (a, b) if code is not None))
    rows = [
        [number, title, _said(next(found)), _said(next(found)) if cure else ""]
        for number, title, _, cure in shown
    ]
    return Table(
        [
            ("№", "№"),
            ("展品", "exhibit"),
            ("两个进程里", "in two processes"),
            ("治疗之后", "after the cure"),
        ],
        rows,
    )


def _said(found: TwoRanks) -> tuple[str, str]:
    if found.error:
        first = found.error.split(". ")[0].split("\n")[0]
        return f"{first}", f"{first}"
    if found.apart:
        return (
            f"静默：两边的梯度相差 {found.apart:.2g}",
            f"silent: the gradients differ by {found.apart:.2g}",
        )
    return "✓ 两边的梯度相同", "✓ the same gradients in both"


DISTRIBUTED: tuple[DistributedExhibit, ...] = (
    DistributedExhibit(
        row=17,
        name="ddp-unused",
        title=(
            "DDP 的 find_unused_parameters 与重入实现",
            "DDP's find_unused_parameters with the old one",
        ),
        loudness="error",
        code="""\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, x):
        return checkpoint(self.used, x, use_reentrant=True)

model = DDP(Net(), find_unused_parameters=True)
step = lambda: model(x.requires_grad_()).sum().backward()
""",
        cure="""\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, x):
        return checkpoint(self.used, x, use_reentrant=False)

model = DDP(Net(), find_unused_parameters=True)
step = lambda: model(x.requires_grad_()).sum().backward()
""",
        quoted="Expected to mark a variable ready only once",
        why=(
            "DDP 在计算图里找没用到的参数。重入实现的图里没有块里的参数，DDP 当它们没用到，"
            "先标记为就绪（ready）；反向时梯度真的来了，又标记一次。",
            "DDP searches the graph for unused parameters. The reentrant one's graph does not "
            "show the block's, so DDP marks them ready as unused; then their gradients do arrive, "
            "and they are marked again.",
        ),
        remedy=(
            "use_reentrant=False，或者 static_graph=True。",
            "use_reentrant=False, or static_graph=True.",
        ),
        issues=("pytorch/pytorch#24005",),
    ),
    DistributedExhibit(
        row=18,
        name="ddp-shared",
        title=("DDP：同一层加了两次检查点", "DDP: one layer checkpointed twice"),
        loudness="silent",
        code="""\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
    def forward(self, x):
        x = checkpoint(self.shared, x, use_reentrant=True)
        return checkpoint(self.shared, x, use_reentrant=True)

model = DDP(Net())
step = lambda: model(x.requires_grad_()).sum().backward()
""",
        cure="""\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
    def forward(self, x):
        x = checkpoint(self.shared, x, use_reentrant=False)
        return checkpoint(self.shared, x, use_reentrant=False)

model = DDP(Net())
step = lambda: model(x.requires_grad_()).sum().backward()
""",
        why=(
            "DDP 在参数的梯度第一次到达时就取平均。重入实现里，每个检查点各做一次反向传播，"
            "第二份梯度是在"
            "取平均之后才加上去的，两个进程从此各走各的。它前面要是还有要训练的层，"
            "第二份到达时 DDP 还在等别的梯度，就会报错。",
            "DDP averages a gradient when it first arrives. In the reentrant one each "
            "checkpoint runs a backward pass of its own, so the second part is added after the "
            "averaging, and from then on the two processes drift apart. With a trainable layer "
            "before it, DDP is still waiting when the second part arrives, and raises.",
        ),
        remedy=(
            "use_reentrant=False，只有一次反向传播，梯度到齐再平均。",
            "use_reentrant=False: one backward pass, averaged once everything has arrived.",
        ),
        issues=("pytorch/pytorch#106985", "pytorch/pytorch#109191"),
        altered=(
            ("前面还有一层要训练", "with a trainable layer before it"),
            """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)
    def forward(self, x):
        x = checkpoint(self.shared, self.first(x), use_reentrant=True)
        return checkpoint(self.shared, x, use_reentrant=True)

model = DDP(Net())
step = lambda: model(x.requires_grad_()).sum().backward()
""",
        ),
    ),
)
