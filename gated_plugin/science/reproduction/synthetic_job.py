"""SAEs on a synthetic model, whose features are known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gated_plugin.science import synthetic
from gated_plugin.science.reproduction.design import Design
from gated_plugin.science.reproduction.jobs import Job, Record

SECONDS_PER_STEP = 0.015
"""Of one core, for the default model and a batch of `synthetic.BATCH`: for the estimate alone."""
SEARCH = 3
"""Trainings that a search for an L0 takes on average; for the estimate alone."""


@dataclass(frozen=True)
class SyntheticJob(Job):
    """One architecture, all seeds: a search for the L0 begins where that of the last seed ended."""

    design: Design
    arm: str
    """A name in `synthetic.ARMS`."""

    @property
    def name(self) -> str:
        return f"synthetic/{self.arm}"

    @property
    def title(self) -> str:
        scale = self.design.scale
        seeds = len(scale.seeds)
        return f"synthetic model: {self.arm}, {seeds} seeds, {scale.synthetic_samples:,} samples"

    @property
    def seconds(self) -> float:
        trainings = len(self.design.scale.seeds) * (1 if self._arm.whole else SEARCH)
        steps = self.design.scale.synthetic_samples // synthetic.BATCH
        return SECONDS_PER_STEP * steps * trainings

    def inputs(self) -> Any:
        scale = self.design.scale
        model = synthetic.MODEL.to_dict()
        return [asdict(self._arm), model, scale.seeds, scale.synthetic_samples, scale.synthetic_l0]

    def work(self, *, quiet: bool) -> list[Record]:
        scale = self.design.scale
        rows = synthetic.compare(
            synthetic.MODEL,
            {self.arm: self._arm},
            scale.seeds,
            l0=scale.synthetic_l0,
            samples=scale.synthetic_samples,
            quiet=quiet,
        )
        return [asdict(row) for row in rows]

    @property
    def _arm(self) -> synthetic.Arm:
        return synthetic.ARMS[self.arm]
