"""Where in the learner's code a step is: module and line, and whether it has been there before."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from .source_lines import NOWHERE, Place, learners_line


class Whereabouts:
    """Follows the modules that are entered and left, and remembers where each node was made.

    ``elsewhere``: names of other threads that modules ran in.
    """

    def __init__(self, model: nn.Module | None):
        self.elsewhere: list[str] = []
        self._names = (
            {id(m): name for name, m in model.named_modules()} if model is not None else {}
        )
        self._modules: list[str] = []
        self._places: dict[int, Place] = {}  # autograd node's number -> its forward operator's
        self._done_in_forward: set[tuple] = set()  # operators, by module path or line
        self._modules_at: dict[tuple[str | None, int], set[str]] = {}  # that ran a line
        self._thread = threading.get_ident()

    def enter(self, module: nn.Module) -> None:
        """A module's forward begins."""
        if threading.get_ident() != self._thread:  # the hooks are everybody's
            self.elsewhere.append(threading.current_thread().name)
        else:
            self._modules.append(self._names.get(id(module), type(module).__name__))

    def leave(self) -> None:
        """The forward that began last has ended."""
        if self._modules and threading.get_ident() == self._thread:
            self._modules.pop()

    def of_node(self, node: Any) -> Place:
        """The place of the forward operator that a node computes gradients for."""
        return self._places.get(node._sequence_nr(), NOWHERE)

    def here(self, caller: Any, in_backward: bool, with_graph: bool) -> Place:
        """The place of an operator that Python code calls; ``with_graph``: it makes a node."""
        line = learners_line(caller)
        module = self._modules[-1] if self._modules else None
        if module is None and in_backward:
            module = self._recomputed_in(line)
        elif module is not None:
            self._modules_at.setdefault(line, set()).add(module)
        place = Place(module, *line)
        if with_graph:  # the node that this operator belongs to was numbered just before
            self._places.setdefault(torch.autograd._get_sequence_nr() - 1, place)
        return place

    def is_again(self, func: Any, place: Place, in_backward: bool, with_graph: bool) -> bool:
        """Whether work that Python code does is forward work done again: a recomputation."""
        work = (id(func), *place) if place.module is None else (id(func), place.module)
        if in_backward:
            return with_graph or work in self._done_in_forward
        self._done_in_forward.add(work)
        return False

    def _recomputed_in(self, line: tuple[str | None, int]) -> str | None:
        """The module that a recomputation is in, where only its ``forward`` is run again.

        Then no hook has said so. But it is the node that needs a value of that forward which has
        it recomputed: of the modules that ran this line before, it is the one around that node's.
        """
        node = torch._C._current_autograd_node()
        needing = self.of_node(node).module if node else None
        if needing is None:
            return None
        ran = self._modules_at.get(line, ())
        around = (m for m in ran if not m or f"{needing}.".startswith(f"{m}."))
        return max(around, key=len, default=None)
