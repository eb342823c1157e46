"""The features of a step: a dense tensor to whoever asks, counted without making them dense."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from problems import L1, problem, relative_error
from torch import Tensor

from gated_plugin.engine.features import StepFeatures
from gated_plugin.engine.step import gated_step


def features(impl: str = "numba") -> tuple[Tensor, Tensor]:
    """Of a step, and the parameter that they are differentiated in."""
    p = problem(33, 252, 507, 0.03)
    r_mag = p.weights.r_mag_M.clone().requires_grad_()
    weights = p.weights._replace(r_mag_M=r_mag)
    return gated_step(p.x_BN, weights, p.W_dec_MN, p.b_dec_N, L1, impl=impl).features, r_mag


COUNTS = {
    "sum over rows": lambda f: f.sum(0),
    "sum over features": lambda f: f.sum(dim=-1),
    "sum": lambda f: f.sum(),
    "firing": lambda f: f.bool().float().sum(0),
    "firing in all": lambda f: f.detach().bool().float().sum(),
}
DENSE = {
    "comparison": lambda f: (f > 0).float().sum(-1).mean(),
    "sum that keeps its dimension": lambda f: f.sum(0, keepdim=True),
    "sum in float64": lambda f: f.sum(0, dtype=torch.float64),
    "sum over both": lambda f: f.sum((0, 1)),
    "firing, counted exactly": lambda f: f.bool().sum(0),
    "cast": lambda f: f.to(torch.float64),
    "row": lambda f: f[3],
    "rows": lambda f: torch.stack(list(f)),
    "transposed product": lambda f: f.T @ f,
    "transposed": lambda f: f.mT + 0,
    "data": lambda f: f.data + 0,
    "product": lambda f: f @ f.detach().mT,
    "flattened": lambda f: f.flatten(),
    "joined": lambda f: torch.cat([f, f]),
    "where": lambda f: torch.where(f > 0, f, 1.0),
    "largest": lambda f: f.float().max(0).values,
    "places": lambda f: f.nonzero(),
    "array": lambda f: torch.from_numpy(f.detach().numpy()),
    "copy": lambda f: copy.deepcopy(f.detach()) + 0,
    "pickle": lambda f: pickle.loads(pickle.dumps(f.detach())) + 0,
    "written to": lambda f: f.detach().mul_(2),
}


@pytest.mark.parametrize("operation", (COUNTS | DENSE).values(), ids=(COUNTS | DENSE).keys())
def test_operations_give_what_they_give_on_a_dense_tensor(operation):
    (found, r_mag), (dense, other_r_mag) = features(), features("reference")
    found, expected = operation(found), operation(dense)
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
def test_counting_does_not_make_them_dense(operation):
    found, _ = features()
    assert isinstance(found, StepFeatures)
    operation(found)
    assert found.dense is None


@pytest.mark.parametrize(
    "of",
    [
        lambda f: f.shape,
        len,
        Tensor.dim,
        Tensor.numel,
        lambda f: f.dtype,
        lambda f: f.layout,
        lambda f: f.is_sparse,
        lambda f: f.requires_grad,
        lambda f: f.detach().requires_grad,
    ],
)
def test_they_describe_themselves_as_a_dense_tensor_does(of):
    (found, _), (dense, _) = features(), features("reference")
    assert of(found) == of(dense)
    assert found.dense is None


def test_what_is_written_to_them_stays():
    found = features()[0].detach()
    found[3] = 7.0
    assert (found[3] == 7.0).all()
    assert found.sum(1)[3] == 7.0 * found.shape[1]
