"""Runs of ablated SAEs: what is published of them, and what a finished baseline is a start for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gated_plugin.errors import GatedError
from gated_plugin.hub import index
from gated_plugin.hub.cards import tables
from gated_plugin.hub.preparation import prepare
from gated_plugin.recipes import Recipe
from gated_plugin.runner import train
from gated_plugin.runs import Run


def test_the_index_and_the_card_of_a_repository_name_what_was_ablated(tiny):
    figures = dict.fromkeys((*index.FIGURES, *index.COUNTS), 1.0) | {"dataset_path": "x"}
    plain = index.entry(Recipe.load(tiny), figures)
    assert "ablations" not in plain["training"]
    settings = ["sae.auxiliary_decoder=live", "sae.magnitude_scale=one"]
    ablated = index.entry(Recipe.load(tiny, settings), figures) | {"id": "a"}
    assert ablated["training"]["ablations"] == ["auxiliary_decoder: live", "magnitude_scale: one"]
    said = tables._SETTINGS["ablations"]
    assert said(ablated) == "`auxiliary_decoder: live`, `magnitude_scale: one`"
    assert said(plain) == ""


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("gated_untied", r"plain SAELens has no place for.*; push a run of architecture gated\.$"),
        ("l1_baseline", r"trained as l1_baseline.*upload_saes_to_huggingface of SAELens\.$"),
        ("saelens_gated", r"trained as saelens_gated.*upload_saes_to_huggingface of SAELens\.$"),
    ],
)
def test_what_a_card_of_ours_cannot_vouch_for_is_not_published(architecture, said, tiny, tmp_path):
    run = Run(tmp_path / "run")
    run.path.mkdir()
    run.recipe.write_text(Recipe.load(tiny, [f"sae.architecture={architecture}"]).to_yaml())
    with pytest.raises(GatedError, match=said):
        prepare(lambda line: None, [str(run.path)], "alice/books", None, None, [])
    assert not run.publication.exists()


@pytest.fixture(scope="module")
def baseline(tiny: Path, tmp_path_factory: pytest.TempPathFactory, unpacked_once: None) -> Path:
    """The finished SAE of a run of the baseline."""
    recipe = Recipe.load(tiny, ["sae.architecture=l1_baseline"])
    return train(recipe, tmp_path_factory.mktemp("baseline") / "run", quiet=True).sae


RESCALED = ("sae.normalize_activations=none", "sae.trained=magnitude")


def test_a_baseline_is_rescaled_and_shifted(baseline, tiny, tmp_path, unpacked_once):
    start = load_file(baseline / "sae_weights.safetensors")
    recipe = Recipe.load(tiny, [*RESCALED, f"from_pretrained_path={baseline}"])
    run = train(recipe, tmp_path / "run", quiet=True)
    end = load_file(run.sae / "sae_weights.safetensors")
    for name in ("W_enc", "W_dec", "b_dec"):
        assert torch.equal(end[name], start[name])
    assert torch.equal(end["b_gate"], start["b_enc"])
    assert not torch.equal(end["b_mag"], start["b_enc"])
    assert end["r_mag"].any()


def test_there_must_be_a_baseline_to_rescale(tiny, tmp_path, unpacked_once):
    with pytest.raises(GatedError, match=r"from_pretrained_path=RUN/sae of an l1_baseline run"):
        train(Recipe.load(tiny, RESCALED), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_baseline_of_another_width_is_no_start(baseline, tiny, tmp_path, unpacked_once):
    recipe = Recipe.load(tiny, [*RESCALED, "sae.d_sae=32", f"from_pretrained_path={baseline}"])
    with pytest.raises(GatedError, match="has d_sae = 64, but the recipe says 32"):
        train(recipe, tmp_path / "run", quiet=True)


def test_a_finished_baseline_is_a_start_for_a_baseline(baseline, tiny, tmp_path, unpacked_once):
    settings = ["sae.architecture=l1_baseline", RESCALED[0], "training_tokens=64", "lr=1e-9"]
    recipe = Recipe.load(tiny, [*settings, f"from_pretrained_path={baseline}"])
    run = train(recipe, tmp_path / "run", quiet=True)
    start, end = (load_file(p / "sae_weights.safetensors") for p in (baseline, run.sae))
    torch.testing.assert_close(end, start)
