"""The gated encoder, and the inference SAE that is made of it.

    π = W_encᵀ (x − b_dec)                     one product serves gate and magnitude
    f = 1[π + b_gate > 0] ⊙ ReLU(exp(r_mag) ⊙ π + b_mag)

arXiv 2404.16014, equations 5 to 7. Shapes: B batch, N d_in, M d_sae.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from sae_lens.saes import gated_sae as saelens
from sae_lens.saes.sae import SAE
from torch import Tensor, nn
from typing_extensions import override

from gated_plugin.errors import GatedError

GATE_VECTORS = ("b_gate", "b_mag", "r_mag")
RUNTIME_FUNCTIONS = (
    "run_time_activation_norm_fn_in",
    "run_time_activation_norm_fn_out",
    "reshape_fn_in",
    "reshape_fn_out",
)

Self = TypeVar("Self", bound="GatedEncoder")


class GatedCode(NamedTuple):
    """What the encoder makes of a batch; each [B, M], `centred` [B, N]."""

    features: Tensor
    magnitude_pre: Tensor
    shared_pre: Tensor
    centred: Tensor
    """What went in: normalised where the configuration says so, less b_dec."""


class GatedEncoder(SAE[Any]):
    """What the inference and the training SAE share: mixed in before SAELens' class."""

    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter
    hook_sae_acts_pre: Callable[[Tensor], Tensor]
    hook_sae_acts_post: Callable[[Tensor], Tensor]
    d_head: int | None

    def gated_code(self, x: Tensor) -> GatedCode:
        """Encode activations [..., d_in].

        A gate whose pre-activation is NaN counts as open, so that NaN reaches the output.

        Raises:
            GatedError: the last dimension is not d_in.
        """
        centred = self.process_sae_in(x)
        pre = centred @ self.W_enc
        magnitude_pre = self.hook_sae_acts_pre(
            torch.addcmul(self.b_mag, pre, self.r_mag.exp()).to(self.dtype)
        )
        # π + b_gate ≤ 0 ⟺ π ≤ −b_gate, also in floating point.
        closed = pre <= -self.b_gate
        features = self.activation_fn(magnitude_pre).masked_fill(closed, 0)
        return GatedCode(self.hook_sae_acts_post(features), magnitude_pre, pre, centred)

    @override
    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        width = sae_in.shape[-1] * (sae_in.shape[-2] if self.hook_z_reshaping_mode else 1)
        if width != self.cfg.d_in:
            raise GatedError(
                f"The activations have {width} dimensions (shape {tuple(sae_in.shape)}), but this "
                f"SAE takes d_in = {self.cfg.d_in}; check that the hook point is the one it was "
                f"trained on ({self.cfg.metadata.hook_name})."
            )
        return super().process_sae_in(sae_in)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        wide = torch.promote_types(self.dtype, torch.float32)
        for name in GATE_VECTORS:
            getattr(self, name).data = getattr(self, name).data.to(wide)

    @override
    def _apply(self: Self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """Casts to a half type spare the gate vectors: Adam's steps on them would round away."""
        before = {name: getattr(self, name).data for name in GATE_VECTORS}
        super()._apply(fn, recurse)
        for name, data in before.items():
            vector = getattr(self, name)
            if vector.dtype.itemsize < torch.float32.itemsize:
                wide = torch.promote_types(data.dtype, torch.float32)
                vector.data = data.to(device=vector.device, dtype=wide)
        return self

    @override
    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: without SAELens' closures over this very object."""
        return {key: value for key, value in self.__dict__.items() if key not in RUNTIME_FUNCTIONS}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._setup_activation_normalization()
        reshapes, d_head = self.hook_z_reshaping_mode, self.d_head
        self.turn_off_forward_pass_hook_z_reshaping()
        if reshapes:
            self.turn_on_forward_pass_hook_z_reshaping()
            self.d_head = d_head


class GatedSAE(GatedEncoder, saelens.GatedSAE):
    """Inference with a Gated SAE; SAELens' class, with the encoder of the paper.

    One encoder product instead of two, and no copy of `W_enc` scaled by `exp(r_mag)`. Features
    and reconstructions are those of SAELens' class, up to the rounding of that scaling.
    """

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Features [..., d_sae] of activations [..., d_in]."""
        return self.gated_code(x).features
