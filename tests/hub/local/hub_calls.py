"""Calls to a local hub that several tests make: by the real client, and raw ones beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from gated_plugin.hub.local import LocalHub

REPO = "local/gated-demo"
CARD = (
    b"---\nlibrary_name: saelens\nbase_model: gpt2\ntags: [gated-sae]\nlicense: mit\n---\n# Demo\n"
)
WEIGHTS = random.Random(0).randbytes(300_000)
PATH = "layer_0/sae_weights.safetensors"


def sae(weights: bytes = WEIGHTS) -> list[CommitOperationAdd]:
    files = {"README.md": CARD, "layer_0/cfg.json": b"{}", PATH: weights, "empty.txt": b""}
    return [CommitOperationAdd(path, content) for path, content in files.items()]


def publish(api: HfApi, weights: bytes = WEIGHTS, parent: str | None = None) -> str:
    return api.create_commit(REPO, sae(weights), commit_message="SAE", parent_commit=parent).oid


def put(api: HfApi, path: str, content: bytes, **options: str) -> str:
    operation = CommitOperationAdd(path, content)
    return api.create_commit(REPO, [operation], commit_message=path, **options).oid


def download(api: HfApi, folder: Path, path: str = PATH, **options: str) -> bytes:
    return Path(api.hf_hub_download(REPO, path, cache_dir=folder, **options)).read_bytes()


def refused(status: int, call, *arguments, **options) -> HfHubHTTPError:
    with pytest.raises(HfHubHTTPError) as caught:
        call(*arguments, **options)
    assert caught.value.response.status_code == status
    return caught.value


def raw(hub: LocalHub, method: str, path: str, body: bytes = b"", **headers: str) -> int:
    """The status of a request that the client would not send."""
    url = path if path.startswith("http") else f"{hub.url}/{path}"
    request = urllib.request.Request(url, body or None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def raw_commit(hub: LocalHub, *lines: dict, header: dict | None = None) -> int:
    token = {"Authorization": f"Bearer {hub.token}"}
    path = f"api/models/{REPO}/commit/main"
    return raw(hub, "POST", path, commit_body(*lines, header=header), **token)


def small(path: str, content: bytes) -> dict:
    """The line of a commit that adds a small file."""
    return {"key": "file", "value": {"path": path, "content": base64.b64encode(content).decode()}}


def large(path: str, content: bytes) -> dict:
    """The line of a commit that adds a file in LFS."""
    return {"key": "lfsFile", "value": {"path": path, "oid": hashlib.sha256(content).hexdigest()}}


def commit_body(*lines: dict, header: dict | None = None) -> bytes:
    first = {"key": "header", "value": {"summary": "raw", **(header or {})}}
    return "".join(json.dumps(line) + "\n" for line in [first, *lines]).encode()


def commit_head(hub: LocalHub, length: int) -> bytes:
    """What comes before the body of a commit on a raw connection."""
    head = f"POST /api/models/{REPO}/commit/main HTTP/1.1\r\nHost: hub\r\n"
    return f"{head}Authorization: Bearer {hub.token}\r\nContent-Length: {length}\r\n\r\n".encode()


def connected(hub: LocalHub) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(hub.url.split(":")[-1])), timeout=10)


def wait_until(true: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        threading.Event().wait(0.005)


def upload_url(hub: LocalHub, content: bytes) -> str:
    return url_for(hub, hashlib.sha256(content).hexdigest(), len(content))


def url_for(hub: LocalHub, sha256: str, size: int) -> str:
    """Where to upload a content of `size` bytes."""
    request = urllib.request.Request(
        f"{hub.url}/{REPO}.git/info/lfs/objects/batch",
        json.dumps({"operation": "upload", "objects": [{"oid": sha256, "size": size}]}).encode(),
        {"Authorization": f"Bearer {hub.token}"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)["objects"][0]["actions"]["upload"]["href"]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
