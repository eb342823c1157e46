"""Verdicts follow from the figures, by the rule that the report states."""

from __future__ import annotations

import math
from itertools import chain
from statistics import fmean, stdev

import pytest

from gated_plugin.science.intervals import Interval
from gated_plugin.science.reproduction import findings as find
from gated_plugin.science.reproduction.claims import claims
from gated_plugin.science.reproduction.estimates import estimate, gain, ratio_of_l0
from gated_plugin.science.reproduction.findings import Verdict, verdict
from gated_plugin.science.reproduction.results import ClockRow, Results, Row

T_975_OF_2 = 4.302652729911275
"""Student's, of a table."""
SEEDS = (1, 2, 3)


def row(arm: str, seed: int, l0: float, loss_recovered: float | None, **other: object) -> Row:
    figures: dict[str, object] = {
        "site": "resid",
        "encoder": "own",
        "knob": l0,
        "gamma": 1.0,
        "alive": 1.0,
        "fvu": 0.1,
        "n_dead": 0,
        "n_dense": 0,
        "width": 2048,
        "tokens": 1024,
        "tokens_evaluated": 4096,
        "run": "saes",
        **{
            f"{name}_{end}": None
            for name in ("l0", "loss_recovered", "gamma")
            for end in ("low", "high")
        },
        **other,
    }
    return Row(arm=arm, seed=seed, l0=l0, loss_recovered=loss_recovered, **figures)  # type: ignore[arg-type]


def curve(arm: str, at_32: float, *, spread: float = 0.0, **other: object) -> list[Row]:
    """Three seeds at L0 16 and 64, which give `at_32 ± spread` half-way between them."""
    return [
        row(arm, seed, l0, at_32 + shift + side, **other)
        for seed, shift in zip(SEEDS, (-spread, 0.0, spread), strict=True)
        for l0, side in ((16, -0.01), (64, 0.01))
    ]


def results(*rows: list[Row], l0: tuple[float, ...] = (32,), **other: object) -> Results:
    return Results(rows=tuple(chain(*rows)), l0=l0, seeds=SEEDS, **other)  # type: ignore[arg-type]


def higher(ours: list[Row], theirs: list[Row], **other: object) -> Verdict:
    found = find.higher(results(ours, theirs, **other), "gated", "baseline", sites=("resid",))
    return verdict(found)


def test_an_estimate_is_the_mean_over_seeds_with_students_interval() -> None:
    values = [0.9 - 0.02, 0.9, 0.9 + 0.02]
    found = estimate(results(curve("gated", 0.9, spread=0.02)), "resid", "gated", 32)
    assert found is not None and found.interval is not None
    half = T_975_OF_2 * stdev(values) / math.sqrt(3)
    assert found.mean == pytest.approx(fmean(values), abs=1e-12)
    assert found.interval == pytest.approx((0.9 - half, 0.9 + half), abs=1e-9)


def test_no_estimate_outside_of_what_was_measured() -> None:
    measured = results(curve("gated", 0.9))
    assert estimate(measured, "resid", "gated", 65) is None
    assert estimate(measured, "resid", "gated", 15) is None
    assert estimate(measured, "mlp", "gated", 32) is None


def test_intervals_apart_hold_overlapping_ones_weakly_and_lower_ones_not() -> None:
    low = curve("baseline", 0.8, spread=0.001)
    assert higher(curve("gated", 0.9, spread=0.001), low) is Verdict.holds
    assert higher(curve("gated", 0.801, spread=0.001), low) is Verdict.weakly
    assert higher(curve("gated", 0.7, spread=0.001), low) is Verdict.fails
    assert higher(curve("gated", 0.8, spread=0.001), low) is Verdict.fails


def test_one_seed_holds_weakly_at_most() -> None:
    ours = [each for each in curve("gated", 0.9) if each.seed == 1]
    theirs = [each for each in curve("baseline", 0.1) if each.seed == 1]
    assert higher(ours, theirs) is Verdict.weakly


def test_a_seed_that_does_not_reach_an_l0_makes_a_claim_hold_weakly() -> None:
    ours, theirs = curve("gated", 0.9, spread=0.001), curve("baseline", 0.8, spread=0.001)
    fewer = [each for each in theirs if (each.seed, each.l0) != (3, 64)]
    assert higher(ours, theirs) is Verdict.holds
    assert higher(ours, fewer) is Verdict.weakly
    assert higher([each for each in ours if each.seed != 3], theirs) is Verdict.weakly


