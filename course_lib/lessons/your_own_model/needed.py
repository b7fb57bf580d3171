"""The packages that only this lesson needs: whether they are here, and what they say unasked."""

from __future__ import annotations

import warnings
from importlib import metadata, util
from pathlib import Path

from ...language import text
from ...paths import ROOT

_REQUIREMENTS = ROOT / "requirements.txt"


def require(*packages: str, requirements: Path = _REQUIREMENTS) -> None:
    """Do nothing if all packages are here.

    Raises ``ModuleNotFoundError`` with the line that installs those that are not, in the versions
    that ``requirements`` pins.
    """
    if missing := [name for name in packages if util.find_spec(name) is None]:
        pins = " ".join(_pinned(name, requirements) for name in missing)
        raise ModuleNotFoundError(
            text(
                zh="缺少这一课要用的包。请运行下面这一行，装好后重启内核：\n\n"
                f"    %pip install {pins}",
                en="Packages that this lesson needs are missing. Run this line, then restart the "
                f"kernel:\n\n    %pip install {pins}",
                between="\n\n",
            )
        )


def _pinned(name: str, requirements: Path) -> str:
    """``name==version`` as the course has it; the bare name where nothing is pinned."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.partition("==")[0] == name), name)


def versions(*packages: str) -> str:
    """``transformers 5.24.0, peft 0.21.0``."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in packages)


def quiet() -> None:
    """Leave out what Transformers says of names that go in its version 6, and its hints.

    PEFT still uses some of those names itself, so the warnings are not about the learner's lines.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    warnings.filterwarnings(
        "ignore",
        message=r".*(is_gradient_checkpointing|gradient_checkpointing_enable).* is deprecated",
        category=FutureWarning,
    )
