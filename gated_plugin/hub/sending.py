"""A folder → one commit on the Hub, with the head compared before and every hash after."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from gated_plugin.errors import GatedError
from gated_plugin.hub import client
from gated_plugin.hub.client import ask, ask_once
from gated_plugin.hub.redaction import redacted
from gated_plugin.hub.repository import RemoteFile, Repository
from gated_plugin.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete


GIT_ATTRIBUTES = ".gitattributes"
"""The only file of a repository that was just made."""


class Changes(NamedTuple):
    """What makes a repository hold a folder's files."""

    changed: list[CommitOperationAdd]
    """New files, and those of another content."""
    gone: list[CommitOperationDelete]
    """Files in the folders of our SAEs that those no longer have."""

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


@dataclass
class Shipment:
    """The files of a folder, on their way into a repository.

    Args:
        sae_ids: folders that shall hold our files and no others.
    """

    repository: Repository
    folder: Path
    sae_ids: Sequence[str]
    quiet: bool = False
    additions: list[CommitOperationAdd] = field(init=False)

    def __post_init__(self) -> None:
        from huggingface_hub import CommitOperationAdd

        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        # CommitOperationAdd hashes: an upload of gigabytes begins with seconds of reading.
        self.additions = [
            # The client takes any BufferedIOBase, and says BinaryIO.
            CommitOperationAdd(path.relative_to(self.folder).as_posix(), _Counted(path))  # type: ignore[arg-type]
            for path in files
        ]

    def changes(self, revision: str | None) -> Changes:
        """How the repository at `revision` differs from the folder; None for one without files."""
        from huggingface_hub import CommitOperationDelete

        there = self.repository.files(revision) if revision else {}
        ours = {addition.path_in_repo for addition in self.additions}
        gone = [
            CommitOperationDelete(path)
            for path in sorted(there.keys() - ours)
            if any(path.startswith(f"{sae_id}/") for sae_id in self.sae_ids)
        ]
        return Changes(
            [a for a in self.additions if not _is_same(a, there.get(a.path_in_repo))], gone
        )

    def send(self, changes: Changes, head: str, report: Callable[[str], None]) -> str:
        """Upload, commit on top of `head`, and check; the commit in which the files are.

        Raises:
            GatedError: the Hub failed for good, or somebody else has changed the repository. The
                head is then what it was, or holds all our files.
        """
        self._upload(changes)
        message = f"{'Add' if changes.changed else 'Tidy'} {', '.join(self.sae_ids)}"
        revision = self._commit(changes, message, head)
        wrong = self.changes(revision)
        if wrong:
            paths = [addition.path_in_repo for addition in wrong.changed]
            paths += [deletion.path_in_repo for deletion in wrong.gone]
            raise GatedError(
                f"After the push {', '.join(paths)} in {self.repository.id} differ from what was "
                "sent; run the same command again, and if that does not mend it, look at its "
                ".gitignore."
            )
        report(f"Sent to {self.repository.id} in one commit: {len(changes.changed)} new files.")
        return revision

    def _upload(self, changes: Changes) -> None:
        """The large files' content on the Hub, in no commit yet.

        Files of one content, such as the activations of two SAEs at one site, go once: the client
        would read both from one of them at a time.
        """
        contents = {addition.upload_info.sha256: addition for addition in changes.changed}
        files = [addition.path_or_fileobj for addition in contents.values()]
        counted = [file for file in files if isinstance(file, _Counted)]
        size = sum(addition.upload_info.size for addition in contents.values())
        with Progress("Uploading", size, unit="bytes", quiet=self.quiet) as progress:
            for file in counted:
                file.on_read = lambda: progress.update(sum(each.reached for each in counted))
            ask_once(
                "upload to",
                self.repository.id,
                lambda: self.repository.api.preupload_lfs_files(
                    self.repository.id, contents.values(), free_memory=False
                ),
            )

    def _commit(self, changes: Changes, message: str, parent: str) -> str:
        """One commit on top of `parent`.

        It may land and its answer be lost; then a second try would be refused for its parent. So
        after each failure the repository is asked before the commit is sent again or given up.
        """
        patience = client.Patience()
        while True:
            try:
                return self.repository.api.create_commit(
                    self.repository.id,
                    [*changes.changed, *changes.gone],
                    commit_message=message,
                    parent_commit=parent,
                ).oid
            except client.failures() as failure:
                wait = patience.wait_after(failure)
                head = self._head_if_equal(failure)
                if head is not None:
                    return head
                if wait is None:
                    sentence = client.explained(failure, "commit to", self.repository.id)
                    raise sentence from redacted(failure)
            time.sleep(wait)

    def _head_if_equal(self, failure: Exception) -> str | None:
        """The head, if it holds our files although the commit seemed to fail."""
        try:
            head = self.repository.head()
            return None if self.changes(head) else head
        except GatedError:
            raise GatedError(
                f"The push to {self.repository.id} broke off and the Hub cannot be asked whether "
                "it arrived; run the same command again: it sends only what is missing."
            ) from redacted(failure)


class _Counted(io.BufferedIOBase):
    """A file that says how far it was read, and is open only on the way from start to end: a
    repository may have more files than a process may open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reached = 0
        self.on_read: Callable[[], None] = lambda: None
        self._file: BinaryIO | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self._file is None:
            self._file = self.path.open("rb")
            self._file.seek(self.reached)
        data = self._file.read(-1 if size is None else size)
        self.reached += len(data)
        if size is None or size < 0 or len(data) < size:
            self._file.close()
            self._file = None
        self.on_read()
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.reached}.get(whence, self.path.stat().st_size)
        self.reached = start + offset
        if self._file is not None:
            self._file.seek(self.reached)
        return self.reached

    def tell(self) -> int:
        return self.reached

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _is_same(addition: CommitOperationAdd, there: RemoteFile | None) -> bool:
    if there is None or there.size != addition.upload_info.size:
        return False
    if there.sha256 is not None:
        return there.sha256 == addition.upload_info.sha256.hex()
    digest = there.digest()
    with addition.as_file() as file:  # it is not in LFS, and so small
        digest.update(file.read())
    return digest.hexdigest() == there.oid


def create(repository: Repository, private: bool) -> str:
    """Make the repository; its head.

    Raises:
        GatedError: the Hub refused, or somebody else made it in the meantime.
    """
    ask(
        "create",
        repository.id,
        # None leaves it to the organisation's default, which may be private.
        lambda: repository.api.create_repo(repository.id, private=private or None, exist_ok=True),
    )
    info = repository.info()
    if info is None or info.sha is None or repository.files(info.sha).keys() - {GIT_ATTRIBUTES}:
        raise GatedError(
            f"Somebody else made {repository.id} in the meantime, so nothing was sent; run the "
            "same command again."
        )
    if private and not info.private:
        raise GatedError(
            f"{repository.id} was made public in the meantime, so nothing was sent; make it "
            "private in its settings on the Hub, and run the same command again."
        )
    return info.sha
