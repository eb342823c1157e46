"""Which gated dictionaries a Hub has, and which SAEs a repository of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gated_plugin.hub import client, naming
from gated_plugin.hub.client import ask_once
from gated_plugin.hub.contents import chosen_ids, sae_ids
from gated_plugin.hub.index import Entry
from gated_plugin.hub.repository import Repository

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

TAG = "gated-sae"
"""In the metadata of every card of ours."""


class Found(NamedTuple):
    """A repository of gated dictionaries."""

    repo_id: str
    private: bool
    sha: str | None
    """Head of `main`."""
    last_modified: str | None
    """ISO 8601."""
    base_model: str | None
    """Hub id of the language model."""
    saes: int | None
    """How many it has; None where the Hub does not list files."""


class Contents(NamedTuple):
    """The SAEs of a repository at one commit."""

    sha: str
    saes: list[Entry]
    """By their ids; of one that the index does not describe the `id` alone."""


def repositories(
    org: str | None = None, filter: str | None = None, token: str | None = None
) -> list[Found]:
    """The repositories of gated dictionaries that the token may see.

    Args:
        org: of this user or organisation only.
        filter: with this text in their name only.

    Raises:
        GatedError: the Hub failed.
    """
    api = client.connect(token, anonymous_ok=True)
    models = ask_once(
        "list the dictionaries of",
        org or api.endpoint,
        lambda: list(
            api.list_models(filter=TAG, author=org, search=filter, full=True, cardData=True)
        ),
    )
    return sorted(map(_found, models))


def saes(repo_id: str, revision: str | None = None, token: str | None = None) -> Contents:
    """All SAEs of a repository, as its index describes them.

    Raises:
        GatedError: there is no such repository or revision, or it has no SAE.
    """
    return _contents(repo_id, None, revision, token)


def one(
    repo_id: str, sae_id: str, revision: str | None = None, token: str | None = None
) -> tuple[str, Entry]:
    """The commit, and what the index says of one SAE.

    Raises:
        GatedError: there is no such SAE, repository or revision.
    """
    sha, (entry,) = _contents(repo_id, sae_id, revision, token)
    return sha, entry


def _contents(
    repo_id: str, sae_id: str | None, revision: str | None, token: str | None
) -> Contents:
    naming.check_repo_id(repo_id)
    repository = Repository(client.connect(token, anonymous_ok=True), repo_id)
    sha = repository.resolve(revision)
    chosen = chosen_ids(sae_id, repository.files(sha), repo_id)
    described = _described(repository.index(sha))
    return Contents(sha, [described.get(each, {"id": each}) for each in chosen])


def _described(content: Any) -> dict[str, Entry]:
    """The entries of an index by their ids. Other writers leave out keys, or have no index at all:
    a config.json of something else describes nothing."""
    entries = content.get("saes") if isinstance(content, dict) else None
    return {
        entry["id"]: entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }


def _found(model: ModelInfo) -> Found:
    base_model = model.card_data.base_model if model.card_data else None
    files = model.siblings
    return Found(
        repo_id=model.id,
        private=bool(model.private),
        sha=model.sha,
        last_modified=model.last_modified.isoformat() if model.last_modified else None,
        base_model=base_model if isinstance(base_model, str) else None,
        saes=None if files is None else len(sae_ids(file.rfilename for file in files)),
    )
