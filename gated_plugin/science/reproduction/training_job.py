"""The dictionaries of one arm, site and seed: trained in lockstep and evaluated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run, read_json
from gated_plugin.science.intervals import with_ends
from gated_plugin.science.reproduction.arm_recipes import arm_recipe, relative, steps_of
from gated_plugin.science.reproduction.clock_job import ClockJob
from gated_plugin.science.reproduction.design import Arm, Design, Site
from gated_plugin.science.reproduction.jobs import Job, Record
from gated_plugin.science.reproduction.results import OWN, Row

NOT_INPUTS = ("name", "from_pretrained_path")
"""The run that an SAE starts from is told by the job that makes it."""


@dataclass(frozen=True)
class TrainingJob(Job):
    """One run folder for every value of the arm's knob."""

    design: Design
    site: Site
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"saes/{self.site.name}/{self.arm.name}/seed-{self.seed}"

    @property
    def title(self) -> str:
        saes = f"{len(self.values)} × {steps_of(self.design, self.arm)} steps"
        return f"{self.site.name}: {self.arm.title}, seed {self.seed} ({saes})"

    @property
    def seconds(self) -> float:
        steps = steps_of(self.design, self.arm) * self.arm.width
        return self.arm.cost * self.site.cost * steps * len(self.values)

    def inputs(self) -> Any:
        (first, *_) = self._recipes(steps_of(self.design, self.arm), self.values[:1])
        told = {key: value for key, value in first.settings.items() if key not in NOT_INPUTS}
        return [told, self.arm.knob, self.values]

    @cached_property
    def needs(self) -> Sequence[Job]:
        design, site = self.design, self.site
        if self.arm.starts_from is not None:
            start = design.arm(self.arm.starts_from)
            return (TrainingJob(self.out, design, site, start, self.seed),)
        if self.arm.as_long_as:
            return (ClockJob(self.out, design, site, self.arm),)
        return ()

    def recipes(self) -> list[Recipe]:
        """In the order of the knob's values; what it needs is done."""
        clocks = [job.steps_that_fit for job in self.needs if isinstance(job, ClockJob)]
        steps = clocks[0] if clocks else steps_of(self.design, self.arm)
        return self._recipes(steps, self.values)

    def _recipes(self, steps: int, values: Sequence[float]) -> list[Recipe]:
        starts: dict[float, Run] = {}
        for job in self.needs:
            if isinstance(job, TrainingJob):
                starts = dict(zip(job.values, job.runs, strict=True))
        return [
            arm_recipe(
                self.design,
                self.site,
                self.arm,
                seed=self.seed,
                steps=steps,
                value=value,
                start=starts.get(value),
            )
            for value in values
        ]

    @property
    def values(self) -> tuple[float, ...]:
        """Of the knob."""
        return self.design.values(self.arm, self.site.name)

    @property
    def runs(self) -> list[Run]:
        """In the order of the knob's values, finished or not."""
        knob = self.arm.knob.rpartition(".")[2]
        return [Run(self.folder / f"{knob}-{value:g}") for value in self.values]

    def work(self, *, quiet: bool) -> list[Record]:
        from gated_plugin.science.evaluation import evaluate_all
        from gated_plugin.science.group import train_together

        recipes, runs = self.recipes(), self.runs
        folders = [run.path for run in runs]
        train_together(recipes, folders, cache=activations(self.out), quiet=quiet)
        evaluate_all(runs, recipes[0], quiet=quiet)
        triples = zip(self.values, recipes, runs, strict=True)
        return [asdict(self._row(*triple)) for triple in triples]

    def _row(self, value: float, recipe: Recipe, run: Run) -> Row:
        return row_of(
            read_json(run.evaluation),
            site=self.site.name,
            arm=self.arm.name,
            seed=self.seed,
            knob=value,
            encoder=OWN,
            width=recipe.sae["d_sae"],
            run=relative(run.path, self.out),
        )


def row_of(evaluation: dict[str, Any], **about: Any) -> Row:
    """A row of the table, of what `evaluation.json` says and of what it is about."""
    figures = with_ends(evaluation, ("l0", "loss_recovered", "gamma"))
    for name in ("fvu", "alive", "n_dead", "n_dense", "tokens_evaluated"):
        figures[name] = evaluation[name]
    return Row(**about, **figures, tokens=evaluation["tokens_trained"])


def activations(out: Path) -> Path:
    """Where the language model's activations are kept while a reproduction is unfinished."""
    return out / "activations"
