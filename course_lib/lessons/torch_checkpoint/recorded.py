"""The museum where nothing can run: each exhibit with the record of a run."""

from __future__ import annotations

import torch

from ...language import bilingual_html
from .collection import EXHIBITS, number_of
from .museum import FIRST, code_html, revelation


def recorded_museum() -> str:
    """All exhibits, folded, as HTML in both languages; what each does when run is folded in it.

    They are run for it now, and it says so.
    """
    ran = bilingual_html(
        f"它做了什么（一次运行的记录，torch {torch.__version__}）",
        f"What it did (the record of a run, torch {torch.__version__})", tag="span",
    )  # fmt: skip
    ask = bilingual_html(
        "先猜：报错、只警告，还是静默出错？",
        "Guess first: does it raise, only warn, or keep silent?",
    )
    drawers = []
    for exhibit in EXHIBITS:
        star = " ★" if exhibit.name in FIRST else ""
        title = bilingual_html(*exhibit.title, tag="span")
        found = revelation(exhibit, exhibit.inspect(), exhibit.inspect(cured=True))
        drawers.append(
            f'<details class="course-exhibit"><summary>№ {number_of(exhibit)}{star} {title}'
            f"</summary>{code_html(exhibit.code)}{ask}"
            f"<details><summary>{ran}</summary>{found}</details></details>"
        )
    return "".join(drawers)
