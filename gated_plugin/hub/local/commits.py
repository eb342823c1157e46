"""Routes that make a commit: which way each file goes, then the commit itself."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from gated_plugin.hub.local.front_matter import front_matter
from gated_plugin.hub.local.messages import Refusal, Request, Response, json_object, member
from gated_plugin.hub.local.repos import visible
from gated_plugin.hub.local.storage import COMMIT_OID, File, Files

if TYPE_CHECKING:
    from gated_plugin.hub.local.blobs import Blobs
    from gated_plugin.hub.local.server import LocalHub

LARGE = 10_000_000
SHA256 = re.compile(r"[0-9a-f]{64}")
Edit = Callable[[Files], None]
"""A change of a commit's files, made in place."""


def preupload(hub: LocalHub, request: Request, owner: str, name: str, revision: str) -> Response:
    """Whether each file goes to LFS, and the hash of what is there now: an equal one is skipped."""
    repo = visible(hub, request, owner, name)
    request.require_write()
    present = hub.storage.commit_at(repo.id, revision).files
    answer = []
    for file in member(request.json(), "files", list):
        path, size = repo_path(file), member(file, "size", int)
        large = path.endswith(".safetensors") or size > LARGE
        entry = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in present:
            entry["oid"] = present[path].sha256 or present[path].oid
        answer.append(entry)
    return Response.json({"files": answer})


def commit(hub: LocalHub, request: Request, owner: str, name: str, branch: str) -> Response:
    """One commit out of ndjson: a header, then a line per change.

    Small contents are stored line by line, so a commit of many files needs the memory of one.
    """
    repo = visible(hub, request, owner, name)
    user = request.require_write()
    lines = (json_object(line) for line in _lines(request.body))
    first = next(lines, {})
    if first.get("key") != "header":
        raise Refusal(400, "A commit begins with its header.")
    header = member(first, "value", dict)
    parent = header.get("parentCommit")
    if parent is not None and not COMMIT_OID.fullmatch(str(parent)):
        raise Refusal(400, "`parentCommit` is no commit oid.")
    edits = [_edit(hub.storage.blobs, line) for line in lines]

    def edit(files: Files) -> Files:
        for change in edits:
            change(files)
        _refuse_files_as_folders(files)
        return files

    message = member(header, "summary", str), str(header.get("description", ""))
    oid = hub.storage.commit(
        repo.id, branch.removeprefix("refs/heads/"), message, user, edit, parent
    )
    url = f"{hub.url}/{repo.id}/commit/{oid}"
    return Response.json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def repo_path(value: dict[str, Any]) -> str:
    """`value["path"]`, if a checkout may hold it.

    Raises:
        Refusal: 400 when it could lead out of the folder or into git's own.
    """
    path = member(value, "path", str)
    parts = path.split("/")
    if "\\" in path or not path.isprintable() or {"", ".", "..", ".git"} & set(parts):
        raise Refusal(400, f"'{path}' is no valid path in a repository.")
    return path


def _edit(blobs: Blobs, line: dict[str, Any]) -> Edit:
    value = member(line, "value", dict)
    edits: dict[object, Callable[[Blobs, dict[str, Any]], Edit]] = {
        "file": _add_small,
        "lfsFile": _add_large,
        "deletedFile": _delete_file,
        "deletedFolder": _delete_folder,
    }
    if line.get("key") not in edits:
        raise Refusal(400, f"A commit line begins with one of {', '.join(map(str, edits))}.")
    return edits[line["key"]](blobs, value)


def _add_small(blobs: Blobs, value: dict[str, Any]) -> Edit:
    path = repo_path(value)
    try:
        content = base64.b64decode(member(value, "content", str), validate=True)
        if path == "README.md":
            front_matter(content.decode(errors="replace"))
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"'{path}': {error}") from error
    file = File(blobs.add_small(content), len(content))
    return lambda files: files.update({path: file})


def _add_large(blobs: Blobs, value: dict[str, Any]) -> Edit:
    path, sha256 = repo_path(value), member(value, "oid", str)
    if not SHA256.fullmatch(sha256) or not blobs.large(sha256).exists():
        raise Refusal(400, f"'{path}' points to a content that was not uploaded.")
    file = File.in_lfs(sha256, blobs.large(sha256).stat().st_size)
    return lambda files: files.update({path: file})


def _delete_file(blobs: Blobs, value: dict[str, Any]) -> Edit:
    path = repo_path(value)

    def delete(files: Files) -> None:
        if files.pop(path, None) is None:
            raise Refusal(404, f"A file with this name doesn't exist: {path}.", "EntryNotFound")

    return delete


def _delete_folder(blobs: Blobs, value: dict[str, Any]) -> Edit:
    folder = repo_path({"path": member(value, "path", str).rstrip("/")}) + "/"

    def delete(files: Files) -> None:
        inside = [path for path in files if path.startswith(folder)]
        if not inside:
            raise Refusal(404, f"There is no folder '{folder}'.", "EntryNotFound")
        for path in inside:
            del files[path]

    return delete


def _refuse_files_as_folders(files: Files) -> None:
    for path in files:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in files:
                raise Refusal(400, f"'{parent}' cannot be a file and a folder.")
            parent = parent.rpartition("/")[0]


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The non-empty lines of a body that comes in chunks."""
    rest: list[bytes] = []
    for chunk in chunks:
        *whole, last = chunk.split(b"\n")
        for line in whole:
            yield from filter(None, [b"".join([*rest, line])])
            rest = []
        rest.append(last)
    yield from filter(None, [b"".join(rest)])
