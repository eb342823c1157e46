"""`gated-hub eval`: a trained SAE on held-out text, spliced into its language model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import SAE
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import save_file
from torch import Tensor

from gated_plugin import sources
from gated_plugin.errors import GatedError
from gated_plugin.progress import Progress
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run, beside, read_json, write_json
from gated_plugin.science.metrics import ReconstructionSums, loss_recovered

RECORDED_ACTIVATIONS = 256


@dataclass(frozen=True)
class Evaluation:
    """Figures on held-out text; cross-entropies in nats per predicted token."""

    l0: float
    loss_recovered: float
    gamma: float
    alive: float
    fvu: float
    ce_clean: float
    ce_sae: float
    ce_zero: float
    tokens_evaluated: int
    tokens_trained: int
    dataset_path: str
    context_size: int
    seconds: float


class Splice:
    """Replaces a hook point's activations, where `mask` [prompts, context] says so."""

    def __init__(self, sae: SAE[Any], head: int | None, mask: Tensor) -> None:
        self.sae, self.head, self.mask = sae, head, mask
        self.x = self.x_hat = self.features = torch.empty(0)

    def reconstruction(self, activation: Tensor, hook: Any) -> Tensor:
        """The hook that puts x̂ in; keeps x, x̂ and the features [masked tokens, …]."""
        self.x = self._flat(activation)[self.mask].float()
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
        flat[self.mask] = values.to(flat.dtype)
        if self.head is not None:
            replaced[:, :, self.head] = flat
            return replaced
        return flat.view_as(activation)


def evaluate(run: Run, recipe: Recipe, *, quiet: bool = False) -> Evaluation:
    """Evaluate the run's SAE on the recipe's held-out text and write the figures into the run.

    Raises:
        GatedError: the run has no trained SAE, or the held-out text is shorter than one batch.
    """
    run.require_trained()
    started = time.monotonic()
    cfg = recipe.runner_config()
    sae = load_sae(run, cfg.device)
    model = sources.language_model(cfg)
    sums = ReconstructionSums(sae.cfg.d_in, sae.cfg.d_sae)
    losses = torch.zeros(3, dtype=torch.float64)
    batches = list(_held_out(recipe, cfg, model))
    recorded = torch.empty(0)
    with Progress("Evaluating", len(batches), quiet=quiet) as progress:
        for done, tokens in enumerate(batches, 1):
            splice = Splice(sae, cfg.hook_head_index, _mask(tokens, cfg, model))
            losses += _cross_entropies(model, cfg, tokens, splice)
            sums.update(splice.x, splice.x_hat, splice.features)
            if len(recorded) < RECORDED_ACTIVATIONS:
                recorded = torch.cat([recorded, splice.x.cpu()])[:RECORDED_ACTIVATIONS]
            progress.update(done)
    ce_clean, ce_sae, ce_zero = (losses / len(batches)).tolist()
    figures = sums.figures()
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
    _write(run, evaluation, sums, recorded)
    return evaluation


def load_sae(run: Run, device: str) -> SAE[Any]:
    """The run's trained SAE, for inference.

    Raises:
        GatedError: its files are damaged.
    """
    read_json(run.sae / "cfg.json")
    try:
        return SAE.load_from_disk(run.sae, device=device)
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise GatedError(
            f"The SAE in {run.sae} cannot be loaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); train the run again or restore the file from a copy."
        ) from error


def _held_out(
    recipe: Recipe, cfg: LanguageModelSAERunnerConfig[Any], model: Any
) -> Iterator[Tensor]:
    """Batches of prompts [batch_size_prompts, context_size], up to the planned tokens."""
    plan = recipe.evaluation
    rows = sources.token_rows(plan.dataset_path, plan.split, streaming=cfg.streaming)
    store = ActivationsStore.from_config(model, cfg, override_dataset=rows)
    wanted = max(1, plan.tokens // (plan.batch_size_prompts * cfg.context_size))
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


def _mask(tokens: Tensor, cfg: LanguageModelSAERunnerConfig[Any], model: Any) -> Tensor:
    """Positions that the SAE was trained for: its slice of the context, special tokens or not."""
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, slice(*cfg.seqpos_slice)] = True
    excluded = cfg.exclude_special_tokens
    if excluded is True:
        excluded = model.tokenizer.all_special_ids
    if excluded:
        mask &= ~torch.isin(tokens, torch.tensor(excluded, device=tokens.device))
    return mask


@torch.no_grad()
def _cross_entropies(
    model: Any, cfg: LanguageModelSAERunnerConfig[Any], tokens: Tensor, splice: Splice
) -> Tensor:
    """Mean next-token cross-entropy: left alone, spliced, zeroed."""
    hooks: list[list[tuple[str, Any]]] = [
        [],
        [(cfg.hook_name, splice.reconstruction)],
        [(cfg.hook_name, splice.zero)],
    ]
    values = [
        model.run_with_hooks(
            tokens, return_type="loss", prepend_bos=False, fwd_hooks=pairs, **cfg.model_kwargs
        )
        for pairs in hooks
    ]
    return torch.stack(values).double().cpu()


def _write(run: Run, evaluation: Evaluation, sums: ReconstructionSums, recorded: Tensor) -> None:
    features = {
        "firing_rate": (sums.fired / sums.tokens).float(),
        "mean_magnitude": (sums.magnitude / sums.fired.clamp_min(1)).float(),
    }
    with beside(run.features) as unfinished:
        save_file(features, unfinished)
    with beside(run.activations) as unfinished:
        save_file({"activations": recorded.contiguous()}, unfinished)
    write_json(run.evaluation, asdict(evaluation))
