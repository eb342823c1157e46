"""Reconstructions and their gradients, from every implementation, beside float64."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from problems import IMPLEMENTATIONS, SHAPES, SPARSE, relative_error
from torch import Tensor

from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.decode import decode
from gated_plugin.engine.densify import densify, sparsify
from gated_plugin.engine.options import use
from gated_plugin.errors import GatedError

SHARES = [0.0, 0.02, 0.4, 1.0]
SOURCES = ("values", "W_dec", "b_dec")


@cache
def operands(shape: tuple[int, int, int], share: float) -> dict[str, Tensor]:
    """Dense features [B, M] of which every third row is empty, and a decoder."""
    torch.manual_seed(0)
    B, N, M = shape
    features = torch.rand(B, M).add_(0.1) * (torch.rand(B, M) < share)
    features[: B - 1 : 3] = 0
    return {"features": features, "W_dec": torch.randn(M, N), "b_dec": torch.randn(N)}


def gradient(given: dict[str, Tensor], name: str, impl: str) -> Tensor:
    """Of a random function of the reconstructions in one source alone."""
    codes = SparseCodes.from_dense(given["features"])
    sources = {"values": codes.values, "W_dec": given["W_dec"], "b_dec": given["b_dec"]}
    sources = {key: value.detach().clone() for key, value in sources.items()}
    sources[name].requires_grad_()
    out = decode(codes.with_values(sources["values"]), *list(sources.values())[1:], impl=impl)
    torch.manual_seed(1)
    cotangent = torch.randn(out.shape).to(out.dtype)
    return torch.autograd.grad((out * cotangent).sum(), sources[name])[0]


@cache
def truth(shape: tuple[int, int, int], share: float) -> tuple[Tensor, dict[str, Tensor]]:
    exact = {key: value.double() for key, value in operands(shape, share).items()}
    gradients = {name: gradient(exact, name, "reference") for name in SOURCES}
    return exact["features"] @ exact["W_dec"] + exact["b_dec"], gradients


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", SHARES)
class TestBesideFloat64:
    @pytest.mark.parametrize("impl", IMPLEMENTATIONS)
    def test_reconstructions_are_the_truth(self, shape, share, impl):
        before, (expected, _) = operands(shape, share), truth(shape, share)
        given = {key: value.clone() for key, value in before.items()}
        codes = SparseCodes.from_dense(given["features"])
        found = decode(codes, given["W_dec"], given["b_dec"], impl=impl)
        assert relative_error(found, expected) < 1e-5
        for name, value in before.items():
            assert torch.equal(given[name], value), f"{name} was written to"

    @pytest.mark.parametrize("impl", IMPLEMENTATIONS)
    def test_every_gradient_alone_is_the_truth(self, shape, share, impl):
        given, (_, gradients) = operands(shape, share), truth(shape, share)
        for name in SOURCES:
            assert relative_error(gradient(given, name, impl), gradients[name]) < 1e-5, name

    def test_plain_torch_in_float64_is_the_truth(self, shape, share):
        given, (expected, gradients) = operands(shape, share), truth(shape, share)
        exact = {key: value.double() for key, value in given.items()}
        codes = SparseCodes.from_dense(exact["features"])
        found = decode(codes, exact["W_dec"], exact["b_dec"], impl="torch")
        assert relative_error(found, expected) < 1e-12
        for name in SOURCES:
            assert relative_error(gradient(exact, name, "torch"), gradients[name]) < 1e-12, name


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("leading", [(), (2, 3), (1, 2, 1, 3), (0,), (2, 0)])
def test_leading_dimensions_are_kept(impl, leading):
    torch.manual_seed(0)
    features = torch.rand(*leading, 123) * (torch.rand(*leading, 123) < 0.1)
    W_dec, b_dec = torch.randn(123, 7), torch.randn(7)
    out = decode(SparseCodes.from_dense(features), W_dec, b_dec, impl=impl)
    torch.testing.assert_close(out, features @ W_dec + b_dec)


@pytest.mark.parametrize("impl", [*IMPLEMENTATIONS, None])
@pytest.mark.parametrize("M", [50, 300])
def test_codes_of_another_width_than_the_decoders_are_refused(impl, M):
    features = torch.zeros(40, M)
    features[3, M - 1] = 1.0
    with pytest.raises((RuntimeError, GatedError), match="100"):
        decode(SparseCodes.from_dense(features), torch.randn(100, 7), torch.zeros(7), impl=impl)


@pytest.mark.parametrize("impl", ["numba", "torch"])
def test_how_the_operands_lie_in_memory_does_not_matter(impl):
    given = operands((33, 252, 507), 0.02)
    codes = SparseCodes.from_dense(given["features"])
    expected = decode(codes, given["W_dec"], given["b_dec"], impl=impl)
    column_major = given["W_dec"].T.contiguous().T
    torch.testing.assert_close(decode(codes, column_major, given["b_dec"], impl=impl), expected)
    strided = given["b_dec"].repeat_interleave(2)[::2]
    torch.testing.assert_close(decode(codes, given["W_dec"], strided, impl=impl), expected)


@pytest.mark.parametrize("impl", ["numba", "torch"])
def test_a_gradient_that_is_one_number_expanded_is_read_as_such(impl):
    given = operands((33, 252, 507), 0.02)
    W_dec = given["W_dec"].clone().requires_grad_()
    codes = SparseCodes.from_dense(given["features"])
    decode(codes, W_dec, given["b_dec"], impl=impl).sum().backward()
    torch.testing.assert_close(W_dec.grad, given["features"].sum(0)[:, None].expand(-1, 252))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", SHARES)
def test_densifying_and_its_gradient_are_those_of_index_put(shape, share):
    codes = SparseCodes.from_dense(operands(shape, share)["features"])
    values = codes.values.clone().requires_grad_()
    dense, expected = (make(codes.with_values(values)) for make in (densify, SparseCodes.to_dense))
    assert torch.equal(dense, expected)
    cotangent = torch.randn_like(dense)
    found, true = (torch.autograd.grad((d * cotangent).sum(), values)[0] for d in (dense, expected))
    assert torch.equal(found, true)


@pytest.mark.parametrize("leading", [(40,), (4, 10), ()])
def test_features_are_made_sparse_where_few_of_them_fire(leading):
    features = torch.zeros(*leading, 123)
    features[..., 7] = 1.0
    codes = sparsify(features, torch.randn(123, 7))
    assert codes is not None
    assert torch.equal(codes.to_dense(), features)


@pytest.mark.parametrize(
    "features",
    [torch.ones(40, 123), torch.zeros(40, 123).double()],
    ids=["dense features", "float64"],
)
def test_features_stay_dense_where_that_is_better(features):
    assert sparsify(features, torch.randn(123, 7, dtype=features.dtype)) is None


def test_features_stay_dense_where_dense_is_asked_for():
    with use(impl="dense"):
        assert sparsify(torch.zeros(40, 123), torch.randn(123, 7)) is None


@pytest.mark.parametrize(
    "fields", [{"features": [1, 4]}, {"offsets": [0, 2, 1, 2]}, {"offsets": [0, 9]}], ids=str
)
def test_codes_that_name_what_is_not_there_are_refused(fields):
    made = {"offsets": [0, 1, 2], "features": [1, 3], **fields}
    tensors = {name: torch.tensor(value) for name, value in made.items()}
    codes = SparseCodes(**tensors, values=torch.ones(2), shape=torch.Size((2, 4)))
    with pytest.raises(GatedError, match="malformed"):
        decode(codes, torch.ones(4, 3), torch.zeros(3))


@pytest.mark.parametrize("impl", SPARSE)
def test_a_decoder_of_any_strides_has_its_gradient(impl):
    codes, W = SparseCodes.from_dense(torch.eye(5)), torch.randn(7, 5).T.requires_grad_()
    decode(codes, W, torch.zeros(7), impl=impl).sum().backward()
    assert torch.equal(W.grad, torch.ones(5, 7))
