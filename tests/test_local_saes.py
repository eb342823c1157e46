"""Which SAE of a folder `gated_plugin.load` takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_sae import make_sae, refusal

import gated_plugin
from gated_plugin.dictionaries import CFG, WEIGHTS

SAE_ID = "resid_post/layer_2/width_40/l0_7"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two SAEs with ids of several parts, as they lie in a folder that was pulled."""
    root = tmp_path / "repository"
    make_sae(root / SAE_ID)
    make_sae(root / "mlp_out" / "l0_3", "float64")
    (root / "README.md").write_text("# Two SAEs")
    return root


def test_an_sae_is_found_by_its_id(repository: Path) -> None:
    assert gated_plugin.load(repository, SAE_ID).dtype == torch.float32
    assert gated_plugin.load(str(repository), "mlp_out/l0_3/").dtype == torch.float64


def test_the_only_sae_needs_no_id(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(repository / "mlp_out")
    assert gated_plugin.load(repository).dtype == torch.float32
    assert gated_plugin.load(repository / SAE_ID).dtype == torch.float32
    monkeypatch.setenv("HOME", str(repository))
    assert gated_plugin.load("~").dtype == torch.float32
    monkeypatch.chdir(repository / SAE_ID)
    assert gated_plugin.load(".").dtype == torch.float32


@pytest.mark.parametrize("sae_id", [None, "resid_post", "resid_post/layer_2/width_40/l0_8", ""])
def test_an_unknown_id_is_answered_with_those_there_are(
    repository: Path, sae_id: str | None
) -> None:
    assert f"name one of mlp_out/l0_3, {SAE_ID}." in refusal(repository, sae_id)


def test_of_many_ids_some_are_named(repository: Path) -> None:
    for number in range(200):
        shutil.copytree(repository / SAE_ID, repository / f"many/l0_{number:03}")
    said = refusal(repository)
    assert "many/l0_000, many/l0_001" in said
    assert "and 194 more." in said


def test_a_folder_without_an_sae_says_so(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no SAE" in refusal(tmp_path)
    assert f"{tmp_path} holds no SAE" in refusal(tmp_path, "x")


@pytest.mark.parametrize("sae_id", ["../outside", "mlp_out/../../outside", "/", "linked"])
def test_an_id_does_not_lead_out_of_its_folder(repository: Path, sae_id: str) -> None:
    outside = make_sae(repository.parent / "outside")
    (repository / "linked").symlink_to(outside)
    sae_id = str(outside) if sae_id == "/" else sae_id
    assert f"{sae_id!r} leads out of {repository}; name an SAE below it." in refusal(
        repository, sae_id
    )


@pytest.mark.parametrize("sae_id", ["a\0b", "a" * 300, "\ud800", "loop/a"])
def test_an_id_that_no_folder_can_have_is_not_there(repository: Path, sae_id: str) -> None:
    (repository / "loop").symlink_to(repository / "loop")
    assert f"holds no SAE {sae_id!r}; name one of" in refusal(repository, sae_id)


def test_links_within_the_folder_are_followed(repository: Path) -> None:
    """As the Hugging Face cache has them: files that link to its blobs."""
    blobs = repository / "blobs"
    blobs.mkdir()
    for number, path in enumerate([repository / SAE_ID / CFG, repository / SAE_ID / WEIGHTS]):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    (repository / "newest").symlink_to(repository / SAE_ID)
    assert gated_plugin.load(repository, SAE_ID).dtype == torch.float32
    assert gated_plugin.load(repository, "newest").dtype == torch.float32


def test_of_a_run_folder_the_trained_sae_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: mine")
    assert f"{tmp_path} holds no trained SAE yet" in refusal(tmp_path)
    make_sae(tmp_path / "sae")
    make_sae(tmp_path / "checkpoints" / "step_10", "float64")
    assert gated_plugin.load(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("options", [{"revision": "main"}, {"token": "hf_secret"}])
def test_a_folder_takes_no_revision_and_no_token(repository: Path, options: dict[str, str]) -> None:
    said = refusal(repository, **options)
    assert "leave them out" in said
    assert "hf_secret" not in said


@pytest.mark.parametrize("name", ["no/such/folder", "a" * 300, "a\0b", "~nobody/x/y"])
def test_what_is_neither_folder_nor_repository_is_refused(name: str) -> None:
    assert "repository id" in refusal(name)
