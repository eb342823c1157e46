"""File contents on disk, each named by its hash."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gated_plugin.hub.local.messages import Refusal

DAY = 86_400
SHA256 = re.compile(r"[0-9a-f]{64}")


def git_oid(content: bytes) -> str:
    """The name git gives `content`: SHA-1 over `blob <size>\\0<content>`."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Incoming:
    """A content on its way in: its first bytes, in a file beside their place."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.missing = size
        """Bytes that may still come."""
        self._file = file
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Add `chunk`; 400 when that is more than was promised."""
        self.missing -= len(chunk)
        if self.missing < 0:
            raise Refusal(400, "The upload is longer than promised.")
        self._digest.update(chunk)
        self._file.write(chunk)

    def move(self, place: Path) -> None:
        """Force it to disk and rename it to `place`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._file.name, place)


class Blobs:
    """A store of contents under `root`: small ones by git object id, large ones by sha256.

    A content is written beside its place, checked, forced to disk and then renamed, so what is
    found under a hash is whole even after a kill or a power cut.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        for folder in (root / "partial", root / "parts"):
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)

    def small(self, oid: str) -> Path:
        return self._root / "git" / oid[:2] / oid

    def large(self, sha256: str) -> Path:
        return self._root / "sha256" / sha256[:2] / sha256

    def part(self, sha256: str, number: int) -> Path:
        """A part of a large content that is not whole yet."""
        return self._root / "parts" / sha256 / str(number)

    @contextmanager
    def incoming(self, size: int) -> Iterator[Incoming]:
        """Room for a content of at most `size` bytes; what was not moved is removed at the end."""
        with tempfile.NamedTemporaryFile(dir=self._root / "partial", delete=False) as file:
            try:
                yield Incoming(file, size)
            finally:
                Path(file.name).unlink(missing_ok=True)

    def add_small(self, content: bytes) -> str:
        """Store `content`; its git object id."""
        oid = git_oid(content)
        if not self.small(oid).exists():
            with self.incoming(len(content)) as incoming:
                incoming.write(content)
                incoming.move(self.small(oid))
        return oid

    def keep_large(self, content: Incoming, sha256: str) -> None:
        """Store what has come in; 400 when it has another size or hash than promised."""
        if content.missing or content.sha256 != sha256:
            raise Refusal(400, f"The upload is not the promised content {sha256}.")
        content.move(self.large(sha256))

    def join_parts(self, sha256: str, size: int, numbers: list[int]) -> None:
        """Make the parts `numbers` one large content.

        Raises:
            Refusal: 400 when a part is missing or the whole is not what was promised.
        """
        if self.large(sha256).exists():
            return
        paths = [self.part(sha256, number) for number in sorted(numbers)]
        if not all(path.exists() for path in paths):
            raise Refusal(400, f"A part of {sha256} has not been uploaded.")
        with self.incoming(size) as content:
            for path in paths:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, content, 1 << 20)
            self.keep_large(content, sha256)
        shutil.rmtree(self.part(sha256, 1).parent, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what a kill left behind; a day's grace for another hub on the same folder."""
    for path in folder.iterdir():
        if path.stat().st_mtime < time.time() - DAY:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
