"""Does checkpointing help this model, where, and what does it cost?

``advise(step, model, …)`` watches one training step and plays every option from its score: no
option is run. What it says of bytes and operations is what ``measure`` finds when the option is
carried out.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ...language import text
from ...memory.checks import check_model, check_step, optimizers_in
from ...memory.measurement import Optimizers
from ...wrapping.blocks import Blocks, checkpoint_blocks, checkpointed, plain_blocks
from . import segments, selective
from .budget import bytes_of, readable
from .diagnosis import Surroundings, diagnose, where_and_what
from .doubts import caches, doubts_of, not_in_chunks, others_checkpoints, simulate_it
from .found_blocks import Level, already_checkpointed, heads_of, levels_of, parts_of
from .looks import Looks, State, in_chunks, no_cache
from .micro_batches import COUNTS, MicroBatches, batch_of
from .options import Option, Planner
from .record import Record
from .results import Advice, BudgetTooSmall
from .score import Score
from .watch import recording

__all__ = ["Advice", "BudgetTooSmall", "Option", "advise", "advising"]


def advise(
    step: Callable[[], Any],
    model: nn.Module,
    optimizer: Optimizers = None,
    inputs: Any = (),
    budget: int | str | None = None,
    blocks: Blocks | None = None,
) -> Advice:
    """Watch one training step, and say which checkpoints help, where, and what they cost.

    ``step``, ``model``, ``optimizer``, ``inputs`` as in :func:`course_lib.measure`: the step
    runs for real, with its effects; under ``simulated()`` it takes no memory. ``budget``: the
    most memory that the step may take, in bytes or as ``"24 GiB"``. ``blocks`` as in
    :func:`course_lib.wrapping.blocks.checkpoint_blocks`; None: they are found. Checkpoints that
    ``checkpoint_blocks`` has put on are taken off while the step is watched, and put back. A
    simulated step may run a few times more: with its loss in chunks where logits are large, with
    blocks that keep some of their results, with its batch in parts, and as a remedy would have it
    run. Parts of the batch are options only if ``inputs`` are the very tensors that the step reads.

    Raises ``TypeError`` and ``ValueError`` for bad arguments, for a step that is no training step
    and a model whose blocks cannot be found, :class:`BudgetTooSmall` if nothing fits. Exceptions
    of the step pass through.
    """
    check_step(step)
    study = _Study(model, optimizer, inputs, budget, blocks)
    with study.watching():
        step()
    return study.advice(step)


@contextlib.contextmanager
def advising(
    model: nn.Module,
    optimizer: Optimizers = None,
    inputs: Any = (),
    budget: int | str | None = None,
    blocks: Blocks | None = None,
) -> Iterator[Callable[[], Advice]]:
    """Advise on the body of a ``with``, where the step is no function of its own.

    The value is a function that returns the :class:`Advice` once the body has ended. The body is
    looked at once only, so the loss in chunks, smaller micro-batches and
    selective checkpoints are not among the options. Raises as :func:`advise`.
    """
    study = _Study(model, optimizer, inputs, budget, blocks)
    with study.watching():
        yield lambda: study.advice()


class _Study:
    """One step of one model: watched first, advised on afterwards."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizers, inputs: Any, budget: int | str | None,
        blocks: Blocks | None,
    ):  # fmt: skip
        self.optimizers = optimizers_in(optimizer)
        if not isinstance(model, nn.Module):
            raise TypeError(text(
                zh=f"model 必须是 nn.Module，现在是 {type(model).__name__}。",
                en=f"model must be an nn.Module, not {type(model).__name__}.",
            ))  # fmt: skip
        check_model(model, self.optimizers)
        self.budget = bytes_of(budget)
        self.model, self.inputs, self.blocks = model, inputs, blocks
        in_segments = segments.take_off(model)
        kept = selective.take_off(model)
        self.own = tuple(checkpointed(model))
        self.others = tuple(others_checkpoints(model))
        segments.put_on(model, in_segments)
        selective.put_back(model, kept)
        self.asked_for_cache = caches(model)  # our own checkpoints switch it off
        self.cached = False
        self.record: Record | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with self._plainly():
            self.cached = caches(self.model)
            self.levels = levels_of(self.model, self.blocks)
            self.heads = heads_of(self.model, self.levels)
            watched = {p: b for level in self.levels for p, b in level.blocks.items()}
            for path, block in list(watched.items()):
                watched |= {f"{path}.{name}": part for name, part in parts_of(block).items()}
            self.taken = {
                *already_checkpointed(self.model, list(watched)),
                *(p for p in watched if any(o.startswith(f"{p}.") for o in self.others)),
            }
            watched |= {path: self.model.get_submodule(path) for path in self.own}
            self.watched = watched | self.heads
            self.before = State(self.model, self.optimizers)
            drew = _drawn()
            with recording(self.model, self.optimizers, self.inputs, self.watched) as result:
                yield
        record = result()
        if not record.ran_backward:
            raise ValueError(_no_training())
        record.drew |= drew != _drawn()
        self.drew = record.drew
        self.record = record

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """Our own checkpoints come off meanwhile."""
        in_segments = segments.take_off(self.model)
        kept = selective.take_off(self.model)
        plain_blocks(self.model)
        try:
            yield
        finally:
            if self.own:
                checkpoint_blocks(self.model, list(self.own))
            segments.put_on(self.model, in_segments)
            selective.put_back(self.model, kept)

    def advice(self, step: Callable[[], Any] | None = None) -> Advice:
        """What the step's score says; with the ``step``, what further looks at it say, too."""
        record = self.record
        if record is None:
            raise RuntimeError(text(
                zh="advising 的 with 还没有结束，结果要等它结束之后才有。",
                en="The with block of advising has not ended; the advice comes after.",
            ))  # fmt: skip
        looks = None
        if step is not None and record.source == "simulated":
            looks = Looks(step, self.model, self.optimizers, self.inputs, self.watched, self.before)
        with self._plainly():
            plain, planner = self._planners(record, looks)
            cached = self.cached and not planner.cache_off
            self.said = doubts_of(record, self._others_named(), self.drew, cached)
            options = list(planner.options.values())
            chunked, head = self._in_chunks(planner, looks)
            if chunked is not None:
                options += chunked.worth_having(options)
            around = Surroundings(head, self.own, self.others, self.asked_for_cache, looks)
            diagnosis = diagnose(self.model, plain.score, planner, options, around)
            others: dict[str, Score] = {}
            if looks is not None:
                options += self._selectively(looks, planner, options, others)
                options += self._in_micro_batches(looks, plain, others)
        advice = Advice(
            tuple(options), self.budget, tuple(planner.blocks), Level(planner.blocks).kinds,
            diagnosis, tuple(self.said), self.model, planner.score, plain.score,
            None if chunked is None else chunked.score,
            others,
        )  # fmt: skip
        if self.budget is not None and not any(option.fits for option in advice.options):
            raise BudgetTooSmall(_too_small(advice, self.budget), advice)
        return advice

    def _others_named(self) -> list[str]:
        """The blocks with checkpoints of others, rather than the model that switches them on."""
        blocks = [path for level in self.levels for path in level.blocks]
        there = already_checkpointed(self.model, blocks)
        outer = [p for p in there if not any(p.startswith(f"{other}.") for other in there)]
        return outer or list(self.others)

    def _planner(self, record: Record, head: str | None = None, cache_off: bool = False) -> Planner:
        record.drew |= self.drew
        return Planner(self.model, record, self.levels, self.budget, self.taken, head, cache_off)

    def _planners(self, record: Record, looks: Looks | None) -> tuple[Planner, Planner]:
        """What plays the step as it is, and what plays the options.

        All options but the first switch a cache of keys and values off, so they are played from a
        look without it.
        """
        plain = planner = self._planner(record)
        if self.cached and looks is not None:
            without = looks.again(no_cache(self.model))
            if without is not None:
                planner = self._planner(without, cache_off=True)
        planner.play()
        if planner is not plain:
            plain.add_none()
            planner.options["none"] = plain.options["none"]
        return plain, planner

    def _in_chunks(self, plain: Planner, looks: Looks | None) -> tuple[Planner | None, str | None]:
        """The options with the loss in chunks, and the head that says large logits."""
        head = self._large_head(plain)
        if head is None or looks is None:
            if head is not None:
                self.said.append(simulate_it(head))
            return None, head
        with contextlib.ExitStack() as stack:
            if plain.cache_off:
                stack.enter_context(no_cache(self.model))
            record = looks.again(in_chunks(self.model, self.heads[head]))
        assert self.record is not None
        if record is None or record.flops <= self.record.flops:
            self.said.append(not_in_chunks(head, looks.trouble))
            return None, head
        planner = self._planner(record, head, plain.cache_off)
        planner.play_in_chunks()
        return planner, head

    def _selectively(
        self, looks: Looks, planner: Planner, options: list[Option], scores: dict[str, Score]
    ) -> Iterator[Option]:
        """Blocks that keep what is dear to compute, if no other option is as good in all."""
        paths = planner.not_nested(list(planner.blocks))
        if not paths:
            return
        with contextlib.ExitStack() as stack:
            if planner.cache_off:
                stack.enter_context(no_cache(self.model))
            record = looks.again(selective.selectively(self.model, paths))
        if record is None:
            return
        with_them = self._planner(record, cache_off=planner.cache_off)
        option = with_them.play_selectively(paths)
        if not any(o.peak <= option.peak and o.flops <= option.flops for o in options):
            scores[option.key] = with_them.score
            yield option

    def _in_micro_batches(
        self, looks: Looks, plain: Planner, scores: dict[str, Score]
    ) -> Iterator[Option]:
        """The batch in parts, where that is what ``inputs`` hold and it takes less memory."""
        batch = batch_of(self.inputs)
        for count in COUNTS:
            if not batch or len(batch[0]) % count:
                return
            parts = MicroBatches(looks.step, self.model, self.optimizers, batch, count)
            record = looks.again(parts, parts.step)
            # If the step made its own batch, it has been through it as often as there are parts.
            if record is None or record.flops > _LITTLE_MORE * plain.record.flops:
                return
            planner = self._planner(record)
            option = planner.play_in_parts(count)
            if option.peak < plain.options["none"].peak:
                scores[option.key] = planner.score
                yield option

    def _large_head(self, planner: Planner) -> str | None:
        """The head with the largest result, if that is a sixteenth or more of what the step takes
        with the option that takes least."""
        record = planner.record
        largest: dict[str, int] = {}
        for call in record.calls:
            if call.path in self.heads:
                made = [s.size for s in record.storages if call.begin < s.made < call.end]
                largest[call.path] = max([largest.get(call.path, 0), *made])
        head = max(largest, key=largest.__getitem__, default=None)
        own = min(option.peak for option in planner.options.values()) - record.before
        return head if head is not None and largest[head] * _WORTH_CHUNKS >= own else None


