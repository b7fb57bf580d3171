"""Lesson 04: training runs with the flag off and on, and its exercises."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .checkers import Layer, Mute, Regressor, check_flag, check_repaired, forward_calls
    from .processes import train_in_processes
    from .runs import (
        Run,
        every_explorer,
        largest_batch,
        runs_table,
        sequences_per_second,
        show_runs,
        simulated_peaks,
    )

__all__ = [
    "Layer",
    "Mute",
    "Regressor",
    "Run",
    "check_flag",
    "check_repaired",
    "every_explorer",
    "forward_calls",
    "largest_batch",
    "runs_table",
    "sequences_per_second",
    "show_runs",
    "simulated_peaks",
    "train_in_processes",
]

__getattr__ = loading(
    __name__,
    {
        ".checkers": "Layer Mute Regressor check_flag check_repaired forward_calls",
        ".processes": "train_in_processes",
        ".runs": "Run every_explorer largest_batch runs_table sequences_per_second show_runs "
        "simulated_peaks",
    },
)
