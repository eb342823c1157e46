"""Routes about the files of a commit: tree, paths-info and download."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import FileResponse

from gated_plugin.hub.local.call import Call
from gated_plugin.hub.local.messages import Json, Refusal, member
from gated_plugin.hub.local.storage import File, Files, Repo

RANGE = re.compile(r"bytes=(\d+-\d*|-\d+)")


class Content(FileResponse):
    """A blob or a range of it, read by the MB: each read is a thread's work."""

    chunk_size = 1 << 20


def tree(call: Call, repo: Repo, revision: str, folder: str = "") -> Json:
    """The entries below `folder`: all of them with `recursive`, else the direct ones."""
    files = call.storage.commit_at(repo.id, revision).files
    folder = folder.strip("/")
    start = f"{folder}/" if folder else ""
    inside = {path: file for path, file in files.items() if path.startswith(start)}
    if folder and not inside:
        raise Refusal(404, f"There is no folder '{folder}' at '{revision}'.", "EntryNotFound")
    entries = [_folder(path, files) for path in _folders(inside, start)]
    entries += [_file(path, file) for path, file in inside.items()]
    if call.request.query_params.get("recursive", "false").lower() not in ("true", "1"):
        entries = [entry for entry in entries if "/" not in entry["path"][len(start) :]]
    return Json(entries)


def paths_info(call: Call, repo: Repo, revision: str) -> Json:
    """The entries among `paths` that exist; the client asks by a form, other tools by JSON."""
    files = call.storage.commit_at(repo.id, revision).files
    if "json" in call.request.headers.get("Content-Type", ""):
        paths = [str(path) for path in member(call.json(), "paths", list)]
    else:
        paths = parse_qs(call.body.decode(errors="replace")).get("paths", [])
    folders = _folders(files, "")
    entries = [_file(path, files[path]) for path in paths if path in files]
    entries += [_folder(path, files) for path in paths if path in folders]
    return Json(entries)


def resolve(call: Call, repo: Repo, revision: str, path: str) -> Content:
    """The content of one file, or a range of it."""
    commit = call.storage.commit_at(repo.id, revision)
    headers = {"X-Repo-Commit": commit.oid}
    file = commit.files.get(path)
    if file is None:
        sentence = f"There is no file '{path}' at '{revision}'."
        raise Refusal(404, sentence, "EntryNotFound", headers)
    headers["ETag"] = f'"{file.sha256 or file.oid}"'
    if file.sha256:
        headers["X-Linked-ETag"] = headers["ETag"]
        headers["X-Linked-Size"] = str(file.size)
    if not RANGE.fullmatch(call.request.headers.get("Range", "bytes=0-")):
        raise Refusal(416, "This hub serves one range at a time, such as `bytes=0-99`.")
    blobs = call.storage.blobs
    place = blobs.large(file.sha256) if file.sha256 else blobs.small(file.oid)
    return Content(place, headers=headers, media_type="application/octet-stream")


def _folders(files: Files, start: str) -> dict[str, None]:
    """The folders that lie below the path `start` and hold `files`, in the order of their paths."""
    cuts = (path[:cut] for path in files for cut, letter in enumerate(path) if letter == "/")
    return dict.fromkeys(folder for folder in cuts if len(folder) >= len(start))


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
