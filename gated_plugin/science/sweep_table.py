"""What a sweep measured: one row per SAE, and what the rows come to."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from gated_plugin.runs import Run, beside, read_json
from gated_plugin.science.intervals import Interval, over_seeds, with_ends
from gated_plugin.science.pareto import Point, at_l0, l0_ratio

L0_POINTS = (16.0, 32.0, 64.0)
"""Where arms are compared."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One SAE on held-out text; `_low` and `_high` are the ends of its interval over sequences."""

    arm: str
    seed: int
    lambda_: float
    l0: float
    l0_low: float | None
    l0_high: float | None
    loss_recovered: float | None
    loss_recovered_low: float | None
    loss_recovered_high: float | None
    gamma: float | None
    gamma_low: float | None
    gamma_high: float | None
    fvu: float | None
    fvu_low: float | None
    fvu_high: float | None
    alive: float
    n_dead: int
    n_dense: int
    tokens: int
    """It was trained on."""
    training_seconds: float | None
    """In its own training steps, without the language model and the other SAEs; None where the run
    was finished by `gated-hub train`."""
    run: str
    """Its run folder, below the sweep's."""


def row_of(run: Run, folder: Path, *, arm: str, seed: int, lambda_: float) -> Row:
    """The row of a run that was trained in a group and evaluated."""
    found = read_json(run.evaluation)
    last = json.loads(run.training_log.read_text(encoding="utf-8").splitlines()[-1])
    return Row(
        arm=arm,
        seed=seed,
        lambda_=lambda_,
        **with_ends(found, ("l0", "loss_recovered", "gamma", "fvu")),
        alive=found["alive"],
        n_dead=found["n_dead"],
        n_dense=found["n_dense"],
        tokens=found["tokens_trained"],
        training_seconds=last.get("training_seconds"),
        run=run.path.relative_to(folder).as_posix(),
    )


def write_table(rows: Sequence[Row], path: Path) -> None:
    """A tidy CSV file: a line per SAE; an empty field is a figure that is not defined."""
    names = [f.name for f in fields(Row)]
    with beside(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([name.rstrip("_") for name in names])
        writer.writerows([getattr(row, name) for name in names] for row in rows)


Figure = Callable[[Row], float | None]


def curves(rows: Sequence[Row], arm: str, figure: Figure) -> dict[int, list[Point]]:
    """By seed, a figure of the arm against L0; what never fires or has no such figure is left out."""
    found: dict[int, list[Point]] = {}
    for row in rows:
        value = figure(row)
        if row.arm == arm and row.l0 > 0 and value is not None:
            found.setdefault(row.seed, []).append(Point(row.l0, value))
    return found


def summary(rows: Sequence[Row], lambdas: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Each arm at fixed L0 points, and the L0 that the first arm needs as a share of the second's.

    Figures are interpolated within each seed's curve (`pareto`) and given as mean over the seeds
    that reach there, with the interval of that mean (`intervals.over_seeds`).

    Args:
        lambdas: the arms' λ, by arm; the second arm, if there is one, is the baseline.
    """
    first, *others = arms = list(lambdas)
    result: dict[str, Any] = {
        "arms": {
            arm: {"lambdas": list(lambdas[arm]), "at_l0": _at_points(rows, arm)} for arm in arms
        }
    }
    for baseline in others:
        result["l0_ratio"] = _ratio(rows, first, baseline)
    return result


def _at_points(rows: Sequence[Row], arm: str) -> dict[str, Any]:
    figures: dict[str, Figure] = {
        "loss_recovered": lambda row: row.loss_recovered,
        "gamma": lambda row: row.gamma,
        "alive": lambda row: row.alive,
    }
    by_figure = {name: curves(rows, arm, figure) for name, figure in figures.items()}
    return {
        f"{l0:g}": {
            name: _over_seeds({seed: at_l0(points, l0) for seed, points in by_seed.items()})
            for name, by_seed in by_figure.items()
        }
        for l0 in L0_POINTS
    }


def _ratio(rows: Sequence[Row], arm: str, baseline: str) -> dict[str, Any]:
    ours, theirs = (curves(rows, name, lambda row: row.loss_recovered) for name in (arm, baseline))
    found = {seed: l0_ratio(ours[seed], theirs[seed]) for seed in ours.keys() & theirs.keys()}
    medians = {seed: ratio and ratio.median for seed, ratio in sorted(found.items())}
    at = {
        str(seed): [each._asdict() for each in ratio.at] if ratio else []
        for seed, ratio in sorted(found.items())
    }
    return {"of": arm, "over": baseline, **_over_seeds(medians), "at_loss_recovered": at}


def _over_seeds(values: Mapping[int, float | None]) -> dict[str, Any]:
    """Mean, its interval, and the figure of each seed; None where there is none."""
    measured = [value for value in values.values() if value is not None]
    interval: Interval | None = over_seeds(measured)
    return {
        "mean": fmean(measured) if measured else None,
        "interval": interval,
        "seeds": {str(seed): value for seed, value in values.items()},
    }


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as the table has them."""
    return [{name.rstrip("_"): value for name, value in asdict(row).items()} for row in rows]
