"""An SAE in the Hugging Face cache: fetched once, shared, and found without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir
from published import OTHER, REPO, SAE, WEIGHTS, publish, repository

from gated_plugin.errors import GatedError
from gated_plugin.hub import client
from gated_plugin.hub.fetch import cached_folder
from gated_plugin.hub.pull import pull


def test_an_sae_in_the_cache_is_shared_with_the_client(hub):
    content = repository()
    sha = publish(hub, content)
    folder = cached_folder(REPO, SAE)

    assert folder == Path(constants.HF_HUB_CACHE) / f"models--alice--saes/snapshots/{sha}" / SAE
    for path, data in content.items():
        if path.startswith(SAE):
            assert (folder / path.removeprefix(f"{SAE}/")).read_bytes() == data
    hub.requests.clear()
    assert hf_hub_download(REPO, WEIGHTS, endpoint=hub.url) == str(folder / Path(WEIGHTS).name)
    assert {seen.method for seen in hub.requests} == {"HEAD"}
    info = scan_cache_dir(constants.HF_HUB_CACHE)
    assert not info.warnings and not info.incomplete_files
    assert [repo.repo_id for repo in info.repos] == [REPO]


def test_what_the_client_has_cached_is_not_fetched_again(hub):
    publish(hub, repository())
    hf_hub_download(REPO, WEIGHTS, endpoint=hub.url)
    hub.requests.clear()
    cached_folder(REPO, SAE)
    assert not hub.seen("GET", "sae_weights") and hub.seen("GET", "certificate")


def test_a_cached_sae_costs_one_question_and_a_pinned_one_none(hub):
    sha = publish(hub, repository())
    folder = cached_folder(REPO, SAE)
    hub.requests.clear()
    assert cached_folder(REPO, SAE) == folder
    assert [seen.path for seen in hub.requests] == [f"/api/models/{REPO}"]
    hub.requests.clear()
    assert cached_folder(REPO, SAE, revision=sha) == folder
    assert not hub.requests


def test_a_cache_for_reading_only_is_enough(hub, monkeypatch):
    publish(hub, repository())
    folder = cached_folder(REPO, SAE)
    (folder.parents[5] / "refs/main").unlink()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Read-only file system", str(path))

    monkeypatch.setattr("gated_plugin.hub.cache.beside", refuse)
    assert cached_folder(REPO, SAE) == folder


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("more", [(), ("certificate.json",)])
def test_the_little_that_saelens_fetches_is_not_taken_for_all(hub, pinned, more):
    sha = publish(hub, repository())
    for name in ("cfg.json", "sae_weights.safetensors", *more):
        hf_hub_download(REPO, f"{SAE}/{name}", endpoint=hub.url)
    folder = cached_folder(REPO, SAE, sha if pinned else None)
    assert (folder / "certificate.json").exists() and (folder / "plots/training.png").exists()


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_half_of_what_loading_needs_is_not_enough_offline(hub, monkeypatch, name):
    publish(hub, repository())
    hf_hub_download(REPO, f"{SAE}/{name}", endpoint=hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(GatedError, match="the cache lacks"):
        cached_folder(REPO, SAE)


def test_a_note_that_is_no_commit_leads_nowhere(hub, monkeypatch):
    publish(hub, repository())
    folder = cached_folder(REPO, SAE)
    (folder.parents[5] / "refs/main").write_text(f"../snapshots/{folder.parents[3].name}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(GatedError, match="the cache lacks"):
        cached_folder(REPO, SAE)


def test_what_the_client_has_tried_often_enough_is_not_tried_again(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    publish(hub, repository())
    hub.fail("HEAD", "/resolve/", status=503, times=100)
    with pytest.raises(GatedError, match="HTTP 503"):
        cached_folder(REPO, SAE)
    assert len(hub.seen("HEAD", "/resolve/")) == 1 + 6


def test_a_new_commit_is_followed_and_sends_only_what_changed(hub):
    publish(hub, repository())
    old = cached_folder(REPO, SAE)
    publish(hub, {f"{SAE}/plots/training.png": b"new"})
    new = cached_folder(REPO, SAE)
    assert (old / "plots/training.png").read_bytes() != b"new"
    assert (new / "plots/training.png").read_bytes() == b"new"
    assert len(hub.seen("GET", "/resolve/")) == 1


@pytest.mark.parametrize("revision", [None, "main", "v1", "commit"])
def test_offline_the_cache_answers_for_commits_it_knows(hub, monkeypatch, revision):
    sha = publish(hub, repository())
    client.connect().create_tag(REPO, tag="v1")
    revision = sha if revision == "commit" else revision
    folder = cached_folder(REPO, SAE, revision)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cached_folder(REPO, SAE, revision) == folder
    assert cached_folder(REPO, None, revision) == folder
    with pytest.raises(GatedError, match=f"HF_HUB_OFFLINE.* run `gated-hub pull {REPO} {OTHER}"):
        cached_folder(REPO, OTHER, revision)
    with pytest.raises(GatedError, match=r"at v2; unset it and run .* --revision v2`"):
        cached_folder(REPO, SAE, "v2")
    assert not hub.requests


def test_an_interrupted_sae_is_not_taken_for_a_whole_one(hub, monkeypatch):
    publish(hub, repository())
    hub.fail("GET", "sae_weights", times=100)
    with pytest.raises(GatedError, match="could not be reached"):
        cached_folder(REPO, SAE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(GatedError, match="the cache lacks"):
        cached_folder(REPO, SAE)


def test_without_a_network_the_cache_answers_with_a_warning(hub, monkeypatch):
    sha = publish(hub, repository())
    folder = cached_folder(REPO, SAE)
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(match=f"No hub answers .*commit {sha} from the cache"):
        assert cached_folder(REPO, SAE) == folder
    assert not naps
    with pytest.raises(GatedError, match="No hub answers"):
        cached_folder(REPO, OTHER)
    assert not naps  # a hub of this computer does not come back by itself


@pytest.mark.parametrize("trouble", [{"status": 503}, {}])
def test_a_failing_hub_is_never_answered_with_an_old_commit(hub, trouble):
    publish(hub, repository())
    cached_folder(REPO, SAE)
    hub.fail("GET", f"/api/models/{REPO}$", times=100, **trouble)
    with pytest.raises(GatedError, match="read alice/saes"):
        cached_folder(REPO, SAE)


def test_the_only_sae_needs_no_name(hub):
    publish(hub, {path: c for path, c in repository().items() if not path.startswith(OTHER)})
    assert cached_folder(REPO).as_posix().endswith(SAE)
    publish(hub, repository())
    with pytest.raises(GatedError, match=f"2 SAEs; name one .*gated-hub list {REPO}"):
        cached_folder(REPO)


def test_a_hub_that_contradicts_itself_is_refused(hub):
    sha = publish(hub, repository())
    metadata = {"ETag": '"other"', "X-Repo-Commit": sha}
    hub.fail("HEAD", "certificate", status=200, headers=metadata, body=b"")
    hub.fail("GET", "certificate", flip_at=3, skip=1)
    with pytest.raises(GatedError, match=r"certificate\.json of alice/saes two different hashes"):
        cached_folder(REPO, SAE)
    assert not list(Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/**/certificate.json"))


def test_a_system_without_links_holds_each_file_once(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    publish(hub, repository())
    folder = cached_folder(REPO, SAE)
    assert (folder / "sae_weights.safetensors").read_bytes() == repository()[WEIGHTS]
    assert not (folder / "cfg.json").is_symlink()
    assert not list(Path(constants.HF_HUB_CACHE).glob("*/blobs/*"))
    hub.requests.clear()
    cached_folder(REPO, SAE)
    assert not hub.seen("GET", "/resolve/")
    (folder / "cfg.json").write_text("other")
    pull(REPO, SAE)
    assert (folder / "cfg.json").read_bytes() == repository()[f"{SAE}/cfg.json"]
