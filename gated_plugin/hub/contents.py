"""Which files of a repository belong to an SAE, and which may be written to this computer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from gated_plugin.dictionaries import CFG
from gated_plugin.errors import GatedError

if TYPE_CHECKING:
    from gated_plugin.hub.repository import RemoteFile

ABOUT = ("README.md", "config.json")
"""Card and index, at the root."""

PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
"""By suffix: what torch, numpy and others may store as pickles, which run code when opened."""

DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows takes for a device, whatever comes after the dot."""

NAMED_AT_MOST = 5


def sae_ids(paths: Iterable[str]) -> list[str]:
    """The SAEs of a repository with these files: the folders with a cfg.json."""
    parents = (path.rpartition("/") for path in paths)
    return sorted(folder for folder, _, name in parents if name == CFG and folder)


def chosen_ids(sae_id: str | None, paths: Iterable[str], repo_id: str) -> list[str]:
    """`sae_id` if a repository with these files has it; all of its SAEs for None.

    Raises:
        GatedError: there is no such SAE, or none at all, or its name is no path to write to.
    """
    found = sae_ids(paths)
    if not found:
        raise GatedError(
            f"{repo_id} holds no SAE (no folder with a {CFG}); find others with `gated-hub list`."
        )
    chosen = found if sae_id is None else [sae_id]
    for each in chosen:
        refuse_path(each, repo_id)
    if sae_id is not None and sae_id not in found:
        raise GatedError(
            f"{repo_id} has no SAE {sae_id!r}; {_nearest(sae_id, found)}, or list all of them "
            f"with `gated-hub list {repo_id}`."
        )
    return chosen


def files_of(
    sae_ids: Iterable[str], files: Mapping[str, RemoteFile], repo_id: str
) -> list[RemoteFile]:
    """The files of some SAEs, each with its cfg.json last: who finds that finds all.

    Raises:
        GatedError: one of them may not be written here.
    """
    wanted: dict[str, RemoteFile] = {}
    for sae_id in sae_ids:
        inside = [path for path in files if path.startswith(f"{sae_id}/")]
        inside.sort(key=lambda path: (path.endswith(f"/{CFG}"), path))
        wanted |= {path: files[path] for path in inside}
    for path in wanted:
        refuse_path(path, repo_id)
        if PurePosixPath(path).suffix.lower() in PICKLES:
            raise GatedError(
                f"{path} of {repo_id} may be a pickle, which runs code when it is opened, so it is "
                "not fetched; choose an SAE in safetensors from `gated-hub list`."
            )
    _refuse_collisions(wanted, repo_id)
    return list(wanted.values())


def refuse_path(path: str, repo_id: str) -> None:
    """Raise `GatedError` unless `path` names a place below a folder, on every system."""
    if all(_is_plain(part) for part in path.split("/")) and path.isprintable():
        return
    raise GatedError(
        f"{path!r} of {repo_id} is no path that can be written safely, so nothing was fetched; "
        f"choose another SAE from `gated-hub list {repo_id}`."
    )


def _is_plain(part: str) -> bool:
    # Empty: an absolute path. Colons: drives, and streams of files, on Windows, which also drops
    # dots and spaces at the end.
    return (
        part == part.rstrip(". ") != ""
        and not re.search(r'[\\:*?"<>|]', part)
        and not (DEVICES.fullmatch(part))
    )


def _refuse_collisions(paths: Iterable[str], repo_id: str) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(path.casefold(), path)
        if other != path:
            raise GatedError(
                f"{other} and {path} of {repo_id} are one file where case does not count, so "
                f"nothing was fetched; choose another SAE from `gated-hub list {repo_id}`."
            )


def _nearest(sae_id: str, found: list[str]) -> str:
    found = [other for other in found if other.isprintable()]
    inside = [other for other in found if sae_id in other]
    near = inside[:NAMED_AT_MOST] or get_close_matches(sae_id, found, 3, 0.4) or found[:3]
    return f"did you mean {' or '.join(near)}"
