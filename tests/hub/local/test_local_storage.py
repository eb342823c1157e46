"""What the local hub keeps through races, restarts, kills and full disks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from hub_calls import (
    PATH,
    REPO,
    WEIGHTS,
    connected,
    download,
    git_sha1,
    publish,
    put,
    refused,
    upload_url,
)
from huggingface_hub import HfApi

from gated_plugin.errors import GatedError
from gated_plugin.hub.local import LocalHub, Refusal
from gated_plugin.hub.local.blobs import Blobs
from gated_plugin.hub.local.storage import Files, Storage, new_commit


def test_two_hubs_on_one_folder_commit_one_after_the_other(tmp_path):
    first, second = Storage(tmp_path), Storage(tmp_path)
    first.create(REPO, False, new_commit(None, ("start", ""), "local", {}))
    head = first.resolve(REPO, "main")
    outcomes: list[str | int] = []

    def commit(storage: Storage, edit: Callable[[Files], Files]) -> None:
        try:
            outcomes.append(storage.commit(REPO, "main", ("race", ""), "local", edit, head))
        except Refusal as refusal:
            outcomes.append(refusal.status_code)

    late = threading.Thread(target=commit, args=(second, dict))

    def edit(files: Files) -> Files:
        late.start()
        late.join(0.1)
        return files

    commit(first, edit)
    late.join()
    assert outcomes == [first.resolve(REPO, "main"), 412]
    first.close()
    second.close()


def test_a_restart_on_the_same_port_keeps_everything(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        api, port, token = (
            HfApi(endpoint=hub.url, token=hub.token),
            hub.url.split(":")[-1],
            hub.token,
        )
        api.create_repo(REPO, private=True)
        oid = publish(api)
        api.create_tag(REPO, tag="v1")
    with LocalHub(tmp_path / "hub", port=int(port)) as hub:
        assert hub.token == token
        assert api.model_info(REPO, revision="v1").sha == oid
        assert api.model_info(REPO).private
        assert download(api, tmp_path / "cache") == WEIGHTS


WRITER = """
import hashlib, os, sys
from pathlib import Path
from gated_plugin.hub.local.storage import File, Storage, new_commit
storage = Storage(Path(sys.argv[1]))
storage.create("local/r", False, new_commit(None, ("start", ""), "local", {}))
while True:
    content = os.urandom(100_000)
    sha256 = hashlib.sha256(content).hexdigest()
    with storage.blobs.incoming(len(content)) as incoming:
        incoming.write(content)
        storage.blobs.keep_large(incoming, sha256)
    large, small = File.in_lfs(sha256, len(content)), File(storage.blobs.add_small(content[:9]), 9)
    edit = lambda files: {**files, sha256: large, sha256[:9]: small}
    print(storage.commit("local/r", "main", (sha256, ""), "local", edit), flush=True)
"""


def test_a_kill_spoils_nothing_that_was_committed(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        done = [writer.stdout.readline().strip() for _ in range(20)]
        writer.kill()
        done += writer.stdout.read().split()
    storage = Storage(tmp_path)
    history = [commit.oid for commit in storage.history("local/r", "main")]
    assert history[::-1][1 : len(done) + 1] == done
    for file in storage.commit_at("local/r", "main").files.values():
        if file.sha256:
            content = storage.blobs.large(file.sha256).read_bytes()
            assert hashlib.sha256(content).hexdigest() == file.sha256
        else:
            assert git_sha1(storage.blobs.small(file.oid).read_bytes()) == file.oid
    storage.close()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError(28, "No space left on device"), 507),
        (sqlite3.OperationalError("database or disk is full"), 507),
        (KeyError("bug"), 500),
    ],
)
def test_a_failure_of_the_hub_itself_is_answered_and_commits_nothing(
    hub, api, repo, monkeypatch, error, status
):
    def fail(content: bytes) -> str:
        raise error

    monkeypatch.setattr(hub.storage.blobs, "add_small", fail)
    refused(status, put, api, "a.txt", b"a")
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_a_hub_stops_at_once_although_connections_are_open(tmp_path):
    with LocalHub(tmp_path / "hub") as hub, connected(hub) as idle:
        HfApi(endpoint=hub.url, token=hub.token).whoami()
        started = time.monotonic()
        hub.stop()
        assert time.monotonic() - started < 1
        assert idle.recv(10) == b""


def test_a_hub_stops_although_an_upload_and_a_download_stall(hub, api, repo):
    content = bytes(20_000_000)
    publish(api, content)
    target = upload_url(hub, WEIGHTS).removeprefix(hub.url)
    with connected(hub) as upload, connected(hub) as download:
        head = f"PUT {target} HTTP/1.1\r\nHost: hub\r\nContent-Length: {len(WEIGHTS)}\r\n\r\n"
        upload.sendall(head.encode() + WEIGHTS[:10_000])
        download.sendall(f"GET /{REPO}/resolve/main/{PATH} HTTP/1.1\r\nHost: hub\r\n\r\n".encode())
        assert download.recv(100).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        hub.stop()
        assert time.monotonic() - started < 3
        assert read_to_end(download) < len(content)
        read_to_end(upload)


def read_to_end(connection: socket.socket) -> int:
    """How many bytes still come before the other side is gone."""
    size = 0
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(1 << 20):
            size += len(data)
    return size


def test_a_hub_that_has_stopped_serves_no_open_connection(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.whoami()
    with pytest.raises(Exception, match=r"refused|disconnected"):
        api.whoami()


def test_a_taken_port_is_an_error_that_says_what_to_do(hub, tmp_path):
    with pytest.raises(GatedError, match="--port"):
        LocalHub(tmp_path / "other", port=int(hub.url.split(":")[-1])).start()


def test_an_upload_is_refused_at_its_limit(tmp_path):
    blobs = Blobs(tmp_path)
    with pytest.raises(Refusal, match="longer"), blobs.incoming(20) as content:
        for _ in range(3):
            content.write(b"x" * 10)
    assert content.missing < 0
    assert not list(tmp_path.glob("partial/*"))


def test_parts_are_joined_only_when_all_are_there(tmp_path):
    blobs, sha256 = Blobs(tmp_path), hashlib.sha256(b"abcd").hexdigest()
    add_part(blobs, sha256, 2, b"cd")
    with pytest.raises(Refusal, match="part"):
        blobs.join_parts(sha256, 4, [1, 2])
    add_part(blobs, sha256, 1, b"ab")
    blobs.join_parts(sha256, 4, [2, 1])
    assert blobs.large(sha256).read_bytes() == b"abcd"


def add_part(blobs: Blobs, sha256: str, number: int, chunk: bytes) -> None:
    with blobs.incoming(len(chunk)) as content:
        content.write(chunk)
        content.move(blobs.part(sha256, number))


def test_what_a_kill_left_behind_is_removed_a_day_later(tmp_path):
    blobs = Blobs(tmp_path)
    add_part(blobs, "0" * 64, 1, b"ab")
    for name in ("old", "new"):
        (tmp_path / "partial" / name).write_bytes(b"x")
    for path in (tmp_path / "partial" / "old", tmp_path / "parts" / ("0" * 64)):
        os.utime(path, (0, 0))
    Blobs(tmp_path)
    assert [path.name for path in tmp_path.glob("part*/*")] == ["new"]
