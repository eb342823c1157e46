"""A repository of ours as an entry of SAELens' directory of pretrained SAEs.

With it in SAELens' pretrained_saes.yaml, `SAE.from_pretrained` takes a short release name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from gated_plugin.errors import GatedError
from gated_plugin.hub.cards import facts
from gated_plugin.hub.cards.tables import in_order
from gated_plugin.hub.index import Entry
from gated_plugin.recipes import PublishPlan


def entry_yaml(repo_id: str, entries: Sequence[Entry], publish: PublishPlan) -> str:
    """YAML to append to SAELens' pretrained_saes.yaml, for a pull request to SAELens.

    The release is called after the repository, `owner-name`. No conversion is asked for, since the
    files are SAELens' own.

    Raises:
        GatedError: an entry is malformed, or does not name its language model; or there is none,
            or it is of synthetic activations.
    """
    ordered = in_order(entries)
    if any(map(facts.is_synthetic, ordered)):
        raise GatedError(
            f"{repo_id} holds SAEs of synthetic activations, and SAELens' directory lists those of "
            "language models; name another repository."
        )
    model = facts.text(ordered[0], "model")
    if model is None:
        raise GatedError(
            f"The index of {repo_id} does not name the language model, which SAELens' directory "
            "needs; push its SAEs again."
        )
    release: dict[str, Any] = {"conversion_func": None}
    if publish.base_model:
        release["links"] = {"model": f"https://huggingface.co/{publish.base_model}"}
    release |= {"model": model, "repo_id": repo_id, "saes": [_sae(entry) for entry in ordered]}
    return yaml.safe_dump({release_name(repo_id): release}, sort_keys=False, allow_unicode=True)


def release_name(repo_id: str) -> str:
    """What `SAE.from_pretrained` takes once the entry is in: a name with a slash is a repository."""
    return repo_id.replace("/", "-")


def _sae(entry: Entry) -> dict[str, Any]:
    sae_id = facts.sae_id(entry)
    described: dict[str, Any] = {"id": sae_id, "path": sae_id}
    l0, fvu = facts.number(entry, "l0"), facts.number(entry, "fvu")
    if l0 is not None:
        described["l0"] = round(l0, 2)
    if fvu is not None:
        described["variance_explained"] = round(1 - fvu, 4)
    return described
