"""HTTP: the table of routes, and the handler that reads requests and sends responses."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from gated_plugin.hub.local import commits, content, lfs, repos, revisions
from gated_plugin.hub.local.messages import CHUNK, Refusal, Request, Response

if TYPE_CHECKING:
    from gated_plugin.hub.local.server import LocalHub

logger = logging.getLogger(__name__)
Route = Callable[..., Response]

MODEL = "api/models/*/*"
ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("GET", "api/whoami-v2", repos.whoami),
    ("POST", "api/validate-yaml", repos.validate_yaml),
    ("POST", "api/repos/create", repos.create),
    ("DELETE", "api/repos/delete", repos.delete),
    ("GET", "api/models", repos.listing),
    ("GET", MODEL, repos.info),
    ("GET", f"{MODEL}/revision/*", repos.info),
    ("GET", f"{MODEL}/tree/*/**", content.tree),
    ("POST", f"{MODEL}/paths-info/*", content.paths_info),
    ("GET", f"{MODEL}/refs", revisions.refs),
    ("GET", f"{MODEL}/commits/*", revisions.commits),
    ("POST", f"{MODEL}/tag/*", revisions.create_tag),
    ("DELETE", f"{MODEL}/tag/*", revisions.delete_tag),
    ("POST", f"{MODEL}/branch/*", revisions.create_branch),
    ("DELETE", f"{MODEL}/branch/*", revisions.delete_branch),
    ("POST", f"{MODEL}/preupload/*", commits.preupload),
    ("POST", f"{MODEL}/commit/*", commits.commit),
    ("POST", "*/*/info/lfs/objects/batch", lfs.batch),
    ("PUT", "api/lfs/*", lfs.put_whole),
    ("PUT", "api/lfs/*/parts/*", lfs.put_part),
    ("POST", "api/lfs/*/complete", lfs.complete),
    ("POST", "api/lfs/*/verify", lfs.verify),
    ("GET", "*/*/resolve/*/**", content.resolve),
    ("GET", "api/models/*", repos.missing),
    ("GET", "api/models/*/revision/*", repos.missing),
    ("GET", "api/datasets/**", repos.missing),
    ("GET", "datasets/**", repos.missing),
    ("GET", "*/resolve/*/**", repos.missing),
)
"""Method (`GET` serves `HEAD` too), path and function; `*` is one part, `**` the rest, if any."""


def answer(hub: LocalHub, request: Request) -> Response:
    """What the hub answers to `request`; refusals and our own mistakes are answers too."""
    try:
        request.access = hub.access(request.headers.get("Authorization", ""))
        method = "GET" if request.method == "HEAD" else request.method
        for routed, pattern, route in ROUTES:
            found = _match(pattern.split("/"), request.segments)
            if found is not None and routed == method:
                return route(hub, request, *found)
        raise Refusal(404, f"The local hub does not serve {method} {request.path}.")
    except Refusal as refusal:
        return Response.refusal(refusal)
    except ConnectionError:
        raise
    except OSError as error:
        return Response.refusal(Refusal(507, f"The local hub cannot store this: {error.strerror}."))
    except Exception:
        logger.exception("%s %s", request.method, request.path)
        return Response.refusal(Refusal(500, "The local hub made a mistake: see its log."))


def _match(pattern: list[str], segments: list[str]) -> list[str] | None:
    """The segments that stand for the pattern's stars; None when it does not fit."""
    rest: list[str] = []
    if pattern[-1] == "**":
        pattern = pattern[:-1]
        segments, rest = segments[: len(pattern)], segments[len(pattern) :]
    if len(pattern) != len(segments):
        return None
    pairs = list(zip(pattern, segments, strict=True))
    if any(part not in ("*", segment) for part, segment in pairs):
        return None
    return [segment for part, segment in pairs if part == "*"] + rest


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: LocalHub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the usual line has the query in it, and so a signature."""

    def _exchange(self) -> None:
        body = self._body()
        request = Request(self.command, self.path, self.headers, body)
        try:
            response = self.hub.intercept(request) or answer(self.hub, request)
            for _ in body:
                pass
            response = self.hub.deliver(request, response)
            self._send(response)
            logger.info("%s %s %d", request.method, request.path, response.status)
        except ConnectionError as error:
            self.close_connection = True
            logger.info("%s %s cut: %s", request.method, request.path, error)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _exchange

    def _body(self) -> Iterator[bytes]:
        """The body as it arrives, by `Content-Length` or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            yield from self._exactly(self._number(self.headers.get("Content-Length", "0"), 10))
            return
        while size := self._number(self.rfile.readline(64).split(b";")[0].decode("latin-1"), 16):
            yield from self._exactly(size)
            self.rfile.readline(64)
        while self.rfile.readline(CHUNK).strip():
            pass

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            data = self.rfile.read1(min(size, CHUNK))
            if not data:
                raise ConnectionAbortedError("the client went away within its body")
            size -= len(data)
            yield data

    def _number(self, text: str, base: int) -> int:
        with contextlib.suppress(ValueError):
            if (number := int(text, base)) >= 0:
                return number
        raise ConnectionAbortedError("the length of the body is no number")

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(response.length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for chunk in response.body:
                self.wfile.write(chunk)
