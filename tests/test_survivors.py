"""The drawing of dynamic programming: nothing that could still be the best is discarded."""

import itertools

import pytest
import torch

from course_lib.lessons.placing_checkpoints.survivors import Way, stages, survivors_explorer
from course_lib.memory import simulated
from course_lib.models import pyramid
from course_lib.plans import chain_of

LAYERS = (2, 3, 5, 6)


@pytest.fixture(scope="module")
def chain():
    with simulated():
        return chain_of(pyramid((4, 4)), torch.empty(4, 256, 64))


def every_way(chain, layers):
    """Each layer kept, or the begin or the rest of a segment; counted by hand."""
    costs = [chain.layers[i] for i in layers]
    for states in itertools.product(("keep", "begin", "join"), repeat=len(layers)):
        parts, kept, again = [], 0, 0
        for i, state in enumerate(states):
            if state == "join" and not (parts and isinstance(parts[-1], tuple)):
                break
            if state == "keep":
                parts.append(i)
                kept += costs[i].kept
                continue
            again += costs[i].flops
            if state == "begin":
                parts.append((i,))
                kept += chain.layers[layers[i] - 1].boundary
            else:
                parts[-1] += (i,)
        else:
            yield Way(tuple(parts), kept, again)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_what_is_left_is_what_no_way_beats(chain, count):
    ways = list(every_way(chain, LAYERS[:count]))
    best = {(w.kept, w.again) for w in ways if not any(o.beats(w) for o in ways)}
    stage = stages(chain, LAYERS)[count]
    assert {(way.kept, way.again) for way in stage.left} == best
    assert {way.parts for way in stage.left + stage.beaten} <= {way.parts for way in ways}
    for way in stage.beaten:
        assert any(one.beats(way) or one.again == way.again for one in stage.left)


def test_every_position_is_drawn(chain):
    explorer = survivors_explorer(chain, LAYERS)
    for values in explorer.positions():
        explorer.move(**values)
        assert "left" in explorer.caption or "留下" in explorer.caption
