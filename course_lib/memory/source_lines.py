"""Whose line it is: where in the learner's own code something was made."""

from __future__ import annotations

import contextlib
import functools
import linecache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..paths import LIBRARY


class Place(NamedTuple):
    """Where in the learner's code something was made: module path, file and line."""

    module: str | None
    file: str | None
    line: int

    def describe(self) -> str | None:
        """``file.py:12  y = self.up(x)``; ``cell:3  …`` in a notebook; None if unknown."""
        return None if self.file is None else _described(self.file, self.line)


NOWHERE = Place(None, None, 0)


_NOT_THE_LEARNERS = (
    str(Path(torch.__file__).parent),
    contextlib.__file__,
    str(LIBRARY / "memory"),
    str(LIBRARY / "saved.py"),
    str(LIBRARY / "plans" / "advice"),
    str(LIBRARY / "plans" / "selective"),
)
_learners: dict[str, bool] = {}  # by file: a code object is hashed anew, whole, at each look-up


def learners_line(frame: Any) -> tuple[str | None, int]:
    """File and line of the innermost code that is neither PyTorch's nor the measuring's own."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in _learners:
            _learners[file] = not file.startswith(_NOT_THE_LEARNERS)
        if _learners[file]:
            return file, frame.f_lineno
        frame = frame.f_back
    return None, 0


@functools.cache
def _described(file: str, line: int) -> str:
    path = Path(file)
    source = linecache.getline(file, line).strip()
    if LIBRARY in path.parents:  # the course's own: a lesson shows the line itself,
        return f"{path.name}  {source}"  # since its number changes with every edit of the file
    where = "cell" if "ipykernel" in path.parent.name or path.suffix != ".py" else path.name
    return f"{where}:{line}  {source}".rstrip()
