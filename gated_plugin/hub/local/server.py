"""The hub itself: its folder, its tokens, and its life as a server on loopback."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from types import TracebackType
from typing import Any

from gated_plugin.errors import GatedError
from gated_plugin.hub.local.access import Access, kept_token
from gated_plugin.hub.local.messages import Refusal, Request, Response
from gated_plugin.hub.local.protocol import Handler
from gated_plugin.hub.local.storage import Storage

HOST = "127.0.0.1"


class LocalHub:
    """A Hugging Face Hub of models for one person, on 127.0.0.1 alone.

    `huggingface_hub` talks to it as to the public one: `HfApi(endpoint=hub.url, token=hub.token)`,
    or `HF_ENDPOINT` and `HF_TOKEN`. Everybody on the machine reads its public repositories, any
    token its private ones, and a write token writes under every name of an owner. Everything
    lies in one folder and is there again after a restart or a kill.

    Args:
        root: the folder; made when it is missing.
        port: where to listen; 0 takes a free one.
        tokens: what each token opens. By default there is one write token for the user `local`,
            made at random once and kept in `root/token`, which only its owner may read.

    A subclass may change what happens on the wire by `intercept` and `deliver`.
    """

    multipart_above = 5_000_000_000
    """Uploads above this size (bytes) go in parts, if the client can do that."""
    part_size = 500_000_000
    """Size of such a part (bytes)."""

    url: str
    """`http://127.0.0.1:<port>`, known once the hub is started."""
    token: str
    """The (first) write token; empty when there is none."""

    def __init__(
        self, root: Path, port: int = 0, tokens: Mapping[str, Access] | None = None
    ) -> None:
        self.storage = Storage(root)
        self.secret = secrets.token_bytes(32)
        self._port = port
        self._tokens = dict(tokens or {kept_token(root / "token"): Access("local", "write")})
        self._server: _Server | None = None
        writing = (token for token, access in self._tokens.items() if access.role == "write")
        self.token = next(writing, "")

    def start(self) -> LocalHub:
        """Listen, in threads of its own.

        Raises:
            GatedError: the port is taken.
        """
        try:
            self._server = _Server((HOST, self._port), type("Handler", (Handler,), {"hub": self}))
        except OSError as error:
            self.stop()
            raise GatedError(
                f"The local hub cannot listen on port {self._port} ({error.strerror}): "
                "choose another with --port."
            ) from error
        self.url = f"http://{HOST}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Close every connection and the index; what was answered is stored."""
        if self._server is not None:
            self._server.stop()
        self.storage.close()

    def __enter__(self) -> LocalHub:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def access(self, authorization: str) -> Access | None:
        """Whose token an `Authorization` header holds; None for no header.

        Raises:
            Refusal: 401 when the token is unknown.
        """
        if not authorization:
            return None
        access = self._tokens.get(authorization.removeprefix("Bearer ").strip())
        if access is None:
            # With this very sentence the client does not mistake it for a missing repository.
            raise Refusal(401, "Invalid credentials in Authorization header")
        return access

    def intercept(self, request: Request) -> Response | None:
        """Called before a request is handled; does nothing here.

        A subclass may return a response, which is sent instead of handling the request, replace
        `request.body` by another iterator over it, or raise `ConnectionAbortedError`, which
        closes the connection without an answer.
        """
        return None

    def deliver(self, request: Request, response: Response) -> Response:
        """Called when a request has been handled, with what is about to be sent; changes nothing here.

        A subclass may return another response, or raise `ConnectionAbortedError`: then the work
        is done and its answer lost. An error raised by a response's `body` cuts it at that byte.
        """
        return response


class _Server(ThreadingHTTPServer):
    """Threads that `stop` can end, although a client keeps its connections open."""

    # Another hub on this port must be an error, not a partner.
    allow_reuse_port = False
    # A snapshot download and its retries connect at once.
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        self._open: dict[Any, threading.Thread] = {}
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer would look up the name of 127.0.0.1, which may hang offline.
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        arguments = request, client_address
        thread = threading.Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self._open[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        super().shutdown_request(request)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection, thread in list(self._open.items()):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)
