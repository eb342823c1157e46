"""A run's SAE as it shall lie on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from miniature import D_SAE
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from safetensors.torch import load_file, save_file

from gated_plugin.errors import GatedError
from gated_plugin.hub import index
from gated_plugin.hub.staging import stage
from gated_plugin.runs import Run


def spoil(run: Run, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(run.sae / "sae_weights.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, run.sae / "sae_weights.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "staged"


def staged(run: Run, folder: Path) -> SAE:
    stage(run, index.measured(run), folder)
    return SAE.load_from_disk(folder)


def test_folding_leaves_unit_rows_and_the_same_reconstructions(run, folder):
    trained = SAE.load_from_disk(run.sae)
    folded = staged(run, folder)
    x = load_file(run.activations)["activations"]

    assert (trained.W_dec.norm(dim=1) - 1).abs().max() > 0.1
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-6)
    assert torch.allclose(folded(x), trained(x), atol=1e-5)


def test_folding_by_blocks_is_saelens_own_folding(run, folder, monkeypatch):
    monkeypatch.setattr("gated_plugin.tensor_files.BLOCK_BYTES", 256)
    expected = SAE.load_from_disk(run.sae)
    expected.fold_W_dec_norm()
    folded = staged(run, folder).state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(folded[name], tensor, rtol=1e-6, atol=0), name


def test_an_sae_trained_in_bfloat16_is_published_in_float32(run, folder, edit):
    for name in load_file(run.sae / "sae_weights.safetensors"):
        spoil(run, name, lambda tensor: tensor.bfloat16())
    edit(run.sae / "cfg.json", dtype="bfloat16")
    folded = staged(run, folder)
    assert folded.cfg.dtype == "float32"
    assert {tensor.dtype for tensor in folded.state_dict().values()} == {torch.float32}
    assert (folded.W_dec.norm(dim=1) - 1).abs().max() < 1e-6


def test_what_was_recorded_is_staged_too(run, folder):
    facts = {name: torch.rand(D_SAE) for name in ("firing_rate", "mean_magnitude")}
    save_file(facts, run.features)
    staged(run, folder)
    found = load_file(folder / "features.safetensors")
    assert all(torch.equal(found[name], facts[name]) for name in facts)
    recorded = load_file(run.activations)["activations"]
    assert torch.equal(load_file(folder / "activations.safetensors")["activations"], recorded[:64])
    assert (folder / "plots" / "training.png").exists()


def test_the_metadata_says_what_was_measured_and_not_what_training_saw_last(run, folder):
    staged(run, folder)
    metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
    measured = json.loads(run.evaluation.read_text())
    assert metadata["l0"] == measured["l0"]
    assert metadata["num_dead_features"] == round((1 - measured["alive"]) * D_SAE)


def nan_in_weights(run: Run) -> None:
    spoil(run, "b_mag", lambda b_mag: b_mag.index_fill(0, torch.tensor([3]), float("nan")))


def zero_decoder_row(run: Run) -> None:
    spoil(run, "W_dec", lambda W_dec: W_dec.index_fill(0, torch.tensor([3]), 0.0))


def shape_unlike_cfg(run: Run) -> None:
    spoil(run, "W_enc", lambda W_enc: W_enc[:, :-1].contiguous())


def cut_weights(run: Run) -> None:
    path = run.sae / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_sparsity(run: Run) -> None:
    path = run.sae / "sparsity.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def sparsity_of_another_sae(run: Run) -> None:
    save_file({"sparsity": torch.zeros(3)}, run.sae / "sparsity.safetensors")


def no_cfg(run: Run) -> None:
    (run.sae / "cfg.json").write_text("{")


def scaling_not_folded(run: Run) -> None:
    cfg = json.loads((run.sae / "cfg.json").read_text())
    cfg["normalize_activations"] = "expected_average_only_in"
    (run.sae / "cfg.json").write_text(json.dumps(cfg))


def another_architecture(run: Run) -> None:
    StandardSAE(StandardSAEConfig(d_in=16, d_sae=64)).save_model(run.sae)


def features_of_another_sae(run: Run) -> None:
    save_file({name: torch.zeros(3) for name in ("firing_rate", "mean_magnitude")}, run.features)


def no_activations(run: Run) -> None:
    run.activations.unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (nan_in_weights, "b_mag holds NaN.*gated-hub train"),
        (zero_decoder_row, "1 of 64 decoder rows.*gated-hub train"),
        (shape_unlike_cfg, "W_enc has the shape"),
        (cut_weights, "end at byte"),
        (cut_sparsity, "sparsity.safetensors is no sound"),
        (sparsity_of_another_sae, "does not fit"),
        (no_cfg, "no valid JSON"),
        (scaling_not_folded, "'expected_average_only_in'"),
        (another_architecture, "'standard'"),
        (features_of_another_sae, "does not fit.*gated-hub eval"),
        (no_activations, "is missing.*gated-hub eval"),
    ],
)
def test_a_damaged_run_is_refused_with_what_mends_it(run, folder, damage, says):
    damage(run)
    with pytest.raises(GatedError, match=says) as refusal:
        stage(run, index.measured(run), folder)
    assert "\n" not in str(refusal.value)
