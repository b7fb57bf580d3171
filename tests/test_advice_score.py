"""A step's score: any choice of checkpointed blocks, foretold to the byte from one plain run."""

import random

import pytest

from course_lib.memory import measure
from course_lib.wrapping.blocks import checkpoint_blocks, plain_blocks
from support.advice_samples import SAMPLES, watched


@pytest.mark.parametrize("name", SAMPLES)
def test_every_choice_is_foretold_to_the_byte(name):
    sample, blocks, score = watched(name)
    parts = {path: score.part(path, [path]) for path in blocks}
    draw = random.Random(name)
    subsets = [list(blocks), [draw.choice(list(blocks))]]
    subsets += [[p for p in blocks if draw.random() < 0.5] for _ in range(3)]
    for chosen in subsets:
        plain_blocks(sample.model)
        if chosen:
            checkpoint_blocks(sample.model, chosen)
        trace = measure(sample.step, sample.model, sample.optimizer, sample.inputs)
        told = score.foretell([parts[path] for path in chosen])
        assert (told.peak, told.flops) == (trace.peak, trace.flops), chosen
    plain_blocks(sample.model)
