"""Which dictionaries a hub has, and what is said of each SAE."""

from __future__ import annotations

import json

import pytest
from published import OTHER, REPO, SAE, publish, repository, sae_files

from gated_plugin.errors import GatedError
from gated_plugin.hub import catalogue


def card(text: str) -> dict[str, bytes]:
    return {"README.md": f"---\n{text}\n---\n".encode()}


def names(**how: str | None) -> list[str]:
    return [found.repo_id for found in catalogue.repositories(**how)]


def test_gated_dictionaries_are_found_among_other_models(hub):
    sha = publish(hub, repository())
    publish(hub, card("tags: [text-generation]"), "alice/language-model")
    (found,) = catalogue.repositories()
    assert found[:3] == (REPO, False, sha)
    assert found.base_model == "gelu-1l" and found.saes == 2
    assert found.last_modified is not None and found.last_modified.startswith("20")


def test_they_are_chosen_by_owner_and_by_name(hub):
    for repo_id in ("alice/books", "alice/code"):
        publish(hub, card("tags: [gated-sae]"), repo_id)
    assert names() == ["alice/books", "alice/code"]
    assert names(org="alice", filter="cod") == ["alice/code"]
    assert names(org="bob") == []


def test_private_ones_are_for_those_with_a_token(hub, monkeypatch):
    publish(hub, repository(), private=True)
    assert [found.private for found in catalogue.repositories()] == [True]
    monkeypatch.delenv("HF_TOKEN")
    assert names() == []
    assert names(token=hub.token) == [REPO]


def test_a_model_that_says_little_of_itself_is_listed_without(hub):
    models = b'[{"id": "alice/bare"}, {"id": "alice/two", "cardData": {"base_model": ["a", "b"]}}]'
    hub.fail("GET", "^/api/models$", status=200, body=models)
    bare, two = catalogue.repositories()
    assert bare == ("alice/bare", False, None, None, None, None)
    assert two.base_model is None


def test_trouble_with_the_list_is_one_sentence(hub):
    hub.fail("GET", "^/api/models$", status=200, body=b"<html>", times=100)
    with pytest.raises(GatedError, match="could not be reached to list the dictionaries of alice"):
        catalogue.repositories(org="alice")


def test_all_saes_come_with_what_the_index_says(hub):
    sha = publish(hub, repository())
    found = catalogue.saes(REPO)
    assert found == (sha, json.loads(repository()["config.json"])["saes"][::-1])
    assert [entry["id"] for entry in found.saes] == [OTHER, SAE]


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"{",
        b"null",
        b'{"model_type": "gpt2"}',
        b'{"saes": 3}',
        b'{"saes": [3, null, {}, {"id": 3}, {"id": "elsewhere", "l0": 1}]}',
        b"[" * 100_000,
    ],
)
def test_saes_that_no_index_describes_have_their_id_alone(hub, content):
    files = {**sae_files(SAE), **sae_files(OTHER)}
    publish(hub, files if content is None else {**files, "config.json": content})
    assert catalogue.saes(REPO).saes == [{"id": OTHER}, {"id": SAE}]


def test_one_is_shown_at_the_revision_that_is_asked_for(hub):
    old = publish(hub, repository())
    new = publish(hub, {"config.json": json.dumps({"saes": [{"id": SAE, "l0": 1}]}).encode()})
    assert catalogue.one(REPO, SAE) == (new, {"id": SAE, "l0": 1})
    sha, entry = catalogue.one(REPO, SAE, revision=old)
    assert sha == old and entry["l0"] == 20.5


def test_an_unknown_one_names_the_nearest(hub):
    publish(hub, repository())
    with pytest.raises(GatedError, match=f"did you mean {SAE}"):
        catalogue.one(REPO, "l0_20")


def test_an_id_that_would_write_to_the_terminal_is_refused(hub):
    publish(hub, repository())
    paths = ("\x1b[2Jx/cfg.json", f"{SAE}/cfg.json")
    tree = [{"type": "file", "path": path, "oid": "0" * 40, "size": 1} for path in paths]
    hub.fail("GET", "/tree/", status=200, body=json.dumps(tree).encode(), times=2)
    with pytest.raises(GatedError, match="no path that can be written safely") as refusal:
        catalogue.saes(REPO)
    with pytest.raises(GatedError, match="has no SAE 'x'; did you mean") as other:
        catalogue.one(REPO, "x")
    assert str(refusal.value).isprintable() and str(other.value).isprintable()


def test_nothing_of_this_needs_a_token(hub, monkeypatch):
    publish(hub, repository())
    monkeypatch.delenv("HF_TOKEN")
    assert names() == [REPO] and catalogue.one(REPO, SAE)[1]["id"] == SAE
