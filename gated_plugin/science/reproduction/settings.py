"""How much of everything, where, and in which parts; `arms` has what is trained."""

from __future__ import annotations

from gated_plugin.science.reproduction.arms import ABLATIONS, ARMS, LADDER, PEERS
from gated_plugin.science.reproduction.design import BEFORE, Design, Part, Scale, Site
from gated_plugin.science.reproduction.results import NEAR
from gated_plugin.science.reproduction.searches import SEARCHED

FULL = Scale(
    name="full",
    steps=1000,
    seeds=(1, 2, 3),
    l0=(16, 32, 64),
    evaluation_tokens=200_000,
    synthetic_l0=4,
    synthetic_samples=500_000,
    pursuit_tokens=8_192,
    clock_steps=40,
)
QUICK = Scale(
    name="quick",
    steps=200,
    seeds=(1,),
    l0=(32,),
    evaluation_tokens=50_000,
    synthetic_l0=4,
    synthetic_samples=200_000,
    pursuit_tokens=8_192,
    clock_steps=8,
)

SITES = (
    Site(name="resid", title="residual stream", recipe="reproduction"),
    Site(
        name="mlp",
        title="MLP neurons",
        recipe="reproduction",
        settings={
            "hook_name": "blocks.0.mlp.hook_post",
            "sae.d_in": 1024,
        },
        cost=6.0,
    ),
)

PARTS = (
    Part(
        name="claims",
        title="Gated against the L1 baseline",
        arms={site.name: ("gated", "baseline") for site in SITES},
        pictured=True,
    ),
    Part(
        name="peers",
        title="SAELens' own architectures, same width and tokens",
        arms={"resid": ("gated", *(arm.name for arm in PEERS))},
        compared_with="gated",
        pictured=True,
    ),
    Part(
        name="clock",
        title="Equal training time",
        arms={"resid": ("gated_long", *(arm.name for arm in PEERS))},
        about="Steps are timed in one process, on the same batches, arm after arm. Ours trains on "
        "as many tokens as fit in the time of the cheapest of the others, at most twice theirs.",
        pictured=True,
    ),
    Part(
        name="ablations",
        title="The paper's ablations",
        arms={"resid": ("default", *(arm.name for arm in ABLATIONS))},
        compared_with="default",
    ),
    Part(
        name="ladder",
        title="What each change of the default recipe brings",
        arms={"resid": (*(arm.name for arm in LADDER), "default")},
        about="Each row has the changes of all rows before it; the last is the default. All rows "
        "share its schedule (the learning rate falls over the second half) and none resamples: the "
        "first is not the paper's whole recipe.",
        compared_with=BEFORE,
    ),
    Part(
        name="pursuit",
        title="Dictionaries without their encoders",
        arms={"resid": ("gated", "baseline")},
        also="pursuit",
    ),
    Part(
        name="synthetic",
        title="Known features",
        arms={},
        about="No arm here is tuned but for its learning rate. Each one's knob is searched for the "
        f"wanted L0; an SAE that ends more than {NEAR:.0%} off it does not count.",
        also="synthetic",
    ),
    Part(
        name="revival",
        title="Starts and resampling",
        arms={"resid": ("momentum", "paper_resampling", "default")},
        compared_with="momentum",
    ),
    Part(
        name="alive",
        title="Dead features",
        arms={"resid": ("gated", "data_resampling"), "mlp": ("gated",)},
        compared_with="gated",
    ),
)


REMARKS: dict[str, str] = {
    "half-the-features": "The bar is a strict half; the paper's own ratios go up to 0.62. Gated is "
    "above the baseline at every L0 of `mlp` too, but between an L0 of 27 and 65 the baseline's front "
    "is flat there. One change at a time, one seed each, left that as it is: Gated at lr 2e-3, 3e-3 "
    "and 5e-3 and with a random start lies on one front; after three times the steps it has 0.967 at "
    "L0 28 against 0.961 at 35; at three times the width 0.960 at L0 21 against 0.965 at 29, with a "
    "quarter of the features of both dead.",
    "dictionary": "At L0 64 pursuit recovers all but half a percent of the loss with either "
    "dictionary, and the baseline's has 1.5 times as many rows to choose from.",
    "alive": "The bar is missed at the sparse end of `resid` alone, after 512,000 tokens. With the "
    "paper's resampling on top, 0.960, 0.983 and 0.990 are alive there at L0 16, 32 and 64 "
    "([below](#dead-features)), for 0.0025 of the loss recovered; after twice the tokens without it, "
    "0.967, 0.983 and 0.986.",
    "recovery": "Ours has the better best match; in F1 the two are level. A dead feature counts 0 in "
    "F1, and of ours 2, 3 and 10 of 128 died with the three seeds: 0.710, 0.710 and 0.666. The first "
    "two seeds chose the learning rate. [What moved it](science.md#synthetic-models): lower learning "
    "rates recover less, resampling changed nothing, and SAELens' two departures, a live auxiliary "
    "decoder and free norms, were worth 0.01 to 0.02.",
}
"""By claim: why the full reproduction came out as it did, where a verdict alone says too little."""


def design(*, quick: bool) -> Design:
    """The reproduction as it is committed, full or quick."""
    return Design(
        scale=QUICK if quick else FULL,
        sites=SITES,
        arms=ARMS,
        parts=PARTS,
        searched=SEARCHED,
        remarks={} if quick else REMARKS,
        options=("--quick",) if quick else (),
    )
