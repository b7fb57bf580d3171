"""Measure the lessons' main steps on this machine's GPU and store them in ``assets/gpus``.

    python tools/benchmarks/on_gpu.py

needs the course's packages with a torch that can use CUDA. It writes one file for each card, which
can stand beside the lessons' own numbers.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import course_lib  # first: it sets two options that torch reads while loading

# isort: split
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_lib.lessons.torch_checkpoint.savings import time_kinds
from course_lib.memory import measure
from course_lib.models import Sizes, Transformer, even_segments, random_tokens
from course_lib.paths import ASSETS

GPUS = ASSETS / "gpus"

Values = dict[str, float]


@dataclass(frozen=True)
class Card:
    """One GPU and what was measured on it.

    ``tables``: by lesson number, then by row (``""`` where there is only one), values by name.
    """

    name: str
    driver: str
    torch: str
    tables: dict[str, dict[str, Values]]

    def store(self, folder: Path = GPUS) -> Path:
        """Write the card's file; one that was there is replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower())}.json"
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return file


def lesson_00(device: torch.device) -> dict[str, Values]:
    """Bytes by role at the peak of the Transformer's step, by the number of checkpoints."""
    torch.manual_seed(0)
    sizes = Sizes(depth=12, width=128, heads=4, sequence=96, batch=8)
    model = Transformer(sizes).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = random_tokens(sizes).to(device)

    def step(checkpoints: int) -> None:
        def run_blocks(x: torch.Tensor) -> torch.Tensor:
            for segment in even_segments(model.blocks, checkpoints):
                x = checkpoint(segment, x, use_reentrant=False)
            return x

        model.run_blocks = run_blocks if checkpoints else Transformer.run_blocks.__get__(model)
        optimizer.zero_grad()
        model.loss(tokens).backward()
        optimizer.step()

    step(0)  # Adam's moments come into being
    return {
        str(count): dict(measure(lambda c=count: step(c), model, optimizer, tokens).at_peak)
        for count in (0, 1, 4, 12)
    }


def lesson_01(device: torch.device) -> dict[str, Values]:
    """Bytes by role at the peak of one Linear's step with AdamW."""
    layer = nn.Linear(1024, 1024).to(device)
    optimizer = torch.optim.AdamW(layer.parameters())
    x = torch.randn(1, 1024, device=device)

    def step() -> None:
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()

    step()  # Adam's moments come into being
    return {"": dict(measure(step, layer, optimizer, x).at_peak)}


def lesson_03(device: torch.device) -> dict[str, Values]:
    """Wall time with a checkpoint per block, divided by that without, by the kind of model."""
    return {"": {one.kind.name[1]: one.median for one in time_kinds(device=device)}}


def driver_of(device: torch.device) -> str:
    """The version of the driver, as ``nvidia-smi`` tells it; raises what goes wrong with that."""
    # By identity: CUDA_VISIBLE_DEVICES may number the cards otherwise.
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = [
        "nvidia-smi",
        f"--id={identity}",
        "--query-gpu=driver_version",
        "--format=csv,noheader",
    ]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    if not torch.cuda.is_available():
        print(
            f"No GPU that this torch ({torch.__version__}) can use: nothing measured. "
            f"这里没有 torch（{torch.__version__}）能用的 GPU：什么也没有测。",
            file=sys.stderr,
        )
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    card = Card(
        name=torch.cuda.get_device_name(device),
        driver=driver_of(device),
        torch=torch.__version__,
        tables={"00": lesson_00(device), "01": lesson_01(device), "03": lesson_03(device)},
    )
    print(card.store().relative_to(Path(course_lib.__file__).parent.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
