"""A server that answers one after another as it is told, by the rules or against them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """Bytes of a response, and how they are sent."""

    body: bytes = b""
    status: str = "200 OK"
    headers: dict[str, Any] = field(default_factory=dict)
    length: int | None = None
    """`Content-Length`; that of the body by default, -1 for none."""
    piece: int = 1 << 30
    """Bytes that are sent at once, every 10 ms."""

    def send(self, connection: socket.socket) -> None:
        length = len(self.body) if self.length is None else self.length
        headers = {**({"Content-Length": length} if length >= 0 else {}), **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"HTTP/1.1 {self.status}\r\nConnection: close\r\n{lines}\r\n".encode())
        for start in range(0, len(self.body), self.piece):
            connection.sendall(self.body[start : start + self.piece])
            if len(self.body) > self.piece:
                time.sleep(0.01)


@contextmanager
def odd_server(*answers: Answer) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the requests' heads so far; the last answer is given for ever."""
    heads: list[str] = []

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                head = connection.recv(1 << 16).decode()
                if not head:
                    return
                heads.append(head)
                with suppress(OSError):
                    answers[min(len(heads), len(answers)) - 1].send(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        finally:
            socket.create_connection(listener.getsockname()).close()
            thread.join()
