"""Routes about the files of a commit: tree, paths-info and download."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from gated_plugin.hub.local.messages import Refusal, Request, Response
from gated_plugin.hub.local.repos import visible
from gated_plugin.hub.local.storage import File, Files

if TYPE_CHECKING:
    from gated_plugin.hub.local.server import LocalHub


def tree(
    hub: LocalHub, request: Request, owner: str, name: str, revision: str, *path: str
) -> Response:
    """The entries below the folder `path`: all of them with `recursive`, else the direct ones."""
    repo = visible(hub, request, owner, name)
    files = hub.storage.commit_at(repo.id, revision).files
    folder = "/".join(path).strip("/")
    start = f"{folder}/" if folder else ""
    inside = {path: file for path, file in files.items() if path.startswith(start)}
    if folder and not inside:
        raise Refusal(404, f"There is no folder '{folder}' at '{revision}'.", "EntryNotFound")
    entries = [_folder(path, files) for path in _folders(inside, start)]
    entries += [_file(path, file) for path, file in inside.items()]
    if request.query.get("recursive", ["false"])[-1].lower() not in ("true", "1"):
        entries = [entry for entry in entries if "/" not in entry["path"][len(start) :]]
    return Response.json(entries)


def paths_info(hub: LocalHub, request: Request, owner: str, name: str, revision: str) -> Response:
    """The entries among `paths` that exist; the client asks by a form, other tools by JSON."""
    repo = visible(hub, request, owner, name)
    files = hub.storage.commit_at(repo.id, revision).files
    if "json" in request.headers.get("Content-Type", ""):
        paths = [str(path) for path in request.json().get("paths", [])]
    else:
        paths = parse_qs(request.read().decode(errors="replace")).get("paths", [])
    folders = _folders(files, "")
    entries = [_file(path, files[path]) for path in paths if path in files]
    entries += [_folder(path, files) for path in paths if path in folders]
    return Response.json(entries)


def resolve(
    hub: LocalHub, request: Request, owner: str, name: str, revision: str, *path: str
) -> Response:
    """The content of one file, or a range of it."""
    repo = visible(hub, request, owner, name)
    commit = hub.storage.commit_at(repo.id, revision)
    headers = {"X-Repo-Commit": commit.oid}
    file = commit.files.get("/".join(path))
    if file is None:
        sentence = f"There is no file '{'/'.join(path)}' at '{revision}'."
        raise Refusal(404, sentence, "EntryNotFound", headers)
    headers["ETag"] = f'"{file.sha256 or file.oid}"'
    if file.sha256:
        headers["X-Linked-ETag"] = headers["ETag"]
        headers["X-Linked-Size"] = str(file.size)
    blobs = hub.storage.blobs
    place = blobs.large(file.sha256) if file.sha256 else blobs.small(file.oid)
    return Response.file(place, file.size, headers, request.headers.get("Range", ""))


def _folders(files: Files, start: str) -> list[str]:
    """The folders that lie below the path `start` and hold `files`."""
    cuts = (path[:cut] for path in files for cut, letter in enumerate(path) if letter == "/")
    return list(dict.fromkeys(folder for folder in cuts if len(folder) >= len(start)))


def _folder(path: str, files: Files) -> dict[str, Any]:
    inside = [entry for entry in files.items() if entry[0].startswith(f"{path}/")]
    oid = hashlib.sha1(repr(inside).encode()).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def _file(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.sha256:
        size = file.pointer_size
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": size}
    return entry
