"""Measuring a training step to the byte: :func:`measure`, and :func:`simulated` for any size.

To read how it is done, begin with ``trace`` (what comes out) and ``log`` (what is noted), then
``recorder`` (who notes it), ``roles`` (what each byte is for) and ``measurement`` (the whole).
"""

from typing import TYPE_CHECKING

from ..lazily import loading

if TYPE_CHECKING:
    from .measurement import measure, measuring
    from .pools import Pools, measure_pools
    from .simulation import simulated, simulated_copy
    from .trace import Event, MemoryBlock, MemoryTrace, Phase, Role

__all__ = [
    "Event",
    "MemoryBlock",
    "MemoryTrace",
    "Phase",
    "Pools",
    "Role",
    "measure",
    "measure_pools",
    "measuring",
    "simulated",
    "simulated_copy",
]

__getattr__ = loading(
    __name__,
    {
        ".measurement": "measure measuring",
        ".pools": "Pools measure_pools",
        ".simulation": "simulated simulated_copy",
        ".trace": "MemoryBlock Event MemoryTrace Phase Role",
    },
)
