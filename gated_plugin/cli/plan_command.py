"""`gated-hub plan`: what a run needs, and what each variant of a recipe would cost."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gated_plugin.cli.commands import AsJson, Set, app
from gated_plugin.cli.output import Output, answer, table, text

if TYPE_CHECKING:
    from gated_plugin.plan import RunPlan
    from gated_plugin.plan.needs import Need

SMALLER = "try --set act_store_device=cpu, or a smaller n_batches_in_buffer"
COLUMNS = {"part": "", "amount": "", "how": ""}
LISTED = {
    "variant": "variant",
    "parameters": "parameters",
    "memory": "memory",
    "flops": "FLOP",
    "time": "time",
    "source": "from",
}


@app.command("plan")
def plan_run(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file, or the name of a bundled one, with its variant.")
    ],
    set_: Set = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="H200, H100, A100 or cpu; by default cpu for a recipe that trains there, else H100."
        ),
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1, help="Throughput of training that you measured.")
    ] = None,
    model_params: Annotated[
        float | None,
        typer.Option(min=1, help="Parameters of a language model that is not known here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run needs before it starts: memory, disk, tokens, FLOP, time.

    gated-hub plan gemma-7b/resid-20-lambda-0.0005 --gpu H200

    Of a recipe with variants, and none of them named, a line for each.
    """
    from gated_plugin.plan import plan_all

    plans = plan_all(
        recipe,
        set_ or (),
        gpu=gpu,
        tokens_per_second=tokens_per_second,
        model_parameters=None if model_params is None else int(model_params),
    )
    if as_json:
        found = [asdict(plan) for plan in plans]
        answer(Output.json, found[0] if len(found) == 1 else {"plans": found})
    elif len(plans) == 1:
        _print_one(plans[0])
    else:
        _print_all(plans)


def _print_one(plan: RunPlan) -> None:
    answer(
        Output.human,
        {
            "from": plan.source or "-",
            "SAE": f"{plan.parameters:,} parameters, {_bytes(plan.published)} published",
            "training": f"{plan.tokens:,} tokens in {plan.steps:,} steps",
            "on": f"{plan.device}: {plan.rate}",
        },
        plan.name,
    )
    _section("Memory", plan.memory, _bytes(plan.memory_total), _fits(plan))
    _section("Disk", plan.disk, _bytes(plan.disk_total), "at the most")
    rows = [
        _row(job.part, _amount(job.flops, job.seconds), job.how, job.counts) for job in plan.work
    ]
    total = _amount(plan.flops_total, plan.seconds)
    _table("Work", [*rows, _row("total", total, "")])


def _fits(plan: RunPlan) -> str:
    """How what lies beside the SAE compares with the device that it lies on."""
    said = f"{_bytes(plan.memory_on_device)} of it on the SAE's device"
    if plan.memory_of_device is None:
        return said
    said += f", which has {_bytes(plan.memory_of_device)}"
    return f"{said}: too much; {SMALLER}" if _exceeds(plan) else said


def _exceeds(plan: RunPlan) -> bool:
    device = plan.memory_of_device
    return device is not None and plan.memory_on_device > device


def _print_all(plans: list[RunPlan]) -> None:
    rows = [
        {
            "variant": plan.recipe.rpartition("/")[2],
            "parameters": plan.parameters,
            "memory": _bytes(plan.memory_total) + " *" * _exceeds(plan),
            "flops": f"{plan.flops_total:.2g}",
            "time": _time(plan.seconds),
            "source": plan.source,
        }
        for plan in plans
    ]
    table(Output.human, "variants", rows, LISTED)
    if any(map(_exceeds, plans)):
        text(f"\n* More than one {plans[0].device} has; {SMALLER}.")
    together = _time(sum(plan.seconds for plan in plans))
    text(f"\nAll {len(plans)} one after the other: {together} on one {plans[0].device}.")
    text(f"One of them: gated-hub plan {plans[0].recipe}")


def _section(title: str, parts: list[Need], total: str, note: str) -> None:
    rows = [_row(part.part, _bytes(part.bytes), part.how, part.counts) for part in parts]
    _table(title, [*rows, _row("total", total, note)])


def _row(part: str, amount: str, how: str, counts: bool = True) -> dict[str, str]:
    return {"part": part, "amount": amount if counts else f"({amount})", "how": how}


def _table(title: str, rows: list[dict[str, str]]) -> None:
    text("")
    table(Output.human, title, rows, {**COLUMNS, "part": title})


def _amount(flops: float, seconds: float | None) -> str:
    return f"{flops:.2g} FLOP" + ("" if seconds is None else f", {_time(seconds)}")


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
