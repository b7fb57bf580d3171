"""The lessons there are, and the common claims that they put to the test."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..language import Table, memory_folder
from ..paths import NOTEBOOKS

# Where the course is published; `python course.py dev address` changes it in every file at once.
REPOSITORY = "OWNER/gradient-checkpointing-course"


def edition_of(repository: str = REPOSITORY) -> str:
    """Where GitHub Pages has the web edition of ``owner/name``."""
    owner, _, name = repository.partition("/")
    return f"https://{owner}.github.io/{name}"


@dataclass(frozen=True)
class Lesson:
    """One notebook. ``name``: its file without ``.ipynb``; ``minutes``: what a learner needs."""

    name: str
    zh: str
    en: str
    minutes: int
    able: tuple[str, str]

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def exists(self) -> bool:
        return (NOTEBOOKS / f"{self.name}.ipynb").exists()


LESSONS = (
    Lesson("00_start_here", "从这里开始", "Start here", 30,
           ("检查安装，选好语言，三分钟看懂整个想法",
            "check the installation, choose a language, see the whole idea in three minutes")),
    Lesson("01_activation_memory", "激活内存", "Activation memory", 50,
           ("精确到字节地预测一个模型为反向传播保存什么；说出峰值时每个字节的用途",
            "predict, to the byte, what a model keeps for backward; name every byte at the peak")),
    Lesson("02_manual_recomputation", "手动重计算", "Manual recomputation", 95,
           ("从零写出检查点，梯度与普通反向传播逐位相同",
            "write checkpointing from scratch, with the same gradients bit for bit")),
    Lesson("03_torch_utils_checkpoint", "torch.utils.checkpoint", "torch.utils.checkpoint", 100,
           ("把它用好，并认出它出错的种种方式，尤其是静默出错的那些",
            "use it well, and recognise the many ways it fails, above all the silent ones")),
    Lesson("04_lightning_flag", "Lightning 开关", "The Lightning flag", 60,
           ("把配置文件里的 gradient_checkpointing: true 变成包好的块",
            "turn gradient_checkpointing: true in a config file into wrapped blocks")),
    Lesson("05_placing_checkpoints", "检查点放在哪里", "Placing checkpoints", 100,
           ("选好放多少个、放在哪里；给定预算，求出最好的方案",
            "choose how many and where; find the best plan for a budget")),
    Lesson("06_choosing_what_to_recompute", "选择性重计算", "Choosing what to recompute", 100,
           ("逐个算子决定保留还是重算，给定预算求出最优；认清编译器的预算、卸载和损失各管什么",
            "decide operator by operator what is stored, at best for a budget; tell what a "
            "compiler's budget, offloading and the loss each govern")),
    Lesson("07_your_own_model", "你自己的模型", "Your own model", 50,
           ("带来一个模型，弄清检查点帮不帮得上、加在哪里、代价多少，并证明梯度没有变",
            "bring a model, find out whether checkpoints help it, where, at what cost, and prove "
            "it")),
    Lesson("08_more_than_one_device", "多设备", "More than one device", 70,
           ("说出多设备训练时每个 rank 拿着什么、检查点改变了什么，在笔记本电脑上为许多卡做好计划",
            "say what each rank holds and what checkpoints change about it, and plan for many "
            "cards on a laptop")),
)  # fmt: skip

GLOSSARY = Lesson("glossary", "术语", "Glossary", 0,
                  ("查一个词的意思", "look up a word"))  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A common claim about gradient checkpointing, and the lesson that tests it."""

    key: str
    zh: str
    en: str
    lesson: str


