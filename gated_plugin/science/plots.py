"""Pictures of a run: how it trained, and what its features are like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.numpy import load_file

from gated_plugin.runs import Run, beside, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def draw(run: Run) -> list[Path]:
    """Write `plots/training.png` and, once evaluated, `plots/features.png`."""
    import matplotlib

    matplotlib.use("Agg")
    run.plots.mkdir(exist_ok=True)
    drawn = [_training(run)]
    if run.features.exists():
        drawn.append(_features(run))
    return drawn


def _training(run: Run) -> Path:
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in run.training_log.read_text().splitlines()]
    tokens = [line["tokens"] / 1e6 for line in lines]
    panels = (
        ("l0", "L0 (features per token)", BLUE, "log"),
        ("fvu", "fraction of variance unexplained", ORANGE, "log"),
        ("alive", "features that fired lately", GREEN, "linear"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for axis, (key, label, colour, scale) in zip(axes, panels, strict=True):
        axis.plot(tokens, [line[key] for line in lines], color=colour)
        axis.set(xlabel="million tokens", title=label, yscale=scale)
        axis.grid(alpha=0.3)
    axes[2].set_ylim(0, 1.02)
    figure.suptitle(f"Training of {run.name}")
    return save(figure, run.plots / "training.png")


def _features(run: Run) -> Path:
    import matplotlib.pyplot as plt
    import numpy as np

    features = load_file(run.features)
    evaluation = read_json(run.evaluation)
    rates = features["firing_rate"]
    alive = rates > 0
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    axes[0].hist(np.log10(rates[alive]), bins=50, color=BLUE)
    axes[0].set(xlabel="log₁₀ firing rate", ylabel="features", title="How often features fire")
    axes[1].scatter(rates[alive], features["mean_magnitude"][alive], s=4, alpha=0.5, color=ORANGE)
    axes[1].set(
        xlabel="firing rate", ylabel="mean magnitude", xscale="log", title="How strongly they fire"
    )
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(
        f"{run.name}: L0 {evaluation['l0']:.1f}, loss recovered "
        f"{_three_digits(evaluation['loss_recovered'])}, γ {_three_digits(evaluation['gamma'])}, "
        f"{alive.sum()} of {len(rates)} features alive"
    )
    return save(figure, run.plots / "features.png")


def _three_digits(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3f}"


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as png, and forget it."""
    from matplotlib import pyplot

    with beside(path) as unfinished:
        figure.savefig(unfinished, dpi=130, format="png")
    pyplot.close(figure)
    return path


def against_l0(axis: Axes, title: str) -> None:
    """Make the panel's x axis L0 by its logarithm, labelled at 1, 2, 3 and 5 times powers of ten."""
    axis.set(xlabel="L0 (features per token)", title=title, xscale="log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(lambda l0, _: f"{l0:g}" if f"{l0:g}"[0] in "235" else "")
    axis.tick_params(axis="x", which="both", labelsize=9)
    axis.grid(alpha=0.3, which="both")
