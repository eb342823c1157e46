"""The Triton kernels behind the engine's doors, beside float64.

On a machine without a GPU Triton's interpreter runs them, a millisecond a program: the shapes are
small, and so are the blocks, so that every loop runs more than once (`engine/gpu.py`).
"""

from __future__ import annotations

import pytest
import test_decode
import torch
from adversaries import adversaries
from problems import L1, SHARES, Problem, problem, relative_error
from test_bound import assert_certain_gates_are_found, worst_share
from test_step import WEIGHTS, assert_is, by, by_autograd, evaluate
from torch import Tensor

from gated_plugin.engine import dense, gpu
from gated_plugin.engine.bound import tensor_core_bound
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.encode import encode
from gated_plugin.engine.options import use
from gated_plugin.engine.step import gated_step
from gated_plugin.engine.support import EncoderWeights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1, 2), (1, 7, 123), (3, 123, 65), (17, 1, 40), (33, 70, 131)]
SCREENING = pytest.mark.parametrize("screening", ["always", "never"])
OF_SHAPES = pytest.mark.parametrize("shape", SHAPES, ids=str)
OF_SHARES = pytest.mark.parametrize("share", SHARES.values(), ids=SHARES.keys())


def of(shape: tuple[int, int, int], share: float, **kind: bool) -> Problem:
    return problem(*shape, share, **kind).to(DEVICE)


@OF_SHAPES
@OF_SHARES
class TestEncode:
    @SCREENING
    def test_the_open_gates_are_the_truth(self, shape, share, screening):
        p = of(shape, share)
        with use(screening=screening):
            codes, choice = encode(p.x_BN, p.weights, impl="triton")
        rows, features = p.open_gates().nonzero(as_tuple=True)
        assert torch.equal(codes.rows, rows)
        assert torch.equal(codes.features, features)
        assert (choice.impl, choice.screened) == ("triton", screening == "always")

    def test_features_and_their_gradients_are_the_truth(self, shape, share):
        p, exact = of(shape, share), of(shape, share).to(torch.float64)

        def gradients(p: Problem, impl: str) -> list[Tensor]:
            given = [t.detach().requires_grad_() for t in (p.x_BN, *p.weights)]
            features = encode(given[0], EncoderWeights(*given[1:]), impl=impl)[0].to_dense()
            torch.manual_seed(1)
            cotangent = torch.randn(features.shape).to(features)
            found = torch.autograd.grad((features * cotangent).sum(), given, allow_unused=True)
            return [features.detach(), *found]

        for found, true in zip(gradients(p, "triton"), gradients(exact, "reference"), strict=True):
            assert relative_error(found, true) < 1e-5


@OF_SHAPES
@OF_SHARES
@pytest.mark.parametrize("centred", [True, False])
def test_every_output_of_a_step_and_the_gradient_of_all_is_the_truth(shape, share, centred):
    p, alone = of(shape, share, centred=centred), ("all",)
    true = evaluate(p.to(torch.float64), by_autograd(centred), alone)
    assert_is(evaluate(p, by("triton", centred), alone), true, 1e-5)


def test_the_gradient_of_each_output_alone_is_the_truth():
    p = of((3, 123, 65), 0.3, centred=True)
    true = evaluate(p.to(torch.float64), by_autograd(True))
    assert_is(evaluate(p, by("triton", True)), true, 1e-5)


@OF_SHAPES
@pytest.mark.parametrize("share", test_decode.SHARES)
def test_reconstructions_and_their_gradients_are_the_truth(shape, share):
    given = {name: value.to(DEVICE) for name, value in test_decode.operands(shape, share).items()}
    expected, gradients = test_decode.truth(shape, share)
    codes = SparseCodes.from_dense(given["features"])
    found = gpu.decode(codes, given["W_dec"], given["b_dec"])
    assert relative_error(found, expected.to(DEVICE)) < 1e-5
    for name, gradient in gradients.items():
        found = test_decode.gradient(given, name, "triton")
        assert relative_error(found, gradient.to(DEVICE)) < 1e-5, name


