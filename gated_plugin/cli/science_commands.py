"""Commands about many runs: sweeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from gated_plugin.cli.commands import AsJson, Quiet, Set, app, reporter, silenced
from gated_plugin.cli.hub_commands import finished_by_the_same_command
from gated_plugin.cli.output import answer, chosen, table
from gated_plugin.errors import GatedError

Number = TypeVar("Number", int, float)


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled one.")],
    lambda_: Annotated[
        list[str] | None,
        typer.Option("--lambda", help="λ, such as 1 or 0.5,1,2; may be repeated."),
    ] = None,
    seeds: Annotated[
        list[str] | None,
        typer.Option("--seeds", "--seed", help="Seeds, such as 1,2,3; may be repeated."),
    ] = None,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Train the L1 baseline on the same text too, at the recipe's baseline_lambdas if it "
            "has them.",
        ),
    ] = False,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder; sweeps/NAME by default.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate many λ off one reading of the text; a table, a figure, the L0 ratio.

    The same command goes on with a sweep that was stopped.

    gated-hub sweep quickstart --lambda 0.5,1,2 --seeds 1,2,3 --baseline
    """
    lambdas, chosen_seeds = numbers(lambda_, float, "--lambda"), numbers(seeds, int, "--seeds")

    from gated_plugin.recipes import Recipe
    from gated_plugin.science.sweep import sweep as run_sweep
    from gated_plugin.science.sweep_table import records

    plan = Recipe.load(recipe, set_ or ())
    silent = silenced(as_json, quiet)
    with finished_by_the_same_command():
        result = run_sweep(
            plan,
            out or Path("sweeps") / plan.name,
            lambdas=lambdas,
            seeds=chosen_seeds,
            baseline=baseline,
            quiet=silent,
            report=reporter(silent),
        )
    form = chosen(as_json, quiet)
    rows = records(result.rows)
    files = {"table": str(result.table), "figure": str(result.figure)}
    if as_json:
        answer(form, {**files, **result.summary, "rows": rows})
        return
    columns = {"arm": "arm", "seed": "seed", "lambda": "λ", "l0": "L0"}
    columns |= {"loss_recovered": "loss recovered", "gamma": "γ", "alive": "alive"}
    table(form, "rows", rows, columns)
    answer(form, {**_ratio(result.summary), **files}, "\nSwept.")


def _ratio(summary: dict[str, Any]) -> dict[str, Any]:
    ratio = summary.get("l0_ratio")
    if ratio is None:
        return {}
    name = f"L0 of {ratio['of']} / {ratio['over']}, at equal loss recovered"
    if ratio["interval"] is None:
        return {name: ratio["mean"]}
    low, high = ratio["interval"]
    return {name: f"{ratio['mean']:.4g}  (95 % over seeds: {low:.4g} to {high:.4g})"}


def numbers(
    given: Sequence[str] | None, kind: Callable[[str], Number], option: str
) -> tuple[Number, ...]:
    """Of `1,2` and `3`: 1, 2, 3."""
    try:
        return tuple(kind(part) for text in given or () for part in text.split(","))
    except ValueError:
        raise GatedError(
            f"{option} {' '.join(given or ())!r} is no list of numbers; give them as {option} 1,2,3."
        ) from None
