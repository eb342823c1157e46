"""A folder that holds one gated SAE, as SAELens writes it: checked before it is believed."""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gated_plugin.errors import GatedError
from gated_plugin.tensor_files import LARGEST_SIZE, TensorFile

if TYPE_CHECKING:
    from torch import Tensor

    from gated_plugin.config import GatedSAEConfig

CFG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
FEATURES, ACTIVATIONS = "features.safetensors", "activations.safetensors"
RECORDED = 64
"""Rows of activations that are published with an SAE, to compare its features on."""
LARGEST_CFG = 1 << 20
ARCHITECTURE = "gated"
GATE_VECTORS = ("b_gate", "b_mag", "r_mag")
SCALING = "scaling_factor"
"""A vector [d_sae] that SAELens once wrote into every file, of ones unless it was fine-tuned."""
TYPES = {"float32": "F32", "float64": "F64", "bfloat16": "BF16", "float16": "F16"}
"""What a cfg.json calls the types of safetensors."""
NEEDS_DATA = ("expected_average_only_in", "covariance_whitening")
"""Normalisations whose statistics are not in the files, so that nobody could apply them."""
CHOICES = {
    "normalize_activations": ("none", "layer_norm", "constant_norm_rescale", *NEEDS_DATA),
    "reshape_activations": ("none", "hook_z"),
}
_QUOTED = reprlib.Repr()
_QUOTED.maxstring = 200
UNIT_NORM_TOLERANCE = {"F32": 1e-5, "F64": 1e-5, "F16": 2e-3, "BF16": 1e-2}
"""Of decoder rows. Rounding n entries to a half type moves a norm by less than its unit (2⁻¹¹,
2⁻⁸), in practice by 2e-4 to 6e-4."""


@dataclass(frozen=True)
class Dictionary:
    """One gated SAE on disk, its description and the names, shapes and types of its tensors sound."""

    path: Path
    cfg: GatedSAEConfig
    weights: TensorFile

    @classmethod
    def open(cls, path: Path) -> Dictionary:
        """Read cfg.json and the header of the weights, and hold the one against the other.

        Raises:
            GatedError: what is missing, damaged, of another architecture, or does not fit.
        """
        described = _read_cfg(path / CFG)
        weights = TensorFile.open(path / WEIGHTS)
        cfg = _config(described, path / CFG)
        dictionary = cls(path, cfg, _without_unit_scaling(weights, cfg.d_sae))
        dictionary._require_fitting_tensors()
        return dictionary

    @property
    def dtype(self) -> str:
        """Of the matrices, as safetensors names it."""
        return TYPES[self.cfg.dtype]

    def require_sound(self) -> None:
        """Raise `GatedError` unless every weight is finite and every decoder row of norm 1."""
        for name in self.weights.tensors:
            for _, block in self.weights.blocks(name):
                require_finite(block, name, self.weights.path)
        off = (self.decoder_norms() - 1).abs() > UNIT_NORM_TOLERANCE[self.dtype]
        if off.any():
            _refuse(
                self.weights.path,
                f"{int(off.sum())} of its {len(off)} decoder rows are not of norm 1",
            )

    def decoder_norms(self) -> Tensor:
        """Norm of each decoder row [d_sae], float32."""
        import torch

        norms = torch.empty(self.cfg.d_sae)  # pieces of it would pin the blocks' memory
        for start, block in self.weights.blocks("W_dec"):
            norms[start : start + len(block)] = block.float().norm(dim=1)
        return norms

    def _require_fitting_tensors(self) -> None:
        found, shapes = self.weights.tensors, _shapes(self.cfg)
        for name in sorted(shapes.keys() ^ found.keys()):
            what = "lacks" if name in shapes else "holds an unknown tensor"
            _refuse(self.weights.path, f"it {what} {reprlib.repr(name)}")
        for name, shape in shapes.items():
            allowed = {self.dtype, "F32"} if name in GATE_VECTORS else {self.dtype}
            if found[name].shape != shape:
                have = found[name].shape
                _refuse(self.weights.path, f"{name} has the shape {have}, but {CFG} says {shape}")
            if found[name].dtype not in allowed:
                _refuse(
                    self.weights.path,
                    f"{name} is {found[name].dtype}, but {CFG} says {self.cfg.dtype}",
                )


def read_rows(path: Path, name: str, shape: tuple[int | None, ...], rows: int) -> Tensor:
    """The first `rows` of a tensor.

    Args:
        shape: what it must have; None stands for any length.

    Raises:
        GatedError: the file is missing or damaged, holds another shape, or is not finite.
    """
    file = TensorFile.open(path)
    if name not in file.tensors:
        _refuse(path, f"it lacks {name!r}")
    have = file.tensors[name].shape
    if 0 in have:
        _refuse(path, f"{name} is empty")
    fits = [want in (None, length) for want, length in zip(shape, have, strict=False)]
    if len(have) != len(shape) or not all(fits):
        _refuse(path, f"{name} has the shape {have}, which does not fit the SAE")
    found = file.read(name, 0, min(rows, have[0]))
    require_finite(found, name, path)
    return found


