"""A case's results as text: in multiples of mm, then in tokens and beside what the device can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.targets import OURS, are_for, targets

COLUMNS = (
    "step",
    "forward",
    "backward",
    "optimizer",
    "encode",
    "decode",
    "encode+decode",
)
MEMORY = "peak MB"
THROUGHPUT = ("tokens/s", "useful TFLOP/s")
ROOFLINE = ("floor ms", "by bytes", "by FLOPs", "measured", "of floor", "binds")


def render(result: dict[str, Any]) -> str:
    """Everything that there is to say of a case."""
    blocks = [_multiples(result), _units(result), _roofline(result)]
    if are_for(result):
        blocks.append(_targets(result))
    return "\n\n".join(blocks)


def _multiples(result: dict[str, Any]) -> str:
    """One line per implementation; `–` where a column does not apply."""
    lines: dict[str, Sequence[str]] = {"": (*COLUMNS, MEMORY, *THROUGHPUT)}
    for name, row in result["implementations"].items():
        multiples = {column: cell["multiple_of_mm"] for column, cell in row["times"].items()}
        lines[name] = (
            *(_number(multiples.get(column), 2) for column in COLUMNS),
            _number(row.get("working_megabytes"), 0),
            _number(row.get("tokens_per_second"), 0),
            _number(row.get("useful_tflops"), 3),
        )
        if row.get("out_of_memory"):
            lines[name] = ("out of memory", *lines[name][1:])
    head = f"{result['case']}: one mm = {result['mm_ms']:.1f} ms"
    return "\n".join([head, *_aligned(lines)])


def _units(result: dict[str, Any]) -> str:
    """The rates of the device, and what useful FLOPs are."""
    rates = [
        f"{name} {cell['ms']:.2f} ms, {cell['tflops']:.2f} TFLOP/s"
        for name, cell in result["units"].items()
        if "tflops" in cell
    ]
    copied = f"copy {result['units']['copy']['gb_per_s']:.0f} GB/s"
    useful = result["useful_flops_of_a_step"] / 1e12
    return (
        f"{'; '.join([*rates, copied])}.\nUseful are {useful:.3g} TFLOP a step, for every row: one "
        "dense product, and on the support\ntwo decodes, two sampled products, one recheck and two "
        "weight gradients."
    )


def _roofline(result: dict[str, Any]) -> str:
    """Where `gated_plugin` stands above what the device allows."""
    times = result["implementations"].get(OURS, {}).get("times", {})
    lines: dict[str, Sequence[str]] = {f"{OURS}:": ROOFLINE}
    for part, floor in result["roofline"].items():
        measured = median(times[part]["milliseconds"]) if part in times else None
        lines[part] = (
            *(_number(floor[key], 3) for key in ("milliseconds", "by_bytes", "by_flops")),
            _number(measured, 3),
            _number(measured and measured / floor["milliseconds"], 1),
            floor["binds"],
        )
    return "\n".join(_aligned(lines))


def _targets(result: dict[str, Any]) -> str:
    lines = {"target": ("goal", "found", "")}
    for target in targets(result):
        verdict = "met" if target.met else "not met"
        lines[target.name] = (target.goal, _number(target.found, 1), verdict)
    return "\n".join(_aligned(lines))


def _aligned(lines: Mapping[str, Sequence[str]]) -> list[str]:
    first = max(map(len, lines))
    widths = [max(map(len, cells)) for cells in zip(*lines.values(), strict=True)]
    return [
        "  ".join([name.ljust(first), *map(str.rjust, cells, widths)]).rstrip()
        for name, cells in lines.items()
    ]


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"
