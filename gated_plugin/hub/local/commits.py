"""Routes that make a commit: which way each file goes, then the commit itself."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from functools import partial
from pathlib import PurePosixPath

from starlette.concurrency import run_in_threadpool

from gated_plugin.hub.local.blobs import SHA256, Blobs
from gated_plugin.hub.local.call import Call
from gated_plugin.hub.local.front_matter import front_matter
from gated_plugin.hub.local.messages import Json, Refusal, check_size, json_object, member
from gated_plugin.hub.local.storage import COMMIT_OID, File, Files, Repo

LARGE = 10_000_000
"""Bytes above which a file goes to LFS, whatever it is."""
Change = tuple[str, File | None]
"""A path and what is put there; None deletes it, and all that lies below one that ends with `/`."""


def preupload(call: Call, repo: Repo, revision: str) -> Json:
    """Whether each file goes to LFS, and the hash of what is there now: an equal one is skipped."""
    present = call.storage.commit_at(repo.id, revision).files
    answer = []
    for file in member(call.json(), "files", list):
        path, size = repo_path(member(file, "path", str)), member(file, "size", int)
        large = path.endswith(".safetensors") or size > LARGE
        entry = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in present:
            entry["oid"] = present[path].sha256 or present[path].oid
        answer.append(entry)
    return Json({"files": answer})


async def commit(call: Call, repo: Repo, branch: str) -> Json:
    """One commit out of ndjson: a header, then a line per change.

    Small contents are stored line by line, so a commit of many files needs the memory of one.
    """
    lines = _lines(call.request.stream())
    first = json_object(await anext(lines, b""))
    if first.get("key") != "header":
        raise Refusal(400, "A commit begins with its header.")
    header = member(first, "value", dict)
    parent = header.get("parentCommit")
    if parent is not None and not COMMIT_OID.fullmatch(member(header, "parentCommit", str)):
        raise Refusal(400, "`parentCommit` is no commit oid.")
    message = member(header, "summary", str), str(header.get("description") or "")
    changes = [await run_in_threadpool(_change, call.storage.blobs, line) async for line in lines]
    edit, user = partial(_changed, changes), call.access.user
    branch = branch.removeprefix("refs/heads/")
    put = call.storage.commit
    oid = await run_in_threadpool(put, repo.id, branch, message, user, edit, parent)
    url = call.url(f"{repo.id}/commit/{oid}")
    return Json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def repo_path(path: str) -> str:
    """`path`, if a checkout may hold it.

    Raises:
        Refusal: 400 when it could lead out of the folder or into git's own.
    """
    if "\\" in path or not path.isprintable() or {"", ".", "..", ".git"} & {*path.split("/")}:
        raise Refusal(400, f"'{path}' is no valid path in a repository.")
    return path


def _change(blobs: Blobs, line: bytes) -> Change:
    """What one line of a commit asks for; its content is stored."""
    change = json_object(line)
    key, value = member(change, "key", str), member(change, "value", dict)
    path = member(value, "path", str)
    if key == "deletedFolder":
        return repo_path(path.rstrip("/")) + "/", None
    if key == "deletedFile":
        return repo_path(path), None
    if key == "file":
        return repo_path(path), _small(blobs, path, member(value, "content", str))
    if key == "lfsFile":
        return repo_path(path), _large(blobs, path, member(value, "oid", str))
    raise Refusal(400, f"A commit has no line '{key}'.")


def _small(blobs: Blobs, path: str, content: str) -> File:
    try:
        data = base64.b64decode(content, validate=True)
        if path == "README.md":
            front_matter(data.decode(errors="replace"))
    except ValueError as error:
        raise Refusal(400, f"'{path}': {error}") from error
    return File(blobs.add_small(data), len(data))


def _large(blobs: Blobs, path: str, sha256: str) -> File:
    if not SHA256.fullmatch(sha256) or not blobs.large(sha256).exists():
        raise Refusal(400, f"'{path}' points to a content that was not uploaded.")
    return File.in_lfs(sha256, blobs.large(sha256).stat().st_size)


def _changed(changes: list[Change], files: Files) -> Files:
    """`files` after `changes`, in their order."""
    for path, file in changes:
        if file is not None:
            files[path] = file
        elif path in files:
            del files[path]
        else:
            inside = [one for one in files if path.endswith("/") and one.startswith(path)]
            if not inside:
                raise Refusal(404, f"A file with this name doesn't exist: {path}.", "EntryNotFound")
            for one in inside:
                del files[one]
    for path in files:
        for folder in PurePosixPath(path).parents:
            if str(folder) in files:
                raise Refusal(400, f"'{folder}' cannot be a file and a folder.")
    return files


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The non-empty lines of a body that comes in chunks."""
    rest = bytearray()
    async for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        for end in whole:
            if line := rest + end:
                yield bytes(line)
            rest = bytearray()
        rest += last
        check_size(len(rest))
    if rest:
        yield bytes(rest)
