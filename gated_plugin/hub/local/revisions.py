"""Routes about refs and history."""

from __future__ import annotations

from gated_plugin.hub.local.call import Call
from gated_plugin.hub.local.messages import Json, Refusal, member
from gated_plugin.hub.local.storage import Repo


def refs(call: Call, repo: Repo) -> Json:
    def named(found: dict[str, str], folder: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid}
            for name, oid in found.items()
        ]

    return Json(
        {
            "branches": named(call.storage.refs(repo.id, "branch"), "heads"),
            "tags": named(call.storage.refs(repo.id, "tag"), "tags"),
            "converts": [],
            "pullRequests": [],
        }
    )


def commits(call: Call, repo: Repo, revision: str) -> Json:
    return Json(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in call.storage.history(repo.id, revision)
        ]
    )


def create_tag(call: Call, repo: Repo, revision: str) -> Json:
    tag = member(call.json(), "tag", str)
    call.storage.add_ref(repo.id, "tag", tag, call.storage.resolve(repo.id, revision))
    return Json({})


def delete_tag(call: Call, repo: Repo, tag: str) -> Json:
    call.storage.delete_ref(repo.id, "tag", tag)
    return Json({})


def create_branch(call: Call, repo: Repo, branch: str) -> Json:
    start = str(call.json().get("startingPoint", "main"))
    call.storage.add_ref(repo.id, "branch", branch, call.storage.resolve(repo.id, start))
    return Json({})


def delete_branch(call: Call, repo: Repo, branch: str) -> Json:
    if branch == "main":
        raise Refusal(403, "The branch 'main' cannot be deleted.")
    call.storage.delete_ref(repo.id, "branch", branch)
    return Json({})
