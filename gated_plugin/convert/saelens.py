"""The folder of a gated SAE as SAELens writes it, in float32 or in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sae_lens.loading.pretrained_sae_loaders import (
    get_sae_lens_config_from_disk,
    handle_config_defaulting,
)
from sae_lens.saes import gated_sae
from torch import Tensor

from gated_plugin.architecture import GatedSAE
from gated_plugin.convert.matrices import Matrix, matrix, rounded, scaled, vector
from gated_plugin.convert.weights import GatedWeights, Parts, Source
from gated_plugin.dictionaries import CFG, GATE_VECTORS, TYPES, WEIGHTS, Dictionary
from gated_plugin.errors import GatedError
from gated_plugin.hub.naming import without_machine_paths
from gated_plugin.runs import read_json, write_json
from gated_plugin.tensor_files import TensorFile, whole, write_tensors

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEConfig


def read(folder: Path) -> Source:
    """A gated SAE that SAELens, or `gated-hub`, wrote into `folder`.

    Raises:
        GatedError: it is damaged, of another architecture, or expects scaled activations.
    """
    dictionary = Dictionary.open(folder)
    cfg = dictionary.cfg
    if cfg.normalize_activations != "none":
        raise GatedError(
            f"{folder / CFG} scales its activations by {cfg.normalize_activations!r}, which no "
            "other format knows; convert an SAE that was trained without."
        )
    return Source(
        layout="saelens",
        files=(folder / WEIGHTS, folder / CFG),
        weights=gated_weights(dictionary.weights),
        cfg=cfg,
        described=read_json(folder / CFG),
        parts=parts(dictionary.weights, GatedSAE, cfg),
    )


def gated_weights(file: TensorFile) -> GatedWeights:
    """The tensors of a file whose names and shapes are known to be right."""
    vectors = {name: vector(file, name) for name in ("b_dec", *GATE_VECTORS)}
    return GatedWeights(matrix(file, "W_enc"), matrix(file, "W_dec"), **vectors)


def write(source: Source, norms: Tensor, folder: Path, dtype: str = "F32") -> None:
    """Write `source` with its decoder norms folded in; the gate vectors are always float32.

    Args:
        norms: factors of `folding` [d_sae].
        dtype: of the matrices and of b_dec, as safetensors names it.
    """
    weights = source.weights
    vectors = {"b_gate": weights.b_gate * norms, "b_mag": weights.b_mag * norms}
    vectors["r_mag"] = weights.r_mag
    write_tensors(
        folder / WEIGHTS,
        {
            "W_enc": scaled(weights.W_enc, dtype, columns=norms),
            "W_dec": scaled(weights.W_dec, dtype, rows=1 / norms),
            "b_dec": whole(rounded(weights.b_dec, dtype, "b_dec")),
            **{name: whole(rounded(value, "F32", name)) for name, value in vectors.items()},
        },
    )
    write_cfg(source, folder, gated_sae.GatedSAEConfig, dtype)


def write_cfg(source: Source, folder: Path, config: type[SAEConfig], dtype: str = "F32") -> None:
    """SAELens' description of the result, with what the source says of its language model."""
    names = {name: kind for kind, name in TYPES.items()}
    described = {**source.cfg.to_dict(), "architecture": config.architecture()}
    described |= {"dtype": names[dtype], "device": "cpu"}
    write_json(folder / CFG, without_machine_paths(json.loads(json.dumps(described))))


def parts(file: TensorFile, of_class: type[SAE[Any]], cfg: SAEConfig) -> Parts:
    """A dictionary in SAELens' layout, a slice of its features at a time.

    Args:
        of_class: that computes it; the names and shapes of its parameters must be those of `file`.
    """
    matrices: dict[str, Matrix] = {name: matrix(file, name) for name in ("W_enc", "W_dec")}
    vectors = {name: vector(file, name) for name in file.tensors.keys() - matrices.keys()}

    def part(chosen: slice) -> SAE[Any]:
        state = {name: found[chosen] for name, found in vectors.items() if name != "b_dec"}
        state["b_dec"] = vectors["b_dec"]
        state["W_enc"] = matrices["W_enc"].part(columns=chosen)
        state["W_dec"] = matrices["W_dec"].part(rows=chosen)
        described = {**cfg.to_dict(), "d_sae": chosen.stop - chosen.start}
        sae = of_class(type(cfg).from_dict({**described, "dtype": "float64", "device": "meta"}))
        sae.load_state_dict(state, assign=True)
        sae.device = torch.device("cpu")
        sae.turn_off_forward_pass_hook_z_reshaping()
        return sae

    return part


def result_parts(folder: Path, of_class: type[SAE[Any]], config: type[SAEConfig]) -> Parts:
    """What SAELens' own class makes of a result, by its own reading of cfg.json."""
    cfg = config.from_dict(handle_config_defaulting(get_sae_lens_config_from_disk(folder)))
    return parts(TensorFile.open(folder / WEIGHTS), of_class, cfg)


def gated_parts(folder: Path) -> Parts:
    """A gated result in SAELens' built-in class."""
    return result_parts(folder, gated_sae.GatedSAE, gated_sae.GatedSAEConfig)
