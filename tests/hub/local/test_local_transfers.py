"""Uploads and downloads of the local hub: whole, in parts, cut, corrupted, and out of place."""

from __future__ import annotations

import contextlib
import hashlib
import urllib.request

import pytest
from hub_calls import (
    PATH,
    REPO,
    WEIGHTS,
    commit_body,
    commit_head,
    connected,
    download,
    git_sha1,
    large,
    publish,
    raw,
    raw_commit,
    small,
    upload_url,
    url_for,
    wait_until,
)

from gated_plugin.hub.local.blobs import Incoming


def test_a_path_that_could_leave_its_folder_is_refused(hub, api, repo):
    for path in ("", "/a", "../a", "a/../b", "a\\b", "a//b", "./a", "a/", ".git/a", "a/.git"):
        statuses = [
            raw_commit(hub, small(path, b"")),
            raw_commit(hub, large(path, WEIGHTS)),
            raw_commit(hub, {"key": "deletedFile", "value": {"path": path}}),
        ]
        assert (path, statuses) == (path, [400, 400, 400])
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_a_commit_line_that_makes_no_sense_changes_nothing(hub, api, repo):
    for line in (
        {"key": "file", "value": {"path": "a", "content": "no base64"}},
        {"key": "file", "value": {"path": ".gitattributes/a", "content": ""}},
        {"key": "lfsFile", "value": {"path": "a", "oid": "0" * 64}},
        {"key": "chmod", "value": {"path": "a"}},
        {"key": "file"},
    ):
        assert (line, raw_commit(hub, small("good", b""), line)) == (line, 400)
    for header in ({"parentCommit": ""}, {"parentCommit": 12345}, {"summary": None}):
        assert raw_commit(hub, small("good", b""), header=header) == 400
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert raw_commit(hub, small("good", b"")) == 200


def test_an_upload_that_is_not_what_was_promised_is_refused(hub, api, repo, tmp_path):
    url = upload_url(hub, WEIGHTS)
    for wrong in (WEIGHTS[:-1], WEIGHTS + b"x", WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])):
        assert raw(hub, "PUT", url, wrong) == 400
        assert upload_url(hub, WEIGHTS).split("?")[0] == url.split("?")[0]
    assert not list((tmp_path / "hub/blobs/partial").iterdir())
    assert raw(hub, "PUT", url.replace("size=300000", "size=300001"), WEIGHTS) == 403
    longer = url_for(hub, hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS) + 1)
    assert raw(hub, "PUT", longer, WEIGHTS) == 400
    assert raw(hub, "PUT", url, WEIGHTS) == 200


def test_an_upload_in_http_chunks_is_accepted(hub, api, repo, seen):
    target = upload_url(hub, WEIGHTS).removeprefix(hub.url)
    with connected(hub) as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: hub\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for start in range(0, len(WEIGHTS), 70_000):
            part = WEIGHTS[start : start + 70_000]
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    publish(api)
    assert seen("^PUT") == [f"PUT {target.split('?')[0]} 200"]


def test_a_large_upload_goes_in_parts(hub, api, repo, tmp_path, seen):
    hub.multipart_above, hub.part_size = 100_000, 80_000
    publish(api)
    assert len(seen("^PUT .*/parts/[1-4] 200")) == 4
    assert download(api, tmp_path / "cache") == WEIGHTS
    assert not list((tmp_path / "hub/blobs/parts").iterdir())


def test_a_part_that_was_corrupted_on_its_way_is_refused_at_the_end(
    hub, api, repo, tmp_path, monkeypatch
):
    hub.multipart_above, hub.part_size = 100_000, 80_000
    write = Incoming.write

    def corrupted(self: Incoming, chunk: bytes) -> None:
        write(self, b"x" * len(chunk))

    monkeypatch.setattr(Incoming, "write", corrupted)
    with pytest.raises(RuntimeError):
        publish(api)
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_a_range_is_served(hub, api, repo):
    publish(api)
    url = f"{hub.url}/{REPO}/resolve/main/{PATH}"
    for span, content in (
        ("0-9", WEIGHTS[:10]),
        ("299990-", WEIGHTS[-10:]),
        ("-10", WEIGHTS[-10:]),
        ("299990-400000", WEIGHTS[-10:]),
        ("5-299994", WEIGHTS[5:-5]),
    ):
        request = urllib.request.Request(url, headers={"Range": f"bytes={span}"})
        with urllib.request.urlopen(request, timeout=10) as response:
            assert (response.status, response.read()) == (206, content)
            assert response.headers["Content-Range"].endswith("/300000")
            assert response.headers["X-Linked-Size"] == "300000"
    assert raw(hub, "GET", url, Range="bytes=300000-") == 416


def test_a_head_request_says_what_a_get_would_without_the_content(hub, api, repo):
    oid = publish(api)
    url = f"{hub.url}/{REPO}/resolve/main/{PATH}"
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10) as answer:
        assert answer.headers["X-Repo-Commit"] == oid
        assert answer.headers["ETag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
        assert answer.headers["Content-Length"] == "300000"
        assert answer.read() == b""


def test_a_cut_upload_leaves_nothing(hub, api, repo, tmp_path):
    target = upload_url(hub, WEIGHTS).removeprefix(hub.url)
    partial = tmp_path / "hub/blobs/partial"
    with connected(hub) as connection:
        head = f"PUT {target} HTTP/1.1\r\nHost: hub\r\nContent-Length: {len(WEIGHTS)}\r\n\r\n"
        connection.sendall(head.encode() + WEIGHTS[:100_000])
        wait_until(lambda: any(partial.iterdir()))
    wait_until(lambda: not any(partial.iterdir()))
    publish(api)
    assert download(api, tmp_path / "cache") == WEIGHTS


def test_a_cut_commit_changes_nothing(hub, api, repo, seen):
    with connected(hub) as connection:
        body = commit_body(small("a.txt", b"a"), small("b.txt", b"b"))
        connection.sendall(commit_head(hub, len(body)) + body[:-10])
        wait_until(lambda: hub.storage.blobs.small(git_sha1(b"a")).exists())
    wait_until(lambda: seen("/commit/main 400"))
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_a_commit_whose_answer_nobody_hears_is_there(hub, api, repo):
    with connected(hub) as connection:
        body = commit_body(small("a.txt", b"a"))
        connection.sendall(commit_head(hub, len(body)) + body)
        wait_until(lambda: "a.txt" in api.list_repo_files(REPO))
    assert "a.txt" in api.list_repo_files(REPO)


def test_a_stalled_upload_holds_up_no_other_request(hub, api, repo):
    target = upload_url(hub, WEIGHTS).removeprefix(hub.url)
    head = f"PUT {target} HTTP/1.1\r\nHost: hub\r\nContent-Length: {len(WEIGHTS)}\r\n\r\n"
    with contextlib.ExitStack() as stalled:
        for _ in range(60):
            stalled.enter_context(connected(hub)).sendall(head.encode() + WEIGHTS[:10_000])
        publish(api)
        assert PATH in api.list_repo_files(REPO)
