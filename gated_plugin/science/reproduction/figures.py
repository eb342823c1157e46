"""Figures of the report: fronts, γ and alive by site, and what single changes are worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gated_plugin.science.plots import BLUE, GREEN, ORANGE, against_l0, save
from gated_plugin.science.reproduction.design import BEFORE, Design
from gated_plugin.science.reproduction.estimates import gain
from gated_plugin.science.reproduction.results import Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SKY, YELLOW, PURPLE, BLACK = "#56B4E9", "#E69F00", "#CC79A7", "#000000"
LOOKS = (
    (BLUE, "o"),
    (ORANGE, "s"),
    (GREEN, "^"),
    (PURPLE, "v"),
    (YELLOW, "D"),
    (SKY, "P"),
    (BLACK, "X"),
)
"""Colour (Okabe-Ito) and marker of the arms of a panel."""
PANELS = {"loss_recovered": "loss recovered", "gamma": "γ", "alive": "features alive"}


def draw(design: Design, results: Results, folder: Path) -> dict[str, Path]:
    """Write `reproduction-*.png`; returns them by what they show."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = {}
    for part in design.parts:
        for site, arms in part.arms.items():
            shown = [name for name in arms if results.of(site, name)]
            if part.pictured and len(shown) > 1:
                path = folder / f"reproduction-{part.name}-{site}.png"
                drawn[f"{part.title}, {site}"] = _fronts(design, results, site, shown, path)
    effects = _effects(design, results)
    if effects:
        drawn["What single changes are worth"] = _bars(effects, folder / "reproduction-effects.png")
    return drawn


def _fronts(design: Design, results: Results, site: str, arms: Sequence[str], path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 4), layout="constrained")
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        for arm, look in zip(arms, LOOKS, strict=False):
            _curve(axis, results.of(site, arm), name, design.arm(arm).title, look)
        against_l0(axis, title)
    axes[-1].set_ylim(0, 1.02)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{design.site(site).title}: each line a seed")
    return save(figure, path)


def _curve(
    axis: Axes, by_seed: dict[int, list[Row]], figure: str, title: str, look: tuple[str, str]
) -> None:
    colour, marker = look
    for place, rows in enumerate(by_seed.values()):
        shown = sorted((row for row in rows if getattr(row, figure) is not None), key=_l0)
        axis.plot(
            [row.l0 for row in shown],
            [getattr(row, figure) for row in shown],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1,
            label=None if place else title,
        )


def _l0(row: Row) -> float:
    return row.l0


def _effects(design: Design, results: Results) -> list[tuple[str, float, float]]:
    """Title, loss recovered more than the arm compared with, and half the interval."""
    found = []
    for part in design.parts:
        if part.compared_with in ("", BEFORE):
            continue
        other = design.arm(part.compared_with).title
        for site, arms in part.arms.items():
            for name in arms:
                more = gain(results, site, name, part.compared_with)
                if name != part.compared_with and more is not None:
                    half = 0.0 if more.interval is None else more.interval.high - more.mean
                    found.append(
                        (f"{site}: {design.arm(name).title}\nover {other}", more.mean, half)
                    )
    return found


def _bars(effects: Sequence[tuple[str, float, float]], path: Path) -> Path:
    import matplotlib.pyplot as plt

    titles, means, halves = zip(*effects, strict=True)
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.5 * len(effects)), layout="constrained")
    places = range(len(effects))
    axis.errorbar(means, places, xerr=halves, fmt="o", color=BLUE, capsize=3)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(places, titles)
    axis.invert_yaxis()
    axis.set(xlabel="loss recovered more than by the arm below, with 95 % intervals over seeds")
    axis.grid(alpha=0.3, axis="x")
    return save(figure, path)
