"""A proxy that fails on demand and remembers what it was asked, and a local hub behind one."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

import h11
from peer import Peer

from gated_plugin.hub.local import Access, LocalHub

HOST = "127.0.0.1"


@dataclass
class Exchange:
    """One request as it came, and what became of it."""

    method: str
    path: str
    """Percent-encoded, without the query."""
    query: str = field(repr=False)
    """Of a signed address: its signature."""
    headers: Message = field(repr=False)
    status: int | None = None
    """Of the answer; None when there was none."""
    sent: int = 0
    """Bytes of the request's body."""
    received: int = 0
    """Bytes of the answer's body."""


@dataclass
class Fault:
    """What happens to some requests, and how often it will still happen."""

    method: str
    pattern: str
    """A regular expression that is searched in the path."""
    times: int = 1
    skip: int = 0
    """So many requests that fit go well first."""
    status: int | None = None
    """What to answer, with `headers` and `body`; None closes the connection instead."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "injected"}'
    stall: bool = False
    """Do not close the connection, but say nothing until the client gives up."""
    after_handling: bool = False
    """Do the work first, so that only its answer is lost or replaced."""
    drop_after_bytes: int | None = None
    """Break off after so many bytes: of the request's body; but of the answer to a `GET`, and with
    `after_handling` of any answer."""
    cut_to: int | None = None
    """Shorten the answer to so many bytes, and give that as its length."""
    flip_at: int | None = None
    """Change one bit in this byte of the answer."""
    meanwhile: Callable[[], object] | None = None
    """Do this before the request is handled, which itself goes well."""

    @property
    def place(self) -> Literal["before", "request", "after", "answer", "nowhere"]:
        """Before or after the hub handles the request, or within one of the two bodies."""
        if self.meanwhile is not None:
            return "nowhere"
        if self.cut_to is not None or self.flip_at is not None:
            return "answer"
        if self.drop_after_bytes is not None:
            return "answer" if self.method == "GET" or self.after_handling else "request"
        return "after" if self.after_handling else "before"

    def is_due(self, exchange: Exchange) -> bool:
        """Whether it happens to this exchange; counts down."""
        fits = self.method == exchange.method and re.search(self.pattern, exchange.path)
        if not fits or not self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True

    def strike(self, client: Peer, exchange: Exchange) -> None:
        """Answer in the hub's place, or break off."""
        if self.status is None:
            self._break_off(client)
            return
        headers = {**self.headers, "Content-Length": str(len(self.body))}
        client.send(h11.Response(status_code=self.status, headers=list(headers.items())))
        if exchange.method != "HEAD":
            client.send(h11.Data(data=self.body))
        client.send(h11.EndOfMessage())

    def _break_off(self, client: Peer) -> NoReturn:
        if self.stall:
            client.wait_for_end()
        raise ConnectionAbortedError("injected")

    def spoilt(self, body: Iterable[bytes], client: Peer) -> Iterator[bytes]:
        """`body` as the fault leaves it."""
        start = 0
        for data in body:
            if self.flip_at is not None and 0 <= (at := self.flip_at - start) < len(data):
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            if self.drop_after_bytes is not None and start + len(data) >= self.drop_after_bytes:
                yield data[: self.drop_after_bytes - start]
                self._break_off(client)
            yield data if self.cut_to is None else data[: max(self.cut_to - start, 0)]
            start += len(data)

    def framed(self, answer: h11.Response) -> h11.Response:
        """`answer` with the length that `spoilt` leaves."""
        headers = [
            (name, b"%d" % min(int(value), self.cut_to))
            if name == b"content-length" and self.cut_to is not None
            else (name, value)
            for name, value in answer.headers
        ]
        return h11.Response(status_code=answer.status_code, headers=headers)


HARMLESS = Fault("", "", times=0, meanwhile=lambda: None)


