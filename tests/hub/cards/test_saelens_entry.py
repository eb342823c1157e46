"""SAELens reads our entry of its directory, and loads the SAE by the release's name."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from entries import HOSTILE, entry
from sae_lens import SAE
from sae_lens.loading import pretrained_saes_directory as directory

from gated_plugin.errors import GatedError
from gated_plugin.hub.cards.saelens_entry import entry_yaml, release_name
from gated_plugin.recipes import PublishPlan
from gated_plugin.runs import Run

REPO = "alice/books"
PLAN = PublishPlan(license="mit", base_model="google/gemma-7b")


@pytest.fixture
def saelens_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """SAELens' own file, cut to its first releases, in the place where SAELens looks."""
    whole = files("sae_lens").joinpath("pretrained_saes.yaml").read_text()
    path = tmp_path / "pretrained_saes.yaml"
    path.write_text(whole[: whole.index("\ngemma", 1000) + 1])
    monkeypatch.setattr(directory, "files", lambda package: tmp_path)
    directory.get_pretrained_saes_directory.cache_clear()
    yield path
    directory.get_pretrained_saes_directory.cache_clear()


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_saelens_reads_the_entry_from_its_directory(saelens_file):
    before = dict(directory.get_pretrained_saes_directory())
    directory.get_pretrained_saes_directory.cache_clear()
    append(saelens_file, entry_yaml(REPO, [entry(id="b", l0=99.0), entry()], PLAN))
    after = directory.get_pretrained_saes_directory()

    assert before and after.keys() - before.keys() == {"alice-books"}
    found = after["alice-books"]
    ours = entry()["id"]
    assert (found.repo_id, found.model, found.conversion_func) == (REPO, "gemma-7b", None)
    assert found.saes_map == {ours: ours, "b": "b"}
    assert list(found.saes_map) == [ours, "b"]
    assert found.expected_l0 == {ours: 67.0, "b": 99.0}
    assert found.expected_var_explained == pytest.approx({ours: 0.7655, "b": 0.7655})


def test_the_entry_has_the_keys_of_saelens_own():
    (release,) = yaml.safe_load(entry_yaml(REPO, [entry()], PLAN)).values()
    assert list(release) == ["conversion_func", "links", "model", "repo_id", "saes"]
    assert release["links"] == {"model": "https://huggingface.co/google/gemma-7b"}
    assert list(release["saes"][0]) == ["id", "path", "l0", "variance_explained"]


def test_what_was_not_measured_is_left_out():
    (release,) = yaml.safe_load(
        entry_yaml(REPO, [entry(l0=None, fvu=None)], PublishPlan())
    ).values()
    assert "links" not in release
    assert list(release["saes"][0]) == ["id", "path"]


def test_the_release_loads_by_its_name(saelens_file, run: Run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sae_lens.loading.pretrained_sae_loaders.hf_hub_download",
        lambda repo_id, filename, **_: str(tmp_path / repo_id / filename),
    )
    shutil.copytree(run.sae, tmp_path / REPO / entry()["id"])
    append(saelens_file, entry_yaml(REPO, [entry()], PLAN))

    sae = SAE.from_pretrained(release_name(REPO), entry()["id"])
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (16, 64)


def test_a_hostile_name_is_only_a_name(saelens_file):
    name = HOSTILE.replace("\n", " ")
    append(saelens_file, entry_yaml(REPO, [entry(id=name, model=HOSTILE)], PLAN))
    found = directory.get_pretrained_saes_directory()["alice-books"]
    assert found.saes_map == {name: name}
    assert found.model == HOSTILE


def test_an_entry_without_a_language_model_is_refused():
    with pytest.raises(GatedError, match="does not name the language model"):
        entry_yaml(REPO, [entry(model=None)], PLAN)
