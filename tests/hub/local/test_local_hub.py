"""The local hub, driven by the real `huggingface_hub` client."""

from __future__ import annotations

import base64
import hashlib
import threading
from pathlib import Path

import pytest
from hub_calls import (
    CARD,
    PATH,
    REPO,
    WEIGHTS,
    download,
    git_sha1,
    publish,
    put,
    raw,
    raw_commit,
    refused,
)
from huggingface_hub import CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import paginate


def test_what_is_committed_comes_back_with_the_same_hashes(api, repo, tmp_path):
    head = api.model_info(REPO).sha
    oid = publish(api, parent=head)
    info = api.model_info(REPO, files_metadata=True)
    assert info.sha == oid
    assert (info.library_name, info.card_data.base_model) == ("saelens", "gpt2")
    blobs = {blob.rfilename: blob for blob in info.siblings}
    assert blobs[PATH].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert blobs[PATH].size == len(WEIGHTS)
    assert blobs["README.md"].lfs is None
    assert blobs["README.md"].blob_id == git_sha1(CARD)
    assert download(api, tmp_path / "cache", revision=oid) == WEIGHTS
    folder = Path(api.snapshot_download(REPO, cache_dir=tmp_path / "cache"))
    assert (folder / "README.md").read_bytes() == CARD
    assert (folder / "empty.txt").read_bytes() == b""
    check = api.verify_repo_checksums(REPO, cache_dir=tmp_path / "cache")
    assert not check.mismatches and not check.missing_paths and check.checked_count == 5


def test_uploading_the_same_again_makes_no_commit_and_sends_no_bytes(api, repo, seen):
    oid = publish(api)
    asked = len(seen(""))
    assert publish(api) == oid
    again = seen("")[asked:]
    assert {line.split()[0] for line in again} == {"GET", "POST"}
    assert not [line for line in again if "/commit/" in line]


def test_a_content_that_the_hub_knows_is_not_sent_to_another_place(api, repo, seen):
    publish(api)
    put(api, "copy.safetensors", WEIGHTS)
    assert len(seen("^PUT /api/lfs/")) == 1


def test_files_can_be_copied_and_deleted(api, repo):
    publish(api)
    operations = [
        CommitOperationCopy(src_path_in_repo=PATH, path_in_repo="b/copy.safetensors"),
        CommitOperationDelete("README.md"),
        CommitOperationDelete("layer_0/", is_folder=True),
    ]
    api.create_commit(REPO, operations, commit_message="move")
    files = [".gitattributes", "b/copy.safetensors", "empty.txt"]
    assert sorted(api.list_repo_files(REPO)) == files
    for gone in ("README.md", "layer_0/", "b", "b/copy"):
        with pytest.raises(EntryNotFoundError):
            api.create_commit(REPO, [CommitOperationDelete(gone)], commit_message="again")


def test_a_stale_parent_is_refused_and_a_short_one_accepted(api, repo):
    old = api.model_info(REPO).sha
    new = publish(api, parent=old[:7])
    refused(412, put, api, "a.txt", b"a", parent_commit=old)
    assert api.model_info(REPO).sha == new


def test_of_six_commits_on_one_parent_exactly_one_wins(api, repo):
    head = api.model_info(REPO).sha
    start = threading.Barrier(6)
    outcomes: list[str | int] = []

    def race(number: int) -> None:
        start.wait()
        try:
            outcomes.append(put(api, "race.txt", b"%d" % number, parent_commit=head))
        except HfHubHTTPError as error:
            outcomes.append(error.response.status_code)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(412) == 5
    assert api.model_info(REPO).sha in outcomes
    assert len(api.list_repo_commits(REPO)) == 2


