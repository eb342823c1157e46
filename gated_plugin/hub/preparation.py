"""Runs → the folder that a push sends, with every check passed before a byte leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gated_plugin.dictionaries import CFG, WEIGHTS, Dictionary
from gated_plugin.errors import GatedError
from gated_plugin.hub import certificate, client, index, naming
from gated_plugin.hub.cards import card, notes
from gated_plugin.hub.cards.licensing import plan_of, require_publishable
from gated_plugin.hub.repository import CARD, Repository
from gated_plugin.hub.staging import stage
from gated_plugin.hub.verification import verify_folders
from gated_plugin.recipes import PublishPlan, Recipe
from gated_plugin.runs import Run, folder_beside, write_json


def prepare(
    report: Callable[[str], None],
    runs: Sequence[str],
    repo_id: str,
    index_before: Any,
    card_before: str | None,
    remote: Sequence[str],
) -> dict[str, Any]:
    """Fill the first run's `publication` with the SAEs of all runs, card and index: for `apart`.

    Args:
        index_before: what the repository's config.json holds now, None where there is none; card
            and index keep its other SAEs.
        card_before: the README.md that it has now.
        remote: paths of the files that it has now.

    Returns:
        `folder`, `sae_ids`, and `max_abs_diff` between plain SAELens and the plugin in float64.

    Raises:
        GatedError: what is wrong with a run; nothing was sent, and an older publication stays.
    """
    opened = [Run(Path(run)) for run in runs]
    kept = _kept(card_before, opened[0].publication / CARD, repo_id)
    siblings = [] if index_before is None else index.entries_of(index_before, repo_id)
    siblings = [entry for entry in siblings if f"{entry['id']}/{CFG}" in remote]
    recipes = [Recipe.load(run.recipe) for run in opened]
    for run, recipe in zip(opened, recipes, strict=True):
        _require_gated(run, recipe.sae["architecture"])
    plans = [require_publishable(recipe, _is_gated) for recipe in recipes]
    drafts = _drafts(opened, recipes, siblings)
    made = {draft["id"] for draft in drafts}
    others = [entry for entry in siblings if entry["id"] not in made]
    _require_one_model([*drafts, *others], repo_id)
    _require_one_plan([*plans, *([plan_of(index_before, repo_id)] if others else [])], repo_id)
    publication = opened[0].publication
    with folder_beside(publication) as folder:
        for run, draft in zip(opened, drafts, strict=True):
            report(f"Folding {run.path} into {draft['id']}.")
            stage(run, draft, folder / draft["id"])
        entries = _compared(drafts, folder, report)
        content = index.index(repo_id, [*entries, *others], plans[0])
        write_json(folder / index.FILENAME, content)
        text = card.render(repo_id, content["saes"], plans[0], kept)
        card.check_card(text, folder, remote)
        (folder / CARD).write_text(text, encoding="utf-8")
    return {
        "folder": str(publication),
        "sae_ids": [entry["id"] for entry in entries],
        "max_abs_diff": max(entry["compared"]["float64"] for entry in entries),
    }


def _require_gated(run: Run, architecture: str) -> None:
    """Only our Gated SAEs are published from here, and only what plain SAELens can load."""
    if architecture == "gated_untied":
        raise GatedError(
            f"{run.path} holds a gated_untied SAE, an ablation whose second encoder plain SAELens "
            "has no place for, so that nobody could load it without this package; push a run of "
            "architecture gated."
        )
    if architecture != "gated":
        raise GatedError(
            f"{run.path} holds an SAE trained as {architecture}, and a card made here describes "
            "Gated SAEs trained by this package; publish it with upload_saes_to_huggingface of "
            "SAELens."
        )


def _drafts(
    runs: Sequence[Run], recipes: Sequence[Recipe], siblings: Sequence[index.Entry]
) -> list[index.Entry]:
    """What the index says of each run's SAE before it is staged, with an id that no SAE of other
    training settings has."""
    drafts: list[index.Entry] = []
    for run, recipe in zip(runs, recipes, strict=True):
        draft = index.entry(recipe, index.measured(run))
        others = [entry for entry in siblings if entry["training"] != draft["training"]]
        taken = {entry["id"] for entry in (*others, *drafts)}
        sae_id = naming.distinct_id(draft["hook"], draft["width"], draft["l0"], taken)
        drafts.append({**draft, "id": sae_id})
    return drafts


def _compared(
    drafts: Sequence[index.Entry], folder: Path, report: Callable[[str], None]
) -> list[index.Entry]:
    """The entries of staged SAEs, once plain SAELens has computed the same, and certified."""
    report("Comparing with plain SAELens.")
    compared = verify_folders([folder / draft["id"] for draft in drafts])
    return [
        {**draft, **_certified(folder / draft["id"], draft["id"], found, report)}
        for draft, found in zip(drafts, compared, strict=True)
    ]


def _certified(
    folder: Path, sae_id: str, compared: dict[str, Any], report: Callable[[str], None]
) -> dict[str, Any]:
    """Write the certificate of an SAE; what the index adds of it."""
    difference, rounded = certificate.largest_difference(compared), compared["float32"]
    relative = max(rounded["features_relative"], rounded["reconstructions_relative"])
    report(
        f"Plain SAELens computes {sae_id} to within {difference:.1e} in float64, and "
        f"{relative:.1e} of the largest value in float32."
    )
    certified = certificate.write(folder, sae_id, compared)["files"]
    staged = Dictionary.open(folder)
    return {
        "compared": {
            "rows": compared["rows"],
            "float64": difference,
            "float32_relative": relative,
        },
        "weights": {
            "d_in": staged.cfg.d_in,
            "dtype": staged.cfg.dtype,
            **certified[WEIGHTS],
            "plots": sorted(plot.name for plot in folder.glob("plots/*.png")),
        },
    }


def _is_gated(base_model: str) -> bool | None:
    """Whether one accepts terms before the Hub gives out a model; None where it has no such."""
    found = Repository(client.connect(), base_model).info()
    return None if found is None else bool(found.gated)


def _kept(card_before: str | None, own: Path, repo_id: str) -> notes.Kept:
    """What a person wrote into the repository's card; or, as long as there is nothing, into ours of
    an earlier dry run."""
    kept = notes.kept(card_before, f"{CARD} of {repo_id}")
    if kept.notes or not own.exists():
        return kept
    return kept._replace(notes=notes.kept(own.read_text(encoding="utf-8"), str(own)).notes)


def _require_one_plan(plans: Sequence[PublishPlan], repo_id: str) -> None:
    if any(plan != plans[0] for plan in plans):
        raise GatedError(
            f"The recipes and {repo_id} do not say the same below `publish`, and a repository has "
            "one card; make the recipe.yaml of each run alike, or push to two repositories."
        )


def _require_one_model(entries: Sequence[index.Entry], repo_id: str) -> None:
    models = sorted({entry["model"] for entry in entries})
    if len(models) > 1:
        raise GatedError(
            f"{repo_id} would hold SAEs of more than one language model ({', '.join(models)}); "
            "push to another repository."
        )
