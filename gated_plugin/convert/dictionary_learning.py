"""The gated layout of the library dictionary_learning (`GatedAutoEncoder`), which SAEBench's
repositories have too.

A folder with `ae.pt`, the state dict, and `config.json`, the trainer's settings:

    encoder.weight [d_sae, d_in]      W_encᵀ
    decoder.weight [d_in, d_sae]      W_decᵀ
    decoder_bias [d_in]               b_dec
    gate_bias, mag_bias [d_sae]       b_gate, b_mag
    r_mag [d_sae]                     0 where it is missing: the first version had none

Its decoder norms are free. From August 2024 to January 2025 its `encode` multiplied the features by
them, and its `decode` divided; since then only where `normalize_decoder` asks for it. Either way a
reconstruction is the same, and here, as in every result of ours, the norms are folded into the
encoder. Results are `ae.safetensors`, for a pickle is nothing to publish.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from gated_plugin.config import GatedSAEConfig
from gated_plugin.convert.checkpoint import Checkpoint
from gated_plugin.convert.matrices import matrix, rounded, scaled, vector
from gated_plugin.convert.weights import GatedWeights, Parts, Source
from gated_plugin.dictionaries import LARGEST_CFG
from gated_plugin.errors import GatedError
from gated_plugin.hub.naming import IN_BLOCK, SITES, without_machine_paths
from gated_plugin.runs import write_json
from gated_plugin.tensor_files import TensorFile, whole, write_tensors

CONFIG, PICKLED, WEIGHTS = "config.json", "ae.pt", "ae.safetensors"
DICT_CLASS = "GatedAutoEncoder"
VECTORS = {"decoder_bias": "b_dec", "gate_bias": "b_gate", "mag_bias": "b_mag", "r_mag": "r_mag"}
POINTS = {site: point for point, site in SITES.items()}
SUBMODULE = re.compile(r"([a-z_]+?)_layer_(\d+)")
"""Such as resid_post_layer_8."""


def read(folder: Path) -> Source:
    """The dictionary in `folder`; a safetensors file goes before a pickled one.

    Raises:
        GatedError: it is damaged, hostile, of another class, or config.json is missing.
    """
    described = _description(folder / CONFIG)
    trainer = described.get("trainer", {})
    if not isinstance(trainer, dict):
        _refuse(folder / CONFIG, "its 'trainer' is no table")
    if trainer.get("dict_class", DICT_CLASS) != DICT_CLASS:
        _refuse(folder / CONFIG, f"it is of the class {str(trainer['dict_class'])!r}")
    if (folder / WEIGHTS).exists():
        path, weights = folder / WEIGHTS, _of_safetensors(folder / WEIGHTS)
    else:
        path, weights = folder / PICKLED, _of_checkpoint(folder / PICKLED)
    d_in, d_sae = weights.W_enc.shape
    for key, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        if trainer.get(key, size) != size:
            _refuse(path, f"config.json says {key} = {trainer[key]!r}, but it has {size}")
    return Source(
        layout="dictionary_learning",
        files=(path, folder / CONFIG),
        weights=weights,
        cfg=GatedSAEConfig(d_in, d_sae, metadata=_metadata(described, trainer)),
        described=described,
        parts=_parts(weights),
    )


def write(source: Source, norms: Tensor, folder: Path) -> None:
    """Write `source` with its decoder norms folded in, float32.

    Args:
        norms: factors of `folding` [d_sae].

    Raises:
        GatedError: the layout cannot say what the source does.
    """
    if not source.cfg.apply_b_dec_to_input:
        raise GatedError(
            f"{source.files[1]} does not subtract b_dec from its input, as dictionary_learning "
            "always does; convert to saelens."
        )
    weights = source.weights
    vectors = {
        "decoder_bias": weights.b_dec,
        "gate_bias": weights.b_gate * norms,
        "mag_bias": weights.b_mag * norms,
        "r_mag": weights.r_mag,
    }
    write_tensors(
        folder / WEIGHTS,
        {
            "encoder.weight": scaled(weights.W_enc.T, "F32", rows=norms),
            "decoder.weight": scaled(weights.W_dec.T, "F32", columns=1 / norms),
            **{name: whole(rounded(value, "F32", name)) for name, value in vectors.items()},
        },
    )
    write_json(folder / CONFIG, without_machine_paths(_trainer_config(source)))


def parts(folder: Path) -> Parts:
    """A result by the library's formula."""
    return _parts(_of_safetensors(folder / WEIGHTS))


