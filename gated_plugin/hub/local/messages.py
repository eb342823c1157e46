"""What goes in and out of a local hub: a request, its response, and a refusal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from gated_plugin.hub.local.access import Access

CHUNK = 1 << 20
T = TypeVar("T")


class Refusal(Exception):
    """The hub says no: an HTTP status, a sentence, and the code by which the client tells why."""

    def __init__(
        self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})


@dataclass
class Request:
    """One request, its body still to be read."""

    method: str
    target: str
    """Path and query, percent-encoded as they came."""
    headers: Message
    body: Iterator[bytes]
    """The body in chunks, from the socket: read once."""
    access: Access | None = None
    """Whose token came along; None for an anonymous request."""

    @property
    def path(self) -> str:
        """The path alone, percent-encoded; unlike the query it holds no signature."""
        return urlsplit(self.target).path

    @property
    def segments(self) -> list[str]:
        """The parts of the path, split first and decoded then: a `%2F` belongs to a name."""
        return [unquote(part) for part in self.path.strip("/").split("/")]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def read(self) -> bytes:
        return b"".join(self.body)

    def json(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            Refusal: 400 when it is something else.
        """
        return json_object(self.read())

    def require_write(self) -> str:
        """The user behind a write token.

        Raises:
            Refusal: 401 without a token, 403 with one that only reads.
        """
        if self.access is None:
            raise Refusal(401, "This needs a token: log in with a write token of this hub.")
        if self.access.role != "write":
            raise Refusal(403, "This token can only read: use a write token.")
        return self.access.user


@dataclass(frozen=True)
class Response:
    """One answer; a `HEAD` sends it without its body."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Iterable[bytes] = ()
    length: int = 0
    """Bytes in `body`."""

    @classmethod
    def json(
        cls, value: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        """`value` as JSON; dates and the like, which YAML knows and JSON does not, as text."""
        data = json.dumps(value, default=str).encode()
        return cls(
            status, {"Content-Type": "application/json", **(headers or {})}, (data,), len(data)
        )

    @classmethod
    def file(cls, path: Path, size: int, headers: Mapping[str, str], span: str = "") -> Response:
        """The file at `path`, or the part of it that the `Range` header `span` asks for.

        Raises:
            Refusal: 416 when the range begins past the end.
        """
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        start, stop, status = 0, size, 200
        if bounds := _bounds(span, size):
            start, stop = bounds
            status, headers["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{size}"
        return cls(status, headers, _slice(path, start, stop), stop - start)

    @classmethod
    def refusal(cls, refusal: Refusal) -> Response:
        """`refusal` as the client expects it: JSON, and the same in `X-Error-*` headers."""
        one_line = " ".join(refusal.message.split()).encode("ascii", "replace").decode()
        headers = {"X-Error-Message": one_line, **refusal.headers}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        return cls.json({"error": refusal.message}, refusal.status, headers)


def json_object(text: bytes) -> dict[str, Any]:
    """`text` as a JSON object; 400 when it is something else."""
    try:
        value = json.loads(text or b"{}")
    except ValueError as error:
        raise Refusal(400, f"The request is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise Refusal(400, "The request is not a JSON object.")
    return value


def member(value: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """`value[name]`, which must be of `kind`; 400 when it is not."""
    found = value.get(name)
    if not isinstance(found, kind):
        raise Refusal(400, f"The request needs `{name}` of type {kind.__name__}.")
    return found


def _bounds(span: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for a form that a server may ignore (RFC 9110)."""
    first, dash, last = span.removeprefix("bytes=").partition("-")
    if not span.startswith("bytes=") or not dash or not (first + last).isdecimal():
        return None
    if not first:
        start, stop = max(size - int(last), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    if start >= size:
        headers = {"Content-Range": f"bytes */{size}"}
        raise Refusal(416, "The range begins past the end of the file.", headers=headers)
    return (start, stop) if start < stop else None


def _slice(path: Path, start: int, stop: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop and (data := file.read(min(CHUNK, stop - start))):
            start += len(data)
            yield data
