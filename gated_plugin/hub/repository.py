"""A repository on the Hub: read, compared by hashes, and changed by one commit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gated_plugin.errors import GatedError
from gated_plugin.hub import client, index
from gated_plugin.hub.client import ask, ask_once

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import CommitOperationAdd, ModelInfo


@dataclass(frozen=True)
class Repository:
    """A model repository on the Hub; every method raises `GatedError` when the Hub fails."""

    api: HfApi
    id: str

    def info(self) -> ModelInfo | None:
        """What the Hub says of it; None when it does not exist (or is hidden from us)."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        def model_info() -> ModelInfo | None:
            try:
                return self.api.model_info(self.id)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None

        return ask("read", self.id, model_info)

    def head(self) -> str:
        """The commit that `main` is at."""
        info = ask("read", self.id, lambda: self.api.model_info(self.id))
        assert info.sha is not None
        return info.sha

    def entries(self, state: ModelInfo) -> list[index.Entry]:
        """The index of dictionaries that it holds in `state`."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        def content() -> str | None:
            try:
                path = self.api.hf_hub_download(self.id, index.FILENAME, revision=state.sha)
            except RemoteEntryNotFoundError:
                return None
            return Path(path).read_text(encoding="utf-8")

        text = ask("read the index of", self.id, content)
        return [] if text is None else index.entries_of(_json(text), self.id)

    def send(
        self,
        folder: Path,
        sae_id: str,
        before: ModelInfo | None,
        private: bool,
        report: Callable[[str], None],
    ) -> str:
        """Make the repository hold the files of `folder`; returns the commit in which it does."""
        if before is None:
            ask(
                "create",
                self.id,
                # None leaves it to the organisation's default, which may be private.
                lambda: self.api.create_repo(self.id, private=private or None, exist_ok=True),
            )
        head = before.sha if before and before.sha else self.head()
        if before is not None and not self.differing(folder, head):
            report(f"{self.id} holds these files already: there is nothing to send.")
            return head
        operations = self._uploaded(folder)
        revision = self._commit(operations, folder, f"Add {sae_id}", head)
        report(f"Sent {len(operations)} files to {self.id} in one commit.")
        wrong = self.differing(folder, revision)
        if wrong:
            raise GatedError(
                f"After the push {', '.join(wrong)} in {self.id} differ from what was sent; run "
                "the same command again, and if that does not mend it, look at its .gitignore."
            )
        return revision

    def differing(self, folder: Path, revision: str) -> list[str]:
        """The files of `folder` that are not the same in the repository, by their hashes."""
        found = ask_once(
            "read the files of",
            self.id,
            lambda: self.api.verify_repo_checksums(self.id, revision=revision, local_dir=folder),
        )
        return sorted([*found.extra_paths, *(file["path"] for file in found.mismatches)])

    def _uploaded(self, folder: Path) -> list[CommitOperationAdd]:
        """Additions of all files, with the large ones' content on the Hub, in no commit yet."""
        from huggingface_hub import CommitOperationAdd

        files = sorted(path for path in folder.rglob("*") if path.is_file())
        operations = [
            CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files
        ]
        ask_once(
            "upload to",
            self.id,
            lambda: self.api.preupload_lfs_files(self.id, operations, free_memory=False),
        )
        return operations

    def _commit(
        self, operations: list[CommitOperationAdd], folder: Path, message: str, parent: str
    ) -> str:
        """One commit on top of `parent`.

        It may land and its answer be lost; then a second try would be refused for its parent. So
        after each failure the repository is asked before the commit is sent again or given up.
        """
        waits = iter(client.WAITS)
        while True:
            try:
                return self.api.create_commit(
                    self.id, operations, commit_message=message, parent_commit=parent
                ).oid
            except client.failures() as failure:
                wait = next(waits, None) if client.is_transient(failure) else None
                head = self._head_if_equal(folder, failure)
                if head is not None:
                    return head
                if wait is None:
                    raise client.explained(failure, "commit to", self.id) from failure
            time.sleep(wait)

    def _head_if_equal(self, folder: Path, failure: Exception) -> str | None:
        """The head, if it holds the files of `folder` although the commit seemed to fail."""
        try:
            head = self.head()
            return None if self.differing(folder, head) else head
        except GatedError:
            raise GatedError(
                f"The push to {self.id} broke off and the Hub cannot be asked whether it arrived; "
                "run the same command again: it sends only what is missing."
            ) from failure


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
