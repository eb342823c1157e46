"""The command line, and its commands about runs: each parses, calls one function, and prints
through one sink."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gated_plugin.cli.output import Output, answer, chosen, error

app = typer.Typer(
    name="gated-hub",
    help="Train, evaluate, publish and fetch Gated sparse autoencoders with SAELens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no answer.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; may be repeated."),
]


@app.callback()
def gated_hub(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.")] = False,
) -> None:
    """Train, evaluate, publish and fetch Gated sparse autoencoders with SAELens."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a bundled one.")],
    set_: Set = None,
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic", help="On synthetic activations of the right shape; no model is loaded."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; runs/NAME by default."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in --out.")] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between checkpoints; a hundredth of the run, at least 100, by default.",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train an SAE from a recipe.

    gated-hub train quickstart --set sae.l1_coefficient=1 --out runs/mine
    gated-hub train gemma-7b/resid-20-lambda-0.0005 --synthetic --set device=cpu
    """
    from gated_plugin.recipes import Recipe
    from gated_plugin.runner import train as run_training
    from gated_plugin.science.plots import draw

    plan = Recipe.load(recipe, [*(set_ or ()), *(["synthetic=true"] if synthetic else [])])
    run = run_training(
        plan,
        out or Path("runs") / (f"{plan.name}-synthetic" if plan.synthetic else plan.name),
        resume=resume,
        checkpoint_every=checkpoint_every,
        quiet=silenced(as_json, quiet),
    )
    with run.writing("The plot of the training"):
        draw(run)
    answer(
        chosen(as_json, quiet),
        {"run": str(run.path), "sae": str(run.sae), "next": f"gated-hub eval {run.path}"},
        "Trained.",
    )


@app.command("eval")
def evaluate(run: RunPath, set_: Set = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Evaluate a run's SAE on held-out text: L0, loss recovered, γ, alive, CE, FVU.

    gated-hub eval runs/quickstart --set evaluation.tokens=100_000
    """
    from gated_plugin.recipes import Recipe
    from gated_plugin.runs import Run
    from gated_plugin.science.evaluation import evaluate as run_evaluation
    from gated_plugin.science.held_out import require_for_evaluation
    from gated_plugin.science.plots import draw

    opened = Run.open(run)
    require_for_evaluation(set_ or ())
    recipe = Recipe.load(opened.recipe, set_ or ())
    found = run_evaluation(opened, recipe, quiet=silenced(as_json, quiet))
    draw(opened)
    output = chosen(as_json, quiet)
    figures = _with_intervals(asdict(found)) if output is Output.human else asdict(found)
    answer(output, figures, f"{run} on {found.dataset_path}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder; made anew.")] = Path("runs/quickstart"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The whole job on the embedded model: train, evaluate, publish locally, load back.

    gated-hub demo
    """
    from gated_plugin.demo import demo as run_demo

    silent = silenced(as_json, quiet)
    summary = run_demo(out, quiet=silent, report=reporter(silent))
    output = chosen(as_json, quiet)
    figures = _with_intervals(summary) if output is Output.human else summary
    answer(output, figures, f"\nA Gated SAE in {summary['seconds']:.0f} s:")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what is registered, and what is wrong."""
    from gated_plugin.doctor import diagnose

    found = diagnose()
    answer(
        chosen(as_json, False),
        {
            **found.versions,
            "plugins": [f"{name} = {value}" for name, value in found.plugins.items()],
            "registered as 'gated'": found.registered,
            "problems": list(found.problems),
        },
    )
    if found.problems:
        if not as_json:
            for problem in found.problems:
                error(problem)
        raise typer.Exit(1)


def _with_intervals(figures: dict[str, Any]) -> dict[str, Any]:
    """Each figure's interval beside it instead of after it, for people."""
    shown: dict[str, Any] = {}
    for key, value in figures.items():
        name = key.removesuffix("_interval")
        if name == key:
            shown[name] = value
        elif value is not None:
            low, high = value
            shown[name] = f"{shown[name]:.4g}  (95 %: {low:.4g} to {high:.4g})"
    return shown


def silenced(as_json: bool, quiet: bool) -> bool:
    """Whether there is to be nothing beside the answer; then our own notices are off too."""
    if as_json or quiet:
        logging.getLogger("gated_plugin").setLevel(logging.ERROR)
    return as_json or quiet


def reporter(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else (lambda line: print(line, flush=True))
