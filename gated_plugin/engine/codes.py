"""Sparse codes: which features fire on which row, and how strongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gated_plugin.errors import GatedError


@dataclass(frozen=True, kw_only=True)
class SparseCodes:
    """The K features that fire in a batch, row after row, ascending within a row."""

    offsets: Tensor
    """Row b owns the entries offsets[b] to offsets[b + 1]; int64 [B + 1]."""

    features: Tensor
    """int64 [K], each below d_sae."""

    values: Tensor
    """[K], in the activations' units."""

    shape: torch.Size
    """[..., d_sae] of the dense codes; their leading dimensions, flattened, are the B rows."""

    @property
    def rows(self) -> Tensor:
        """The row of every entry; int64 [K]."""
        counts = self.offsets.diff()
        rows = torch.arange(len(counts), device=counts.device)
        return rows.repeat_interleave(counts, output_size=len(self.features))

    @property
    def l0(self) -> float:
        """Mean number of entries per row."""
        return len(self.features) / max(1, len(self.offsets) - 1)

    @property
    def density(self) -> float:
        """Share of entries that are there."""
        return self.l0 / max(1, self.shape[-1])

    def with_values(self, values: Tensor) -> SparseCodes:
        """The same support with other values [K]."""
        return replace(self, values=values)

    def view(self, *shape: int) -> SparseCodes:
        """The same rows under other leading dimensions."""
        return replace(self, shape=torch.Size(shape))

    def to_dense(self) -> Tensor:
        """[..., d_sae]; differentiable in the values."""
        dense = self.values.new_zeros(len(self.offsets) - 1, self.shape[-1])
        return dense.index_put((self.rows, self.features), self.values).view(self.shape)

    def to_coo(self) -> Tensor:
        """A coalesced torch sparse COO tensor [..., d_sae]."""
        places = [*_unravel(self.rows, self.shape[:-1]), self.features]
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            return torch.sparse_coo_tensor(
                torch.stack(places), self.values, self.shape, is_coalesced=True
            )

    def to_csr(self) -> Tensor:
        """A torch sparse CSR tensor [B, d_sae]."""
        size = (len(self.offsets) - 1, self.shape[-1])
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            return torch.sparse_csr_tensor(self.offsets, self.features, self.values, size)

    @classmethod
    def from_dense(cls, dense: Tensor) -> SparseCodes:
        """The entries of `dense` [..., d_sae] that are not 0; differentiable in them."""
        flat = dense.reshape(-1, dense.shape[-1])
        rows, features = flat.nonzero(as_tuple=True)
        return cls(
            offsets=row_offsets(rows, len(flat)),
            features=features,
            values=flat[rows, features],
            shape=dense.shape,
        )

    @classmethod
    def from_sparse(cls, tensor: Tensor) -> SparseCodes:
        """Take over a torch sparse tensor: COO [..., d_sae] or CSR [B, d_sae].

        Raises:
            GatedError: the tensor has another layout, or indices that lie outside of it.
        """
        if tensor.layout == torch.sparse_csr and tensor.dim() == 2 and not tensor.dense_dim():
            offsets, features = tensor.crow_indices().long(), tensor.col_indices().long()
            _check(torch.sparse_csr_tensor, offsets, features, tensor)
            return cls(
                offsets=offsets, features=features, values=tensor.values(), shape=tensor.shape
            )
        if tensor.layout != torch.sparse_coo or tensor.dense_dim():
            raise GatedError(
                f"Sparse codes cannot be made of a tensor of layout {tensor.layout}, shape "
                f"{tuple(tensor.shape)} and {tensor.dense_dim()} dense dimensions; give "
                "torch.sparse_coo or torch.sparse_csr, the latter of two dimensions."
            )
        tensor = tensor.coalesce()
        _check(torch.sparse_coo_tensor, tensor.indices(), tensor)
        *leading, features = tensor.indices()
        rows = torch.zeros_like(features)
        for places, size in zip(leading, tensor.shape[:-1], strict=True):
            rows = rows * size + places
        count = tensor.shape[:-1].numel()
        return cls(
            offsets=row_offsets(rows, count),
            features=features,
            values=tensor.values(),
            shape=tensor.shape,
        )


def _check(make: Callable[..., Tensor], *indices_and_tensor: Tensor) -> None:
    """torch builds sparse tensors unchecked; a kernel would read where their indices say."""
    *indices, tensor = indices_and_tensor
    try:
        make(*indices, tensor.values().detach(), tensor.shape, check_invariants=True)
    except RuntimeError as error:
        raise GatedError(
            f"The sparse features are malformed ({str(error).splitlines()[0]}); build them with "
            "check_invariants=True to see where."
        ) from None


def row_offsets(rows: Tensor, count: int) -> Tensor:
    """Where the entries of each of `count` rows (or features) begin, once sorted by them."""
    offsets = rows.new_zeros(count + 1)
    torch.cumsum(torch.bincount(rows, minlength=count), 0, out=offsets[1:])
    return offsets


def sorted_offsets(sorted_rows: Tensor, count: int) -> Tensor:
    """`row_offsets` of what is sorted already; waits for no result of a GPU."""
    return torch.searchsorted(sorted_rows, torch.arange(count + 1, device=sorted_rows.device))


def _unravel(rows: Tensor, leading: torch.Size) -> list[Tensor]:
    places: list[Tensor] = []
    for size in reversed(leading[1:]):
        places.insert(0, rows % size)
        rows = rows // size
    return [rows, *places] if leading else places
