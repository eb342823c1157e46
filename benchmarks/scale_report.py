"""What `benchmarks.scale` measured, as docs/scale.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gated_plugin.progress import byte_size

ROLES = ("command", "checks", "plain SAELens")
FIGURES = {
    "l0": ("L0", "{:,.1f}"),
    "gamma": ("γ", "{:.3f}"),
    "fvu": ("FVU", "{:.3f}"),
    "alive": ("alive", "{:.1%}"),
    "tokens_trained": ("trained on", "{:,} rows"),
    "tokens_evaluated": ("evaluated on", "{:,} rows"),
}
HEAD = """\
# The whole path at {d_sae} × {d_in}

Written by `make scale`; nothing here is written by hand. A Gated SAE with the shape of the paper's
for Gemma-7B, {d_sae} features on {d_in} dimensions, is trained on synthetic activations, killed,
resumed, evaluated, published to a local hub, fetched, verified and loaded, by the commands of
`gated-hub` in processes of their own. Its weights have {size}. All of it took
{minutes:.0f} minutes.

Machine: {cpu}, {cores} cores, {gpu}; torch {torch}, SAELens {sae_lens}; other
processes used {busy} of the cores as it began.

| | seconds | peak MB of the command | of its checks | of plain SAELens |
|---|--:|--:|--:|--:|
"""
INTERRUPTION = """
Training took {steps} steps of {batch} rows. It was killed (SIGKILL) when step {killed_at_step} was
logged, and went on from the checkpoint of step {checkpoint}. Memory is that of each process at its
largest (VmHWM), with what torch and SAELens take to import ({imports} MB) and with pages of mapped
files, which the system may take back. To load, `gated_plugin.load` took {ours} MB at the most and
plain SAELens {theirs} MB, since it maps the file: the weights come to memory when they are used.

"""
TAIL = """
So few steps make no good dictionary, and synthetic activations none of any model
([synthetic.md](synthetic.md)): the figures show only that evaluation works at this size.
[Raw](measurements/scale.json).
"""


def markdown(result: Mapping[str, Any]) -> str:
    """The report.

    Args:
        result: as `benchmarks.scale` writes it.
    """
    about, parts, loaded = result["machine"], result["parts"], result["loaded"]
    busy = result["idle_check"]["busy_share"]
    head = HEAD.format(
        d_sae=result["d_sae"],
        d_in=result["d_in"],
        size=byte_size(result["bytes"]),
        minutes=sum(part["seconds"] for part in parts) / 60,
        cpu=about["cpu"],
        cores=about["cores"],
        gpu=about["gpu"] or "no GPU",
        torch=about["torch"],
        sae_lens=about["sae_lens"],
        busy="–" if busy is None else f"{busy:.0%}",
    )
    rows = "".join(f"| {' | '.join(_row(part))} |\n" for part in parts)
    interruption = INTERRUPTION.format(
        batch=result["batch"],
        imports=loaded["gated_plugin.load"]["imports_mb"],
        ours=loaded["gated_plugin.load"]["loading_peak_mb"],
        theirs=loaded["SAE.from_pretrained"]["loading_peak_mb"],
        **result["interruption"],
    )
    return head + rows + interruption + _evaluation(result["evaluation"]) + TAIL


def _row(part: Mapping[str, Any]) -> list[str]:
    peaks = [part["peak_mb"].get(role) for role in ROLES]
    return [part["name"], f"{part['seconds']:.1f}", *map(_number, peaks)]


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _evaluation(figures: Mapping[str, Any]) -> str:
    names = " | ".join(name for name, _ in FIGURES.values())
    cells = (
        "–" if figures[key] is None else form.format(figures[key])
        for key, (_, form) in FIGURES.items()
    )
    return f"| {names} |\n|{'--:|' * len(FIGURES)}\n| {' | '.join(cells)} |\n"