def test_a_missing_repository_revision_or_file_has_its_own_error(api, repo, tmp_path):
    for missing in ("local/none", "gpt2"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(missing)
        with pytest.raises(RepositoryNotFoundError):
            api.hf_hub_download(missing, "config.json", cache_dir=tmp_path)
    assert not api.repo_exists("local/data", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="nope")
    with pytest.raises(RevisionNotFoundError):
        download(api, tmp_path, ".gitattributes", revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        download(api, tmp_path, "nope.txt")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nope"))


def test_a_repository_is_created_once_under_any_owner(hub, api):
    assert api.create_repo("lab/sae").repo_id == "lab/sae"
    assert api.create_repo("sae").repo_id == "local/sae"
    refused(409, api.create_repo, "lab/sae")
    assert api.create_repo("lab/sae", exist_ok=True).repo_id == "lab/sae"
    refused(400, api.create_repo, "lab/data", repo_type="dataset")
    api.delete_repo("lab/sae")
    assert not api.repo_exists("lab/sae")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("lab/sae")


def test_a_repository_made_anew_has_nothing_of_the_deleted_one(api, repo):
    oid = publish(api)
    api.create_tag(REPO, tag="v1")
    api.delete_repo(REPO)
    api.create_repo(REPO)
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert not api.revision_exists(REPO, oid) and not api.revision_exists(REPO, "v1")


def test_models_are_listed_by_author_search_and_tag_and_in_pages(hub, api, seen):
    for name in ("ada/one", "ada/two", "bob/one"):
        api.create_repo(name)
    api.upload_file(path_or_fileobj=CARD, path_in_repo="README.md", repo_id="bob/one")

    def ids(**query) -> list[str]:
        return [model.id for model in api.list_models(**query)]

    assert ids(author="ada") == ["ada/one", "ada/two"]
    assert ids(search="ONE") == ["ada/one", "bob/one"]
    assert ids(filter=["saelens", "base_model:gpt2"]) == ["bob/one"]
    assert ids(limit=1) == ["ada/one"]
    pages = paginate(f"{hub.url}/api/models", {"limit": 2, "search": "o"}, {})
    assert [model["id"] for model in pages] == ["ada/one", "ada/two", "bob/one"]
    assert len(seen("GET /api/models 200")) == 6


def test_a_tree_is_listed_flat_recursively_and_below_a_folder(hub, api, repo):
    publish(api)
    put(api, "layer_0/deep er/ä%2F.txt", b"1")

    def paths(*path: str, **options) -> set[str]:
        return {entry.path for entry in api.list_repo_tree(REPO, *path, **options)}

    top = {".gitattributes", "README.md", "empty.txt", "layer_0"}
    assert paths() == top
    assert paths("layer_0") == {"layer_0/cfg.json", PATH, "layer_0/deep er"}
    below = {"layer_0/cfg.json", PATH, "layer_0/deep er", "layer_0/deep er/ä%2F.txt"}
    assert paths(recursive=True) == top | below
    found = api.get_paths_info(REPO, ["README.md", "layer_0", "nope"])
    assert [entry.path for entry in found] == ["README.md", "layer_0"]
    assert raw(hub, "GET", f"api/models/{REPO}/tree/main/layer_0/deep%20er") == 200


def test_a_name_with_reserved_letters_is_downloaded(api, repo, tmp_path):
    put(api, "a b/ä%2F?#.txt", b"1")
    assert download(api, tmp_path, "a b/ä%2F?#.txt") == b"1"


def test_tags_and_branches_point_where_they_were_made(api, repo, tmp_path):
    old = publish(api)
    api.create_tag(REPO, tag="v1.0", revision=old[:7])
    api.create_branch(REPO, branch="dev/x", revision="v1.0")
    new = put(api, "layer_0/cfg.json", b'{"new": 1}', revision="dev/x")
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": old, "dev/x": new}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1.0": old}
    assert download(api, tmp_path, "layer_0/cfg.json", revision="v1.0") == b"{}"
    assert download(api, tmp_path, "layer_0/cfg.json", revision="dev/x") == b'{"new": 1}'
    commits = api.list_repo_commits(REPO, revision="dev/x")
    assert [commit.title for commit in commits] == ["layer_0/cfg.json", "SAE", "initial commit"]
    refused(409, api.create_tag, REPO, tag="v1.0")
    refused(409, api.create_branch, REPO, branch="dev/x")
    refused(400, api.create_tag, REPO, tag="a..b")
    refused(403, api.delete_branch, REPO, branch="main")
    with pytest.raises(RevisionNotFoundError):
        put(api, "a.txt", b"a", revision="v1.0")
    api.delete_tag(REPO, tag="v1.0")
    api.delete_branch(REPO, branch="dev/x")
    assert not api.revision_exists(REPO, "v1.0") and not api.revision_exists(REPO, "dev/x")


@pytest.mark.parametrize("card", [b"---\ntags: [\n---\n", b"---\n- tags\n---\n"])
def test_a_card_that_cannot_be_read_is_refused_before_and_in_the_commit(hub, api, repo, card):
    with pytest.raises(ValueError, match="Invalid metadata"):
        put(api, "README.md", card)
    bad = {"path": "README.md", "content": base64.b64encode(card).decode()}
    assert raw_commit(hub, {"key": "file", "value": bad}) == 400
    assert len(api.list_repo_commits(REPO)) == 1
