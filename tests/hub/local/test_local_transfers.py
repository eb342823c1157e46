"""Uploads and downloads of the local hub: whole, in parts, cut, corrupted, and out of place."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import urllib.request

import huggingface_hub
import pytest
from hub_calls import (
    PATH,
    REPO,
    WEIGHTS,
    download,
    publish,
    raw,
    raw_commit,
    refused,
    upload_url,
)


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../b", "a\\b", "a//b", "./a", "a/", ".git/a"]
)
def test_a_path_that_could_leave_its_folder_is_refused(hub, api, repo, path):
    large = {"path": path, "oid": hashlib.sha256(WEIGHTS).hexdigest()}
    assert raw_commit(hub, {"key": "file", "value": {"path": path, "content": ""}}) == 400
    assert raw_commit(hub, {"key": "lfsFile", "value": large}) == 400
    assert raw_commit(hub, {"key": "deletedFile", "value": {"path": path}}) == 400
    assert api.list_repo_files(REPO) == [".gitattributes"]


@pytest.mark.parametrize(
    "line",
    [
        {"key": "file", "value": {"path": "a", "content": "no base64"}},
        {"key": "file", "value": {"path": ".gitattributes/a", "content": ""}},
        {"key": "lfsFile", "value": {"path": "a", "oid": "0" * 64}},
        {"key": "chmod", "value": {"path": "a"}},
        {"key": "file"},
    ],
)
def test_a_commit_line_that_makes_no_sense_changes_nothing(hub, api, repo, line):
    good = {"key": "file", "value": {"path": "good", "content": ""}}
    assert raw_commit(hub, good, line) == 400
    assert raw_commit(hub, good, header={"parentCommit": ""}) == 400
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert raw_commit(hub, good) == 200


def test_an_upload_that_is_not_what_was_promised_is_refused(hub, api, repo, tmp_path):
    url = upload_url(hub, WEIGHTS)
    for wrong in (WEIGHTS[:-1], WEIGHTS + b"x", WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])):
        assert raw(hub, "PUT", url, wrong) == 400
        assert upload_url(hub, WEIGHTS).split("?")[0] == url.split("?")[0]
    assert not list((tmp_path / "hub/blobs/partial").iterdir())
    assert raw(hub, "PUT", url.replace("size=300000", "size=300001"), WEIGHTS) == 403
    assert raw(hub, "PUT", url, WEIGHTS) == 200


def test_an_upload_in_http_chunks_is_accepted(hub, api, repo):
    address = ("127.0.0.1", int(hub.url.split(":")[-1]))
    target = upload_url(hub, WEIGHTS).removeprefix(hub.url)
    with socket.create_connection(address, timeout=10) as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for start in range(0, len(WEIGHTS), 70_000):
            part = WEIGHTS[start : start + 70_000]
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    asked = len(hub.requests)
    publish(api)
    assert "PUT" not in {seen.method for seen in hub.requests[asked:]}


@pytest.mark.parametrize(
    "length", ["Content-Length: -5", "Content-Length: x", "Transfer-Encoding: chunked"]
)
def test_a_body_without_a_length_that_makes_sense_ends_only_its_connection(hub, api, length):
    address = ("127.0.0.1", int(hub.url.split(":")[-1]))
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(f"POST /api/repos/create HTTP/1.1\r\n{length}\r\n\r\nzz\r\n".encode())
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    assert api.whoami()["name"] == "local"


def test_a_large_upload_goes_in_parts(hub, api, repo, tmp_path):
    hub.multipart_above, hub.part_size = 100_000, 80_000
    publish(api)
    assert len(hub.seen("PUT", "/parts/")) == 4
    assert download(api, tmp_path / "cache") == WEIGHTS
    assert not list((tmp_path / "hub/blobs/parts").iterdir())


def test_a_part_that_was_corrupted_on_its_way_is_refused_at_the_end(
    hub, api, repo, tmp_path, monkeypatch
):
    hub.multipart_above, hub.part_size = 100_000, 80_000
    add_part = hub.storage.blobs.add_part

    def corrupted(sha256, number, limit, chunks):
        return add_part(sha256, number, limit, [b"x" * limit] if number == 2 else chunks)

    monkeypatch.setattr(hub.storage.blobs, "add_part", corrupted)
    with pytest.raises(RuntimeError):
        publish(api)
    assert api.list_repo_files(REPO) == [".gitattributes"]


@pytest.mark.parametrize(
    ("span", "status", "content"),
    [
        ("bytes=0-9", 206, WEIGHTS[:10]),
        ("bytes=299990-", 206, WEIGHTS[-10:]),
        ("bytes=-10", 206, WEIGHTS[-10:]),
        ("bytes=299990-400000", 206, WEIGHTS[-10:]),
        ("bytes=0-1,5-6", 200, WEIGHTS),
        ("lines=0-1", 200, WEIGHTS),
    ],
)
def test_a_range_is_served(hub, api, repo, span, status, content):
    publish(api)
    url = f"{hub.url}/{REPO}/resolve/main/{PATH}"
    request = urllib.request.Request(url, headers={"Range": span})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert (response.status, response.read()) == (status, content)
        assert response.headers["X-Linked-Size"] == "300000"
    assert raw(hub, "GET", url, Range="bytes=300000-") == 416


def test_a_cut_download_is_resumed_by_range(hub, api, repo, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    publish(api)
    hub.fail("GET", "/resolve/", drop_after_bytes=120_000)
    assert download(api, tmp_path) == WEIGHTS
    ranges = [seen.headers["Range"] for seen in hub.seen("GET", "/resolve/")]
    assert ranges == [None, "bytes=100000-"]


def test_a_cut_upload_is_retried_by_the_client_and_leaves_nothing(hub, api, repo, tmp_path):
    hub.fail("PUT", "/lfs/", drop_after_bytes=100_000, times=2)
    publish(api)
    assert [seen.status for seen in hub.seen("PUT", "/lfs/")] == [None, None, 200]
    assert download(api, tmp_path / "cache") == WEIGHTS
    assert not list((tmp_path / "hub/blobs/partial").iterdir())


def test_a_commit_whose_answer_is_lost_is_there(hub, api, repo):
    hub.fail("POST", "/commit/", after_handling=True)
    with pytest.raises(Exception, match=r"[Dd]isconnected"):
        publish(api)
    assert PATH in api.list_repo_files(REPO)
    assert hub.seen("POST", "/commit/")[0].status is None
    publish(api)
    assert len(api.list_repo_commits(REPO)) == 2


def test_an_injected_status_happens_as_often_as_told(hub, api, repo):
    hub.fail("GET", "/api/models/", status=503, times=2)
    for _ in range(2):
        refused(503, api.model_info, REPO)
    assert api.model_info(REPO).id == REPO
    assert [seen.status for seen in hub.seen("GET", "/api/models/")] == [503, 503, 200]
