"""A local hub in a process of its own: what a kill leaves, and how much memory it takes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import random
import sys
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hub_calls import (
    REPO,
    WEIGHTS,
    commit_body,
    commit_head,
    connected,
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
from hub_process import HubProcess
from huggingface_hub import HfApi

from gated_plugin.hub.local.storage import Storage

BLOCK = random.Random(1).randbytes(1 << 20)


def commit_one_after_the_other(hub: HubProcess, number: int, answered: list[str]) -> None:
    """Uploads and commits until the hub is gone; `answered` gets what it said it had stored."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        while True:
            number += 1
            content = b"%d" % number * 200_000
            raw(hub, "PUT", upload_url(hub, content), content)
            lines = large("large", content), small(f"{number}.txt", content[:20])
            assert raw_commit(hub, *lines) == 200
            answered.append(f"{number}.txt")


def assert_whole(root: Path, expected: list[str]) -> None:
    """Every commit's files are there and right, and `expected` are among the last one's."""
    storage = Storage(root)
    try:
        for commit in storage.history(REPO, "main"):
            for file in commit.files.values():
                if file.sha256:
                    content = storage.blobs.large(file.sha256).read_bytes()
                    assert hashlib.sha256(content).hexdigest() == file.sha256
                else:
                    assert git_sha1(storage.blobs.small(file.oid).read_bytes()) == file.oid
        assert set(expected) <= set(storage.commit_at(REPO, "main").files)
    finally:
        storage.close()


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_head(tmp_path):
    moments, answered = random.Random(5), []
    for round_ in range(4):
        with HubProcess(tmp_path) as hub:
            HfApi(endpoint=hub.url, token=hub.token).create_repo(REPO, exist_ok=True)
            wanted = len(answered) + 1
            arguments = hub, 1000 * round_, answered
            writer = threading.Thread(target=commit_one_after_the_other, args=arguments)
            writer.start()
            wait_until(lambda wanted=wanted: len(answered) >= wanted)
            writer.join(moments.uniform(0, 0.1))
            hub.kill()
            writer.join()
        assert_whole(tmp_path, answered)


def test_a_kill_within_an_upload_or_a_commit_leaves_nothing_of_it(tmp_path):
    with HubProcess(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo(REPO)
        head = publish(api)
        content, body = WEIGHTS[1:], commit_body(small("a", b"a"), small("b", b"b"))
        target = upload_url(hub, content).removeprefix(hub.url)
        with connected(hub) as upload, connected(hub) as commit:
            start = f"PUT {target} HTTP/1.1\r\nHost: hub\r\nContent-Length: {len(content)}\r\n\r\n"
            upload.sendall(start.encode() + content[:200_000])
            commit.sendall(commit_head(hub, len(body)) + body[:-10])
            wait_until(lambda: any((tmp_path / "blobs/partial").iterdir()))
            wait_until(lambda: (tmp_path / "blobs/git" / git_sha1(b"a")[:2]).exists())
            hub.kill()
    with HubProcess(tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        assert api.model_info(REPO).sha == head
        assert publish(api, content) != head
    assert_whole(tmp_path, ["README.md"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_a_large_file_passes_through_little_memory(tmp_path):
    blocks = 200
    digest = hashlib.sha256()
    for _ in range(blocks):
        digest.update(BLOCK)
    with HubProcess(tmp_path) as hub:
        HfApi(endpoint=hub.url, token=hub.token).create_repo(REPO)
        url = urlsplit(url_for(hub, digest.hexdigest(), blocks * len(BLOCK)))
        connection = http.client.HTTPConnection(url.netloc, timeout=60)
        length = {"Content-Length": str(blocks * len(BLOCK))}
        connection.request("PUT", f"{url.path}?{url.query}", (BLOCK for _ in range(blocks)), length)
        assert connection.getresponse().status == 200
        line = {"key": "lfsFile", "value": {"path": "large", "oid": digest.hexdigest()}}
        assert raw_commit(hub, line) == 200
        with urllib.request.urlopen(f"{hub.url}/{REPO}/resolve/main/large", timeout=60) as answer:
            assert all(block == BLOCK for block in iter(lambda: answer.read(len(BLOCK)), b""))
        assert hub.peak_memory() < 80_000_000
