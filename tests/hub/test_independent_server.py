"""Push and pull against a hub that is not ours.

GATED_HUB_INDEPENDENT_SERVER is the command that starts one: it takes a folder for what it keeps,
and the option --cdn to give out large files at an address of another origin; its first line is
its address; and it knows the token `hf_local_write` of alice.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from surroundings import Surroundings, gated_hub, trust

SERVER = os.environ.get("GATED_HUB_INDEPENDENT_SERVER", "")
TOKEN = "hf_local_write"
REPO = "alice/books"

pytestmark = pytest.mark.skipif(
    not SERVER, reason="GATED_HUB_INDEPENDENT_SERVER names no command that starts another hub"
)


class Sent(NamedTuple):
    """A request that left this process."""

    method: str
    url: str
    has_token: bool


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """Every request, also those to which the client was redirected."""
    requests: list[Sent] = []
    handle = httpx2.HTTPTransport.handle_request

    def noted(transport: httpx2.HTTPTransport, request: httpx2.Request) -> httpx2.Response:
        requests.append(Sent(request.method, str(request.url), "Authorization" in request.headers))
        return handle(transport, request)

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", noted)
    return requests


@pytest.fixture(params=["one origin", "two origins"])
def url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Address of a running server, that the environment names."""
    options = ["--cdn"] if request.param == "two origins" else []
    command = [*shlex.split(SERVER), str(tmp_path / "hub"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        Surroundings(url, tmp_path, TOKEN).enter(monkeypatch)
        trust(monkeypatch)
        yield url
        server.kill()


def push(run: Any) -> dict[str, Any]:
    return _answer(gated_hub("push", run.path, "--repo", REPO, "--json"))


def pull(out: Path) -> dict[str, Any]:
    return _answer(gated_hub("pull", REPO, "--out", out, "--json"))


def _answer(ended: Any) -> dict[str, Any]:
    assert ended.code == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_what_was_pushed_is_pulled(run, url, sent, tmp_path):
    published = push(run)
    api = HfApi(url, token=TOKEN)
    assert published["revision"] == api.model_info(REPO).sha
    assert len(api.list_repo_commits(REPO)) == 2

    pulled = pull(tmp_path / "pulled")
    assert pulled["revision"] == published["revision"]
    assert files(tmp_path / "pulled") == files(run.publication)


def test_a_second_push_sends_nothing_and_a_changed_one_what_changed(run, url, sent):
    first = push(run)
    sent.clear()
    assert push(run)["revision"] == first["revision"]
    assert not [each for each in sent if each.method in ("PUT", "DELETE") or "/commit/" in each.url]

    sparsity = run.sae / "sparsity.safetensors"
    save_file({"sparsity": load_file(sparsity)["sparsity"] - 1}, sparsity)
    sent.clear()
    assert push(run)["revision"] != first["revision"]
    assert len([each for each in sent if each.method == "PUT"]) == 1


def test_the_token_goes_to_the_hub_alone(run, url, sent, tmp_path, request):
    push(run)
    pull(tmp_path / "pulled")
    elsewhere = [each for each in sent if not each.url.startswith(f"{url}/")]
    assert bool(elsewhere) == ("two origins" in request.node.name)
    assert not [each for each in elsewhere if each.has_token]
    assert not [each for each in sent if each.method == "PUT" and each.has_token]