@pytest.mark.parametrize("figure", ["gains", "alive", "fewer"])
def test_a_missing_seed_leaves_no_certainty_in_other_comparisons(figure: str) -> None:
    def of(seeds: tuple[int, ...]) -> Verdict:
        rows = [*_sweep("gated", 0.3), *_sweep("baseline", 1.0)]
        measured = results([each for each in rows if each.seed in seeds], l0=(12,))
        found = {
            "gains": lambda: find.gains(measured, "gated", "baseline", sites=("resid",)),
            "alive": lambda: find.alive(measured, "gated", sites=("resid",), at_least=0.9),
            "fewer": lambda: find.fewer(
                measured, "gated", "baseline", sites=("resid",), at_most=0.5
            ),
        }
        return verdict(found[figure]())

    assert of(SEEDS) is Verdict.holds
    assert of(SEEDS[:2]) is Verdict.weakly


def test_an_sae_that_never_fires_is_on_no_curve() -> None:
    found = estimate(
        results(curve("gated", 0.9), [row("gated", 1, 0.0, 0.0)]), "resid", "gated", 32
    )
    assert found is not None and found.mean == pytest.approx(0.9, abs=1e-12)


def test_an_unmeasured_point_makes_a_claim_hold_weakly() -> None:
    ours, theirs = curve("gated", 0.9), curve("baseline", 0.8)
    assert higher(ours, theirs, l0=(32, 64)) is Verdict.holds
    assert higher(ours, theirs, l0=(32, 128)) is Verdict.weakly
    assert higher(ours, theirs, l0=(128,)) is Verdict.unmeasured
    assert higher(ours, [], l0=(32,)) is Verdict.unmeasured


def test_one_point_on_the_wrong_side_decides() -> None:
    ours = [row("gated", s, l0, v) for s in SEEDS for l0, v in ((16, 0.9), (64, 0.7))]
    theirs = [row("baseline", s, l0, 0.8) for s in SEEDS for l0 in (16, 64)]
    assert higher(ours, theirs, l0=(16,)) is Verdict.holds
    assert higher(ours, theirs, l0=(16, 64)) is Verdict.fails


def test_rows_chosen_by_pursuit_are_not_rows_of_the_encoder() -> None:
    measured = results(
        curve("gated", 0.5),
        curve("gated", 0.9, encoder="pursuit"),
        curve("baseline", 0.6),
        curve("baseline", 0.8, encoder="pursuit"),
    )
    own = find.higher(measured, "gated", "baseline", sites=("resid",))
    pursuit = find.higher(measured, "gated", "baseline", sites=("resid",), encoder="pursuit")
    assert verdict(own) is Verdict.fails
    assert verdict(pursuit) is Verdict.holds


@pytest.mark.parametrize(
    ("at_32", "spread", "expected"),
    [
        (0.9, 0.0, Verdict.holds),
        (0.799, 0.001, Verdict.weakly),
        (0.7, 0.001, Verdict.fails),
    ],
)
def test_level_with_a_front_is_not_below_it_beyond_its_interval(
    at_32: float, spread: float, expected: Verdict
) -> None:
    measured = results(curve("gated", at_32, spread=spread), curve("batchtopk", 0.8, spread=0.001))
    assert verdict(find.level(measured, "gated", "batchtopk", sites=("resid",))) is expected


@pytest.mark.parametrize("scale", [(1,), SEEDS])
def test_level_with_a_front_by_one_seed_or_too_few_holds_weakly(scale: tuple[int, ...]) -> None:
    rows = [*curve("gated", 0.9), *curve("batchtopk", 0.8)]
    few = tuple(each for each in rows if each.seed in scale[:2])
    measured = Results(rows=few, l0=(32,), seeds=scale)
    assert verdict(find.level(measured, "gated", "batchtopk", sites=("resid",))) is Verdict.weakly


def unbiased(ours: list[Row], theirs: list[Row]) -> Verdict:
    measured, band = results(ours, theirs), Interval(0.98, 1.02)
    sites = ("resid",)
    return verdict(find.unbiased(measured, "gated", "baseline", sites=sites, band=band, below=0.95))


@pytest.mark.parametrize(
    ("gammas", "expected"),
    [
        ((0.999, 1.0, 1.001), Verdict.holds),
        ((0.975, 0.99, 1.0), Verdict.weakly),
        ((0.97, 0.97, 0.97), Verdict.fails),
    ],
)
def test_gamma_has_to_lie_in_the_band_where_the_baseline_shrinks(
    gammas: tuple[float, ...], expected: Verdict
) -> None:
    ours = [
        row("gated", seed, l0, 0.9, gamma=gamma)
        for seed, gamma in zip(SEEDS, gammas, strict=True)
        for l0 in (16, 64)
    ]
    assert unbiased(ours, curve("baseline", 0.8, gamma=0.9)) is expected


def test_gamma_does_not_count_where_the_baseline_does_not_shrink() -> None:
    theirs = curve("baseline", 0.8, gamma=0.96)
    assert unbiased(curve("gated", 0.9, gamma=0.5), theirs) is Verdict.unmeasured