CLAIMS = (
    Claim("A1", "训练内存有三部分：参数、优化器状态、中间激活值",
          "Training memory has three parts: parameters, optimizer states, activations", "01"),
    Claim("A2", "激活值通常最占内存，深层网络尤其如此",
          "Activations usually take the most memory, above all in deep networks", "01"),
    Claim("A3", "前向传播只保留少数检查点，丢掉的在反向传播时重算",
          "Forward keeps a few checkpoints; backward recomputes what was discarded", "02"),
    Claim("A4", "100 层、每层 1 GB 的 Transformer，不用检查点要 100 GB",
          "100 Transformer layers of 1 GB each need 100 GB without checkpoints", "05"),
    Claim("A5", "保留 10 个检查点，重算其余 90 层，总共只要 10 GB",
          "Keep 10 checkpoints, recompute the other 90 layers: 10 GB in total", "05"),
    Claim("A6", "x = checkpoint(self.layer1, x) 只保存 layer1 的输出",
          "x = checkpoint(self.layer1, x) saves only the output of layer1", "03"),
    Claim("A7", "把单个层包进 checkpoint 就能省内存",
          "Wrapping single layers in checkpoint saves memory", "03"),
    Claim("A8", "给模型传 gradient_checkpointing=True，就打开了梯度检查点",
          "Passing gradient_checkpointing=True to a model turns it on", "04"),
    Claim("A9", "Lightning 的 gradient_checkpointing 参数会自动应用到所有层",
          "Lightning's gradient_checkpointing parameter applies it to all layers automatically",
          "04"),
    Claim("A10", "通常节省 30–50% 的内存",
          "It usually saves 30–50% of memory", "03"),
    Claim("A11", "通常只慢 20–30%",
          "It is usually only 20–30% slower", "03"),
    Claim("A12", "内存紧张而算力充裕时用它",
          "Use it when memory is short and compute is plentiful", "05"),
)  # fmt: skip


def lessons() -> Table:
    """The lessons that are there, as links, with minutes, and the glossary."""
    return Table(
        [("课号", "no."), ("课程", "lesson"), ("学完你能", "afterwards you can"),
         ("分钟", "minutes")],
        [
            [lesson.number, Link(lesson), lesson.able, lesson.minutes]
            for lesson in LESSONS if lesson.exists
        ] + [["", Link(GLOSSARY), GLOSSARY.able, ""]],
    )  # fmt: skip


class Link(tuple):
    """A lesson's name in both languages, which a table shows as a link to its notebook."""

    target: str

    def __new__(cls, lesson: Lesson) -> Link:
        link = super().__new__(cls, (lesson.zh, lesson.en))
        link.target = f"{lesson.name}.ipynb"
        return link


def claims() -> Table:
    """The common claims, the lesson where you test each, and what you have ticked off so far."""
    ticked = _ticked()
    return Table(
        [("完成", "done"), ("常见说法", "a common claim"), ("在哪一课验证", "tested in lesson")],
        [["☑" if claim.key in ticked else "☐", (claim.zh, claim.en), claim.lesson]
         for claim in CLAIMS],
    )  # fmt: skip


def verdicts(**found: tuple[str, str]) -> Table:
    """Tick claims off: what each says, and the verdict (zh, en) that this lesson reached.

    Raises ``KeyError`` for a claim that there is not.
    """
    known = {claim.key: claim for claim in CLAIMS}
    rows = [[key, (known[key].zh, known[key].en), verdict] for key, verdict in found.items()]
    _tick(set(found))
    return Table([("编号", "claim"), ("常见说法", "a common claim"), ("结论", "verdict")], rows)


def _ticks_file() -> Path:
    """Ticks belong to a copy of the course: another learner's, or a new one, starts without any."""
    copy = hashlib.sha256(str(NOTEBOOKS).encode()).hexdigest()[:12]
    return memory_folder() / f"claims-{copy}"


def _ticked() -> set[str]:
    if "COURSE_LANG" in os.environ:  # nor are a maintainer's own shown in what is stored
        return set()
    try:
        return set(_ticks_file().read_text(encoding="utf-8").split())
    except OSError:
        return set()


def _tick(keys: set[str]) -> None:
    if "COURSE_LANG" in os.environ:  # a run of the tests, not a learner
        return
    try:
        _ticks_file().parent.mkdir(parents=True, exist_ok=True)
        _ticks_file().write_text(" ".join(sorted(_ticked() | keys)), encoding="utf-8")
    except OSError:
        pass  # a read-only home: nothing is lost but the ticks
