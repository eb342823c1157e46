"""What is trained: recipes, knob values, learning rates.

An arm's settings are recipe keys over those of its site (hub_configs/reproduction.yaml). Of L0 a
claim looks at `settings.FULL.l0` alone: knob values reach beyond both ends of it, and fronts are
interpolated between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gated_plugin.science.reproduction.design import Arm, Knobs, Share
from gated_plugin.science.reproduction.searches import SEARCHES

STEP_COSTS = {
    "gated": 0.025,
    "gated_untied": 0.15,
    "l1_baseline": 0.025,
    "saelens_gated": 0.25,
    "batchtopk": 0.19,
    "jumprelu": 0.19,
    "standard": 0.13,
}
"""Seconds of one core of a Xeon with AMX for a step of 1024 tokens at 256 → 2048: for the estimate
that is printed before the start, and for nothing else."""

SCHEDULE = {"lr_warm_up_steps": Share(0.1), "lr_decay_steps": Share(0.5)}
"""Of all arms: the learning rate climbs, stays, and falls to 0 over the second half."""

DEFAULT = {
    **SCHEDULE,
    "sae.architecture": "gated",
    "lr": 5e-3,
    "adam_beta1": 0.9,
    "sae.start": "data",
}
"""The default recipe of this package."""

PAPER = {
    **SCHEDULE,
    "sae.architecture": "gated",
    "sae.encoder_init_norm": 1.0,
    "lr": 3e-4,
    "adam_beta1": 0.0,
}
"""lr and β1 of the paper's tables, which do not state the encoder's start; `SCHEDULE` and no
resampling are ours."""

GATED_LAMBDAS = {
    "resid": Knobs(full=(0.8, 1.4, 2.4, 4.0), quick=(1.5, 5.0)),
    "mlp": Knobs(full=(1.3, 2.8, 6.0, 11.0), quick=(3.0, 10.0)),
}
BASELINE_LAMBDAS = {
    "resid": Knobs(full=(0.3, 0.6, 1.2, 2.2, 4.0), quick=(1.0, 4.0)),
    "mlp": Knobs(full=(0.6, 1.2, 2.4, 4.5), quick=(2.0, 8.0)),
}
"""Down to λ that let the baseline come near ours."""
AROUND_32 = Knobs(full=(1.0, 2.2), quick=(1.5, 5.0))
"""For arms that are compared at an L0 of about 32 alone, with `ALIKE`: what is interpolated over a
wide gap comes out lower than it is, so both sides of a small difference need the same gap."""


def _penalised(
    name: str, title: str, settings: Mapping[str, Any], values: Mapping[str, Knobs]
) -> Arm:
    """One of this package's, at fixed λ. (Steering towards an L0 takes longer than these runs.)"""
    return Arm(
        name=name,
        title=title,
        settings=settings,
        knob="sae.l1_coefficient",
        values=values,
        cost=STEP_COSTS[settings["sae.architecture"]],
        width=1.5 if settings["sae.architecture"] == "l1_baseline" else 1.0,
        search=SEARCHES.get(name, ()),
    )


def _at_resid(name: str, title: str, settings: Mapping[str, Any]) -> Arm:
    return _penalised(name, title, settings, {"resid": AROUND_32})


def _peer(architecture: str, title: str, *, lr: float, knob: str, values: Knobs) -> Arm:
    """One of SAELens' own, as it comes, with Adam's usual β1."""
    return Arm(
        name=architecture,
        title=title,
        settings={**SCHEDULE, "sae.architecture": architecture, "lr": lr, "adam_beta1": 0.9},
        knob=knob,
        values={"resid": values},
        cost=STEP_COSTS[architecture],
        search=SEARCHES.get(architecture, ()),
    )


GATED = _penalised("gated", "Gated, default recipe", DEFAULT, GATED_LAMBDAS)

ALIKE = _at_resid("default", "Gated, default recipe, at two λ", DEFAULT)

BASELINE = _penalised(
    "baseline",
    "L1 baseline, 1.5 × the width",
    {**SCHEDULE, "sae.architecture": "l1_baseline", "lr": 3e-3, "adam_beta1": 0.0},
    BASELINE_LAMBDAS,
)

