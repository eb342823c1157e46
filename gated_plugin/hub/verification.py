"""Whether plain SAELens, without this plugin, makes the same of an SAE as the plugin does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from gated_plugin.dictionaries import ACTIVATIONS, RECORDED, Dictionary, read_rows
from gated_plugin.errors import GatedError
from gated_plugin.hub.plain_saelens import BLOCK, features_and_reconstructions
from gated_plugin.tensor_files import TensorFile

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEConfig
    from torch import Tensor

TOLERANCE = 1e-5
"""Largest difference: absolute in float64, and relative to the largest value in both types.

In float64 rounding is out of the way, and what is left would be another function. In float32, in
which people use it, rounding grows with the operands: residual streams reach norms of many
hundreds, where 1e-5 by itself is below the spacing of floats."""

SCRIPT = Path(__file__).with_name("plain_saelens.py")


class Difference(NamedTuple):
    """Largest absolute differences between SAELens and the plugin; then over the largest value."""

    features: float
    reconstructions: float
    features_relative: float
    reconstructions_relative: float


class Agreement(NamedTuple):
    """How far SAELens and the plugin are apart when both compute in float64, and in float32."""

    float64: Difference
    float32: Difference

    @property
    def max_abs_diff(self) -> float:
        """In float64: the stored parameters' own values, without rounding."""
        return max(self.float64.features, self.float64.reconstructions)

    @property
    def max_abs_diff_float32(self) -> float:
        """In float32, in units of the activations: rounding, which grows with their size."""
        return max(self.float32.features, self.float32.reconstructions)

    @property
    def is_close(self) -> bool:
        """Within `TOLERANCE`; NaN is not."""
        # all() over comparisons, for NaN is below nothing, but max() may drop it.
        return all(value <= TOLERANCE for value in (*self.float64, *self.float32[2:]))


