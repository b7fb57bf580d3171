"""What each layer of a chain costs, as a table."""

from __future__ import annotations

from ...figures.words import size_text
from ...language import Table
from ...plans.plan import Chain


def layers_table(chain: Chain) -> Table:
    """What each layer of a chain costs."""
    return Table(
        [
            ("序号", "number"),
            ("层", "layer"),
            ("保留时占用", "memory if kept"),
            ("输出", "output"),
            ("参数梯度", "gradients"),
            ("前向 FLOPs", "forward FLOPs"),
        ],
        [
            [
                str(i),
                layer.name,
                size_text(layer.kept),
                size_text(layer.boundary),
                size_text(layer.gradient),
                f"{layer.flops / 1e9:,.1f} G",
            ]
            for i, layer in enumerate(chain.layers)
        ],
    )