PEERS = (
    _peer(
        "saelens_gated",
        "SAELens' gated",
        lr=3e-3,
        knob="sae.l1_coefficient",
        values=Knobs(full=(0.9, 2, 4.5), quick=(0.5, 2)),
    ),
    _peer(
        "batchtopk",
        "SAELens' BatchTopK",
        lr=3e-3,
        knob="sae.k",
        values=Knobs(full=(13, 32, 76), quick=(24, 45)),
    ),
    _peer(
        "jumprelu",
        "SAELens' JumpReLU",
        lr=1e-2,
        knob="sae.l0_coefficient",
        values=Knobs(full=(0.15, 0.35, 0.85), quick=(0.1, 1)),
    ),
    _peer(
        "standard",
        "SAELens' standard",
        lr=3e-3,
        knob="sae.l1_coefficient",
        values=Knobs(full=(0.7, 2, 5), quick=(1, 4)),
    ),
)

LONG = Arm(
    name="gated_long",
    title="Gated, in the time of SAELens' cheapest",
    settings=DEFAULT,
    knob=GATED.knob,
    values={"resid": GATED_LAMBDAS["resid"]},
    cost=STEP_COSTS["gated"],
    as_long_as=tuple(arm.name for arm in PEERS),
    tokens=2.0,
)
"""`tokens` is the most that it gets; the clock says how many fit."""

ABLATIONS = (
    _at_resid(
        "live_auxiliary", "auxiliary decoder live", {**DEFAULT, "sae.auxiliary_decoder": "live"}
    ),
    _at_resid("no_r_mag", "r_mag held at 0", {**DEFAULT, "sae.magnitude_scale": "one"}),
    _at_resid("untied", "encoders untied", {**DEFAULT, "sae.architecture": "gated_untied"}),
    _at_resid("free_decoder", "decoder norm free", {**DEFAULT, "sae.decoder_norm": "free"}),
    Arm(
        name="rescaled_baseline",
        title="L1 baseline, rescaled and shifted",
        settings={
            **SCHEDULE,
            "sae.architecture": "gated",
            "sae.trained": "magnitude",
            "sae.normalize_activations": "none",
            "lr": 1e-3,
            "adam_beta1": 0.9,
        },
        knob=BASELINE.knob,
        values={"resid": BASELINE_LAMBDAS["resid"]},
        cost=STEP_COSTS["gated"],
        width=BASELINE.width,
        tokens=0.25,
        starts_from="baseline",
    ),
)
"""Each is the default with one change, and compared with `ALIKE`; the last starts from a finished
baseline, whose activation scaling is in its weights."""

STEPS_OF_LADDER = (
    ("paper_lr", "… and lr 5e-3", {"lr": 5e-3}),
    ("small_encoder", "… and the encoder at 0.1 × the decoder", {"sae.encoder_init_norm": 0.1}),
    ("momentum", "… and β1 0.9", {"adam_beta1": 0.9}),
)


def _ladder() -> Iterator[Arm]:
    """From the paper's lr and β1 to the default, whose start at data is the last change."""
    settings: dict[str, Any] = PAPER
    yield _penalised(
        "paper",
        "the paper's lr and β1, encoder start unscaled",
        settings,
        {"resid": Knobs(full=(2.2, 6.0), quick=(4.0, 12.0))},
    )
    for name, title, change in STEPS_OF_LADDER:
        settings = {**settings, **change}
        yield _at_resid(name, title, settings)


LADDER = tuple(_ladder())

RESAMPLING = {
    "sae.resampling": "paper",
    "sae.resample_steps": [Share(0.2), Share(0.4)],
    "sae.resample_window": Share(0.1),
    "sae.rewarm_steps": Share(0.1),
}

ALIVE = (
    _at_resid(
        "paper_resampling",
        "random start, and resampling as in the paper",
        {**{key: value for key, value in DEFAULT.items() if key != "sae.start"}, **RESAMPLING},
    ),
    _penalised(
        "data_resampling",
        "default recipe, and resampling",
        {**DEFAULT, **RESAMPLING},
        {"resid": GATED_LAMBDAS["resid"]},
    ),
)

ARMS = (GATED, ALIKE, BASELINE, *PEERS, LONG, *ABLATIONS, *LADDER, *ALIVE)
