"""Routes of the large file storage: where to upload, the uploads, and their completion.

The protocol is git-lfs's batch API (github.com/git-lfs/git-lfs, docs/api/batch.md) with the
Hub's `multipart` transfer. An upload goes to a signed URL, so it carries no token.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from gated_plugin.hub.local.commits import SHA256
from gated_plugin.hub.local.messages import Refusal, Request, Response, member
from gated_plugin.hub.local.repos import visible

if TYPE_CHECKING:
    from gated_plugin.hub.local.server import LocalHub


def batch(hub: LocalHub, request: Request, owner: str, name: str) -> Response:
    """For each content its upload URLs; none for one that is stored already."""
    visible(hub, request, owner, name.removesuffix(".git"))
    request.require_write()
    body = request.json()
    if body.get("operation") != "upload":
        raise Refusal(400, "Only the operation 'upload' is served: download by '/resolve/'.")
    multipart = "multipart" in body.get("transfers", [])
    objects = []
    for wanted in member(body, "objects", list):
        sha256, size = member(wanted, "oid", str), member(wanted, "size", int)
        if not SHA256.fullmatch(sha256) or size < 0:
            raise Refusal(400, "An object needs its sha256 as `oid` and its `size` in bytes.")
        answer: dict[str, Any] = {"oid": sha256, "size": size, "authenticated": True}
        if not hub.storage.blobs.large(sha256).exists():
            upload = _parts if multipart and size > hub.multipart_above else _whole
            verify = {"href": f"{hub.url}/api/lfs/{sha256}/verify"}
            answer["actions"] = {"upload": upload(hub, sha256, size), "verify": verify}
        objects.append(answer)
    return Response.json({"transfer": "multipart" if multipart else "basic", "objects": objects})


def put_whole(hub: LocalHub, request: Request, sha256: str) -> Response:
    size = _signed_size(hub, request, sha256, "whole")
    hub.storage.blobs.add_large(sha256, size, request.body)
    return Response(headers={"ETag": f'"{sha256}"'})


def put_part(hub: LocalHub, request: Request, sha256: str, number: str) -> Response:
    _signed_size(hub, request, sha256, number)
    found = hub.storage.blobs.add_part(sha256, int(number), hub.part_size, request.body)
    return Response(headers={"ETag": f'"{found}"'})


def complete(hub: LocalHub, request: Request, sha256: str) -> Response:
    size = _signed_size(hub, request, sha256, "complete")
    parts = member(request.json(), "parts", list)
    hub.storage.blobs.join_parts(sha256, size, [member(part, "partNumber", int) for part in parts])
    return Response.json({})


def verify(hub: LocalHub, request: Request, sha256: str) -> Response:
    """Whether the whole content has arrived."""
    request.require_write()
    size = member(request.json(), "size", int)
    place = hub.storage.blobs.large(sha256)
    if not SHA256.fullmatch(sha256) or not place.exists() or place.stat().st_size != size:
        raise Refusal(404, f"The content {sha256} is not here: upload it again.")
    return Response.json({})


def _whole(hub: LocalHub, sha256: str, size: int) -> dict[str, Any]:
    return {"href": _signed_url(hub, f"api/lfs/{sha256}", sha256, size, "whole")}


def _parts(hub: LocalHub, sha256: str, size: int) -> dict[str, Any]:
    """A URL for each part, in a header as the client expects it, and one to call at the end."""
    count = -(-size // hub.part_size)
    header = {"chunk_size": str(hub.part_size)}
    for number in map(str, range(1, count + 1)):
        path = f"api/lfs/{sha256}/parts/{number}"
        header[number] = _signed_url(hub, path, sha256, size, number)
    end = _signed_url(hub, f"api/lfs/{sha256}/complete", sha256, size, "complete")
    return {"href": end, "header": header}


def _signed_url(hub: LocalHub, path: str, sha256: str, size: int, purpose: str) -> str:
    query = {"size": size, "signature": _signature(hub, sha256, str(size), purpose)}
    return f"{hub.url}/{path}?{urlencode(query)}"


def _signature(hub: LocalHub, *signed: str) -> str:
    return hmac.digest(hub.secret, " ".join(signed).encode(), "sha256").hex()


def _signed_size(hub: LocalHub, request: Request, sha256: str, purpose: str) -> int:
    """The size that the URL was signed for; 403 when we did not sign it."""
    size = request.query.get("size", [""])[-1]
    given = request.query.get("signature", [""])[-1]
    if not hmac.compare_digest(given.encode(), _signature(hub, sha256, size, purpose).encode()):
        raise Refusal(403, "This upload URL was not signed by the running hub: ask for a new one.")
    return int(size)
