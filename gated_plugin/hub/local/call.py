"""One request to a local hub, as the functions that answer it see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.requests import Request

from gated_plugin.hub.local.access import Access
from gated_plugin.hub.local.messages import Refusal, json_object
from gated_plugin.hub.local.storage import Repo, Storage

if TYPE_CHECKING:
    from gated_plugin.hub.local.server import LocalHub


@dataclass
class Call:
    """Who asks which hub, and how."""

    hub: LocalHub
    access: Access
    request: Request
    body: bytes = b""
    """All of it; empty for a function that reads it from `request` as it comes."""

    @property
    def storage(self) -> Storage:
        return self.hub.storage

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; 400 when it is something else."""
        return json_object(self.body)

    def url(self, path: str) -> str:
        """Where the client finds `path`: at the host by which it reached us."""
        return f"{self.request.base_url}{path}"

    def repo(self, owner: str, name: str) -> Repo:
        """The repository `owner/name`; one that is missing or hidden is refused alike."""
        repo = self.storage.repo(f"{owner}/{name}")
        if repo is None or (repo.private and self.access.role == "none"):
            self.missing()
        return repo

    def missing(self) -> NoReturn:
        """No such repository: 401 without a token, 404 with one, as on the Hub."""
        status = 401 if self.access.role == "none" else 404
        raise Refusal(status, "There is no such repository for you.", "RepoNotFound")
