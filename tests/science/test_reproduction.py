"""`gated-hub reproduce`: its data fit together, and it runs, goes on after a kill, and reports."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gated_plugin.errors import GatedError
from gated_plugin.science import group
from gated_plugin.science.reproduction import plan, settings
from gated_plugin.science.reproduction.arm_recipes import arm_recipe
from gated_plugin.science.reproduction.claims import BASELINE, GATED, PEERS, claims
from gated_plugin.science.reproduction.design import BEFORE, Design, Knobs, Part, Share
from gated_plugin.science.reproduction.run import Reproduced, reproduce
from gated_plugin.science.reproduction.synthetic_job import SyntheticJob
from gated_plugin.science.reproduction.training_job import TrainingJob
from gated_plugin.science.synthetic import BATCH

DESIGNS = [pytest.param(settings.design(quick=quick), id=str(quick)) for quick in (False, True)]


@pytest.mark.parametrize("design", DESIGNS)
def test_every_arm_fits_the_recipe_of_its_sites(design: Design) -> None:
    for arm in design.arms:
        for site in design.sites:
            if arm.starts_from is not None:
                continue
            for value in design.values(arm, site.name):
                steps = design.scale.steps
                recipe = arm_recipe(design, site, arm, seed=7, steps=steps, value=value)
                cfg = recipe.runner_config()
                assert cfg.total_training_steps == steps
                assert cfg.seed == 7
                assert cfg.sae.d_sae == 2048 * arm.width


@pytest.mark.parametrize("design", DESIGNS)
def test_parts_and_claims_name_arms_that_there_are(design: Design) -> None:
    arms = {arm.name for arm in design.arms}
    parts = {part.name for part in design.parts}
    assert {GATED, BASELINE, *PEERS} <= arms
    for part in design.parts:
        assert set(part.arms) <= {site.name for site in design.sites}
        assert {name for names in part.arms.values() for name in names} <= arms
        assert part.compared_with in {"", BEFORE, *arms}
    assert {claim.part for claim in claims()} <= parts
    assert set(design.remarks) <= {claim.name for claim in claims()}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_part_has_something_to_do(design: Design) -> None:
    by_part = plan.jobs_by_part(design, Path("nowhere"))
    assert all(by_part[part.name] for part in design.parts)


@pytest.mark.parametrize("design", DESIGNS)
def test_an_arm_that_starts_from_another_has_values_of_that_one(design: Design) -> None:
    for arm in design.arms:
        if arm.starts_from is not None:
            start = design.arm(arm.starts_from)
            for site in arm.values:
                assert set(design.values(arm, site)) <= set(design.values(start, site))
                assert arm.width == start.width


def test_one_trial_of_a_search_is_taken_and_the_arm_has_its_settings() -> None:
    for arm in settings.design(quick=False).arms:
        if arm.search:
            (taken,) = (trial for trial in arm.search if trial.taken)
            assert arm.settings["lr"] == taken.lr
            assert ("start at data" in taken.note) is (arm.settings.get("sae.start") == "data")


def test_the_baseline_is_half_as_wide_again() -> None:
    design = settings.design(quick=False)
    assert design.arm("baseline").width == 1.5
    assert design.arm("gated").width == 1.0


def test_a_share_is_of_the_steps_of_the_run() -> None:
    assert Share(0.25).steps(1000) == 250
    assert Share(0.001).steps(10) == 1


def test_searched_architectures_on_the_synthetic_model_cost_three_trainings(
    tmp_path: Path,
) -> None:
    design = settings.design(quick=False)
    seconds = {name: SyntheticJob(tmp_path, design, name).seconds for name in ("gated", "topk")}
    steps = design.scale.synthetic_samples // BATCH
    assert seconds["topk"] == pytest.approx(15 * steps / 1000 * 3)
    assert seconds["gated"] == 3 * seconds["topk"]


def test_a_part_that_there_is_not_is_refused() -> None:
    with pytest.raises(GatedError, match="give --only one of claims, peers"):
        settings.design(quick=True).only(("claim",))


def tiny(seeds: tuple[int, ...] = (3,)) -> Design:
    """Two arms at one site, four steps of 64 features."""
    design = settings.design(quick=False)
    targets = Knobs(full=(8, 40), quick=())
    arms = [replace(design.arm(name), values={"resid": targets}) for name in ("gated", "baseline")]
    return replace(
        design,
        scale=replace(design.scale, steps=4, seeds=seeds, l0=(16,), evaluation_tokens=4096),
        sites=(design.site("resid"),),
        arms=tuple(arms),
        parts=(Part(name="claims", title="Two arms", arms={"resid": ("gated", "baseline")}),),
        overrides=(
            "sae.d_sae=64",
            "train_batch_size_tokens=64",
            "n_batches_in_buffer=1",
            "n_batches_for_norm_estimate=1",
        ),
    )


def run(design: Design, out: Path) -> tuple[Reproduced, list[str]]:
    lines: list[str] = []
    done = reproduce(design, out, out / "docs", quiet=True, report=lines.append)
    return done, [line for line in lines if line.startswith("[")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Reproduced]]:
    """A tiny reproduction that was stopped once in its second job, and gone on with."""
    out = tmp_path_factory.mktemp("reproduction")
    with pytest.MonkeyPatch.context() as patch:
        together = group.train_together

        def stopped(recipes, folders, **options):  # type: ignore[no-untyped-def]
            if "baseline" in recipes[0].name:
                raise KeyboardInterrupt
            return together(recipes, folders, **options)

        patch.setattr(group, "train_together", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(), out)
    done, lines = run(tiny(), out)
    (line,) = lines
    assert "baseline" in line
    yield out, done


def test_a_finished_reproduction_has_nothing_left_to_do(
    finished: tuple[Path, Reproduced],
) -> None:
    out, _ = finished
    _, lines = run(tiny(), out)
    assert lines == []


def test_other_settings_are_other_jobs(finished: tuple[Path, Reproduced]) -> None:
    out, _ = finished
    longer = replace(tiny(), scale=replace(tiny().scale, steps=5))
    assert not any(job.is_done for job in plan.jobs_by_part(longer, out)["claims"])
    more = plan.jobs_by_part(tiny(seeds=(3, 4)), out)["claims"]
    assert [job.is_done for job in more] == [True, False, True, False]


def test_every_run_is_an_ordinary_one(finished: tuple[Path, Reproduced]) -> None:
    out, _ = finished
    runs = [
        each
        for job in plan.jobs_by_part(tiny(), out)["claims"]
        if isinstance(job, TrainingJob)
        for each in job.runs
    ]
    assert len(runs) == 4
    for each in runs:
        each.require_evaluated()


def test_activations_are_deleted_at_the_end(finished: tuple[Path, Reproduced]) -> None:
    out, _ = finished
    assert not (out / "activations").exists()


def test_the_report_has_every_claim_and_its_verdict(finished: tuple[Path, Reproduced]) -> None:
    out, done = finished
    text = done.report.read_text(encoding="utf-8")
    assert done.report == out / "docs" / "reproduction.md"
    assert set(done.verdicts) == {claim.name for claim in claims()}
    for claim in claims():
        heading = text.index(f'<a id="{claim.name}"></a>')
        verdict = text.index("Verdict: **", heading)
        assert text[verdict:].startswith(f"Verdict: **{done.verdicts[claim.name]}**")


def test_the_reports_table_has_a_line_for_every_sae(finished: tuple[Path, Reproduced]) -> None:
    out, _ = finished
    with (out / "docs" / "measurements" / "reproduction.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    told = {(row["arm"], row["seed"], row["knob"]) for row in rows}
    assert told == {(arm, "3", knob) for arm in ("gated", "baseline") for knob in ("8", "40")}
    assert {row["width"] for row in rows if row["arm"] == "baseline"} == {"96"}
    for row in rows:
        assert float(row["loss_recovered_low"]) <= float(row["loss_recovered"])
        assert (out / row["run"] / "sae").is_dir()


def test_nothing_of_this_machine_is_in_the_report(finished: tuple[Path, Reproduced]) -> None:
    out, done = finished
    for file in done.report.parent.rglob("*"):
        if file.suffix in (".md", ".csv"):
            assert str(out) not in file.read_text(encoding="utf-8")


def test_what_the_report_links_to_is_there(finished: tuple[Path, Reproduced]) -> None:
    _, done = finished
    text = done.report.read_text(encoding="utf-8")
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    for link in links:
        if link.startswith("#"):
            assert f'<a id="{link[1:]}"></a>' in text
        else:
            assert (done.report.parent / link).is_file()
