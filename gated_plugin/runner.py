"""`gated-hub train`: a thin runner over SAELens' trainer, with exact resumption."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file

from gated_plugin import checkpoints, sources
from gated_plugin.activation_cache import ActivationCache
from gated_plugin.activations import ActivationStream, TextStream
from gated_plugin.baseline import as_gated
from gated_plugin.dictionaries import WEIGHTS
from gated_plugin.engine import options as engine
from gated_plugin.engine.dispatch import require_served
from gated_plugin.environment import environment
from gated_plugin.errors import GatedError, Interrupted
from gated_plugin.paper_sae import PaperTrainingSAE
from gated_plugin.progress import Progress
from gated_plugin.recipes import Recipe
from gated_plugin.runs import UNFINISHED, Run, beside, folder_beside, read_json, write_json
from gated_plugin.synthetic_stream import SyntheticStream
from gated_plugin.tensor_files import whole, write_tensors
from gated_plugin.training import GatedTrainingSAE
from gated_plugin.training_log import TrainingLog, figures_of, live_line

LOG_LINES = 200
BEFORE_THE_RECIPE = ("environment.json", ".lock")
"""What `write_start` makes before that: a kill may have come between."""
BASELINE = "standard"
METADATA = (
    "model_name",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "hook_name",
    "hook_head_index",
    "dataset_path",
    "context_size",
    "prepend_bos",
    "seqpos_slice",
    "exclude_special_tokens",
    "sequence_separator_token",
    "disable_concat_sequences",
)
"""What SAELens' runner notes in an SAE's `cfg.json`, where a language model is read."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    checkpoint_every: int | None = None,
    quiet: bool = False,
) -> Run:
    """Train the SAE of `recipe` into the run folder `out`.

    Args:
        resume: continue the run in `out` from its last checkpoint; the result is bit-identical to
            an uninterrupted run on the same machine.
        checkpoint_every: steps between checkpoints; by default a hundredth of the run, at least 100.

    Raises:
        GatedError: `out` is in use, its recipe is another one, the recipe fits no model or data, or
            a batch is not finite. A run that has not begun leaves no folder behind.
        Interrupted: stopped by the user.
    """
    run = Run(out)
    require_startable(run, recipe, resume)
    if run.is_trained:
        checkpoints.delete(run)  # a kill may have come between
        return run
    stream = open_stream(recipe)
    trainer = new_trainer(recipe, stream)
    require_served(recipe.engine.impl, trainer.sae.W_enc)
    if checkpoints.latest(run) is None:
        prepare(trainer, stream, recipe)
        write_start(run, recipe)
    every = checkpoint_every or max(100, trainer.cfg.total_training_steps // 100)
    with run.alone(), engine.use(**asdict(recipe.engine)):
        found = checkpoints.latest(run)
        if found is not None:
            checkpoints.load(found, trainer, stream)
        _fit(run, trainer, stream, every, quiet)
        finish(run, trainer, recipe)
    return run


def require_startable(run: Run, recipe: Recipe, resume: bool) -> None:
    """Raise `GatedError` unless the folder is free, or holds a run of `recipe` to resume."""
    if run.recipe.exists():
        if not resume:
            raise GatedError(
                f"{run.path} already holds a run; continue it with --resume, or give another --out."
            )
        _require_same(recipe, run)
    elif run.path.exists() and any(
        file.name not in BEFORE_THE_RECIPE and not file.name.endswith(UNFINISHED)
        for file in run.path.iterdir()
    ):
        raise GatedError(f"{run.path} is not empty and no run; give another --out.")


def _require_same(given: Recipe, run: Run) -> None:
    ours, theirs = given.settings, Recipe.load(run.recipe).settings
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise GatedError(
                f"{run.path} was started with {key} = {theirs.get(key)!r}, not {ours.get(key)!r}; "
                f"resume it with `{run.command}`."
            )


def write_start(run: Run, recipe: Recipe) -> None:
    """The recipe comes last: it is what makes a folder a run."""
    with run.writing("The start of the run"):
        run.path.mkdir(parents=True, exist_ok=True)
        with run.alone():
            write_json(run.environment, environment())
            with beside(run.recipe) as unfinished:
                unfinished.write_text(recipe.to_yaml(), encoding="utf-8")


def open_stream(recipe: Recipe, cache: Path | None = None) -> ActivationStream:
    """The activations that `recipe` trains on; a language model's by way of `cache` if given."""
    cfg = recipe.runner_config()
    sources.require_devices(cfg)
    if recipe.synthetic:
        return SyntheticStream(cfg)
    model = sources.language_model(cfg)
    rows = sources.token_rows(cfg.dataset_path, streaming=cfg.streaming)
    kept = None if cache is None else ActivationCache(cache, cfg)
    return TextStream(model, rows, cfg, kept)


def new_trainer(recipe: Recipe, stream: ActivationStream) -> SAETrainer[Any, Any]:
    """SAELens' trainer with the SAE of `recipe`, whose start depends on `seed` alone."""
    cfg = recipe.runner_config()
    torch.manual_seed(cfg.seed)
    read = {name: getattr(cfg, name) for name in METADATA}
    for name, value in ({"synthetic": True} if recipe.synthetic else read).items():
        setattr(cfg.sae.metadata, name, value)
    sae = TrainingSAE.from_dict(cfg.sae.to_dict()).to(cfg.device)
    try:
        return SAETrainer(cfg=cfg.to_sae_trainer_config(), sae=sae, data_provider=stream)
    except (ValueError, TypeError) as error:
        raise GatedError(f"SAELens cannot train by this recipe: {error}; change it.") from error


def prepare(trainer: SAETrainer[Any, Any], stream: ActivationStream, recipe: Recipe) -> None:
    """Before the first step: starting weights, activation scaling, and whether there is a batch."""
    start = recipe.runner.get("from_pretrained_path")
    if start is not None:
        _start_from(Path(start), trainer.sae)
    elif isinstance(trainer.sae, GatedTrainingSAE) and trainer.sae.cfg.trained == "magnitude":
        raise GatedError(
            "sae.trained: magnitude learns only the scale and shift of magnitudes, but the recipe "
            "names no SAE to start as; give --set from_pretrained_path=RUN/sae of an l1_baseline run."
        )
    _estimate_scaling(trainer, stream)
    next(stream)
    stream.seek(chunk=0, served=0)


def _start_from(folder: Path, sae: TrainingSAE[Any]) -> None:
    """The weights in `folder`, of an SAE of the same shape on activations of the same scale.

    A checkpoint or a finished SAE of the same architecture; a Gated SAE may also start as a
    baseline SAE, such as one whose magnitudes are to be rescaled and shifted.
    """
    if isinstance(sae, PaperTrainingSAE) and sae.data_start is not None:
        raise GatedError(
            f"sae.start: data would set anew what is taken over from {folder}; leave out one of "
            "sae.start and from_pretrained_path."
        )
    cfg = read_json(folder / "cfg.json")
    from_baseline = isinstance(sae, GatedTrainingSAE) and cfg.get("architecture") == BASELINE
    finished = sae.cfg.get_inference_config_class().architecture()
    is_kin = from_baseline or cfg.get("architecture") == finished
    for key in ("architecture", "d_in", "d_sae", "normalize_activations"):
        ours = sae.cfg.to_dict()[key]
        if cfg.get(key) != ours and not (key == "architecture" and is_kin):
            raise GatedError(
                f"from_pretrained_path {folder} has {key} = {cfg.get(key)!r}, but the recipe says "
                f"{ours!r}; give --set sae.{key}={cfg.get(key)}."
            )
    try:
        if from_baseline:
            sae.load_state_dict(as_gated(load_file(folder / WEIGHTS)))
        else:
            TrainingSAE.load_weights_from_checkpoint(sae, folder)  # no state of its training
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise GatedError(
            f"The SAE in {folder} cannot be read ({' '.join(str(error).split())}); give another "
            "from_pretrained_path."
        ) from error


def _estimate_scaling(trainer: SAETrainer[Any, Any], stream: ActivationStream) -> None:
    """As SAELens' `fit` does, but the batches are not used up; a scaling that is there is kept."""
    kind = trainer.sae.cfg.normalize_activations
    estimate = {
        "expected_average_only_in": trainer.activation_scaler.estimate_scaling_factor,
        "covariance_whitening": trainer.activation_scaler.estimate_whitening,
    }.get(kind)
    if estimate is not None and trainer.activation_scaler == ActivationScaler():
        estimate(
            d_in=trainer.sae.cfg.d_in,
            data_provider=stream,
            n_batches_for_norm_estimate=trainer.cfg.n_batches_for_norm_estimate,
        )


def _fit(
    run: Run, trainer: SAETrainer[Any, Any], stream: ActivationStream, every: int, quiet: bool
) -> None:
    total = trainer.cfg.total_training_steps
    log_every = max(1, total // LOG_LINES)
    with (
        stop_requests() as stop,
        Progress("Training", total, trainer.n_training_steps, quiet=quiet) as progress,
    ):
        log = TrainingLog(run, trainer.n_training_steps)
        while trainer.n_training_steps < total:
            trainer.maybe_reset_sparsity()
            output = _step(run, trainer, stream)
            if trainer.n_training_steps % log_every == 0:
                figures = figures_of(trainer, output)
                log.write(figures)
                progress.update(trainer.n_training_steps, live_line(figures))
            if stop or trainer.n_training_steps % every == 0:
                checkpoints.save(run, trainer, stream)
            if stop:
                raise Interrupted(
                    f"Stopped at step {trainer.n_training_steps} of {total}; continue with "
                    f"`{run.command}`."
                )


def _step(run: Run, trainer: SAETrainer[Any, Any], stream: ActivationStream) -> TrainStepOutput:
    """One step; where its batch is refused, a checkpoint of the moment before it."""
    place, samples = stream.position(), trainer.n_training_samples
    try:
        output = trainer.step(next(stream))
    except GatedError:
        stream.seek(**place)
        trainer.n_training_samples = samples
        checkpoints.save(run, trainer, stream)
        raise
    trainer.n_training_steps += 1
    return output


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step is never cut in two."""
    received: list[int] = []
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda number, _frame: received.append(number)) for kind in kinds]
    try:
        yield received
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def finish(run: Run, trainer: SAETrainer[Any, Any], recipe: Recipe) -> None:
    """Fold the activation scaling into the weights and save the SAE for inference."""
    scaler, sae = trainer.activation_scaler, trainer.sae
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        sae.fold_activation_whitening(
            mean=scaler.whitening.mean,
            whitening_matrix=scaler.whitening.matrix,
            unwhitening_matrix=scaler.whitening.inverse_matrix,
        )
    trainer.set_final_sae_metadata()
    with run.writing("The trained SAE"), folder_beside(run.sae) as unfinished:
        sae.save_inference_model(unfinished)
        sparsity = {"sparsity": whole(trainer.log_feature_sparsity)}
        write_tensors(unfinished / "sparsity.safetensors", sparsity)
        write_json(unfinished / "runner_cfg.json", recipe.runner_config().to_dict())
    checkpoints.delete(run)
