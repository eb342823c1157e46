"""Many SAEs trained in lockstep on one stream of activations.

Every member is what `gated-hub train` makes of its recipe alone, bit for bit: the same batches, the
same start. Through the seams that SAELens' own `MultiSAETrainer` uses (`SAETrainer.step`,
`maybe_reset_sparsity`), but members may differ in learning rate and in all else that does not shape
a batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer

from gated_plugin import runner
from gated_plugin.activations import ActivationStream
from gated_plugin.engine import options as engine
from gated_plugin.errors import GatedError, Interrupted
from gated_plugin.progress import Progress
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run
from gated_plugin.training_log import TrainingLog, figures_of

LOG_LINES = 50
OF_A_MEMBER = frozenset(
    {
        "adam_beta1",
        "adam_beta2",
        "dead_feature_window",
        "feature_sampling_window",
        "from_pretrained_path",
        "lr",
        "lr_decay_steps",
        "lr_end",
        "lr_scheduler_name",
        "lr_warm_up_steps",
        "n_restart_cycles",
    }
)
"""Settings outside of `sae` that may differ within a group: they shape no batch."""


class Member(NamedTuple):
    """One SAE of a group."""

    recipe: Recipe
    run: Run
    trainer: SAETrainer[Any, Any]


def train_together(
    recipes: Sequence[Recipe],
    folders: Sequence[Path],
    *,
    cache: Path | None = None,
    quiet: bool = False,
) -> list[Run]:
    """Train the SAE of each recipe into the run folder of the same place.

    A run that is trained already is left as it is. One that was killed starts anew, and so does the
    whole rest of its group; until then it is an unfinished run as any other.

    Args:
        recipes: alike but for `sae`, `name`, `publish`, and the settings in `OF_A_MEMBER`.
        cache: folder in which activations are kept for groups that come later; by default the
            language model runs.

    Returns:
        The runs, trained, in the order of the recipes. The last line of each `training.jsonl` has
        its `training_seconds`, the time in steps of this SAE alone.

    Raises:
        GatedError: the recipes differ in what shapes a batch, one of them fits no model or data, a
            folder holds a run of another recipe, or a batch is not finite.
        Interrupted: stopped by the user.
    """
    runs = [Run(folder) for folder in folders]
    for run, recipe in zip(runs, recipes, strict=True):
        _require_shared(recipes[0], recipe)
        runner.require_startable(run, recipe, resume=True)
    pairs = zip(recipes, runs, strict=True)
    missing = [(recipe, run) for recipe, run in pairs if not run.is_trained]
    if not missing:
        return runs
    stream = runner.open_stream(recipes[0], cache)
    members = [Member(recipe, run, runner.new_trainer(recipe, stream)) for recipe, run in missing]
    _prepare(members, stream)
    for member in members:
        runner.write_start(member.run, member.recipe)
    with ExitStack() as locks, engine.use(**asdict(recipes[0].engine)):
        for member in members:
            locks.enter_context(member.run.alone())
        _fit(members, stream, quiet)
        for member in members:
            runner.finish(member.run, member.trainer, member.recipe)
    return runs


def _require_shared(first: Recipe, other: Recipe) -> None:
    ours, theirs = _shared(first), _shared(other)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise GatedError(
                f"A group shares its batches, but {key} is {ours.get(key)!r} in one recipe and "
                f"{theirs.get(key)!r} in another; train them in two groups."
            )


def _shared(recipe: Recipe) -> dict[str, Any]:
    return {
        key: value
        for key, value in recipe.settings.items()
        if key not in OF_A_MEMBER
        and (key == "sae.d_in" or not key.startswith(("sae.", "publish.")))
    }


def _prepare(members: Sequence[Member], stream: ActivationStream) -> None:
    """As `runner.prepare`, but each kind of activation scaling is estimated once."""
    scalers: dict[str, ActivationScaler] = {}
    for recipe, _, trainer in members:
        kind = trainer.sae.cfg.normalize_activations
        trainer.activation_scaler = copy(scalers.get(kind, trainer.activation_scaler))
        runner.prepare(trainer, stream, recipe)
        scalers[kind] = trainer.activation_scaler


def _fit(members: Sequence[Member], stream: ActivationStream, quiet: bool) -> None:
    total = members[0].trainer.cfg.total_training_steps
    log_every = max(1, total // LOG_LINES)
    seconds = [0.0] * len(members)
    with (
        runner.stop_requests() as stop,
        Progress(
            f"Training {len(members)} SAE{'s' * (len(members) > 1)}", total, quiet=quiet
        ) as progress,
    ):
        logs = [TrainingLog(run, 0) for _, run, _ in members]
        for step in range(1, total + 1):
            batch = next(stream)
            for place, (_, _, trainer) in enumerate(members):
                started = time.perf_counter()
                output = _step(trainer, batch)
                seconds[place] += time.perf_counter() - started
                if step % log_every == 0 or step == total:
                    figures = figures_of(trainer, output)
                    logs[place].write(figures | {"training_seconds": round(seconds[place], 3)})
            progress.update(step)
            if stop:
                raise Interrupted(
                    f"Stopped at step {step} of {total} of {len(members)} SAEs; the same command "
                    "starts these anew and keeps what was finished before."
                )


def _step(trainer: SAETrainer[Any, Any], batch: torch.Tensor) -> TrainStepOutput:
    """One step, over when it is over on the device."""
    trainer.maybe_reset_sparsity()
    output = trainer.step(batch)
    trainer.n_training_steps += 1
    if batch.is_cuda or trainer.sae.device.type == "cuda":
        torch.cuda.synchronize()
    return output
