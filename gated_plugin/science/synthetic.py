"""SAEs on a synthetic model: its features are known, so one can ask which of them were found.

Everything runs through SAELens' own `SyntheticSAERunner`, and what is measured is the SAE that it
saved for inference. Architectures are compared at one L0, for which each one's own knob is searched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens.config import LoggingConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAE
from sae_lens.synthetic import (
    HierarchyConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    ZipfianFiringProbabilityConfig,
    cosine_similarities,
    eval_sae_on_synthetic_data,
)

from gated_plugin.errors import GatedError
from gated_plugin.progress import Progress

MODEL = SyntheticModelConfig(
    num_features=128,
    hidden_dim=32,
    firing_probability=ZipfianFiringProbabilityConfig(exponent=1.0, max_prob=0.3, min_prob=0.02),
    hierarchy=HierarchyConfig(
        total_root_nodes=8, branching_factor=3, max_depth=1, compensate_probabilities=True
    ),
    orthogonalization=OrthogonalizationConfig(),
    correlation=LowRankCorrelationConfig(rank=8, correlation_scale=0.1),
    std_firing_magnitudes=0.3,
    bias=0.5,
    seed=0,
)
"""128 features in 32 dimensions, of which 3.8 fire at once, the rarest on 2 % of the samples. 8 of
them are parents of 3 that fire only beside them; all are weakly correlated."""

BATCH = 512
EVALUATED_SAMPLES, EVALUATION_SEED = 20_000, 2**31
"""All SAEs see the same samples, which no training seed gives."""

TOLERANCE, TRIES = 0.05, 6
"""A search ends within 5 % of the L0, or after so many trainings."""
LONGEST_STRIDE = 4.0
"""Factor by which a search moves at most, until it has L0s on both sides."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An architecture and how it is trained."""

    architecture: str
    """A name in SAELens' registry."""
    knob: str
    """The field of its training configuration that decides L0."""
    start: float | None = None
    """Where the search begins. None: the knob is in units of L0, and begins at the wanted one."""
    whole: bool = False
    """Whether the knob takes whole numbers alone; then nothing is searched."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of its training configuration; the width is that of the synthetic model."""
    lr: float = 3e-3
    adam_beta1: float = 0.9
    lr_warm_up: float = 0.05
    """Share of the steps."""
    lr_decay: float = 0.2
    """Share of the steps, at the end."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What an SAE found of a synthetic model's features."""

    arm: str
    seed: int
    knob: float
    l0: float
    true_l0: float
    best_match: float
    """Mean over the true features of the largest cosine with a row of the decoder."""
    mcc: float
    """Mean |cosine| of the best one-to-one matching."""
    precision: float
    recall: float
    f1: float
    """As SAELens has these three: of each SAE feature as a detector of the true feature that it is
    most like, then the mean over SAE features; 0 for one that never fires."""
    uniqueness: float
    """True features that are most like some SAE feature, per SAE feature."""
    shrinkage: float
    """Mean ‖x̂‖ / ‖x‖."""
    explained_variance: float
    dead: int
    """SAE features that never fired."""
    samples: int
    """Trained on."""
    trainings: int
    """That the search for the L0 took, this one included."""


ARMS: Mapping[str, Arm] = {
    "gated": Arm(architecture="gated", knob="l1_coefficient", start=0.95, lr=1e-2),
    "saelens_gated": Arm(architecture="saelens_gated", knob="l1_coefficient", start=0.95, lr=6e-3),
    "l1_baseline": Arm(architecture="l1_baseline", knob="l1_coefficient", start=0.97, lr=1e-2),
    "standard": Arm(architecture="standard", knob="l1_coefficient", start=1.1, lr=1e-2),
    "topk": Arm(architecture="topk", knob="k", whole=True, lr=2e-2),
    "batchtopk": Arm(architecture="batchtopk", knob="k", lr=2e-2),
    "jumprelu": Arm(architecture="jumprelu", knob="l0_coefficient", start=0.1),
}
"""Each at the learning rate that gave the best F1 in a small search: of 1.5e-3, 3e-3, 6e-3, 1e-2 and
2e-2 for the gated ones, of 3e-3, 1e-2 and 2e-2 for the others (not 2e-2 for l1_baseline and jumprelu).
Searches for the L0 begin where it was near 4."""


def compare(
    model: SyntheticModelConfig,
    arms: Mapping[str, Arm],
    seeds: Sequence[int],
    *,
    l0: float,
    samples: int,
    quiet: bool = False,
) -> list[Recovery]:
    """Train every arm with every seed, so that `l0` features fire; a row each.

    Args:
        model: one and the same for all; a seed decides the SAE's start and the samples.
        samples: to train on.

    Raises:
        GatedError: an arm has a setting that its architecture has not.
    """
    rows: list[Recovery] = []
    with Progress("Synthetic", len(arms) * len(seeds), quiet=quiet) as progress:
        built = _build(model)
        for name, arm in arms.items():
            start = arm.start or l0
            for seed in seeds:
                job = _Training(built, name, arm, seed, samples)
                if arm.whole:
                    found = job.run(round(l0))
                else:
                    found = at_l0(job.run, start, l0, rising=arm.start is None)
                    start = found.knob
                rows.append(found)
                progress.update(len(rows), f"{name}: L0 {found.l0:.1f}, F1 {found.f1:.3f}")
    return rows


