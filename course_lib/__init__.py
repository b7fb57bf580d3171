"""Measure where the memory of a PyTorch training step goes, to the byte.

Import this package before torch: torch reads both settings below only once, while loading. Of its
public names, each is loaded when it is first used.
"""

import os
from typing import TYPE_CHECKING

from .lazily import loading
from .notebook.missing_names import explain_here

if TYPE_CHECKING:
    from .gradients import same_gradients
    from .memory.measurement import measure, measuring
    from .memory.simulation import simulated, simulated_copy
    from .one_rank import one_rank_of
    from .plans.advice.advice import advise
    from .saved import saved_tensors
    from .wrapping.blocks import checkpoint_blocks

__all__ = [
    "advise",
    "checkpoint_blocks",
    "measure",
    "measuring",
    "one_rank_of",
    "same_gradients",
    "saved_tensors",
    "simulated",
    "simulated_copy",
]

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's start-up lines on stderr
# "Memory block of unknown size was allocated before the profiling started": expected, handled
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

explain_here()  # in a notebook, a cell run too early says which one it needs

__getattr__ = loading(
    __name__,
    {
        ".gradients": "same_gradients",
        ".memory.measurement": "measure measuring",
        ".memory.simulation": "simulated simulated_copy",
        ".one_rank": "one_rank_of",
        ".plans.advice.advice": "advise",
        ".saved": "saved_tensors",
        ".wrapping.blocks": "checkpoint_blocks",
    },
)
