"""What training costs, arm beside arm: steps on the same batches, in one process.

Ours is timed over a whole training, for its steps grow cheaper as gates close. The steps of a dense
architecture all cost the same: some of them are timed, spread over ours, so that whatever else the
machine does meets all of them alike.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from gated_plugin.engine import options as engine
from gated_plugin.progress import Progress
from gated_plugin.recipes import Recipe
from gated_plugin.runner import new_trainer, open_stream, prepare
from gated_plugin.science.reproduction.arm_recipes import arm_recipe
from gated_plugin.science.reproduction.design import Arm, Design, Site
from gated_plugin.science.reproduction.jobs import Job, Record
from gated_plugin.science.reproduction.results import ClockRow

UNTIMED = 2
"""First steps of every arm, which allocate and compile."""


@dataclass(frozen=True)
class ClockJob(Job):
    """Times an arm beside those in whose time it has to train."""

    design: Design
    site: Site
    arm: Arm

    @property
    def name(self) -> str:
        return f"clock/{self.site.name}/{self.arm.name}"

    @property
    def title(self) -> str:
        return f"{self.site.name}: seconds of a step, {len(self.peers)} architectures side by side"

    @property
    def seconds(self) -> float:
        ours = self.arm.cost * self.design.scale.steps
        theirs = sum(arm.cost for arm in self.peers) * (self.design.scale.clock_steps + UNTIMED)
        return self.site.cost * (ours + theirs)

    @property
    def peers(self) -> list[Arm]:
        """Those that have values at this site."""
        arms = [self.design.arm(name) for name in self.arm.as_long_as]
        return [arm for arm in arms if self.design.values(arm, self.site.name)]

    def inputs(self) -> Any:
        recipes = [self._recipe(arm).settings for arm in (self.arm, *self.peers)]
        return [self.design.scale.clock_steps, self.arm.tokens, torch.get_num_threads(), recipes]

    def work(self, *, quiet: bool) -> list[Record]:
        steps = self.design.scale.steps
        recipe = self._recipe(self.arm)
        stream = open_stream(recipe)
        trainers = {}
        for arm in (self.arm, *self.peers):
            trainers[arm.name] = new_trainer(self._recipe(arm), stream)
            prepare(trainers[arm.name], stream, self._recipe(arm))
        ours = trainers.pop(self.arm.name)
        times: list[float] = []
        theirs: dict[str, list[float]] = {name: [] for name in trainers}
        every = max(1, steps // (self.design.scale.clock_steps + UNTIMED))
        with (
            engine.use(**asdict(recipe.engine)),
            Progress("Timing", steps, quiet=quiet) as progress,
        ):
            for step in range(steps):
                batch = next(stream)
                times.append(_timed_step(ours, batch))
                if step % every == 0:
                    for name, trainer in trainers.items():
                        theirs[name].append(_timed_step(trainer, batch))
                progress.update(step + 1)
        return [asdict(row) for row in self._rows(fmean(times[UNTIMED:] or times), theirs)]

    def _rows(self, ours: float, theirs: dict[str, list[float]]) -> list[ClockRow]:
        """Seconds of whole trainings; of ours, of as many steps as fit in the cheapest of theirs."""
        steps = self.design.scale.steps
        costs = {name: fmean(times[UNTIMED:] or times) * steps for name, times in theirs.items()}
        fit = min(round(self.arm.tokens * steps), max(1, int(min(costs.values()) / ours)))
        site = self.site.name
        rows = [ClockRow(site=site, arm=self.arm.name, steps=fit, seconds=fit * ours)]
        rows += [
            ClockRow(site=site, arm=name, steps=steps, seconds=cost) for name, cost in costs.items()
        ]
        return rows

    @property
    def steps_that_fit(self) -> int:
        """Of the finished job."""
        return next(row["steps"] for row in self.records() if row["arm"] == self.arm.name)

    def _recipe(self, arm: Arm) -> Recipe:
        """With the middle value of the arm's knob, and the first seed."""
        values = self.design.values(arm, self.site.name)
        return arm_recipe(
            self.design,
            self.site,
            arm,
            seed=self.design.scale.seeds[0],
            steps=self.design.scale.steps,
            value=values[len(values) // 2],
        )


def _timed_step(trainer: SAETrainer[Any, Any], batch: Tensor) -> float:
    """Seconds of one step."""
    trainer.maybe_reset_sparsity()
    started = time.perf_counter()
    trainer.step(batch)
    trainer.n_training_steps += 1
    if batch.is_cuda or trainer.sae.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
