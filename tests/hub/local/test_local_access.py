"""Who may read and write on the local hub."""

from __future__ import annotations

import hashlib
import json
import socket
import stat
import urllib.request
from email.message import Message

import pytest
from hub_calls import (
    REPO,
    WEIGHTS,
    download,
    publish,
    put,
    raw,
    raw_commit,
    refused,
    upload_url,
)
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    RepositoryNotFoundError,
)

from gated_plugin.hub.local import Access, LocalHub
from gated_plugin.hub.local.access import kept_token
from gated_plugin.hub.local.app import ROUTES

READER = "hf_reader"


@pytest.mark.parametrize("name", ["token", "read-token"])
def test_a_token_is_kept_where_only_its_owner_reads_it(hub, tmp_path, name):
    kept = tmp_path / "hub" / name
    token = kept.read_text()
    assert (token == hub.token) == (name == "token")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    kept.chmod(0o644)
    LocalHub(tmp_path / "hub").stop()
    assert kept.read_text() == token
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_token_is_written_where_nobody_else_can_read_already(tmp_path, monkeypatch):
    modes: list[int] = []

    def token_hex(size: int) -> str:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir())
        return "ab" * size

    monkeypatch.setattr("gated_plugin.hub.local.access.secrets.token_hex", token_hex)
    assert kept_token(tmp_path / "token") == "hf_" + "ab" * 17
    assert modes == [0o600]


def test_the_kept_read_token_sees_private_repositories_and_writes_nothing(hub, api, tmp_path):
    api.create_repo(REPO, private=True)
    oid = publish(api)
    token = (tmp_path / "hub" / "read-token").read_text()
    reader = HfApi(endpoint=hub.url, token=token)
    assert (reader.whoami()["name"], reader.model_info(REPO).sha) == ("local", oid)
    assert download(reader, tmp_path / "cache") == WEIGHTS
    refused(403, put, reader, "a.txt", b"a")
    refused(403, reader.delete_repo, REPO)
    assert api.model_info(REPO).sha == oid


WRITES = [
    ("POST", "api/repos/create"),
    ("DELETE", "api/repos/delete"),
    ("POST", f"api/models/{REPO}/tag/main"),
    ("DELETE", f"api/models/{REPO}/tag/v1"),
    ("POST", f"api/models/{REPO}/branch/dev"),
    ("DELETE", f"api/models/{REPO}/branch/dev"),
    ("POST", f"api/models/{REPO}/preupload/main"),
    ("POST", f"api/models/{REPO}/commit/main"),
    ("POST", f"{REPO}.git/info/lfs/objects/batch"),
    ("POST", f"api/lfs/{'0' * 64}/verify"),
]


def test_what_changes_something_takes_a_write_token(hub, repo, tmp_path):
    reader = f"Bearer {(tmp_path / 'hub' / 'read-token').read_text()}"
    writer = f"Bearer {hub.token}"
    for method, path in WRITES:
        assert (path, raw(hub, method, path, b"{}")) == (path, 401)
        assert (path, raw(hub, method, path, b"{}", Authorization=reader)) == (path, 403)
        assert raw(hub, method, path, b"{}", Authorization=writer) not in (401, 403)


def test_every_route_that_changes_something_is_in_the_test_above():
    assert len([role for *_, role, _ in ROUTES if role == "write"]) == len(WRITES)


@pytest.mark.parametrize("path", [f"api/lfs/{'0' * 64}", f"api/lfs/{'0' * 64}/parts/1"])
def test_an_upload_takes_a_signature_whatever_token_comes_with_it(hub, path):
    query = "size=1&signature=" + "0" * 64
    assert raw(hub, "PUT", f"{path}?{query}", b"x", Authorization=f"Bearer {hub.token}") == 403


def test_a_signature_is_good_for_its_own_purpose_alone(hub, api, repo):
    url = upload_url(hub, WEIGHTS)
    assert raw(hub, "PUT", url.replace("?", "/parts/whole?"), b"x") == 403
    assert raw(hub, "POST", url.replace("?", "/complete?"), b"{}") == 403
    assert raw(hub, "PUT", url.replace("/api/lfs/", "/api/lfs/0"), WEIGHTS) == 403


def test_urls_in_answers_begin_with_the_host_by_which_the_client_came(hub, api, repo):
    """As a proxy or another name of this machine has it."""

    def asked(method: str, path: str, body: dict | None = None) -> tuple[dict, Message]:
        headers = {"Host": "hub.test:8080", "Authorization": f"Bearer {hub.token}"}
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{hub.url}/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response), response.headers

    here = "http://hub.test:8080"
    created, _ = asked("POST", "api/repos/create", {"name": "other"})
    assert created["url"] == f"{here}/local/other"
    wanted = {"oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)}
    body = {"operation": "upload", "objects": [wanted], "transfers": ["basic", "multipart"]}
    batch = f"{REPO}.git/info/lfs/objects/batch"
    whole = asked("POST", batch, body)[0]["objects"][0]["actions"]
    hub.multipart_above, hub.part_size = 100_000, 200_000
    parts = asked("POST", batch, body)[0]["objects"][0]["actions"]["upload"]
    urls = [whole["upload"]["href"], whole["verify"]["href"], parts["href"]]
    urls += [parts["header"]["1"], parts["header"]["2"]]
    urls.append(asked("GET", "api/models?limit=1")[1]["Link"][1:])
    assert [url for url in urls if not url.startswith(f"{here}/api/")] == []


def test_a_hub_that_listens_everywhere_is_reached_on_this_machine(tmp_path):
    with LocalHub(tmp_path / "hub", host="0.0.0.0") as hub:
        assert hub.url.startswith("http://127.0.0.1:")
        assert HfApi(endpoint=hub.url, token=hub.token).whoami()["name"] == "local"


def test_a_hub_listens_on_loopback_alone(hub):
    port = int(hub.url.split(":")[-1])
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=10):
        pass


def test_no_log_line_holds_a_token_or_a_signature(hub, repo, caplog, monkeypatch):
    caplog.set_level("DEBUG")
    monkeypatch.setattr(hub.storage.blobs, "keep_large", lambda *_: {}["a mistake"])
    token = {"Authorization": f"Bearer {hub.token}"}
    assert raw(hub, "PUT", upload_url(hub, WEIGHTS), WEIGHTS, **token) == 500
    assert "PUT /api/lfs/" in caplog.text and "KeyError: 'a mistake'" in caplog.text
    assert hub.token not in caplog.text and "signature=" not in caplog.text


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
