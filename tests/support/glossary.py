"""Whether prose uses the course's terms, and what it says in place of them.

Words in quotation marks are left out of the checks: a lesson may quote an article's word. So is
what a term is also called, up to the end of that sentence: people search for those names.
"""

from __future__ import annotations

import re

from course_lib.site.glossary import PHRASES, TERMS

# What Chinese prose does not say, and the word that it says.
NOT_IN_CHINESE = {
    r"您": "你",
    r"激活检查点|梯度检查点(技术|法|机制)|检查站|存档点|保存点|存储点": "梯度检查点、检查点",
    r"激活(张量|量|显存|记忆|输出)|激活值(内存|显存)|活化值?|激励值": "激活值、激活内存",
    r"(?<!代码)(?<!需要)重新计算|再计算|重运算": "重计算、重算",
    r"内存峰值|峰值存储|最高内存|最大内存(占用|用量)": "峰值内存",
    r"前向(传递|传输|过程)|正向传播|向前传播": "前向传播",
    r"反向(传递|传输|过程)|后向传播|向后传播|逆向传播": "反向传播",
    r"折中|折衷|取舍": "权衡",
    r"优化器(的)?(动量|内部)状态|优化状态": "优化器状态",
    r"运算图|计算流图": "计算图",
    r"随机状态|随机数?生成器状态|RNG ?状态|随机种子状态": "随机数状态",
    r"工作空间|(?<!算子)工作区": "算子工作区",
    r"临时变量|中间变量": "临时量",
    r"区段|分块段": "分段",
    r"滑动条|滑条|滑竿|滑杆|拖动条": "滑块",
    r"伪张量|假张量|虚拟张量|仿真张量": "模拟张量",
    r"早停|提早停止|提前终止": "提前停止",
    r"标志位|旗标": "开关",
    r"图形内存|显卡内存|GPU ?内存": "显存",
    r"(已|被)保存(的)?张量|存储的张量": "保存的张量",
    r"下放|卸到主机": "卸载",
}

NOT_IN_ENGLISH = {
    r"activation checkpointing|gradient check-pointing|rematerialis?z?ation": "checkpointing",
    r"re-comput\w+": "recompute, recomputation",
    r"VRAM|video memory|graphics memory": "GPU memory",
    r"(the|a) memory peak|maximum memory": "peak memory",
    r"fake tensors?": "simulated tensor",
    r"optimi[sz]er's states?": "optimizer state",
    r"forwards? propagation": "forward pass",
    r"backwards propagation": "backward pass",
}

QUOTED = re.compile(r"「[^」]*」|“[^”]*”|\"[^\"]*\"|也叫[^。；]*|\balso called[^.;]*", re.I)


def _unquoted(words: str) -> str:
    return QUOTED.sub(" ", words)


def wrong_words(words: str, language: str) -> list[str]:
    """Complaints about words of the prose that the glossary replaces by another."""
    banned = NOT_IN_CHINESE if language == "zh" else NOT_IN_ENGLISH
    return [
        f"{found[0]!r}: the course says {right}"
        for pattern, right in banned.items()
        for found in re.finditer(pattern, _unquoted(words), re.I)
    ]


def missing_terms(zh: str, en: str) -> list[str]:
    """Complaints about terms that English prose uses and its Chinese partner does not."""
    said = [(term.zh_said, term.en_said) for term in TERMS]
    return [
        f"English says {found[0]!r}, Chinese says nothing like {chinese}"
        for chinese, english in (*said, *PHRASES)
        if (found := re.search(rf"\b(?:{english})\b", _unquoted(en), re.I))
        and not re.search(chinese, zh)
    ]
