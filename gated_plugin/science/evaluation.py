"""`gated-hub eval`: a trained SAE on held-out text, spliced into its language model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import SAE
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import save_file
from torch import Tensor

from gated_plugin import sources
from gated_plugin.activations import open_store
from gated_plugin.errors import GatedError
from gated_plugin.progress import Progress
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run, beside, read_json, write_json
from gated_plugin.science.metrics import ReconstructionSums, loss_recovered

RECORDED_ACTIVATIONS = 256


@dataclass(frozen=True)
class Evaluation:
    """Figures on held-out text; cross-entropies in nats per token, over what follows the tokens
    that the SAE is for."""

    l0: float
    loss_recovered: float | None
    gamma: float | None
    alive: float
    fvu: float | None
    ce_clean: float
    ce_sae: float
    ce_zero: float
    tokens_evaluated: int
    tokens_trained: int
    dataset_path: str
    context_size: int
    seconds: float


class Measurement(NamedTuple):
    """Figures, and the sums over the tokens that they are made of."""

    evaluation: Evaluation
    totals: _Totals


class Splice:
    """Replaces a hook point's activations, where `mask` [prompts, context] says so."""

    def __init__(self, sae: SAE[Any], head: int | None, mask: Tensor) -> None:
        self.sae, self.head, self.mask = sae, head, mask
        self.x = self.x_hat = self.features = torch.empty(0)

    def reconstruction(self, activation: Tensor, hook: Any) -> Tensor:
        """The hook that puts x̂ in; keeps x, x̂ and the features [masked tokens, …]."""
        self.x = self._flat(activation)[self.mask].float().to(self.sae.device)
        self.features = self.sae.encode(self.x)
        self.x_hat = self.sae.decode(self.features)
        return self._put(activation, self.x_hat)

    def zero(self, activation: Tensor, hook: Any) -> Tensor:
        """The hook that puts zeros in."""
        return self._put(activation, torch.zeros_like(self.x))

    def _flat(self, activation: Tensor) -> Tensor:
        """[prompts, context, d_in], heads concatenated as SAELens' store does."""
        if self.head is not None:
            return activation[:, :, self.head]
        return activation.flatten(2)

    def _put(self, activation: Tensor, values: Tensor) -> Tensor:
        replaced = activation.clone()
        flat = self._flat(activation).clone()
        flat[self.mask] = values.to(flat)
        if self.head is not None:
            replaced[:, :, self.head] = flat
            return replaced
        return flat.view_as(activation)


def evaluate(run: Run, recipe: Recipe, *, quiet: bool = False) -> Evaluation:
    """Evaluate the run's SAE on the recipe's held-out text and write the figures into the run.

    Raises:
        GatedError: the run has no trained SAE, the held-out text is shorter than one batch or holds
            no token that the SAE is for, or the losses are not finite.
    """
    run.require_trained()
    with run.alone():
        measured = measure(load_sae(run), recipe, quiet=quiet)
        _write(run, *measured)
    return measured.evaluation


def measure(sae: SAE[Any], recipe: Recipe, *, quiet: bool = False) -> Measurement:
    """What `sae` makes of the recipe's held-out text; writes nothing.

    Raises:
        GatedError: as `evaluate`.
    """
    started = time.monotonic()
    cfg = recipe.runner_config()
    sources.require_devices(cfg)
    sae.to(cfg.device).turn_off_forward_pass_hook_z_reshaping()  # `Splice` concatenates the heads
    model = sources.language_model(cfg)
    store = _held_out_store(recipe, cfg, model)
    batches = list(_held_out(store, recipe))
    totals = _Totals(ReconstructionSums(sae.cfg.d_in, sae.cfg.d_sae))
    with Progress("Evaluating", len(batches), quiet=quiet) as progress:
        for done, tokens in enumerate(batches, 1):
            splice = Splice(sae, cfg.hook_head_index, _mask(tokens, store))
            totals.update(splice, _cross_entropies(model, cfg, tokens, splice))
            progress.update(done)
    ce_clean, ce_sae, ce_zero = totals.cross_entropies()
    figures = totals.sums.figures()
    evaluation = Evaluation(
        l0=figures.l0,
        loss_recovered=loss_recovered(ce_clean, ce_sae, ce_zero),
        gamma=figures.gamma,
        alive=figures.alive,
        fvu=figures.fvu,
        ce_clean=ce_clean,
        ce_sae=ce_sae,
        ce_zero=ce_zero,
        tokens_evaluated=figures.tokens,
        tokens_trained=cfg.total_training_steps * cfg.train_batch_size_tokens,
        dataset_path=recipe.evaluation.dataset_path,
        context_size=cfg.context_size,
        seconds=round(time.monotonic() - started, 1),
    )
    return Measurement(evaluation, totals)


