"""The Hugging Face cache of one repository, shared with `SAE.from_pretrained` and `hf cache`.

models--org--name/
  blobs/HASH                    contents, by their hash
  refs/main                     the commit that a branch or tag was at when it was last asked for
  snapshots/COMMIT/PATH         links to the contents
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gated_plugin.errors import GatedError
from gated_plugin.hub import certificate
from gated_plugin.hub.client import ask
from gated_plugin.hub.contents import CFG, refuse_path
from gated_plugin.hub.download import download, is_here
from gated_plugin.hub.repository import COMMIT
from gated_plugin.runs import beside

if TYPE_CHECKING:
    from gated_plugin.hub.repository import RemoteFile, Repository

MAIN = "main"
WEIGHTS = "sae_weights.safetensors"


@dataclass(frozen=True)
class Cache:
    """What the cache holds of the repository `repo_id`, at the commit `sha`."""

    repo_id: str
    sha: str
    rehash: bool = False
    """Whether contents that are here already are hashed again, or trusted by their size alone:
    whoever put them here checked nothing more, but gigabytes take seconds to hash."""

    @property
    def folder(self) -> Path:
        """Of the commit's files."""
        return _home(self.repo_id) / "snapshots" / self.sha

    def has(self, file: RemoteFile) -> bool:
        """Whether a file of the commit is here."""
        return self._holds(self.folder / file.path, file)

    def opened(
        self, files: Sequence[RemoteFile], missing: Sequence[RemoteFile]
    ) -> list[RemoteFile]:
        """Each commit has a folder of its own, with cfg.json as the last to come."""
        return list(missing)

    def add(
        self, repository: Repository, file: RemoteFile, progress: Callable[[int], None]
    ) -> None:
        """Fetch the content unless it is here, and link it.

        Raises:
            GatedError: it did not come.
        """
        blob, pointer = _home(self.repo_id) / "blobs" / file.hash, self.folder / file.path
        if not self._holds(blob, file):
            download(repository, self.sha, file, blob, progress)
        pointer.unlink(missing_ok=True)
        self._link(repository, file)
        if pointer.resolve() == blob.resolve():
            return
        if not is_here(pointer, file):
            pointer.unlink()
            raise GatedError(
                f"{repository.api.endpoint} gives {file.path} of {self.repo_id} two different "
                "hashes; check HF_ENDPOINT, or fetch it with `gated-hub pull --out`."
            )
        blob.unlink()  # on a system without links the client has copied it

    def remember(self, revision: str | None) -> None:
        """Note that the branch or tag is at this commit, to be found without a network; not where
        the cache is for reading only."""
        name = revision or MAIN
        if self.sha not in (name, remembered(self.repo_id, name)):
            with (
                contextlib.suppress(OSError),
                beside(_home(self.repo_id) / "refs" / name) as unfinished,
            ):
                unfinished.write_text(self.sha, encoding="utf-8")

    def sae_folder(self, sae_id: str | None) -> Path | None:
        """The folder of an SAE of which enough is here to load it; None without it.

        Args:
            sae_id: None for the only one.
        """
        if sae_id is not None:
            refuse_path(sae_id, self.repo_id)
            folder = self.folder / sae_id
            return folder if (folder / CFG).exists() and (folder / WEIGHTS).exists() else None
        found = [path.parent for path in self.folder.rglob(CFG)]
        if len(found) != 1:
            return None
        return self.sae_folder(found[0].relative_to(self.folder).as_posix())

    def is_complete(self, sae_id: str) -> bool:
        """Whether all that the certificate of an SAE names is here; SAELens fetches less."""
        folder = self.sae_folder(sae_id)
        if folder is None or not (folder / certificate.FILENAME).exists():
            return False
        return all((folder / name).exists() for name in certificate.read(folder)["files"])

    def _link(self, repository: Repository, file: RemoteFile) -> None:
        from huggingface_hub.errors import LocalEntryNotFoundError

        ask(
            f"download {file.path} from",
            self.repo_id,
            lambda: repository.api.hf_hub_download(self.repo_id, file.path, revision=self.sha),
            # It has asked five times then.
            final=(LocalEntryNotFoundError,),
        )

    def _holds(self, path: Path, file: RemoteFile) -> bool:
        if self.rehash:
            return is_here(path, file)
        return path.is_file() and path.stat().st_size == file.size


def remembered(repo_id: str, revision: str | None) -> str | None:
    """The commit that the branch or tag was at when it was last asked for; None if it never was."""
    name = revision or MAIN
    refuse_path(name, repo_id)
    try:
        sha = (_home(repo_id) / "refs" / name).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return sha if COMMIT.fullmatch(sha) else None


def _home(repo_id: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
