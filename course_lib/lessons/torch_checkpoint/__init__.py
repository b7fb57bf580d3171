"""Lesson 03: the museum of failures, sweeps over segments and models, and its exercises."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .checkers import Dense, Thick, check_blind_spots, check_budget, check_repairs
    from .distributed import DISTRIBUTED, WORKER, annexe
    from .museum import Answers, Museum, code_html
    from .savings import measure_kinds, savings_table, slowdown_table, time_kinds
    from .savings_picture import show_savings
    from .segments import linear_gelu_linear, measure_segments, segments_explorer

__all__ = [
    "DISTRIBUTED",
    "WORKER",
    "Answers",
    "Dense",
    "Museum",
    "Thick",
    "annexe",
    "check_blind_spots",
    "check_budget",
    "check_repairs",
    "code_html",
    "linear_gelu_linear",
    "measure_kinds",
    "measure_segments",
    "savings_table",
    "segments_explorer",
    "show_savings",
    "slowdown_table",
    "time_kinds",
]

__getattr__ = loading(
    __name__,
    {
        ".distributed": "DISTRIBUTED WORKER annexe",
        ".checkers": "Dense Thick check_blind_spots check_budget check_repairs",
        ".museum": "Answers Museum code_html",
        ".savings": "measure_kinds savings_table slowdown_table time_kinds",
        ".savings_picture": "show_savings",
        ".segments": "linear_gelu_linear measure_segments segments_explorer",
    },
)
