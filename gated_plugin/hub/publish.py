"""A run → a dictionary on the Hub, by one commit that is checked before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gated_plugin.errors import GatedError
from gated_plugin.hub import client, naming
from gated_plugin.hub.repository import Repository
from gated_plugin.hub.staging import stage
from gated_plugin.hub.verification import verify
from gated_plugin.runs import Run

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


@dataclass(frozen=True)
class Published:
    """A dictionary that is on the Hub, its files equal to ours by hash."""

    repo_id: str
    sae_id: str
    revision: str
    """Commit in which the files are."""
    url: str
    max_abs_diff: float
    """Between plain SAELens and the plugin, over features and reconstructions, in float64."""

    @property
    def snippet(self) -> str:
        """Python that loads it."""
        return (
            "from sae_lens import SAE; "
            f'sae = SAE.from_pretrained("{self.repo_id}", "{self.sae_id}")'
        )


def publish(
    run: Run,
    repo_id: str,
    *,
    private: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Published:
    """Fold, load in plain SAELens and compare, then send everything in one commit.

    Nothing is sent, and no repository made, before all local checks have passed. A repository
    that holds the same files already gets no commit.

    Args:
        private: of a repository that does not exist yet.
        report: takes a line when each step is done.

    Raises:
        GatedError: what prevented it, and what to do.
    """
    naming.check_repo_id(repo_id)
    run.require_evaluated()
    repository = Repository(client.connect(), repo_id)
    before = repository.info()
    _refuse_public(before, private, repo_id)
    siblings = repository.entries(before) if before else []
    staged = stage(run, repo_id, siblings)
    report(f"Staged {staged.sae_id} in {staged.folder}.")
    agreement = verify(staged.sae, run.activations, str(staged.folder / staged.sae_id))
    report(
        f"Plain SAELens computes the same, to within {agreement.max_abs_diff:.1e} in float64 and "
        f"{agreement.max_abs_diff_float32:.1e} in float32."
    )
    revision = repository.send(staged.folder, staged.sae_id, before, private, report)
    report("Every file on the Hub has the hash of the one here.")
    url = f"{repository.api.endpoint}/{repo_id}"
    return Published(repo_id, staged.sae_id, revision, url, agreement.max_abs_diff)


def _refuse_public(before: ModelInfo | None, private: bool, repo_id: str) -> None:
    if private and before is not None and not before.private:
        raise GatedError(
            f"{repo_id} is public already; make it private in its settings on the Hub, or push "
            "without --private."
        )
