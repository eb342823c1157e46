"""What a push would send."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from miniature import D_SAE, RECIPE
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from safetensors.torch import load_file, save_file

from gated_plugin.errors import GatedError
from gated_plugin.hub.staging import stage
from gated_plugin.runs import Run

ID = "mlp_post/layer_0/width_64/l0_12"


def spoil(run: Run, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(run.sae / "sae_weights.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, run.sae / "sae_weights.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_publication_holds_sae_card_index_and_plots_alone(run):
    staged = stage(run, "alice/books")
    assert staged.sae_id == ID
    assert staged.folder == run.publication
    assert contents(run.publication).keys() == {
        "README.md",
        "config.json",
        f"{ID}/cfg.json",
        f"{ID}/sae_weights.safetensors",
        f"{ID}/sparsity.safetensors",
        f"{ID}/plots/training.png",
    }


def test_folding_leaves_unit_rows_and_the_same_reconstructions(run):
    trained = SAE.load_from_disk(run.sae)
    staged = stage(run, "alice/books")
    folded = SAE.load_from_disk(staged.folder / ID)
    x = load_file(run.activations)["activations"]

    assert (trained.W_dec.norm(dim=1) - 1).abs().max() > 0.1
    assert torch.allclose(folded.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-6)
    assert torch.allclose(folded(x), trained(x), atol=1e-5)
    for name, tensor in staged.sae.state_dict().items():
        assert torch.equal(tensor, folded.state_dict()[name])


def test_the_index_says_which_weights_and_which_figures(run):
    stage(run, "alice/books")
    index = json.loads((run.publication / "config.json").read_text())
    weights = (run.publication / ID / "sae_weights.safetensors").read_bytes()

    assert index["library_name"] == "saelens"
    (entry,) = index["saes"]
    assert entry["id"] == ID
    assert entry["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert entry["weights"]["bytes"] == len(weights)
    assert (entry["architecture"], entry["width"], entry["l0"]) == ("gated", 64, 12.34)


def test_no_file_holds_a_token_or_a_path_of_this_machine(run, edit, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mysecrettoken")
    recipe = RECIPE.replace("dataset_path: embedded/books\n", f"dataset_path: {run.path}/tokens\n")
    run.recipe.write_text(recipe)
    edit(run.evaluation, dataset_path=f"{run.path}/heldout")
    cfg = json.loads((run.sae / "cfg.json").read_text())
    metadata = {**cfg["metadata"], "model_name": f"{run.path}/model"}
    edit(run.sae / "cfg.json", device="cuda:3", metadata=metadata)
    stage(run, "alice/books")

    everything = b"".join(contents(run.publication).values())
    assert b"hf_mysecrettoken" not in everything
    assert str(run.path.parent).encode() not in everything
    assert b"of `tokens`" in everything
    cfg = json.loads((run.publication / ID / "cfg.json").read_text())
    assert (cfg["device"], cfg["metadata"]["model_name"]) == ("cpu", "model")


def test_staging_again_gives_the_same_bytes_and_leaves_nothing_behind(run):
    stage(run, "alice/books")
    first = contents(run.publication)
    (run.publication / "leftover.txt").write_text("old")
    stage(run, "alice/books")
    assert contents(run.publication) == first


def test_what_a_killed_push_left_is_not_published(run):
    unfinished = run.path / ".publication.unfinished"
    unfinished.mkdir()
    (unfinished / "leftover.txt").write_text("old")
    stage(run, "alice/books")
    assert "leftover.txt" not in contents(run.publication)
    assert not unfinished.exists()


def test_other_saes_of_the_repository_stay_in_card_and_index(run, edit):
    stage(run, "alice/books")
    (first,) = json.loads((run.publication / "config.json").read_text())["saes"]
    edit(run.evaluation, l0=5.2)
    stage(run, "alice/books", [first])

    index = json.loads((run.publication / "config.json").read_text())
    assert [entry["l0"] for entry in index["saes"]] == [12.34, 5.2]
    assert "| 12.34 |" in (run.publication / "README.md").read_text()


def test_saes_of_two_language_models_do_not_share_a_repository(run):
    stage(run, "alice/books")
    (first,) = json.loads((run.publication / "config.json").read_text())["saes"]
    other = {**first, "id": "other", "model": "gpt2"}
    with pytest.raises(GatedError, match="more than one language model"):
        stage(run, "alice/books", [other])


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


def figure_missing(run: Run) -> None:
    figures = json.loads(run.evaluation.read_text())
    del figures["gamma"]
    run.evaluation.write_text(json.dumps(figures))


def figure_not_finite(run: Run) -> None:
    figures = json.loads(run.evaluation.read_text())
    run.evaluation.write_text(json.dumps({**figures, "gamma": float("nan")}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (nan_in_weights, "b_mag .* holds NaN"),
        (zero_decoder_row, "1 of 64 decoder rows"),
        (shape_unlike_cfg, "W_enc"),
        (cut_weights, "damaged"),
        (cut_sparsity, "sparsity.safetensors is missing or damaged"),
        (sparsity_of_another_sae, "does not fit"),
        (no_cfg, "damaged"),
        (scaling_not_folded, "fold it in"),
        (another_architecture, "'standard'"),
        (figure_missing, "no finite gamma"),
        (figure_not_finite, "no finite gamma"),
    ],
)
def test_a_damaged_run_is_refused_and_the_last_publication_stays(run, damage, says):
    stage(run, "alice/books")
    before = contents(run.publication)
    damage(run)
    with pytest.raises(GatedError, match=says) as refusal:
        stage(run, "alice/books")
    assert "\n" not in str(refusal.value)
    assert contents(run.publication) == before


def test_the_metadata_says_what_was_measured_and_not_what_training_saw_last(run):
    stage(run, "alice/books")
    metadata = json.loads((run.publication / ID / "cfg.json").read_text())["metadata"]
    measured = json.loads(run.evaluation.read_text())
    assert metadata["l0"] == measured["l0"]
    assert metadata["num_dead_features"] == round((1 - measured["alive"]) * D_SAE)
