"""Nothing is published without a licence, a named language model, and its terms if it has some."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from entries import HOSTILE

from gated_plugin.errors import GatedError
from gated_plugin.hub.cards.licensing import kept_plan, plan_of, require_publishable, require_valid
from gated_plugin.recipes import PublishPlan, Recipe

OPEN = PublishPlan(license="mit", base_model="EleutherAI/pythia-70m")
OTHER = PublishPlan(
    license="other",
    license_name="my-license-1.0",
    license_link="https://example.org/license",
    base_model="EleutherAI/pythia-70m",
    base_model_terms="Apache 2.0.",
    datasets=("monology/pile", "imdb"),
)


def recipe(plan: PublishPlan, model: str = "pythia-70m-deduped") -> Recipe:
    quickstart = Recipe.load("quickstart")
    return replace(quickstart, publish=plan, runner={**quickstart.runner, "model_name": model})


def never(base_model: str) -> bool:
    raise AssertionError(base_model)


@pytest.mark.parametrize("plan", [OPEN, OTHER])
def test_a_plan_that_says_enough_is_given_back(plan: PublishPlan) -> None:
    asked: list[str] = []
    assert require_publishable(recipe(plan), lambda name: asked.append(name) or False) == plan
    assert asked == ["EleutherAI/pythia-70m"]


def test_the_bundled_recipe_may_be_published_without_a_base_model() -> None:
    quickstart = Recipe.load("quickstart")
    assert require_publishable(quickstart, never) == quickstart.publish
    assert quickstart.publish.base_model is None


def test_a_recipe_without_a_licence_loads_but_is_not_published() -> None:
    assert PublishPlan().license is None
    with pytest.raises(GatedError, match=r"No licence is stated.*`license: mit`"):
        require_publishable(recipe(PublishPlan(base_model="a/b")), never)


def test_a_model_with_a_page_on_the_hub_is_named() -> None:
    with pytest.raises(GatedError, match=r"publish\.base_model is missing"):
        require_publishable(recipe(PublishPlan(license="mit")), never)


@pytest.mark.parametrize(
    ("base_model", "gated", "needed"),
    [
        ("EleutherAI/pythia-70m", True, True),
        ("google/gemma-7b", False, False),
        ("google/gemma-7b", None, True),
        ("Meta-Llama/Llama-3.1-8B", None, True),
        ("google/codegemma-2b", None, True),
        ("google/flan-t5-small", None, False),
        ("alice/gemma-7b", None, False),
    ],
)
def test_terms_are_needed_where_they_are_accepted_before_a_download(
    base_model: str, gated: bool | None, needed: bool
) -> None:
    silent = PublishPlan(license="mit", base_model=base_model)
    if needed:
        with pytest.raises(GatedError, match=f"{base_model} has terms.*base_model_terms"):
            require_publishable(recipe(silent), lambda name: gated)
    else:
        require_publishable(recipe(silent), lambda name: gated)
    said = replace(silent, base_model_terms="See its page.")
    assert require_publishable(recipe(said), lambda name: gated) == said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"license": "MIT"}, "publish.license is 'MIT'"),
        ({"license": "mit or so"}, "publish.license is"),
        ({"license": ""}, "publish.license is ''"),
        ({"license_name": None}, "says too little"),
        ({"license_link": None}, "says too little"),
        ({"license_name": "My Licence"}, "publish.license_name is"),
        ({"license_link": "http://example.org"}, "give an https address"),
        ({"license_link": "LICENSE"}, "give an https address"),
        ({"license_link": "https://[example"}, "give an https address"),
        ({"license_link": "https://example.org/a b"}, "give an https address"),
        ({"license": "mit"}, "go with `license: other`"),
        ({"base_model": "two words"}, "publish.base_model names 'two words'"),
        ({"base_model": "https://huggingface.co/a/b"}, "publish.base_model names"),
        ({"datasets": ("monology/pile", "a/b/c")}, "publish.datasets names 'a/b/c'"),
        ({"datasets": (HOSTILE,)}, "publish.datasets names"),
    ],
)
def test_a_malformed_plan_is_refused_by_key(changes, says: str) -> None:
    with pytest.raises(GatedError, match=says) as refusal:
        require_valid(replace(OTHER, **changes))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("plan", [OPEN, OTHER, PublishPlan(license="mit")])
def test_the_index_keeps_a_plan(plan: PublishPlan) -> None:
    kept = kept_plan(plan)
    assert kept.keys() <= {field.name for field in fields(PublishPlan)}
    assert plan_of({"publish": kept}, "alice/books") == plan


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "does not say under which licence"),
        ([], "does not say under which licence"),
        ({"publish": "mit"}, "does not say under which licence"),
        ({"publish": {"license": 1}}, "publish.license is 1"),
        ({"publish": {"licence": "mit"}}, "publish.license"),
        (
            {"publish": {"license": "mit", "base_model_terms": "\ud800"}},
            "base_model_terms is no text",
        ),
        ({"publish": {"license": "mit", "datasets": ["a b"]}}, "publish.datasets names"),
    ],
)
def test_an_index_with_no_plan_or_a_wrong_one_is_refused(content, says: str) -> None:
    with pytest.raises(GatedError, match=says):
        plan_of(content, "alice/books")
