"""Routes about refs and history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gated_plugin.hub.local.messages import Refusal, Request, Response, member
from gated_plugin.hub.local.repos import visible

if TYPE_CHECKING:
    from gated_plugin.hub.local.server import LocalHub


def refs(hub: LocalHub, request: Request, owner: str, name: str) -> Response:
    repo = visible(hub, request, owner, name)

    def named(found: dict[str, str], folder: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid}
            for name, oid in found.items()
        ]

    return Response.json(
        {
            "branches": named(hub.storage.refs(repo.id, "branch"), "heads"),
            "tags": named(hub.storage.refs(repo.id, "tag"), "tags"),
            "converts": [],
            "pullRequests": [],
        }
    )


def commits(hub: LocalHub, request: Request, owner: str, name: str, revision: str) -> Response:
    repo = visible(hub, request, owner, name)
    return Response.json(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in hub.storage.history(repo.id, revision)
        ]
    )


def create_tag(hub: LocalHub, request: Request, owner: str, name: str, revision: str) -> Response:
    repo = visible(hub, request, owner, name)
    request.require_write()
    tag = member(request.json(), "tag", str)
    hub.storage.add_ref(repo.id, "tag", tag, hub.storage.resolve(repo.id, revision))
    return Response.json({})


def delete_tag(hub: LocalHub, request: Request, owner: str, name: str, tag: str) -> Response:
    repo = visible(hub, request, owner, name)
    request.require_write()
    hub.storage.delete_ref(repo.id, "tag", tag)
    return Response.json({})


def create_branch(hub: LocalHub, request: Request, owner: str, name: str, branch: str) -> Response:
    repo = visible(hub, request, owner, name)
    request.require_write()
    start = str(request.json().get("startingPoint", "main"))
    hub.storage.add_ref(repo.id, "branch", branch, hub.storage.resolve(repo.id, start))
    return Response.json({})


def delete_branch(hub: LocalHub, request: Request, owner: str, name: str, branch: str) -> Response:
    repo = visible(hub, request, owner, name)
    request.require_write()
    if branch == "main":
        raise Refusal(403, "The branch 'main' cannot be deleted.")
    hub.storage.delete_ref(repo.id, "branch", branch)
    return Response.json({})