class TestHalfWeights:
    """W in bfloat16 beside float32 vectors: sums are those of float32, results are rounded once."""

    @OF_SHAPES
    @OF_SHARES
    def test_losses_and_open_gates_are_exact_and_gradients_rounded(self, shape, share):
        exact = of(shape, share, rounded=True)
        p = exact.with_half_weights()
        given = [t.detach().requires_grad_() for t in (*p.weights, p.W_dec_MN, p.b_dec_N)]
        made = gated_step(
            p.x_BN, EncoderWeights(*given[:4]), *given[4:], L1, centred=False, impl="triton"
        )
        sum(made.losses).backward()
        true = exact.to(torch.float64)
        givens = [t.detach().requires_grad_() for t in (*true.weights, true.W_dec_MN, true.b_dec_N)]
        *losses, _, features = by_autograd(centred=False)(
            true.x_BN, EncoderWeights(*givens[:4]), *givens[4:]
        )
        sum(losses).backward()
        expected = pytest.approx([loss.item() for loss in losses], rel=1e-5)
        assert [loss.item() for loss in made.losses] == expected
        assert torch.equal(made.features.to_dense() > 0, features > 0)
        for name, found, expected in zip(WEIGHTS, given, givens, strict=True):
            # Triton's interpreter cuts where a GPU rounds.
            tolerance = 1e-5 if found.dtype == torch.float32 else 2**-7.5
            assert relative_error(found.grad, expected.grad) < tolerance, name

    @pytest.mark.parametrize("tile_bytes", [1 << 28, 400])
    def test_dense_products_are_rounded_and_sums_are_not(self, monkeypatch, tile_bytes):
        monkeypatch.setattr(dense, "WHOLE_BYTES", tile_bytes)
        monkeypatch.setattr(dense, "TILE_BYTES", tile_bytes)
        exact = of((33, 70, 131), 0.3, rounded=True)
        p, found = exact.with_half_weights(), []
        for problem_, impl in ((p, "dense"), (exact.to(torch.float64), "reference")):
            given = (*problem_.weights, problem_.W_dec_MN, problem_.b_dec_N)
            given = [t.detach().requires_grad_() for t in given]
            weights = EncoderWeights(*given[:4])
            made = gated_step(problem_.x_BN, weights, *given[4:], L1, centred=True, impl=impl)
            sum(made.losses).backward()
            assert made.choice.impl == impl
            found.append([*made.losses, made.x_hat_BN, *(t.grad for t in given)])
            assert [t.grad.dtype for t in given] == [t.dtype for t in given]
        for half, true in zip(*found, strict=True):
            assert relative_error(half, true) < 0.02

    def test_features_have_the_type_of_the_activations(self):
        p = of((33, 70, 131), 0.03, rounded=True).with_half_weights()
        codes, _ = encode(p.x_BN, p.weights, impl="triton")
        assert codes.values.dtype == torch.bfloat16
        assert gpu.decode(codes, p.W_dec_MN, p.b_dec_N).dtype == torch.bfloat16


@pytest.mark.parametrize("make", adversaries.values(), ids=adversaries.keys())
class TestGatesAtTheirThreshold:
    @pytest.mark.parametrize("screened", [True, False])
    def test_every_certain_gate_is_found(self, make, screened):
        assert_certain_gates_are_found(make, gpu, screened=screened, sizes=[(33, 64, 131)])

    def test_a_product_of_tensor_cores_is_within_its_bound(self, make):
        x, w = make((48, 64, 131))
        near = x.bfloat16().float(), w.bfloat16().float()
        of_x = x.norm(dim=1), (x - near[0]).norm(dim=1)
        of_w = w.norm(dim=1), (w - near[1]).norm(dim=1)
        bound = tensor_core_bound(64, *of_x, *of_w)
        assert worst_share(bound, added_by_tensor_cores(*near), x, w) <= 1


def added_by_tensor_cores(x_BN: Tensor, w_MN: Tensor) -> Tensor:
    """x wᵀ as the worst of them add: 16 products and the sum so far, cut to 24 bits of the largest."""
    total = torch.zeros(len(x_BN), len(w_MN), dtype=torch.float64)
    for x, w in zip(x_BN.double().split(16, 1), w_MN.double().split(16, 1), strict=True):
        terms = torch.cat([total[..., None], x[:, None] * w[None]], -1)
        largest = terms.abs().amax(-1, keepdim=True).clamp_min(2.0**-126)
        unit = torch.exp2(largest.log2().floor() - 23)
        total = (torch.trunc(terms / unit) * unit).sum(-1)
    return total.float()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 3.4e38, 1e18])
