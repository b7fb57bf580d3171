"""What this runs on, and whether everything that the course needs is here."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from ..language import Bilingual, Table
from ..paths import ROOT

_REQUIREMENTS = ROOT / "requirements.txt"


def describe() -> Bilingual:
    """One line: versions, device, memory, and where the byte counts come from."""
    cores = os.cpu_count()
    memory = _memory()
    python = platform.python_version()
    return Bilingual(
        zh=f"Python {python}，torch {torch.__version__}，{cores} 核 CPU，内存 {memory}；"
        "字节数来自 PyTorch 的 CPU 分配器。",
        en=f"Python {python}, torch {torch.__version__}, {cores} CPU cores, {memory} of memory; "
        "byte counts come from PyTorch's CPU allocator.",
    )


def _memory() -> str:
    import psutil

    return f"{psutil.virtual_memory().total / 2**30:.1f} GiB"


def check_installation(requirements: Path = _REQUIREMENTS) -> Table:
    """Each required package, its version here, and what to do if it is missing or another.

    Raises ``FileNotFoundError`` if ``requirements`` is not there.
    """
    rows = []
    for line in requirements.read_text(encoding="utf-8").splitlines():
        name, separator, wanted = line.partition("==")
        if not separator or line.startswith("#"):
            continue
        name = name.partition("[")[0]
        try:
            found = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            cure = ("✗ 缺少：请运行 python course.py", "✗ missing: python course.py installs it")
            rows.append([name, wanted, "—", cure])
            continue
        state = ("✓ 就绪", "✓ ready")
        if found != wanted:
            state = ("△ 版本不同，数字可能略有出入", "△ different version: some numbers may differ")
        rows.append([name, wanted, found, state])
    heads = [("包", "package"), ("课程用的版本", "course version"),
             ("这里的版本", "version here"), ("状态", "status")]  # fmt: skip
    return Table(heads, rows)
