"""The hub as an ASGI application: the table of routes, and what surrounds each of them."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gated_plugin.hub.local import commits, content, lfs, repos, revisions
from gated_plugin.hub.local.access import Role
from gated_plugin.hub.local.call import Call
from gated_plugin.hub.local.messages import Json, Refusal, check_size

if TYPE_CHECKING:
    from gated_plugin.hub.local.server import LocalHub

logger = logging.getLogger(__name__)
Answer = Callable[..., Any]

MODEL = "/api/models/{owner}/{name}"
ROUTES: tuple[tuple[str, str, Role, Answer], ...] = (
    ("GET", "/api/whoami-v2", "read", repos.whoami),
    ("POST", "/api/validate-yaml", "none", repos.validate_yaml),
    ("POST", "/api/repos/create", "write", repos.create),
    ("DELETE", "/api/repos/delete", "write", repos.delete),
    ("GET", "/api/models", "none", repos.listing),
    ("GET", MODEL, "none", repos.info),
    ("GET", MODEL + "/revision/{revision}", "none", repos.info),
    ("GET", MODEL + "/tree/{revision}", "none", content.tree),
    ("GET", MODEL + "/tree/{revision}/{folder:path}", "none", content.tree),
    ("POST", MODEL + "/paths-info/{revision}", "none", content.paths_info),
    ("GET", MODEL + "/refs", "none", revisions.refs),
    ("GET", MODEL + "/commits/{revision}", "none", revisions.commits),
    ("POST", MODEL + "/tag/{revision}", "write", revisions.create_tag),
    ("DELETE", MODEL + "/tag/{tag}", "write", revisions.delete_tag),
    ("POST", MODEL + "/branch/{branch}", "write", revisions.create_branch),
    ("DELETE", MODEL + "/branch/{branch}", "write", revisions.delete_branch),
    ("POST", MODEL + "/preupload/{revision}", "write", commits.preupload),
    ("POST", MODEL + "/commit/{branch}", "write", commits.commit),
    ("POST", "/{owner}/{name}.git/info/lfs/objects/batch", "write", lfs.batch),
    ("PUT", "/api/lfs/{sha256}", "none", lfs.put_whole),
    ("PUT", "/api/lfs/{sha256}/parts/{number}", "none", lfs.put_part),
    ("POST", "/api/lfs/{sha256}/complete", "none", lfs.complete),
    ("POST", "/api/lfs/{sha256}/verify", "write", lfs.verify),
    ("GET", "/{owner}/{name}/resolve/{revision}/{path:path}", "none", content.resolve),
    ("GET", "/api/models/{_}", "none", Call.missing),
    ("GET", "/api/models/{_}/revision/{_revision}", "none", Call.missing),
    ("GET", "/api/datasets/{_:path}", "none", Call.missing),
    ("GET", "/datasets/{_:path}", "none", Call.missing),
    ("GET", "/{_}/resolve/{_path:path}", "none", Call.missing),
)
"""Method (`GET` serves `HEAD` too), path, the role it takes, and the function. Below `api/lfs` no
token comes along: there the URL is signed. An `{owner}/{name}` must be visible to who asks."""
REASONS: dict[type[Exception], tuple[int, str]] = {
    ClientDisconnect: (400, "The client went away within its body."),
    # JSON can escape half a letter (`\\ud800`), which no file and no database holds.
    UnicodeEncodeError: (400, "The request holds text that is not Unicode."),
    OSError: (507, "The local hub cannot use its folder: {0.strerror}."),
    sqlite3.OperationalError: (507, "The local hub cannot use its folder: {}."),
}
"""What a request or the machine can cause: the status and the sentence that answer it."""


def application(hub: LocalHub) -> ASGIApp:
    """What answers `hub`'s requests, and logs each answer without the query: it may be signed."""
    routes = [
        Route(path, _endpoint(hub, role, function), methods=[method])
        for method, path, role, function in ROUTES
    ]
    handlers = dict.fromkeys((HTTPException, *REASONS, Exception), _refused)
    router = Starlette(routes=routes, exception_handlers=handlers)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # Routes match the path as it came: a `%2F` belongs to a name, which is decoded later.
        scope["path"] = scope["raw_path"].decode()

        async def logged(message: Message) -> None:
            if message["type"] == "http.response.start":
                logger.info("%s %s %d", scope["method"], scope["path"], message["status"])
            await send(message)

        await router(scope, receive, logged)

    return app


def _endpoint(hub: LocalHub, role: Role, function: Answer) -> Answer:
    """`function` as Starlette calls it: one that blocks in a thread, when the body is there."""

    async def endpoint(request: Request) -> Response:
        call = Call(hub, hub.access(request), request)
        named: dict[str, Any] = {
            key: unquote(text) for key, text in request.path_params.items() if key[0] != "_"
        }
        if "owner" in named:
            named["repo"] = await run_in_threadpool(
                call.repo, named.pop("owner"), named.pop("name")
            )
        call.access.require(role)
        if iscoroutinefunction(function):
            return await function(call, **named)
        call.body = await _body(request)
        return await run_in_threadpool(function, call, **named)

    return endpoint


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        check_size(len(body))
    return bytes(body)


async def _refused(request: Request, error: Any) -> Response:
    """An error as the client expects it: JSON, and the same in `X-Error-*` headers."""
    path = request.scope["path"]
    if isinstance(error, HTTPException) and not isinstance(error, Refusal):
        error = Refusal(error.status_code, f"The local hub does not serve {request.method} {path}.")
    for kind, (status, sentence) in REASONS.items():
        if isinstance(error, kind):
            error = Refusal(status, sentence.format(error))
    if not isinstance(error, Refusal):
        logger.error("%s %s", request.method, path, exc_info=error)
        error = Refusal(500, "The local hub made a mistake: see its log.")
    return Json({"error": error.detail}, error.status_code, error.headers)
