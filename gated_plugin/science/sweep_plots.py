"""The picture of a sweep: loss recovered, γ and alive against L0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gated_plugin.science.pareto import front
from gated_plugin.science.plots import BLUE, ORANGE, against_l0, save
from gated_plugin.science.sweep_table import Figure, Row, curves

LOOKS = ((BLUE, "o"), (ORANGE, "s"))
"""Colour and marker of each arm."""


class Panel(NamedTuple):
    title: str
    figure: Figure
    fronts: bool = False
    ideal: float | None = None


PANELS = (
    Panel("loss recovered", lambda row: row.loss_recovered, fronts=True),
    Panel("γ (1: no shrinkage)", lambda row: row.gamma, ideal=1.0),
    Panel("features alive", lambda row: row.alive),
)


def draw_sweep(rows: Sequence[Row], path: Path) -> Path:
    """Write three panels: a mark for each SAE, and in the first each seed's front."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4), layout="constrained")
    arms = list(dict.fromkeys(row.arm for row in rows))
    for axis, panel in zip(axes, PANELS, strict=True):
        for arm, (colour, marker) in zip(arms, LOOKS, strict=False):
            by_seed = curves(rows, arm, panel.figure)
            marks = [point for points in by_seed.values() for point in points]
            l0, values = [p.l0 for p in marks], [p.value for p in marks]
            axis.scatter(l0, values, s=22, color=colour, marker=marker, label=arm)
            for points in by_seed.values() if panel.fronts else ():
                best = front(points)
                axis.plot([p.l0 for p in best], [p.value for p in best], color=colour, linewidth=1)
        if panel.ideal is not None:
            axis.axhline(panel.ideal, color="black", linewidth=0.8, linestyle=":")
        against_l0(axis, panel.title)
    axes[2].set_ylim(0, 1.02)
    axes[0].legend()
    return save(figure, path)
