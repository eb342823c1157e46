"""The learning rate after a resampling: low, then back, and nobody else's business."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from gated_plugin.trainer_hooks import adam, lr_rewarm
from gated_plugin.trainer_hooks.adam import hasten_adam
from gated_plugin.trainer_hooks.lr_rewarm import LrRewarm, rewarm


def test_it_climbs_from_a_tenth_by_a_cosine_and_is_done():
    state, factors = LrRewarm(8), []
    assert state.factor == 1
    state.begin()
    for _ in range(10):
        factors.append(state.factor)
        state.advance()
    expected = [0.1 + 0.9 * (1 - math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert factors == pytest.approx([*expected, 1, 1])
    assert state == LrRewarm(8)


def test_a_second_resampling_on_the_way_up_begins_at_a_tenth_again():
    state = LrRewarm(8)
    state.begin()
    for _ in range(5):
        state.advance()
    state.begin()
    assert state.factor == pytest.approx(0.1)


def test_over_no_steps_the_rate_stays():
    state = LrRewarm(0)
    state.begin()
    assert state.factor == 1


def test_only_groups_with_its_parameters_are_slowed_and_every_rate_is_given_back():
    ours, others = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = SGD([{"params": [ours], "lr": 0.3}, {"params": [others], "lr": 0.5}])
    state = LrRewarm(4, position=0)
    rewarm([ours], state)
    ours.grad = others.grad = torch.ones(1)
    optimizer.step()
    assert (ours.item(), others.item()) == pytest.approx((-0.03, -0.5))
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.5]


def test_schedulers_that_reckon_from_the_rate_they_find_go_their_way():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    state = LrRewarm(4, position=0)
    rewarm([weight], state)
    for taken in range(3):
        weight.grad = torch.ones(1)
        before = weight.item()
        optimizer.step()
        assert before - weight.item() == pytest.approx(0.5**taken * state.factor)
        state.advance()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.125


def forget_hooks() -> None:
    for listening in (lr_rewarm._listening, adam._listening):
        while listening:
            listening.pop().remove()


@pytest.fixture
def no_hooks_yet() -> Iterator[None]:
    """As in a process that has not trained; whoever trains next listens anew."""
    forget_hooks()
    yield
    forget_hooks()


@pytest.mark.parametrize("adam_listens_first", [True, False])
def test_row_wise_adam_steps_at_the_lowered_rate(adam_listens_first, no_hooks_yet):
    """Whichever of the two was used first in this process."""
    torch.manual_seed(0)
    start, gradients = torch.randn(33, 20), torch.randn(6, 33, 20)
    slowed, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    state = LrRewarm(5, position=0)
    uses = [lambda: hasten_adam(slowed), lambda: rewarm([slowed], state)]
    for use in uses if adam_listens_first else reversed(uses):
        use()
    ours, theirs = Adam([slowed], lr=0.01), Adam([plain], lr=0.01, foreach=False, fused=False)
    for gradient in gradients:
        slowed.grad, plain.grad = gradient.clone(), gradient.clone()
        theirs.param_groups[0]["lr"] = 0.01 * state.factor
        ours.step()
        theirs.step()
        state.advance()
    torch.testing.assert_close(slowed, plain, rtol=1e-5, atol=1e-6)


def test_a_step_that_raises_leaves_the_next_one_its_learning_rate():
    weight = nn.Parameter(torch.ones(3))
    state = LrRewarm(4)
    rewarm([weight], state)
    optimizer = SGD([weight], lr=1.0)
    state.begin()

    def broken() -> float:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError):
        optimizer.step(broken)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 1.0
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))
