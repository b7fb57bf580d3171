"""What advice is: a diagnosis and options, which can be carried out, taken back and pasted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...language import Bilingual, Table, one_below_another, text
from ...wrapping.blocks import Wrapped, checkpoint_blocks, checkpointed, plain_blocks
from . import segments, selective
from .at_peak import AtPeak, at_peak
from .budget import readable
from .chunked_loss import put_on, take_off
from .code import by_hand, lines
from .diagnosis import Diagnosis
from .looks import switch_cache_off
from .options import Option
from .score import Score


class BudgetTooSmall(ValueError):
    """Nothing fits. ``lowest``: the option with the lowest peak; ``advice``: everything else."""

    def __init__(self, message: str, advice: Advice):
        super().__init__(message)
        self.advice = advice
        self.lowest = min(advice.options, key=lambda option: option.peak)


@dataclass
class Advice:
    """What :func:`advise` found. Shown in a notebook, it is the diagnosis and the options.

    ``options``: the plain step first. ``budget``: bytes, or None. ``blocks``: paths of the modules
    that were taken for blocks; ``took``: what they are, in words. ``doubts``: what else has to be
    said, (zh, en). ``score``: what the options are played from; ``plain``: the same of the step as
    it is, with a cache of keys and values if that is on; ``chunked``: the same with the loss in
    chunks, if there is one; ``others``: of options that only a look of their own can tell, by key.
    """

    options: tuple[Option, ...]
    budget: int | None
    blocks: tuple[str, ...]
    took: str
    diagnosis: Diagnosis
    doubts: tuple[tuple[str, str], ...]
    model: nn.Module = field(repr=False)
    score: Score = field(repr=False)
    plain: Score = field(repr=False)
    chunked: Score | None = field(repr=False, default=None)
    others: Mapping[str, Score] = field(repr=False, default_factory=dict)
    _undo: Callable[[], None] | None = field(repr=False, default=None)

    @property
    def best(self) -> Option:
        """The option with the fewest operations among those that fit; of these, the lowest peak.

        Without a budget: the lowest peak of all, then the fewest operations. Options that need
        other training code count only if no other one fits.
        """
        if self.budget is None:
            carried_out = [option for option in self.options if not option.by_hand]
            return min(carried_out, key=lambda o: (o.peak, o.flops, o.checkpoints))
        fitting = [option for option in self.options if option.fits]
        fitting = [option for option in fitting if not option.by_hand] or fitting
        return min(fitting, key=lambda o: (o.flops, o.peak, o.checkpoints))

    def __getitem__(self, key: str) -> Option:
        """The option with this ``key``; ``KeyError`` names those there are."""
        for option in self.options:
            if option.key == key:
                return option
        raise KeyError(f"{key!r}; {', '.join(option.key for option in self.options)}")

    def apply(self, option: Option | str | None = None) -> Wrapped | None:
        """Carry an option (by default the best) out on the model, in place; what was done.

        An option that was applied before is taken back first. Raises ``ValueError``, with what to
        do instead, for an option that nothing can carry out from outside.
        """
        option = self._given(option)
        if option.by_hand:
            raise ValueError(by_hand(option))
        self.undo()
        before = checkpointed(self.model)
        switched: list[Any] = []

        def undo() -> None:
            take_off(self.model)
            segments.take_off(self.model)
            selective.take_off(self.model)
            plain_blocks(self.model)
            for config in switched:
                config.use_cache = True
            if before:
                checkpoint_blocks(self.model, list(before))
            segments.put_on(self.model, segments_before)
            selective.put_back(self.model, selective_before)

        self._undo = undo
        segments_before = segments.take_off(self.model)
        selective_before = selective.take_off(self.model)
        plain_blocks(self.model)
        if option.cache_off or option.segments or option.kept:
            switched += switch_cache_off(self.model)
        if option.head is not None:
            head = self.model.get_submodule(option.head)
            assert isinstance(head, nn.Linear)
            put_on(head, option.chunks)
        if option.kept:
            selective.put_on(self.model, option.paths, option.kept)
            return Wrapped(option.paths, option.paths, 1)
        done = checkpoint_blocks(self.model, list(option.paths)) if option.paths else None
        if option.segments:
            segments.put_on(self.model, option.segments)
            there = tuple(path for paths in option.segments for path in paths) + option.paths
            done = Wrapped(there, there, 1, () if done is None else done.doubts)
        return done

    def undo(self) -> None:
        """Take back what :meth:`apply` did; without it, nothing happens."""
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo()

    def code(self, option: Option | str | None = None, framework: str = "pytorch") -> str:
        """Lines to paste that carry an option (by default the best) out.

        ``framework``: ``"pytorch"``, lines that need nothing but torch and a ``model``; or
        ``"lightning"``, a callback for the ``Trainer``. Raises ``ValueError`` for another one.
        """
        return lines(self._given(option), framework)

    def _given(self, option: Option | str | None) -> Option:
        if option is None:
            return self.best
        return self[option] if isinstance(option, str) else option

    def at_peak(self, option: Option | str | None = None) -> AtPeak:
        """What the peak of an option (by default the best) is made of."""
        option = self._given(option)
        score = self.plain if option.key == "none" else self.score
        if option.head is not None and self.chunked is not None:
            score = self.chunked
        score = self.others.get(option.key, score)
        return at_peak(score, option.parts(score))

    def table(self) -> Table:
        """The options with peak, operations and whether they fit; of real tensors also how much of
        the peak is workspace and random state."""
        plain = self.options[0]
        inside = any(option.workspace or option.random_state for option in self.options)
        rows = []
        for option in self.options:
            more = option.flops / plain.flops - 1 if plain.flops else 0.0
            fits = ("—", "—") if option.fits is None else _YES_NO[option.fits]
            sizes = [option.peak, *([option.workspace, option.random_state] if inside else [])]
            rows.append(((option.zh, option.en), *map(readable, sizes), f"{more:+.1%}", fits))
        more_columns = [("其中算子工作区", "of it workspace"), ("随机数状态", "random state")]
        return Table(
            [("做法", "option"), ("峰值", "peak"), *(more_columns if inside else []),
             ("多做的运算", "more operations"), ("放得下", "fits")], rows,
        )  # fmt: skip

    def __str__(self) -> str:
        said = [str(self.diagnosis), *(text(zh=zh, en=en) for zh, en in self.doubts)]
        return "\n\n".join([*said, str(self.table())])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        doubts = (Bilingual(zh=zh, en=en) for zh, en in self.doubts)
        shown = one_below_another(self.diagnosis, *doubts, self.table())
        return {"text/plain": str(self), "text/html": shown}


_YES_NO = {True: ("是", "yes"), False: ("否", "no")}
