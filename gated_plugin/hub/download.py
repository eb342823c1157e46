"""One file from the Hub: resumed where it stopped, and checked before it gets its name."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import gated_plugin
from gated_plugin.errors import GatedError
from gated_plugin.hub import client
from gated_plugin.hub.redaction import redacted
from gated_plugin.progress import byte_size
from gated_plugin.tensor_files import LARGEST_HEADER, LENGTH_BYTES

if TYPE_CHECKING:
    from gated_plugin.hub.repository import RemoteFile, Repository

STEP = 1 << 20
"""Bytes that `client.SILENCE_SECONDS` must bring at least, and after which patience begins anew: so
a server that drips, or drops each connection, is given up too."""

BLOCK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WrongContent(Exception):
    """What arrived is not what the Hub promised."""


def download(
    repository: Repository,
    sha: str,
    file: RemoteFile,
    target: Path,
    progress: Callable[[int], None] = lambda here: None,
) -> None:
    """Write a file of the commit `sha` to `target`, which holds all of it, or what it did before.

    What arrived of a download that broke off lies beside `target`, and is gone on with.

    Args:
        progress: takes the bytes of the file that are here.

    Raises:
        GatedError: the Hub failed for good, twice sent other bytes than it promised, or there is
            no room.
    """
    partial = target.with_name(f".{target.name}.{file.hash[:16]}.incomplete")
    with _alone(partial, file):
        if is_here(target, file):
            progress(file.size)
            return
        for _ in range(2):
            with Incomplete(partial, file) as incomplete:
                try:
                    _fill(incomplete, repository, sha, progress)
                    incomplete.finish(target)
                    return
                except WrongContent as wrong:
                    reason = wrong
            partial.unlink()
    raise GatedError(
        f"{file.path} came from {repository.id} twice with other content than the Hub promised "
        f"({reason}); run the same command again, and if that does not help, tell its owner."
    )


def is_here(path: Path, file: RemoteFile) -> bool:
    """Whether `path` holds the content of `file`, by its hash."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = file.digest()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest() == file.hash


class Incomplete:
    """The beginning of a file, on disk, and its hash so far."""

    def __init__(self, path: Path, file: RemoteFile) -> None:
        self.path, self.file = path, file
        self.size = 0
        self._digest = file.digest()
        for block in _blocks(path) if path.exists() else ():
            self._digest.update(block)
            self.size += len(block)

    def __enter__(self) -> Incomplete:
        with self._on_disk():
            self._out = self.path.open("ab", buffering=0)
        if self.size > self.file.size:
            self.restart()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._out.close()

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        return self.file.size - self.size

    def append(self, data: bytes) -> None:
        """The next bytes.

        Raises:
            WrongContent: they are more than the Hub promised.
            GatedError: there is no room, or it is a safetensors file with a header out of bounds.
        """
        if len(data) > self.missing:
            raise WrongContent(f"more than its {self.file.size:,} bytes")
        begun, rest = self.size, memoryview(data)
        with self._on_disk():
            while rest:
                written = self._out.write(rest)
                self.size, rest = self.size + written, rest[written:]
        self._digest.update(data)
        if begun < LENGTH_BYTES <= self.size and self.file.path.endswith(".safetensors"):
            self._check_header_length()

    def restart(self) -> None:
        """Forget what arrived."""
        self._out.truncate(0)
        self.size = 0
        self._digest = self.file.digest()

    def finish(self, target: Path) -> None:
        """Give the file its name.

        Raises:
            WrongContent: its hash is another.
        """
        if self._digest.hexdigest() != self.file.hash:
            raise WrongContent("another hash")
        with self._on_disk():
            os.fsync(self._out.fileno())
            self._out.close()
            self.path.replace(target)

    def _check_header_length(self) -> None:
        """Before gigabytes follow."""
        with self.path.open("rb") as start:
            length = int.from_bytes(start.read(LENGTH_BYTES), "little")
        if length > min(LARGEST_HEADER, self.file.size - LENGTH_BYTES):
            self.restart()
            raise GatedError(
                f"{self.file.path} says that its header has {length:,} bytes, so it is no sound "
                "safetensors file and was not fetched; tell its owner."
            )

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _on_disk_failed(error, self.path.parent, self.file, self.missing) from error


