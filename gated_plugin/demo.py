"""`gated-hub demo`: train, evaluate, publish to a local hub, load back with and without us.

Sets the environment of `huggingface_hub`, which reads it at its import: so this module imports
nothing that imports it at the top.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gated_plugin.errors import GatedError
from gated_plugin.runs import Run, read_json, write_json

RECIPE = "quickstart"
REPOSITORY = "local/gated-books-gelu-1l"


def demo(out: Path, *, quiet: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """Run the whole job into the run folder `out`, and write and return its `summary.json`.

    Raises:
        GatedError: `out` holds something that no demo made.
    """
    from gated_plugin.hub.local import LocalHub

    started = time.monotonic()
    _make_room(out)
    with LocalHub(out.parent / "hub") as hub:
        _point_huggingface_at(hub.url, hub.token, out.parent / "hub-cache")
        summary = _whole_job(out, quiet, report)
    summary["seconds"] = round(time.monotonic() - started, 1)
    run = Run(out)
    write_json(run.summary, summary)
    for title, path in (
        ("plots", run.plots),
        ("card", run.publication / "README.md"),
        ("figures", run.summary),
    ):
        report(f"{title:>8}: {path}")
    return summary


def _make_room(out: Path) -> None:
    """A demo that was finished is made anew; one that was killed is gone on with."""
    run = Run(out)
    if not out.exists() or (run.recipe.exists() and not run.summary.exists()):
        return
    if not run.recipe.exists():
        raise GatedError(f"{out} is no run folder; give the demo another --out.")
    shutil.rmtree(out)


def _point_huggingface_at(url: str, token: str, cache: Path) -> None:
    os.environ.update(
        HF_ENDPOINT=url,
        HF_TOKEN=token,
        HF_HUB_CACHE=str(cache.resolve()),
        HF_HUB_DISABLE_XET="1",  # the local hub speaks LFS alone
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        NO_PROXY="127.0.0.1",
        no_proxy="127.0.0.1",
    )


def _whole_job(out: Path, quiet: bool, report: Callable[[str], None]) -> dict[str, Any]:
    from gated_plugin.hub.publish import publish
    from gated_plugin.hub.verification import verify
    from gated_plugin.recipes import Recipe
    from gated_plugin.runner import train
    from gated_plugin.science.evaluation import evaluate
    from gated_plugin.science.plots import draw

    recipe = Recipe.load(RECIPE)
    report(f"1/4  Training {recipe.sae['d_sae']} features on {recipe.model_name}")
    run = train(recipe, out, resume=True, quiet=quiet)
    report("2/4  Evaluating on held-out works")
    evaluate(run, recipe, quiet=quiet)
    draw(run)
    report("3/4  Publishing to the local hub")
    published = publish([run], REPOSITORY, quiet=quiet, report=lambda line: report(f"     {line}"))
    (sae_id,) = published.sae_ids
    report("4/4  Loading back with SAE.from_pretrained")
    from sae_lens import SAE

    sae = SAE.from_pretrained(REPOSITORY, sae_id)
    agreement = verify(sae, run.activations, REPOSITORY, sae_id)
    return {
        **read_json(run.evaluation),
        "repo_id": REPOSITORY,
        "sae_id": sae_id,
        "revision": published.revision,
        "reloaded_with_plugin": type(sae).__module__ == "gated_plugin.architecture",
        "reloaded_without_plugin": True,  # `verify` raises where plain SAELens differs
        "max_abs_diff": agreement.max_abs_diff,
        "max_abs_diff_float32": agreement.max_abs_diff_float32,
    }
