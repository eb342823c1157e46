"""Figures over a text, from sums over each of its sequences (arXiv 2404.16014, section 4.1).

L0              mean number of features that fire
loss recovered  1 − (CE(x̂) − CE(x)) / (CE(0) − CE(x)) = (CE(0) − CE(x̂)) / (CE(0) − CE(x));
                1 is a perfect splice, 0 no better than zeroing
γ               E‖x̂‖² / E[x̂·x]; below 1 is shrinkage, 1 is unbiased (section 4.2)
FVU             Σ‖x − x̂‖² / Σ‖x − mean x‖²
alive           share of features that fire at least once; the others are dead
dense           features that fire on more than a tenth of the tokens

Each of the first four is a ratio of sums, whose 95 % interval is bootstrapped over sequences. A
ratio with the denominator 0, such as the γ of an x̂ that is always 0, is None. Sums are float64.

Shapes: T tokens of a batch, P its sequences, S all sequences, N d_in, M d_sae.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gated_plugin.engine.codes import SparseCodes
from gated_plugin.science.intervals import Interval, percentile, resampled

DENSE = 0.1


class Batch(NamedTuple):
    """Tokens that count."""

    x_TN: Tensor
    """Their activations."""
    sequence_T: Tensor
    """The sequence of the batch that each is of, int64."""
    sequences: int
    """How many sequences the batch has."""

    def parts(self, sequences: int) -> Iterator[Batch]:
        """So many sequences at a time."""
        for start in range(0, self.sequences, sequences):
            end = min(start + sequences, self.sequences)
            inside = (self.sequence_T >= start) & (self.sequence_T < end)
            yield Batch(self.x_TN[inside], self.sequence_T[inside] - start, end - start)

    def summed(self, values: Tensor) -> Tensor:
        """Values [T, …] of tokens, added up by sequence: float64 [P, …] on the CPU."""
        total = values.new_zeros((self.sequences, *values.shape[1:]), dtype=torch.float64)
        return total.index_add_(0, self.sequence_T, values.double()).cpu()


class Ratio(NamedTuple):
    """A figure that is a ratio of sums."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Figures:
    """What an SAE comes to on a text."""

    l0: Ratio
    loss_recovered: Ratio
    gamma: Ratio
    fvu: Ratio
    alive: float
    n_dead: int
    n_dense: int
    tokens: int

    def flat(self) -> dict[str, Any]:
        """All but `tokens`, by name; of a ratio also `NAME_interval`."""
        found: dict[str, Any] = {}
        for name in ("l0", "loss_recovered", "gamma", "fvu"):
            found[name], found[f"{name}_interval"] = getattr(self, name)
        return found | {"alive": self.alive, "n_dead": self.n_dead, "n_dense": self.n_dense}


class TextSums:
    """Sums that every SAE on a text shares.

    Memory: 8 (N + 5) bytes a sequence, which for a million tokens in contexts of 128 and N = 2048
    is 128 MB; FVU's interval needs each sequence's Σx.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []

    def update(self, batch: Batch, predicted: Tensor, clean: Tensor, zero: Tensor) -> None:
        """Take in one batch.

        Args:
            predicted: tokens whose loss counts, of each sequence [P].
            clean: their losses with nothing replaced, summed [P].
            zero: the same with zeros in place of x.
        """
        tokens = batch.summed(torch.ones_like(batch.sequence_T))
        squares = batch.summed(batch.x_TN.double().square().sum(1))
        columns = torch.stack([tokens, squares, predicted, clean, zero], 1)
        self._sums.append(torch.cat([columns, batch.summed(batch.x_TN)], 1))

    @cached_property
    def total(self) -> _Text:
        """Over the whole text; fields [1]."""
        return _Text.of(torch.cat(self._sums).sum(0, keepdim=True))

    @cached_property
    def resampled(self) -> _Text:
        """Over each drawing of sequences; fields [resamples]."""
        return _Text.of(resampled(torch.cat(self._sums)))


class _Text(NamedTuple):
    """Sums over tokens, each [R]."""

    tokens: Tensor
    variance: Tensor
    """Σ‖x − mean x‖²."""
    predicted: Tensor
    clean: Tensor
    zero: Tensor

    @classmethod
    def of(cls, sums: Tensor) -> _Text:
        """Of the columns of `TextSums` [R, 5 + N]."""
        tokens, squares, predicted, clean, zero = sums[:, :5].unbind(1)
        variance = squares - sums[:, 5:].square().sum(1) / tokens
        return cls(tokens, variance, predicted, clean, zero)


class SaeSums:
    """Sums of one SAE of width M."""

    def __init__(self, d_sae: int) -> None:
        self.fired = torch.zeros(d_sae, dtype=torch.float64)
        """Tokens on which each feature fired."""
        self.magnitude = torch.zeros(d_sae, dtype=torch.float64)
        """Sum of each feature's activations."""
        self._sums: list[Tensor] = []
        self._spliced: list[Tensor] = []

    def update(self, batch: Batch, codes: SparseCodes, x_hat_TN: Tensor) -> None:
        """Take in the codes and reconstructions of a batch."""
        fires = (codes.values != 0).double()
        self.fired += _by(codes.features, fires, len(self.fired)).cpu()
        self.magnitude += _by(codes.features, codes.values, len(self.fired)).cpu()
        x, x_hat = batch.x_TN.double(), x_hat_TN.double()
        active = _by(codes.rows, fires, len(x))
        error, norm = (x - x_hat).square().sum(1), x_hat.square().sum(1)
        columns = torch.stack([active, error, norm, (x_hat * x).sum(1)], 1)
        self._sums.append(batch.summed(columns))

    def splice(self, losses: Tensor) -> None:
        """Take in the losses with x̂ in place of x, summed over each sequence of a batch [P]."""
        self._spliced.append(losses)

    @property
    def spliced(self) -> Tensor:
        """Losses with x̂ in place of x, over the whole text: []."""
        return torch.cat(self._spliced).sum()

    def figures(self, text: TextSums) -> Figures:
        """The figures over everything so far."""
        sums = torch.cat([torch.cat(self._sums), torch.cat(self._spliced)[:, None]], 1)
        totals = _ratios(text.total, sums.sum(0, keepdim=True))
        drawn = _ratios(text.resampled, resampled(sums)) if len(sums) > 1 else {}
        tokens = text.total.tokens.item()
        return Figures(
            **{
                name: Ratio(
                    value.item() if value.isfinite() else None,
                    percentile(drawn[name]) if drawn else None,
                )
                for name, value in totals.items()
            },
            alive=(self.fired > 0).double().mean().item(),
            n_dead=int((self.fired == 0).sum()),
            n_dense=int((self.fired > DENSE * tokens).sum()),
            tokens=int(tokens),
        )


def _ratios(text: _Text, sums: Tensor) -> dict[str, Tensor]:
    """The formulas, of sums over the whole text or a drawing of its sequences: [R]."""
    active, error, norm, dot, spliced = sums.unbind(1)
    return {
        "l0": active / text.tokens,
        "loss_recovered": (text.zero - spliced) / (text.zero - text.clean),
        "gamma": norm / dot,
        "fvu": error / text.variance,
    }


def _by(places: Tensor, values: Tensor, length: int) -> Tensor:
    return torch.bincount(places, values.double(), minlength=length)
