"""The card says what was measured, in YAML that the Hub reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from miniature import FIGURES

from gated_plugin.errors import GatedError
from gated_plugin.hub import card, index
from gated_plugin.hub.local.front_matter import front_matter
from gated_plugin.recipes import PublishPlan, Recipe
from gated_plugin.runs import Run

WEIGHTS = {
    "id": "mlp_post/layer_0/width_64/l0_12",
    "d_in": 16,
    "dtype": "float32",
    "bytes": 9424,
    "sha256": "ab" * 32,
    "plots": ["training.png"],
}
LOCAL = PublishPlan(base_model_terms="The language model is MIT licensed.")


@pytest.fixture
def entry(run: Run) -> dict[str, Any]:
    return index.entry(Recipe.load(run.recipe), FIGURES, WEIGHTS)


def test_the_front_matter_is_yaml_with_licence_tags_and_measured_figures(entry):
    data = front_matter(card.render("alice/books", [entry], LOCAL))

    assert data["library_name"] == "saelens"
    assert data["license"] == "mit"
    assert {"sparse-autoencoder", "gated-sae", "arxiv:2404.16014"} <= set(data["tags"])
    (model,) = data["model-index"]
    assert model["name"] == "alice/books/mlp_post/layer_0/width_64/l0_12"
    (result,) = model["results"]
    assert result["dataset"] == {"name": "embedded/books-heldout", "type": "books-heldout"}
    measured = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert measured == {name: FIGURES[name] for name in card.METRICS}


def test_the_front_matter_loads_as_the_clients_card(entry):
    from huggingface_hub import ModelCard

    loaded = ModelCard(card.render("alice/books", [entry], LOCAL))
    assert loaded.data.library_name == "saelens"
    assert yaml.safe_load(loaded.data.to_yaml())["license"] == "mit"


def test_the_table_has_a_row_per_sae_with_every_figure(entry):
    sparser = {**copy.deepcopy(entry), "id": "mlp_post/layer_0/width_64/l0_5", "l0": 5.43}
    text = card.render("alice/books", [entry, sparser], LOCAL)

    row = "| 64 | 0.75 | {} | 3.4567 | 3.6789 | 8.0123 | 0.9512 | 0.0813 | 87.5 % | 1.0021 |"
    assert f"| `{entry['id']}` | `blocks.0.mlp.hook_post` {row.format('12.34')}" in text
    assert f"| `{sparser['id']}` | `blocks.0.mlp.hook_post` {row.format('5.43')}" in text
    assert "2 Gated sparse autoencoders" in text


def test_the_text_names_training_evaluation_limits_and_citation(entry):
    text = card.render("alice/books", [entry], LOCAL)

    for fact in (
        "99,840 of `embedded/books`",
        "128 tokens, BOS prepended",
        "learning rate 0.003, β1 0, 512 tokens per batch",
        "`expected_average_only_in`, folded into the weights",
        f"float32, 9,424 bytes, sha256 `{'ab' * 32}`",
        "20,000 tokens of `embedded/books-heldout`",
        "+0.2222 nats per token, and 12.5 % of its features never fired",
        "TopK, BatchTopK and\n  JumpReLU",
        "arxiv.org/abs/2503.09532",
        "The language model is MIT licensed.",
        "arXiv preprint arXiv:2404.16014",
        f"]({entry['id']}/plots/training.png)",
    ):
        assert fact in text, fact


def test_a_local_language_model_is_named_in_the_text_alone(entry):
    text = card.render("alice/books", [entry], LOCAL)
    assert "base_model" not in front_matter(text)
    assert "`embedded/books-gelu-1l-256`, a local language model" in text


def test_a_language_model_of_the_hub_is_named_and_linked(entry):
    plan = PublishPlan(base_model="EleutherAI/pythia-70m", datasets=("monology/pile",))
    text = card.render("alice/books", [entry], plan)
    assert front_matter(text)["base_model"] == "EleutherAI/pythia-70m"
    assert front_matter(text)["datasets"] == ["monology/pile"]
    assert "https://huggingface.co/EleutherAI/pythia-70m" in text
    assert "local language model" not in text


def test_a_steered_lambda_is_not_passed_off_as_the_trained_one(entry):
    entry["training"]["target_l0"] = 12.0
    text = card.render("alice/books", [entry], LOCAL)
    assert "| 64 | 0.75* | 12.34 |" in text
    assert "λ 0.75 to start with, steered towards L0 12 " in text


def test_an_index_of_another_version_is_refused(entry):
    del entry["training"]["lr"]
    with pytest.raises(GatedError, match="push to another repository"):
        card.render("alice/books", [entry], LOCAL)
