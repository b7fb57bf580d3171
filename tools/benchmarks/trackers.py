"""Tools that say how much memory a training step needs, each used as its manual says."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import multiprocessing
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torchinfo
from subjects import SUBJECTS, Subject
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

from course_lib.memory import measure
from support.independent import Step, bytes_before


@dataclass(frozen=True)
class Answer:
    """``peak``: bytes, as the tool has them. ``named``: those of them that it has a role for."""

    peak: int
    named: int | None = None


class Tool:
    """``ask(step)`` runs the step once in the tool and returns what the tool says."""

    name: str

    def ask(self, step: Step) -> Answer:
        raise NotImplementedError

    def about(self, subject: Subject) -> Answer:
        """Build the subject's step and ask about it."""
        with subject.world(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the profiler's timeline is deprecated
            return self.ask(subject.build())


class Ours(Tool):
    name = "`measure`"

    def ask(self, step: Step) -> Answer:
        trace = measure(step.run, step.model, step.optimizer, step.inputs)
        return Answer(trace.peak, sum(trace.at_peak.values()))


class Tracker(Tool):
    name = "`MemTracker`"

    def ask(self, step: Step) -> Answer:
        tracker = MemTracker()
        known = (step.model, step.optimizer, step.inputs)
        tracker.track_external(*[part for part in known if part is not None])
        with tracker:
            step.run()
        (sizes,) = tracker.get_tracker_snapshot("peak").values()
        return Answer(sizes["Total"], sizes["Total"] - sizes.get("Other", 0))


class Timeline(Tool):
    name = "`export_memory_timeline`"

    def ask(self, step: Step) -> Answer:
        with profile(
            activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True,
            with_stack=True,
        ) as profiler:  # fmt: skip
            step.run()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "timeline.json"
            profiler.export_memory_timeline(str(file), "cpu")
            _, levels = json.loads(file.read_text())
        highest = max(levels, key=sum, default=[0, 0])
        return Answer(sum(highest), sum(highest) - highest[1])  # first comes a zero, then unknown


class Hooks(Tool):
    """What existed, the gradients, and every tensor that saved-tensor hooks see being kept."""

    name = "saved-tensor hooks"

    def ask(self, step: Step) -> Answer:
        kept: list[tuple[int, int]] = []

        def pack(tensor: Tensor) -> Tensor:
            kept.append(self.counted(tensor))
            return tensor

        before = bytes_before(step)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step.run()
        gradients = sum(p.grad.nbytes for p in step.model.parameters() if p.grad is not None)
        return Answer(before + gradients + self.total(kept, step.model))

    def counted(self, tensor: Tensor) -> tuple[int, int]:
        return 0, tensor.nbytes

    def total(self, kept: list[tuple[int, int]], model: nn.Module) -> int:
        return sum(size for _, size in kept)


class CarefulHooks(Hooks):
    """The same, each storage once and parameters left out."""

    name = "saved-tensor hooks, each storage once"

    def counted(self, tensor: Tensor) -> tuple[int, int]:
        storage = tensor.untyped_storage()
        return storage._cdata, storage.nbytes()

    def total(self, kept: list[tuple[int, int]], model: nn.Module) -> int:
        sizes = dict(kept)
        for parameter in model.parameters():
            sizes.pop(parameter.untyped_storage()._cdata, None)
        return sum(sizes.values())


class TorchInfo(Tool):
    name = "torchinfo"

    def ask(self, step: Step) -> Answer:
        found = torchinfo.summary(step.model, input_data=step.inputs, mode="train", verbose=0)
        return Answer(found.total_input + found.total_output_bytes + found.total_param_bytes)


class Resident(Tool):
    """How far the process grows, looked at every half millisecond."""

    name = "RSS (psutil)"

    def ask(self, step: Step) -> Answer:
        with _highest_rss() as seen:
            step.run()
        return Answer(max(seen))

    def about(self, subject: Subject) -> Answer:
        """In a process of its own: memory that was freed before would be used again."""
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_growth, SUBJECTS.index(subject)).result()


@contextlib.contextmanager
def _highest_rss() -> Iterator[list[int]]:
    """The list that is given holds the sizes seen, in bytes."""
    process, done = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.0005):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()
        seen.append(process.memory_info().rss)


def _growth(index: int) -> Answer:
    torch.set_num_threads(1)
    nn.Linear(8, 8)(torch.randn(8, 8)).sum().backward()  # what is loaded on first use
    before = psutil.Process().memory_info().rss
    return Answer(Tool.about(Resident(), SUBJECTS[index]).peak - before)


TOOLS = (Ours(), Tracker(), Timeline(), Hooks(), CarefulHooks(), TorchInfo(), Resident())