def _fill(
    incomplete: Incomplete, repository: Repository, sha: str, progress: Callable[[int], None]
) -> None:
    """Receive what is missing, in as many requests as it takes."""
    patience, best = client.Patience(), incomplete.size
    progress(incomplete.size)
    while incomplete.missing:
        try:
            _receive(incomplete, repository, sha, progress)
            continue
        except client.failures() as failure:
            if incomplete.size >= best + STEP:
                patience, best = client.Patience(), incomplete.size
            wait = patience.wait_after(failure)
            if wait is None:
                action = f"download {incomplete.file.path} from"
                sentence = client.explained(failure, action, repository.id)
                raise sentence from redacted(failure)
        time.sleep(wait)


def _receive(
    incomplete: Incomplete, repository: Repository, sha: str, progress: Callable[[int], None]
) -> None:
    """One request for what is missing.

    Raises:
        httpx2.HTTPError: it broke off.
    """
    import httpx2
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    api, path = repository.api, incomplete.file.path
    url = hf_hub_url(repository.id, path, revision=sha, endpoint=api.endpoint)
    headers = build_hf_headers(
        token=api.token,
        library_name="gated-plugin",
        library_version=gated_plugin.__version__,
        headers={"Accept-Encoding": "identity"},
    )
    if incomplete.size:
        headers["Range"] = f"bytes={incomplete.size}-"
    silence = min(constants.HF_HUB_DOWNLOAD_TIMEOUT, client.SILENCE_SECONDS)
    # httpx2 takes the token out where it is sent to another server.
    with get_session().stream("GET", url, headers=headers, timeout=silence) as answer:
        if answer.status_code != 416:
            hf_raise_for_status(answer)
        _position(incomplete, answer.status_code, answer.headers)
        for data in _at_pace(answer.iter_raw()):
            incomplete.append(data)
            progress(incomplete.size)
    if incomplete.missing:
        raise httpx2.RemoteProtocolError(f"{path} ended too early")


def _position(incomplete: Incomplete, status: int, headers: Mapping[str, str]) -> None:
    """Make `incomplete` ready for the body that follows.

    Raises:
        WrongContent: the Hub's file is shorter than promised.
        httpx2.RemoteProtocolError: the body is no part of the file.
    """
    import httpx2

    path, size = incomplete.file.path, incomplete.file.size
    if status == 416:
        raise WrongContent(f"less than its {size:,} bytes")
    if "text/html" in headers.get("Content-Type", "") and not path.endswith((".html", ".htm")):
        raise httpx2.RemoteProtocolError(f"a web page came in place of {path}")
    length, coding = headers.get("Content-Length"), headers.get("Content-Encoding", "identity")
    given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if status == 206 and given and int(given[1]) == incomplete.size:
        sound = given[2] in ("*", str(size))
    else:
        sound = status == 200 and length in (None, str(size))
    if not sound or coding != "identity":
        raise httpx2.RemoteProtocolError(f"something else came in place of {path}")
    if status == 200 and incomplete.size:
        incomplete.restart()


def _at_pace(body: Iterator[bytes]) -> Iterator[bytes]:
    """`body`, as long as it brings `STEP` bytes in `client.SILENCE_SECONDS`."""
    import httpx2

    came, since = 0, time.monotonic()
    for data in body:
        yield data
        came += len(data)
        if came >= STEP:
            came, since = 0, time.monotonic()
        elif time.monotonic() - since > client.SILENCE_SECONDS:
            raise httpx2.ReadTimeout(f"only {byte_size(came)} in {client.SILENCE_SECONDS:.0f} s")


@contextlib.contextmanager
def _alone(partial: Path, file: RemoteFile) -> Iterator[None]:
    """Keep other processes from writing to `partial`; the lock of a killed one is free at once."""
    from huggingface_hub.utils import WeakFileLock

    lock = partial.with_suffix(".lock")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        locked = contextlib.ExitStack()
        locked.enter_context(WeakFileLock(lock))
    except OSError as error:
        raise _on_disk_failed(error, partial.parent, file, file.size) from error
    with locked:
        yield
        # Who waits for it finds the file complete; after a failure it stays for the next try.
        with contextlib.suppress(OSError):
            lock.unlink()


def _on_disk_failed(error: OSError, folder: Path, file: RemoteFile, missing: int) -> GatedError:
    if error.errno in FULL:
        return GatedError(
            f"There is no room in {folder} for the other {byte_size(missing)} of {file.path}; make "
            "some and run the same command again, which goes on where it stopped."
        )
    return GatedError(
        f"{file.path} cannot be written to {folder} ({error.strerror or error}); mend that and run "
        "the same command again."
    )


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as content:
        while block := content.read(BLOCK):
            yield block
