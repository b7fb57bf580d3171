"""The pieces of which `assets/benchmarks.md` is made: Markdown, in both languages."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

import psutil
import torch

TITLE = """\
# 基准 · Benchmarks

由 `python course.py benchmark` 写成，没有一个数是手填的；后面加上名字，只重测那一部分。

Written by `python course.py benchmark`; no figure was typed in. With a name, it measures one part \
again."""


def named(zh: str, en: str, between: str = " · ") -> str:
    """Both languages."""
    return f"{zh}{between}{en}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, the first column flush left and the others flush right."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def machine() -> str:
    """The machine and the software in one line."""
    packages = ("torch", "jupyterlab", "ipywidgets", "torchinfo")
    return "; ".join([
        f"{_processor()}, {os.cpu_count()} × CPU",
        f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        _system(),
        f"Python {platform.python_version()}",
        ", ".join(f"{name} {metadata.version(name)}" for name in packages),
        "CUDA " + (torch.cuda.get_device_name() if torch.cuda.is_available() else "—"),
    ])  # fmt: skip


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"] + f" ({platform.machine()})"
    except OSError:
        return platform.platform()


def load() -> str:
    """How busy the machine was in the last minute; on Windows, which does not say, a dash."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "—"


def footer(begun: datetime, seconds: float, load_before: str) -> str:
    """Where and when a part was measured."""
    when = f"{begun:%Y-%m-%d %H:%M}, 用时 · took {seconds:.0f} s"
    return f"<sub>{when}; 机器负载 · load {load_before}; {machine()}</sub>"


# Parts


def read(page: str) -> dict[str, str]:
    """The parts of a page by name."""
    pieces = re.split(r"^<!-- (\w+) -->\n", page, flags=re.M)
    return {name: part.strip() for name, part in zip(pieces[1::2], pieces[2::2], strict=True)}


def write(parts: Mapping[str, str], order: Iterable[str]) -> str:
    """The page made of these parts; names that are not in ``order`` are left out."""
    pieces = [f"<!-- {name} -->\n{parts[name]}" for name in order if name in parts]
    return "\n\n".join([TITLE, *pieces]) + "\n"
