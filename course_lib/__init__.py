"""Measure where the memory of a PyTorch training step goes, to the byte.

Import this package before torch: torch reads both settings below only once, while loading.
"""

import os

from .order import explain_here

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's start-up lines on stderr
# "Memory block of unknown size was allocated before the profiling started": expected, handled
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

explain_here()  # in a notebook, a cell run too early says which one it needs
