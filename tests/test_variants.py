"""Variants of a recipe: how one is named, what it changes, and what is said of a wrong name."""

from __future__ import annotations

from pathlib import Path

import pytest

from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe

VARIANTS = """\
variants:
  narrow: {sae.d_sae: 32, source: a table}
  fast: {lr: 0.01, model_kwargs.x: 1}
"""


@pytest.fixture
def family(tiny: Path, tmp_path: Path) -> Path:
    """A recipe with two variants."""
    path = tmp_path / "family.yaml"
    path.write_text(tiny.read_text() + VARIANTS)
    return path


def refusal(source: str | Path, *overrides: str) -> str:
    with pytest.raises(GatedError) as caught:
        Recipe.load(source, overrides)
    return str(caught.value)


def test_a_variant_changes_its_keys_and_no_others(family: Path, tiny: Path) -> None:
    plain, narrow = Recipe.load(tiny), Recipe.load(f"{family}/narrow")
    assert narrow.settings == {**plain.settings, "sae.d_sae": 32}
    assert (narrow.name, narrow.source) == ("tiny-narrow", "a table")
    fast = Recipe.load(f"{family}/fast")
    assert fast.settings == {**plain.settings, "lr": 0.01, "model_kwargs": {"x": 1}}
    assert fast.source == ""


def test_what_is_set_by_hand_goes_over_the_variant(family: Path) -> None:
    assert Recipe.load(f"{family}/narrow", ["sae.d_sae=16"]).sae["d_sae"] == 16


def test_choosing_one_variant_leaves_the_next_as_it_is(family: Path) -> None:
    first = Recipe.load(f"{family}/narrow", ["model_kwargs.y=2"])
    assert Recipe.load(f"{family}/narrow").settings != first.settings
    assert Recipe.load(f"{family}/narrow").raw == Recipe.load(f"{family}/narrow").raw


def test_without_a_choice_the_number_and_the_next_command_are_said(family: Path) -> None:
    said = refusal(family)
    assert said == (
        f"{family} has 2 variants; choose one, such as {family}/narrow: "
        f"`gated-hub plan {family}` lists them."
    )


def test_a_wrong_name_is_answered_with_the_nearest(family: Path) -> None:
    assert f"{family} has no variant 'narow'; the nearest are narrow" in refusal(f"{family}/narow")
    said = refusal("gemma-7b/resid-20-lambda-0.00005")
    assert "the nearest are resid-20-lambda-0.0005" in said
    assert said.endswith("`gated-hub plan gemma-7b` lists all.")


def test_a_variant_of_a_recipe_without_any_is_refused(tiny: Path) -> None:
    assert refusal(f"{tiny}/narrow") == f"{tiny} has no variants; leave out /narrow."


def test_a_slash_in_a_path_is_no_variant(tmp_path: Path) -> None:
    assert f"There is no recipe '{tmp_path}/none.yaml'" in refusal(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("variants: 3", "is no list of settings by name"),
        ("variants: {a: 3}", "is no list of settings by name"),
        ("variants: {a/b: {lr: 1}}", "without a slash in the name"),
        ("variants: {1: {lr: 1}}", "is no list of settings by name"),
        ("variants: {a: {2: 3}}", "is no list of settings by name"),
    ],
)
def test_variants_that_are_no_mappings_are_refused(
    tiny: Path, tmp_path: Path, text: str, part: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"{tiny.read_text()}{text}\n")
    assert part in refusal(path)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ("{sae.d_saee: 3}", "unknown key 'sae.d_saee'; the nearest valid one is 'sae.d_sae'."),
        ("{lr.x: 3}", "'lr' is a value, not a section; mend the key lr.x."),
        ("{source: [1]}", "source is [1]"),
        ("{variants: 3}", "variants cannot be set"),
    ],
)
def test_a_wrong_setting_of_a_variant_is_refused(
    tiny: Path, tmp_path: Path, settings: str, part: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"{tiny.read_text()}variants: {{a: {settings}}}\n")
    assert part in refusal(f"{path}/a")


def test_variants_are_written_into_the_file_not_set(tiny: Path) -> None:
    said = refusal(tiny, "variants.a.lr=1")
    assert said == f"{tiny}: variants cannot be set; write them into the file."
