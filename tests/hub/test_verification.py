"""What counts as the same features and reconstructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from gated_plugin.errors import GatedError
from gated_plugin.hub import index, plain_saelens, verification
from gated_plugin.hub.plain_saelens import features_and_reconstructions
from gated_plugin.hub.staging import stage
from gated_plugin.hub.verification import TOLERANCE, compare, verify, verify_folders
from gated_plugin.loading import load


@pytest.fixture
def folder(run, tmp_path):
    """The SAE of the run as it is published."""
    stage(run, index.measured(run), tmp_path / "staged")
    return tmp_path / "staged"


@pytest.fixture
def sae(folder):
    return load(folder)


@pytest.fixture
def x(run):
    return load_file(run.activations)["activations"]


@pytest.fixture
def in_this_process(monkeypatch):
    """Loads the folder here, so that no process need be started."""

    def run_here(jobs: list[dict]) -> None:
        for job in jobs:
            save_file(made_by(SAE.load_from_disk(job["source"][0]), job), job["output"])

    monkeypatch.setattr(verification, "_run_plain", run_here)


def made_by(sae, job: dict) -> dict[str, torch.Tensor]:
    x, made = load_file(job["activations"])["activations"][: job["rows"]], {}
    for kind in ("float64", "float32"):
        found = features_and_reconstructions(sae, x, getattr(torch, kind))
        made[f"features_{kind}"], made[f"reconstructions_{kind}"] = found
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_a_dictionary_in_blocks_computes_what_it_does_as_a_whole(
    sae, x, monkeypatch, dtype, normalize
):
    monkeypatch.setattr(plain_saelens, "BLOCK", 16 * 7)
    sae.cfg.normalize_activations = normalize
    sae._setup_activation_normalization()
    features, reconstructions = features_and_reconstructions(sae, x, dtype)
    sae.to(dtype)
    whole = sae.encode(x.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (features - whole).abs().max() < tolerance
    assert (reconstructions - sae.decode(whole)).abs().max() < tolerance


def test_a_wide_dictionary_is_compared_on_fewer_rows(run, sae):
    assert len(verification.recorded(run.activations, sae.cfg)) == 64
    sae.cfg.d_sae = 131072
    assert len(verification.recorded(run.activations, sae.cfg)) == 8


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


def test_in_float64_the_same_parameters_make_the_same_to_the_last_digits(folder):
    (compared,) = verify_folders([folder])
    assert compared["rows"] == 64
    assert compared["float64"]["features"] < 1e-12
    assert compared["float64"]["reconstructions"] < 1e-12
    assert 0 < compared["float32"]["features_relative"] < 1e-5


def test_a_folder_that_differs_from_memory_is_refused(run, sae, folder, in_this_process):
    weights = load_file(folder / "sae_weights.safetensors")
    # Equal for the plugin and for plain SAELens, but not what is in memory.
    save_file({**weights, "b_dec": weights["b_dec"] + 0.01}, folder / "sae_weights.safetensors")
    with pytest.raises(GatedError, match="Plain SAELens differs from the plugin by"):
        verify(sae, run.activations, str(folder))


@pytest.mark.parametrize(
    "spoiled", ["features_float32", "reconstructions_float32", "features_float64"]
)
def test_nan_is_never_the_same(run, sae, monkeypatch, spoiled):
    def run_with_nan(jobs: list[dict]) -> None:
        values = made_by(sae, jobs[0])
        values[spoiled][0, 0] = float("nan")
        save_file(values, jobs[0]["output"])

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
    job = {"source": [str(run.sae)], "activations": str(run.activations), "rows": 4}
    result = subprocess.run(
        [sys.executable, verification.SCRIPT],
        input=json.dumps([{**job, "output": str(output)}]),
        env=with_plugin,
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "This process is not plain SAELens" in result.stderr
    assert not output.exists()
