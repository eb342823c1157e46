"""What the paper claims, and what this package promises beside it: each with its measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gated_plugin.science.intervals import Interval
from gated_plugin.science.reproduction import arms
from gated_plugin.science.reproduction import findings as find
from gated_plugin.science.reproduction import paper_figures as paper
from gated_plugin.science.reproduction.findings import Finding
from gated_plugin.science.reproduction.results import NEAR, PURSUIT, Results

GATED, BASELINE = "gated", "baseline"
NO_SHRINKAGE = Interval(0.98, 1.02)
SHRINKS = 0.95
HALF = 0.5
ALIVE = 0.95
PEERS = tuple(arm.name for arm in arms.PEERS)
"""SAELens' own architectures."""
FIGURE_8 = "worse (Figure 8; no number)"

Sites = Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement that figures can decide."""

    name: str
    part: str
    """The part whose arms decide it."""
    says: str
    """In our words."""
    paper: str
    """The paper's figure, or where it says so; empty for a promise of ours."""
    unit: str
    """Of the figures that are compared."""
    rule: str
    """When a figure is on the claim's side."""
    measure: Callable[[Results, Sites], list[Finding]]
    """Of the results, at the part's sites."""


def claims() -> tuple[Claim, ...]:
    """In the order of the report."""
    return (*_headline(), *_ablations(), _pursuit(), *_promises())


def _headline() -> tuple[Claim, ...]:
    return (
        Claim(
            name="pareto",
            part="claims",
            says="At equal training compute Gated recovers more of the loss than the L1 baseline, "
            "at every L0, on every site.",
            paper=paper.advantage(),
            unit="loss recovered",
            rule="Gated is higher; intervals do not overlap",
            measure=lambda results, sites: find.higher(results, GATED, BASELINE, sites=sites),
        ),
        Claim(
            name="shrinkage",
            part="claims",
            says="Gated does not shrink where the baseline does.",
            paper=paper.shrinkage(),
            unit="γ",
            rule=f"where the baseline's γ is below {SHRINKS}, Gated's lies in "
            f"{NO_SHRINKAGE.low}–{NO_SHRINKAGE.high}",
            measure=lambda results, sites: find.unbiased(
                results, GATED, BASELINE, sites=sites, band=NO_SHRINKAGE, below=SHRINKS
            ),
        ),
        Claim(
            name="half-the-features",
            part="claims",
            says="Gated needs about half as many firing features for comparable fidelity.",
            paper=paper.share_of_features(),
            unit="L0 of Gated over L0 of the baseline",
            rule=f"at matched loss recovered the ratio is at most {HALF}",
            measure=lambda results, sites: find.fewer(
                results, GATED, BASELINE, sites=sites, at_most=HALF
            ),
        ),
        Claim(
            name="interpretability",
            part="claims",
            says="People rate its features as interpretable as the baseline's.",
            paper="no significant difference in ratings",
            unit="rating",
            rule="needs people",
            measure=lambda results, sites: [],
        ),
    )


def _ablations() -> tuple[Claim, ...]:
    worse = {
        "live_auxiliary": "Letting the auxiliary term's gradient reach the decoder is worse.",
        "no_r_mag": "Leaving out r_mag is slightly worse.",
        "untied": "Untying the two encoders is slightly worse.",
    }
    rescaled = "A baseline whose encoder is rescaled and shifted stays below Gated."
    rescaling = Claim(
        name="rescaling-gains",
        part="ablations",
        says="Rescaling and shifting the baseline's encoder gains only a little.",
        paper="better than the baseline, far from Gated (Figure 8; no number)",
        unit="loss recovered, rescaled baseline minus baseline",
        rule="the difference, paired by seed, is above 0",
        measure=lambda results, sites: find.gains(
            results, "rescaled_baseline", BASELINE, sites=sites
        ),
    )
    return (
        *(_below(arm, arms.ALIKE.name, says) for arm, says in worse.items()),
        _below("rescaled_baseline", GATED, rescaled),
        rescaling,
    )


def _below(arm: str, ours: str, says: str) -> Claim:
    """An ablation is worse than an arm of the default recipe."""
    return Claim(
        name=arm.replace("_", "-"),
        part="ablations",
        says=says,
        paper=FIGURE_8,
        unit="loss recovered, Gated minus ablation",
        rule="the difference, paired by seed, is above 0",
        measure=lambda results, sites: find.gains(results, ours, arm, sites=sites),
    )


def _pursuit() -> Claim:
    return Claim(
        name="dictionary",
        part="pursuit",
        says="Gated's dictionary is the better one, also when gradient pursuit chooses the features "
        "in place of either encoder.",
        paper="appendix A (no number)",
        unit="loss recovered",
        rule="Gated's dictionary recovers more; intervals do not overlap",
        measure=lambda results, sites: find.higher(
            results, GATED, BASELINE, sites=sites, encoder=PURSUIT
        ),
    )


def _promises() -> tuple[Claim, ...]:
    return (
        Claim(
            name="above-saelens-gated",
            part="peers",
            says="The default recipe lies above SAELens' own gated, same width, same tokens.",
            paper="",
            unit="loss recovered",
            rule="ours is higher; intervals do not overlap",
            measure=lambda results, sites: find.higher(
                results, GATED, "saelens_gated", sites=sites
            ),
        ),
        *(
            Claim(
                name=f"level-with-{peer}",
                part="peers",
                says=f"The default recipe lies on the front of SAELens' {title} or above it.",
                paper="",
                unit="loss recovered",
                rule="ours is not lower: for certain where its mean is not, with intervals over "
                "every seed; weakly where the intervals overlap, or there are none",
                measure=lambda results, sites, peer=peer: find.level(  # type: ignore[misc]
                    results, GATED, peer, sites=sites
                ),
            )
            for peer, title in {"batchtopk": "BatchTopK", "jumprelu": "JumpReLU"}.items()
        ),
        Claim(
            name="equal-time",
            part="clock",
            says="In the same training time on the same machine it lies above every architecture "
            "of SAELens.",
            paper="",
            unit="loss recovered",
            rule="ours is higher, intervals do not overlap, in no more time",
            measure=lambda results, sites: find.in_equal_time(
                results, "gated_long", PEERS, sites=sites
            ),
        ),
        Claim(
            name="alive",
            part="alive",
            says="The default recipe keeps at least 95 % of the features alive.",
            paper="4–99 % (Tables 1–8)",
            unit="share of features that fire",
            rule=f"at least {ALIVE}",
            measure=lambda results, sites: find.alive(results, GATED, sites=sites, at_least=ALIVE),
        ),
        Claim(
            name="recovery",
            part="synthetic",
            says="On a synthetic model it recovers the true features better than SAELens' gated "
            "and standard at the same L0.",
            paper="",
            unit="mean best-match cosine, and F1",
            rule="ours is higher; intervals do not overlap; SAEs whose L0 is more than "
            f"{NEAR:.0%} off the wanted one do not count",
            measure=lambda results, sites: find.recovers(
                results,
                GATED,
                ("saelens_gated", "standard"),
                {"best_match": "best match", "f1": "F1"},
            ),
        ),
    )
