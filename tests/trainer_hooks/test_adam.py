"""The hastened Adam is Adam: same weights, same state, same checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from gated_plugin.trainer_hooks.adam import hasten_adam

M, N = 37, 21
EPS = 2.0**-24


def make_weights(seed: int = 0) -> list[nn.Parameter]:
    """A decoder, an encoder with feature-major strides, and a bias."""
    torch.manual_seed(seed)
    return [
        nn.Parameter(torch.randn(M, N)),
        nn.Parameter(torch.randn(M, N).T),
        nn.Parameter(torch.randn(M)),
    ]


def row_sparse_gradients(weights, step: int, touched: float = 0.4):
    generator = torch.Generator().manual_seed(step)
    rows = torch.rand(M, generator=generator) < touched
    for weight in weights:
        gradient = torch.randn(M, weight.numel() // M, generator=generator)
        gradient[~rows] = 0
        gradient = gradient.T if weight.shape == (N, M) else gradient.view(weight.shape)
        weight.grad = torch.empty_like(weight).copy_(gradient)


def train(weights, optimizer, steps: range, between=lambda: None) -> None:
    for step in steps:
        row_sparse_gradients(weights, step)
        optimizer.step()
        optimizer.zero_grad()
        between()


def plain(**options):
    weights = make_weights()
    return weights, Adam(weights, lr=0.01, foreach=False, fused=False, **options)


def hastened(**options):
    weights = make_weights()
    hasten_adam(*weights[:2])
    return weights, Adam(weights, lr=0.01, **options)


def test_a_gradient_that_a_grad_scaler_leaves_to_a_fused_adam_is_left_to_it():
    weights, optimizer = hastened(fused=True)
    before = [weight.detach().clone() for weight in weights]
    row_sparse_gradients(weights, 1)
    optimizer.step()
    row_sparse_gradients(weights, 2)
    weights[0].grad[3, 3] = torch.inf
    moved = [weight.detach().clone() for weight in weights]
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    optimizer.step()
    assert not any(torch.equal(w, b) for w, b in zip(moved, before, strict=True))
    assert all(torch.equal(w, m) for w, m in zip(weights, moved, strict=True))


def apart(left, right) -> float:
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_weights_and_state_are_those_of_plain_adam(beta1):
    steps = range(60)
    truth, their_optimizer = plain(betas=(beta1, 0.99))
    ours, our_optimizer = hastened(betas=(beta1, 0.99))
    train(truth, their_optimizer, steps)
    train(ours, our_optimizer, steps)
    assert apart(ours, truth) < len(steps) * EPS
    states = our_optimizer.state_dict()["state"], their_optimizer.state_dict()["state"]
    for our_state, their_state in zip(*(s.values() for s in states), strict=True):
        assert our_state["step"] == their_state["step"]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert apart([our_state[moment]], [their_state[moment]]) < len(steps) * EPS


def test_a_row_without_a_gradient_does_not_move_a_bit():
    weights, optimizer = hastened(betas=(0.0, 0.99))
    train(weights, optimizer, range(3))
    before = weights[0].detach().clone()
    row_sparse_gradients(weights, 7)
    untouched = (weights[0].grad == 0).all(1)
    optimizer.step()
    moved = (weights[0] != before).any(1)
    assert untouched.any()
    assert torch.equal(moved, ~untouched)


def test_asking_for_the_state_changes_no_bit_of_what_follows():
    asked, left_alone = hastened(betas=(0.0, 0.99)), hastened(betas=(0.0, 0.99))
    train(*asked, range(40), between=asked[1].state_dict)
    train(*left_alone, range(40))
    for one, other in zip(asked[0], left_alone[0], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(
        *(o.state_dict()["state"].values() for _, o in (asked, left_alone)), strict=True
    ):
        assert torch.equal(one["exp_avg_sq"], other["exp_avg_sq"])


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("direction", ["from plain", "to plain"])
def test_checkpoints_move_both_ways(beta1, direction):
    betas = (beta1, 0.99)
    first, second = (plain, hastened) if direction == "from plain" else (hastened, plain)
    truth, truth_optimizer = plain(betas=betas)
    train(truth, truth_optimizer, range(30))
    weights, optimizer = first(betas=betas)
    train(weights, optimizer, range(15))
    continued, continued_optimizer = second(betas=betas)
    with torch.no_grad():
        for new, old in zip(continued, weights, strict=True):
            new.copy_(old)
    continued_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(continued, continued_optimizer, range(15, 30))
    assert apart(continued, truth) < 30 * EPS


def test_a_checkpoint_has_contiguous_moments_and_names_no_kernel():
    weights, optimizer = hastened(betas=(0.0, 0.99))
    train(weights, optimizer, range(3))
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["fused"] is None
    for state in saved["state"].values():
        assert state["exp_avg"].is_contiguous()
        assert state["exp_avg_sq"].is_contiguous()


def test_loading_a_checkpoint_again_forgets_what_was_owed():
    weights, optimizer = hastened(betas=(0.0, 0.99))
    train(weights, optimizer, range(5))
    saved = copy.deepcopy(optimizer.state_dict())
    values = [w.detach().clone() for w in weights]
    train(weights, optimizer, range(5, 20))
    expected = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
    optimizer.load_state_dict(saved)
    train(weights, optimizer, range(5, 20))
    for weight, value in zip(weights, expected, strict=True):
        assert torch.equal(weight, value)


def test_gradients_are_still_there_after_the_step():
    weights, optimizer = hastened(betas=(0.0, 0.99))
    train(weights, optimizer, range(2))
    row_sparse_gradients(weights, 2)
    gradients = [w.grad.clone() for w in weights]
    optimizer.step()
    for weight, gradient in zip(weights, gradients, strict=True):
        assert torch.equal(weight.grad, gradient)


def test_gradients_that_accumulate_after_zeroing_in_place_give_the_same_weights():
    truth, their_optimizer = plain(betas=(0.0, 0.99))
    ours, our_optimizer = hastened(betas=(0.0, 0.99))
    for weights, optimizer in ((truth, their_optimizer), (ours, our_optimizer)):
        for step in range(6):
            kept = [w.grad for w in weights]
            row_sparse_gradients(weights, step)
            for weight, buffer in zip(weights, kept, strict=True):
                if buffer is not None:
                    weight.grad = buffer.add_(weight.grad)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert apart(ours, truth) < 6 * EPS


@pytest.mark.parametrize(
    "options",
    [
        {"amsgrad": True},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"foreach": True},
        {"lr": torch.tensor(0.01)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_kinds_of_adam_stay_what_they_are(options):
    weights, theirs = make_weights(), make_weights()
    hasten_adam(*weights[:2])
    settings = {"lr": 0.01, "betas": (0.0, 0.99), **options}
    train(weights, Adam(weights, **settings), range(10))
    train(theirs, Adam(theirs, **settings), range(10))
    assert apart(weights, theirs) < 10 * EPS


def test_a_step_with_a_closure_uses_the_gradients_that_the_closure_makes():
    truth, ours = make_weights(), make_weights()
    hasten_adam(*ours[:2])
    for weights, options in ((truth, {"fused": False}), (ours, {})):
        optimizer = Adam(weights, lr=0.01, betas=(0.0, 0.99), **options)
        train(weights, optimizer, range(2))

        def closure(weights=weights):
            row_sparse_gradients(weights, 2)
            return torch.tensor(0.0)

        optimizer.step(closure)
    assert apart(ours, truth) < 3 * EPS


def test_weights_that_nobody_hastened_keep_torch_s_own_kernel():
    weights = make_weights()
    optimizer = Adam(weights, lr=0.01)
    train(weights, optimizer, range(2))
    assert optimizer.param_groups[0]["fused"] is None


def test_a_restrided_weight_takes_its_moments_along():
    truth, their_optimizer = plain(betas=(0.9, 0.99))
    ours, our_optimizer = hastened(betas=(0.9, 0.99))
    for weights, optimizer in ((truth, their_optimizer), (ours, our_optimizer)):
        train(weights, optimizer, range(5))
        weights[1].data = weights[1].data.contiguous()
        train(weights, optimizer, range(5, 10))
    assert apart(ours, truth) < 10 * EPS


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_restrided_weight_takes_the_state_of_any_fused_optimizer_along(kind):
    options = {"lr": 0.01, **({"momentum": 0.9} if kind is SGD else {})}
    truth, ours = make_weights(), make_weights()
    hasten_adam(*ours[:2])
    for weights, fused in ((truth, False), (ours, True)):
        optimizer = kind(weights, fused=fused, **options)
        train(weights, optimizer, range(5))
        weights[1].data = weights[1].data.contiguous()
        train(weights, optimizer, range(5, 10))
    assert apart(ours, truth) < 10 * EPS


def test_a_copy_of_weights_and_optimizer_goes_on_as_the_original():
    weights, optimizer = hastened(betas=(0.0, 0.9))
    train(weights, optimizer, range(6))
    weights_of_copy, copied = copy.deepcopy((weights, optimizer))
    hasten_adam(*weights_of_copy[:2])
    train(weights, optimizer, range(6, 12))
    train(weights_of_copy, copied, range(6, 12))
    for one, other in zip(weights, weights_of_copy, strict=True):
        assert torch.equal(one, other)


def test_a_state_that_was_emptied_can_be_saved():
    weights, optimizer = hastened(betas=(0.0, 0.99))
    train(weights, optimizer, range(3))
    optimizer.state.clear()
    assert optimizer.state_dict()["state"] == {}
