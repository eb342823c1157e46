"""Which jobs answer which part, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gated_plugin.science.reproduction.clock_job import ClockJob
from gated_plugin.science.reproduction.design import Design, Part
from gated_plugin.science.reproduction.jobs import Job
from gated_plugin.science.reproduction.pursuit_job import PursuitJob
from gated_plugin.science.reproduction.results import ClockRow, Results, Row
from gated_plugin.science.reproduction.synthetic_job import SyntheticJob
from gated_plugin.science.reproduction.training_job import TrainingJob
from gated_plugin.science.synthetic import ARMS, Recovery


def jobs_by_part(design: Design, out: Path) -> dict[str, list[Job]]:
    """All that each part needs, each job after those it needs; a job of two parts is one object.

    Raises:
        GatedError: an arm's settings do not fit the recipe of its site.
    """
    known: dict[str, Job] = {}
    found: dict[str, list[Job]] = {}
    for part in design.parts:
        needed: dict[str, Job] = {}
        for job in _of_part(design, out, part):
            for each in (*job.needs, job):
                needed[each.name] = known.setdefault(each.name, each)
        found[part.name] = list(needed.values())
    return found


def _of_part(design: Design, out: Path, part: Part) -> Iterator[Job]:
    for site_name, arms in part.arms.items():
        site = design.site(site_name)
        for name in arms:
            arm = design.arm(name)
            if not design.values(arm, site_name):
                continue
            for seed in design.scale.seeds:
                yield TrainingJob(out, design, site, arm, seed)
                if part.also == "pursuit":
                    yield PursuitJob(out, design, site, arm, seed)
    if part.also == "synthetic":
        for name in ARMS:
            yield SyntheticJob(out, design, name)


def collected(design: Design, jobs: Iterable[Job]) -> Results:
    """What the finished ones of these jobs measured."""
    done = [job for job in jobs if job.is_done]
    rows, synthetic, clock = (
        [record for job in done if isinstance(job, kind) for record in job.records()]
        for kind in ((TrainingJob, PursuitJob), SyntheticJob, ClockJob)
    )
    return Results(
        rows=tuple(Row(**record) for record in rows),
        synthetic=tuple(Recovery(**record) for record in synthetic),
        clock=tuple(ClockRow(**record) for record in clock),
        l0=design.scale.l0,
        seeds=design.scale.seeds,
        synthetic_l0=design.scale.synthetic_l0,
    )
