"""Dictionaries without their encoders: gradient pursuit chooses the features (appendix A).

At each L0 the dictionary is measured whose own encoder comes nearest to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from gated_plugin.runs import Run
from gated_plugin.science.reproduction.arm_recipes import site_recipe
from gated_plugin.science.reproduction.design import Arm, Design, Site
from gated_plugin.science.reproduction.jobs import Job, Record
from gated_plugin.science.reproduction.results import PURSUIT, Row
from gated_plugin.science.reproduction.training_job import TrainingJob, row_of

BEYOND = 1.25
"""Times the largest L0 of comparison."""
SECONDS_PER_ATOM = 7e-6
"""Of one core, for one feature of one token at 256 → 2048: for the estimate alone."""


@dataclass(frozen=True)
class PursuitJob(Job):
    """Of one arm, site and seed."""

    design: Design
    site: Site
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"pursuit/{self.site.name}/{self.arm.name}/seed-{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.site.name}: pursuit over {self.arm.title}, seed {self.seed}"

    @property
    def seconds(self) -> float:
        atoms = sum(self._l0) * self.design.scale.pursuit_tokens
        return SECONDS_PER_ATOM * self.site.cost * self.arm.width * atoms

    def inputs(self) -> Any:
        return [self._l0, self.design.scale.pursuit_tokens]

    @property
    def _l0(self) -> list[int]:
        """The points of comparison, and one beyond: a pursuit may choose fewer than it is given."""
        points = [round(l0) for l0 in self.design.scale.l0]
        return [*points, round(BEYOND * max(points))]

    @cached_property
    def needs(self) -> Sequence[TrainingJob]:
        return (TrainingJob(self.out, self.design, self.site, self.arm, self.seed),)

    def work(self, *, quiet: bool) -> list[Record]:
        from gated_plugin.science.evaluation import load_sae, measure_all
        from gated_plugin.science.pursuit import PursuitSAE

        scale = self.design.scale
        tokens = f"evaluation.tokens={scale.pursuit_tokens}"
        recipe = site_recipe(
            replace(self.design, overrides=(*self.design.overrides, tokens)), self.site
        )
        chosen = {str(l0): self._nearest(l0) for l0 in self._l0}
        saes: dict[str, Any] = {
            l0: PursuitSAE(load_sae(Run(self.out / row.run)), int(l0)) for l0, row in chosen.items()
        }
        measured = measure_all(saes, recipe, quiet=quiet)
        return [asdict(self._row(chosen[l0], asdict(measured[l0].evaluation))) for l0 in chosen]

    def _nearest(self, l0: float) -> Row:
        (training,) = self.needs
        rows = [Row(**record) for record in training.records()]
        return min(rows, key=lambda row: abs(math.log(max(row.l0, 1e-9) / l0)))

    def _row(self, of: Row, evaluation: dict[str, Any]) -> Row:
        row = row_of(
            evaluation,
            site=of.site,
            arm=of.arm,
            seed=of.seed,
            knob=of.knob,
            encoder=PURSUIT,
            width=of.width,
            run=of.run,
        )
        return replace(row, tokens=of.tokens)
