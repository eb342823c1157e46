"""What must be stated before a dictionary is published: licence, language model, and its terms."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from gated_plugin.errors import GatedError
from gated_plugin.hub.cards.facts import is_encodable, short
from gated_plugin.recipe_keys import Keys
from gated_plugin.recipes import PublishPlan, Recipe

GATED_MODELS = (
    "bigcode/starcoder*",
    "coherelabs/*",
    "google/*gemma*",
    "meta-llama/*",
)
"""Language models whose terms one accepts before a download: for when the Hub cannot be asked."""

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_MEND = "in the recipe of the run (its recipe.yaml), and push again"


def require_publishable(
    recipe: Recipe, is_gated_base_model: Callable[[str], bool | None]
) -> PublishPlan:
    """The recipe's plan, once it states all that it must; of synthetic activations, the licence.

    Args:
        is_gated_base_model: whether the Hub gives out the model of that id only to those who
            accept its terms; None when it cannot be asked.

    Raises:
        GatedError: something is missing or malformed.
    """
    plan = recipe.publish
    require_valid(plan)
    if recipe.synthetic:
        return replace(plan, base_model=None, base_model_terms=None, datasets=())
    if plan.base_model is None:
        if recipe.is_embedded:
            return plan
        raise GatedError(
            "The card must name the language model, and publish.base_model is missing; add its "
            f"Hub id, such as `base_model: EleutherAI/pythia-70m`, {_MEND}."
        )
    gated = is_gated_base_model(plan.base_model)
    if gated is None:
        gated = any(fnmatchcase(plan.base_model.lower(), pattern) for pattern in GATED_MODELS)
    if gated and not plan.base_model_terms:
        raise GatedError(
            f"{plan.base_model} has terms that its users accept, and the card must state them; add "
            f"`base_model_terms:` with a sentence, below publish {_MEND}."
        )
    return plan


def require_valid(plan: PublishPlan) -> None:
    """Raise `GatedError` unless the licence is named and every name is one that the Hub takes."""
    if plan.license is None:
        raise GatedError(
            "No licence is stated, and without one nobody may use what is published; add "
            f"`license:` below publish, such as `license: mit`, {_MEND}."
        )
    _require_identifier("license", plan.license)
    if plan.license == "other" and not (plan.license_name and plan.license_link):
        raise GatedError(
            "`license: other` says too little; add license_name, such as my-license-1.0, and "
            f"license_link, an https address, below publish {_MEND}."
        )
    if plan.license != "other" and (plan.license_name or plan.license_link):
        raise GatedError(
            f"publish.license_name and license_link go with `license: other`, not {short(plan.license)};"
            f" keep one of the two {_MEND}."
        )
    if plan.license_name:
        _require_identifier("license_name", plan.license_name)
    if plan.license_link:
        _require_https(plan.license_link)
    if plan.base_model_terms and not is_encodable(plan.base_model_terms):
        raise GatedError(f"publish.base_model_terms is no text; write it anew {_MEND}.")
    for key, ids in (("base_model", [plan.base_model]), ("datasets", plan.datasets)):
        for id_ in ids:
            if id_ is not None and not is_repo_id(id_):
                raise GatedError(
                    f"publish.{key} names {short(id_)}, which is no id of the Hub, such as owner/name; "
                    f"mend it {_MEND}."
                )


def is_repo_id(name: str) -> bool:
    """Whether the Hub could have a model or dataset of this name; some datasets have no owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def plan_of(content: Any, repo_id: str) -> PublishPlan:
    """The plan that the index of a repository keeps, to render its card from the index alone.

    Raises:
        GatedError: it keeps none, or a malformed one.
    """
    kept = content.get("publish") if isinstance(content, dict) else None
    if not isinstance(kept, dict):
        raise GatedError(
            f"The index of {repo_id} does not say under which licence its dictionaries are, so "
            "that no card can be written from it; push a run to it with `gated-hub push`."
        )
    plan = PublishPlan(
        **Keys(f"config.json of {repo_id}").checked(kept, PublishPlan, "publish.", ())
    )
    require_valid(plan)
    return plan


def kept_plan(plan: PublishPlan) -> dict[str, Any]:
    """What the index keeps of `plan` for `plan_of`, as JSON takes it."""
    stated = {key: value for key, value in asdict(plan).items() if value}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in stated.items()
    }


def _require_identifier(key: str, value: str) -> None:
    if not _IDENTIFIER.fullmatch(value):
        raise GatedError(
            f"publish.{key} is {short(value)}, but the Hub writes licences in small letters, digits, "
            f"'.', '+' and '-', such as apache-2.0; mend it {_MEND}."
        )


def _require_https(link: str) -> None:
    try:
        parts = urlsplit(link)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme != "https" or not parts.netloc or not link.isprintable() or " " in link:
        raise GatedError(
            f"publish.license_link is {short(link)}, which nobody can open; give an https address {_MEND}."
        )
