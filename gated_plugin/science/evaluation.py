"""`gated-hub eval`: trained SAEs on held-out text, spliced into their language model.

SAEs of one hook point are measured together: the passes that need no SAE, with the activations left
alone and zeroed, run once for all of them. On synthetic activations there is no language model, and
no loss.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import SAE
from safetensors.torch import save_file

from gated_plugin import loading, sources
from gated_plugin.dictionaries import ARCHITECTURE, Dictionary
from gated_plugin.errors import GatedError
from gated_plugin.progress import Progress
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run, beside, read_json, write_json
from gated_plugin.science.held_out import HeldOut, HeldOutActivations
from gated_plugin.science.measuring import Evaluation, Measurement, Measuring
from gated_plugin.science.splice import Passes, Place, entry


def evaluate(run: Run, recipe: Recipe, *, quiet: bool = False) -> Evaluation:
    """Evaluate the run's SAE on the recipe's held-out text and write the figures into the run.

    Raises:
        GatedError: the run has no trained SAE, the held-out text is shorter than one batch or holds
            no token that the SAE is for, or the losses are not finite.
    """
    return evaluate_all([run], recipe, quiet=quiet)[0]


def evaluate_all(runs: Sequence[Run], recipe: Recipe, *, quiet: bool = False) -> list[Evaluation]:
    """Evaluate the SAEs of several runs off shared passes; each run gets its own figures.

    Args:
        runs: different ones; but for the SAE, the recipe of all of them is `recipe`.

    Raises:
        GatedError: as `evaluate`; then nothing is written into any run.
    """
    for run in runs:
        run.require_trained()
    with ExitStack() as alone:
        for run in runs:
            alone.enter_context(run.alone())
        measured = measure_all({str(run.path): load_sae(run) for run in runs}, recipe, quiet=quiet)
        for run in runs:
            _write(run, measured[str(run.path)])
    return [measurement.evaluation for measurement in measured.values()]


def measure(sae: SAE[Any], recipe: Recipe, *, quiet: bool = False) -> Measurement:
    """What `sae` makes of the recipe's held-out text; writes nothing.

    Raises:
        GatedError: as `evaluate`.
    """
    return measure_all({"the SAE": sae}, recipe, quiet=quiet)["the SAE"]


def measure_all(
    saes: Mapping[str, SAE[Any]], recipe: Recipe, *, quiet: bool = False
) -> dict[str, Measurement]:
    """What several SAEs of one hook point make of the recipe's held-out text; writes nothing.

    Args:
        saes: of any architecture and width, by name; what stands in for an SAE, such as
            `pursuit.PursuitSAE`, will do.
        recipe: of it are used the language model, its hook point, and the held-out text.

    Raises:
        GatedError: as `evaluate`; for one SAE of several it says which.
    """
    started = time.monotonic()
    cfg = recipe.runner_config()
    sources.require_devices(cfg)
    for sae in saes.values():
        sae.to(cfg.device).turn_off_forward_pass_hook_z_reshaping()  # `Place` concatenates heads
    measuring = Measuring(saes)
    if recipe.synthetic:
        _measure_on_activations(measuring, HeldOutActivations(recipe, cfg), quiet)
    else:
        _measure_on_text(measuring, recipe, cfg, quiet)
    return {name: measuring.result(name, recipe, cfg, started) for name in saes}


def _measure_on_text(
    measuring: Measuring, recipe: Recipe, cfg: LanguageModelSAERunnerConfig[Any], quiet: bool
) -> None:
    model = sources.language_model(cfg)
    text = HeldOut(recipe, cfg, model)
    begin = entry(model, cfg)
    with Progress("Evaluating", len(text.batches), quiet=quiet) as progress:
        for done, tokens in enumerate(text.batches, 1):
            place = Place(cfg.hook_head_index, text.mask(tokens))
            measuring.take(Passes(model, cfg, tokens, begin), place)
            progress.update(done)


def _measure_on_activations(
    measuring: Measuring, activations: HeldOutActivations, quiet: bool
) -> None:
    with Progress("Evaluating", len(activations), quiet=quiet) as progress:
        for done, batch in enumerate(activations, 1):
            measuring.take_without_losses(batch)
            progress.update(done)


def load_sae(run: Run) -> SAE[Any]:
    """The run's trained SAE, for inference, on the CPU.

    Raises:
        GatedError: its files are damaged.
    """
    described = read_json(run.sae / "cfg.json")
    try:
        if described["architecture"] == ARCHITECTURE:
            return loading.read(Dictionary.open(run.sae))  # half of the memory
        return SAE.load_from_disk(run.sae)
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        cause = " ".join(str(error).split()).rstrip(".")
        raise GatedError(
            f"The SAE in {run.sae} cannot be loaded ({cause}); restore it from a copy, or train "
            f"again: `gated-hub train {run.recipe} --out {run.path}-again`."
        ) from error


def _write(run: Run, measured: Measurement) -> None:
    with run.writing("The evaluation", f"gated-hub eval {run.path}"):
        with beside(run.features) as unfinished:
            save_file(measured.features, unfinished)
        with beside(run.activations) as unfinished:
            save_file({"activations": measured.activations}, unfinished)
        write_json(run.evaluation, asdict(measured.evaluation))
