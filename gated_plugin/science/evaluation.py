"""`gated-hub eval`: trained SAEs on held-out text, spliced into their language model.

SAEs of one hook point are measured together: the passes that need no SAE, with the activations left
alone and zeroed, run once for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.saes.sae import SAE
from safetensors.torch import save_file
from torch import Tensor

from gated_plugin import sources
from gated_plugin.architecture import GatedBase
from gated_plugin.engine.codes import SparseCodes
from gated_plugin.errors import GatedError
from gated_plugin.progress import Progress
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run, beside, read_json, write_json
from gated_plugin.science.held_out import HeldOut
from gated_plugin.science.intervals import Interval
from gated_plugin.science.metrics import Batch, SaeSums, TextSums
from gated_plugin.science.splice import Passes, Place, entry
from gated_plugin.science.weight_figures import weight_figures

RECORDED_ACTIVATIONS = 256
FEATURES_AT_ONCE = 1 << 26
"""Entries of dense features in memory at once: 256 MB in float32."""


@dataclass(frozen=True)
class Evaluation:
    """Figures on held-out text; cross-entropies in nats per token, over what follows the tokens
    that the SAE is for. Intervals are of 95 %, bootstrapped over sequences (`intervals`), and None
    for a single sequence. `metrics` has the formulas."""

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
    ce_clean: float
    ce_sae: float
    ce_zero: float
    tokens_evaluated: int
    tokens_trained: int
    dataset_path: str
    context_size: int
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
    model = sources.language_model(cfg)
    text = HeldOut(recipe, cfg, model)
    measuring = _Measuring(saes)
    begin = entry(model, cfg)
    with Progress("Evaluating", len(text.batches), quiet=quiet) as progress:
        for done, tokens in enumerate(text.batches, 1):
            place = Place(cfg.hook_head_index, text.mask(tokens))
            measuring.take(Passes(model, cfg, tokens, begin), place)
            progress.update(done)
    return {name: measuring.result(name, recipe, cfg, started) for name in saes}


class _Measuring:
    """What is summed over the batches."""

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
        ce_clean, ce_sae, ce_zero = self._cross_entropies(name)
        sums = self.sums[name]
        figures = sums.figures(self.text)
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
            dataset_path=recipe.evaluation.dataset_path,
            context_size=cfg.context_size,
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


def _write(run: Run, measured: Measurement) -> None:
    with beside(run.features) as unfinished:
        save_file(measured.features, unfinished)
    with beside(run.activations) as unfinished:
        save_file({"activations": measured.activations}, unfinished)
    write_json(run.evaluation, asdict(measured.evaluation))
