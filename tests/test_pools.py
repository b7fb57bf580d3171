"""Two pools: bytes on the device and on the host are told apart, also where there is no device."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper,
    offload_wrapper,
)

from course_lib.gradients import same_gradients
from course_lib.memory import Role, measure, measure_pools, simulated
from course_lib.saved import saved_tensors

TOKENS, WIDTH, HIDDEN = 256, 32, 128


class Net(nn.Module):
    def __init__(self, wrap=lambda block: block, blocks=3):
        super().__init__()
        self.blocks = nn.ModuleList(
            wrap(nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)))
            for _ in range(blocks)
        )

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


WRAPS = {
    "none": lambda block: block,
    "offload": offload_wrapper,
    "checkpoint": checkpoint_wrapper,
    "offload around checkpoint": lambda block: offload_wrapper(checkpoint_wrapper(block)),
    "checkpoint around offload": lambda block: checkpoint_wrapper(offload_wrapper(block)),
}


def pools_of(wrap):
    torch.manual_seed(0)
    net, x = Net(wrap), torch.randn(TOKENS, WIDTH)

    def step():
        net(x).square().mean().backward()

    measure(step, net, inputs=x)  # gradients exist
    return measure_pools(step, net, inputs=x)


@pytest.mark.parametrize("name", WRAPS)
def test_a_trace_of_two_pools_adds_up(name):
    found = pools_of(WRAPS[name])
    assert sum(found.trace.at_peak.values()) == found.trace.peak
    assert sum(found.at_device_peak.values()) == found.device_peak
    assert found.device_peak == found.trace.peak_without(Role.OFFLOADED)
    assert found.host_peak == found.trace.peak_of(Role.OFFLOADED)
    assert (Role.OFFLOADED in found.trace.at_peak) == (found.host_peak > 0)
    assert Role.OFFLOADED not in found.at_device_peak
    assert found.moved == found.to_host + found.to_device


@pytest.mark.parametrize("name", WRAPS)
def test_simulated_pools_are_the_real_ones(name):
    real = pools_of(WRAPS[name])
    with simulated():
        dreamt = pools_of(WRAPS[name])
    unseen = Role.OFFLOADED, Role.WORKSPACE, Role.RANDOM_STATE
    assert dreamt.device_peak == real.trace.peak_without(*unseen)
    assert (dreamt.host_peak, dreamt.to_host, dreamt.to_device) == (
        real.host_peak, real.to_host, real.to_device,
    )  # fmt: skip


@pytest.mark.parametrize("name", WRAPS)
def test_what_is_moved_comes_back_as_it_was(name):
    torch.manual_seed(0)
    plain, other, x = Net(), Net(WRAPS[name]), torch.randn(TOKENS, WIDTH)
    other.load_state_dict(plain.state_dict())

    def step():
        measure_pools(lambda: other(x).square().mean().backward(), other, inputs=x)

    found = same_gradients(lambda: plain(x).square().mean().backward(), step, model=(plain, other))
    assert found, found.en


def test_nothing_moves_without_offloading():
    for name in ("none", "checkpoint"):
        found = pools_of(WRAPS[name])
        assert found.host_peak == found.moved == 0


def test_host_bytes_are_those_of_each_saved_tensor_weights_and_repeats_included():
    found = pools_of(offload_wrapper)
    activation = 4 * TOKENS * (WIDTH + 2 * HIDDEN)  # input of each Linear and of GELU
    weight = 4 * WIDTH * HIDDEN  # for the gradient of its input; the first block's has none
    assert found.host_peak == found.to_host == 3 * activation + 5 * weight
    assert found.to_device == found.to_host


def test_a_tensor_that_three_operators_save_is_moved_three_times():
    torch.manual_seed(0)
    q, k, v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
    x = torch.randn(TOKENS, WIDTH)
    net = nn.ModuleList([q, k, v])

    def step():
        with save_on_cpu():
            y = q(x) + k(x) + v(x)
        y.sum().backward()

    assert measure_pools(step, net, inputs=x).to_host == 3 * x.nbytes
    assert saved_tensors(lambda x: q(x) + k(x) + v(x), x).total == x.nbytes


def test_offloading_takes_the_activations_off_the_device():
    plain, offloaded = pools_of(WRAPS["none"]), pools_of(offload_wrapper)
    assert offloaded.device_peak < 0.6 * plain.device_peak
    assert offloaded.trace.flops == plain.trace.flops


def test_a_checkpoint_around_offloading_is_none():
    """The hooks inside are those that catch what is saved: nothing is left to recompute."""
    inside, alone = pools_of(WRAPS["checkpoint around offload"]), pools_of(offload_wrapper)
    assert inside.host_peak == alone.host_peak
    assert inside.trace.flops == alone.trace.flops


def test_offloading_around_a_checkpoint_moves_the_checkpoints():
    around, plain = pools_of(WRAPS["offload around checkpoint"]), pools_of(WRAPS["checkpoint"])
    assert around.host_peak == 3 * 4 * TOKENS * WIDTH
    assert around.trace.flops == plain.trace.flops
    assert around.device_peak < plain.device_peak


def test_hooks_of_ones_own_count_as_well():
    net, x = Net(), torch.randn(TOKENS, WIDTH)

    def step():
        with saved_tensors_hooks(lambda t: t.cpu(), lambda t: t.to("cpu")):
            y = net(x).square().mean()
        y.backward()

    found = measure_pools(step, net, inputs=x)
    assert found.to_host == found.to_device == found.host_peak > 0


def test_pinned_memory_is_the_hosts():
    x = torch.randn(1000)

    def step():
        there = torch.empty(1000, pin_memory=True)
        there.copy_(x)
        back = there.to("cpu", non_blocking=True)
        again = torch.zeros(1000)
        again.copy_(there)
        assert torch.equal(back, x) and torch.equal(again, x)
        return x.pin_memory()

    found = measure_pools(step, inputs=x)
    assert (found.to_host, found.to_device) == (8000, 8000)
    assert found.host_peak == 8000


def test_methods_are_what_they_were_also_after_an_error():
    before = {name: getattr(torch.Tensor, name) for name in ("cpu", "to", "copy_", "pin_memory")}
    names, empty = set(vars(torch.Tensor)), torch.empty

    def step():
        torch.zeros(3).cpu()
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        measure_pools(step)
    assert set(vars(torch.Tensor)) == names and torch.empty is empty
    assert before == {name: getattr(torch.Tensor, name) for name in before}


def test_a_step_with_arguments_is_refused():
    with pytest.raises(TypeError):
        measure_pools(lambda x: x)  # type: ignore[arg-type]
