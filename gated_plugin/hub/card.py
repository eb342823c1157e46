"""The card of a repository: cards/template.md filled from the index and the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from gated_plugin.bundled import folder
from gated_plugin.errors import GatedError
from gated_plugin.hub.index import Entry
from gated_plugin.recipes import PublishPlan
from gated_plugin.sources import EMBEDDED

TAGS = (
    "sparse-autoencoder",
    "mechanistic-interpretability",
    "gated-sae",
    "saelens",
    "arxiv:2404.16014",
)
METRICS = {
    "l0": "L0",
    "loss_recovered": "Loss recovered",
    "fvu": "Fraction of variance unexplained",
    "alive": "Share of features alive",
    "gamma": "Relative reconstruction bias γ",
}
TASK = "feature-extraction"
"""What the Hub calls the task: features of activations. It has no name for dictionaries."""


def render(repo_id: str, entries: Sequence[Entry], publish: PublishPlan) -> str:
    """README.md of `repo_id`: front matter in YAML, then a section for each question.

    Args:
        entries: every SAE of the repository, in the order of its rows.
        publish: licence, and what the language model is called on the Hub.

    Raises:
        GatedError: an entry lacks what the card states.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

    environment = Environment(
        loader=FileSystemLoader(folder("cards")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    try:
        return environment.get_template("template.md").render(
            front_matter=front_matter(repo_id, entries, publish),
            repo_id=repo_id,
            saes=entries,
            publish=publish,
        )
    except (UndefinedError, LookupError, TypeError) as error:
        raise GatedError(
            f"The index of {repo_id} was not written by this version of gated_plugin ({error}); "
            "push to another repository."
        ) from error


def front_matter(repo_id: str, entries: Sequence[Entry], publish: PublishPlan) -> str:
    """The YAML that the Hub reads, without its fences."""
    named = {name for entry in entries for name in entry["training"]["datasets"]}
    datasets = sorted(named | set(publish.datasets))
    metadata: dict[str, Any] = {"library_name": "saelens", "license": publish.license}
    if publish.base_model:
        metadata["base_model"] = publish.base_model
    if datasets:
        metadata["datasets"] = datasets
    metadata["tags"] = list(TAGS)
    metadata["model-index"] = [_evaluation(repo_id, entry) for entry in entries]
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)


def _evaluation(repo_id: str, entry: Entry) -> dict[str, Any]:
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    dataset = entry["evaluation"]["dataset"]
    # The Hub takes the type for one of its own datasets and links to it.
    dataset_type = dataset.removeprefix(EMBEDDED)
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=dataset_type,
            dataset_name=dataset,
            metric_type=metric,
            metric_name=name,
            metric_value=entry[metric],
        )
        for metric, name in METRICS.items()
    ]
    return eval_results_to_model_index(f"{repo_id}/{entry['id']}", results)[0]
