"""`gated-hub reproduce`: the paper's claims, shown again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gated_plugin.cli.commands import AsJson, Quiet, Set, app, reporter, silenced
from gated_plugin.cli.hub_commands import finished_by_the_same_command
from gated_plugin.cli.output import answer, chosen
from gated_plugin.cli.science_commands import numbers


@app.command()
def reproduce(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer seeds, steps and arms: some minutes.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A part: claims, peers, clock, ablations, ladder, pursuit, synthetic, "
            "revival or alive; may be repeated."
        ),
    ] = None,
    seeds: Annotated[
        list[str] | None,
        typer.Option("--seeds", "--seed", help="Other seeds, such as 4,5,6; may be repeated."),
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RECIPE",
            help="Other data, model or hook point: resid=FILE or mlp=FILE, a recipe as "
            "hub_configs/reproduction.yaml.",
        ),
    ] = None,
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/reproduction"),
    docs: Annotated[Path, typer.Option(help="Folder of the report, reproduction.md.")] = Path(
        "docs"
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show each claim of the paper again, with baselines at its compute, and write the report.

    The same command goes on with one that was stopped.

    gated-hub reproduce --quick
    """
    from gated_plugin.science.reproduction.run import reproduce as run_reproduction
    from gated_plugin.science.reproduction.settings import design

    chosen_design = design(quick=quick).changed(
        seeds=numbers(seeds, int, "--seeds"), sites=site or (), overrides=set_ or ()
    )
    silent = silenced(as_json, quiet)
    with finished_by_the_same_command():
        result = run_reproduction(
            chosen_design, out, docs, only=only or (), quiet=silent, report=reporter(silent)
        )
    form = chosen(as_json, quiet)
    figures = {"report": str(result.report), "minutes": result.minutes}
    if as_json:
        answer(form, {**figures, "verdicts": result.verdicts})
    else:
        answer(form, {**result.verdicts, **figures}, "\nThe claims:")
