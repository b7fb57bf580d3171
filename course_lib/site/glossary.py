"""The course's terms: what each language calls a thing, and what the thing is.

This is the only place that says so. ``python -m course_lib.site.glossary`` writes the glossary page
from it, and the tests hold the prose of all lessons to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..notebook.switch import SWITCH_WORDS
from .contents import GLOSSARY, LESSONS, NOTEBOOKS

_THERE = {lesson.number: lesson for lesson in LESSONS if lesson.exists}


@dataclass(frozen=True)
class Term:
    """One entry. ``means``: (zh, en), Markdown; ``lesson``: the number of the one that uses it.

    The page shows an entry as soon as its lesson is there.
    ``zh_said`` and ``en_said`` are regular expressions: where English prose says one, its Chinese
    partner says the other.
    """

    zh: str
    en: str
    zh_said: str
    en_said: str
    lesson: str
    means: tuple[str, str]
    also: tuple[str, str] = ("", "")  # a sentence with other names that people search for

    @property
    def heading(self) -> str:
        return f"{self.zh} · {self.en}"

    def is_shown(self) -> bool:
        return self.lesson in _THERE


MEMORY = (
    Term("激活值", "activation", r"激活值|激活内存", r"activations?\b(?! function)", "01", (
        "前向传播算出的中间结果。反向传播要读的那些必须一直保存着，读完才能释放。",
        "An intermediate result of the forward pass. Those that the backward pass is going to "
        "read must stay until it has read them.")),
    Term("激活内存", "activation memory", r"激活内存", r"activation memory", "01", (
        "为反向传播保存的激活值占的内存。批越大、序列越长、层越多，它就越大。",
        "The memory of the activations that are kept for the backward pass. It grows with the "
        "batch, the length of the sequence and the number of layers.")),
    Term("参数", "parameter", r"参数", r"parameters?", "01", (
        "模型要学的权重。它占的内存与批大小无关。",
        "A weight that the model learns. Its memory does not depend on the batch.")),
    Term("梯度", "gradient", r"梯度", r"gradients?(?! checkpointing)", "01", (
        "损失对一个值的导数，形状与那个值相同。参数的梯度由反向传播写进 `.grad`，一直留到清零。",
        "The derivative of the loss with respect to a value, of the same shape. The backward "
        "pass writes those of parameters to `.grad`, where they stay until they are cleared.")),
    Term("优化器状态", "optimizer state", r"优化器状态", r"optimi[sz]er states?", "01", (
        "优化器为每个参数记住的东西。Adam 记两个动量，与参数一样大，所以是参数的两倍。",
        "What the optimizer remembers about each parameter. Adam keeps two moments, each as "
        "large as the parameter, so twice its bytes.")),
    Term("临时量", "temporary", r"临时", r"temporar(y|ies)(?! \w*(file|folder|director))", "01", (
        "算子之间很快就用完、谁也不保存的张量。它活得短，但峰值往往有它一份。",
        "A short-lived tensor that autograd does not save. It is soon freed, but often adds to "
        "the peak.")),
    Term("算子工作区", "workspace", r"算子工作区", r"workspace", "01", (
        "一个算子（例如卷积）在内部申请、结束前释放的内存。张量层面看不到，只有分配器知道。",
        "Memory that an operator allocates and frees internally, as convolutions do. It never "
        "shows up as a tensor; only the allocator sees it.")),
    Term("峰值", "peak", r"峰值", r"peaks?", "00", (
        "一步之中占用字节最多的那一刻，也指那一刻的字节数。要放得下的就是它。",
        "The moment of a step at which the allocator has handed out the most bytes; also that "
        "number of bytes. It is what has to fit.")),
    Term("显存", "GPU memory", r"显存", r"GPU memory", "04", (
        "GPU 自己的内存，不能像主机内存那样换到磁盘上。",
        "The memory of the GPU itself, which cannot be swapped to disk as the host's can.")),
    Term("预算", "budget", r"预算", r"budgets?", "05", (
        "一步最多可以用的内存，以字节计。方案的峰值不超过它，才算放得下。",
        "The most memory that a step may use, in bytes. A plan fits if its peak is no higher.")),
)  # fmt: skip

CHECKPOINTING = (
    Term("梯度检查点", "gradient checkpointing", r"梯度检查点", r"gradient checkpointing", "00", (
        "用计算换内存：前向传播只保留检查点，反向传播要用激活值时，从检查点重算。",
        "Paying for memory with compute: the forward pass keeps only checkpoints, and the "
        "backward pass recomputes from them the activations that it needs."),
         also=("也叫激活检查点、激活重计算。",
               " Also called activation checkpointing, activation recomputation, "
               "rematerialization.")),
    Term("检查点", "checkpoint", r"检查点",
         r"(?<!gradient )(?<!selective )checkpoint(s|ed|ing)?", "00", (
        "为了以后能重算一段而保留的值，通常是这一段的输入。存到磁盘上的权重文件也叫这个名字，"
        "那是另一回事。",
        "A value that is kept so that a segment can be recomputed, usually the segment's input. "
        "A file of weights on disk goes by the same name and is something else.")),
    Term("分段", "segment", r"段", r"segments?", "02", (
        "一起丢掉、一起重算的连续几层。",
        "Consecutive layers that are dropped together and recomputed together.")),
    Term("重计算", "recomputation", r"重计算|重算", r"recomput(e|es|ed|ing|ations?)", "02", (
        "反向传播途中把一段的前向传播再做一遍，得到丢掉的激活值。结果要与第一遍逐位相同。",
        "Running the forward pass of a segment once more during the backward pass, to have the "
        "activations that were dropped. The result must equal the first one bit for bit.")),
    Term("提前停止", "early stop", r"提前停止", r"early stop(ping)?", "02", (
        "重计算得到最后一个要用的张量就停下，后面的算子不再运行。",
        "Recomputation ends with the last tensor that is needed; operators after it do not "
        "run again.")),
    Term("随机数状态", "random state", r"随机数状态", r"random state", "02", (
        "随机数生成器此刻的状态。检查点保存 torch 默认生成器的状态，重算时 dropout 才会丢掉同样的"
        "元素。",
        "Where a random number generator stands. A checkpoint stores it for torch's default "
        "generators, so that dropout drops the same elements when it is recomputed.")),
    Term("选择性检查点", "selective checkpointing",
         r"选择性检查点", r"selective checkpointing", "06", (
        "一段之内挑着来：贵的算子保留结果，便宜的重算。",
        "Choosing inside a segment: results of expensive operators are kept, those of cheap ones "
        "recomputed."),
         also=("也叫选择性重计算。",
               " Also called selective activation checkpointing (SAC).")),
    Term("策略", "policy", r"策略", r"polic(y|ies)", "06", (
        "选择性检查点里的一个函数：对每个算子回答，结果保留还是重算。",
        "In selective checkpointing, a function that answers for each operator whether its result "
        "is stored or recomputed.")),
    Term("最优边界", "frontier", r"边界", r"frontiers?", "06", (
        "内存和 FLOPs 都比不过的那些选择：要再少一样，另一样就得多。",
        "The choices that none beats in both memory and FLOPs: to have less of one takes more of "
        "the other.")),
    Term("卸载", "offloading", r"卸载", r"offload(s|ed|ing)?", "06", (
        "把激活值搬到主机内存，要用时再搬回来，付的是传输时间而不是计算。",
        "Moving activations to the host's memory and back when they are needed: it costs "
        "transfers in place of compute.")),
)  # fmt: skip

PYTORCH = (
    Term("前向传播", "forward pass", r"前向", r"forward pass(es)?", "00", (
        "从输入算到损失，同时记下计算图。",
        "From the input to the loss, while the computation graph is recorded.")),
    Term("反向传播", "backward pass", r"反向", r"backward pass(es)?", "00", (
        "沿计算图从损失走回来，逐个算出梯度。",
        "From the loss back along the computation graph, one gradient after the other.")),
    Term("计算图", "computation graph", r"图", r"(computation )?graph", "02", (
        "autograd 记下的算子和它们的依赖，反向传播照着它走。",
        "The operators and their dependencies as autograd has recorded them; the backward pass "
        "follows it.")),
    Term("保存的张量", "saved tensor", r"保存的张量", r"saved[ _]tensors?", "02", (
        "算子在前向传播时交给 autograd、留到反向传播用的张量。激活内存就是它们的存储。",
        "A tensor that an operator hands to autograd in the forward pass, for use in the "
        "backward pass. Their storages make up activation memory.")),
    Term("模拟张量", "simulated tensor", r"模拟张量", r"simulated tensors?", "05", (
        "有形状、类型和设备，没有内容的张量。再大的一步也能用它量，几乎不占内存。",
        "A tensor with a shape, a type and a device, but no contents. Steps of any size can be "
        "measured with it and take next to no memory."),
         also=("也叫 FakeTensor。",
               " Also called FakeTensor.")),
    Term("开关", "flag", r"开|关[^于]", r"flags?", "04", (
        "配置里打开一项功能的值，例如 `gradient_checkpointing: true`。",
        "A value in a config that turns something on, such as `gradient_checkpointing: true`.")),
    Term("滑块", "slider", r"滑块", r"sliders?", "00", (
        "拖动它就换一个取值，图随之改变。背后都是量好的或精确算出的结果。",
        "Drag it to another value, and the picture follows. Behind it are results that were "
        "measured or exactly computed.")),
)  # fmt: skip

DEVICES = (
    Term("rank", "rank", r"rank|秩", r"ranks?", "08", (
        "一起训练的许多进程中的一个，也指它的编号；通常一张卡一个。",
        "One of the processes that train together, and its number; usually there is one per "
        "card.")),
    Term("切分", "sharding", r"切", r"shard(s|ed|ing)?", "08", (
        "一个张量由各个 rank 分着拿，每个只有自己的一份。FSDP2 切参数、梯度和优化器状态。",
        "Dividing a tensor among the ranks, so that each has its share only. FSDP2 shards "
        "parameters, gradients and optimizer state.")),
    Term("聚合的参数", "gathered parameter", r"聚合", r"gathered parameters?", "08", (
        "切开的参数为了用一下而合成的一整份，用完就放掉。",
        "A sharded parameter that is whole for a while, to be used, and let go of afterwards.")),
    Term("集合通信", "collective", r"集合通信|通信", r"collectives?", "08", (
        "所有 rank 一起做的一次收发，例如 all-gather（聚合）和 reduce-scatter（求和再分开）。",
        "What all ranks send and receive together, such as an all-gather, or a reduce-scatter, "
        "which adds up and deals out.")),
    Term("通信缓冲区", "communication buffer", r"通信缓冲区", r"communication buffers?", "08", (
        "集合通信收发用的内存，例如 DDP 的桶。",
        "The memory from which collectives send and into which they receive, such as DDP's "
        "buckets.")),
    Term("张量并行", "tensor parallel", r"张量并行", r"tensor[- ]parallel(ism)?", "08", (
        "块里的矩阵由各个 rank 分着拿，矩阵之间的激活值也就切开了。",
        "The matrices of a block are divided among the ranks, and with them the activations "
        "between.")),
    Term("序列并行", "sequence parallel", r"序列并行", r"sequence[- ]parallel(ism)?", "08", (
        "在张量并行之外，把其余的激活值按序列切开，块与块之间的也在内。",
        "On top of tensor parallel, dividing the other activations along the sequence, those "
        "between blocks included.")),
    Term("混合专家", "mixture of experts", r"混合专家", r"mixtures? of experts", "07", (
        "块里有几个前馈网络（专家），路由为每个 token 挑一个或几个。",
        "A block with several feed-forward networks, the experts, of which a router picks one or a "
        "few for each token."),
         also=("也叫 MoE。",
               " Also called MoE.")),
)  # fmt: skip

SECTIONS: tuple[tuple[str, tuple[Term, ...]], ...] = (
    ("内存 · Memory", MEMORY),
    ("检查点 · Checkpoints", CHECKPOINTING),
    ("多个设备 · More than one device", DEVICES),
    ("PyTorch 与这门课 · PyTorch and this course", PYTORCH),
)
TERMS = tuple(term for _, terms in SECTIONS for term in terms)

# What prose says besides, as (zh_said, en_said): words that explain themselves.
PHRASES = ((r"峰值内存|峰值显存", r"peak memory"), (r"权衡", r"trade-?offs?"))


def page() -> dict[str, Any]:
    """The glossary as a notebook whose only code is the language switch."""
    cells = [_markdown(f"# {GLOSSARY.zh} · {GLOSSARY.en}")]
    cells += _prose(
        "课程里的词，中文和英文各叫什么，指的是什么。箭头指向讲到它的那一课。",
        "The words of the course: what they are called in Chinese and in English, and what they "
        "mean. The arrow leads to the lesson that deals with it.",
    )
    cells.append(_switch())
    for name, terms in SECTIONS:
        cells.append(_markdown(f"## {name}"))
        for term in filter(Term.is_shown, terms):
            cells += [_markdown(f"### {term.heading}"), *_prose(*_entry(term))]
    others = (cell for cell in cells if cell["cell_type"] == "markdown")
    for number, cell in enumerate(others):
        cell["id"] = f"term-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _switch() -> dict[str, Any]:
    """The cell that lets a reader choose a language, with what it shows where no widget runs."""
    source = ["from course_lib.language import switch\n", "\n", "switch()"]
    shown = {"text/plain": [SWITCH_WORDS]}
    output = {"data": shown, "execution_count": 1, "metadata": {}, "output_type": "execute_result"}
    tags = {"tags": ["setup", "nbval-ignore-output"]}
    return {"cell_type": "code", "execution_count": 1, "id": "switch", "metadata": tags,
            "outputs": [output], "source": source}  # fmt: skip


def _entry(term: Term) -> Iterator[str]:
    lesson = _THERE[term.lesson]
    zh, en = term.also
    for means, other, title in zip(term.means, (zh, en), (lesson.zh, lesson.en), strict=True):
        name = f"`{title}`" if lesson.zh == lesson.en else title
        yield f"{means}{other}\n\n→ {lesson.number} [{name}]({lesson.name}.ipynb)"


def _prose(zh: str, en: str) -> list[dict[str, Any]]:
    return [
        _markdown(f'<span lang="{language}"></span>\n\n{words}', language)
        for language, words in (("zh", zh), ("en", en))
    ]


def _markdown(source: str, *tags: str) -> dict[str, Any]:
    metadata = {"tags": list(tags)} if tags else {}
    lines = source.splitlines(keepends=True)
    return {"cell_type": "markdown", "id": "", "metadata": metadata, "source": lines}


def written() -> str:
    """The text of the page's file."""
    return json.dumps(page(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    (NOTEBOOKS / f"{GLOSSARY.name}.ipynb").write_text(written(), encoding="utf-8", newline="\n")
