"""Routes about repositories as a whole: who asks, create, delete, list, describe."""

from __future__ import annotations

import re
from typing import Any

from gated_plugin.hub.local.call import Call
from gated_plugin.hub.local.front_matter import front_matter, tags
from gated_plugin.hub.local.messages import Json, Refusal, member
from gated_plugin.hub.local.storage import Commit, File, Repo, new_commit

PAGE = 1000
LIMIT = re.compile("[1-9][0-9]{0,8}")
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def whoami(call: Call) -> Json:
    user, role = call.access
    auth = {"type": "access_token", "accessToken": {"displayName": "local", "role": role}}
    return Json({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": auth})


def create(call: Call) -> Json:
    body, storage = call.json(), call.storage
    repo_id = "/".join(_owner_and_name(call, body))
    private = body.get("visibility") == "private" or bool(body.get("private"))
    files = {".gitattributes": File(storage.blobs.add_small(ATTRIBUTES), len(ATTRIBUTES))}
    first = new_commit(None, ("initial commit", ""), call.access.user, files)
    answer = {"url": call.url(repo_id), "name": repo_id}
    try:
        storage.create(repo_id, private, first)
    except Refusal as refusal:
        if refusal.status_code != 409:
            raise
        return Json({"error": refusal.detail, **answer}, 409)
    return Json(answer)


def delete(call: Call) -> Json:
    repo = call.repo(*_owner_and_name(call, call.json()))
    call.storage.delete(repo.id)
    return Json({})


def info(call: Call, repo: Repo, revision: str = "main") -> Json:
    commit = call.storage.commit_at(repo.id, revision)
    blobs = "blobs" in call.request.query_params
    return Json(_description(call, repo, commit, blobs))


def listing(call: Call) -> Json:
    """Models in the order of their ids; the next page begins after the last id of this one."""
    query = call.request.query_params
    wanted = {tag for tags in query.getlist("filter") for tag in tags.split(",")}
    limit = query.get("limit", str(PAGE))
    if not LIMIT.fullmatch(limit):
        raise Refusal(400, "`limit` is a whole number from 1.")
    page: list[dict[str, Any]] = []
    for repo, head in call.storage.heads():
        owner = repo.id.split("/")[0]
        if (
            (repo.private and call.access.role == "none")
            or repo.id <= query.get("cursor", "")
            or owner != query.get("author", owner)
            or query.get("search", "").lower() not in repo.id.lower()
        ):
            continue
        model = _description(call, repo, head)
        if not wanted <= set(model["tags"]):
            continue
        if len(page) == min(int(limit), PAGE):
            link = call.request.url.include_query_params(cursor=page[-1]["id"])
            return Json(page, headers={"Link": f'<{link}>; rel="next"'})
        page.append(model)
    return Json(page)


def validate_yaml(call: Call) -> Json:
    """Whether a card's metadata can be read: the client asks before it uploads anything."""
    try:
        front_matter(member(call.json(), "content", str))
    except ValueError as error:
        return Json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return Json({"errors": [], "warnings": []})


def _owner_and_name(call: Call, body: dict[str, Any]) -> tuple[str, str]:
    if body.get("type", "model") != "model":
        raise Refusal(400, "This hub holds models only: leave out `repo_type`.")
    return str(body.get("organization") or call.access.user), member(body, "name", str)


def _description(call: Call, repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    card = commit.files.get("README.md")
    data: dict[str, Any] = {}
    if card and card.sha256 is None:
        data = front_matter(call.storage.blobs.small(card.oid).read_text(errors="replace"))
    return {
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.oid,
        "private": repo.private,
        "gated": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": repo.created,
        "lastModified": commit.date,
        "tags": tags(data),
        "library_name": data.get("library_name"),
        "cardData": data,
        "siblings": [
            {"rfilename": path, **(_blob(file) if blobs else {})}
            for path, file in commit.files.items()
        ],
    }


def _blob(file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"blobId": file.oid, "size": file.size}
    if file.sha256:
        size = file.pointer_size
        entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": size}
    return entry
