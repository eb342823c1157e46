"""Who may do what on a local hub."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal, NamedTuple


class Access(NamedTuple):
    """What one token opens."""

    user: str
    """Name of the account, also its default namespace."""
    role: Literal["read", "write"]
    """`read` sees every repository, private ones too; `write` may also change them."""


def kept_token(path: Path) -> str:
    """The token stored in `path`, made at random the first time; only its owner may read the file."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("hf_" + secrets.token_hex(17))
        os.replace(partial, path)
    path.chmod(0o600)
    return path.read_text().strip()
