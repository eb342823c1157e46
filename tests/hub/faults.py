"""A local hub that fails on demand and remembers what it was asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path

from gated_plugin.hub.local import Access, LocalHub, Request, Response


@dataclass
class Exchange:
    """One request as it came, and what became of it."""

    method: str
    path: str
    """Percent-encoded, without the query."""
    headers: Message = field(repr=False)
    status: int | None = None
    """Of the answer; None when there was none."""


@dataclass
class Fault:
    """What `FaultyHub.fail` was told, and how often it will still happen."""

    method: str
    pattern: str
    status: int | None
    times: int
    after_handling: bool
    drop_after_bytes: int | None
    headers: Mapping[str, str]
    body: bytes

    @property
    def late(self) -> bool:
        """Whether it happens after the hub has done its work."""
        return self.after_handling or (self.drop_after_bytes is not None and self.method == "GET")

    def response(self, status: int) -> Response:
        return Response(status, self.headers, (self.body,), len(self.body))


class FaultyHub(LocalHub):
    """A `LocalHub` for tests of what goes wrong between it and its client."""

    def __init__(
        self, root: Path, port: int = 0, tokens: Mapping[str, Access] | None = None
    ) -> None:
        super().__init__(root, port, tokens)
        self.requests: list[Exchange] = []
        self._faults: list[Fault] = []
        self._faults_lock = threading.Lock()
        self._running: dict[int, Exchange] = {}

    def fail(
        self,
        method: str,
        pattern: str,
        *,
        status: int | None = None,
        times: int = 1,
        after_handling: bool = False,
        drop_after_bytes: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b'{"error": "injected"}',
    ) -> None:
        """Let the next `times` requests whose path matches `pattern` fail.

        Args:
            status: what to answer, with `headers` and `body`; None closes the connection instead.
            after_handling: do the work first, so that only its answer is lost or replaced.
            drop_after_bytes: close the connection after so many bytes: of the answer to a `GET`,
                of the request's body for every other method.
        """
        fault = Fault(
            method, pattern, status, times, after_handling, drop_after_bytes, headers or {}, body
        )
        with self._faults_lock:
            self._faults.append(fault)

    def seen(self, method: str, pattern: str) -> list[Exchange]:
        """The requests so far whose path matches `pattern`."""
        return [
            seen
            for seen in list(self.requests)
            if seen.method == method and re.search(pattern, seen.path)
        ]

    def intercept(self, request: Request) -> Response | None:
        exchange = Exchange(request.method, request.path, request.headers)
        self.requests.append(exchange)
        self._running[threading.get_ident()] = exchange
        fault = self._due(request, late=False)
        if fault is None:
            return None
        if fault.status is not None:
            return fault.response(fault.status)
        if fault.drop_after_bytes is None:
            raise ConnectionAbortedError("injected")
        request.body = _cut(request.body, fault.drop_after_bytes)
        return None

    def deliver(self, request: Request, response: Response) -> Response:
        fault = self._due(request, late=True)
        if fault is not None and fault.drop_after_bytes is not None:
            response = replace(response, body=_cut(response.body, fault.drop_after_bytes))
        elif fault is not None and fault.status is not None:
            response = fault.response(fault.status)
        elif fault is not None:
            raise ConnectionAbortedError("injected")
        self._running[threading.get_ident()].status = response.status
        return response

    def _due(self, request: Request, late: bool) -> Fault | None:
        with self._faults_lock:
            for fault in self._faults:
                fits = fault.method == request.method and re.search(fault.pattern, request.path)
                if fits and fault.times > 0 and fault.late == late:
                    fault.times -= 1
                    return fault
        return None


def _cut(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes of `chunks`, then the end of the connection."""
    for chunk in chunks:
        if len(chunk) >= size:
            yield chunk[:size]
            raise ConnectionAbortedError("injected")
        size -= len(chunk)
        yield chunk
