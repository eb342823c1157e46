"""Who may do what on a local hub."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Literal, NamedTuple

from gated_plugin.hub.local.messages import Refusal
from gated_plugin.runs import beside

Role = Literal["none", "read", "write"]
ROLES: tuple[Role, ...] = ("none", "read", "write")
"""Each may do what those before it may."""


class Access(NamedTuple):
    """What one token opens."""

    user: str
    """Name of the account, also its default namespace."""
    role: Role
    """`read` sees every repository, private ones too; `write` may also change them."""

    def require(self, role: Role) -> None:
        """Refuse who has not at least `role`: 401 without a token, 403 with too weak a one."""
        if ROLES.index(self.role) >= ROLES.index(role):
            return
        if self.role == "none":
            raise Refusal(401, f"This needs a token: log in with a {role} token of this hub.")
        raise Refusal(403, "This token can only read: use a write token.")


ANYBODY = Access("", "none")
"""Who sends no token."""


def kept_token(path: Path) -> str:
    """The token stored in `path`, made at random the first time; only its owner may read the file."""
    if not path.exists():
        with beside(path) as unfinished:
            unfinished.touch(mode=0o600)
            unfinished.write_text("hf_" + secrets.token_hex(17))
    path.chmod(0o600)
    return path.read_text().strip()
