"""A repository on the Hub, as it is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from gated_plugin.errors import GatedError
from gated_plugin.hub.client import ask, ask_once
from gated_plugin.hub.download import download
from gated_plugin.hub.index import FILENAME

if TYPE_CHECKING:
    from hashlib import _Hash

    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoFile, RepoFolder

CARD = "README.md"
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST_TEXT = 16 << 20
"""Bytes of a card or an index: 10,000 SAEs at 1.5 kB each."""


class RemoteFile(NamedTuple):
    """A file in a commit, and what its content must be."""

    path: str
    """Within the repository, with /."""
    size: int
    """Bytes."""
    sha256: str | None
    """Of the content of a file in LFS; None of the small ones, which are in git itself."""
    oid: str
    """The name that git gives it: of small files the hash of their content."""

    @property
    def hash(self) -> str:
        """What the content must hash to, in hex."""
        return self.sha256 or self.oid

    def digest(self) -> _Hash:
        """A new hasher, which arrives at `hash` with all of the content."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True)
class Repository:
    """A model repository on the Hub; every method raises `GatedError` when the Hub fails."""

    api: HfApi
    id: str

    def info(self, revision: str | None = None) -> ModelInfo | None:
        """What the Hub says of it; None when it does not exist (or is hidden from us)."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        def model_info() -> ModelInfo | None:
            try:
                return self.api.model_info(self.id, revision=revision)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None

        return ask("read", self.id, model_info)

    def head(self) -> str:
        """The commit that `main` is at."""
        return self.resolve(None)

    def resolve(self, revision: str | None, final: tuple[type[BaseException], ...] = ()) -> str:
        """The commit, 40 hex digits, that a branch, tag or commit is at; None is for `main`.

        Args:
            final: failures after which the Hub is not asked again.
        """
        from huggingface_hub.errors import RevisionNotFoundError

        def sha() -> str | None:
            try:
                return self.api.model_info(self.id, revision=revision).sha
            except RevisionNotFoundError:
                raise GatedError(
                    f"{self.id} has no branch, tag or commit {revision!r}; name another one with "
                    "--revision, or leave it out for the newest."
                ) from None

        found = ask("read", self.id, sha, final)
        asked = revision if COMMIT.fullmatch(revision or "") else found
        if not isinstance(found, str) or not COMMIT.fullmatch(found) or found != asked:
            raise GatedError(
                f"{self.api.endpoint} does not say which commit of {self.id} it has; check "
                "HF_ENDPOINT and run the same command again."
            )
        return found

    def files(self, sha: str) -> dict[str, RemoteFile]:
        """All files of a commit, by their paths."""
        entries = ask_once(
            "read the files of",
            self.id,
            lambda: list(self.api.list_repo_tree(self.id, recursive=True, revision=sha)),
        )
        return {file.path: file for file in self._files_among(entries)}

    def text(self, sha: str, path: str) -> str | None:
        """The content of a text file, in UTF-8; None where there is no such file.

        Raises:
            GatedError: it is far too large for one.
        """
        entries = ask(
            "read the files of",
            self.id,
            lambda: self.api.get_paths_info(self.id, [path], revision=sha),
        )
        found = list(self._files_among(entries))
        if any(file.path != path for file in found):
            raise GatedError(
                f"{self.api.endpoint} was asked for {path} of {self.id} and told of "
                f"{found[0].path!r}; run the same command again."
            )
        if not found:
            return None
        (file,) = found
        if file.size > LARGEST_TEXT:
            raise GatedError(
                f"{path} of {self.id} has {file.size:,} bytes, far more than such a file needs; "
                "have its owner mend it, or name an older one with --revision."
            )
        with TemporaryDirectory() as folder:
            target = Path(folder) / "text"
            download(self, sha, file, target)
            return target.read_text(encoding="utf-8", errors="replace")

    def card(self, sha: str) -> str | None:
        """The README.md; None where there is none."""
        return self.text(sha, CARD)

    def index(self, sha: str) -> Any:
        """What the root config.json holds; None where there is none, a text where it is no JSON."""
        text = self.text(sha, FILENAME)
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError):
            return text

    def _files_among(self, entries: Iterable[RepoFile | RepoFolder]) -> Iterator[RemoteFile]:
        from huggingface_hub.hf_api import RepoFile

        for entry in entries:
            if isinstance(entry, RepoFile):
                sha256 = entry.lfs.sha256 if entry.lfs else None
                file = RemoteFile(entry.path, entry.size, sha256, entry.blob_id)
                self._require_sound(file)
                yield file

    def _require_sound(self, file: RemoteFile) -> None:
        pattern = COMMIT if file.sha256 is None else SHA256
        is_sized = type(file.size) is int and file.size >= 0
        if not is_sized or not isinstance(file.path, str) or not pattern.fullmatch(str(file.hash)):
            raise GatedError(
                f"{self.api.endpoint} does not say what {file.path!r} of {self.id} is; check "
                "HF_ENDPOINT and run the same command again."
            )