def require_finite(tensor: Tensor, name: str, path: Path) -> None:
    """Raise `GatedError` where `tensor` holds NaN or infinity."""
    if not is_finite(tensor):
        _refuse(path, f"{name} holds NaN or infinity")


def is_finite(tensor: Tensor) -> bool:
    """Whether `tensor` holds neither NaN nor infinity, without memory of its size."""
    return not tensor.numel() or all(bound.isfinite() for bound in tensor.aminmax())


def _without_unit_scaling(weights: TensorFile, d_sae: int) -> TensorFile:
    info = weights.tensors.get(SCALING)
    if info is None or info.shape != (d_sae,) or not (weights.read(SCALING) == 1).all():
        return weights
    return replace(weights, tensors={k: v for k, v in weights.tensors.items() if k != SCALING})


def _shapes(cfg: GatedSAEConfig) -> dict[str, tuple[int, ...]]:
    return {
        "W_enc": (cfg.d_in, cfg.d_sae),
        "W_dec": (cfg.d_sae, cfg.d_in),
        "b_dec": (cfg.d_in,),
        **dict.fromkeys(GATE_VECTORS, (cfg.d_sae,)),
    }


def _read_cfg(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_CFG:
            _refuse(path, f"it has {path.stat().st_size:,} bytes, where some hundred are usual")
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GatedError(
            f"{path} cannot be read ({error.strerror}); name the folder of an SAE, which holds "
            f"{CFG} and {WEIGHTS}."
        ) from None
    except (ValueError, RecursionError):
        _refuse(path, "it is no valid JSON")
    if not isinstance(described, dict):
        _refuse(path, "it is no table of settings")
    return described


def _config(described: dict[str, Any], path: Path) -> GatedSAEConfig:
    """SAELens' configuration of what a cfg.json says, also of one from before SAELens 6."""
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
    from sae_lens.saes.sae import SAEMetadata

    from gated_plugin.config import GatedSAEConfig

    architecture = described.get("architecture", "standard")
    if architecture != ARCHITECTURE:
        raise GatedError(
            f"{path} describes an SAE of architecture {reprlib.repr(architecture)}, not a gated "
            "one; load it with SAE.load_from_disk of SAELens."
        )
    metadata = described.get("metadata", {})
    if not isinstance(metadata, dict):
        _refuse(path, "its metadata is no table")
    for name in metadata:
        if hasattr(SAEMetadata, name):
            _refuse(path, f"its metadata would replace SAELens' own {reprlib.repr(name)}")
    try:
        cfg = GatedSAEConfig.from_dict(handle_config_defaulting(described))
    except Exception as error:  # whatever SAELens raises over a description that is not one
        _refuse(path, f"SAELens cannot read it ({_QUOTED.repr(str(error))})")
    _require_sound_settings(cfg, path)
    cfg.dtype = cfg.dtype.removeprefix("torch.")
    return cfg


def _require_sound_settings(cfg: GatedSAEConfig, path: Path) -> None:
    for name in ("d_in", "d_sae"):
        value = getattr(cfg, name)
        if type(value) is not int or not 0 < value < LARGEST_SIZE:
            _refuse(path, f"{name} is {reprlib.repr(value)}, not a whole number from 1")
    if not isinstance(cfg.apply_b_dec_to_input, bool):
        given = reprlib.repr(cfg.apply_b_dec_to_input)
        _refuse(path, f"apply_b_dec_to_input is {given}, not true or false")
    if not isinstance(cfg.dtype, str) or cfg.dtype.removeprefix("torch.") not in TYPES:
        _refuse(path, f"dtype is {reprlib.repr(cfg.dtype)}, not one of {', '.join(TYPES)}")
    for name, known in CHOICES.items():
        value = getattr(cfg, name)
        if value not in known:
            _refuse(path, f"{name} is {reprlib.repr(value)}, not one of {', '.join(known)}")
    hook = cfg.metadata.hook_name
    is_z = hook is None or (isinstance(hook, str) and hook.endswith("_z"))
    if cfg.reshape_activations == "hook_z" and not is_z:
        _refuse(path, f"it joins the heads of hook_z, but its hook point is {reprlib.repr(hook)}")
    if cfg.normalize_activations in NEEDS_DATA:
        _refuse(
            path,
            f"it expects activations scaled by {cfg.normalize_activations!r}, whose statistics "
            "are in none of its files",
        )


def _refuse(path: Path, reason: str) -> NoReturn:
    raise GatedError(f"{path} is no sound gated SAE: {reason}; make or fetch it again.")
