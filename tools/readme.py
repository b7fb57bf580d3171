"""What the README takes from elsewhere: figures of the stored benchmarks, a film of lesson 00.

`python course.py dev readme` writes the figures into the README; tests compare both with
their sources.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.notebooks import Lesson

ROOT = Path(__file__).resolve().parent.parent
README, BENCHMARKS = ROOT / "README.md", ROOT / "assets" / "benchmarks.md"

Row = dict[str, str]

# Rows of the tables in the benchmarks, by the English part of their names.
PLAIN, CHECKPOINTED = "encoder, 4 layers, d 128, 8 × 64", "the latter, a checkpoint per layer"
WORDS = {
    "zh": (
        "同一个训练步，几种工具量出的峰值差了多少字节，带上它之后一步要多久"
        "（torchinfo 只跑前向）：",
        (
            "工具",
            "误差，没有检查点",
            "误差，每层一个检查点",
            "时间，是原样运行的几倍：中位数（最小–最大）",
        ),
        "完整的表、误差怎样算、机器是哪台，都在 [assets/benchmarks.md](assets/benchmarks.md)，"
        "由 `python course.py benchmark` 写成。",
    ),
    "en": (
        "The same training step in several tools: how far off the peak is, in bytes, and how long "
        "the step takes with the tool (torchinfo runs forward only):",
        (
            "tool",
            "error, no checkpoints",
            "error, a checkpoint per layer",
            "time, bare step = 1: median (least–greatest)",
        ),
        "The whole tables, what counts as an error, and the machine are in "
        "[assets/benchmarks.md](assets/benchmarks.md), which `python course.py benchmark` writes.",
    ),
}


# Planning: the two steps that are quoted, and what each tool answers, which no figure says.
PLANNED, DECODER = "encoder, 4 layers, d 128, 8 × 64", "`LlamaForCausalLM`, 6 layers, 4 × 64 tokens"
PLANNING = {
    "zh": (
        "给检查点做规划，预算都在没有检查点和每块一个检查点的正中间。误差是工具说的峰值减去照它的方"
        "案做、由 profiler 数出来的峰值，字节；“代填”是它只肯从 CUDA 取的一个数由我们在 CPU 上"
        "数出来：",
        ("工具", "回答什么", "误差，编码器", "实际放得下", "误差，Llama 解码器",
         "时间，是原样运行一步的几倍：中位数（最小–最大）"),
    ),
    "en": (
        "Planning checkpoints, the budget half way between none and one on every block. The error "
        "is the peak that the tool states less the one that the profiler counts under its plan, in "
        "bytes; “filled in” is a figure that it takes from CUDA alone, counted by us on the CPU:",
        ("tool", "answers", "error, encoder", "really fits", "error, Llama decoder",
         "time, bare step = 1: median (least–greatest)"),
    ),
}  # fmt: skip
ANSWERS = {
    "`advise`": (
        "任何模型的峰值、放哪里、多做多少运算",
        "peak, places and operations, of any model",
    ),
    "`ckptplan`, activation bytes filled in": (
        "一串块里放哪些；只算激活值",
        "which blocks of a chain; activations alone",
    ),
    "`sac_milp`, operators' times filled in": (
        "哪些模块，留下哪些算子；峰值的上界",
        "which modules, keeping which operators; a bound on the peak",
    ),
    "`accelerate estimate-memory`": (
        "参数的 4 倍；没有方案，不看输入",
        "4 times the parameters; no plan, whatever the input",
    ),
}


IN_CHINESE = {
    "saved-tensor hooks": "saved-tensor 钩子",
    "saved-tensor hooks, each storage once": "saved-tensor 钩子，每块存储只算一次",
}
FILMED = "counts_explorer(measured, start=4)"  # what the cell calls whose slider is filmed


def filmed(lesson: Lesson) -> str:
    """A fingerprint of the picture that is stored with that cell."""
    cell = next(cell for cell in lesson.code if FILMED in cell.source)
    pictures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.data]
    return hashlib.sha256(pictures[0].encode()).hexdigest()


def tables(page: str) -> list[list[Row]]:
    """The tables of a Markdown page, each a list of rows, a row a dict by column head."""
    found = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", page, re.M):
        head, _, *rows = (re.split(r"\s*(?<!\\)\|\s*", line)[1:-1] for line in block.splitlines())
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def row_of(rows: list[Row], name: str) -> Row | None:
    """The row whose first cell ends in `name`, or in `name` and a number of turns."""
    for row in rows:
        first = next(iter(row.values()))
        if name in first.partition(" · ")[2]:
            return row
    return None


def quoted(language: str, benchmarks: str) -> str:
    """What the README says in `language` of the page `benchmarks`; without figures, a link."""
    before, head, after = WORDS[language]
    part = benchmarks.partition("<!-- measuring -->")[2]
    if not part:
        return after
    errors, _, times = tables(part)[:3]
    plain, checkpointed = (row_of(errors, name) for name in (PLAIN, CHECKPOINTED))
    seconds = row_of(times, PLAIN)
    _, _, *tools = plain  # beside the step's name and its peak
    lines = [
        head,
        ("---", "---:", "---:", "---:"),
        *(
            (
                IN_CHINESE.get(tool, tool) if language == "zh" else tool,
                plain[tool],
                checkpointed[tool],
                seconds[tool],
            )
            for tool in tools
        ),
    ]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts = (before, table, per_operator(language, benchmarks), planned(language, benchmarks))
    return "\n\n".join(filter(None, (*parts, after)))


def planned(language: str, benchmarks: str) -> str:
    """What tools that plan checkpoints say, and how far off they are; empty without figures."""
    part = benchmarks.partition("<!-- planning -->")[2]
    if not part:
        return ""
    plans, times = tables(part)[:2]
    before, head = PLANNING[language]
    seconds = row_of(times, PLANNED)
    lines = [head, ("---", "---", "---:", "---:", "---:", "---:")]
    for tool, answers in ANSWERS.items():
        encoder, decoder = (
            next(
                row for row in plans if step in row["训练步 · step"] and tool in row["工具 · tool"]
            )
            for step in (PLANNED, DECODER)
        )
        both = encoder["工具 · tool"]
        chinese = language == "zh"
        fits = encoder["放得下 · fits"]
        zh, _, en = fits.partition(" · ")
        lines.append((
            both.partition(" · ")[0] if chinese else tool,
            answers[0] if chinese else answers[1],
            encoder["误差 · error"],
            fits if not en else zh if chinese else en,
            f"✗ {said}" if (said := decoder["工具说的峰值 · peak, as the tool has it"])[0] == "`"
            else decoder["误差 · error"],
            seconds[both],
        ))  # fmt: skip
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{before}\n\n{table}"


def per_operator(language: str, benchmarks: str) -> str:
    """What measuring costs where operators are tiny, in a sentence; empty without figures."""
    part = benchmarks.partition("<!-- models -->")[2]
    found = re.search(
        r"of (\d+) small models.*?takes (\S+) \S+ times as long: (\S+) \S+ µs more per operator",
        part,
        re.S,
    )
    if found is None:
        return ""
    models, multiple, micros = found.groups()
    return {
        "zh": f"`measure` 的开销按算子算，与张量多大无关：`transformers` 的 {models} 个小模型，"
        f"每个算子多 {micros} 微秒，而那里的算子都很小，一步便要原样的 {multiple} 倍"
        "（都是中位数）。算子越大，倍数越接近 1。",
        "en": "What `measure` costs goes by the operator, however large its tensors: in "
        f"{models} small models of `transformers`, {micros} µs more for each, and since operators "
        f"are tiny there, a step takes {multiple} times as long (medians). The larger the "
        "operators, the closer to 1.",
    }[language]


def with_figures(readme: str, benchmarks: str) -> str:
    """`readme` with the figures of `benchmarks` in their places."""
    for language in WORDS:
        opening, closing = f"<!-- benchmarks {language} -->\n", "<!-- end -->"
        before, _, rest = readme.partition(opening)
        after = rest.partition(closing)[2]
        readme = f"{before}{opening}{quoted(language, benchmarks)}\n{closing}{after}"
    return readme


if __name__ == "__main__":
    page = with_figures(README.read_text("utf-8"), BENCHMARKS.read_text("utf-8"))
    README.write_text(page, encoding="utf-8", newline="\n")
