"""What a push would send."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from miniature import RECIPE

from gated_plugin.errors import GatedError
from gated_plugin.hub import certificate, preparation
from gated_plugin.hub.cards import notes
from gated_plugin.runs import Run

ID = "mlp_post/layer_0/width_64/l0_12"
PLOT = "plots/training.png"
NONE = dict.fromkeys(
    ("features", "reconstructions", "features_relative", "reconstructions_relative"), 0.0
)


@pytest.fixture(autouse=True)
def trusting(monkeypatch):
    """Leaves out the comparison with plain SAELens, whose process takes seconds to start."""
    compared = {"rows": 64, "float64": NONE, "float32": NONE}
    monkeypatch.setattr(preparation, "verify_folders", lambda folders: [compared] * len(folders))
    monkeypatch.setattr(preparation, "_is_gated", lambda base_model: None)


def prepare(run: Run, *more: Run, before=None, card=None) -> dict:
    runs = [str(each.path) for each in (run, *more)]
    saes = before["saes"] if before else []
    remote = [f"{each['id']}/{name}" for each in saes for name in ("cfg.json", PLOT)]
    return preparation.prepare(lambda line: None, runs, "alice/books", before, card, remote)


def index_of(run: Run) -> dict:
    return json.loads((run.publication / "config.json").read_text())


def entries(run: Run) -> list[dict]:
    return index_of(run)["saes"]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def another(run: Run, tmp_path: Path, edit) -> Run:
    """A run with another λ and another L0."""
    shutil.copytree(run.path, tmp_path / "runs" / "another")
    other = Run(tmp_path / "runs" / "another")
    other.recipe.write_text(RECIPE.replace("0.75", "1.25"))
    edit(other.evaluation, l0=5.2)
    return other


def test_the_publication_holds_sae_certificate_card_and_index_alone(run):
    prepared = prepare(run)
    assert prepared["sae_ids"] == [ID]
    assert prepared["folder"] == str(run.publication)
    assert contents(run.publication).keys() == {
        "README.md",
        "config.json",
        f"{ID}/activations.safetensors",
        f"{ID}/certificate.json",
        f"{ID}/cfg.json",
        f"{ID}/sae_weights.safetensors",
        f"{ID}/sparsity.safetensors",
        f"{ID}/plots/training.png",
    }


def test_the_certificate_covers_every_file_of_the_sae(run):
    prepare(run)
    folder = run.publication / ID
    certified = certificate.read(folder)
    assert certified["sae_id"] == ID
    assert certified["files"].keys() == contents(folder).keys() - {"certificate.json"}
    certificate.require_files(folder, certified)


def test_the_index_says_which_weights_and_which_figures(run):
    prepare(run)
    weights = (run.publication / ID / "sae_weights.safetensors").read_bytes()
    (entry,) = entries(run)
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
    prepare(run)

    everything = b"".join(contents(run.publication).values())
    assert b"hf_mysecrettoken" not in everything
    assert str(run.path.parent).encode() not in everything
    cfg = json.loads((run.publication / ID / "cfg.json").read_text())
    assert (cfg["device"], cfg["metadata"]["model_name"]) == ("cpu", "model")


def test_preparing_again_gives_the_same_bytes_and_leaves_nothing_behind(run):
    prepare(run)
    first = contents(run.publication)
    (run.publication / "leftover.txt").write_text("old")
    prepare(run)
    assert contents(run.publication) == first


def test_what_a_killed_push_left_is_not_published(run):
    unfinished = run.path / ".publication.unfinished"
    unfinished.mkdir()
    (unfinished / "leftover.txt").write_text("old")
    prepare(run)
    assert "leftover.txt" not in contents(run.publication)
    assert not unfinished.exists()


def test_several_runs_share_a_repository(run, another):
    prepared = prepare(run, another)
    assert prepared["sae_ids"] == [ID, "mlp_post/layer_0/width_64/l0_5"]
    assert [entry["l0"] for entry in entries(run)] == [12.34, 5.2]
    assert all((run.publication / sae_id / "cfg.json").exists() for sae_id in prepared["sae_ids"])


def test_runs_that_round_to_one_l0_are_told_apart_by_decimals(run, another, edit):
    edit(another.evaluation, l0=12.41)
    assert prepare(run, another)["sae_ids"] == [ID, "mlp_post/layer_0/width_64/l0_12.4"]


def test_other_saes_of_the_repository_stay_in_card_and_index(run, another):
    prepare(another)
    before = index_of(another)
    prepare(run, before=before)
    assert sorted(entry["l0"] for entry in entries(run)) == [5.2, 12.34]
    assert before["saes"][0] in entries(run)
    assert "l0_5" in (run.publication / "README.md").read_text()


def test_a_run_replaces_what_was_pushed_with_its_own_settings_alone(run, another, edit):
    prepare(run)
    before = index_of(run)
    assert prepare(run, before=before)["sae_ids"] == [ID]
    edit(another.evaluation, l0=12.41)
    assert prepare(another, before=before)["sae_ids"] == [f"{ID}.4"]


def test_what_a_person_wrote_into_the_card_stays(run):
    prepare(run)
    card = (run.publication / "README.md").read_text()
    after = card.index(notes.BEGIN) + len(notes.BEGIN)
    edited = f"{card[:after]}\n\nFeature 7 is a bridge.\n{card[after:]}"
    prepare(run, card=edited)
    assert "Feature 7 is a bridge." in (run.publication / "README.md").read_text()


def test_an_sae_that_was_deleted_on_the_hub_is_forgotten(run, another):
    prepare(another)
    before = index_of(another)
    preparation.prepare(lambda line: None, [str(run.path)], "alice/books", before, None, [])
    assert [entry["l0"] for entry in entries(run)] == [12.34]


def test_what_was_written_into_the_card_of_a_dry_run_is_published(run):
    prepare(run)
    card = run.publication / "README.md"
    card.write_text(card.read_text().replace(notes.BEGIN, f"{notes.BEGIN}\n\nMine."))
    prepare(run)
    assert "Mine." in card.read_text()


def test_runs_that_differ_in_a_setting_that_no_card_shows_are_two_saes(run, another, edit):
    another.recipe.write_text(RECIPE.replace("lr: 0.003", "lr: 0.003\nlr_decay_steps: 10"))
    edit(another.evaluation, l0=12.34)
    assert prepare(run, another)["sae_ids"] == [ID, f"{ID}.3"]
    prepare(run)
    assert prepare(another, before=index_of(run))["sae_ids"] == [f"{ID}.3"]


@pytest.mark.parametrize(
    ("key", "value"), [("id", ["x"]), ("model", None), ("weights", "x"), ("width", "wide")]
)
def test_an_index_that_somebody_spoiled_is_refused(run, key, value):
    prepare(run)
    before = index_of(run)
    before["saes"][0][key] = value
    with pytest.raises(GatedError, match="no index of dictionaries"):
        preparation.prepare(lambda line: None, [str(run.path)], "alice/books", before, None, [])


def test_saes_of_two_language_models_do_not_share_a_repository(run):
    prepare(run)
    before = index_of(run)
    before["saes"][0] |= {"id": "other", "model": "gpt2"}
    with pytest.raises(GatedError, match="more than one language model"):
        prepare(run, before=before)


def test_runs_that_state_another_licence_do_not_share_a_card(run, another):
    another.recipe.write_text(another.recipe.read_text().replace("mit", "apache-2.0"))
    with pytest.raises(GatedError, match="do not say the same"):
        prepare(run, another)


def test_a_push_does_not_change_the_licence_of_saes_that_are_there(run, another):
    prepare(another)
    run.recipe.write_text(RECIPE.replace("license: mit", "license: apache-2.0"))
    with pytest.raises(GatedError, match="do not say the same"):
        prepare(run, before=index_of(another))
    prepare(another)
    assert prepare(run, before=None)["sae_ids"] == [ID]


def figure_missing(run: Run) -> None:
    figures = json.loads(run.evaluation.read_text())
    del figures["gamma"]
    run.evaluation.write_text(json.dumps(figures))


def figure_not_finite(run: Run) -> None:
    figures = json.loads(run.evaluation.read_text())
    run.evaluation.write_text(json.dumps({**figures, "gamma": float("nan")}))


def no_licence(run: Run) -> None:
    run.recipe.write_text(RECIPE.replace("license: mit", ""))


def damaged(run: Run) -> None:
    (run.sae / "sae_weights.safetensors").write_bytes(b"no tensors")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (figure_missing, "no finite gamma"),
        (figure_not_finite, "no finite gamma"),
        (no_licence, "No licence"),
        (damaged, "no sound safetensors"),
    ],
)
def test_what_is_refused_leaves_the_last_publication(run, damage, says):
    prepare(run)
    before = contents(run.publication)
    damage(run)
    with pytest.raises(GatedError, match=says) as refusal:
        prepare(run)
    assert "\n" not in str(refusal.value)
    assert contents(run.publication) == before
