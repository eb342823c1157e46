"""A dictionary in a repository on the Hub → its few files in the Hugging Face cache, verified."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gated_plugin.convert import dictionary_learning as library
from gated_plugin.dictionaries import ACTIVATIONS, CFG, WEIGHTS
from gated_plugin.errors import GatedError
from gated_plugin.hub import client, naming
from gated_plugin.hub.cache import Cache
from gated_plugin.hub.contents import refuse_path
from gated_plugin.hub.fetch import fetch
from gated_plugin.hub.repository import Repository

if TYPE_CHECKING:
    from gated_plugin.hub.repository import RemoteFile

OF_SAELENS = (WEIGHTS, ACTIVATIONS, CFG)
OF_THE_LIBRARY = (library.WEIGHTS, library.PICKLED, library.CONFIG)
NAMED_AT_MOST = 3


class Fetched(NamedTuple):
    """A folder of a repository, of a pinned commit."""

    folder: Path
    origin: dict[str, str]


def fetched(name: str, revision: str | None, token: str | None) -> Fetched:
    """The files of one dictionary, of which a pickled one is fetched too: nothing of it is run.

    Args:
        name: `org/name`, or `org/name/folder` where the repository holds more than one.
        revision: branch, tag or commit; None for `main`.

    Raises:
        GatedError: there is no such dictionary, or it did not come.
    """
    from huggingface_hub.utils import are_progress_bars_disabled

    repo_id, inside = _split(name)
    naming.check_repo_id(repo_id)
    repository = Repository(client.connect(token, anonymous_ok=True), repo_id)
    sha = repository.resolve(revision)
    files = repository.files(sha)
    folder = _chosen(inside, files, repo_id)
    wanted = _wanted(folder, files)
    for file in wanted:
        refuse_path(file.path, repo_id)
    cache = Cache(repo_id, sha)
    fetch(repository, wanted, cache, quiet=are_progress_bars_disabled())
    origin = {"repository": repo_id, "revision": sha, "folder": folder}
    return Fetched(cache.folder / folder, origin)


def _split(name: str) -> tuple[str, str]:
    parts = name.strip("/").split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def _chosen(inside: str, files: Mapping[str, RemoteFile], repo_id: str) -> str:
    """The folder meant by `inside`; the only one for an empty one."""
    marks = (CFG, library.PICKLED, library.WEIGHTS)
    split = (path.rpartition("/") for path in files)
    found = sorted({folder for folder, _, name in split if name in marks})
    if inside in found:
        return inside
    if not inside and len(found) == 1:
        return found[0]
    near = get_close_matches(inside, found, NAMED_AT_MOST, 0.4) or found[:NAMED_AT_MOST]
    raise GatedError(
        f"{repo_id} holds {len(found)} dictionaries, and {inside or 'no folder'!r} names none of "
        f"them; give one such as {' or '.join(f'{repo_id}/{folder}' for folder in near) or '-'}."
    )


def _wanted(folder: str, files: Mapping[str, RemoteFile]) -> list[RemoteFile]:
    begin = f"{folder}/" if folder else ""
    names = OF_SAELENS if begin + CFG in files else OF_THE_LIBRARY
    found = {name: files[begin + name] for name in names if begin + name in files}
    if library.WEIGHTS in found:
        found.pop(library.PICKLED, None)
    return list(found.values())
