"""The training step with every gate computed: for the start of training, when half are open.

Seven dense products instead of SAELens' thirteen: one encode, two decodes, their two
mirrors, and the two weights' gradients; the gradients of the biases are sums. The
formulas are those of `step.py`.

Where an array [B, M] is large, features go tile by tile, and the backward pass encodes each tile
anew: an eighth product, for memory that does not grow with M. A tile adds to both decodes, and
writes its own rows of the weights' gradients, once.

Where W is bfloat16 beside float32 vectors, so are the operands of products, and what is between
them is float32.

Shapes: B rows, N d_in, M d_sae, F features of a tile.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gated_plugin.engine import reference
from gated_plugin.engine.counted_features import CountedFeatures, FeatureCounts, Totals
from gated_plugin.engine.dispatch import operations_for
from gated_plugin.engine.first_order import first_order
from gated_plugin.engine.kept_memory import ACTIVATIONS, GRADIENTS
from gated_plugin.engine.support import DenseTotals, EncoderWeights
from gated_plugin.errors import GatedError
from gated_plugin.loss import GatedLoss

WHOLE_BYTES = 1 << 28
"""Up to this size of an array [B, M] all features are one tile, kept for the backward pass."""

TILE_BYTES = 1 << 25
"""Beyond it: the size of an array [B, F], of which the backward pass holds four. At (1024, 768, 24576) a
step took 10.0, 9.7, 9.6, 10.4 mm with 8, 16, 32, 64 MB, and 8.9 in one tile."""


class DenseOutput(NamedTuple):
    """A forward pass, ready for `backward`."""

    losses: GatedLoss
    x_hat_BN: Tensor
    features_BM: Tensor
    """Differentiable; where there are several tiles they are counted, and not kept."""


def dense_step(
    x_BN: Tensor,
    seen_BN: Tensor,
    weights: EncoderWeights,
    W_dec_MN: Tensor,
    b_dec_N: Tensor,
    l1: float,
    *,
    centred: bool,
) -> DenseOutput:
    """One forward pass of a batch, differentiable once in every weight (not in x).

    Args:
        seen_BN: what the encoder sees: x − b_dec where it is `centred`, else x itself.
        l1: λ, for a squared error that is summed over N.
    """
    tiles = tiles_of(len(x_BN), weights.b_gate_M)
    *terms, x_hat, features = _DenseStep.apply(
        tiles, x_BN, seen_BN, l1, centred, *weights, W_dec_MN, b_dec_N
    )
    if isinstance(features, FeatureCounts):
        parameters = (*weights, b_dec_N)
        grad = torch.is_grad_enabled() and any(weight.requires_grad for weight in parameters)
        compute = _Encoder(x_BN, weights, b_dec_N if centred else None, tiles)
        features = CountedFeatures(features, compute, dtype=weights.b_gate_M.dtype, grad=grad)
    return DenseOutput(GatedLoss(*terms), x_hat, features)


def tiles_of(rows: int, vector_M: Tensor) -> list[slice]:
    """The features that are computed together, as many as one of the gate's vectors has."""
    M, column_bytes = len(vector_M), rows * vector_M.element_size()
    F = M if M * column_bytes <= WHOLE_BYTES else max(1, TILE_BYTES // column_bytes)
    return [slice(first, min(M, first + F)) for first in range(0, M, F)]


class _Encoder:
    """Encodes the batch of a step once more, while the weights are what they were."""

    def __init__(
        self, x_BN: Tensor, weights: EncoderWeights, centre_N: Tensor | None, tiles: list[slice]
    ) -> None:
        self.x_BN, self.weights, self.centre_N, self.tiles = x_BN, weights, centre_N, tiles
        self.versions = self._versions()

    def __call__(self) -> Tensor:
        if self.versions != self._versions():
            B, M = len(self.x_BN), self.weights.W_enc_NM.shape[1]
            raise GatedError(
                f"The features [{B}, {M}] of this training step were counted, not kept, and the "
                "weights have changed since; read them before the optimizer's step, or encode the "
                "batch again: sae.encode(x)."
            )
        seen_BN = self.x_BN if self.centre_N is None else self.x_BN - self.centre_N
        parts = (_part(self.weights, tile) for tile in self.tiles)
        return torch.cat([reference.encode(seen_BN, part) for part in parts], dim=1)

    def _versions(self) -> list[int]:
        centre = () if self.centre_N is None else (self.centre_N,)
        return [weight._version for weight in (*self.weights, *centre)]


def _part(weights: EncoderWeights, tile: slice) -> EncoderWeights:
    W_enc_NM, *vectors = weights
    return EncoderWeights(W_enc_NM[:, tile], *(vector[tile] for vector in vectors))


class _Memory:
    """An array [B, F] that one tile after another is written to, in the type of the vectors."""

    def __init__(self, B: int, tiles: list[slice], W_dec_MN: Tensor, dtype: torch.dtype) -> None:
        shape = (B, tiles[0].stop)
        if W_dec_MN.dtype == dtype:
            self.widest = ACTIVATIONS.take(W_dec_MN, shape)
        else:
            self.widest = W_dec_MN.new_empty(shape, dtype=dtype)

    def of(self, tile: slice) -> Tensor:
        B, F = len(self.widest), tile.stop - tile.start
        if self.widest.shape[1] == F:
            return self.widest
        return self.widest.view(-1)[: B * F].view(B, F)


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """out ← left right, computed in the narrowest of their types."""
    narrow = min((t.dtype for t in (left, right, out)), key=lambda dtype: dtype.itemsize)
    if out.dtype == narrow:
        return torch.mm(left.to(narrow), right.to(narrow), out=out)
    return out.copy_(left.to(narrow) @ right.to(narrow))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total ← total + left right, the product in the type of `right`, the sum in that of `total`."""
    if total.dtype == right.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        total += left.to(right.dtype) @ right


def _activate(
    operations: ModuleType,
    seen_BN: Tensor,
    weights: EncoderWeights,
    tile: slice,
    features: _Memory,
    gate: _Memory,
) -> tuple[Tensor, Tensor]:
    """f and ReLU(π_gate) of a tile: [B, F] each."""
    part = _part(weights, tile)
    pre_BF = _product(seen_BN, part.W_enc_NM, gate.of(tile))
    activated: tuple[Tensor, Tensor] = operations.activate(pre_BF, part, features.of(tile))
    return activated


class _DenseStep(torch.autograd.Function):
    """Gives reconstruction, sparsity and auxiliary loss, x̂, and the features or their counts."""

    @staticmethod
    def forward(
        ctx: Any,
        tiles: list[slice],
        x_BN: Tensor,
        seen_BN: Tensor,
        l1: float,
        centred: bool,
        W_enc_NM: Tensor,
        b_gate_M: Tensor,
        b_mag_M: Tensor,
        r_mag_M: Tensor,
        W_dec_MN: Tensor,
        b_dec_N: Tensor,
    ) -> tuple[Tensor | FeatureCounts, ...]:
        B, weights = len(x_BN), EncoderWeights(W_enc_NM, b_gate_M, b_mag_M, r_mag_M)
        operations = operations_for(seen_BN, W_enc_NM)
        wide = b_gate_M.dtype
        memory = [_Memory(B, tiles, W_dec_MN, wide) for _ in range(2)]
        x_hat, frozen_error = (b_dec_N.to(wide).repeat(B, 1) for _ in range(2))
        penalty, totals = b_gate_M.new_zeros(()), Totals()
        for tile in tiles:
            features, gate = _activate(operations, seen_BN, weights, tile, *memory)
            _add_product(x_hat, features, W_dec_MN[tile])
            _add_product(frozen_error, gate, W_dec_MN[tile])
            penalty += gate.sum()
            if len(tiles) > 1:
                totals.add(features)
        error = x_hat - x_BN
        frozen_error -= x_BN
        ctx.tiles, ctx.operations, ctx.l1, ctx.centred = tiles, operations, l1, centred
        kept = (features, gate) if len(tiles) == 1 else ()
        ctx.save_for_backward(seen_BN, error, frozen_error, *weights, W_dec_MN, *kept)
        ctx.set_materialize_grads(False)
        return (
            error.square().sum() / B,
            l1 / B * penalty,
            frozen_error.square().sum() / B,
            x_hat,
            features if kept else totals.counts(),
        )

    @staticmethod
    @first_order
    def backward(
        ctx: Any,
        d_reconstruction: Tensor | None,
        d_sparsity: Tensor | None,
        d_auxiliary: Tensor | None,
        d_x_hat_BN: Tensor | None,
        d_features_BM: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        seen_BN, error_BN, frozen_BN, *parameters, W_dec_MN = ctx.saved_tensors[:8]
        weights, kept = EncoderWeights(*parameters), ctx.saved_tensors[8:]
        W_enc_NM, B = weights.W_enc_NM, len(seen_BN)
        d_x_hat = 2 / B * or_zero(d_reconstruction) * error_BN
        if d_x_hat_BN is not None:
            d_x_hat = d_x_hat + d_x_hat_BN
        d_frozen = 2 / B * or_zero(d_auxiliary) * frozen_BN
        penalty = float(ctx.l1 / B * or_zero(d_sparsity))
        d_W_enc_MN = GRADIENTS.take(W_enc_NM, W_enc_NM.T.shape)
        d_W_dec_MN = GRADIENTS.take(W_dec_MN, W_dec_MN.shape)
        kinds = (B, ctx.tiles, W_dec_MN, weights.b_gate_M.dtype)
        d_f, d_gate, *memory = (_Memory(*kinds) for _ in range(2 if kept else 4))
        sums = []
        for tile in ctx.tiles:
            features, gate = kept or _activate(ctx.operations, seen_BN, weights, tile, *memory)
            d_f_BF = _product(d_x_hat, W_dec_MN[tile].T, d_f.of(tile))
            if d_features_BM is not None:
                d_f_BF += d_features_BM
            d_gate_BF = _product(d_frozen, W_dec_MN[tile].T, d_gate.of(tile))
            d_pre_BF, totals = ctx.operations.back_to_pre(
                features,
                gate,
                d_f_BF,
                d_gate_BF,
                penalty,
                weights.b_mag_M[tile],
                weights.r_mag_M[tile],
            )
            _product(d_pre_BF.T, seen_BN, d_W_enc_MN[tile])
            _product(features.T, d_x_hat, d_W_dec_MN[tile])
            sums.append(totals)
        totals = DenseTotals(*(torch.cat(parts) for parts in zip(*sums, strict=True)))
        d_b_dec_N = d_x_hat.sum(0)
        if ctx.centred:
            d_b_dec_N -= W_enc_NM @ totals.d_pre_M.to(W_enc_NM.dtype)
        return (
            *(None,) * 5,
            d_W_enc_MN.T,
            totals.d_gate_M,
            totals.d_magnitude_M,
            totals.d_r_mag_M,
            d_W_dec_MN,
            d_b_dec_N,
        )


def or_zero(gradient: Tensor | None) -> Tensor | float:
    """An output that nobody differentiated has gradient 0."""
    return 0.0 if gradient is None else gradient