@pytest.mark.parametrize("poisoned", ["x", "W_enc"])
@SCREENING
def test_nothing_is_found_among_what_cannot_be_bounded(poison, poisoned, screening):
    p = of((3, 123, 65), 0.3)
    x, W = p.x_BN.clone(), p.weights.W_enc_NM.clone()
    (x if poisoned == "x" else W)[-1, 2] = poison
    weights = p.weights._replace(W_enc_NM=W)
    assert gpu.find_support(x, weights, screening == "always") is None


@SCREENING
def test_no_rows_have_no_features(screening):
    p = of((3, 7, 123), 0.3)
    with use(screening=screening):
        codes, _ = encode(p.x_BN[:0], p.weights, impl="triton")
    assert codes.shape == (0, 123)
    assert len(codes.features) == 0


def test_unchecked_screening_misses_gates_that_the_rounded_product_closes():
    """x·w = 2⁻⁹, but 1 + 2⁻⁹ rounds to 1."""
    x, w, zero = torch.tensor([[1.0, 1 + 2.0**-9]]), torch.tensor([[-1.0, 1.0]]), torch.zeros(1)
    weights = EncoderWeights(*(t.to(DEVICE) for t in (w.T, zero, zero, zero)))
    found = {}
    for screening in ("always", "unchecked"):
        with use(screening=screening):
            found[screening] = encode(x.to(DEVICE), weights, impl="triton")[0].values.tolist()
    assert found == {"always": [2.0**-9], "unchecked": []}


def test_unchecked_screening_finds_the_rest_with_exact_values():
    p = of((33, 70, 131), 0.3)
    with use(screening="unchecked"):
        part = encode(p.x_BN, p.weights, impl="triton")[0].to_dense()
    whole = encode(p.x_BN, p.weights, impl="triton")[0].to_dense()
    missed = (whole > 0) & (part == 0)
    assert missed.sum() < 0.02 * whole.count_nonzero()
    assert torch.equal(part, whole.masked_fill(missed, 0))


def test_operands_are_rounded_as_torch_rounds_and_their_norms_are_true():
    operand = torch.cat([torch.randn(33, 70), adversaries["arbitrary_bits"]((33, 70, 1))[0]])
    found, near = gpu._operand(operand.to(DEVICE), True), operand.bfloat16()
    assert torch.equal(found.searched.cpu(), near)
    norm, residual = operand.double().norm(dim=1), (operand - near.double()).norm(dim=1)
    assert relative_error(found.norm.cpu() / norm, torch.ones(66)) < 1e-5
    assert ((found.residual.cpu() - residual).abs() <= 1e-5 * residual + 1e-20).all()


def test_how_the_operands_lie_in_memory_does_not_matter():
    p = of((33, 70, 131), 0.3)
    wide = torch.cat([p.W_dec_MN, p.W_dec_MN], dim=1)
    moved = Problem(
        p.x_BN.T.contiguous().T,
        p.weights._replace(W_enc_NM=p.weights.W_enc_NM.contiguous()),
        wide[:, :70],
        p.b_dec_N,
        p.centred,
    )
    found, expected = (evaluate(q, by("triton", False), ("all",)) for q in (moved, p))
    for one, other in zip(found, expected, strict=True):
        assert {key for key in one if not torch.equal(one[key], other[key])} == set()
    codes = SparseCodes.from_dense(torch.rand(33, 131, device=DEVICE))
    strided = codes.values.repeat_interleave(2)[::2]
    left = p.x_BN.T.contiguous().T
    for operation in (
        lambda codes, x: gpu.decode(codes, p.W_dec_MN, p.b_dec_N),
        lambda codes, x: gpu.sample(codes, x, p.W_dec_MN),
        lambda codes, x: gpu.total_by_feature(gpu.sort_by_feature(codes), codes.values),
    ):
        assert torch.equal(operation(codes.with_values(strided), left), operation(codes, p.x_BN))


def test_a_step_leaves_its_operands_as_they_were():
    p = of((33, 70, 131), 0.3, centred=True)
    operands = (p.x_BN, *p.weights, p.W_dec_MN, p.b_dec_N)
    before = [operand.clone() for operand in operands]
    evaluate(p, by("triton", True), ("all",))
    assert all(torch.equal(o, b) for o, b in zip(operands, before, strict=True))


def test_two_steps_agree_bit_for_bit():
    p = of((33, 70, 131), 0.3)
    first, second = (evaluate(p, by("triton", False), ("all",)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert {key for key in one if not torch.equal(one[key], other[key])} == set()
