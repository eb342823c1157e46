"""Sources in repositories on a Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from convert_sources import D_IN, library_state, random_weights, truth, write_library, write_saelens
from huggingface_hub import HfApi
from sae_lens import SAE

from gated_plugin.convert import convert
from gated_plugin.errors import GatedError
from gated_plugin.hub.local import LocalHub

REPO = "alice/saebench_pythia-160m"
TRAINER = "GatedSAETrainer_ctx1024/resid_post_layer_8/trainer_14"
OTHER = "GatedSAETrainer_ctx1024/resid_post_layer_8/trainer_15"
X = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    """Of an empty hub that the environment names."""
    with LocalHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        # Read from the environment when huggingface_hub was imported.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("gated_plugin.hub.client.WAITS", (0.0,))
        yield HfApi(hub.url, token=hub.token)


@pytest.fixture
def revision(api: HfApi, tmp_path: Path) -> str:
    """The commit of a repository laid out as those of SAEBench."""
    files = tmp_path / "files"
    for trainer in (TRAINER, OTHER):
        write_library(files / trainer, library_state(random_weights()))
        (files / trainer / "eval_results.bin").write_bytes(b"\x80 a pickle of no concern")
    api.create_repo(REPO)
    return api.upload_folder(repo_id=REPO, folder_path=files).oid


def test_a_trainer_of_saebench_is_fetched_pinned_and_converted(
    revision: str, tmp_path: Path
) -> None:
    conversion = convert(f"{REPO}/{TRAINER}", "saelens", tmp_path / "out")
    found = SAE.load_from_disk(conversion.folder, dtype="float64")(X)
    assert torch.allclose(found, truth(random_weights(), X)[1], atol=1e-5)
    source = conversion.record["source"]
    assert (source["repository"], source["revision"]) == (REPO, revision)
    assert source["folder"] == TRAINER
    assert source["files"].keys() == {"ae.pt", "config.json"}
    fetched = [path.name for path in (tmp_path / "cache").rglob("snapshots/*/**/*.*")]
    assert sorted(fetched) == ["ae.pt", "config.json"]


def test_a_pickle_beside_safetensors_is_not_fetched(
    api: HfApi, revision: str, tmp_path: Path
) -> None:
    first = convert(f"{REPO}/{TRAINER}", "dictionary_learning", tmp_path / "out").folder
    api.upload_file(
        path_or_fileobj=first / "ae.safetensors",
        path_in_repo=f"{OTHER}/ae.safetensors",
        repo_id=REPO,
    )
    record = convert(f"{REPO}/{OTHER}", "saelens", tmp_path / "again").record
    assert record["source"]["files"].keys() == {"ae.safetensors", "config.json"}
    assert not list((tmp_path / "cache").rglob("trainer_15/ae.pt"))


def test_a_revision_is_kept(api: HfApi, revision: str, tmp_path: Path) -> None:
    api.delete_folder(TRAINER, REPO)
    with pytest.raises(GatedError, match="trainer_15"):
        convert(f"{REPO}/{TRAINER}", "saelens", tmp_path / "out")
    record = convert(f"{REPO}/{TRAINER}", "saelens", tmp_path / "out", revision=revision).record
    assert record["source"]["revision"] == revision


@pytest.mark.parametrize("name", [REPO, f"{REPO}/trainer_14", f"{REPO}/../secrets"])
def test_more_than_one_dictionary_names_some(name: str, revision: str, tmp_path: Path) -> None:
    with pytest.raises(GatedError, match=f"holds 2 dictionaries, .*{REPO}/GatedSAETrainer"):
        convert(name, "saelens", tmp_path / "out")


def test_the_only_dictionary_needs_no_name(api: HfApi, tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "files" / "resid_post/l0_5", random_weights())
    api.create_repo("alice/one")
    api.upload_folder(repo_id="alice/one", folder_path=tmp_path / "files")
    conversion = convert("alice/one", "jumprelu", tmp_path / "out")
    assert (
        conversion.record["source"]["folder"] == folder.relative_to(tmp_path / "files").as_posix()
    )


def test_a_repository_that_is_not_there_is_one_sentence(api: HfApi, tmp_path: Path) -> None:
    for name in ("alice/nothing", "no-such-folder"):
        with pytest.raises(GatedError) as refusal:
            convert(name, "saelens", tmp_path / "out")
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()
