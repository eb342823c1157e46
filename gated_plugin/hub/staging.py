"""A run → the folder that a push sends, written from scratch each time."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gated_plugin.errors import GatedError
from gated_plugin.hub import card, index, naming
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run, write_json

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

CFG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
UNIT_NORM_TOLERANCE = 1e-5
NEEDS_DATA = ("expected_average_only_in", "covariance_whitening")
"""Normalisations whose statistics are not in the files, so that SAELens cannot apply them."""


@dataclass(frozen=True)
class Staged:
    """What is ready to be sent."""

    folder: Path
    """Everything that the repository shall hold, by its path there."""
    sae_id: str
    sae: SAE[Any]
    """What was written into `folder / sae_id`, still in memory."""


def stage(run: Run, repo_id: str, siblings: Sequence[index.Entry] = ()) -> Staged:
    """Fold the run's SAE, check it, and write `run.publication` anew.

    Args:
        siblings: entries of the index of `repo_id` as it is now; the new card and index keep
            those of other SAEs.

    Raises:
        GatedError: the SAE is damaged, not finite, not folded or not of unit norm; the evaluation
            lacks a figure; or the siblings read another language model.
    """
    recipe = Recipe.load(run.recipe)
    figures = index.measured(run)
    sae = folded(run)
    # SAELens' trainer left there what it saw last while training.
    sae.cfg.metadata.l0 = figures["l0"]
    sae.cfg.metadata.num_dead_features = round((1 - figures["alive"]) * sae.cfg.d_sae)
    sae_id = naming.sae_id(recipe.runner["hook_name"], sae.cfg.d_sae, figures["l0"])
    unfinished = run.publication.with_name(f".{run.publication.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _write_sae(sae, run, unfinished / sae_id)
    entry = index.entry(recipe, figures, _about(sae, sae_id, unfinished / sae_id))
    others = [sibling for sibling in siblings if sibling["id"] != sae_id]
    _require_one_model([entry, *others], repo_id)
    content = index.index([entry, *others])
    write_json(unfinished / index.FILENAME, content)
    text = card.render(repo_id, content["saes"], recipe.publish)
    (unfinished / "README.md").write_text(text, encoding="utf-8")
    shutil.rmtree(run.publication, ignore_errors=True)
    unfinished.rename(run.publication)
    return Staged(run.publication, sae_id, sae)


def folded(run: Run) -> SAE[Any]:
    """The run's SAE in float32 on the CPU, decoder norms folded in, fit to be published.

    Raises:
        GatedError: it is damaged, not gated, or not finite; its activation scaling is not folded
            in; or a decoder row has no direction.
    """
    sae = _loaded(run)
    if sae.cfg.architecture() != "gated":
        raise GatedError(
            f"{run.sae} is of architecture {sae.cfg.architecture()!r}, but the card describes "
            "gated SAEs; publish it with sae_lens.upload_saes_to_huggingface."
        )
    if sae.cfg.normalize_activations in NEEDS_DATA:
        raise GatedError(
            f"{run.sae} still expects activations scaled by {sae.cfg.normalize_activations!r}, "
            "which nobody who loads it could do; fold it in by finishing the training with "
            f"`gated-hub train {run.recipe} --out {run.path} --resume`."
        )
    for name, tensor in sae.state_dict().items():
        if not tensor.isfinite().all():
            raise GatedError(
                f"{name} in {run.sae / WEIGHTS} holds NaN or infinity; train the run again with "
                f"`gated-hub train {run.recipe} --out {run.path}-again`."
            )
    sae.fold_W_dec_norm()
    off = (sae.W_dec.norm(dim=1) - 1).abs() > UNIT_NORM_TOLERANCE
    if off.any():
        raise GatedError(
            f"{int(off.sum())} of {len(off)} decoder rows in {run.sae / WEIGHTS} are zero, so that "
            "their features have no direction; train the run again with "
            f"`gated-hub train {run.recipe} --out {run.path}-again`."
        )
    return sae


def read_tensor(path: Path, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """One tensor of a safetensors file of the run.

    Args:
        shape: what it must have; None stands for any length.

    Raises:
        GatedError: the file is missing or damaged, or holds another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensor = load_file(path)[name]
    except (OSError, SafetensorError, KeyError) as error:
        raise GatedError(
            f"{path} is missing or damaged ({error}); run the step that writes it again."
        ) from error
    fits = [want in (None, have) for want, have in zip(shape, tensor.shape, strict=False)]
    if tensor.dim() != len(shape) or not all(fits):
        raise GatedError(
            f"{name} in {path} has the shape {tuple(tensor.shape)}, which does not fit the SAE; "
            "run the step that writes it again."
        )
    return tensor


def _loaded(run: Run) -> SAE[Any]:
    from sae_lens import SAE
    from safetensors import SafetensorError

    try:
        return SAE.load_from_disk(run.sae, device="cpu", dtype="float32")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        # load_state_dict alone names shapes that differ from cfg.json, in a RuntimeError.
        cause = " ".join(str(error).split())
        raise GatedError(
            f"The SAE in {run.sae} is damaged ({cause}); train the run again with "
            f"`gated-hub train {run.recipe} --out {run.path}-again`."
        ) from error


def _write_sae(sae: SAE[Any], run: Run, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    # safetensors refuses tensors with transposed strides.
    tensors = {name: tensor.contiguous() for name, tensor in sae.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    write_json(folder / CFG, naming.without_machine_paths(sae.cfg.to_dict()))
    sparsity = read_tensor(run.sae / SPARSITY, "sparsity", (sae.cfg.d_sae,))
    save_file({"sparsity": sparsity.contiguous()}, folder / SPARSITY)
    for plot in sorted(run.plots.glob("*.png")):
        (folder / "plots").mkdir(exist_ok=True)
        shutil.copyfile(plot, folder / "plots" / plot.name)


def _about(sae: SAE[Any], sae_id: str, folder: Path) -> dict[str, Any]:
    weights = folder / WEIGHTS
    with weights.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "id": sae_id,
        "d_in": sae.cfg.d_in,
        "dtype": sae.cfg.dtype,
        "bytes": weights.stat().st_size,
        "sha256": digest.hexdigest(),
        "plots": sorted(plot.name for plot in folder.glob("plots/*.png")),
    }


def _require_one_model(entries: Sequence[index.Entry], repo_id: str) -> None:
    models = sorted({entry["model"] for entry in entries})
    if len(models) > 1:
        raise GatedError(
            f"{repo_id} would hold SAEs of more than one language model ({', '.join(models)}); "
            "push to another repository."
        )
