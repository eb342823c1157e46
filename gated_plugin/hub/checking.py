"""`gated-hub verify`: whether a published SAE still is what its certificate says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gated_plugin.dictionaries import CFG, WEIGHTS, Dictionary
from gated_plugin.errors import GatedError
from gated_plugin.hub import certificate, index, naming
from gated_plugin.hub.apart import apart
from gated_plugin.hub.pull import pull
from gated_plugin.hub.verification import verify_folders
from gated_plugin.runs import Run, read_json


@dataclass(frozen=True)
class Checked:
    """An SAE that passed every check."""

    sae_id: str
    revision: str | None
    """Commit of the repository; None for a folder."""
    files: int
    """With the sizes and hashes of the certificate."""
    rows: int
    """Activations that features and reconstructions were compared on."""
    max_abs_diff: float
    """Between plain SAELens and the plugin, in float64, here and now."""
    certified_diff: float
    """The same when it was published."""
    versions: dict[str, str]
    """With which it was published."""


def check(
    source: str,
    sae_id: str | None = None,
    *,
    revision: str | None = None,
    quiet: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[Checked]:
    """Check SAEs of a repository, or of a folder with this name: hashes, soundness, and plain
    SAELens' numbers.

    Args:
        sae_id: which one; all by default.
        revision: branch, tag or commit of a repository.
        quiet: without progress bars.

    Raises:
        GatedError: the first thing that is not as it should be.
    """
    path = Path(source)
    if path.is_dir():
        if revision is not None:
            raise GatedError(f"{path} is a folder, which has no revision; leave out --revision.")
        return _check_folder(
            Run(path).publication if Run(path).recipe.exists() else path, sae_id, report
        )
    naming.check_source(source)
    return _check_repository(source, sae_id, revision, quiet, report)


def _check_repository(
    repo_id: str,
    sae_id: str | None,
    revision: str | None,
    quiet: bool,
    report: Callable[[str], None],
) -> list[Checked]:
    pulled = pull(repo_id, sae_id, revision=revision, quiet=quiet, report=report)
    folders = {each: pulled.folder / each for each in pulled.sae_ids}
    content = read_json(pulled.folder / index.FILENAME)
    listed = {entry["id"]: entry for entry in index.entries_of(content, repo_id)}
    for each, folder in folders.items():
        _require_listed(certificate.read(folder), listed.get(each), each, repo_id)
    return _checked(folders, pulled.revision, report)


def _check_folder(path: Path, sae_id: str | None, report: Callable[[str], None]) -> list[Checked]:
    found = sorted(cfg.parent for cfg in (path / (sae_id or "")).rglob(CFG))
    if not found:
        raise GatedError(f"{path} holds no SAE; name a folder that `gated-hub pull --out` made.")
    return _checked({_name(folder, path): folder for folder in found}, None, report)


def compare(report: Callable[[str], None], folders: list[str]) -> list[dict[str, Any]]:
    """Soundness and plain SAELens' numbers, as JSON: for `apart`."""
    for folder in folders:
        report(f"Reading {folder}.")
        Dictionary.open(Path(folder)).require_sound()
    report("Comparing in plain SAELens.")
    return verify_folders([Path(folder) for folder in folders])


def _checked(
    folders: dict[str, Path], revision: str | None, report: Callable[[str], None]
) -> list[Checked]:
    certified = {sae_id: certificate.read(folder) for sae_id, folder in folders.items()}
    for sae_id, content in certified.items():
        report(f"Hashing {sae_id}.")
        certificate.require_files(folders[sae_id], content)
    compared = apart(compare, report, [str(folder) for folder in folders.values()])
    return [
        Checked(
            sae_id=sae_id,
            revision=revision,
            files=len(content["files"]),
            rows=now["rows"],
            max_abs_diff=certificate.largest_difference(now),
            certified_diff=certificate.largest_difference(content["compared"]),
            versions=content.get("versions", {}),
        )
        for (sae_id, content), now in zip(certified.items(), compared, strict=True)
    ]


def _name(folder: Path, path: Path) -> str:
    return folder.relative_to(path).as_posix() if folder != path else folder.name


def _require_listed(
    content: dict[str, Any], entry: dict[str, Any] | None, sae_id: str, repo_id: str
) -> None:
    """Index and card speak of these weights, and the certificate of this SAE."""
    listed = entry and entry["weights"].get("sha256")
    certified = content["files"].get(WEIGHTS, {}).get("sha256")
    if listed != certified or content.get("sae_id") != sae_id:
        raise GatedError(
            f"The index of {repo_id} speaks of other weights of {sae_id} than those that are "
            "there; have it pushed again, or verify an older --revision."
        )
