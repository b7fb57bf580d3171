"""The operators of a block as tables: what each result takes, and what making it again takes."""

from __future__ import annotations

from ...language import Table, shortened
from ...plans.selective import Choice, Score

LONGEST = 20  # letters of a line of code in a table


def operators_table(score: Score, by: str = "") -> Table:
    """Every operator with a result of its own, in the order in which they run, with its bytes.

    ``by="flops per byte"``: with FLOPs as well, the first to let go at the top. Bytes and FLOPs are
    those of one call of the block.
    """
    choices: list[Choice] = list(score.choices)
    headers = [
        ("编号", "no."),
        ("算子", "operator"),
        ("层，或所在的一行", "layer, or line"),
        ("字节", "bytes"),
        ("反向要用的", "backward needs"),
    ]
    if by == "flops per byte":
        choices.sort(key=lambda choice: (choice.flops_per_byte, -choice.size))
        headers += [("再算一遍的 FLOPs", "FLOPs to make again"), ("FLOPs/字节", "FLOPs per byte")]
    rows = [
        [
            str(choice.number),
            choice.name,
            choice.module or _line(choice),
            f"{choice.size:,}",
            f"{choice.saved:,}",
            f"{choice.flops:,}",
            f"{choice.flops_per_byte:,.1f}",
        ][: len(headers)]
        for choice in choices
    ]
    return Table(headers, rows)


def _line(choice: Choice) -> str:
    """The learner's code, without where it stands; cut where it gets long."""
    return shortened((choice.line or "").partition("  ")[2], LONGEST)


def not_needed_table(score: Score) -> Table:
    """What storing every result keeps, and no checkpoint would: by operator, and in all.

    The sum is, to the byte, what the forward pass leaves behind more than without checkpoints. A
    result that is kept anyway, as the input of the next block, takes nothing more.
    """
    blocks, nothing = len(score.calls), score.nothing.kept
    rows: list[list] = []
    extra = 0
    for choice in score.choices:
        more = score.predict([choice.number]).kept - nothing - blocks * choice.saved
        if more:
            rows.append([f"{choice.label} ({choice.number})", f"{choice.size:,}", f"{more:,}"])
            extra += more
    rows.append([("合计", "in all"), "", f"{extra:,}"])
    return Table(
        [
            ("反向用不着的结果", "results that backward does not need"),
            ("一个（字节）", "one (bytes)"),
            (f"{blocks} 个块（字节）", f"{blocks} blocks (bytes)"),
        ],
        rows,
    )
