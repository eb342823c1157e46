"""Where a recipe lies, by path or by name, and what its file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gated_plugin.bundled import folder
from gated_plugin.errors import GatedError
from gated_plugin.strict_yaml import strict_yaml


def parted(source: str | Path) -> tuple[str, str | None]:
    """`RECIPE/VARIANT` in its two parts; None where no variant is named."""
    called, slash, variant = str(source).rpartition("/")
    if slash and not Path(source).exists() and (called in bundled() or Path(called).is_file()):
        return called, variant
    return str(source), None


def find(source: str | Path) -> Path:
    """The file that a path or the name of a bundled recipe means.

    Raises:
        GatedError: there is none.
    """
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in bundled():
        return bundled()[str(source)]
    raise GatedError(
        f"There is no recipe {str(source)!r}: neither a file of that path nor one of the bundled "
        f"recipes ({', '.join(bundled())})."
    )


def read(path: Path) -> dict[str, Any]:
    """What the file says, with its variants.

    Raises:
        GatedError: it is no YAML mapping.
    """
    try:
        raw = strict_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GatedError(f"{path} is no valid YAML ({error}); mend it.") from None
    if not isinstance(raw, dict):
        raise GatedError(f"{path} holds no recipe; write `key: value` lines at its top.")
    return raw


def bundled() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {file.stem: file for file in sorted(folder("hub_configs").glob("*.yaml"))}
