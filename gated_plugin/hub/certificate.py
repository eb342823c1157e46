"""The certificate of a published SAE: what was checked, and the hash of every file beside it."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import reprlib
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import gated_plugin
from gated_plugin.errors import GatedError
from gated_plugin.runs import write_json

FILENAME = "certificate.json"
FORMAT = 1
LARGEST = 1 << 20
CHECKS = (
    "weights finite",
    "shapes and types as in cfg.json",
    "decoder rows of norm 1",
    "figures of an evaluation on held-out activations",
    "features and reconstructions of plain SAELens, in a process without gated_plugin",
)
BLOCK = 1 << 20
_QUOTED = reprlib.Repr()
_QUOTED.maxstring = 100


def write(folder: Path, sae_id: str, compared: dict[str, Any]) -> dict[str, Any]:
    """Certify the files in `folder` as they are now; what the certificate says.

    Args:
        compared: of `verification.verify_folders`.
    """
    versions = {"gated_plugin": gated_plugin.__version__, "sae_lens": version("sae-lens")}
    versions |= {"torch": version("torch"), "python": platform.python_version()}
    files = {name: described(folder / name) for name in _names(folder)}
    content = {
        "format": FORMAT,
        "sae_id": sae_id,
        "checks": CHECKS,
        "compared": compared,
        "versions": versions,
        "files": files,
    }
    write_json(folder / FILENAME, content)
    return content


def read(folder: Path) -> dict[str, Any]:
    """The certificate in `folder`.

    Raises:
        GatedError: there is none, or it is none that this version can read.
    """
    path = folder / FILENAME
    try:
        if path.stat().st_size > LARGEST:
            _refuse(path, "it is far longer than a certificate")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise GatedError(
            f"{folder} has no certificate, so nobody says what it should hold; have it published "
            "again by `gated-hub push`."
        ) from None
    except (ValueError, RecursionError):
        _refuse(path, "it is no valid JSON")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        _refuse(path, f"it is of no format that gated_plugin {gated_plugin.__version__} knows")
    files = content.get("files")
    if not isinstance(files, dict) or not all(_is_description(about) for about in files.values()):
        _refuse(path, "it does not say what the files are")
    if not _is_comparison(content.get("compared")):
        _refuse(path, "it does not say what was compared")
    versions = content.get("versions")
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        _refuse(path, "it does not say by which versions it was made")
    return content


def require_files(folder: Path, content: dict[str, Any]) -> None:
    """Raise `GatedError` unless `folder` holds the certified files, bit for bit, and no others."""
    names = set(_names(folder))
    for name in sorted(content["files"].keys() | names):
        shown = folder / _QUOTED.repr(name)[1:-1]  # escaped: a name may hold a line's end
        if name not in names:
            _refuse(shown, "it is certified and missing")
        if name not in content["files"]:
            _refuse(shown, "nobody has certified it")
        if content["files"][name] != described(folder / name):
            _refuse(shown, "it is not the file that was certified")


def sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def refuse_changed(path: Path) -> NoReturn:
    """Raise `GatedError` for a file that differs from its certificate."""
    raise GatedError(
        f"{path} is not the file that was certified; fetch it again with `gated-hub pull`, or delete "
        f"the {FILENAME} beside it if the change is your own."
    )


def _names(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != FILENAME and not name.startswith("."))


def described(path: Path) -> dict[str, Any]:
    """Size and hash of a file, as a certificate states them."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _is_description(about: Any) -> bool:
    return isinstance(about, dict) and about.keys() == {"bytes", "sha256"}


def largest_difference(compared: dict[str, Any]) -> float:
    """Between plain SAELens and the plugin in float64, over features and reconstructions."""
    exact = compared["float64"]
    return max(exact["features"], exact["reconstructions"])


def _is_comparison(compared: Any) -> bool:
    exact = compared.get("float64") if isinstance(compared, dict) else None
    return isinstance(exact, dict) and all(
        isinstance(exact.get(name), float) and 0 <= exact[name] < math.inf
        for name in ("features", "reconstructions")
    )


def _refuse(path: Path, reason: str) -> NoReturn:
    raise GatedError(f"{path} cannot be trusted: {reason}; fetch it again with `gated-hub pull`.")