@dataclass
class _Totals:
    """What is summed over the batches."""

    sums: ReconstructionSums
    losses: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.float64))
    predicted: int = 0
    recorded: Tensor = field(default_factory=lambda: torch.empty(0))

    def update(self, splice: Splice, losses: Tensor) -> None:
        self.sums.update(splice.x, splice.x_hat, splice.features)
        self.losses += losses
        self.predicted += int(splice.mask[:, :-1].sum())
        if len(self.recorded) < RECORDED_ACTIVATIONS:
            self.recorded = torch.cat([self.recorded, splice.x.cpu()])[:RECORDED_ACTIVATIONS]

    def cross_entropies(self) -> list[float]:
        """Left alone, spliced, zeroed; in nats per token."""
        if not self.predicted:
            raise GatedError(
                "The held-out text has no token that the SAE is for, by seqpos_slice and "
                "exclude_special_tokens; give another evaluation.dataset_path."
            )
        if not self.losses.isfinite().all():
            raise GatedError(
                "The loss on the held-out text is not finite (left alone, spliced, zeroed: "
                f"{self.losses.tolist()}); nothing was written: mend model, SAE or dataset."
            )
        return (self.losses / self.predicted).tolist()


def load_sae(run: Run) -> SAE[Any]:
    """The run's trained SAE, for inference, on the CPU.

    Raises:
        GatedError: its files are damaged.
    """
    read_json(run.sae / "cfg.json")
    try:
        return SAE.load_from_disk(run.sae)
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise GatedError(
            f"The SAE in {run.sae} cannot be loaded ({' '.join(str(error).split())}); restore it "
            f"from a copy, or train again: `gated-hub train {run.recipe} --out {run.path}-again`."
        ) from error


def _held_out_store(
    recipe: Recipe, cfg: LanguageModelSAERunnerConfig[Any], model: Any
) -> ActivationsStore:
    plan = recipe.evaluation
    rows = sources.token_rows(plan.dataset_path, plan.split, streaming=cfg.streaming)
    return open_store(model, rows, cfg)


def _held_out(store: ActivationsStore, recipe: Recipe) -> Iterator[Tensor]:
    """Batches of prompts [batch_size_prompts, context_size], up to the planned tokens."""
    plan = recipe.evaluation
    wanted = max(1, plan.tokens // (plan.batch_size_prompts * store.context_size))
    for made in range(wanted):
        try:
            yield store.get_batch_tokens(plan.batch_size_prompts, raise_at_epoch_end=True)
        except StopIteration:
            if made == 0:
                raise GatedError(
                    f"{plan.dataset_path} holds less than one batch of "
                    f"{plan.batch_size_prompts} prompts; lower evaluation.batch_size_prompts."
                ) from None
            return


def _mask(tokens: Tensor, store: ActivationsStore) -> Tensor:
    """Positions that the SAE was trained for: its slice of the context, special tokens or not."""
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, slice(*store.seqpos_slice)] = True
    if store.exclude_special_tokens is not None:
        mask &= ~torch.isin(tokens, store.exclude_special_tokens.to(tokens.device))
    return mask


@torch.no_grad()
def _cross_entropies(
    model: Any, cfg: LanguageModelSAERunnerConfig[Any], tokens: Tensor, splice: Splice
) -> Tensor:
    """Cross-entropy of what follows each masked token, summed: left alone, spliced, zeroed."""
    hooks: list[list[tuple[str, Any]]] = [
        [],
        [(cfg.hook_name, splice.reconstruction)],
        [(cfg.hook_name, splice.zero)],
    ]
    sums = []
    for pairs in hooks:
        _, losses = model.run_with_hooks(
            tokens,
            return_type="both",
            loss_per_token=True,
            prepend_bos=False,
            fwd_hooks=pairs,
            **cfg.model_kwargs,
        )
        sums.append(losses[splice.mask[:, :-1]].double().sum())
    return torch.stack(sums).cpu()


def _write(run: Run, evaluation: Evaluation, totals: _Totals) -> None:
    sums = totals.sums
    features = {
        "firing_rate": (sums.fired / sums.tokens).float(),
        "mean_magnitude": (sums.magnitude / sums.fired.clamp_min(1)).float(),
    }
    with beside(run.features) as unfinished:
        save_file(features, unfinished)
    with beside(run.activations) as unfinished:
        save_file({"activations": totals.recorded}, unfinished)
    write_json(run.evaluation, asdict(evaluation))
