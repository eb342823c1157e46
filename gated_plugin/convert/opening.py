"""What somebody names as a source → the dictionary that it is."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from gated_plugin.convert import dictionary_learning, remote, saelens
from gated_plugin.convert.weights import Source
from gated_plugin.errors import GatedError
from gated_plugin.hub import naming
from gated_plugin.loading import local_folder
from gated_plugin.runs import Run, read_json


def opened(source: Path | str, revision: str | None, token: str | None) -> Source:
    """The dictionary in a run, a folder, an ae.pt, or a folder of a repository on the Hub.

    Raises:
        GatedError: there is none, or it is damaged or hostile.
    """
    path = Path(source).expanduser()
    if not path.exists():
        naming.refuse_missing_path(str(source))
        folder, origin = remote.fetched(str(source), revision, token)
        return replace(_of_folder(folder), origin=origin)
    if revision is not None or token is not None:
        raise GatedError(
            f"{path} is here on this computer, which has no revision and takes no token; leave "
            "them out, or run the command in another folder to take a repository of that name."
        )
    if path.is_file():
        _require_name_of_weights(path)
        path = path.parent
    run = Run(path)
    if run.recipe.exists():
        run.require_trained()
        return replace(_measured(saelens.read(run.sae), run), run=run)
    return _of_folder(path)


def _measured(source: Source, run: Run) -> Source:
    """With the L0 of the run's evaluation, where SAELens' trainer left what it saw last."""
    if run.evaluation.exists():
        cfg = deepcopy(source.cfg)
        cfg.metadata.l0 = read_json(run.evaluation).get("l0")
        return replace(source, cfg=cfg)
    return source


def _of_folder(folder: Path) -> Source:
    names = (dictionary_learning.WEIGHTS, dictionary_learning.PICKLED)
    if any((folder / name).exists() for name in names):
        return dictionary_learning.read(folder)
    return saelens.read(local_folder(folder, None))


def _require_name_of_weights(path: Path) -> None:
    names = (dictionary_learning.PICKLED, dictionary_learning.WEIGHTS)
    if path.name not in names:
        raise GatedError(
            f"{path} is no dictionary by its name; give the folder of one, which holds "
            f"{' or '.join(names)} and {dictionary_learning.CONFIG}, or cfg.json and "
            "sae_weights.safetensors."
        )
