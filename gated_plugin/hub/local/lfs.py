"""Routes of the large file storage: where to upload, the uploads, and their completion.

The protocol is git-lfs's batch API (github.com/git-lfs/git-lfs, docs/api/batch.md) with the
Hub's `multipart` transfer. An upload goes to a signed URL, so it carries no token.
"""

from __future__ import annotations

import hmac
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from gated_plugin.hub.local.blobs import SHA256, Incoming
from gated_plugin.hub.local.call import Call
from gated_plugin.hub.local.messages import Json, Refusal, member
from gated_plugin.hub.local.storage import Repo

MOST_PARTS = 10_000


def batch(call: Call, repo: Repo) -> Json:
    """For each content its upload URLs; none for one that is stored already."""
    body = call.json()
    if body.get("operation") != "upload":
        raise Refusal(400, "Only the operation 'upload' is served: download by '/resolve/'.")
    multipart = "transfers" in body and "multipart" in member(body, "transfers", list)
    objects = []
    for wanted in member(body, "objects", list):
        sha256, size = member(wanted, "oid", str), member(wanted, "size", int)
        if not SHA256.fullmatch(sha256) or not 0 <= size <= MOST_PARTS * call.hub.part_size:
            raise Refusal(400, "An object needs its sha256 as `oid` and its `size` in bytes.")
        answer: dict[str, Any] = {"oid": sha256, "size": size, "authenticated": True}
        if not call.storage.blobs.large(sha256).exists():
            upload = _parts if multipart and size > call.hub.multipart_above else _whole
            verify = {"href": call.url(f"api/lfs/{sha256}/verify")}
            answer["actions"] = {"upload": upload(call, sha256, size), "verify": verify}
        objects.append(answer)
    return Json({"transfer": "multipart" if multipart else "basic", "objects": objects})


async def put_whole(call: Call, sha256: str) -> Response:
    with call.storage.blobs.incoming(_signed_size(call)) as content:
        await _receive(call, content)
        await run_in_threadpool(call.storage.blobs.keep_large, content, sha256)
    return Response(headers={"ETag": f'"{sha256}"'})


async def put_part(call: Call, sha256: str, number: str) -> Response:
    _signed_size(call)
    with call.storage.blobs.incoming(call.hub.part_size) as content:
        await _receive(call, content)
        await run_in_threadpool(content.move, call.storage.blobs.part(sha256, int(number)))
    return Response(headers={"ETag": f'"{content.sha256}"'})


async def _receive(call: Call, content: Incoming) -> None:
    async for chunk in call.request.stream():
        await run_in_threadpool(content.write, chunk)


def complete(call: Call, sha256: str) -> Json:
    size = _signed_size(call)
    parts = [member(part, "partNumber", int) for part in member(call.json(), "parts", list)]
    call.storage.blobs.join_parts(sha256, size, parts)
    return Json({})


def verify(call: Call, sha256: str) -> Json:
    """Whether the whole content has arrived."""
    size = member(call.json(), "size", int)
    place = call.storage.blobs.large(sha256)
    if not SHA256.fullmatch(sha256) or not place.exists() or place.stat().st_size != size:
        raise Refusal(404, f"The content {sha256} is not here: upload it again.")
    return Json({})


def _whole(call: Call, sha256: str, size: int) -> dict[str, Any]:
    return {"href": _signed(call, f"api/lfs/{sha256}", size)}


def _parts(call: Call, sha256: str, size: int) -> dict[str, Any]:
    """A URL for each part, in a header as the client expects it, and one to call at the end."""
    header = {"chunk_size": str(call.hub.part_size)}
    for number in range(1, -(-size // call.hub.part_size) + 1):
        header[str(number)] = _signed(call, f"api/lfs/{sha256}/parts/{number}", size)
    return {"href": _signed(call, f"api/lfs/{sha256}/complete", size), "header": header}


def _signed(call: Call, path: str, size: int) -> str:
    """The URL by which a content of `size` bytes, or a part of it, may be sent to `path`."""
    return call.url(f"{path}?size={size}&signature={_signature(call, f'/{path}', str(size))}")


def _signature(call: Call, path: str, size: str) -> str:
    return hmac.digest(call.hub.secret, f"{path}?size={size}".encode(), "sha256").hex()


def _signed_size(call: Call) -> int:
    """The size that the URL was signed for; 403 when we did not sign it."""
    query = call.request.query_params
    size, given = query.get("size", ""), query.get("signature", "")
    wanted = _signature(call, call.request.scope["path"], size)
    if not hmac.compare_digest(given.encode(), wanted.encode()):
        raise Refusal(403, "This upload URL was not signed by the running hub: ask for a new one.")
    return int(size)
