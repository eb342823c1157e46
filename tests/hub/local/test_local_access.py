"""Who may read and write on the local hub."""

from __future__ import annotations

import stat

import pytest
from hub_calls import (
    REPO,
    publish,
    put,
    raw,
    raw_commit,
    refused,
)
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    RepositoryNotFoundError,
)

from gated_plugin.hub.local import Access, LocalHub

READER = "hf_reader"


def test_the_token_is_kept_where_only_its_owner_reads_it(hub, tmp_path):
    kept = tmp_path / "hub" / "token"
    assert kept.read_text() == hub.token
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_no_log_line_holds_a_token_or_a_signature(hub, api, repo, caplog):
    caplog.set_level("INFO", logger="gated_plugin")
    publish(api)
    assert "PUT /api/lfs/" in caplog.text
    assert hub.token not in caplog.text and "signature" not in caplog.text


def test_a_private_repository_is_hidden_without_a_token(hub, api):
    api.create_repo(REPO, private=True)
    anonymous = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(RepositoryNotFoundError):
        anonymous.model_info(REPO)
    with pytest.raises(RepositoryNotFoundError):
        anonymous.hf_hub_download(REPO, ".gitattributes")
    assert list(anonymous.list_models()) == []
    assert [model.id for model in api.list_models()] == [REPO]


def test_a_public_repository_is_read_but_not_written_without_a_token(hub, api, repo):
    oid = publish(api)
    anonymous = HfApi(endpoint=hub.url, token=False)
    assert anonymous.model_info(REPO).sha == oid
    refused(401, put, anonymous, "a.txt", b"a")
    refused(401, anonymous.create_repo, "local/other")
    refused(401, anonymous.delete_repo, REPO)


def test_a_read_token_reads_private_repositories_and_writes_nothing(tmp_path):
    tokens = {"hf_writer": Access("ada", "write"), READER: Access("ada", "read")}
    with LocalHub(tmp_path / "hub", tokens=tokens) as hub:
        assert hub.token == "hf_writer"
        HfApi(endpoint=hub.url, token=hub.token).create_repo(REPO, private=True)
        reader = HfApi(endpoint=hub.url, token=READER)
        assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
        assert reader.model_info(REPO).private
        refused(403, put, reader, "a.txt", b"a")
        refused(403, reader.create_tag, REPO, tag="v1")
        refused(403, reader.create_repo, "ada/other")
        batch = f"{REPO}.git/info/lfs/objects/batch"
        assert raw(hub, "POST", batch, b"{}", Authorization=f"Bearer {READER}") == 403
        assert raw(hub, "POST", batch, b"{}") == 401


def test_an_unknown_token_is_refused_and_not_taken_for_a_missing_repository(hub, api, repo):
    stranger = HfApi(endpoint=hub.url, token="hf_stranger")
    for call in (stranger.whoami, lambda: stranger.model_info(REPO)):
        error = refused(401, call)
        assert not isinstance(error, RepositoryNotFoundError)
        assert "hf_stranger" not in str(error)


def test_a_commit_cannot_reach_the_files_of_the_hub_itself(hub, api, repo):
    publish(api)
    assert (hub.storage.blobs.large("../token")).exists()
    line = {"key": "lfsFile", "value": {"path": "a", "oid": "../token"}}
    assert raw_commit(hub, line) == 400
