"""What steps of the lessons took on named GPUs, to stand beside the learner's own numbers.

``tests/benchmarks/on_gpu.py`` measures them and writes one file for each card. Where there is no
file, nothing is added to any picture or table.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

GPUS = Path(__file__).parent.parent / "assets" / "gpus"

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


def cards(folder: Path = GPUS) -> list[Card]:
    """Every card that was measured, by name."""
    files = sorted(folder.glob("*.json"))
    return [Card(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


def on_gpus(lesson: str, folder: Path = GPUS) -> dict[str, Values]:
    """What each card measured for a lesson, by the row's name and the card's."""
    return {
        f"{row}\n{card.name}".lstrip("\n"): values
        for card in cards(folder)
        for row, values in card.tables.get(lesson, {}).items()
    }
