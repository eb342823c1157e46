"""The hub itself: its folder, its tokens, and its life as a server."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

import uvicorn
from starlette.requests import Request

from gated_plugin.errors import GatedError
from gated_plugin.hub.local.access import ANYBODY, Access, kept_token
from gated_plugin.hub.local.app import application
from gated_plugin.hub.local.messages import Refusal
from gated_plugin.hub.local.storage import Storage


class LocalHub:
    """A Hugging Face Hub of models for one person, on this machine alone unless told otherwise.

    `huggingface_hub` talks to it as to the public one: `HfApi(endpoint=hub.url, token=hub.token)`,
    or `HF_ENDPOINT` and `HF_TOKEN`. Who reaches it reads its public repositories, with any token
    the private ones too, and with a write token writes under every name of an owner. Everything
    lies in one folder and is there again after a restart or a kill.

    Args:
        root: the folder; made when it is missing.
        port: where to listen; 0 takes a free one.
        tokens: what each token opens. By default there are two for the user `local`, made at
            random once: a write token, kept in `root/token`, and one that only reads, kept in
            `root/read-token`; nobody else may read these files.
        host: the address to listen on; `0.0.0.0` is every address of this machine.
    """

    multipart_above = 5_000_000_000
    """Uploads above this size (bytes) go in parts, if the client can do that."""
    part_size = 500_000_000
    """Size of such a part (bytes)."""

    url: str
    """`http://<host>:<port>`, known once the hub is started."""
    token: str
    """The (first) write token; empty when there is none."""

    def __init__(
        self,
        root: Path,
        port: int = 0,
        tokens: Mapping[str, Access] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.storage = Storage(root)
        self.secret = secrets.token_bytes(32)
        self._address = host, port
        self._tokens = dict(tokens or _kept_tokens(root))
        writing = (token for token, access in self._tokens.items() if access.role == "write")
        self.token = next(writing, "")
        config = uvicorn.Config(
            application(self),
            http="h11",  # also where others are installed: what runs is what is tested
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            timeout_keep_alive=60,  # longer than clients keep a connection: no request meets its end
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def start(self) -> LocalHub:
        """Listen, in threads of its own.

        Raises:
            GatedError: the port is taken.
        """
        try:
            listener = socket.create_server(self._address, backlog=128)
        except OSError as error:
            self.stop()
            host, port = self._address
            reason = str(error.strerror).split(" (")[0]
            raise GatedError(
                f"The local hub cannot listen on port {port} of {host} ({reason}): "
                "choose another --port or --host."
            ) from error
        # asyncio does so for sockets of its own making; without it an answer takes 40 ms more.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = listener.getsockname()
        self.url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        served = self._serve(listener)
        self._thread = threading.Thread(target=asyncio.run, args=(served,), daemon=True)
        self._thread.start()
        return self

    async def _serve(self, listener: socket.socket) -> None:
        await self._server.serve(sockets=[listener])
        for connection in self._server.server_state.connections.copy():
            connection.transport.abort()  # the client stopped reading in the middle of an answer

    def stop(self) -> None:
        """Close every connection and the index; what was answered is stored."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self.storage.close()

    def __enter__(self) -> LocalHub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def access(self, request: Request) -> Access:
        """What the request's token opens.

        Raises:
            Refusal: 401 when the token is unknown.
        """
        if "Authorization" not in request.headers:
            return ANYBODY
        token = request.headers["Authorization"].removeprefix("Bearer ").strip()
        if token not in self._tokens:
            # With this very sentence the client does not mistake it for a missing repository.
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self._tokens[token]


def _kept_tokens(root: Path) -> dict[str, Access]:
    return {
        kept_token(root / "token"): Access("local", "write"),
        kept_token(root / "read-token"): Access("local", "read"),
    }
