"""Measure what the course claims of itself and write it into `assets/benchmarks.md`.

`python course.py benchmark [NAME ...]` calls this with the environment's Python. Each part is
stored as soon as it has been measured; a part that is not named keeps what it said.
"""

import sys
import time
import traceback
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import course_lib  # noqa: E402, F401  before torch, which reads its log levels while loading

# isort: split
import choosing  # noqa: E402
import lessons  # noqa: E402
import measuring  # noqa: E402
import models  # noqa: E402
import page  # noqa: E402
import planning  # noqa: E402
import recompute  # noqa: E402
import simulated  # noqa: E402
import torch  # noqa: E402

FILE = ROOT / "assets" / "benchmarks.md"
PARTS = {
    "measuring": measuring,
    "planning": planning,
    "choosing": choosing,
    "simulated": simulated,
    "models": models,
    "recompute": recompute,
    "lessons": lessons,
}


def measured(part) -> str:
    """Measure one part; its Markdown."""
    begun, clock, load = datetime.now(), time.perf_counter(), page.load()
    paragraphs = [f"## {page.named(*part.HEADING)}", *filter(None, part.section())]
    return "\n\n".join([*paragraphs, page.footer(begun, time.perf_counter() - clock, load)])


def main(names: list[str]) -> int:
    """Measure the parts of these names, all without one; 1 where one could not be measured."""
    if unknown := set(names) - PARTS.keys():
        print(f"没有 / there is no {', '.join(sorted(unknown))}；{', '.join(PARTS)}")
        return 2
    torch.set_num_threads(1)
    failed = 0
    for name in names or PARTS:
        print(f"{name} …", flush=True)
        try:
            part = measured(PARTS[name])
        except Exception:
            traceback.print_exc()
            failed = 1
            continue
        there = page.read(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        FILE.write_text(page.write(there | {name: part}, PARTS), encoding="utf-8")
        print(f"{part}\n", flush=True)
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
