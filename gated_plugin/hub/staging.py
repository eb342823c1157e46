"""A run → the folder of one SAE as it shall lie on the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gated_plugin.dictionaries import (
    ACTIVATIONS,
    CFG,
    FEATURES,
    RECORDED,
    SPARSITY,
    WEIGHTS,
    Dictionary,
    read_rows,
    require_finite,
)
from gated_plugin.errors import GatedError
from gated_plugin.hub import naming
from gated_plugin.runs import Run, write_json
from gated_plugin.tensor_files import Stream, whole, write_tensors

if TYPE_CHECKING:
    from torch import Tensor


def stage(run: Run, figures: dict[str, Any], folder: Path) -> Dictionary:
    """Fold the run's SAE, write it into `folder` with what belongs to it, and check what was
    written.

    Folding the decoder norm, W_dec[m] / n, W_enc[:, m] n, b_gate[m] n, b_mag[m] n with
    n = ‖W_dec[m]‖, leaves every reconstruction as it is. It goes block by block: the memory is
    that of one block.

    Args:
        figures: of the evaluation, `l0` and `alive` among them.

    Raises:
        GatedError: the run's SAE is damaged, not gated, not finite, or has a decoder row of norm 0.
    """
    with _or(f"train again with `gated-hub train {run.recipe} --out {run.path}-again`"):
        trained = Dictionary.open(run.sae)
        folder.mkdir(parents=True)
        write_tensors(folder / WEIGHTS, _folded(trained))
        _copy_vectors(run.sae / SPARSITY, folder / SPARSITY, ["sparsity"], trained.cfg.d_sae)
    write_json(folder / CFG, _description(trained, figures))
    with _or(f"run `gated-hub eval {run.path}`"):
        if run.features.exists():
            names = ["firing_rate", "mean_magnitude"]
            _copy_vectors(run.features, folder / FEATURES, names, trained.cfg.d_sae)
        x = read_rows(run.activations, "activations", (None, trained.cfg.d_in), RECORDED)
        write_tensors(folder / ACTIVATIONS, {"activations": whole(x)})
    for plot in sorted(run.plots.glob("*.png")):
        (folder / "plots").mkdir(exist_ok=True)
        shutil.copyfile(plot, folder / "plots" / plot.name)
    staged = Dictionary.open(folder)
    staged.require_sound()
    return staged


@contextmanager
def _or(advice: str) -> Iterator[None]:
    """Adds to a sentence about a file what writes it anew."""
    try:
        yield
    except GatedError as error:
        raise GatedError(f"{str(error).rstrip('.')}, or {advice}.") from error


def _folded(trained: Dictionary) -> dict[str, Stream]:
    """Every tensor in float32."""
    norms = trained.decoder_norms()
    if not norms.all():
        raise GatedError(
            f"{int((norms == 0).sum())} of {len(norms)} decoder rows in {trained.weights.path} are "
            "zero, so that their features have no direction; take another checkpoint."
        )
    scales = {
        "W_enc": lambda block, _: block * norms,
        "W_dec": lambda block, start: block / norms[start : start + len(block), None],
        "b_gate": lambda block, start: block * norms[start : start + len(block)],
        "b_mag": lambda block, start: block * norms[start : start + len(block)],
    }

    def blocks(name: str) -> Iterator[Tensor]:
        for start, block in trained.weights.blocks(name):
            require_finite(block, name, trained.weights.path)
            scale = scales.get(name)
            yield scale(block.float(), start) if scale else block.float()

    tensors = trained.weights.tensors
    return {name: Stream("F32", info.shape, blocks(name)) for name, info in tensors.items()}


def _description(trained: Dictionary, figures: dict[str, Any]) -> dict[str, Any]:
    """cfg.json. SAELens' trainer left in its metadata what it saw last while training."""
    cfg = trained.cfg
    metadata = {**cfg.metadata.to_dict(), "l0": figures["l0"]}
    metadata["num_dead_features"] = round((1 - figures["alive"]) * cfg.d_sae)
    described = {**cfg.to_dict(), "dtype": "float32", "device": "cpu", "metadata": metadata}
    found: dict[str, Any] = naming.without_machine_paths(json.loads(json.dumps(described)))
    return found


def _copy_vectors(source: Path, target: Path, names: Sequence[str], length: int) -> None:
    found = {name: read_rows(source, name, (length,), length) for name in names}
    write_tensors(target, {name: whole(tensor) for name, tensor in found.items()})