@dataclass(frozen=True)
class GatedAutoEncoder:
    """The library's formula, in the type of its parameters, which bear SAELens' names."""

    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Features [rows, d_sae] of activations [rows, d_in]."""
        shared = (x - self.b_dec) @ self.W_enc
        magnitude = (self.r_mag.exp() * shared + self.b_mag).relu()
        return (shared + self.b_gate > 0) * magnitude

    def decode(self, features: Tensor) -> Tensor:
        """Reconstructions [rows, d_in]."""
        return features @ self.W_dec + self.b_dec


def _parts(weights: GatedWeights) -> Parts:
    def part(chosen: slice) -> GatedAutoEncoder:
        return GatedAutoEncoder(
            weights.W_enc.part(columns=chosen),
            weights.W_dec.part(rows=chosen),
            weights.b_dec,
            weights.b_gate[chosen],
            weights.b_mag[chosen],
            weights.r_mag[chosen],
        )

    return part


def _of_safetensors(path: Path) -> GatedWeights:
    file = TensorFile.open(path)
    _require_gated({name: info.shape for name, info in file.tensors.items()}, path)
    for name, info in file.tensors.items():
        if info.dtype not in ("F64", "F32", "F16", "BF16"):
            _refuse(path, f"{name} is {info.dtype}, which is no type of weights")
    vectors = {ours: vector(file, name) for name, ours in VECTORS.items() if name in file.tensors}
    return GatedWeights(
        W_enc=matrix(file, "encoder.weight").T,
        W_dec=matrix(file, "decoder.weight").T,
        **_with_magnitude_scale(vectors),
    )


def _of_checkpoint(path: Path) -> GatedWeights:
    file = Checkpoint.open(path)
    _require_gated(file.shapes, path)
    vectors = {ours: file.vector(name) for name, ours in VECTORS.items() if name in file.shapes}
    return GatedWeights(
        W_enc=file.matrix("encoder.weight").T,
        W_dec=file.matrix("decoder.weight").T,
        **_with_magnitude_scale(vectors),
    )


def _with_magnitude_scale(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"r_mag": torch.zeros_like(vectors["b_mag"]), **vectors}


def _require_gated(shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    required = {"encoder.weight", "decoder.weight", *VECTORS} - {"r_mag"}
    for name in sorted(required - shapes.keys()):
        _refuse(path, f"it lacks {name!r}")
    for name in sorted(shapes.keys() - required - {"r_mag"}):
        _refuse(path, f"it holds an unknown tensor {name!r}")
    if len(shapes["encoder.weight"]) != 2 or not all(shapes["encoder.weight"]):
        _refuse(path, f"encoder.weight has the shape {shapes['encoder.weight']}")
    d_sae, d_in = shapes["encoder.weight"]
    fitting: dict[str, tuple[int, ...]] = dict.fromkeys(VECTORS, (d_sae,))
    fitting |= {"encoder.weight": (d_sae, d_in), "decoder.weight": (d_in, d_sae)}
    fitting |= {"decoder_bias": (d_in,)}
    for name, shape in shapes.items():
        if shape != fitting[name]:
            _refuse(path, f"{name} has the shape {shape}, which does not fit encoder.weight")


def _description(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_CFG:
            _refuse(path, f"it has {path.stat().st_size:,} bytes, where some hundred are usual")
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GatedError(
            f"{path} is missing, so nobody says what the dictionary was trained on; fetch it too, "
            'or write {"trainer": {"lm_name": "org/model", "layer": 8, "submodule_name": '
            '"resid_post_layer_8"}} into it.'
        ) from None
    except (ValueError, RecursionError):
        _refuse(path, "it is no valid JSON")
    if not isinstance(described, dict):
        _refuse(path, "it is no table of settings")
    return described


def _metadata(described: dict[str, Any], trainer: dict[str, Any]) -> SAEMetadata:
    """What config.json says, by SAELens' names; where it does not say, nothing is guessed."""
    buffer = described.get("buffer")
    context_size = buffer.get("ctx_len") if isinstance(buffer, dict) else None
    found = {
        "model_name": trainer.get("lm_name"),
        "hook_name": _hook_name(trainer.get("submodule_name")),
        "context_size": context_size,
    }
    known = {name: value for name, value in found.items() if value is not None}
    return SAEMetadata(sae_lens_training_version=None, **known)


def _hook_name(submodule: Any) -> str | None:
    """`blocks.8.hook_resid_post` for `resid_post_layer_8`."""
    named = SUBMODULE.fullmatch(submodule) if isinstance(submodule, str) else None
    if named is None or named[1] not in POINTS:
        return None
    return f"blocks.{named[2]}.{POINTS[named[1]]}"


def _trainer_config(source: Source) -> dict[str, Any]:
    """config.json; the library's own loader asks for `dict_class` alone."""
    sizes = {"activation_dim": source.cfg.d_in, "dict_size": source.cfg.d_sae}
    if source.layout == "dictionary_learning":
        known = source.described.get("trainer", {})
        return {**source.described, "trainer": {**known, "dict_class": DICT_CLASS, **sizes}}
    metadata = source.cfg.metadata
    trainer: dict[str, Any] = {"dict_class": DICT_CLASS, **sizes}
    if metadata.model_name is not None:
        trainer["lm_name"] = metadata.model_name
    block = IN_BLOCK.fullmatch(metadata.hook_name or "")
    if block is not None:
        trainer["layer"] = int(block[1])
        trainer["submodule_name"] = f"{SITES.get(block[2], block[2])}_layer_{block[1]}"
    described: dict[str, Any] = {"trainer": trainer}
    if metadata.context_size is not None:
        described["buffer"] = {"ctx_len": metadata.context_size}
    return described


def _refuse(path: Path, reason: str) -> NoReturn:
    raise GatedError(f"{path} is no gated dictionary: {reason}; make or fetch it again.")
