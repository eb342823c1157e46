"""What a repository holds, as the Hub tells it."""

from __future__ import annotations

import json

import pytest
from published import REPO, publish, repository

from gated_plugin.errors import GatedError
from gated_plugin.hub import client
from gated_plugin.hub.index import entries_of
from gated_plugin.hub.repository import Repository


def test_a_revision_that_does_not_exist_names_the_option(hub):
    publish(hub, repository())
    with pytest.raises(GatedError, match=r"no branch, tag or commit 'v9'.*--revision"):
        Repository(client.connect(), REPO).resolve("v9")


def test_a_commit_that_was_asked_for_is_the_one_that_is_given(hub):
    sha = publish(hub, repository())
    hub.fail("GET", "/revision/", status=200, body=b'{"id": "x", "sha": "%s"}' % (b"0" * 40))
    with pytest.raises(GatedError, match="does not say which commit"):
        Repository(client.connect(), REPO).resolve(sha)


def test_files_have_the_hash_of_their_content_and_a_text_is_read_whole(hub):
    content = repository()
    sha = publish(hub, content)
    repo = Repository(client.connect(), REPO)
    found = repo.files(sha)
    assert {path: found[path].size for path in content} == {p: len(c) for p, c in content.items()}
    for path, file in found.items():
        if path in content:
            digest = file.digest()
            digest.update(content[path])
            assert digest.hexdigest() == file.hash
    assert repo.card(sha) == content["README.md"].decode()
    assert repo.text(sha, "nowhere.md") is None
    assert [entry["id"] for entry in repo.index(sha)["saes"]]


def test_no_index_is_told_from_one_of_something_else(hub):
    sha = publish(hub, {"README.md": b"#"})
    repo = Repository(client.connect(), REPO)
    assert repo.index(sha) is None
    for foreign in (b'{"model_type": "gpt2"}', b"{", b"[" * 100_000):
        sha = publish(hub, {"config.json": foreign})
        with pytest.raises(GatedError, match=r"config\.json"):
            entries_of(repo.index(sha), REPO)


def test_a_text_far_too_large_is_not_fetched(hub, monkeypatch):
    monkeypatch.setattr("gated_plugin.hub.repository.LARGEST_TEXT", 10)
    sha = publish(hub, repository())
    with pytest.raises(GatedError, match=r"README\.md of alice/saes has .* bytes"):
        Repository(client.connect(), REPO).card(sha)
    assert not hub.seen("GET", "/resolve/")


@pytest.mark.parametrize(
    "entry",
    [
        {"oid": "0" * 39, "size": 1},
        {"oid": "0" * 40, "size": -1},
        {"oid": "0" * 40, "size": "1"},
        {"oid": "0" * 40, "size": 1, "lfs": {"oid": "../x", "size": 1, "pointerSize": 1}},
    ],
)
def test_a_tree_without_hash_or_size_is_refused(hub, entry):
    sha = publish(hub, repository())
    body = json.dumps([{"type": "file", "path": "x.json", **entry}]).encode()
    hub.fail("GET", "/tree/", status=200, body=body)
    with pytest.raises(GatedError, match=r"does not say what 'x\.json' .* is"):
        Repository(client.connect(), REPO).files(sha)


def test_a_large_tree_comes_in_pages(hub):
    sha = publish(hub, repository())
    first = [{"type": "file", "path": "first.json", "oid": "0" * 40, "size": 1}]
    rest = f'<{hub.url}/api/models/{REPO}/tree/{sha}?recursive=true>; rel="next"'
    body = json.dumps(first).encode()
    hub.fail("GET", "/tree/", status=200, body=body, headers={"Link": rest})
    found = Repository(client.connect(), REPO).files(sha)
    assert found.keys() >= {"first.json", *repository()}
