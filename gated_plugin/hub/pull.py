"""A repository on the Hub → this computer: one SAE or all, with card and index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gated_plugin.errors import GatedError
from gated_plugin.hub import certificate, client, naming
from gated_plugin.hub.cache import Cache
from gated_plugin.hub.contents import ABOUT, chosen_ids, files_of
from gated_plugin.hub.fetch import Folder, Store, fetch
from gated_plugin.hub.repository import Repository

if TYPE_CHECKING:
    from gated_plugin.hub.repository import RemoteFile


class Pulled(NamedTuple):
    """What is on this computer now, every file as the Hub has it by its hash."""

    repo_id: str
    sae_ids: list[str]
    revision: str
    """Commit that the files are of."""
    folder: Path
    """Holds the files by their paths in the repository, so each SAE below its id."""
    files: int
    """All that belong to it."""
    bytes: int
    """That had to be fetched: 0 where everything was here."""


def pull(
    repo_id: str,
    sae_id: str | None = None,
    *,
    revision: str | None = None,
    out: Path | None = None,
    token: str | None = None,
    report: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> Pulled:
    """Fetch one SAE, or all of a repository, into the Hugging Face cache or into `out`.

    What is here already, by its hash, is not fetched again; what broke off is gone on with.

    Args:
        revision: branch, tag or commit; None for `main`.
        out: gets the repository's own layout; other files in it are left alone.
        report: takes a line when each step is done.

    Raises:
        GatedError: what prevented it, and what to do.
    """
    naming.check_repo_id(repo_id)
    if out is not None and out.exists() and not out.is_dir():
        raise GatedError(f"{out} is a file; name a folder with --out.")
    repository = Repository(client.connect(token, anonymous_ok=True), repo_id)
    sha = repository.resolve(revision)
    files = repository.files(sha)
    sae_ids = chosen_ids(sae_id, files, repo_id)
    wanted = [*(files[path] for path in ABOUT if path in files), *files_of(sae_ids, files, repo_id)]
    report(f"{repo_id} is at commit {sha}.")
    cache = Cache(repo_id, sha, rehash=True)
    store: Store = cache if out is None else Folder(out, sha)
    fetched = fetch(repository, wanted, store, quiet=quiet)
    report(f"All {len(wanted)} files have the hashes that the Hub gives.")
    certified = [_is_as_certified(store.folder, each, files) for each in sae_ids]
    if any(certified):
        report(f"{sum(certified)} of {len(sae_ids)} SAEs are as certified before publishing.")
    if out is None:
        cache.remember(revision)
    return Pulled(repo_id, sae_ids, sha, store.folder, len(wanted), fetched)


def _is_as_certified(root: Path, sae_id: str, files: Mapping[str, RemoteFile]) -> bool:
    """Whether the SAE has a certificate.

    Raises:
        GatedError: a file is not the one that it certifies.
    """
    if f"{sae_id}/{certificate.FILENAME}" not in files:
        return False
    for name, about in certificate.read(root / sae_id)["files"].items():
        file = files.get(f"{sae_id}/{name}")
        if file is None or about != _described(root, file):
            raise GatedError(
                f"{sae_id}/{name} is {'another file than' if file else 'missing, but is'} what its "
                "certificate states, so this SAE was changed after it was checked; tell its owner, "
                "or pull an older one with --revision."
            )
    return True


def _described(root: Path, file: RemoteFile) -> dict[str, object]:
    """As the certificate describes it; a file in LFS has been hashed when it came."""
    sha256 = file.sha256 or certificate.sha256(root / file.path)
    return {"bytes": file.size, "sha256": sha256}
