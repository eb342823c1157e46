"""Configurations of the gated architecture: SAELens' own, plus what the paper needs."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from sae_lens.saes import gated_sae as saelens
from sae_lens.saes.sae import TrainingSAEConfig
from typing_extensions import override

from gated_plugin.ablations import Ablations
from gated_plugin.errors import GatedError
from gated_plugin.resampling_plan import ResamplingPlan

UNIT_NORM = 1.0
STARTS = ("random", "data")


@dataclass
class GatedSAEConfig(saelens.GatedSAEConfig):
    """Inference: exactly SAELens' fields, so that what we save loads without this package."""


@dataclass
class PaperTrainingSAEConfig(ResamplingPlan, TrainingSAEConfig, ABC):
    """What the Gated SAE of arXiv 2404.16014 and its baseline have in common.

    Raises:
        GatedError: a field has a value that no training could use.
    """

    l1_coefficient: float = 1.0
    """λ of the paper's loss, with the squared error *summed* over d_in. The paper's tables divide
    that error by d_in: multiply their λ by d_in. Under `normalize_activations` it is in scaled
    units: with x scaled by s, a λ here has the effect of λ / s on the raw activations."""

    l1_warm_up_steps: int = 0
    """Steps over which λ climbs linearly from 0."""

    decoder_init_norm: float | None = UNIT_NORM
    """There because SAELens' scripts set it. Whatever is given, decoder rows start and stay at
    norm 1, as in the paper (section 3.2.1); see `encoder_init_norm` for the other half."""

    encoder_init_norm: float = 0.1
    """The encoder starts as the decoder transposed, times this. 0.1 trains to a better front
    than 0.3 or 1.0 in short runs; the paper does not state its own."""

    start: str = "random"
    """`data`: features begin at inputs of the first batches, `b_dec` at their mean, so that fewer of
    them die (`trainer_hooks.data_start`). `random`: directions without the data, b_dec 0."""

    target_l0: float | None = None
    """Steer λ so that this many features fire per token on average; `l1_coefficient` is then only
    where λ starts. None leaves λ alone, as in the paper."""

    @override
    def __post_init__(self) -> None:
        self.decoder_init_norm = UNIT_NORM
        if self.encoder_init_norm <= 0:
            raise GatedError(
                f"encoder_init_norm is {self.encoder_init_norm}, but an encoder of norm 0 or less "
                "never opens a gate by its input; give a number above 0, such as 0.1."
            )
        if self.start not in STARTS:
            raise GatedError(f"start is {self.start!r}; give one of {', '.join(STARTS)}.")
        if not self.l1_coefficient >= 0:
            raise GatedError(
                f"l1_coefficient is {self.l1_coefficient}, but a penalty below 0 rewards firing; "
                "give 0 or more."
            )
        if self.target_l0 is not None and not 0 < self.target_l0 < self.d_sae:
            raise GatedError(
                f"target_l0 is {self.target_l0}, but it must lie between 0 and d_sae "
                f"({self.d_sae}); leave it out to keep λ fixed."
            )
        self.refuse_conflicts()
        super().__post_init__()


@dataclass
class GatedTrainingSAEConfig(Ablations, PaperTrainingSAEConfig, saelens.GatedTrainingSAEConfig):
    """Training a Gated SAE as arXiv 2404.16014 does.

    Raises:
        GatedError: a field has a value that no training could use.
    """

    @override
    def __post_init__(self) -> None:
        self.refuse_ablations()
        super().__post_init__()
