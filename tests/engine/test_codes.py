"""Sparse codes and torch's own layouts, to and fro."""

from __future__ import annotations

import pytest
import torch

from gated_plugin.engine import cpu, plain
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.errors import GatedError

SHAPES = [(7,), (3, 123), (2, 5, 507), (2, 1, 3, 11), (0, 7), (2, 0, 7), (33, 2050)]
SHARES = [0.0, 0.1, 1.0]


def dense_codes(shape: tuple[int, ...], share: float, dtype: torch.dtype = torch.float32):
    torch.manual_seed(len(shape))
    return torch.rand(shape, dtype=dtype).add_(0.1) * (torch.rand(shape) < share)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
class TestRoundTrips:
    def test_dense(self, shape, share, dtype):
        dense = dense_codes(shape, share, dtype)
        assert torch.equal(SparseCodes.from_dense(dense).to_dense(), dense)

    def test_coo(self, shape, share, dtype):
        dense = dense_codes(shape, share, dtype)
        coo = SparseCodes.from_dense(dense).to_coo()
        assert coo.is_coalesced()
        assert coo.shape == dense.shape
        assert torch.equal(coo.to_dense(), dense)
        assert torch.equal(SparseCodes.from_sparse(coo).to_dense(), dense)

    def test_csr_over_the_flattened_rows(self, shape, share, dtype):
        dense = dense_codes(shape, share, dtype)
        csr = SparseCodes.from_dense(dense).to_csr()
        assert torch.equal(csr.to_dense(), dense.reshape(-1, shape[-1]))
        assert torch.equal(SparseCodes.from_sparse(csr).to_dense().view(shape), dense)


def test_foreign_coo_tensors_are_coalesced():
    places = torch.tensor([[1, 0, 1, 0], [2, 1, 2, 0]])
    codes = SparseCodes.from_sparse(
        torch.sparse_coo_tensor(places, torch.tensor([1.0, 2.0, 4.0, 8.0]), (2, 3))
    )
    assert codes.to_dense().tolist() == [[8.0, 2.0, 0.0], [0.0, 0.0, 5.0]]
    assert codes.features.tolist() == [0, 1, 2]


def test_csr_with_32_bit_indices_is_taken():
    dense = dense_codes((3, 123), 0.1)
    csr = dense.to_sparse_csr()
    narrow = torch.sparse_csr_tensor(
        csr.crow_indices().int(), csr.col_indices().int(), csr.values(), csr.shape
    )
    codes = SparseCodes.from_sparse(narrow)
    assert codes.offsets.dtype == codes.features.dtype == torch.int64
    assert torch.equal(codes.to_dense(), dense)


OTHER_LAYOUTS = {
    "strided": lambda: torch.eye(4),
    "CSC": lambda: torch.eye(4).to_sparse_csc(),
    "BSR": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "COO with dense dimensions": lambda: torch.ones(3, 4, 2).to_sparse(2),
    "CSR with dense dimensions": lambda: torch.ones(3, 4, 2).to_sparse_csr(dense_dim=1),
    "a batch of CSR": lambda: torch.eye(4).expand(2, 4, 4).to_sparse_csr(),
}


@pytest.mark.parametrize("make", OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS.keys())
def test_other_layouts_are_refused_with_those_that_are_taken(make):
    with pytest.raises(GatedError, match=r"torch\.sparse_coo or torch\.sparse_csr"):
        SparseCodes.from_sparse(make())


def test_rows_l0_and_density():
    dense = torch.zeros(2, 2, 8)
    dense[0, 1, [2, 5]] = 1.0
    dense[1, 1, 0] = 1.0
    codes = SparseCodes.from_dense(dense)
    assert codes.offsets.tolist() == [0, 0, 2, 2, 3]
    assert codes.rows.tolist() == [1, 1, 3]
    assert codes.l0 == 3 / 4
    assert codes.density == 3 / 32


def test_no_rows_at_all_have_no_density():
    codes = SparseCodes.from_dense(torch.zeros(0, 8))
    assert (codes.l0, codes.density) == (0.0, 0.0)


def test_dense_codes_pass_gradients_both_ways():
    dense = dense_codes((3, 123), 0.1, torch.float64).requires_grad_()
    back = SparseCodes.from_dense(dense).to_dense()
    cotangent = torch.randn_like(dense)
    (gradient,) = torch.autograd.grad((back * cotangent).sum(), dense)
    assert torch.equal(gradient, cotangent * (dense != 0))


def test_other_values_and_another_shape_keep_the_support():
    codes = SparseCodes.from_dense(dense_codes((6, 11), 0.5))
    doubled = codes.with_values(2 * codes.values).view(2, 3, 11)
    assert torch.equal(doubled.to_dense(), 2 * codes.to_dense().view(2, 3, 11))


@pytest.mark.parametrize("shape", [(1, 2), (3, 123), (33, 4100), (252, 507), (0, 5)])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("operations", [cpu, plain])
def test_gathering_and_scattering_undo_each_other(shape, share, operations):
    dense = dense_codes(shape, share)
    codes, expected = operations.gather(dense), SparseCodes.from_dense(dense)
    for name in ("offsets", "features", "values"):
        assert torch.equal(getattr(codes, name), getattr(expected, name)), name
    assert torch.equal(operations.scatter(codes), dense)


def test_gathering_keeps_nan_and_infinity():
    dense = torch.zeros(3, 123)
    dense[1, 7], dense[2, 9] = torch.nan, torch.inf
    codes = cpu.gather(dense)
    assert codes.features.tolist() == [7, 9]
    torch.testing.assert_close(cpu.scatter(codes), dense, equal_nan=True, rtol=0, atol=0)


def test_indices_outside_of_the_tensor_are_refused():
    values, size = torch.ones(2), (3, 4)
    coo = torch.sparse_coo_tensor(
        torch.tensor([[0, 1], [2, 9]]), values, size, check_invariants=False, is_coalesced=True
    )
    csr = torch.sparse_csr_tensor([0, 1, 2, 2], [2, 9], values, size, check_invariants=False)
    for malformed in (coo, csr):
        with pytest.raises(GatedError, match="malformed"):
            SparseCodes.from_sparse(malformed)
