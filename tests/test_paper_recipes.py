"""The paper's recipes, expanded to SAELens' runner configuration, against the rows of its tables."""

from __future__ import annotations

from typing import Any

import pytest

from gated_plugin.hub.cards.paper import PaperRow, rows
from gated_plugin.recipe_files import find, read
from gated_plugin.recipes import Recipe
from gated_plugin.variants import names

PAPERS = ("gemma-7b", "pythia-2.8b")
"""Of which the paper has tables."""
HOOKS = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "attn.hook_z"}
D_IN = {
    ("gemma-7b", "resid"): 3072,
    ("gemma-7b", "mlp"): 3072,
    ("gemma-7b", "attn"): 16 * 256,
    ("pythia-2.8b", "resid"): 2560,
    ("pythia-2.8b", "mlp"): 2560,
    ("pythia-2.8b", "attn"): 32 * 80,
}
"""Dimensions of an activation; the heads of attention are concatenated."""
CONTEXT = {"gelu-1l": 128, "gemma-7b": 1024, "pythia-2.8b": 2048}
STEPS = {"gelu-1l": 300_000, "gemma-7b": 300_000, "pythia-2.8b": 400_000}
ROWS = [row for model in PAPERS for row in rows(model)]


def variant(row: PaperRow) -> str:
    """As people write λ: no exponent, no zeros at its end."""
    weight = f"{row.l1:.10f}".rstrip("0")
    prefix = "baseline-" if row.arch == "baseline" else ""
    return f"{prefix}{row.site}-{row.layer}-lambda-{weight}"


def variants(model: str) -> list[str]:
    return names(read(find(model)), model)


def name(row: PaperRow) -> str:
    return f"{row.model}/{variant(row)}"


@pytest.mark.parametrize("model", PAPERS)
def test_each_row_of_the_tables_is_a_variant_and_there_is_no_other(model: str) -> None:
    assert sorted(variants(model)) == sorted(variant(row) for row in ROWS if row.model == model)


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_a_variant_trains_what_its_row_says(row: PaperRow) -> None:
    cfg = Recipe.load(name(row)).runner_config()
    assert cfg.hook_name == f"blocks.{row.layer}.{HOOKS[row.site]}"
    assert cfg.hook_head_index is None
    assert cfg.sae.d_in == D_IN[row.model, row.site]
    assert cfg.sae.d_sae == row.width
    assert cfg.lr == row.lr
    assert cfg.training_tokens == row.tokens
    if row.arch == "gated":
        assert cfg.sae.architecture() == "gated"
        # The paper divides the squared error by d_in; SAELens sums it.
        assert cfg.sae.l1_coefficient == pytest.approx(row.l1 * cfg.sae.d_in, rel=1e-12)
        assert cfg.sae.target_l0 is None
    else:
        # Its λ is for an error divided by E‖x‖² too, which the paper does not print.
        assert cfg.sae.architecture() == "l1_baseline"
        assert cfg.sae.target_l0 == row.l0


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_a_variant_cites_its_row(row: PaperRow) -> None:
    said = Recipe.load(name(row)).source
    assert said.startswith("Tables ")
    place = f"{row.arch}, {row.site} {row.layer}, λ {row.l1:.10f}".rstrip("0") + f", lr {row.lr:g}:"
    assert place in said
    figures = dict(part.rsplit(" ", 1) for part in said.partition(": L0")[2].replace(" %", "").split(", ")[1:])  # fmt: skip
    assert float(said.partition(": L0 ")[2].partition(",")[0]) == row.l0
    assert float(figures["loss recovered"]) == row.loss_recovered
    assert float(figures["alive"]) == row.alive
    assert float(figures["γ"]) == row.gamma


def one_of_each() -> list[str]:
    return [f"{model}/{kind}" for model in CONTEXT for kind in _first_of_each_kind(model)]


def _first_of_each_kind(model: str) -> list[str]:
    there = variants(model)
    baselines = [one for one in there if one.startswith("baseline-")]
    return [there[0], baselines[0]]


@pytest.mark.parametrize("source", one_of_each())
def test_what_the_paper_says_of_all_its_saes_holds(source: str) -> None:
    model = source.partition("/")[0]
    cfg = Recipe.load(source).runner_config()
    assert cfg.train_batch_size_tokens == 4096
    assert cfg.total_training_steps == STEPS[model]
    assert cfg.context_size == CONTEXT[model]
    assert (cfg.adam_beta1, cfg.adam_beta2) == (0.0, 0.999)
    assert cfg.lr_scheduler_name == "constant"
    assert cfg.lr_warm_up_steps > 0 and cfg.lr_decay_steps == 0
    assert cfg.sae.normalize_activations == "none"
    assert cfg.sae.resampling == "paper"
    assert cfg.sae.resample_steps == [25_000, 50_000, 75_000, 100_000]
    assert (cfg.sae.resample_window, cfg.sae.rewarm_steps) == (12_500, 1000)
    buffer = cfg.n_batches_in_buffer * cfg.store_batch_size_prompts * cfg.context_size
    assert buffer == 1 << 20  # "10^6 length activation buffer"


@pytest.mark.parametrize("source", one_of_each())
def test_the_held_out_text_is_more_than_a_million_tokens_and_not_the_training_split(
    source: str,
) -> None:
    recipe = Recipe.load(source)
    plan = recipe.evaluation
    prompt = plan.batch_size_prompts * recipe.runner["context_size"]
    assert plan.tokens // prompt * prompt > 1_000_000
    trained = (recipe.runner["dataset_path"], "train")
    assert (plan.dataset_path, plan.split) != trained


def test_neurons_of_gelu_1l_are_taken_after_the_non_linearity() -> None:
    gated, baseline = (Recipe.load(f"gelu-1l/{v}").runner_config() for v in ("l0-32", "baseline-l0-32"))  # fmt: skip
    for cfg in (gated, baseline):
        assert (cfg.hook_name, cfg.sae.d_in, cfg.lr) == ("blocks.0.mlp.hook_post", 2048, 3e-4)
        assert cfg.sae.target_l0 == 32
    assert baseline.sae.d_sae == 1.5 * gated.sae.d_sae


@pytest.mark.parametrize("model", CONTEXT)
def test_a_recipe_names_what_departs_from_the_paper(model: str) -> None:
    said = find(model).read_text(encoding="utf-8")
    for part in ("clips gradients at norm 1", "Bricken et al. (2023)", "our choice"):
        assert part in said


@pytest.mark.parametrize("source", one_of_each())
def test_a_variant_is_written_and_read_again_without_the_others(source: str, tmp_path: Any) -> None:
    recipe = Recipe.load(source, ["seed=7"])
    assert recipe.name == source.replace("/", "-")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = Recipe.load(tmp_path / "recipe.yaml")
    assert again == recipe
    assert again.source and "variants" not in again.raw