class FaultyProxy:
    """An HTTP proxy on loopback in front of the hub at `upstream`.

    Requests and answers pass as they are, the header `Host` too: a hub that makes its addresses
    from it gets its uploads by the proxy as well.
    """

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self.upstream = address.hostname, address.port
        self.requests: list[Exchange] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server((HOST, 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://{HOST}:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop()

    def fail(self, method: str, pattern: str, **how: Any) -> Fault:
        """Let the next requests whose path matches `pattern` fail; `how` are fields of `Fault`."""
        fault = Fault(method, pattern, **how)
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Let nothing fail from now on."""
        with self._lock:
            self._faults.clear()

    def seen(self, method: str, pattern: str) -> list[Exchange]:
        """The requests so far whose path matches `pattern`."""
        return [
            seen
            for seen in list(self.requests)
            if seen.method == method and re.search(pattern, seen.path)
        ]

    def note(self, head: h11.Request) -> tuple[Exchange, Fault]:
        """Remember a request that has come; also the fault that strikes it."""
        headers = Message()
        for name, value in head.headers.raw_items():
            headers[name.decode("latin-1")] = value.decode("latin-1")
        target = urlsplit(head.target.decode("latin-1"))
        exchange = Exchange(head.method.decode("ascii"), target.path, target.query, headers)
        with self._lock:
            self.requests.append(exchange)
            return exchange, next((f for f in self._faults if f.is_due(exchange)), HARMLESS)


class FaultyHub(LocalHub):
    """A local hub whose `url` is that of a `FaultyProxy` in front of it."""

    def __init__(self, root: Path, tokens: Mapping[str, Access] | None = None) -> None:
        super().__init__(root, tokens=tokens)
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> FaultyHub:
        return self.start()

    def start(self) -> FaultyHub:
        super().start()
        proxy = self._opened.enter_context(FaultyProxy(self.url))
        self.url = proxy.url
        self.requests, self.seen = proxy.requests, proxy.seen
        self.fail, self.heal = proxy.fail, proxy.heal
        return self

    def stop(self) -> None:
        self._opened.close()
        super().stop()


class _Handler(BaseRequestHandler):
    """One connection of a client; the hub gets a new one for each request."""

    proxy: FaultyProxy

    def handle(self) -> None:
        with contextlib.suppress(OSError, h11.ProtocolError):
            client = Peer(self.request, h11.SERVER)
            while isinstance(head := client.receive(), h11.Request):
                exchange, fault = self.proxy.note(head)
                if fault.meanwhile:
                    fault.meanwhile()
                if fault.place == "before":
                    self._refuse(client, exchange, fault)
                else:
                    self._pass(client, head, exchange, fault)
                if not client.next_cycle():
                    return

    def _refuse(self, client: Peer, exchange: Exchange, fault: Fault) -> None:
        if fault.status is not None:
            exchange.sent = sum(map(len, client.body()))
        exchange.status = fault.status
        fault.strike(client, exchange)

    def _pass(self, client: Peer, head: h11.Request, exchange: Exchange, fault: Fault) -> None:
        with Peer(socket.create_connection(self.proxy.upstream), h11.CLIENT) as hub:
            hub.send(head)
            body = client.body()
            for data in fault.spoilt(body, client) if fault.place == "request" else body:
                exchange.sent += len(data)
                # A hub may answer and go away before it has read all.
                with contextlib.suppress(OSError):
                    hub.send(h11.Data(data=data))
            with contextlib.suppress(OSError):
                hub.send(h11.EndOfMessage())
            answer = hub.receive()
            if fault.place == "after":
                exchange.received = sum(map(len, hub.body()))
                exchange.status = fault.status
                fault.strike(client, exchange)
                return
            exchange.status = answer.status_code
            client.send(fault.framed(answer))
            body = hub.body()
            for data in fault.spoilt(body, client) if fault.place == "answer" else body:
                exchange.received += len(data)
                client.send(h11.Data(data=data))
            client.send(h11.EndOfMessage())


class _Server(ThreadingTCPServer):
    """Threads that `stop` can end, although a client keeps its connections open."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
