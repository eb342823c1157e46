"""What the encoder's operations take and give.

Shapes: B rows, N d_in, M d_sae, K entries of the support.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gated_plugin.engine.codes import SparseCodes


class EncoderWeights(NamedTuple):
    """The gated encoder's parameters, `W_enc_NM` best with feature-major strides (1, N)."""

    W_enc_NM: Tensor
    b_gate_M: Tensor
    b_mag_M: Tensor
    r_mag_M: Tensor


class Support(NamedTuple):
    """The open gates of a batch; `codes.values` is f, which may be 0 where a gate is open."""

    codes: SparseCodes
    pre_K: Tensor
    """π = x · w, before any bias."""

    gate_K: Tensor
    """ReLU(π + b_gate), above 0 everywhere."""


class StepTerms(NamedTuple):
    """What one pass over W_dec gives a training step."""

    x_hat_BN: Tensor
    error_BN: Tensor
    """x̂ − x."""

    frozen_error_BN: Tensor
    """x̂_frozen(ReLU(π_gate)) − x."""

    along_error_K: Tensor
    """error · W_dec[feature], on the support."""

    along_frozen_error_K: Tensor


class ByFeature(NamedTuple):
    """The support's entries sorted by feature, rows ascending within one."""

    starts: Tensor
    """int64 [M + 1]."""

    rows: Tensor
    """int64 [K]."""

    order: Tensor
    """Which entry of the codes; int64 [K]."""


class DenseTotals(NamedTuple):
    """Sums over the rows of the dense gradients."""

    d_magnitude_M: Tensor
    d_r_mag_M: Tensor
    d_gate_M: Tensor
    d_pre_M: Tensor
