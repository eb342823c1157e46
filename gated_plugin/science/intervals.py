"""95 % intervals: of one figure over the sequences of a text, and of a mean over seeds.

Over sequences (percentile bootstrap, Efron 1979): the S sequences are drawn S times with
replacement, 1000 times over, and a figure is made anew from the sums over each drawing. Tokens of
one sequence are not independent, so whole sequences are drawn. What is drawn depends on S alone:
figures of several SAEs on one text are resampled together. Sequences of one document resemble each
other too: on consecutive pieces of few documents, the interval is too narrow for other documents.

Over seeds (Student): mean ± t₀.₉₇₅(n − 1) · s / √n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor

CONFIDENCE = 0.95
RESAMPLES = 1000
SEED = 0
AT_ONCE = 1 << 22
"""Draws held at once: 64 MB of numbers and counts."""


class Interval(NamedTuple):
    """Holds the true value with a confidence of 95 %; both ends belong to it."""

    low: float
    high: float


def resampled(sums_SK: Tensor) -> Tensor:
    """Totals of K sums over each drawing of the S sequences.

    Args:
        sums_SK: the sums of each sequence, [S, K].

    Returns:
        float64 [1000, K].
    """
    sequences = len(sums_SK)
    sums_SK = sums_SK.double().cpu()
    generator = torch.Generator().manual_seed(SEED)
    totals = []
    for rows in torch.arange(RESAMPLES).split(max(1, AT_ONCE // sequences)):
        drawn = torch.randint(sequences, (len(rows), sequences), generator=generator)
        counts = torch.zeros(drawn.shape, dtype=torch.float64)
        totals.append(counts.scatter_add_(1, drawn, torch.ones_like(counts)) @ sums_SK)
    return torch.cat(totals)


def percentile(figures: Tensor) -> Interval | None:
    """The middle 95 % of a figure's resampled values [1000]; None where one is not finite."""
    if not figures.isfinite().all():
        return None
    tail = (1 - CONFIDENCE) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    return Interval(*torch.quantile(figures.double(), ends).tolist())


def bootstrap(numerators: Tensor, denominators: Tensor) -> Interval | None:
    """Of a ratio of sums, Σ numerators / Σ denominators, over sequences.

    Args:
        numerators: of each sequence, [S].
        denominators: the same.

    Returns:
        None for fewer than two sequences, or where a drawing's denominator is 0.
    """
    if len(numerators) < 2:
        return None
    totals = resampled(torch.stack([numerators, denominators], 1))
    return percentile(totals[:, 0] / totals[:, 1])


def with_ends(evaluation: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Figures of an `evaluation.json`, each followed by the ends of its interval, for a table."""
    figures: dict[str, Any] = {}
    for name in names:
        low, high = evaluation[f"{name}_interval"] or (None, None)
        figures |= {name: evaluation[name], f"{name}_low": low, f"{name}_high": high}
    return figures


def over_seeds(values: Sequence[float]) -> Interval | None:
    """Of the mean of independent runs' figures; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = student_t(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def overlap(a: Interval, b: Interval) -> bool:
    """Whether two intervals have a value in common."""
    return a.low <= b.high and b.low <= a.high


def student_t(degrees: int) -> float:
    """The t within ±which Student's distribution has 95 % of its mass."""
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _mass(middle, degrees) < CONFIDENCE else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _mass(angle: float, degrees: int) -> float:
    """P(|T| < √degrees · tan angle): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= (k - 1) / k * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
