"""The training step: every output and its gradient in every weight, beside float64 autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from problems import (
    IMPLEMENTATIONS,
    L1,
    SHAPES,
    SHARES,
    SPARSE,
    Problem,
    problem,
    relative_error,
)
from torch import Tensor

from gated_plugin.engine import dense, reference
from gated_plugin.engine.counted_features import CountedFeatures
from gated_plugin.engine.features import StepFeatures
from gated_plugin.engine.options import use
from gated_plugin.engine.step import gated_step
from gated_plugin.engine.support import EncoderWeights
from gated_plugin.errors import GatedError

WEIGHTS = ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec")
OUTPUTS = ("reconstruction", "sparsity", "auxiliary", "x_hat", "features")
CENTRED = {"the encoder sees x − b_dec": True, "the encoder sees x": False}

Step = Callable[[Tensor, EncoderWeights, Tensor, Tensor], tuple[Tensor, ...]]


def by(impl: str, centred: bool) -> Step:
    """`gated_step`, with its outputs in the order of OUTPUTS and the features dense."""

    def step(x, weights, W_dec, b_dec):
        made = gated_step(x, weights, W_dec, b_dec, L1, centred=centred, impl=impl)
        return *made.losses, made.x_hat_BN, made.features.to_dense()

    return step


def by_autograd(centred: bool) -> Step:
    def step(x, weights, W_dec, b_dec):
        seen = x - b_dec if centred else x
        losses, x_hat, features = reference.step(seen, x, weights, W_dec, b_dec, L1)
        return *losses, x_hat, features

    return step


def evaluate(
    p: Problem, step: Step, of: Sequence[str] = (*OUTPUTS, "all")
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    """Every output, and the gradients of a random function of each output in `of`, or of all."""
    given = [*p.weights, p.W_dec_MN, p.b_dec_N]
    given = [weight.detach().requires_grad_() for weight in given]
    outputs = dict(zip(OUTPUTS, step(p.x_BN, EncoderWeights(*given[:4]), *given[4:]), strict=True))
    scalars, gradients = {}, {}
    for name, output in outputs.items():
        torch.manual_seed(1)
        scalars[name] = (output * torch.randn(output.shape).to(output.dtype)).sum()
    scalars["all"] = torch.stack(list(scalars.values())).sum()
    for name, scalar in [(name, scalars[name]) for name in of]:
        found = torch.autograd.grad(scalar, given, retain_graph=True, allow_unused=True)
        gradients |= {(name, w): g for w, g in zip(WEIGHTS, found, strict=True)}
    return {name: output.detach() for name, output in outputs.items()}, gradients


@cache
def truth(shape: tuple[int, int, int], share: float, centred: bool):
    p = problem(*shape, share, centred=centred).to(torch.float64)
    return evaluate(p, by_autograd(centred))


def assert_is(found, true, tolerance: float) -> None:
    for results, expected in zip(found, true, strict=True):
        errors = {key: relative_error(results[key], expected[key]) for key in expected}
        assert {key: e for key, e in errors.items() if not e < tolerance} == {}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("centred", CENTRED.values(), ids=CENTRED.keys())
class TestBesideFloat64:
    @pytest.mark.parametrize("impl", IMPLEMENTATIONS)
    def test_every_output_and_gradient_is_the_truth(self, shape, share, centred, impl):
        p = problem(*shape, share, centred=centred)
        assert_is(evaluate(p, by(impl, centred)), truth(shape, share, centred), 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("impl", ["torch", "dense"])
def test_float64_is_the_truth(shape, share, impl):
    p = problem(*shape, share, centred=True).to(torch.float64)
    assert_is(evaluate(p, by(impl, True)), truth(shape, share, True), 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
def test_screening_changes_no_bit(shape, share):
    p, found = problem(*shape, share, centred=True), []
    for screening in ("always", "never"):
        with use(screening=screening):
            found.append(evaluate(p, by("numba", True)))
    for always, never in zip(*found, strict=True):
        assert {key for key in always if not torch.equal(always[key], never[key])} == set()


@pytest.mark.parametrize("shape", [(1, 7, 4100), (33, 252, 507), (252, 123, 123)], ids=str)
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("centred", CENTRED.values(), ids=CENTRED.keys())
class TestTheDenseStepTileByTile:
    """Of whose tiles the last one is narrower."""

    @pytest.fixture(autouse=True)
    def in_tiles(self, monkeypatch, shape):
        B, _, M = shape
        monkeypatch.setattr(dense, "WHOLE_BYTES", 0)
        monkeypatch.setattr(dense, "TILE_BYTES", M // 5 * B * 4)

    def test_every_output_and_gradient_is_the_truth(self, shape, share, centred):
        p = problem(*shape, share, centred=centred)
        assert_is(evaluate(p, by("dense", centred)), truth(shape, share, centred), 1e-5)


def test_a_dense_step_goes_by_tiles_only_where_its_features_are_large(monkeypatch):
    p = problem(33, 252, 507, 0.3)
    monkeypatch.setattr(dense, "TILE_BYTES", 33 * 100 * 4)
    for whole, kind in ((33 * 507 * 4, Tensor), (33 * 507 * 4 - 1, CountedFeatures)):
        monkeypatch.setattr(dense, "WHOLE_BYTES", whole)
        step = gated_step(p.x_BN, p.weights, p.W_dec_MN, p.b_dec_N, L1, impl="dense")
        assert type(step.features) is kind


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_choice_says_what_served(impl):
    p = problem(33, 252, 507, 0.03)
    step = gated_step(p.x_BN, p.weights, p.W_dec_MN, p.b_dec_N, L1, impl=impl)
    assert step.choice.impl == impl
    assert isinstance(step.features, StepFeatures) == (impl in SPARSE)


@pytest.mark.parametrize("impl", ["numba", "torch", "dense"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 3.4e38])
@pytest.mark.parametrize("name", ("x", *WEIGHTS))
def test_what_is_not_finite_makes_the_losses_so(impl, poison, name):
    p = problem(33, 252, 507, 0.03)
    feature = int(p.open_gates().count_nonzero(0).argmax())
    given = dict(zip(("x", *WEIGHTS), (p.x_BN, *p.weights, p.W_dec_MN, p.b_dec_N), strict=True))
    places = {"x": (3, 7), "W_enc": (7, feature), "W_dec": (feature, 7), "b_dec": 7}
    given[name] = given[name].clone()
    given[name][places.get(name, feature)] = poison
    x, *weights, W_dec, b_dec = given.values()
    found, expected = (
        by(who, True)(x, EncoderWeights(*weights), W_dec, b_dec)[:3] for who in (impl, "reference")
    )
    assert [loss.isfinite().item() for loss in found] == [e.isfinite().item() for e in expected]


@pytest.mark.parametrize("impl", ["numba", "torch", "dense"])
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("B", [1, 33])
def test_the_operands_are_left_as_they_were(impl, share, B):
    p = problem(B, 252, 507, share, centred=True)
    operands = (p.x_BN, *p.weights, p.W_dec_MN, p.b_dec_N)
    before = [operand.clone() for operand in operands]
    evaluate(p, by(impl, True))
    assert [torch.equal(o, b) for o, b in zip(operands, before, strict=True)] == [True] * 7


@pytest.mark.parametrize("impl", SPARSE)
def test_a_second_derivative_is_refused(impl):
    p = problem(33, 252, 507, 0.03)
    W_dec = p.W_dec_MN.clone().requires_grad_()
    step = gated_step(p.x_BN, p.weights, W_dec, p.b_dec_N, L1, impl=impl)
    with pytest.raises(GatedError, match="no second derivatives"):
        torch.autograd.grad(step.losses.reconstruction, W_dec, create_graph=True)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_rows_have_no_loss_to_speak_of(impl):
    p = problem(3, 7, 123, 0.3)
    made = gated_step(p.x_BN[:0], p.weights, p.W_dec_MN, p.b_dec_N, L1, impl=impl)
    assert all(loss.isnan() for loss in made.losses)
    assert made.x_hat_BN.shape == (0, 7)
