"""Recipes: what they may say, what is refused, and with which sentence."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from sae_lens.config import LanguageModelSAERunnerConfig

from gated_plugin import GatedTrainingSAEConfig
from gated_plugin.bundled import folder
from gated_plugin.errors import GatedError
from gated_plugin.recipe_files import find, read
from gated_plugin.recipe_keys import REFUSED
from gated_plugin.recipes import EvaluationPlan, PublishPlan, Recipe
from gated_plugin.variants import names as names_of_variants

BUNDLED = sorted(path.stem for path in folder("hub_configs").glob("*.yaml"))


def names(config: type) -> set[str]:
    return {field.name for field in fields(config)}


VALID = (
    names(LanguageModelSAERunnerConfig)
    | {"name", "description", "source", "synthetic", "variants", "evaluation", "publish"}
    | {f"sae.{name}" for name in names(GatedTrainingSAEConfig) | {"architecture", "paper_lambda"}}
    | {f"evaluation.{name}" for name in names(EvaluationPlan)}
    | {f"publish.{name}" for name in names(PublishPlan)}
)


# Each shapes the language model, the stream of activations, or SAELens' trainer.
HONOURED = {
    "sae", "model_name", "model_class_name", "model_kwargs", "model_from_pretrained_kwargs",
    "hook_name", "hook_head_index", "dataset_path", "streaming", "is_dataset_tokenized",
    "use_chat_formatting", "context_size", "prepend_bos", "seqpos_slice", "exclude_special_tokens",
    "disable_concat_sequences", "sequence_separator_token", "n_batches_in_buffer",
    "store_batch_size_prompts", "training_tokens", "train_batch_size_tokens",
    "from_pretrained_path", "device", "llm_device", "act_store_device", "seed", "autocast",
    "autocast_lm", "adam_beta1", "adam_beta2", "lr", "lr_scheduler_name", "lr_warm_up_steps",
    "lr_end", "lr_decay_steps", "n_restart_cycles", "dead_feature_window",
    "feature_sampling_window", "n_batches_for_norm_estimate",
}  # fmt: skip


def refusal(source: str | Path, *overrides: str) -> str:
    with pytest.raises(GatedError) as caught:
        Recipe.load(source, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_recipe_loads_by_its_name(name: str) -> None:
    variants = names_of_variants(read(find(name)), name)
    recipe = Recipe.load(f"{name}/{variants[0]}" if variants else name)
    assert recipe.name == "-".join([name, *variants[:1]])
    assert recipe.runner_config().sae.architecture() == "gated"


def test_quickstart_is_bundled() -> None:
    assert "quickstart" in BUNDLED


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("trainingtokens", "training_tokens"),
        ("sae.l1_coeficient", "sae.l1_coefficient"),
        ("sae.paper_lamda", "sae.paper_lambda"),
        ("evaluation.token", "evaluation.tokens"),
        ("publish.licence", "publish.license"),
        ("evaluations", "evaluation"),
    ],
)
def test_an_unknown_key_is_refused_with_file_and_nearest_key(
    tiny: Path, key: str, nearest: str
) -> None:
    said = refusal(tiny, f"{key}=1")
    assert str(tiny) in said
    assert f"unknown key {key!r}; the nearest valid one is {nearest!r}." in said


@given(key=st.sampled_from(sorted(VALID)), place=st.integers(0, 30), letter=st.sampled_from("axq_"))
def test_any_misspelling_of_a_key_is_refused_and_named(
    tiny: Path, key: str, place: int, letter: str
) -> None:
    section, _, last = key.rpartition(".")
    place %= len(last)
    for wrong in (
        last[:place] + letter + last[place:],
        last[:place] + last[place + 1 :],
        last[:place] + last[place:][:2][::-1] + last[place + 2 :],
    ):
        name = f"{section}.{wrong}".lstrip(".")
        assume(wrong and name not in VALID and name not in REFUSED)
        said = refusal(tiny, f"{name}=1")
        assert f"{tiny}: unknown key {name!r}" in said
        assert said.split("'")[-2] in VALID - REFUSED.keys()


@given(value=st.recursive(st.none() | st.booleans() | st.text(), st.lists, max_leaves=3))
def test_no_value_of_a_wrong_type_gets_into_the_learning_rate(tiny: Path, value: object) -> None:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    try:
        recipe = Recipe.load(tiny, [f"lr={text.removesuffix('...' + chr(10)).strip()}"])
    except GatedError:
        return
    assert isinstance(recipe.runner["lr"], float)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("lr=fast", "lr is 'fast'"),
        ("lr=true", "lr is True; expected float"),
        ("lr={a: 1}", "lr is {'a': 1}"),
        ("lr=.nan", "lr is nan"),
        ("training_tokens=1.5", "training_tokens is 1.5"),
        ("training_tokens=yes", "training_tokens is 'yes'"),
        ("streaming=maybe", "streaming is 'maybe'"),
        ("seqpos_slice=5", "seqpos_slice is 5"),
        ("sae.d_in=wide", "sae.d_in is 'wide'"),
        ("sae.normalize_activations=some", "sae.normalize_activations is 'some'"),
        ("sae.architecture=[1]", "unknown sae.architecture '[1]'"),
        ("sae.architecture=gatd", "nearest valid one is 'gated'"),
        ("sae.dtype=float16", "unknown sae.dtype 'float16'; the nearest valid one is 'bfloat16'"),
        ("sae.dtype=16", "unknown sae.dtype '16'"),
        ("evaluation.tokens=many", "evaluation.tokens is 'many'"),
        ("name=[a]", "name is ['a']"),
        ("sae=3", "sae is a section"),
        ("evaluation=", "evaluation is a section"),
        ("train_batch_size_tokens=0", "train_batch_size_tokens is 0; give at least 1"),
        ("evaluation.batch_size_prompts=0", "evaluation.batch_size_prompts is 0"),
        ("training_tokens=63", "training_tokens is 63, less than one batch"),
        ("lr_decay_steps=21", "lr_warm_up_steps + lr_decay_steps is 21, but the run has 20 steps"),
        ("seqpos_slice=[5, 5]", "results in an empty range"),
        ("sae.target_l0=100", "target_l0 is 100.0"),
        ("model_class_name=HookedMamba", "leave it out"),
        ("use_chat_formatting=true", "cannot both be True"),
    ],
)
def test_a_wrong_value_is_refused_with_file_and_key(tiny: Path, override: str, part: str) -> None:
    said = refusal(tiny, override)
    assert said.startswith(f"{tiny}: ")
    assert part in said


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_key_that_gated_hub_does_not_honour_is_refused_with_the_reason(
    tiny: Path, key: str
) -> None:
    assert f"{tiny}: {key} is not for a recipe: {REFUSED[key]}." == refusal(tiny, f"{key}=1")


def test_every_field_of_saelens_runner_is_known_to_be_honoured_or_refused() -> None:
    assert names(LanguageModelSAERunnerConfig) - REFUSED.keys() == HONOURED
    assert REFUSED.keys() <= VALID


def test_numbers_are_read_as_people_write_them(tiny: Path) -> None:
    recipe = Recipe.load(tiny, ["adam_beta1=0", "lr=1e-3", "seqpos_slice=[1, -1]"])
    assert (recipe.runner["adam_beta1"], type(recipe.runner["adam_beta1"])) == (0.0, float)
    assert recipe.runner["lr"] == 0.001
    assert recipe.runner_config().seqpos_slice == (1, -1)


def test_paper_lambda_is_multiplied_by_d_in(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "paper.yaml"
    path.write_text(tiny.read_text().replace("l1_coefficient: 0.8", "paper_lambda: 0.004"))
    assert Recipe.load(path).runner_config().sae.l1_coefficient == pytest.approx(0.004 * 256)


def test_two_lambdas_in_one_file_are_refused(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "both.yaml"
    both = "l1_coefficient: 0.8\n  paper_lambda: 0.004"
    path.write_text(tiny.read_text().replace("l1_coefficient: 0.8", both))
    assert "both state λ; keep one." in refusal(path)


def test_lambda_in_one_unit_replaces_the_recipes_in_the_other(tiny: Path) -> None:
    recipe = Recipe.load(tiny, ["sae.paper_lambda=0.004"])
    assert recipe.runner_config().sae.l1_coefficient == pytest.approx(0.004 * 256)
    recipe = Recipe.load(tiny, ["sae.paper_lambda=0.004", "sae.l1_coefficient=3"])
    assert recipe.runner_config().sae.l1_coefficient == 3


def test_paper_lambda_is_refused_where_nothing_has_an_l1_norm(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "topk.yaml"
    path.write_text(tiny.read_text().replace("l1_coefficient: 0.8", "paper_lambda: 1"))
    assert "'topk' does not have; leave it out" in refusal(path, "sae.architecture=topk")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("lr", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("lr.x=3", "'lr' is a value, not a section"),
        ("lr=[1", "the value is no valid YAML"),
    ],
)
def test_a_bad_override_is_one_sentence(tiny: Path, override: str, part: str) -> None:
    assert part in refusal(tiny, override)


def test_the_last_override_of_a_key_wins(tiny: Path) -> None:
    recipe = Recipe.load(tiny, ["sae.d_sae=32", "sae.d_sae=16", "model_kwargs.x=1"])
    assert recipe.sae["d_sae"] == 16
    assert recipe.runner["model_kwargs"] == {"x": 1}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["lr=1e-3", "seqpos_slice=[1, null]", "description=ein Satz, γ", "seed=1"],
        ["publish.datasets=[a/b]", "exclude_special_tokens=[0, 1]", "lr=1e-12"],
    ],
)
def test_a_recipe_written_and_read_again_is_equal(
    tiny: Path, tmp_path: Path, overrides: list[str]
) -> None:
    recipe = Recipe.load(tiny, overrides)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.load(tmp_path / "again.yaml") == recipe


def test_a_recipe_without_a_name_keeps_that_of_its_file(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(tiny.read_text().replace("name: tiny\n", ""))
    recipe = Recipe.load(tmp_path / "mine.yaml")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml").name == recipe.name == "mine"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "is no valid YAML"),
        ("- a", "holds no recipe"),
        ("", "holds no recipe"),
        ("sae: {}\nevaluation: {dataset_path: x}", "sae.d_in is missing; add it."),
        ("sae: {d_in: 1, d_sae: 1}", "evaluation.dataset_path is missing; add it."),
    ],
)
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    said = refusal(path)
    assert str(path) in said
    assert part in said


def test_a_missing_recipe_lists_the_bundled_ones() -> None:
    said = refusal("quikstart")
    assert "'quikstart'" in said
    assert "quickstart" in said.split("(")[1]
