"""A full disk at any moment of training is one sentence, and with room again all is as if not.

GATED_FAULTS=all fills it at fifty places, which takes a minute; without it there is a sample.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from full_disk import full_disk
from run_results import fingerprint
from safetensors import SafetensorError

from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.runner import train
from gated_plugin.runs import Run
from gated_plugin.science import evaluation
from gated_plugin.science.evaluation import evaluate

SEED = 3
RANDOM_PLACES = 50 if os.environ.get("GATED_FAULTS") == "all" else 3
OVERRIDES = ["sae.normalize_activations=covariance_whitening", "adam_beta1=0.9"]
EVERY = 4
pytestmark = pytest.mark.usefixtures("unpacked_once", "one_thread")


@pytest.fixture(scope="module")
def recipe(tiny: Path) -> Recipe:
    return Recipe.load(tiny, OVERRIDES)


class Untroubled(NamedTuple):
    """A run with room for everything."""

    result: dict[str, object]
    start: int
    """Bytes that it wrote before its first step."""
    written: int


@pytest.fixture(scope="module")
def untroubled(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Untroubled:
    run, room = Run(tmp_path_factory.mktemp("untroubled") / "run"), 1 << 40
    with full_disk(room, run.path) as left:
        train(recipe, run.path, checkpoint_every=EVERY, quiet=True)
    start = run.environment.stat().st_size + run.recipe.stat().st_size
    return Untroubled(fingerprint(run.path), start, room - left())


def sentence(recipe: Recipe, out: Path, room: int) -> str:
    """What training into a disk with so much room says."""
    resume = Run(out).recipe.exists()
    with pytest.raises(GatedError) as caught, full_disk(room, out):
        train(recipe, out, resume=resume, checkpoint_every=EVERY, quiet=True)
    said = str(caught.value)
    assert "No space left on device" in said
    assert "\n" not in said
    again = f"`gated-hub train {out}/recipe.yaml --out {out} --resume`"
    if not Run(out).recipe.exists():
        again = "give the same command again"
    assert said.endswith(f"make room, then {again}.")
    assert not list(out.rglob("*.unfinished"))
    return said


def room_for(place: str, untroubled: Untroubled) -> int:
    _, start, written = untroubled
    return {
        "nothing": 0,
        "half the start": start // 2,
        "a line of the log": start + 300,
        "all but the end": written - 2000,  # figures in the log have a digit more or less
    }.get(place, Random(f"{SEED} {place}").randrange(written))


@pytest.mark.parametrize(
    ("place", "unwritten"),
    [
        ("nothing", "The start of the run"),
        ("half the start", "The start of the run"),
        ("a line of the log", "training.jsonl"),
        ("all but the end", "The trained SAE"),
        *((f"place {number}", "") for number in range(RANDOM_PLACES)),
    ],
)
def test_after_a_full_disk_the_run_goes_on_bit_for_bit(
    place: str, unwritten: str, recipe: Recipe, tmp_path: Path, untroubled: Untroubled
) -> None:
    out = tmp_path / "run"
    assert f"{unwritten} could not be written" in sentence(recipe, out, room_for(place, untroubled))
    sentence(recipe, out, 0)
    train(recipe, out, resume=Run(out).recipe.exists(), checkpoint_every=EVERY, quiet=True)
    assert fingerprint(out) == untroubled.result


def test_an_evaluation_on_a_full_disk_is_one_sentence_and_done_again(
    recipe: Recipe, tmp_path: Path
) -> None:
    run = train(recipe, tmp_path / "run", quiet=True)
    with pytest.raises(GatedError) as caught, full_disk(0, run.path):
        evaluate(run, recipe, quiet=True)
    assert str(caught.value).startswith("The evaluation could not be written (")
    assert str(caught.value).endswith(f"make room, then `gated-hub eval {run.path}`.")
    assert not run.evaluation.exists()
    assert not list(run.path.rglob("*.unfinished"))
    assert evaluate(run, recipe, quiet=True).l0 > 0


def test_so_is_one_of_which_safetensors_finds_the_disk_full(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    run = train(recipe, tmp_path / "run", quiet=True)
    monkeypatch.setattr(evaluation, "save_file", full)
    with pytest.raises(
        GatedError, match=r"^The evaluation could not .* make room, then `gated-hub"
    ):
        evaluate(run, recipe, quiet=True)
