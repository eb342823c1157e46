"""How a dead feature begins anew: one function per scheme, by its name.

A scheme sets the weights of the dead features and of no others. It sees every feature's weights
by what they are, so that the Gated SAE, its untied kin and the baseline are served alike.
Shapes: D features to be revived, M d_sae, N d_in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

ENCODER_SCALE = 0.2


class FeatureWeights(NamedTuple):
    """An SAE's parameters that belong to single features."""

    W_dec_MN: nn.Parameter
    encoders_NM: list[nn.Parameter]
    vectors_M: list[nn.Parameter]
    """Biases and scales of the encoder."""

    @classmethod
    def of(cls, sae: nn.Module) -> FeatureWeights:
        """Sorted by name and shape; `b_dec` belongs to no feature."""
        named = dict(sae.named_parameters(recurse=False))
        W_dec, _ = named.pop("W_dec"), named.pop("b_dec")
        return cls(
            W_dec,
            [weight for weight in named.values() if weight.dim() == 2],
            [weight for weight in named.values() if weight.dim() == 1],
        )

    def by_feature(self) -> Iterator[tuple[nn.Parameter, bool]]:
        """Every parameter, and whether its features lie along the second axis."""
        for weight in (self.W_dec_MN, *self.encoders_NM, *self.vectors_M):
            yield weight, any(weight is encoder for encoder in self.encoders_NM)


Scheme = Callable[[FeatureWeights, Tensor, Tensor, Tensor], None]
"""weights, features_D (int64), inputs_DN (less b_dec, where the encoder sees them so), dead_M (bool;
may hold more than the D)."""


def paper(weights: FeatureWeights, features_D: Tensor, inputs_DN: Tensor, dead_M: Tensor) -> None:
    """arXiv 2404.16014, after Bricken et al. 2023.

    Decoder row: the input at norm 1. Encoder row: the same, at 0.2 × the mean norm of the alive
    features' encoder rows (of all, where none is alive). Biases and r_mag: 0.
    """
    wide = _wide(inputs_DN)
    directions_DN = nn.functional.normalize(inputs_DN.to(wide), dim=1, eps=torch.finfo(wide).tiny)
    weights.W_dec_MN[features_D] = directions_DN.to(weights.W_dec_MN.dtype)
    for W_NM in weights.encoders_NM:
        norms_M = torch.linalg.vector_norm(W_NM, dim=0, dtype=_wide(W_NM))
        mean = norms_M.mean() if dead_M.all() else norms_M[~dead_M].mean()
        W_NM[:, features_D] = (ENCODER_SCALE * mean * directions_DN).T.to(W_NM.dtype)
    for vector_M in weights.vectors_M:
        vector_M[features_D] = 0


SCHEMES: dict[str, Scheme] = {"paper": paper}


def forget_moments(optimizer: Optimizer, weights: FeatureWeights, features_D: Tensor) -> None:
    """Set to 0 what the optimizer remembers of these features' gradients.

    Decay that row-wise Adam still owes them (`adam.Owed`) leaves a 0 as it is.
    """
    for weight, along_columns in weights.by_feature():
        for moment in optimizer.state.get(weight, {}).values():
            if isinstance(moment, Tensor) and moment.shape == weight.shape:
                (moment.T if along_columns else moment)[features_D] = 0


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
