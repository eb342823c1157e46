"""The figure of `benchmarks/sweep.py`: a step's cost against density, and against width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.sweep import DENSE, OURS, SAELENS, SPARSE
from gated_plugin.runs import beside
from gated_plugin.science.plots import BLUE, GREEN, ORANGE

PURPLE = "#CC79A7"
COST_TICKS = (0.5, 1, 2, 5, 10, 20, 50)


class Label(NamedTuple):
    """Where a line's name stands: at its first or last point, so many points above it."""

    at: int
    above: float


class Line(NamedTuple):
    """How a row is drawn."""

    row: str
    name: str
    colour: str
    width: float
    dashes: str
    by_density: Label
    by_width: Label


LINES = (
    Line(SAELENS, "SAELens' gated", ORANGE, 2.0, "-", Label(0, 6), Label(-1, 6)),
    Line(DENSE, "ours, dense engine", GREEN, 2.0, "--", Label(0, 6), Label(-1, 6)),
    Line(OURS, "ours, as it chooses", BLUE, 4.0, "-", Label(0, -15), Label(0, 7)),
    Line(SPARSE, "ours, sparse engine", PURPLE, 2.0, ":", Label(-1, 6), Label(-1, -15)),
)


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the figure, readable at a width of 800 pixels."""
    figure, (by_density, by_width) = pyplot.subplots(
        1, 2, figsize=(8, 3.7), sharey=True, layout="constrained"
    )
    B, N, M = report["shape"]
    percent = [100 * point["density"] for point in report["density"]]
    _draw_panel(by_density, "by_density", report["density"], percent)
    by_density.set(title=f"By density: {B} rows, {N} → {M}", xlabel="open gates, % of d_sae")
    by_density.set_ylabel("training step, in dense encoder products")
    _label_ticks(by_density, (0.05, 0.5, 5, 50))
    widths = [point["d_sae"] for point in report["width"]]
    _draw_panel(by_width, "by_width", report["width"], widths)
    by_width.set(title=f"By width: {B} rows, {N} → d_sae, L0 {report['l0']}", xlabel="d_sae")
    _label_ticks(by_width, widths)
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as unfinished:
        figure.savefig(unfinished, dpi=200, format="png")
    pyplot.close(figure)


def _draw_panel(
    axes: Axes, panel: str, points: Sequence[dict[str, Any]], places: Sequence[float]
) -> None:
    axes.set(xscale="log", yscale="log")
    axes.axhline(1, color="0.5", linewidth=1, zorder=0)
    axes.grid(alpha=0.25)
    for line in LINES:
        costs = [point["multiples_of_mm"].get(line.row) for point in points]
        drawn = [(place, cost) for place, cost in zip(places, costs, strict=True) if cost]
        axes.plot(*zip(*drawn, strict=True), line.dashes, color=line.colour, linewidth=line.width)
        label = getattr(line, panel)
        axes.annotate(
            line.name,
            drawn[label.at],
            xytext=(0, label.above),
            textcoords="offset points",
            horizontalalignment="right" if label.at else "left",
            color=line.colour,
            fontsize=9,
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    axes.set_yticks(COST_TICKS, [f"{tick:g}" for tick in COST_TICKS])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.15)


def _label_ticks(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
