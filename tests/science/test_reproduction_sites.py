"""What a reproduction takes of a site's recipe, and how its report tells sites, changes and seeds."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.science.reproduction import plan, settings
from gated_plugin.science.reproduction.arm_recipes import arm_recipe
from gated_plugin.science.reproduction.design import Design
from gated_plugin.science.reproduction.estimates import Estimate
from gated_plugin.science.reproduction.figures import _effects
from gated_plugin.science.reproduction.markdown import with_interval
from gated_plugin.science.reproduction.report import _preface
from gated_plugin.science.reproduction.results import Results, Row
from gated_plugin.science.reproduction.training_job import TrainingJob


def test_other_sites_seeds_and_overrides_reach_every_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    text = (Path(__file__).parents[2] / "hub_configs" / "reproduction.yaml").read_text()
    recipe.write_text(text.replace("d_sae: 2048", "d_sae: 512"))
    design = settings.design(quick=True).changed(
        seeds=[9], sites=[f"resid={recipe}"], overrides=["evaluation.split=test"]
    )
    job = next(
        job
        for job in plan.jobs_by_part(design, tmp_path)["claims"]
        if isinstance(job, TrainingJob) and job.arm.name == "baseline" and job.site.name == "resid"
    )
    (first, *_) = job.recipes()
    assert first.runner["seed"] == 9
    assert first.sae["d_sae"] == 768
    assert first.evaluation.split == "test"


@pytest.mark.parametrize("name", ["gated", "baseline", "batchtopk"])
def test_an_arm_takes_data_and_shape_of_a_sites_recipe_and_nothing_else(name: str) -> None:
    """`quickstart` has an architecture, λ, a start and a schedule of its own."""
    committed = settings.design(quick=True)
    design = committed.changed(
        seeds=[], sites=["resid=quickstart"], overrides=["sae.dtype=bfloat16"]
    )
    arm = design.arm(name)

    def recipe(of: Design) -> Recipe:
        (value, *_) = of.values(arm, "resid")
        return arm_recipe(of, of.site("resid"), arm, seed=1, steps=100, value=value)

    theirs = recipe(design)
    assert theirs.sae == {**recipe(committed).sae, "dtype": "bfloat16"}
    assert theirs.runner["train_batch_size_tokens"] == 1024
    assert theirs.runner["lr"] == arm.settings["lr"]
    assert theirs.runner["lr_decay_steps"] == 50


def test_what_arms_leave_at_its_default_is_not_taken_from_a_site(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    text = (Path(__file__).parents[2] / "hub_configs" / "reproduction.yaml").read_text()
    mine.write_text(
        f"adam_beta2: 0.5\nlr_warm_up_steps: 999999\nlr_scheduler_name: cosineannealing\n{text}"
    )
    design = settings.design(quick=True).changed(seeds=[], sites=[f"resid={mine}"], overrides=[])
    site, arm = design.site("resid"), design.arm("batchtopk")
    cfg = arm_recipe(design, site, arm, seed=1, steps=100, value=24).runner_config()
    assert (cfg.adam_beta2, cfg.lr_scheduler_name, cfg.lr_warm_up_steps) == (0.999, "constant", 10)


def test_an_override_beats_what_an_arm_says() -> None:
    design = settings.design(quick=True).changed(seeds=[], sites=[], overrides=["lr=0.5"])
    site, arm = design.site("resid"), design.arm("gated")
    recipe = arm_recipe(design, site, arm, seed=1, steps=100, value=20)
    assert recipe.runner["lr"] == 0.5


def test_the_preface_tells_every_site_by_its_own_recipe() -> None:
    design = settings.design(quick=False).changed(seeds=[], sites=["mlp=quickstart"], overrides=[])
    resid, mlp = (
        next(line for line in _preface(design, 60).splitlines() if line.startswith(f"- `{name}`"))
        for name in ("resid", "mlp")
    )
    assert f"trained on {design.scale.steps * 512:,} tokens" in resid
    assert f"trained on {design.scale.steps * 1024:,} tokens" in mlp


def row(arm: str, seed: int, l0: float, loss_recovered: float) -> Row:
    blank: dict[str, Any] = {field.name: 0 for field in fields(Row)}
    about = {"site": "resid", "encoder": "own", "arm": arm, "seed": seed}
    return Row(**{**blank, **about, "l0": l0, "loss_recovered": loss_recovered})


def test_the_figure_of_changes_says_what_each_is_compared_with() -> None:
    design = settings.design(quick=False)
    rows = tuple(
        row(arm, seed, l0, 0.9)
        for arm in ("momentum", "default", "no_r_mag")
        for seed in (1, 2)
        for l0 in (16, 64)
    )
    titles = [title for title, _, _ in _effects(design, Results(rows=rows, l0=(32,)))]
    ours, momentum = design.arm("default").title, design.arm("momentum").title
    assert titles == [f"resid: r_mag held at 0\nover {ours}", f"resid: {ours}\nover {momentum}"]


def test_a_table_counts_the_seeds_where_some_are_missing() -> None:
    assert with_interval(Estimate.of([0.5], 3)) == "0.500 (1 of 3 seeds)"
    assert with_interval(Estimate.of([0.5], 1)) == "0.500"


def test_an_override_of_what_differs_between_runs_is_refused() -> None:
    with pytest.raises(GatedError, match="give --seeds for other seeds"):
        settings.design(quick=True).changed(seeds=[], sites=[], overrides=["seed=5"])


@pytest.mark.parametrize("site", ["resid", "attn=x.yaml", "resid="])
def test_a_site_of_another_form_is_refused(site: str) -> None:
    with pytest.raises(GatedError, match=r"give it as --site resid=my\.yaml"):
        settings.design(quick=True).changed(seeds=[], sites=[site], overrides=[])
