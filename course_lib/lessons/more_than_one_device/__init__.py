"""Lesson 08: what each rank holds when a training runs on more than one device."""

from typing import TYPE_CHECKING

from ...lazily import loading

if TYPE_CHECKING:
    from .checkers import check_held, check_routing, check_spread
    from .decoder import SEVENTY_BILLION, SMALL, Block, Decoder, small_batch, small_decoder
    from .layers import advised_options, lines_through
    from .meeting import two_ranks
    from .ranks_table import SHARDED, rank_step
    from .split import SPLIT, split_step
    from .what_is_sharded import ranks_explorer, sweep_ranks

__all__ = [
    "SEVENTY_BILLION",
    "SHARDED",
    "SMALL",
    "SPLIT",
    "Block",
    "Decoder",
    "advised_options",
    "check_held",
    "check_routing",
    "check_spread",
    "lines_through",
    "rank_step",
    "ranks_explorer",
    "small_batch",
    "small_decoder",
    "split_step",
    "sweep_ranks",
    "two_ranks",
]

__getattr__ = loading(
    __name__,
    {
        ".checkers": "check_held check_routing check_spread",
        ".decoder": "SEVENTY_BILLION SMALL Block Decoder small_batch small_decoder",
        ".layers": "advised_options lines_through",
        ".meeting": "two_ranks",
        ".ranks_table": "SHARDED rank_step",
        ".split": "SPLIT split_step",
        ".what_is_sharded": "ranks_explorer sweep_ranks",
    },
)