def at_l0(
    train: Callable[[float], Recovery], start: float, l0: float, *, rising: bool = False
) -> Recovery:
    """The training whose L0 is nearest to `l0`, by a search along a knob above 0.

    The knob moves by as much as L0 is off; between two that lie on either side, by interpolation of
    the logarithms.

    Args:
        rising: whether L0 rises with the knob, and does not fall.
    """
    tried: list[Recovery] = []
    knob = start
    while True:
        tried.append(train(knob))
        nearest = min(tried, key=lambda row: abs(_off(row, l0)))
        if abs(_off(nearest, l0)) <= math.log1p(TOLERANCE) or len(tried) == TRIES:
            return replace(nearest, trainings=len(tried))
        knob = _next_knob(tried, l0, rising)


def _next_knob(tried: Iterable[Recovery], l0: float, rising: bool) -> float:
    by_l0 = sorted(tried, key=lambda row: row.knob, reverse=not rising)
    too_few = [row for row in by_l0 if _off(row, l0) <= 0]
    too_many = [row for row in by_l0 if _off(row, l0) > 0]
    if too_few and too_many:
        low, high = too_few[-1], too_many[0]
        share = _off(low, l0) / (_off(low, l0) - _off(high, l0))
        share = min(max(share, 0.1), 0.9)  # so that a bent curve is halved too
        return low.knob ** (1 - share) * high.knob**share
    end = too_few[-1] if too_few else too_many[0]
    limit = math.log(LONGEST_STRIDE)
    stride = math.exp(min(max(_off(end, l0), -limit), limit))
    return end.knob / stride if rising else end.knob * stride


def _off(row: Recovery, l0: float) -> float:
    """log(L0 / wanted); an SAE that never fires counts as a thousandth of a feature."""
    return math.log(max(row.l0, 1e-3) / l0)


@dataclass(frozen=True)
class _Training:
    model: SyntheticModel
    name: str
    arm: Arm
    seed: int
    samples: int

    def run(self, knob: float) -> Recovery:
        with TemporaryDirectory() as folder:
            with _seeded(self.seed), redirect_stderr(io.StringIO()):  # SAELens' progress bar
                cfg = self._config(knob, Path(folder))
                SyntheticSAERunner(cfg, override_synthetic_model=self.model).run()
            sae = SAE.load_from_disk(folder)
        return self._measure(sae, knob)

    def _config(self, knob: float, output: Path) -> SyntheticSAERunnerConfig[Any]:
        arm, steps = self.arm, self.samples // BATCH
        model = self.model.cfg
        sae_config = get_sae_training_class(arm.architecture)[1]
        settings = {**arm.settings, arm.knob: knob}
        try:
            sae = sae_config(d_in=model.hidden_dim, d_sae=model.num_features, **settings)
        except TypeError as error:
            raise GatedError(
                f"The arm {self.name!r} does not fit SAELens' {arm.architecture!r} ({error}); "
                "change its settings."
            ) from None
        return SyntheticSAERunnerConfig(
            synthetic_model=model,
            sae=sae,
            training_samples=self.samples,
            batch_size=BATCH,
            lr=arm.lr,
            lr_end=0.0,
            lr_warm_up_steps=round(arm.lr_warm_up * steps),
            lr_decay_steps=round(arm.lr_decay * steps),
            adam_beta1=arm.adam_beta1,
            checkpoint_path=None,
            output_path=str(output),
            run_final_eval=False,
            logger=LoggingConfig(log_to_wandb=False),
        )

    @torch.no_grad()
    def _measure(self, sae: SAE[Any], knob: float) -> Recovery:
        features = self.model.feature_dict
        with _seeded(EVALUATION_SEED):
            found = eval_sae_on_synthetic_data(
                sae, features, self.model.activation_generator, EVALUATED_SAMPLES, BATCH
            )
        cosines = cosine_similarities(features.feature_vectors, sae.W_dec)
        return Recovery(
            arm=self.name,
            seed=self.seed,
            knob=knob,
            l0=found.sae_l0,
            true_l0=found.true_l0,
            best_match=cosines.max(dim=1).values.mean().item(),
            mcc=found.mcc,
            precision=found.classification.precision,
            recall=found.classification.recall,
            f1=found.classification.f1_score,
            uniqueness=found.uniqueness,
            shrinkage=found.shrinkage,
            explained_variance=found.explained_variance,
            dead=found.dead_latents,
            samples=self.samples // BATCH * BATCH,
            trainings=1,
        )


def _build(cfg: SyntheticModelConfig) -> SyntheticModel:
    with _seeded(0), redirect_stderr(io.StringIO()):
        return SyntheticModel(cfg)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's global generator, from which SAELens draws, seeded for a while."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
