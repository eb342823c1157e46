"""How a step's cost moves with density and with width: python -m benchmarks.sweep

In multiples of mm, as `benchmarks/step.py` explains: SAELens' gated step, ours as it chooses for
itself, and ours forced to the dense and to the sparse engine. `density` is the share of open gates,
from 0.05 % to the 60 % of a start; `width` goes from a quarter to four times the shape's d_sae.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.arguments import Shape, add_protocol, positive, shape

SAELENS, OURS, DENSE, SPARSE = "saelens", "gated_plugin", "gated_plugin:dense", "gated_plugin:numba"
ROWS = (SAELENS, OURS, DENSE, SPARSE)

DENSITIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
WIDTHS = (0.25, 0.5, 1, 2, 4)
TOO_LONG = 2
"""The sparse engine is left out where it would take so many times SAELens' step."""


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=shape, default=(1024, 768, 12288), help="ROWSxD_INxD_SAE")
    parser.add_argument("--l0", type=positive, default=64, help="of the sweep over widths")
    parser.add_argument("--figure", type=Path, help="draw both sweeps into this PNG")
    add_protocol(parser)
    asked = parser.parse_args()
    if asked.l0 >= asked.shape[2] * min(WIDTHS):
        parser.error(f"--l0 {asked.l0} must be below d_sae / 4 of --shape")
    return asked


def main() -> None:
    asked = arguments()
    machine.restart_with_passive_threads()
    idle_before = machine.idle_check()
    B, N, M = asked.shape
    report = {
        "unit": "mm: one dense float32 encoder product of the point's shape, into its own memory",
        "shape": asked.shape,
        "l0": asked.l0,
        "density": by_density(asked),
        "width": [point((B, N, int(M * times)), asked.l0, ROWS, asked) for times in WIDTHS],
        "protocol": machine.facts(asked.device) | {"repeats": asked.repeats, "beta1": asked.beta1},
        "idle_check": {"before": idle_before, "after": machine.idle_check()},
    }
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if asked.figure:
        from benchmarks.chart import draw

        draw(report, asked.figure)


def by_density(asked: Namespace) -> list[dict[str, Any]]:
    """From sparse to dense; the sparse engine's cost grows with density, so it ends first."""
    _, _, M = asked.shape
    points: list[dict[str, Any]] = []
    for density in DENSITIES:
        rows = [row for row in ROWS if row != SPARSE or not points or _pays(points[-1], density)]
        points.append(point(asked.shape, max(1, round(density * M)), rows, asked))
    return points


def _pays(last: dict[str, Any], density: float) -> bool:
    """Whether the sparse engine, its cost growing in proportion, stays within `TOO_LONG`."""
    cost = last["multiples_of_mm"]
    return SPARSE in cost and cost[SPARSE] * density / last["density"] <= TOO_LONG * cost[SAELENS]


def point(shape: Shape, l0: int, rows: Sequence[str], asked: Namespace) -> dict[str, Any]:
    """The whole step of every row at one shape and L0."""
    import torch  # loaded only once the command has restarted

    from benchmarks.clock import interleaved, mm_milliseconds, update
    from benchmarks.implementations import build
    from benchmarks.workload import Case, make

    torch.set_num_threads(asked.threads)
    B, N, M = shape
    case = Case(rows=B, d_in=N, d_sae=M, l0=l0, beta1=asked.beta1, device=asked.device)
    workload = make(case)
    built = {row: build(row, workload) for row in rows}
    chains = {row: [update(implementation)] for row, implementation in built.items()}
    times = interleaved(chains, workload, asked.repeats)
    multiples = {row: times[row]["step"].multiple for row in rows}
    print(f"{case}: {multiples}")
    return {
        **case.facts(),
        "density": l0 / M,
        "mm_ms": mm_milliseconds(times),
        "served": built[OURS].served(),
        "multiples_of_mm": multiples,
        "times": {row: times[row]["step"].facts() for row in rows},
    }


if __name__ == "__main__":
    main()
