"""How often parts run, and steps timed in turns."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_lib.counting import order_of_calls, seconds_in_turns


def test_the_order_is_that_of_the_runs_and_the_hooks_go_even_after_an_error():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    x = torch.randn(1, 2, requires_grad=True)
    with order_of_calls([first, second, first]) as order:
        checkpoint(first, second(x), use_reentrant=False).sum().backward()
    assert order == [1, 0, 2, 0, 2]  # once forward, once again for the backward pass
    with pytest.raises(KeyError), order_of_calls([first]) as order:
        first(x)
        raise KeyError
    assert order == [0]
    assert not first._forward_pre_hooks and not second._forward_pre_hooks


def test_steps_take_turns_and_the_warm_up_is_left_out():
    ran = []
    steps = [lambda name=name: ran.append(name) for name in "ab"]
    seconds = seconds_in_turns(steps, range(3), warm_up=1)
    assert ran == ["a", "b"] * 3
    assert [len(found) for found in seconds] == [2, 2]
    assert all(taken >= 0 for found in seconds for taken in found)
