"""One end of an HTTP/1.1 connection, read and written piece by piece."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import h11

CHUNK = 1 << 16


class Peer:
    """Who is at the other end of `connection`; bodies are never held as a whole.

    Args:
        role: ours: h11.CLIENT or h11.SERVER.
    """

    def __init__(self, connection: socket.socket, role: Any) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._http = h11.Connection(role)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def send(self, *events: h11.Event) -> None:
        for event in events:
            self._connection.sendall(self._http.send(event) or b"")

    def receive(self) -> Any:
        """The next event; what is not a final answer (1xx) is left out.

        Raises:
            ConnectionError, h11.ProtocolError: the other side went away or speaks no HTTP.
        """
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(self._connection.recv(CHUNK))
            elif not isinstance(event, h11.InformationalResponse):
                return event

    def body(self) -> Iterator[bytes]:
        while isinstance(event := self.receive(), h11.Data):
            yield bytes(event.data)

    def wait_for_end(self) -> None:
        """Say nothing until the other side goes away."""
        while self._connection.recv(CHUNK):
            pass

    def next_cycle(self) -> bool:
        """Whether the connection may carry another exchange, as both sides have said all."""
        states = self._http.our_state, self._http.their_state
        if states != (h11.DONE, h11.DONE):
            return False
        self._http.start_next_cycle()
        return True
