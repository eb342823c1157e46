"""A hub, a run and a place to pull to, with what a command does there and what it leaves."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from faults import FaultyProxy
from gated_hub_process import Ended
from huggingface_hub import close_session
from processes import Client, Server
from pytest import MonkeyPatch
from surroundings import TOKENS, WRITER, Surroundings, gated_hub, trust

from gated_plugin.hub.local import LocalHub

REPO = "alice/books"
Tree = dict[str, str]
"""Hash of each file by its path: sha256, or git's for a small file on the hub."""


@dataclass
class World:
    """What is in `folder`, of which each test has its own: `hub`, `run`, `pulled` and `home`."""

    folder: Path
    hub: LocalHub | Server
    proxy: FaultyProxy
    """By which commands reach the hub."""

    def words(self, command: str) -> list[object]:
        if command == "push":
            return ["push", self.folder / "run", "--repo", REPO, "--json"]
        return ["pull", REPO, "--out", self.folder / "pulled", "--json"]

    def do(self, command: str) -> Ended:
        return gated_hub(*self.words(command))

    def start(self, command: str) -> Client:
        """`do` in a process of its own."""
        return Client(Surroundings(self.proxy.url, self.folder / "home"), *self.words(command))

    def start_other(self) -> Client:
        """Somebody else pushes another SAE to the same repository, past the proxy."""
        return Client(
            Surroundings(self.hub.url, self.folder / "home of other"),
            *("push", self.folder / "run of other", "--repo", REPO),
        )

    def head(self) -> str | None:
        """The commit that `main` is at; None without a repository."""
        try:
            found: str = json.loads(self._ask(f"api/models/{REPO}"))["sha"]
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None
        return found

    def result(self, command: str) -> Tree:
        """What the command changes: the files of the repository, or those that were pulled."""
        return files_in(self.folder / "pulled") if command == "pull" else self._published()

    def run_files(self) -> Tree:
        """What must never be lost."""
        files = files_in(self.folder / "run")
        return {path: oid for path, oid in files.items() if not path.startswith("publication")}

    def _published(self) -> Tree:
        """The head's files, each of which has the hash that the hub states."""
        head = self.head()
        if head is None:
            return {}
        entries = json.loads(self._ask(f"api/models/{REPO}/tree/{head}?recursive=true"))
        files = [entry for entry in entries if entry["type"] == "file"]
        tree = {file["path"]: file.get("lfs", file)["oid"] for file in files}
        for path, expected in tree.items():
            content = self._ask(f"{REPO}/resolve/{head}/{path}")
            blob = b"blob %d\0" % len(content) + content
            found = hashlib.sha256(content).hexdigest(), hashlib.sha1(blob).hexdigest()
            assert expected in found, f"{path} on the hub is damaged"
        # The hub's own, from the making of the repository.
        tree.pop(".gitattributes")
        return tree

    def _ask(self, path: str) -> bytes:
        headers = {"Authorization": f"Bearer {WRITER}"}
        request = urllib.request.Request(f"{self.hub.url}/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


@contextmanager
def world(folder: Path, *, apart: bool = False, silence: float = 20.0) -> Iterator[World]:
    """The world in `folder`, this process surrounded by it.

    Args:
        apart: whether the hub is a process of its own.
        silence: seconds until a request without an answer is given up.
    """
    root = folder / "hub"
    with (
        Server(root) if apart else LocalHub(root, tokens=TOKENS) as hub,
        FaultyProxy(hub.url) as proxy,
        MonkeyPatch.context() as patch,
    ):
        Surroundings(proxy.url, folder / "home", silence=silence).enter(patch)
        trust(patch)
        yield World(folder, hub, proxy)
        close_session()


def files_in(folder: Path) -> Tree:
    """sha256 of each file that is not hidden."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }
