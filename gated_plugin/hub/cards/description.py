"""Cards and directory entries of what exists already: a repository, a pulled folder, a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from gated_plugin.errors import GatedError
from gated_plugin.hub import client, index, naming
from gated_plugin.hub.cards import card, notes
from gated_plugin.hub.cards.licensing import plan_of
from gated_plugin.hub.cards.saelens_entry import entry_yaml
from gated_plugin.hub.repository import CARD, Repository
from gated_plugin.runs import Run, read_json


class Described(NamedTuple):
    """What a repository says of itself."""

    repo_id: str
    index: Any
    """Content of its config.json."""
    card: str | None
    """Its README.md."""


def card_of(source: str, revision: str | None = None, out: Path | None = None) -> str:
    """The card of a repository or folder, written anew from its index.

    Args:
        out: where it will be written; the Notes of a card that is there stay.

    Raises:
        GatedError: there is no index, or the card that is there is a person's.
    """
    described = _described(source, revision)
    if out is not None and out.exists():
        kept = notes.kept(_text(out), str(out))
    elif notes.kept_section(described.card or "") is not None:
        kept = notes.kept(described.card, f"README.md of {described.repo_id}")
    else:
        kept = None  # a person's card, which stays where it is
    entries = index.entries_of(described.index, described.repo_id)
    return card.render(
        described.repo_id, entries, plan_of(described.index, described.repo_id), kept
    )


def saelens_entry_of(source: str, revision: str | None = None) -> str:
    """The entry of a repository for SAELens' directory of pretrained SAEs, as YAML."""
    described = _described(source, revision)
    entries = index.entries_of(described.index, described.repo_id)
    return entry_yaml(described.repo_id, entries, plan_of(described.index, described.repo_id))


def entries_of(
    source: str, sae_id: str | None = None, revision: str | None = None
) -> list[index.Entry]:
    """The index of a repository or folder: one SAE, or all."""
    described = _described(source, revision)
    entries = index.entries_of(described.index, described.repo_id)
    return [entry for entry in entries if sae_id in (None, entry["id"])]


def _described(source: str, revision: str | None) -> Described:
    path = Path(source)
    if not path.is_dir():
        naming.check_source(source)
        repository = Repository(client.connect(anonymous_ok=True), source)
        sha = repository.resolve(revision)
        return Described(source, repository.index(sha), repository.card(sha))
    if Run(path).recipe.exists():
        path = Run(path).publication
    if not (path / index.FILENAME).exists():
        raise GatedError(
            f"{path} is not there or holds no {index.FILENAME} that describes dictionaries; prepare "
            "a run with `gated-hub push RUN --repo org/name --dry-run`, or name a repository."
        )
    content = read_json(path / index.FILENAME)
    readme = path / CARD
    text = _text(readme) if readme.exists() else None
    repo_id = content.get("repo_id") if isinstance(content, dict) else None
    if not isinstance(repo_id, str):
        raise GatedError(
            f"{path / index.FILENAME} does not say of which repository it is; name the repository "
            "itself instead."
        )
    return Described(repo_id, content, text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise GatedError(f"{path} is no text in UTF-8; save it as that first.") from None
