"""SAEs trained together: each is what it is when it is trained alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_results import fingerprint

from gated_plugin.errors import GatedError, Interrupted
from gated_plugin.recipes import Recipe
from gated_plugin.runner import train
from gated_plugin.runs import Run
from gated_plugin.science import group
from gated_plugin.science.evaluation import evaluate
from gated_plugin.science.group import train_together

pytestmark = pytest.mark.usefixtures("unpacked_once", "one_thread")

MEMBERS = (
    ("sae.l1_coefficient=0.4",),
    ("sae.l1_coefficient=1.6", "lr=0.003", "lr_warm_up_steps=5"),
    ("sae.d_sae=96", "sae.normalize_activations=none", "name=wide"),
    ("sae.architecture=standard", "sae.l1_coefficient=2", "adam_beta1=0.9"),
    ("sae.resampling=paper", "sae.resample_steps=[8, 14]", "sae.resample_window=6"),
)


@pytest.fixture(scope="module")
def recipes(tiny: Path) -> list[Recipe]:
    return [Recipe.load(tiny, overrides) for overrides in MEMBERS]


@pytest.fixture(scope="module")
def together(recipes: list[Recipe], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    out = tmp_path_factory.mktemp("together")
    folders = [out / str(place) for place in range(len(recipes))]
    return train_together(recipes, folders, cache=out / "cache", quiet=True)


def result(run: Run) -> dict[str, Any]:
    """The result of a run, less the seconds."""
    found: dict[str, Any] = fingerprint(run.path)
    for line in found["log"]:
        line.pop("training_seconds", None)
    return found


@pytest.mark.parametrize("place", range(len(MEMBERS)))
def test_a_member_is_bit_for_bit_what_it_is_alone(
    place: int, together: list[Run], recipes: list[Recipe], tmp_path: Path
) -> None:
    alone = train(recipes[place], tmp_path / "run", quiet=True)
    assert result(together[place]) == result(alone)
    assert Recipe.load(together[place].recipe).settings == recipes[place].settings


def test_a_member_is_an_ordinary_run(together: list[Run], recipes: list[Recipe]) -> None:
    run = together[1]
    assert json.loads(run.environment.read_text())["torch"] == torch.__version__
    assert evaluate(run, recipes[1], quiet=True).tokens_evaluated == 2048
    seconds = [json.loads(line)["training_seconds"] for line in run.training_log.open()]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_a_second_group_reads_the_activations_of_the_first(
    together: list[Run], recipes: list[Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sae_lens.training.activations_store.ActivationsStore.get_filtered_llm_batch", None
    )
    cache = together[0].path.parent / "cache"
    (again,) = train_together(recipes[:1], [tmp_path / "run"], cache=cache, quiet=True)
    assert result(again) == result(together[0])


def test_what_is_trained_is_left_alone_and_the_rest_starts_anew(
    recipes: list[Recipe], together: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / str(place) for place in range(3)]
    train_together(recipes[:1], folders[:1], quiet=True)
    genuine = group._step
    steps = iter(range(7))
    monkeypatch.setattr(group, "_step", lambda *given: (next(steps), genuine(*given))[1])
    with pytest.raises(StopIteration):
        train_together(recipes[:3], folders, quiet=True)
    assert [Run(folder).is_trained for folder in folders] == [True, False, False]
    monkeypatch.setattr(group, "_step", genuine)
    written = (folders[0] / "sae" / "cfg.json").stat().st_mtime_ns
    runs = train_together(recipes[:3], folders, quiet=True)
    assert [result(run) for run in runs] == [result(run) for run in together[:3]]
    assert (folders[0] / "sae" / "cfg.json").stat().st_mtime_ns == written


def test_a_stop_is_obeyed_between_two_steps(
    recipes: list[Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = group._step

    def interrupt(*given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return genuine(*given)

    monkeypatch.setattr(group, "_step", interrupt)
    with pytest.raises(Interrupted, match="Stopped at step 1 of 20 of 2 SAEs; the same command"):
        train_together(recipes[:2], [tmp_path / "a", tmp_path / "b"], quiet=True)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed=7", "seed is None in one recipe and 7 in another; train them in two groups."),
        ("hook_name=blocks.0.hook_mlp_out", "but hook_name is 'blocks.0.hook_resid_post' in one"),
        ("train_batch_size_tokens=32", "but train_batch_size_tokens is 64 in one"),
    ],
)
def test_recipes_that_cannot_share_batches_are_refused(
    override: str, sentence: str, tiny: Path, tmp_path: Path
) -> None:
    recipes = [Recipe.load(tiny), Recipe.load(tiny, [override])]
    with pytest.raises(GatedError) as caught:
        train_together(recipes, [tmp_path / "a", tmp_path / "b"], quiet=True)
    assert sentence in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_recipe_is_refused(
    recipes: list[Recipe], together: list[Run], tmp_path: Path
) -> None:
    with pytest.raises(GatedError, match=r"was started with sae.d_sae = 96, not 64"):
        train_together(recipes[:1], [together[2].path], quiet=True)


def test_a_group_that_cannot_begin_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(tiny, ["hook_name=blocks.7.hook_resid_post"])
    with pytest.raises(GatedError, match="has no hook point"):
        train_together([recipe], [tmp_path / "run"], quiet=True)
    assert list(tmp_path.iterdir()) == []
