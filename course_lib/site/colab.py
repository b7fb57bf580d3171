"""Make lessons run on Colab, from the copy of the repository that their first cell fetches.

Colab has a PyTorch, a NumPy and an ipywidgets of its own. They stay: replacing what a kernel has
loaded would need a restart. What Colab lacks is installed in the version that the course uses.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ELSEWHERE = {"jupyterlab", "nbval"}  # what no lesson imports


def missing(requirements: Path) -> list[str]:
    """The pins in ``requirements`` of packages that are not here in any version."""
    found = []
    for line in requirements.read_text(encoding="utf-8").splitlines():
        pin = line.partition("#")[0].strip()
        name = pin.partition("==")[0].partition("[")[0]
        if "==" not in pin or name in ELSEWHERE:
            continue
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(pin)
    return found


def prepare(root: Path = ROOT) -> None:
    """Install what is missing, and go where the lessons are.

    Raises ``CalledProcessError`` if pip fails; it has said why.
    """
    if pins := missing(root / "requirements.txt"):
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *pins], check=True)
    sys.path.insert(0, str(root))
    os.chdir(root / "notebooks")


if __name__ == "__main__":
    prepare()
