"""The root config.json of a repository: what is known of each SAE in it.

The card is written from the index alone, so that a push of one SAE keeps what the card says of the
others. The Hub counts a repository's downloads by its root config.json.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import gated_plugin
from gated_plugin.errors import GatedError
from gated_plugin.hub.cards.licensing import kept_plan
from gated_plugin.hub.naming import without_machine_paths
from gated_plugin.recipes import SYNTHETIC, PublishPlan, Recipe
from gated_plugin.runs import Run, read_json

FILENAME = "config.json"
FIGURES = ("l0", "loss_recovered", "gamma", "alive", "fvu", "ce_clean", "ce_sae", "ce_zero")
COUNTS = ("tokens_evaluated", "tokens_trained", "context_size")
OF_LANGUAGE_MODEL = ("loss_recovered", "ce_clean", "ce_sae", "ce_zero", "context_size")
"""Figures and counts that an SAE of synthetic activations has not."""
SYNTHETIC_HOOK = "synthetic"
"""In place of a hook point, so that the SAE's folder begins with it."""

Entry = dict[str, Any]
"""One SAE: id, architecture, model, hook, width, figures, training, evaluation, weights."""


def index(repo_id: str, entries: Iterable[Entry], publish: PublishPlan) -> dict[str, Any]:
    """The content of config.json.

    Args:
        publish: what the card says of licence and language model, so that the index alone is
            enough to write the card again.
    """
    return {
        "repo_id": repo_id,
        "library_name": "saelens",
        "library_version": version("sae-lens"),
        "gated_plugin_version": gated_plugin.__version__,
        "publish": kept_plan(publish),
        "saes": sorted(entries, key=lambda entry: entry["id"]),
    }


def entries_of(content: Any, repo_id: str) -> list[Entry]:
    """The entries of a repository's config.json.

    Raises:
        GatedError: it is something else than an index of ours; a push would destroy it.
    """
    entries = content.get("saes") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise GatedError(
            f"{repo_id} holds a config.json that is no index of dictionaries, and a push would "
            "overwrite it; push to another repository."
        )
    return entries


def _digest(settings: dict[str, Any]) -> str:
    """Tells apart the settings of two trainings, also those that no card shows."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measured(run: Run) -> dict[str, Any]:
    """The figures of a run's evaluation, all of them there and finite; on synthetic activations,
    all that are not of a language model.

    Raises:
        GatedError: one is not.
    """
    figures = read_json(run.evaluation)
    absent = OF_LANGUAGE_MODEL if figures.get("dataset_path") == SYNTHETIC else ()
    for name in (name for name in (*FIGURES, *COUNTS) if name not in absent):
        value = figures.get(name)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise GatedError(
                f"{run.evaluation} has no finite {name}, which the card must state; "
                f"run `gated-hub eval {run.path}` again."
            )
    return figures


def entry(recipe: Recipe, figures: dict[str, Any]) -> Entry:
    """What the index says of one SAE before it is staged: neither id nor weights.

    Args:
        figures: of `measured`.
    """
    config = recipe.runner_config()
    sae = config.sae
    ablations = [f"{name}: {value}" for name, value in sae.ablated.items()]
    synthetic = recipe.synthetic
    context = {
        "context_size": config.context_size,
        "prepend_bos": config.prepend_bos,
        "exclude_special_tokens": bool(config.exclude_special_tokens),
    }
    return without_machine_paths(
        {
            "architecture": sae.architecture(),
            "model": SYNTHETIC if synthetic else config.model_name,
            "hook": SYNTHETIC_HOOK if synthetic else config.hook_name,
            "width": sae.d_sae,
            **{name: figures[name] for name in FIGURES},
            "training": {
                "dataset": SYNTHETIC if synthetic else config.dataset_path,
                "datasets": () if synthetic else recipe.publish.datasets,
                "tokens": figures["tokens_trained"],
                **({} if synthetic else context),
                "l1_coefficient": sae.l1_coefficient,
                "target_l0": sae.target_l0,
                "lr": config.lr,
                "adam_beta1": config.adam_beta1,
                "batch": config.train_batch_size_tokens,
                "normalize_activations": sae.normalize_activations,
                "dtype": config.dtype,
                "seed": config.seed,
                "settings": _digest({**recipe.runner, "sae": recipe.sae}),
                **({"ablations": ablations} if ablations else {}),
            },
            "evaluation": {
                "dataset": figures["dataset_path"],
                "tokens": figures["tokens_evaluated"],
                "context_size": figures["context_size"],
            },
        }
    )


_KINDS = {"id": str, "model": str, "hook": str, "width": int} | dict.fromkeys(
    ("training", "evaluation", "weights"), dict
)


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() >= {*_KINDS, *FIGURES}
        and all(isinstance(entry[key], kind) for key, kind in _KINDS.items())
    )
