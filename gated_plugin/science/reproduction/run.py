"""`gated-hub reproduce`: does what is not done yet, and writes the report of what there is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gated_plugin.activation_cache import bytes_on_disk
from gated_plugin.progress import byte_size
from gated_plugin.science.reproduction import plan
from gated_plugin.science.reproduction.arm_recipes import site_recipe
from gated_plugin.science.reproduction.claims import claims
from gated_plugin.science.reproduction.design import Design
from gated_plugin.science.reproduction.findings import verdict
from gated_plugin.science.reproduction.jobs import Job
from gated_plugin.science.reproduction.report import write_report
from gated_plugin.science.reproduction.training_job import activations


class Reproduced(NamedTuple):
    """What came out."""

    report: Path
    verdicts: dict[str, str]
    """By claim."""
    minutes: float
    """Of all jobs, in this and in earlier calls."""


def reproduce(
    design: Design,
    out: Path,
    docs: Path,
    *,
    only: Sequence[str] = (),
    quiet: bool,
    report: Callable[[str], None],
) -> Reproduced:
    """Train, evaluate and compare; a killed call is gone on with by the same one.

    Args:
        out: folder of the runs and their results.
        docs: the report becomes `reproduction.md` below it, with `images/` and `measurements/`.
        only: names of parts; all by default. The report has all that was ever measured in `out`
            with the same settings.
        report: takes lines that say what is done and how long the rest takes.

    Raises:
        GatedError: no such part, settings that do not fit, or what stops a training.
        Interrupted: stopped by the user.
    """
    parts = [part.name for part in design.only(tuple(only))]
    by_part = plan.jobs_by_part(design, out)
    every = _each_once(by_part.values())
    missing = [job for job in _each_once(by_part[name] for name in parts) if not job.is_done]
    report(_announcement(design, {name: by_part[name] for name in parts}, missing))
    clock = _Clock(missing)
    for job in missing:
        report(clock.line(job))
        job.run(quiet=quiet)
        clock.finished(job)
    shutil.rmtree(activations(out), ignore_errors=True)
    results = plan.collected(design, every)
    seconds = sum(job.seconds_taken for job in every if job.is_done)
    sites = {part.name: tuple(part.arms) for part in design.parts}
    found = {claim.name: claim.measure(results, sites.get(claim.part, ())) for claim in claims()}
    return Reproduced(
        report=write_report(design, results, found, docs=docs, seconds=seconds),
        verdicts={name: verdict(findings).value for name, findings in found.items()},
        minutes=round(seconds / 60, 1),
    )


def _each_once(lists: Iterable[Sequence[Job]]) -> list[Job]:
    return list({job.name: job for jobs in lists for job in jobs}.values())


def _announcement(
    design: Design, by_part: Mapping[str, Sequence[Job]], missing: Sequence[Job]
) -> str:
    """What is to be done and what it costs; a job that two parts need counts for the first."""
    left = {job.name: job.seconds for job in missing}
    minutes = {
        part: sum(left.pop(job.name, 0.0) for job in jobs) / 60 for part, jobs in by_part.items()
    }
    disk = 0
    for site in design.sites:
        cfg = site_recipe(design, site).runner_config()
        cfg.training_tokens = design.scale.steps * cfg.train_batch_size_tokens
        disk += bytes_on_disk(cfg)
    each = ", ".join(f"{name} {cost:.1f}" for name, cost in minutes.items())
    return (
        f"{len(missing)} jobs are to be done ({design.scale.name}, seeds "
        f"{', '.join(map(str, design.scale.seeds))}, {design.scale.steps} steps an SAE): about "
        f"{sum(minutes.values()):.0f} minutes of one core of a Xeon with AMX, at the widths of the "
        f"embedded model ({each}), and about "
        f"{byte_size(disk)} of disk for activations, which are deleted at the end."
    )


class _Clock:
    """Estimates the time that is left from what the finished jobs took."""

    def __init__(self, missing: Sequence[Job]) -> None:
        self.jobs = len(missing)
        self.total = sum(job.seconds for job in missing)
        self.started = time.monotonic()
        self.done = 0.0
        self.finished_jobs = 0

    def finished(self, job: Job) -> None:
        self.done += job.seconds
        self.finished_jobs += 1

    def line(self, job: Job) -> str:
        left = ""
        if self.done:
            pace = (time.monotonic() - self.started) / self.done
            left = f", about {pace * (self.total - self.done) / 60:.0f} min left"
        return f"[{self.finished_jobs + 1}/{self.jobs}{left}] {job.title}"
