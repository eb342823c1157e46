"""The gated autoencoder's operations, and the inference SAE that is made of them.

    π = W_encᵀ (x − b_dec)                     one product serves gate and magnitude
    f = 1[π + b_gate > 0] ⊙ ReLU(exp(r_mag) ⊙ π + b_mag)

arXiv 2404.16014, equations 5 to 7. Shapes: B batch, N d_in, M d_sae.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from sae_lens.saes import gated_sae as saelens
from sae_lens.saes.sae import SAE
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from typing_extensions import override

from gated_plugin.engine import reference
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.engine.decode import decode
from gated_plugin.engine.densify import sparsify
from gated_plugin.engine.dispatch import Choice, kernels_for
from gated_plugin.engine.encode import encode, encode_dense, encode_either
from gated_plugin.engine.support import EncoderWeights
from gated_plugin.errors import GatedError
from gated_plugin.sae_files import write_sae

GATE_VECTORS = ("b_gate", "b_mag", "r_mag")
RUNTIME_FUNCTIONS = (
    "run_time_activation_norm_fn_in",
    "run_time_activation_norm_fn_out",
    "reshape_fn_in",
    "reshape_fn_out",
)

DEVICES = ("cpu", "cuda")
DENSE_PRODUCT = Choice("reference", False, None)

Self = TypeVar("Self", bound="GatedBase")


class GatedCode(NamedTuple):
    """What the dense encoder makes of a batch; each [..., M]."""

    features: Tensor
    magnitude_pre: Tensor
    shared_pre: Tensor


class GatedBase(SAE[Any]):
    """What the inference and the training SAE share: mixed in before SAELens' class."""

    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter
    wide_vectors: ClassVar[tuple[str, ...]] = GATE_VECTORS
    """Parameters that stay in float32 where the weights are of a half type."""
    hook_sae_acts_pre: nn.Module
    hook_sae_acts_post: nn.Module
    d_head: int | None
    engine_choice: Choice = DENSE_PRODUCT
    """What served the last call of `encode`, `encode_sparse`, `forward`, or training step."""

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Features [..., d_sae] of activations [..., d_in].

        Raises:
            GatedError: the last dimension is not d_in.
        """
        centred = self.process_sae_in(x)
        if not self.engine_serves(centred):
            return self.gated_code(centred).features
        rows = centred.reshape(-1, self.cfg.d_in)
        features, self.engine_choice = encode_dense(rows, self.feature_major_weights())
        return self.hook_sae_acts_post(features.view(*centred.shape[:-1], self.cfg.d_sae))

    def encode_sparse(self, x: Tensor) -> SparseCodes:
        """The features that fire, and nothing else, of activations [..., d_in].

        Raises:
            GatedError: the last dimension is not d_in.
        """
        if has_listener(self.hook_sae_acts_post):
            return SparseCodes.from_dense(self.encode(x))
        centred = self.process_sae_in(x)
        if not self.engine_serves(centred):
            return SparseCodes.from_dense(self.gated_code(centred).features)
        rows = centred.reshape(-1, self.cfg.d_in)
        codes, self.engine_choice = encode(rows, self.feature_major_weights())
        return codes.view(*centred.shape[:-1], self.cfg.d_sae)

    @override
    def decode(self, feature_acts: Tensor | SparseCodes) -> Tensor:
        """Reconstructions [..., d_in] of features [..., d_sae]: dense, sparse COO or CSR, or codes."""
        out = self.hook_sae_recons(self._reconstruct(feature_acts))
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of activations [..., d_in]; the features stay sparse on the way."""
        if self.use_error_term or has_listener(self.hook_sae_acts_post):
            return super().forward(x)
        centred = self.process_sae_in(x)
        if self.engine_serves(centred):
            rows = centred.reshape(-1, self.cfg.d_in)
            features, self.engine_choice = encode_either(rows, self.feature_major_weights())
            features = features.view(*centred.shape[:-1], self.cfg.d_sae)
        else:
            features = self.gated_code(centred).features
        out: Tensor = self.hook_sae_output(self.decode(features))
        return out

    def _reconstruct(self, features: Tensor | SparseCodes) -> Tensor:
        if isinstance(features, Tensor) and features.layout != torch.strided:
            features = SparseCodes.from_sparse(features)
        if isinstance(features, Tensor) and self._may_look_at(features):
            features = sparsify(features, self.W_dec) or features
        if isinstance(features, SparseCodes):
            return decode(features, self.W_dec, self.b_dec)
        return features @ self.W_dec + self.b_dec

    def _may_look_at(self, features: Tensor) -> bool:
        """Whether nobody needs the gradient of features that do not fire, or traces."""
        wants_gradient = torch.is_grad_enabled() and features.requires_grad
        return not wants_gradient and self.engine_serves(features)

    def gated_code(self, centred: Tensor) -> GatedCode:
        """By the dense product, for whom the engine does not serve; SAELens' hooks fire.

        Args:
            centred: activations [..., d_in] as `process_sae_in` gives them.
        """
        self.engine_choice = DENSE_PRODUCT
        weights = self.encoder_weights()
        pre = centred @ self.W_enc
        magnitude_pre = self.hook_sae_acts_pre(reference.magnitude_pre(pre, weights).to(self.dtype))
        features = self.hook_sae_acts_post(reference.features(pre, magnitude_pre, weights))
        return GatedCode(features, magnitude_pre, pre)

    def feature_major_weights(self) -> EncoderWeights:
        """`encoder_weights`, with a W_enc whose features lie one after another in memory.

        That is how the engine reads it; the shape stays [d_in, d_sae].
        """
        make_feature_major(self.W_enc)
        return self.encoder_weights()

    @property
    def gate_bias(self) -> Tensor:
        """What is added to π before the gate opens or not: [d_sae]."""
        return self.b_gate

    def encoder_weights(self) -> EncoderWeights:
        """Gate and magnitude path, for the engine."""
        return EncoderWeights(self.W_enc, self.b_gate, self.b_mag, self.r_mag)

    def engine_serves(self, centred: Tensor) -> bool:
        """Whether the engine encodes: it has this architecture's operations, and may use them."""
        return self.engine_may_serve(centred)

    def engine_may_serve(self, centred: Tensor) -> bool:
        """Whether nothing asks for the dense pre-activations, or for operations that trace."""
        return (
            self._types_fit(centred)
            and centred.device.type in DEVICES
            and not self.W_enc.is_inference()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled(centred.device.type)
            and not _is_transformed(centred)
            and not has_listener(self.hook_sae_acts_pre)
        )

    def _types_fit(self, centred: Tensor) -> bool:
        """Whether there are operations on these types: wide vectors beside half weights on a GPU."""
        weights, vectors = self.W_enc.dtype, self.gate_bias.dtype
        if vectors == torch.float32 != weights and kernels_for(centred, self.W_enc) != "triton":
            return False
        return centred.dtype == weights and vectors in (weights, torch.float32)

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
        for name in self.wide_vectors:
            getattr(self, name).data = getattr(self, name).data.to(wide)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """SAELens' two files; the weights are written in blocks, contiguous."""
        state_dict = self.state_dict()
        self.process_state_dict_for_saving(state_dict)
        return write_sae(Path(path), state_dict, self.cfg.to_dict())

    @override
    def _apply(self: Self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """Casts to a half type spare the gate vectors: Adam's steps on them would round away."""
        before = {name: getattr(self, name).data for name in self.wide_vectors}
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


def make_feature_major(W_NM: nn.Parameter) -> None:
    """Have the features of an encoder lie one after another in memory."""
    # Other processes would not see it in new memory.
    if W_NM.stride(0) != 1 and not W_NM.is_shared():
        with torch.inference_mode(False):  # else it could never be trained again
            W_NM.data = W_NM.data.T.contiguous().T


def has_listener(point: nn.Module) -> bool:
    """Whether somebody hooked this hook point, or every module."""
    return any(
        len(hooks)
        for hooks in (
            point._forward_hooks,
            point._forward_pre_hooks,
            point._backward_hooks,
            point._backward_pre_hooks,
            module_hooks._global_forward_hooks,
            module_hooks._global_forward_pre_hooks,
            module_hooks._global_backward_hooks,
            module_hooks._global_backward_pre_hooks,
        )
    )


def _is_transformed(x: Tensor) -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is going on."""
    transformed: bool = torch._C._functorch.maybe_get_level(x) != -1
    return transformed or torch.autograd.forward_ad._current_level >= 0


class GatedSAE(GatedBase, saelens.GatedSAE):
    """Inference with a Gated SAE; SAELens' class, with the encoder of the paper.

    Features and reconstructions are those of SAELens' class, up to the rounding of one product
    instead of two and of scaling by `exp(r_mag)` after it.
    """
