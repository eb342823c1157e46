"""Runs → dictionaries on the Hub, by one commit that is checked before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gated_plugin.errors import GatedError
from gated_plugin.hub import client, index, naming, preparation
from gated_plugin.hub.apart import apart
from gated_plugin.hub.repository import CARD, Repository
from gated_plugin.hub.sending import Changes, Shipment, create
from gated_plugin.runs import Run

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo


@dataclass(frozen=True)
class Published:
    """Dictionaries that are on the Hub, their files equal to ours by hash."""

    repo_id: str
    sae_ids: tuple[str, ...]
    revision: str | None
    """Commit in which the files are; None after a dry run."""
    url: str
    folder: str
    """What was sent, or would be."""
    sent: dict[str, int]
    """Bytes of each new or changed file, by its path in the repository."""
    removed: tuple[str, ...]
    """Files that these SAEs had there before and no longer have."""
    max_abs_diff: float
    """Between plain SAELens and the plugin, over features and reconstructions, in float64."""

    @property
    def snippet(self) -> str:
        """Python that loads the first of them."""
        return (
            "from sae_lens import SAE; "
            f'sae = SAE.from_pretrained("{self.repo_id}", "{self.sae_ids[0]}")'
        )


def publish(
    runs: Sequence[Run],
    repo_id: str | None = None,
    *,
    private: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Published:
    """Fold, check, load in plain SAELens and compare, then send everything in one commit.

    Nothing is sent, and no repository made, before all local checks have passed. A repository
    that holds the same files already gets no commit.

    Args:
        runs: each becomes an SAE of the repository.
        repo_id: `owner/name`; by default the name of the only run, below the own user name.
        private: of a repository that does not exist yet.
        dry_run: stop before anything is sent.
        quiet: without progress bars.
        report: takes a line when each step is done.

    Raises:
        GatedError: what prevented it, and what to do.
    """
    _require_pushable(runs)
    if repo_id is not None:
        naming.check_repo_id(repo_id)
    api = client.connect()
    identity = _identity(api)
    repo_id = repo_id or _own_name(runs, identity)
    repository = Repository(api, repo_id)
    before = repository.info()
    _refuse_public(before, private, repo_id)
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.alone())
        prepared = _prepared(runs, repository, before, report)
        shipment = Shipment(repository, Path(prepared["folder"]), prepared["sae_ids"], quiet)
        changes = shipment.changes(before.sha if before else None)
        revision = None if dry_run else _sent(shipment, changes, before, private, report)
    return Published(
        repo_id=repo_id,
        sae_ids=tuple(prepared["sae_ids"]),
        revision=revision,
        url=f"{api.endpoint}/{repo_id}",
        folder=prepared["folder"],
        sent={change.path_in_repo: change.upload_info.size for change in changes.changed},
        removed=tuple(deletion.path_in_repo for deletion in changes.gone),
        max_abs_diff=prepared["max_abs_diff"],
    )


def _prepared(
    runs: Sequence[Run],
    repository: Repository,
    before: ModelInfo | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    head = before.sha if before else None
    files = sorted(repository.files(head)) if head else []
    listed = repository.index(head) if head else None
    card = repository.card(head) if head else None
    if (listed is None) == (index.FILENAME in files) or (card is None) == (CARD in files):
        raise GatedError(
            f"{repository.api.endpoint} does not agree with itself on what {repository.id} holds; "
            "run the same command again."
        )
    paths = [str(run.path) for run in runs]
    made: dict[str, Any] = apart(
        preparation.prepare, report, paths, repository.id, listed, card, files
    )
    return made


def _sent(
    shipment: Shipment,
    changes: Changes,
    before: ModelInfo | None,
    private: bool,
    report: Callable[[str], None],
) -> str:
    repository = shipment.repository
    if before is not None and before.sha and not changes:
        report(f"{repository.id} holds these files already: there is nothing to send.")
        return before.sha
    head = before.sha if before and before.sha else create(repository, private)
    revision = shipment.send(changes, head, report)
    report("Every file on the Hub has the hash of the one here.")
    return revision


def _identity(api: HfApi) -> dict[str, Any]:
    """Who pushes.

    Raises:
        GatedError: nobody whom the Hub knows, or somebody who may only read.
    """
    identity: dict[str, Any] = client.ask("log in for a push to", "the Hub", api.whoami)
    token = identity.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise GatedError(f"Your token may only read, so nothing was begun; {client.LOG_IN}.")
    return identity


def _require_pushable(runs: Sequence[Run]) -> None:
    for run in runs:
        run.require_evaluated()
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise GatedError("One of the runs is named twice; name each once.")


def _own_name(runs: Sequence[Run], identity: dict[str, Any]) -> str:
    if len(runs) > 1:
        raise GatedError("Several runs have no name in common; name the repository with --repo.")
    repo_id = f"{identity['name']}/{runs[0].name}"
    try:
        naming.check_repo_id(repo_id)
    except GatedError:
        raise GatedError(
            f"The repository would be {repo_id!r} after its run, which is no id of one; name it "
            "with --repo owner/name."
        ) from None
    return repo_id


def _refuse_public(before: ModelInfo | None, private: bool, repo_id: str) -> None:
    if private and before is not None and not before.private:
        raise GatedError(
            f"{repo_id} is public already; make it private in its settings on the Hub, or push "
            "without --private."
        )
