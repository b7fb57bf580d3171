"""The options of a step, each played from its score: none is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ...language import text
from .choice import Choice, Problem
from .chunked_loss import CHUNKS
from .found_blocks import Level, parts_of
from .record import Record
from .score import Part, Score
from .segments import chains_in, cut, has_hooks, lengths
from .selective import KEPT


@dataclass(frozen=True)
class Option:
    """One thing to do, and what comes of it.

    ``key``: ``"none"``, ``"all"``, ``"every 2"``, ``"parts attn"``, ``"best"``, … ``zh``, ``en``:
    what it is called. ``peak``: bytes, what exists before the step included. ``flops``: of the
    whole step. ``fits``: whether the peak is within the budget; None without a budget.
    ``paths``: the modules to checkpoint, each on its own; ``segments``: those that are checkpointed
    together, one after the other. ``random_state``: how much of the peak is random state
    that checkpoints keep, ``workspace`` how much is inside operators and never a tensor (both 0
    for simulated tensors, which have neither).
    ``head``: the path of the head whose loss is computed in ``chunks`` checkpointed chunks.
    ``cache_off``: a Hugging Face model's ``use_cache`` was on and is switched off with it.
    ``kept``: operators whose results these checkpoints keep.
    ``micro_batches``: in how many parts the batch goes through.
    ``by_hand``: nothing can carry it out from outside; ``advice.code`` says what to write.
    """

    key: str
    zh: str
    en: str
    peak: int
    flops: int
    fits: bool | None
    paths: tuple[str, ...] = ()
    random_state: int = 0
    workspace: int = 0
    head: str | None = None
    chunks: int = 0
    cache_off: bool = False
    segments: tuple[tuple[str, ...], ...] = ()
    by_hand: bool = False
    kept: tuple[str, ...] = ()
    micro_batches: int = 1

    def parts(self, score: Score) -> list[Part]:
        """Its checkpoints, as choices of a score."""
        if self.kept:
            return []  # the score has them in it already
        alone = [score.part(path, [path]) for path in self.paths]
        return alone + [score.segment(paths) for paths in self.segments]

    @property
    def checkpoints(self) -> int:
        """How many checkpoints it puts on."""
        return len(self.paths) + len(self.segments)

    @property
    def name(self) -> str:
        """What it is called, in the language in use."""
        return text(zh=self.zh, en=self.en)


_WORTH_GOING_IN = 1.25
_MOST_PARTS = 4  # of a block; further ones are only taken all together


class Planner:
    """Plays the options of one score."""

    def __init__(
        self, model: nn.Module, record: Record, levels: Sequence[Level], budget: int | None,
        taken: set[str], head: str | None = None, cache_off: bool = False,
    ):  # fmt: skip
        self.head, self.cache_off = head, cache_off
        self.model, self.record, self.budget, self.taken = model, record, budget, taken
        self.score = Score(record)
        self.given_levels = levels
        called = {call.path for call in record.calls if call.slots} - taken
        self.levels = [
            {path: block for path, block in level.blocks.items() if path in called}
            for level in levels
        ]
        self.levels = [found for found in self.levels if found] or [{}]
        self.called = called
        self.options: dict[str, Option] = {}
        self.blocks = self._level()
        self.parts: dict[str, list[str]] = {}  # name of a part -> where it is
        for path, block in self.blocks.items():
            for name in parts_of(block):
                if f"{path}.{name}" in self.called:
                    self.parts.setdefault(name, []).append(f"{path}.{name}")

    def _level(self) -> dict[str, nn.Module]:
        """The outermost level, unless one further in saves a quarter more: stages hold blocks."""
        plain = self.score.foretell().peak
        best, saved = self.levels[0], self._saved(plain, self.levels[0])
        for level in self.levels[1:]:
            if (more := self._saved(plain, level)) > saved * _WORTH_GOING_IN:
                best, saved = level, more
        return best

    def _saved(self, plain: int, blocks: dict[str, nn.Module]) -> int:
        return max(0, plain - self.score.foretell(self._parts(blocks)).peak)

    def _parts(self, paths: Sequence[str] | dict[str, nn.Module]) -> list[Part]:
        return self.parts_at(self.not_nested(list(paths)))

    def parts_at(self, paths: Sequence[str]) -> list[Part]:
        """The modules at these paths, each as a choice of its own."""
        return [self.score.part(path, [path]) for path in paths]

    def not_nested(self, paths: list[str]) -> list[str]:
        """Without those that run inside another one of them, which would be recomputed twice."""
        those = set(paths)
        calls = self.record.calls
        inside = {
            call.path for call in calls
            if call.path in those and any(calls[o].path in those for o in call.outer)
        }  # fmt: skip
        return [path for path in paths if path not in inside]

    def add(
        self, key: str, zh: str, en: str, paths: Sequence[str],
        segments: Sequence[tuple[str, ...]] = (),
    ) -> None:  # fmt: skip
        parts = self._parts(paths)
        told = self.score.foretell(parts + [self.score.segment(paths) for paths in segments])
        inside = [self.model.get_submodule(path) for paths in segments for path in paths]
        fits = None if self.budget is None else told.peak <= self.budget
        named = tuple(path for part in parts for path in part.paths)
        self.options[key] = Option(
            key, zh, en, told.peak, told.flops, fits, named, told.random_state,
            told.workspace, self.head, CHUNKS if self.head else 0, self.cache_off,
            tuple(segments), any(map(has_hooks, inside)),
        )  # fmt: skip

    def worth_having(self, others: Sequence[Option]) -> list[Option]:
        """Those of its options that no other one beats, in peak and in operations."""
        return [
            option for option in self.options.values()
            if option.key == "loss"
            or not any(o.peak <= option.peak and o.flops <= option.flops for o in others)
        ]  # fmt: skip

    def add_none(self) -> None:
        """The step as it is."""
        self.add("none", "不用检查点", "no checkpoints", ())

    def play(self) -> None:
        """All options that leave the loss as it is."""
        blocks = list(self.blocks)
        self.add_none()
        if blocks:
            self.add("all", f"每个块（{len(blocks)} 个）", f"every block ({len(blocks)})", blocks)
            for k in (2, 3, 4):
                if len(blocks) >= 2 * k:
                    self.add(
                        f"every {k}", f"每 {k} 个块设一个", f"every {k}th block"
                        if k > 3 else f"every {('', '', 'second', 'third')[k]} block",
                        blocks[k - 1 :: k],
                    )  # fmt: skip
            for level in self.levels:
                if level is not self.blocks:
                    kinds = Level(level).kinds
                    self.add(f"all {kinds}", f"每个 {kinds}", f"each of {kinds}", list(level))
            self._of_parts()
            self._best(blocks)
            self._in_segments(blocks)

    def play_in_parts(self, count: int) -> Option:
        """The option of a score whose batch goes through in ``count`` parts."""
        key = f"micro-batches {count}"
        self.add(key, f"分成 {count} 个微批", f"{count} micro-batches", ())
        return dataclasses.replace(self.options[key], micro_batches=count, by_hand=True)

    def play_selectively(self, paths: Sequence[str]) -> Option:
        """The option of a score whose blocks have selective checkpoints on them."""
        self.add(
            "selective", f"每个块（{len(paths)} 个），但留下矩阵乘法和注意力的结果",
            f"every block ({len(paths)}), but results of matrix products and attention are kept",
            (),
        )  # fmt: skip
        return dataclasses.replace(self.options["selective"], paths=tuple(paths), kept=KEPT)

    def play_in_chunks(self) -> None:
        """The options of a score whose loss is in chunks."""
        blocks = list(self.blocks)
        zh, en = f"损失分 {CHUNKS} 块计算", f"the loss in {CHUNKS} chunks"
        self.add("loss", zh, en, ())
        if blocks:
            self.add("loss + all", f"{zh}，每个块都设", f"{en}, and every block", blocks)
            self._best(blocks, "loss + ", f"{zh}，", f"{en}, and ")
            self._in_segments(blocks, "loss + ", f"{zh}，", f"{en}, and ")

    def _in_segments(
        self, blocks: list[str], before: str = "", before_zh: str = "", before_en: str = ""
    ) -> None:
        """Several blocks to a checkpoint, where they hand on one to the other: the length that
        takes least."""
        chains = chains_in(self.record, self.not_nested(blocks))
        others = [path for path in blocks if not any(path in chain for chain in chains)]

        def told(length: int) -> tuple[int, int]:
            parts = self._parts(others) + [self.score.segment(s) for s in cut(chains, length)]
            return (found := self.score.foretell(parts)).peak, found.flops

        if self.record.drew:  # the next step may skip a block
            return
        if chains and (tried := [length for length in lengths(chains) if length > 1]):
            length = min(tried, key=told)
            segments = cut(chains, length)
            count = len(segments)
            alone = list(others)
            if not any(has_hooks(self.blocks[path]) for chain in chains for path in chain):
                alone += [paths[0] for paths in segments if len(paths) == 1]
                segments = [paths for paths in segments if len(paths) > 1]
            self.add(
                f"{before}segments {length}",
                f"{before_zh}每 {length} 个块作一个分段（{count} 段）",
                f"{before_en}segments of {length} blocks ({count} segment{'s' * (count != 1)})",
                alone, segments,
            )  # fmt: skip

    def _of_parts(self) -> None:
        plain = self.options["none"].peak
        for name, paths in self.parts.items():
            key = f"parts {name}"
            self.add(key, f"每个块里的 {name}", f"only {name} of every block", paths)
            if self.options[key].peak >= plain:
                del self.options[key]

    def _best(
        self, blocks: list[str], before: str = "", before_zh: str = "", before_en: str = ""
    ) -> None:
        whole = Problem(self.score, [((), (part,)) for part in self._parts(blocks)])
        self._chosen(whole, blocks, before, before_zh, before_en)
        if self.parts:
            fine = Problem(self.score, [self._choices(b) for b in self.not_nested(blocks)])
            self._chosen(fine, blocks, before, before_zh, before_en, of_parts=True)

    def _choices(self, block: str) -> tuple[tuple[Part, ...], ...]:
        """What can be done with a block: nothing, all of it, one of its parts, all of them."""
        parts = self._parts([
            path for paths in self.parts.values() for path in paths if path.startswith(f"{block}.")
        ])  # fmt: skip
        whole = (self.score.part(block, [block]),)
        if not parts:
            return (), whole
        alone = [(part,) for part in parts] if len(parts) <= _MOST_PARTS else []
        return ((), whole, *alone, *([tuple(parts)] if len(parts) > 1 else []))

    def _chosen(
        self, problem: Problem, blocks: list[str], before: str, before_zh: str, before_en: str,
        of_parts: bool = False,
    ) -> None:  # fmt: skip
        lowest = problem.lowest()
        choices = {"lowest": (lowest, "峰值最低的选择", "the choice with the lowest peak")}
        if self.budget is not None and (found := problem.cheapest(self.budget)) is not None:
            choices["best"] = (
                found,
                "预算之内运算最少的选择",
                "the choice with the fewest operations that fits",
            )
        for key, (choice, zh, en) in choices.items():
            parts = problem.parts(choice.taken)
            named = [path for part in parts for path in part.paths]
            count = len([path for path in named if path in self.blocks])
            zh_count, en_count = f"{count}/{len(blocks)} 个块", f"{count}/{len(blocks)} blocks"
            if of_parts:
                known = self.options.get(before + key)
                more = len(named) - count
                if not more or (known is not None and not self._better(key, choice, known)):
                    continue
                zh_count += f"，{more} 个部分"
                en_count += f", {more} part{'s' * (more != 1)}"
                key = f"{key} parts"
            self.add(
                before + key, f"{before_zh}{zh}（{zh_count}）",
                f"{before_en}{en} ({en_count})", named,
            )  # fmt: skip

    def _better(self, key: str, choice: Choice, known: Option) -> bool:
        flops = self.record.flops + choice.flops
        if key == "lowest":
            return (choice.peak, flops) < (known.peak, known.flops)
        return (flops, choice.peak) < (known.flops, known.peak)
