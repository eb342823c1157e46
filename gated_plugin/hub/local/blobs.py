"""File contents on disk, each named by its hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gated_plugin.hub.local.messages import CHUNK, Refusal

DAY = 86_400


def git_oid(content: bytes) -> str:
    """The name git gives `content`: SHA-1 over `blob <size>\\0<content>`."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Blobs:
    """A store of contents under `root`: small ones by git object id, large ones by sha256.

    A content is written beside its place, checked, forced to disk and then renamed, so what is
    found under a hash is whole even after a kill or a power cut.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._partial = root / "partial"
        self._parts = root / "parts"
        for folder in (self._partial, self._parts):
            folder.mkdir(parents=True, exist_ok=True)
            self._sweep(folder)

    def small(self, oid: str) -> Path:
        return self._root / "git" / oid[:2] / oid

    def large(self, sha256: str) -> Path:
        return self._root / "sha256" / sha256[:2] / sha256

    def add_small(self, content: bytes) -> str:
        """Store `content`; its git object id."""
        oid = git_oid(content)
        if not self.small(oid).exists():
            with self._written([content]) as (file, _):
                _move(file, self.small(oid))
        return oid

    def add_large(self, sha256: str, size: int, chunks: Iterable[bytes]) -> None:
        """Store what `chunks` yields.

        Raises:
            Refusal: 400 when it has another size (bytes) or hash than promised.
        """
        with self._written(_at_most(size, chunks)) as (file, found):
            if file.tell() != size or found != sha256:
                raise Refusal(400, f"The upload is not the promised {size} bytes of {sha256}.")
            _move(file, self.large(sha256))

    def add_part(self, sha256: str, number: int, limit: int, chunks: Iterable[bytes]) -> str:
        """Keep part `number` (at most `limit` bytes) of a large content; the part's own sha256."""
        with self._written(_at_most(limit, chunks)) as (file, found):
            _move(file, self._parts / sha256 / str(number))
        return found

    def join_parts(self, sha256: str, size: int, numbers: list[int]) -> None:
        """Make the parts `numbers` one large content.

        Raises:
            Refusal: 400 when a part is missing or the whole is not what was promised.
        """
        if self.large(sha256).exists():
            return
        paths = [self._parts / sha256 / str(number) for number in sorted(numbers)]
        if not all(path.exists() for path in paths):
            raise Refusal(400, f"A part of {sha256} has not been uploaded.")
        self.add_large(sha256, size, _contents(paths))
        shutil.rmtree(self._parts / sha256, ignore_errors=True)

    @contextmanager
    def _written(self, chunks: Iterable[bytes]) -> Iterator[tuple[IO[bytes], str]]:
        """A closed-for-writing partial file with `chunks` in it, and its sha256; removed at the end."""
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=self._partial, delete=False) as file:
            try:
                for chunk in chunks:
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                yield file, digest.hexdigest()
            finally:
                Path(file.name).unlink(missing_ok=True)

    def _sweep(self, folder: Path) -> None:
        """Remove what a kill left behind; a day's grace for another hub on the same folder."""
        for path in folder.iterdir():
            if path.stat().st_mtime < time.time() - DAY:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _move(file: IO[bytes], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file.name, place)


def _at_most(size: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        size -= len(chunk)
        if size < 0:
            raise Refusal(400, "The upload is longer than promised.")
        yield chunk


def _contents(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                yield data
