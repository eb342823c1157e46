"""Routes about repositories as a whole: who asks, create, delete, list, describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlencode

from gated_plugin.hub.local.front_matter import front_matter, tags
from gated_plugin.hub.local.messages import Refusal, Request, Response, member
from gated_plugin.hub.local.storage import Commit, File, Repo, new_commit

if TYPE_CHECKING:
    from gated_plugin.hub.local.server import LocalHub

PAGE = 1000
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def visible(hub: LocalHub, request: Request, owner: str, name: str) -> Repo:
    """The repository `owner/name`.

    Raises:
        Refusal: when there is none, or it is private and the request anonymous: 401 without a
            token and 404 with one, as on the Hub, and never telling which of the two it was.
    """
    repo = hub.storage.repo(f"{owner}/{name}")
    if repo is None or (repo.private and request.access is None):
        missing(hub, request)
    return repo


def missing(hub: LocalHub, request: Request, *_: str) -> NoReturn:
    """For ids that this hub never has, such as datasets and names without an owner."""
    status = 404 if request.access else 401
    raise Refusal(status, "There is no such repository for you.", "RepoNotFound")


def whoami(hub: LocalHub, request: Request) -> Response:
    if request.access is None:
        raise Refusal(401, "This needs a token.")
    user, role = request.access
    token = {"displayName": "local", "role": role}
    return Response.json(
        {
            "type": "user",
            "id": user,
            "name": user,
            "fullname": user,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def create(hub: LocalHub, request: Request) -> Response:
    user, body = request.require_write(), request.json()
    repo_id = _repo_id(user, body)
    private = body.get("visibility") == "private" or bool(body.get("private"))
    files = {".gitattributes": File(hub.storage.blobs.add_small(ATTRIBUTES), len(ATTRIBUTES))}
    answer = {"url": f"{hub.url}/{repo_id}", "name": repo_id}
    try:
        hub.storage.create(repo_id, private, new_commit(None, ("initial commit", ""), user, files))
    except Refusal as refusal:
        if refusal.status != 409:
            raise
        return Response.json({"error": refusal.message, **answer}, 409)
    return Response.json(answer)


def delete(hub: LocalHub, request: Request) -> Response:
    repo_id = _repo_id(request.require_write(), request.json())
    visible(hub, request, *repo_id.split("/", 1))
    hub.storage.delete(repo_id)
    return Response.json({})


def info(
    hub: LocalHub, request: Request, owner: str, name: str, revision: str = "main"
) -> Response:
    repo = visible(hub, request, owner, name)
    commit = hub.storage.commit_at(repo.id, revision)
    return Response.json(_description(hub, repo, commit, blobs="blobs" in request.query))


def listing(hub: LocalHub, request: Request) -> Response:
    """Models in the order of their ids; the next page begins after the last id of this one."""
    query = {key: values[-1] for key, values in request.query.items()}
    wanted = {tag for tags in request.query.get("filter", []) for tag in tags.split(",")}
    limit = query.get("limit", str(PAGE))
    if not limit.isdecimal() or limit == "0":
        raise Refusal(400, "`limit` is a whole number from 1.")
    page: list[dict[str, Any]] = []
    for repo, head in hub.storage.heads():
        owner = repo.id.split("/")[0]
        if (
            (repo.private and request.access is None)
            or repo.id <= query.get("cursor", "")
            or owner != query.get("author", owner)
            or query.get("search", "").lower() not in repo.id.lower()
        ):
            continue
        model = _description(hub, repo, head)
        if not wanted <= set(model["tags"]):
            continue
        if len(page) == min(int(limit), PAGE):
            rest = urlencode({**request.query, "cursor": page[-1]["id"]}, doseq=True)
            return Response.json(
                page, headers={"Link": f'<{hub.url}/api/models?{rest}>; rel="next"'}
            )
        page.append(model)
    return Response.json(page)


def validate_yaml(hub: LocalHub, request: Request) -> Response:
    """Whether a card's metadata can be read: the client asks before it uploads anything."""
    try:
        front_matter(member(request.json(), "content", str))
    except ValueError as error:
        return Response.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return Response.json({"errors": [], "warnings": []})


def _repo_id(user: str, body: dict[str, Any]) -> str:
    if body.get("type", "model") != "model":
        raise Refusal(400, "This hub holds models only: leave out `repo_type`.")
    return f"{body.get('organization') or user}/{member(body, 'name', str)}"


def _description(hub: LocalHub, repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    card = commit.files.get("README.md")
    data: dict[str, Any] = {}
    if card and card.sha256 is None:
        data = front_matter(hub.storage.blobs.small(card.oid).read_text(errors="replace"))
    return {
        "_id": repo.id,
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.oid,
        "private": repo.private,
        "gated": False,
        "disabled": False,
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
        entry["lfs"] = {
            "sha256": file.sha256,
            "size": file.size,
            "pointerSize": file.pointer_size,
        }
    return entry