def _sweep(arm: str, scale: float) -> list[Row]:
    """Loss recovered 0.5 to 0.9, at L0 10 to 90 times `scale`."""
    return [row(arm, s, scale * l0, l0 / 100 + 0.4) for s in SEEDS for l0 in (10, 30, 50)]


def test_the_share_of_features_is_the_ratio_of_l0_at_equal_loss_recovered() -> None:
    found = ratio_of_l0(
        results(_sweep("gated", 0.3), _sweep("baseline", 1.0)), "resid", "gated", "baseline"
    )
    assert found is not None
    assert found.mean == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize(("scale", "expected"), [(0.3, Verdict.holds), (0.6, Verdict.fails)])
def test_half_the_features_is_a_ratio_of_at_most_a_half(scale: float, expected: Verdict) -> None:
    measured = results(_sweep("gated", scale), _sweep("baseline", 1.0))
    found = find.fewer(measured, "gated", "baseline", sites=("resid",), at_most=0.5)
    assert verdict(found) is expected


def test_a_gain_is_paired_by_seed() -> None:
    """Seeds differ by 0.2, the arms by 0.01 in every seed: a difference beyond doubt."""
    ours, theirs = curve("gated", 0.61, spread=0.2), curve("no_r_mag", 0.60, spread=0.2)
    found = gain(results(ours, theirs), "resid", "gated", "no_r_mag")
    assert found is not None and found.interval is not None
    assert found.mean == pytest.approx(0.01, abs=1e-12)
    assert found.interval == pytest.approx((0.01, 0.01), abs=1e-9)


def test_a_gain_is_the_mean_over_the_points_that_all_sweeps_reach() -> None:
    ours = [row("gated", s, l0, v) for s in SEEDS for l0, v in ((16, 0.9), (64, 0.9))]
    theirs = [row("untied", s, l0, v) for s in SEEDS for l0, v in ((16, 0.8), (64, 0.6))]
    theirs += [row("untied", 1, 128, 0.1)]
    found = gain(results(ours, theirs, l0=(16, 64, 128)), "resid", "gated", "untied")
    assert found is not None
    assert found.mean == pytest.approx((0.1 + 0.3) / 2)


def test_a_gain_above_zero_for_certain_holds_and_below_it_does_not() -> None:
    def of(values: tuple[float, ...]) -> Verdict:
        ours = [
            row("gated", s, l0, 0.5 + v)
            for s, v in zip(SEEDS, values, strict=True)
            for l0 in (16, 64)
        ]
        theirs = [row("untied", s, l0, 0.5) for s in SEEDS for l0 in (16, 64)]
        return verdict(find.gains(results(ours, theirs), "gated", "untied", sites=("resid",)))

    assert of((0.01, 0.011, 0.012)) is Verdict.holds
    assert of((-0.01, 0.011, 0.012)) is Verdict.weakly
    assert of((-0.01, -0.011, 0.012)) is Verdict.fails


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(100.0, Verdict.holds), (101.0, Verdict.fails), (None, Verdict.unmeasured)],
)
def test_more_loss_recovered_in_more_time_does_not_count(
    seconds: float | None, expected: Verdict
) -> None:
    clock = [ClockRow(site="resid", arm="jumprelu", steps=10, seconds=100.0)]
    if seconds is not None:
        clock.append(ClockRow(site="resid", arm="gated_long", steps=40, seconds=seconds))
    measured = results(curve("gated_long", 0.9), curve("jumprelu", 0.8), clock=tuple(clock))
    found = find.in_equal_time(measured, "gated_long", ["jumprelu"], sites=("resid",))
    assert verdict(found) is expected


def test_alive_features_are_counted_at_every_l0() -> None:
    def of(share: float) -> Verdict:
        measured = results(curve("gated", 0.9, alive=share), l0=(16, 64))
        return verdict(find.alive(measured, "gated", sites=("resid",), at_least=0.95))

    assert of(0.96) is Verdict.holds
    assert of(0.94) is Verdict.fails


def test_nothing_measured_is_no_verdict_on_any_claim() -> None:
    empty = Results(l0=(16, 32, 64))
    for claim in claims():
        assert verdict(claim.measure(empty, ("resid", "mlp"))) is Verdict.unmeasured


def test_every_ablation_is_compared_with_its_own_arm() -> None:
    """Each claim sees the one ablation that is better than the default."""
    arms = ("live_auxiliary", "no_r_mag", "untied", "rescaled_baseline")
    named = {claim.name: claim for claim in claims()}
    for better in arms:
        ablations = [curve(arm, 0.95 if arm == better else 0.8, spread=0.01) for arm in arms]
        ours = [curve(arm, 0.9, spread=0.01) for arm in ("gated", "default")]
        measured = results(*ours, *ablations)
        for arm in arms:
            found = verdict(named[arm.replace("_", "-")].measure(measured, ("resid",)))
            assert found is (Verdict.fails if arm == better else Verdict.holds)
