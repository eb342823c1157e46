"""Whether plain SAELens, without this plugin, makes the same of an SAE as the plugin does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from gated_plugin.errors import GatedError
from gated_plugin.hub.staging import read_tensor

if TYPE_CHECKING:
    from sae_lens import SAE
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


def verify(sae: SAE[Any], activations: Path, *source: str) -> Agreement:
    """Load `source` in a new process with plain SAELens and compare on recorded activations.

    Args:
        sae: the same SAE in this process, with the plugin, float32 on the CPU.
        activations: a file with "activations" [rows, d_in].
        source: one folder; or a repository id and an SAE id, for SAE.from_pretrained.

    Raises:
        GatedError: SAELens cannot load it, or differs by more than `TOLERANCE`.
    """
    import torch

    x = read_tensor(activations, "activations", (None, sae.cfg.d_in))
    with TemporaryDirectory() as folder:
        output = Path(folder) / "plain.safetensors"
        _run_plain(activations, output, source)
        differences = {}
        for dtype in (torch.float64, torch.float32):  # float32 last: the SAE ends as it came
            kind = str(dtype).removeprefix("torch.")
            differences[kind] = compare(
                sae.to(dtype),
                x.to(dtype),
                read_tensor(output, f"features_{kind}", (len(x), sae.cfg.d_sae)),
                read_tensor(output, f"reconstructions_{kind}", tuple(x.shape)),
            )
    agreement = Agreement(**differences)
    if not agreement.is_close:
        raise GatedError(
            f"Plain SAELens differs from the plugin by {agreement.max_abs_diff:.1e} in float64 and "
            f"{agreement.max_abs_diff_float32:.1e} in float32 on {' '.join(source)}, which is more "
            "than rounding; run `gated-hub doctor` and report its output."
        )
    return agreement


def compare(sae: SAE[Any], x: Tensor, features: Tensor, reconstructions: Tensor) -> Difference:
    """How far `features` and `reconstructions` are from what `sae` makes of `x` [rows, d_in].

    A gate whose pre-activation is nearer to zero than the SAE's type can resolve may be open in one
    process and closed in the other; then its feature is not compared. The reconstructions are
    compared with the decoding of the very features that they were made of.
    """
    import torch

    sae.turn_off_forward_pass_hook_z_reshaping()
    with torch.no_grad():
        ours = sae.encode(x)
        decoded = sae.decode(features)
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

    x = sae.process_sae_in(x).double()
    w, bias = sae.W_enc[:, feature].double(), sae.b_gate[feature].double()
    unit = torch.finfo(sae.dtype).eps / 2
    gamma = len(x) * unit / (1 - len(x) * unit)
    bound = gamma * x.norm() * w.norm() + unit * bias.abs()
    return bool((x @ w + bias).abs() <= bound)


def _over(difference: float, values: Tensor) -> float:
    largest = values.abs().max().item()
    return difference / largest if largest else difference


def _run_plain(activations: Path, output: Path, source: tuple[str, ...]) -> None:
    import torch

    # A product split over other threads is rounded in another order.
    environment = {
        **os.environ,
        "GATED_PLUGIN_AUTOLOAD": "0",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(activations), str(output), *source],
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        cause = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise GatedError(
            f"Plain SAELens cannot load {' '.join(source)} ({cause}); "
            "run `gated-hub doctor` and report its output."
        )
