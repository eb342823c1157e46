"""Features and their gradients, from every implementation, beside float64."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from problems import IMPLEMENTATIONS, SHAPES, SHARES, SPARSE, Problem, problem, relative_error
from torch import Tensor

from gated_plugin.engine import reference
from gated_plugin.engine.encode import encode, encode_dense
from gated_plugin.engine.options import use
from gated_plugin.engine.support import EncoderWeights

SOURCES = ("x", "W_enc", "b_gate", "b_mag", "r_mag")


def sources(p: Problem) -> dict[str, Tensor]:
    return dict(zip(SOURCES, (p.x_BN, *p.weights), strict=True))


def by_codes(impl):
    return lambda x, weights: encode(x, weights, impl=impl)[0].to_dense()


def gradient(p: Problem, name: str, operation) -> Tensor | None:
    """Of a random function of the features in one source alone."""
    given = {key: value.detach() for key, value in sources(p).items()}
    given[name].requires_grad_()
    x, *weights = given.values()
    features = operation(x, EncoderWeights(*weights))
    if not features.requires_grad:
        return None
    torch.manual_seed(1)
    cotangent = torch.randn(features.shape).to(features.dtype)
    return torch.autograd.grad((features * cotangent).sum(), given[name], allow_unused=True)[0]


@cache
def truth(key: tuple) -> tuple[Tensor, dict[str, Tensor | None]]:
    p = problem(*key).to(torch.float64)
    gradients = {name: gradient(p, name, reference.encode) for name in SOURCES}
    return reference.encode(p.x_BN, p.weights), gradients


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
class TestBesideFloat64:
    @pytest.mark.parametrize("impl", IMPLEMENTATIONS)
    def test_features_are_the_truth(self, shape, share, impl):
        p, (expected, _) = problem(*shape, share), truth((*shape, share))
        codes, choice = encode(p.x_BN, p.weights, impl=impl)
        found = codes.to_dense()
        assert torch.equal(found > 0, expected > 0)
        assert relative_error(found, expected) < 1e-6
        if choice.impl in SPARSE:
            assert choice.impl == impl
            rows, features = p.open_gates().nonzero(as_tuple=True)
            assert torch.equal(codes.rows, rows)
            assert torch.equal(codes.features, features)

    @pytest.mark.parametrize("impl", IMPLEMENTATIONS)
    def test_every_gradient_alone_is_the_truth(self, shape, share, impl):
        p, (_, gradients) = problem(*shape, share), truth((*shape, share))
        for name in SOURCES:
            found = gradient(p, name, by_codes(impl))
            assert relative_error(found, gradients[name]) < 1e-5, name

    def test_plain_torch_in_float64_is_the_truth(self, shape, share):
        p, (expected, gradients) = problem(*shape, share), truth((*shape, share))
        p = p.to(torch.float64)
        assert relative_error(by_codes("torch")(p.x_BN, p.weights), expected) < 1e-12
        for name in SOURCES:
            found = gradient(p, name, by_codes("torch"))
            assert relative_error(found, gradients[name]) < 1e-12, name

    @pytest.mark.parametrize("impl", IMPLEMENTATIONS)
    def test_dense_features_are_the_sparse_ones(self, shape, share, impl):
        p, (_, gradients) = problem(*shape, share), truth((*shape, share))
        dense, choice = encode_dense(p.x_BN, p.weights, impl=impl)
        assert torch.equal(dense, by_codes(impl)(p.x_BN, p.weights))
        assert choice == encode(p.x_BN, p.weights, impl=impl)[1]
        found = gradient(p, "W_enc", lambda *given: encode_dense(*given, impl=impl)[0])
        assert relative_error(found, gradients["W_enc"]) < 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())
def test_screening_changes_no_bit(shape, share):
    p = problem(*shape, share)
    found = {}
    for screening in ("always", "never"):
        with use(screening=screening):
            found[screening], choice = encode(p.x_BN, p.weights, impl="numba")
        assert choice.screened == (screening == "always")
    for name in ("offsets", "features", "values"):
        always, never = (getattr(codes, name) for codes in found.values())
        assert torch.equal(always, never), name


@pytest.mark.parametrize("impl", SPARSE)
@pytest.mark.parametrize("screening", ["always", "never"])
def test_no_rows_have_no_features(impl, screening):
    p = problem(3, 7, 123, 0.3)
    with use(screening=screening):
        codes, _ = encode(p.x_BN[:0], p.weights, impl=impl)
    assert codes.shape == (0, 123)
    assert len(codes.features) == 0


@pytest.mark.parametrize("impl", SPARSE)
def test_how_the_operands_lie_in_memory_does_not_matter(impl):
    p = problem(33, 252, 507, 0.03)
    expected = by_codes(impl)(p.x_BN, p.weights)
    row_major = p.weights._replace(W_enc_NM=p.weights.W_enc_NM.contiguous())
    assert torch.equal(by_codes(impl)(p.x_BN, row_major), expected)
    assert torch.equal(by_codes(impl)(p.x_BN.T.contiguous().T, p.weights), expected)
    wide = torch.cat([p.x_BN, p.x_BN], dim=1)
    assert torch.equal(by_codes(impl)(wide[:, :252], p.weights), expected)


def test_an_open_gate_with_a_negative_magnitude_is_kept_with_value_0():
    p = problem(33, 252, 507, 0.3)
    codes, _ = encode(p.x_BN, p.weights, impl="numba")
    assert (codes.values == 0).any()
    assert len(codes.features) == p.open_gates().sum()


POISONS = [torch.nan, torch.inf, -torch.inf, 3.4e38]


@pytest.mark.parametrize("impl", SPARSE)
@pytest.mark.parametrize("screening", ["always", "never"])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("name", SOURCES)
def test_what_is_not_finite_reaches_the_features_as_in_the_dense_product(
    impl, screening, poison, name
):
    p = problem(33, 252, 507, 0.03)
    feature = int(reference.encode(p.x_BN, p.weights).count_nonzero(0).argmax())
    given = {key: value.clone() for key, value in sources(p).items()}
    given[name][{"x": (3, 7), "W_enc": (7, feature)}.get(name, feature)] = poison
    x, *weights = given.values()
    expected = reference.encode(x, EncoderWeights(*weights))
    with use(screening=screening):
        found = by_codes(impl)(x, EncoderWeights(*weights))
    torch.testing.assert_close(found, expected, equal_nan=True)
