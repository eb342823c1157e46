"""A gated dictionary as it lies in files, whatever their layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from gated_plugin.convert.matrices import Matrix
from gated_plugin.errors import GatedError
from gated_plugin.runs import Run

if TYPE_CHECKING:
    from gated_plugin.config import GatedSAEConfig

ALREADY_UNIT = 1e-6
"""Decoder rows whose norm is this near to 1 are copied: scaling them could only round. It is how
near training keeps them."""


@dataclass(frozen=True)
class GatedWeights:
    """Parameters by SAELens' names; vectors in float64."""

    W_enc: Matrix
    """[d_in, d_sae]"""
    W_dec: Matrix
    """[d_sae, d_in]"""
    b_dec: Tensor
    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor

    def decoder_norms(self) -> Tensor:
        """Of each row of W_dec [d_sae].

        Raises:
            GatedError: a row is zero.
        """
        norms = torch.cat([self.W_dec.part(rows).norm(dim=1) for rows in self.W_dec.row_parts()])
        if not norms.all():
            raise GatedError(
                f"{int((norms == 0).sum())} of {len(norms)} decoder rows in {self.W_dec.path} are "
                "zero, so that their features have no direction; take another checkpoint."
            )
        return norms


def folding(norms: Tensor) -> Tensor:
    """The factor of each feature [d_sae] that makes its decoder row one of norm 1."""
    return torch.where((norms - 1).abs() <= ALREADY_UNIT, 1.0, norms)


class Part(Protocol):
    """Some features of a dictionary as one that computes in float64.

    Features are independent of each other, and a reconstruction is b_dec and what each one writes.
    """

    @property
    def W_dec(self) -> Tensor:
        """[features, d_in]"""

    @property
    def b_dec(self) -> Tensor:
        """[d_in]"""

    def encode(self, x: Tensor) -> Tensor:
        """Features [rows, features] of activations [rows, d_in]."""

    def decode(self, features: Tensor) -> Tensor:
        """Reconstructions [rows, d_in]."""


Parts = Callable[[slice], Part]
"""Of a dictionary: its features in a slice."""


@dataclass(frozen=True)
class Source:
    """A gated dictionary that is to be converted."""

    layout: str
    """saelens, dictionary_learning"""
    files: tuple[Path, ...]
    """Its weights, then what describes them."""
    weights: GatedWeights
    cfg: GatedSAEConfig
    described: dict[str, Any]
    """The description as it was found."""
    parts: Parts
    """By the class of its own layout."""
    run: Run | None = None
    origin: dict[str, str] = field(default_factory=dict)
    """Repository, revision and folder of one on the Hub."""

    @property
    def folder(self) -> Path:
        return self.files[0].parent
