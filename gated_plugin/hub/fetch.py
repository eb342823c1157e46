"""Files of a repository → the Hugging Face cache or a folder, every one of them verified."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from gated_plugin.errors import GatedError
from gated_plugin.hub import client, naming
from gated_plugin.hub.cache import Cache, remembered
from gated_plugin.hub.contents import CFG, chosen_ids, files_of
from gated_plugin.hub.download import download, is_here
from gated_plugin.hub.failures import unreachable
from gated_plugin.hub.repository import COMMIT, Repository
from gated_plugin.progress import Progress
from gated_plugin.tensor_files import check_header

if TYPE_CHECKING:
    from gated_plugin.hub.repository import RemoteFile


class Store(Protocol):
    """A place for the files of a commit."""

    @property
    def folder(self) -> Path:
        """In which they lie by their paths."""

    def has(self, file: RemoteFile) -> bool: ...

    def opened(
        self, files: Sequence[RemoteFile], missing: Sequence[RemoteFile]
    ) -> list[RemoteFile]:
        """Those of `files` to fetch, so that no SAE can be taken for complete before it is."""

    def add(
        self, repository: Repository, file: RemoteFile, progress: Callable[[int], None]
    ) -> None: ...


@dataclass(frozen=True)
class Folder:
    """A folder of the user, as a `Store`."""

    folder: Path
    sha: str

    def has(self, file: RemoteFile) -> bool:
        """Whether it holds the file's content, by its hash."""
        return is_here(self.folder / file.path, file)

    def opened(
        self, files: Sequence[RemoteFile], missing: Sequence[RemoteFile]
    ) -> list[RemoteFile]:
        """An SAE that lacks a file, or has one of another commit, loses its cfg.json first and gets
        it last."""
        changing = [
            file
            for file in files
            if PurePosixPath(file.path).name == CFG
            and any(PurePosixPath(other.path).is_relative_to(_home(file)) for other in missing)
        ]
        for cfg in changing:
            (self.folder / cfg.path).unlink(missing_ok=True)
        return [file for file in files if file in missing or file in changing]

    def add(
        self, repository: Repository, file: RemoteFile, progress: Callable[[int], None]
    ) -> None:
        """Fetch the file; one of another content is replaced when all of it has arrived."""
        download(repository, self.sha, file, self.folder / file.path, progress)


def fetch(
    repository: Repository, files: Sequence[RemoteFile], store: Store, *, quiet: bool = False
) -> int:
    """Bring the files that `store` has not yet, in their order; the bytes of those.

    Raises:
        GatedError: one did not come, or is a safetensors file that cannot be sound.
    """
    missing = store.opened(files, [file for file in files if not store.has(file)])
    total = sum(file.size for file in files)
    done = total - sum(file.size for file in missing)
    if missing:
        with Progress("Fetching", total, done, unit="bytes", quiet=quiet) as bar:
            for file in missing:
                store.add(repository, file, partial(_show, bar, done))
                done += file.size
    for file in files:
        if file.path.endswith(".safetensors"):
            check_header(store.folder / file.path)
    return sum(file.size for file in missing)


def _home(cfg: RemoteFile) -> PurePosixPath:
    """The folder of an SAE."""
    return PurePosixPath(cfg.path).parent


def _show(bar: Progress, before: int, here: int) -> None:
    bar.update(before + here)


def cached_folder(
    repo_id: str, sae_id: str | None = None, revision: str | None = None, token: str | None = None
) -> Path:
    """The folder of one SAE in the Hugging Face cache, fetched if it is not there.

    Without a network (or with HF_HUB_OFFLINE) it is found where the commit is known: `revision` is
    one, or was asked for before. With a network a branch is always asked for anew.

    Args:
        sae_id: may be left out where the repository has one SAE.
        revision: branch, tag or commit; None for `main`.

    Raises:
        GatedError: it is not there, or must not be written to this computer.
    """
    from huggingface_hub import is_offline_mode

    naming.check_repo_id(repo_id)
    is_pinned = revision is not None and COMMIT.fullmatch(revision) is not None
    known = revision if is_pinned else remembered(repo_id, revision)
    cached = Cache(repo_id, known).sae_folder(sae_id) if known else None
    if is_offline_mode():
        return cached or _refuse_offline(repo_id, sae_id, revision)
    if known and is_pinned and sae_id and Cache(repo_id, known).is_complete(sae_id):
        return Cache(repo_id, known).folder / sae_id
    repository = Repository(client.connect(token, anonymous_ok=True), repo_id)
    try:
        sha = repository.resolve(revision, final=unreachable() if cached else ())
    except GatedError as error:
        if cached is None or not isinstance(error.__cause__, unreachable()):
            raise
        warnings.warn(f"{error} Until then commit {known} from the cache is taken.", stacklevel=2)
        return cached
    store = Cache(repo_id, sha)
    if sae_id is None or not store.is_complete(sae_id):
        sae_id = _completed(repository, sae_id, store)
    store.remember(revision)
    return store.folder / sae_id


def _completed(repository: Repository, sae_id: str | None, store: Cache) -> str:
    """The id of the SAE, all of whose files are in `store` now."""
    from huggingface_hub.utils import are_progress_bars_disabled

    files = repository.files(store.sha)
    sae_id = _only(chosen_ids(sae_id, files, repository.id), repository.id)
    wanted = files_of([sae_id], files, repository.id)
    fetch(repository, wanted, store, quiet=are_progress_bars_disabled())
    return sae_id


def _only(sae_ids: list[str], repo_id: str) -> str:
    if len(sae_ids) > 1:
        raise GatedError(
            f"{repo_id} holds {len(sae_ids)} SAEs; name one of those that `gated-hub list "
            f"{repo_id}` shows, such as {sae_ids[0]}."
        )
    return sae_ids[0]


def _refuse_offline(repo_id: str, sae_id: str | None, revision: str | None) -> Path:
    pull = " ".join(filter(None, ("gated-hub pull", repo_id, sae_id)))
    pull += f" --revision {revision}" if revision else ""
    raise GatedError(
        f"The Hub is switched off by HF_HUB_OFFLINE, and the cache lacks {sae_id or 'the one SAE'} "
        f"of {repo_id} at {revision or 'main'}; unset it and run `{pull}` first."
    )
