"""The card of a repository: cards/template.md filled from its index, and from nothing else."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

from gated_plugin.bundled import folder as bundled
from gated_plugin.errors import GatedError
from gated_plugin.hub import naming
from gated_plugin.hub.cards import facts, markdown, notes, tables
from gated_plugin.hub.cards.licensing import is_repo_id, require_valid
from gated_plugin.hub.index import Entry
from gated_plugin.recipes import PublishPlan
from gated_plugin.sources import EMBEDDED

if TYPE_CHECKING:
    from jinja2 import Template

TAGS = (
    "sparse-autoencoder",
    "mechanistic-interpretability",
    "gated-sae",
    "saelens",
    "arxiv:2404.16014",
)
SYNTHETIC_TAG = "synthetic-activations"
METRICS = {
    "l0": "L0",
    "loss_recovered": "Loss recovered",
    "fvu": "Fraction of variance unexplained",
    "alive": "Share of features alive",
    "gamma": "Relative reconstruction bias γ",
}
TASK = "feature-extraction"
"""What the Hub calls the task: features of activations. It has no name for dictionaries."""
REQUIRED = ("library_name", "license", "tags")
"""Fields without which a card is not published."""

_OURS = (*REQUIRED, "license_name", "license_link", "base_model", "datasets", "model-index")
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


def render(
    repo_id: str,
    entries: Sequence[Entry],
    publish: PublishPlan,
    kept: notes.Kept | None = None,
) -> str:
    """README.md of `repo_id`: front matter in YAML, then a section for each question.

    A figure that an entry does not state is `–`.

    Args:
        entries: every SAE of the repository, in any order.
        publish: licence, and what the language model is called on the Hub.
        kept: of the README.md that is there already (`notes.kept`).

    Raises:
        GatedError: the repository's name, the plan or an entry is malformed, or there is no entry.
    """
    naming.check_repo_id(repo_id)
    ordered = tables.in_order(entries)
    first, architectures = ordered[0], {facts.text(entry, "architecture") for entry in ordered}
    return _template().render(
        front_matter=front_matter(repo_id, ordered, publish, kept.metadata if kept else {}),
        repo_id=repo_id,
        saes=ordered,
        kind=f"{'Gated ' if architectures == {'gated'} else ''}sparse autoencoder",
        model=facts.text(first, "model"),
        synthetic=any(map(facts.is_synthetic, ordered)),
        first={
            "id": facts.sae_id(first),
            "hook": facts.text(first, "hook") or "its hook point",
            "d_in": facts.count(first, "weights.d_in"),
            "width": facts.count(first, "width"),
        },
        publish=publish,
        tables=tables,
        notes={"begin": notes.BEGIN, "end": notes.END, "text": kept.notes if kept else ""},
    )


def front_matter(
    repo_id: str, entries: Sequence[Entry], publish: PublishPlan, kept: dict[str, Any]
) -> str:
    """The YAML that the Hub reads, without its fences.

    Args:
        kept: the front matter that was there; its tags and its fields of other names remain.
    """
    require_valid(publish)
    named = {name for entry in entries for name in facts.texts(entry, "training.datasets")}
    for name in named:
        if not is_repo_id(name):
            raise GatedError(
                f"The index of {repo_id} names a dataset {facts.short(name)}, which is no id of the Hub; push "
                "to another repository."
            )
    metadata: dict[str, Any] = {"library_name": "saelens", "license": publish.license}
    for field in ("license_name", "license_link", "base_model"):
        if getattr(publish, field):
            metadata[field] = getattr(publish, field)
    if datasets := sorted(named | set(publish.datasets)):
        metadata["datasets"] = datasets
    tags = kept.get("tags")
    theirs = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    synthetic = any(map(facts.is_synthetic, entries))
    ours = (*TAGS, SYNTHETIC_TAG) if synthetic else TAGS
    metadata["tags"] = list(dict.fromkeys([*ours, *theirs]))
    metadata.update({key: value for key, value in kept.items() if key not in _OURS})
    if not synthetic and (evaluation := _evaluation(repo_id, entries)):
        metadata["model-index"] = evaluation
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)


def check_card(text: str, folder: Path, remote: Collection[str] = ()) -> None:
    """Refuse a card that the Hub or its client would not take, or with an image that is not there.

    Args:
        folder: what will be pushed, as it lies in the repository.
        remote: paths of the files that the repository holds besides.

    Raises:
        GatedError: what is wrong with it.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        card = ModelCard(text)
        written = yaml.safe_load(card.data.to_yaml())
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise GatedError(_invalid(f"its front matter cannot be read: {_line(error)}")) from error
    for field in REQUIRED:
        if not card.data.get(field):
            raise GatedError(_invalid(f"its front matter has no {field}"))
    block = REGEX_YAML_BLOCK.search(text)
    if block is None or yaml.safe_load(block[2]) != written:
        raise GatedError(_invalid("its front matter changes when the Hub's client reads it"))
    for link in _IMAGE.findall(card.text):
        path = unquote(link)
        if not urlsplit(link).scheme and path not in remote and not (folder / path).is_file():
            raise GatedError(_invalid(f"it shows {path}, and there is no such file"))


def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(bundled("cards")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: what others wrote goes through markdown.py
    )
    for name in ("code", "html", "plain", "literal"):
        environment.filters[name] = getattr(markdown, name)
    return environment.get_template("template.md")


def _evaluation(repo_id: str, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The model-index, in the one form that survives the client: it keeps a single model's name
    and merges what was measured on one dataset, so each metric names its SAE."""
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    results = []
    for entry in entries:
        dataset = facts.text(entry, "evaluation.dataset") or "unknown"
        for metric, name in METRICS.items():
            value = facts.number(entry, metric)
            if value is not None:
                result = EvalResult(
                    task_type=TASK,
                    dataset_type=_dataset_type(dataset),
                    dataset_name=dataset,
                    metric_type=metric,
                    metric_name=f"{name} of {facts.sae_id(entry)}",
                    metric_value=value,
                )
                results.append(result)
    return eval_results_to_model_index(repo_id, results) if results else []


def _dataset_type(dataset: str) -> str:
    # The Hub takes the type for one of its own datasets, links to it, and refuses other forms.
    name = re.sub(r"[^\w./-]", "_", dataset.removeprefix(EMBEDDED), flags=re.ASCII)
    owner, _, rest = name.rpartition("/")
    return f"{owner}/{rest}" if re.fullmatch(r"[\w-]+", owner) and rest else rest or "unknown"


def _invalid(problem: str) -> str:
    return f"The card is not fit to be published, because {problem}; mend README.md and push again."


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
