"""Requests that make no sense: each is refused with a sentence, and none is our mistake."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from hub_calls import REPO, commit_body, raw, raw_commit, small
from huggingface_hub import HfApi

from gated_plugin.hub.local import LocalHub, messages

MODEL = f"api/models/{REPO}"
BATCH = f"{REPO}.git/info/lfs/objects/batch"
HALF_A_LETTER = b'"\\ud800"'


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """One for all: nothing here changes it, but for commits to a repository made anew."""
    with LocalHub(tmp_path_factory.mktemp("malformed") / "hub") as hub:
        yield hub


@pytest.fixture
def repo(api: HfApi) -> Iterator[str]:
    api.create_repo(REPO)
    yield REPO
    api.delete_repo(REPO)


def answer(hub: LocalHub, method: str, path: str, body: bytes = b"") -> tuple[int, dict]:
    """Status and JSON of a request with the write token."""
    headers = {"Authorization": f"Bearer {hub.token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{hub.url}/{path}", body or None, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


JSON_ROUTES = [
    ("POST", "api/validate-yaml"),
    ("POST", "api/repos/create"),
    ("DELETE", "api/repos/delete"),
    ("POST", f"{MODEL}/paths-info/main"),
    ("POST", f"{MODEL}/tag/main"),
    ("POST", f"{MODEL}/preupload/main"),
    ("POST", f"{MODEL}/commit/main"),
    ("POST", BATCH),
    ("POST", f"api/lfs/{'0' * 64}/verify"),
]
NO_OBJECTS = {
    "cut": b'{"a"',
    "list": b"[]",
    "number": b"1",
    "empty": b"{}",
    "no text": b"\xff\xfe\x00",
    "too deep": b"[" * 100_000,
    "too many digits": b'{"size": ' + b"9" * 5000 + b"}",
    "not a number": b"NaN",
}


@pytest.mark.parametrize("body", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_a_body_that_is_not_the_object_expected_is_refused(hub, repo, body):
    for method, path in JSON_ROUTES:
        status, found = answer(hub, method, path, body)
        assert (status, path, bool(found["error"])) == (400, path, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("api/repos/create", b'{"name": 1}'),
        ("api/repos/create", b'{"name": "a", "organization": ["b"]}'),
        ("api/repos/create", b'{"name": "a", "type": {}}'),
        ("api/repos/create", b'{"name": %s}' % HALF_A_LETTER),
        (f"{MODEL}/tag/main", b'{"tag": null}'),
        (f"{MODEL}/tag/main", b'{"tag": "a\\u0000b"}'),
        (f"{MODEL}/tag/main", b'{"tag": %s}' % HALF_A_LETTER),
        (f"{MODEL}/preupload/main", b'{"files": {"path": "a"}}'),
        (f"{MODEL}/preupload/main", b'{"files": ["a"]}'),
        (f"{MODEL}/preupload/main", b'{"files": [{"path": "a", "size": "1"}]}'),
        (f"{MODEL}/preupload/main", b'{"files": [{"path": "a\\nb\\u0007\\u00e4", "size": 1}]}'),
        (f"{MODEL}/paths-info/main", b'{"paths": 1}'),
        (BATCH, b'{"operation": "upload"}'),
        (BATCH, b'{"operation": "upload", "objects": [1]}'),
        (BATCH, b'{"operation": "upload", "objects": [], "transfers": 1}'),
        (BATCH, b'{"operation": "upload", "objects": [{"oid": "../token", "size": 1}]}'),
        (BATCH, b'{"operation": "upload", "objects": [{"oid": "%s", "size": -1}]}' % (b"0" * 64)),
        (BATCH, b'{"operation": "upload", "objects": [{"oid": "%s", "size": 1e9}]}' % (b"0" * 64)),
        (BATCH, b'{"operation": "download", "objects": []}'),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(hub, repo, path, body):
    status, found = answer(hub, "POST", path, body)
    assert (status, bool(found["error"])) == (400, True)


def test_an_upload_in_more_parts_than_there_can_be_is_refused(hub, repo):
    body = {"operation": "upload", "transfers": ["multipart"]}
    body["objects"] = [{"oid": "0" * 64, "size": 10**18}]
    assert answer(hub, "POST", BATCH, json.dumps(body).encode())[0] == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("api/models?limit=0", 400),
        ("api/models?limit=-1", 400),
        ("api/models?limit=%D9%A3", 400),
        ("api/models?limit=" + "9" * 5000, 400),
        (f"{MODEL}/revision/%00%ff", 404),
        (f"{MODEL}/tree/main/%00%ff", 404),
        (f"{REPO}/resolve/main/%2e%2e/%2e%2e/token", 404),
        (f"{REPO}/resolve/main/", 404),
        ("api/models/local/%2e%2e", 404),
        ("nothing/here", 404),
        ("", 404),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(hub, repo, path, status):
    found, body = answer(hub, "GET", path)
    assert (found, bool(body["error"])) == (status, True)


def test_a_method_that_no_route_has_is_refused(hub, repo):
    status, found = answer(hub, "DELETE", MODEL)
    assert (status, found["error"]) == (405, f"The local hub does not serve DELETE /{MODEL}.")


def test_text_that_is_not_unicode_is_refused_in_a_commit(hub, repo):
    for header in ({"summary": "\ud800"}, {"description": "\ud800"}):
        assert raw_commit(hub, small("a", b"a"), header=header) == 400
    assert raw_commit(hub, {"key": "file", "value": {"path": "\ud800", "content": ""}}) == 400
    assert raw_commit(hub, {"key": "file", "value": {"path": "a", "content": "\ud800"}}) == 400


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(LAUGHS, id="a billion values in nine lines"),
        "a: &a [*a]",
        "[" * 1000,
        "a: 2020-99-99",
        "a: " + "9" * 5000,
        "a: 0x" + "f" * 5000,
        "? [a, b]\n: 1",
        "tags: [\x00]",
    ],
)
def test_a_card_that_no_reader_could_hold_is_refused(hub, api, repo, card):
    text = f"---\n{card}\n---\n"
    status, found = answer(hub, "POST", "api/validate-yaml", json.dumps({"content": text}).encode())
    assert (status, len(found["errors"])) == (400, 1)
    assert raw_commit(hub, small("README.md", text.encode())) == 400
    assert api.list_repo_files(REPO) == [".gitattributes"]


@pytest.mark.parametrize(
    "card",
    ["2020-01-01: x", "a: 2020-01-01", "null: 1", "a: .nan", "!!binary eA==: 1", "a: !!set {b}"],
)
def test_a_card_with_what_json_does_not_have_is_shown(hub, api, repo, card):
    assert raw_commit(hub, small("README.md", f"---\n{card}\nlicense: mit\n---\n".encode())) == 200
    assert api.model_info(REPO).card_data["license"] == "mit"


def test_json_above_the_limit_is_refused_and_not_held(hub, repo, monkeypatch):
    monkeypatch.setattr(messages, "LARGEST", 100_000)
    huge = b'{"content": "' + b"x" * 1_000_000 + b'"}'
    assert answer(hub, "POST", "api/validate-yaml", huge)[0] == 413
    assert answer(hub, "POST", f"{MODEL}/commit/main", commit_body() + huge)[0] == 413


def test_a_commit_may_be_larger_than_any_of_its_lines(hub, api, repo, monkeypatch):
    monkeypatch.setattr(messages, "LARGEST", 100_000)
    files = {f"{number}.txt": b"%d" % number * 50_000 for number in range(5)}
    assert raw_commit(hub, *(small(*item) for item in files.items())) == 200
    assert set(files) < set(api.list_repo_files(REPO))


def test_a_range_that_makes_no_sense_is_refused(hub, repo):
    for span in ("lines=0-1", "bytes=", "bytes=-", "bytes=a-b", "bytes=--1", "bytes=0-1,5-6"):
        assert raw(hub, "GET", f"{REPO}/resolve/main/.gitattributes", Range=span) == 416
    for span in ("bytes=5-3", f"bytes={'9' * 5000}-", "bytes=-0"):
        status = raw(hub, "GET", f"{REPO}/resolve/main/.gitattributes", Range=span)
        assert status in (400, 416)


def test_base64_that_is_none_is_refused(hub, repo):
    for content in ("a", "a===", "ä", base64.b64encode(b"a").decode() + "!"):
        assert raw_commit(hub, {"key": "file", "value": {"path": "a", "content": content}}) == 400
