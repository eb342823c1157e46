"""Repositories, their commits and refs, in one SQLite file that a kill cannot spoil."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple

from gated_plugin.hub.local.blobs import Blobs, git_oid
from gated_plugin.hub.local.messages import Refusal

REPO_ID = re.compile(r"(?!api/)(?:[A-Za-z0-9][\w.-]{0,95}/)[A-Za-z0-9][\w.-]{0,95}(?<!\.git)", re.A)
REF_NAME = re.compile(r"(?!refs/|.*(?:\.\.|//|/$|\.lock$))\w[\w./-]{0,254}", re.A)
COMMIT_OID = re.compile(r"[0-9a-f]{5,40}")

SCHEMA = """
CREATE TABLE IF NOT EXISTS repos (
    id TEXT PRIMARY KEY, private INTEGER NOT NULL, created TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS commits (
    repo TEXT NOT NULL REFERENCES repos ON DELETE CASCADE, oid TEXT NOT NULL, parent TEXT,
    title TEXT NOT NULL, description TEXT NOT NULL, author TEXT NOT NULL, date TEXT NOT NULL,
    files TEXT NOT NULL, PRIMARY KEY (repo, oid));
CREATE TABLE IF NOT EXISTS refs (
    repo TEXT NOT NULL REFERENCES repos ON DELETE CASCADE, kind TEXT NOT NULL, name TEXT NOT NULL,
    target TEXT NOT NULL, PRIMARY KEY (repo, kind, name));
"""
HEADS = """
SELECT repos.*, commits.* FROM repos
JOIN refs ON refs.repo = repos.id AND kind = 'branch' AND name = 'main'
JOIN commits ON commits.repo = repos.id AND commits.oid = target
ORDER BY repos.id
"""
LINE_OF_COMMITS = """
WITH RECURSIVE line(depth, oid) AS (
    SELECT 0, :oid
    UNION ALL
    SELECT depth + 1, parent FROM line JOIN commits USING (oid)
    WHERE repo = :repo AND parent IS NOT NULL)
SELECT commits.* FROM line JOIN commits USING (oid) WHERE repo = :repo ORDER BY depth
"""
PUT_COMMIT = "INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
PUT_HEAD = """
INSERT INTO refs VALUES (?, 'branch', ?, ?)
ON CONFLICT (repo, kind, name) DO UPDATE SET target = excluded.target
"""


class File(NamedTuple):
    """One file of a commit."""

    oid: str
    """Git object id: of the content, or of its pointer when it is in LFS."""
    size: int
    """Bytes of the content."""
    sha256: str | None = None
    """Of the content, for a file in LFS."""

    @classmethod
    def in_lfs(cls, sha256: str, size: int) -> File:
        """The entry of a large content: git keeps a pointer to it."""
        return cls(git_oid(_pointer(sha256, size)), size, sha256)

    @property
    def pointer_size(self) -> int:
        """Bytes of the pointer to a file in LFS."""
        return len(_pointer(str(self.sha256), self.size))


Files = dict[str, File]
"""The files of a commit by path, in the order of their paths."""


class Commit(NamedTuple):
    """One commit; `files` is the whole tree, not the change."""

    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    files: Files


class Repo(NamedTuple):
    """One model repository."""

    id: str
    private: bool
    created: str


class Storage:
    """All that a hub keeps in the folder `root`.

    Blobs are written first and named by a transaction of the index after that: what the index
    names is always there.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.blobs = Blobs(root / "blobs")
        self._lock = threading.RLock()
        self._index = sqlite3.connect(
            root / "index.sqlite", timeout=30, isolation_level=None, check_same_thread=False
        )
        self._index.execute("PRAGMA foreign_keys = ON")
        self._index.executescript(SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._index.close()

    def create(self, repo_id: str, private: bool, commit: Commit) -> None:
        """A new repository with `commit` as the head of `main`; 409 when there is one already."""
        if not REPO_ID.fullmatch(repo_id):
            raise Refusal(400, f"'{repo_id}' is no valid repository id.")
        with self._transaction():
            if self._rows("SELECT 1 FROM repos WHERE id = ?", repo_id):
                raise Refusal(409, f"You already created this model repo: {repo_id}.")
            self._rows("INSERT INTO repos VALUES (?, ?, ?)", repo_id, private, commit.date)
            self._put(repo_id, "main", commit)

    def delete(self, repo_id: str) -> None:
        """Forget a repository; its blobs stay, as others may share them."""
        with self._transaction():
            self._rows("DELETE FROM repos WHERE id = ?", repo_id)

    def repo(self, repo_id: str) -> Repo | None:
        rows = self._rows("SELECT * FROM repos WHERE id = ?", repo_id)
        return Repo(rows[0][0], bool(rows[0][1]), rows[0][2]) if rows else None

    def heads(self) -> list[tuple[Repo, Commit]]:
        """Every repository, in the order of ids, with the head of its `main`."""
        rows = self._rows(HEADS)
        return [(Repo(row[0], bool(row[1]), row[2]), _commit(row[3:])) for row in rows]

    def refs(self, repo_id: str, kind: Literal["branch", "tag"]) -> dict[str, str]:
        """The commit of every branch or tag, by name."""
        query = "SELECT name, target FROM refs WHERE repo = ? AND kind = ? ORDER BY rowid"
        return dict(self._rows(query, repo_id, kind))

    def add_ref(self, repo_id: str, kind: Literal["branch", "tag"], name: str, oid: str) -> None:
        """A new branch or tag at commit `oid`; 409 when there is one of that name."""
        if not REF_NAME.fullmatch(name):
            raise Refusal(400, f"'{name}' is no valid name for a {kind}.")
        with self._transaction():
            if name in self.refs(repo_id, kind):
                raise Refusal(409, f"The {kind} '{name}' exists already.")
            self._rows("INSERT INTO refs VALUES (?, ?, ?, ?)", repo_id, kind, name, oid)

    def delete_ref(self, repo_id: str, kind: Literal["branch", "tag"], name: str) -> None:
        with self._transaction():
            if name not in self.refs(repo_id, kind):
                raise Refusal(404, f"There is no {kind} '{name}'.", "RevisionNotFound")
            query = "DELETE FROM refs WHERE repo = ? AND kind = ? AND name = ?"
            self._rows(query, repo_id, kind, name)

    def resolve(self, repo_id: str, revision: str) -> str:
        """The commit that a branch, a tag or the beginning of a commit's own oid names."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        known = {**self.refs(repo_id, "tag"), **self.refs(repo_id, "branch")}
        if name in known:
            return known[name]
        if COMMIT_OID.fullmatch(name):
            query = "SELECT oid FROM commits WHERE repo = ? AND oid LIKE ? || '%'"
            found = self._rows(query, repo_id, name)
            if len(found) == 1:
                return str(found[0][0])
        raise Refusal(404, f"There is no revision '{revision}'.", "RevisionNotFound")

    def commit_at(self, repo_id: str, revision: str) -> Commit:
        """The commit that `revision` names (see `resolve`)."""
        with self._lock:
            return self._commit_of(repo_id, self.resolve(repo_id, revision))

    def history(self, repo_id: str, revision: str) -> list[Commit]:
        """The commit that `revision` names and its ancestors, newest first."""
        with self._lock:
            names = {"repo": repo_id, "oid": self.resolve(repo_id, revision)}
            return [_commit(row) for row in self._index.execute(LINE_OF_COMMITS, names)]

    def commit(
        self,
        repo_id: str,
        branch: str,
        message: tuple[str, str],
        author: str,
        edit: Callable[[Files], Files],
        parent: str | None = None,
    ) -> str:
        """Put `edit(files of the head)` on `branch`; the new head's oid.

        Args:
            message: title and description.
            parent: the head that the caller has seen, or its beginning.

        Raises:
            Refusal: 404 when there is no such branch, 412 when its head is not `parent`.
        """
        with self._transaction():
            head = self.refs(repo_id, "branch").get(branch)
            if head is None:
                raise Refusal(404, f"There is no branch '{branch}'.", "RevisionNotFound")
            if parent is not None and not head.startswith(parent):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = edit(self._commit_of(repo_id, head).files)
            commit = new_commit(head, message, author, files)
            self._put(repo_id, branch, commit)
        return commit.oid

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and one at a time, among the threads and among processes."""
        with self._lock:
            self._index.execute("BEGIN IMMEDIATE")
            with self._index:
                yield

    def _rows(self, query: str, *values: object) -> list[tuple]:
        with self._lock:
            return self._index.execute(query, values).fetchall()

    def _commit_of(self, repo_id: str, oid: str) -> Commit:
        query = "SELECT * FROM commits WHERE repo = ? AND oid = ?"
        return _commit(self._rows(query, repo_id, oid)[0])

    def _put(self, repo_id: str, branch: str, commit: Commit) -> None:
        """Make `commit` the head of `branch`."""
        self._rows(PUT_COMMIT, repo_id, *commit[:-1], json.dumps(commit.files))
        self._rows(PUT_HEAD, repo_id, branch, commit.oid)


def new_commit(
    parent: str | None, message: tuple[str, str], author: str, files: Mapping[str, File]
) -> Commit:
    """A commit of now; as in git, its oid is a hash of all that it says."""
    title, description = message
    now = datetime.now(timezone.utc)
    date = f"{now:%Y-%m-%dT%H:%M:%S}.{now.microsecond // 1000:03d}Z"
    files = dict(sorted(files.items()))
    content = json.dumps([parent, title, description, author, now.isoformat(), files])
    oid = hashlib.sha1(content.encode()).hexdigest()
    return Commit(oid, parent, title, description, author, date, files)


def _commit(row: tuple) -> Commit:
    files = {path: File(*file) for path, file in json.loads(row[-1]).items()}
    return Commit._make((*row[1:-1], files))


def _pointer(sha256: str, size: int) -> bytes:
    """What git keeps of a file in LFS (github.com/git-lfs/git-lfs, docs/spec.md)."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return text.encode()