_WORTH_CHUNKS = 16
_LITTLE_MORE = 1.5


def _drawn() -> tuple[Any, ...]:
    """The states of the generators that a step's control flow may ask."""
    kind, keys, *rest = np.random.get_state()
    # Collectives draw Python's random numbers for names of their own.
    collectives = torch.distributed.is_available() and torch.distributed.is_initialized()
    return None if collectives else random.getstate(), kind, tuple(keys), tuple(rest)


def _no_training() -> str:
    return text(
        zh="step 里没有反向传播：没有保存激活值去算梯度，检查点也就没有可省的。"
        "请把 loss.backward() 放进 step，且不要用 torch.no_grad()。",
        en="The step has no backward pass: it keeps no activations for gradients, so there is "
        "nothing that checkpoints could save. Put loss.backward() into the step, outside of "
        "torch.no_grad().",
    )


def _too_small(advice: Advice, limit: int) -> str:
    lowest = min(advice.options, key=lambda option: (option.peak, option.flops))
    there = advice.at_peak(lowest)
    what = where_and_what(there)
    largest = "\n".join(f"  {one}" for one in there.largest[:3])
    return text(
        zh=f"没有一种做法放得进 {readable(limit)}（{limit} 字节）。最低的峰值是 {lowest.peak} "
        f"字节（{readable(lowest.peak)}）：{lowest.zh}。它{what[0]}；{readable(there.before)} 在"
        f"这一步开始前就有了。这一步里最大的：\n{largest}",
        en=f"Nothing fits into {readable(limit)} ({limit} bytes). The lowest peak there is, "
        f"{lowest.peak} bytes ({readable(lowest.peak)}), comes with {lowest.en}. It {what[1]}; "
        f"{readable(there.before)} existed before the step. The largest that the step made:\n"
        f"{largest}",
    )
