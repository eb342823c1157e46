"""What counts as the same features and reconstructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from gated_plugin.errors import GatedError
from gated_plugin.hub import verification
from gated_plugin.hub.staging import folded
from gated_plugin.hub.verification import TOLERANCE, compare, verify


@pytest.fixture
def sae(run):
    return folded(run)


@pytest.fixture
def x(run):
    return load_file(run.activations)["activations"]


@pytest.fixture
def in_this_process(monkeypatch):
    """Loads the folder here, so that no process need be started."""

    def run_here(activations: Path, output: Path, source: tuple[str, ...]) -> None:
        save_file(made_by(SAE.load_from_disk(source[0]), activations), output)

    monkeypatch.setattr(verification, "_run_plain", run_here)


def made_by(sae, activations: Path) -> dict[str, torch.Tensor]:
    x, made = load_file(activations)["activations"], {}
    for kind in ("float64", "float32"):
        dtype = getattr(torch, kind)
        made[f"features_{kind}"] = sae.to(dtype).encode(x.to(dtype)).detach()
        made[f"reconstructions_{kind}"] = sae.decode(made[f"features_{kind}"]).detach()
    return made


def compared(sae, x, features=None, shift=0.0):
    with torch.no_grad():
        features = sae.encode(x) if features is None else features
        return compare(sae, x, features, sae.decode(features) + shift)


def test_differences_are_measured_by_themselves_and_against_the_largest_value(sae, x):
    features = sae.encode(x).detach()
    largest = features.max().item()
    row, feature = divmod(features.argmax().item(), features.shape[1])
    features[row, feature] += 0.5
    agreement = compared(sae, x, features, shift=0.25)

    assert agreement.features == pytest.approx(0.5, rel=1e-4)
    assert agreement.features_relative == pytest.approx(0.5 / largest, rel=1e-4)
    assert agreement.reconstructions == pytest.approx(0.25, rel=1e-4)
    assert agreement.reconstructions_relative < agreement.reconstructions


def test_large_activations_are_judged_by_their_scale(sae, x):
    large = 1000 * x
    apart = 1e-6 * sae.encode(large).detach()
    agreement = compared(sae, large, sae.encode(large).detach() + apart)
    assert agreement.features > TOLERANCE
    assert agreement.features_relative < TOLERANCE


def test_a_gate_within_rounding_of_zero_may_flip(sae, x):
    opened = (sae.encode(x) > 0).nonzero()
    row, feature = opened[len(opened) // 2].tolist()
    pre = (sae.process_sae_in(x[row]) @ sae.W_enc)[feature]
    with torch.no_grad():
        sae.b_gate[feature] = 1e-6 - pre
        assert sae.encode(x)[row, feature] > 0.01
        features = sae.encode(x)
    features[row, feature] = 0
    assert compared(sae, x, features).features == 0


def test_a_gate_that_is_surely_open_may_not_be_closed(sae, x):
    features = sae.encode(x).detach()
    value, place = features.flatten().max(0)
    features.view(-1)[place] = 0
    assert compared(sae, x, features).features == pytest.approx(value.item())


def test_in_float64_the_same_parameters_make_the_same_to_the_last_digits(
    run, sae, in_this_process, tmp_path
):
    sae.save_model(tmp_path)
    agreement = verify(sae, run.activations, str(tmp_path))
    assert agreement.max_abs_diff < 1e-12
    assert sae.dtype == torch.float32


def test_a_folder_that_differs_from_memory_is_refused(run, sae, in_this_process):
    weights = load_file(run.sae / "sae_weights.safetensors")
    # Equal for the plugin and for plain SAELens, but not what was staged.
    save_file({**weights, "b_dec": weights["b_dec"] + 0.01}, run.sae / "sae_weights.safetensors")
    with pytest.raises(GatedError, match="Plain SAELens differs from the plugin by"):
        verify(sae, run.activations, str(run.sae))


@pytest.mark.parametrize(
    "spoiled", ["features_float32", "reconstructions_float32", "features_float64"]
)
def test_nan_is_never_the_same(run, sae, monkeypatch, spoiled):
    def run_with_nan(activations: Path, output: Path, source: tuple[str, ...]) -> None:
        values = made_by(sae, activations)
        values[spoiled][0, 0] = float("nan")
        save_file(values, output)

    monkeypatch.setattr(verification, "_run_plain", run_with_nan)
    with pytest.raises(GatedError, match="differs"):
        verify(sae, run.activations, str(run.sae))


def test_what_saelens_cannot_load_is_refused_with_its_reason(run, sae, tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("raise ValueError('no such key: W_dec')")
    monkeypatch.setattr(verification, "SCRIPT", script)
    with pytest.raises(GatedError, match=r"cannot load .*no such key: W_dec"):
        verify(sae, run.activations, str(run.sae))


def test_activations_of_another_width_are_refused(run, sae):
    save_file({"activations": torch.zeros(4, 3)}, run.activations)
    with pytest.raises(GatedError, match="does not fit"):
        verify(sae, run.activations, str(run.sae))


def test_a_process_with_the_plugin_does_not_pass_for_plain_saelens(run, tmp_path):
    with_plugin = {k: v for k, v in os.environ.items() if k != "GATED_PLUGIN_AUTOLOAD"}
    output = tmp_path / "output.safetensors"
    result = subprocess.run(
        [sys.executable, verification.SCRIPT, run.activations, output, run.sae],
        env=with_plugin,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "This process is not plain SAELens" in result.stderr
    assert not output.exists()
