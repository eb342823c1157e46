"""What SAEs make of held-out activations, summed batch by batch, and the figures of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import SAE
from torch import Tensor

from gated_plugin.architecture import GatedBase
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.errors import GatedError
from gated_plugin.recipes import SYNTHETIC, Recipe
from gated_plugin.science.intervals import Interval
from gated_plugin.science.metrics import Batch, SaeSums, TextSums
from gated_plugin.science.splice import Passes, Place
from gated_plugin.science.weight_figures import weight_figures

RECORDED_ACTIVATIONS = 256
FEATURES_AT_ONCE = 1 << 26
"""Entries of dense features in memory at once: 256 MB in float32."""


@dataclass(frozen=True)
class Evaluation:
    """Figures on held-out text; cross-entropies in nats per token, over what follows the tokens
    that the SAE is for. Intervals are of 95 %, bootstrapped over sequences (`intervals`), and None
    for a single sequence. `metrics` has the formulas. Without a language model there is no figure of
    losses or of contexts."""

    l0: float
    l0_interval: Interval | None
    loss_recovered: float | None
    loss_recovered_interval: Interval | None
    gamma: float | None
    gamma_interval: Interval | None
    alive: float
    n_dead: int
    """Features that never fired; the others are alive."""
    n_dense: int
    """Features that fired on more than a tenth of the tokens."""
    fvu: float | None
    fvu_interval: Interval | None
    encoder_decoder_cosine: float | None
    """Mean over the alive features; None where none is, or where there is no encoder."""
    ce_clean: float | None
    ce_sae: float | None
    ce_zero: float | None
    tokens_evaluated: int
    tokens_trained: int
    dataset_path: str
    context_size: int | None
    seconds: float
    """Of the whole measurement; SAEs that were measured together share it."""


class Measurement(NamedTuple):
    """What one SAE makes of a text."""

    evaluation: Evaluation
    features: dict[str, Tensor]
    """Per feature, float32 [d_sae]: `firing_rate`, `mean_magnitude` where it fires; where the
    architecture has them also `theta` and `encoder_decoder_cosine` (`weight_figures`)."""
    activations: Tensor
    """The first activations of the text [rows, d_in], to compare features on."""


class Measuring:
    """Several SAEs measured together: what is summed over the batches.

    Args:
        saes: by name; of one number of inputs.
    """

    def __init__(self, saes: Mapping[str, SAE[Any]]) -> None:
        self.saes = saes
        self.text = TextSums()
        self.sums = {name: SaeSums(sae.cfg.d_sae) for name, sae in saes.items()}
        self.recorded = torch.empty(0)

    @torch.no_grad()
    def take(self, passes: Passes, place: Place) -> None:
        """One batch."""
        x = place.take(passes.activation)
        sequence = place.mask.nonzero()[:, 0]
        zeroed = passes.with_activation(place.put(passes.activation, 0.0))
        self.text.update(
            Batch(x, sequence, len(place.mask)),
            place.mask[:, :-1].sum(1).cpu(),
            place.summed(passes.clean),
            place.summed(zeroed),
        )
        for name, sae in self.saes.items():
            batch = Batch(x.to(sae.device), sequence.to(sae.device), len(place.mask))
            x_hat = self._reconstruct(name, batch, place.mask.shape[1])
            spliced = passes.with_activation(place.put(passes.activation, x_hat))
            self.sums[name].splice(place.summed(spliced))
        self._record(x)

    @torch.no_grad()
    def take_without_losses(self, batch: Batch) -> None:
        """One batch that no language model reads: no token is predicted."""
        nothing = torch.zeros(batch.sequences, dtype=torch.float64)
        self.text.update(batch, nothing, nothing, nothing)
        for name in self.saes:
            self._reconstruct(name, batch, len(batch.x_TN) // batch.sequences)
            self.sums[name].splice(nothing)
        self._record(batch.x_TN)

    def _record(self, x: Tensor) -> None:
        if len(self.recorded) < RECORDED_ACTIVATIONS:
            self.recorded = torch.cat([self.recorded, x.cpu()])[:RECORDED_ACTIVATIONS]

    def _reconstruct(self, name: str, batch: Batch, context: int) -> Tensor:
        sae, sums = self.saes[name], self.sums[name]
        x_hats = []
        for part in batch.parts(max(1, FEATURES_AT_ONCE // (context * sae.cfg.d_sae))):
            codes, x_hat = coded(sae, part.x_TN)
            sums.update(part, codes, x_hat)
            x_hats.append(x_hat)
        return torch.cat(x_hats)

    def result(
        self, name: str, recipe: Recipe, cfg: LanguageModelSAERunnerConfig[Any], started: float
    ) -> Measurement:
        """The figures of one SAE."""
        synthetic = recipe.synthetic
        ce_clean, ce_sae, ce_zero = [None] * 3 if synthetic else self._cross_entropies(name)
        sums = self.sums[name]
        figures = sums.figures(self.text)
        if synthetic and figures.fvu.value is None:
            raise GatedError(
                f"What {name} makes of synthetic activations is not finite; nothing was written: "
                "its weights hold NaN or too large numbers, so train it again, or restore it."
            )
        of_weights = weight_figures(self.saes[name])
        features = {
            "firing_rate": (sums.fired / figures.tokens).float(),
            "mean_magnitude": (sums.magnitude / sums.fired.clamp_min(1)).float(),
            **of_weights,
        }
        cosine = of_weights.get("encoder_decoder_cosine")
        evaluation = Evaluation(
            **figures.flat(),
            encoder_decoder_cosine=_mean(cosine, sums.fired > 0),
            ce_clean=ce_clean,
            ce_sae=ce_sae,
            ce_zero=ce_zero,
            tokens_evaluated=figures.tokens,
            tokens_trained=cfg.total_training_steps * cfg.train_batch_size_tokens,
            dataset_path=SYNTHETIC if synthetic else recipe.evaluation.dataset_path,
            context_size=None if synthetic else cfg.context_size,
            seconds=round(time.monotonic() - started, 1),
        )
        return Measurement(evaluation, features, self.recorded)

    def _cross_entropies(self, name: str) -> list[float]:
        """Left alone, spliced, zeroed; in nats per token."""
        text = self.text.total
        if not text.predicted:
            raise GatedError(
                "The held-out text has no token that the SAE is for, by seqpos_slice and "
                "exclude_special_tokens; give another evaluation.dataset_path."
            )
        losses = torch.stack([text.clean[0], self.sums[name].spliced, text.zero[0]])
        if not losses.isfinite().all():
            raise GatedError(
                "The language model's own loss on the held-out text is not finite; nothing was "
                "written: look at the model's dtype and at evaluation.dataset_path."
                if not losses[0].isfinite()
                else f"With {name} spliced in, the loss on the held-out text is not finite, and "
                "without it it is; nothing was written: its weights hold NaN or too large numbers, "
                "so train it again, or restore it."
            )
        return (losses / text.predicted).tolist()


def _mean(values: Tensor | None, among: Tensor) -> float | None:
    if values is None or not among.any():
        return None
    return values[among].mean().item()


def coded(sae: Any, x: Tensor) -> tuple[SparseCodes, Tensor]:
    """Codes, and reconstructions [tokens, d_in], of activations [tokens, d_in]."""
    if isinstance(sae, GatedBase):
        codes = sae.encode_sparse(x)
        return codes, sae.decode(codes)
    features = sae.encode(x)
    sparse = features.layout != torch.strided
    codes = SparseCodes.from_sparse(features) if sparse else SparseCodes.from_dense(features)
    return codes, sae.decode(features)