def verify_folders(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The agreement over each SAE's folder and the activations in it, as a certificate says it.

    Plain SAELens goes first and is gone when the plugin loads the SAEs, so that there is never more
    than one in memory.

    Raises:
        GatedError: SAELens cannot load one, or differs by more than `TOLERANCE`.
    """
    from gated_plugin import loading
    from gated_plugin.engine import options

    compared = []
    dictionaries = [Dictionary.open(folder) for folder in folders]
    with TemporaryDirectory() as scratch:
        xs = [recorded(each.path / ACTIVATIONS, each.cfg) for each in dictionaries]
        jobs = [
            _job((str(each.path),), each.path / ACTIVATIONS, len(x), Path(scratch) / f"{number}")
            for number, (each, x) in enumerate(zip(dictionaries, xs, strict=True))
        ]
        _run_plain(jobs)
        for dictionary, x, job in zip(dictionaries, xs, jobs, strict=True):
            sae = loading.read(dictionary, "float32")
            with options.use(impl="dense"):  # the sparse engine keeps half of the weights once more
                agreement = _agreement(sae, x, job)
            compared.append({"rows": len(x), **as_json(agreement)})
            del sae
    return compared


def verify(sae: SAE[Any], activations: Path, *source: str) -> Agreement:
    """Load `source` in a new process with plain SAELens and compare on recorded activations.

    Args:
        sae: the same SAE in this process, with the plugin, float32 on the CPU.
        activations: a file with "activations" [rows, d_in].
        source: one folder; or a repository id and an SAE id, for SAE.from_pretrained.

    Raises:
        GatedError: SAELens cannot load it, or differs by more than `TOLERANCE`.
    """
    x = recorded(activations, sae.cfg)
    with TemporaryDirectory() as scratch:
        job = _job(source, activations, len(x), Path(scratch) / "plain")
        _run_plain([job])
        return _agreement(sae, x, job)


def recorded(activations: Path, cfg: SAEConfig) -> Tensor:
    """So many recorded activations [rows, d_in] that their features in float64 stay small beside
    the dictionary."""
    rows = max(8, min(RECORDED, BLOCK // cfg.d_sae))
    return read_rows(activations, "activations", (None, cfg.d_in), rows)


def as_json(agreement: Agreement) -> dict[str, dict[str, float]]:
    """What a certificate says of it."""
    return {name: part._asdict() for name, part in agreement._asdict().items()}


def _agreement(sae: SAE[Any], x: Tensor, job: dict[str, Any]) -> Agreement:
    import torch

    plain = TensorFile.open(Path(job["output"]))
    differences = {}
    for kind in (torch.float64, torch.float32):
        name = str(kind).removeprefix("torch.")
        differences[name] = compare(
            sae, x.to(kind), plain.read(f"features_{name}"), plain.read(f"reconstructions_{name}")
        )
    agreement = Agreement(**differences)
    if not agreement.is_close:
        raise GatedError(
            f"Plain SAELens differs from the plugin by {agreement.max_abs_diff:.1e} in float64 and "
            f"{agreement.max_abs_diff_float32:.1e} in float32 on {' '.join(job['source'])}, which is "
            "more than rounding; run `gated-hub doctor` and report its output."
        )
    return agreement


def compare(sae: SAE[Any], x: Tensor, features: Tensor, reconstructions: Tensor) -> Difference:
    """How far `features` and `reconstructions` are from what `sae` makes of `x` [rows, d_in].

    A gate whose pre-activation is nearer to zero than the type of `x` can resolve may be open in
    one process and closed in the other; then its feature is not compared. In float32 the
    reconstructions are compared with the decoding of the very features that they were made of.
    """
    import torch

    sae.turn_off_forward_pass_hook_z_reshaping()
    with torch.no_grad():
        if x.dtype == torch.float64:
            ours, decoded = features_and_reconstructions(sae, x, x.dtype)
        else:
            ours, decoded = sae.encode(x), sae.decode(features)
        flipped = (ours > 0) != (features > 0)
        difference = (ours - features).abs()
        for row, feature in flipped.nonzero()[: len(x)].tolist():
            if _is_within_rounding(sae, x[row], feature):
                difference[row, feature] = 0
    apart = difference.max().item()
    apart_decoded = (decoded - reconstructions).abs().max().item()
    return Difference(
        apart, apart_decoded, _over(apart, ours), _over(apart_decoded, reconstructions)
    )


def _is_within_rounding(sae: SAE[Any], x: Tensor, feature: int) -> bool:
    """|π + b_gate| ≤ γ_n ‖x − b_dec‖ ‖w‖ + u |b_gate|, with γ_n = n u / (1 − n u)."""
    import torch

    unit = torch.finfo(x.dtype).eps / 2
    x = sae.process_sae_in(x.to(sae.dtype)).double()
    w, bias = sae.W_enc[:, feature].double(), sae.b_gate[feature].double()
    gamma = len(x) * unit / (1 - len(x) * unit)
    bound = gamma * x.norm() * w.norm() + unit * bias.abs()
    return bool((x @ w + bias).abs() <= bound)


def _over(difference: float, values: Tensor) -> float:
    largest = values.abs().max().item()
    return difference / largest if largest else difference


def _job(source: Sequence[str], activations: Path, rows: int, output: Path) -> dict[str, Any]:
    """For plain_saelens.py."""
    return {
        "source": list(source),
        "activations": str(activations),
        "rows": rows,
        "output": str(output),
    }


def _run_plain(jobs: Sequence[dict[str, Any]]) -> None:
    import torch

    # A product split over other threads is rounded in another order.
    environment = {
        **os.environ,
        "GATED_PLUGIN_AUTOLOAD": "0",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    result = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input=json.dumps(jobs),
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        cause = (result.stderr.strip().splitlines() or ["no message"])[-1]
        done = sum(Path(job["output"]).exists() for job in jobs)
        raise GatedError(
            f"Plain SAELens cannot load {' '.join(jobs[done]['source'])} ({cause}); "
            "run `gated-hub doctor` and report its output."
        )
