"""The features of a dense step by tiles: counted as they go by, and computed when asked for."""

from __future__ import annotations

import pytest
import torch
from problems import L1, problem, relative_error
from test_features import COUNTS, DENSE
from torch import Tensor

from gated_plugin.engine import dense
from gated_plugin.engine.counted_features import CountedFeatures
from gated_plugin.engine.step import gated_step
from gated_plugin.errors import GatedError


@pytest.fixture(autouse=True)
def in_tiles(monkeypatch):
    """Of 50 features."""
    monkeypatch.setattr(dense, "WHOLE_BYTES", 0)
    monkeypatch.setattr(dense, "TILE_BYTES", 33 * 50 * 4)


def features(impl: str = "dense") -> tuple[Tensor, Tensor]:
    """Of a step, and the parameter that they are differentiated in."""
    p = problem(33, 252, 507, 0.3)
    r_mag = p.weights.r_mag_M.clone().requires_grad_()
    weights = p.weights._replace(r_mag_M=r_mag)
    return gated_step(p.x_BN, weights, p.W_dec_MN, p.b_dec_N, L1, impl=impl).features, r_mag


@pytest.mark.parametrize("operation", (COUNTS | DENSE).values(), ids=(COUNTS | DENSE).keys())
def test_operations_give_what_they_give_on_a_dense_tensor(operation):
    (found, r_mag), (plain, other_r_mag) = features(), features("reference")
    found, expected = operation(found), operation(plain)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert found.requires_grad == expected.requires_grad
    if found.requires_grad:
        ours, theirs = (
            torch.autograd.grad(out.double().square().sum(), parameter)[0]
            for out, parameter in ((found, r_mag), (expected, other_r_mag))
        )
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("operation", COUNTS.values(), ids=COUNTS.keys())
@torch.no_grad()
def test_counting_gives_what_it_gives_on_a_dense_tensor_and_makes_none(operation):
    (found, _), (plain, _) = features(), features("reference")
    assert isinstance(found, CountedFeatures)
    torch.testing.assert_close(operation(found), operation(plain), rtol=1e-5, atol=1e-5)
    assert found.dense is None


def test_who_asks_first_without_a_gradient_leaves_it_to_the_next():
    found, r_mag = features()
    with torch.no_grad():
        assert not (found > 0).requires_grad
    torch.autograd.grad(found.square().sum(), r_mag)


def test_they_are_refused_once_the_weights_have_changed():
    found, r_mag = features()
    with torch.no_grad():
        r_mag.add_(1)
        assert found.bool().float().sum(0).shape == (507,)
    with pytest.raises(GatedError, match="read them before the optimizer's step"):
        found.square()
