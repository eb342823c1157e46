"""Activations without a language model: of the right shape, and like a residual stream's.

    x = μ + Σₖ sₖ dₖ − E[Σₖ sₖ dₖ] + ε

Matched, by what is known of language models:

- a sparse sum of more directions dₖ than dimensions, whose frequencies follow a power law (the
  premise of dictionary learning; arXiv 2410.19750 finds power laws in the eigenvalues too);
- positive, heavy-tailed strengths sₖ: log-normal;
- a mean μ that is not 0, so that any two activations are similar (arXiv 2109.04404);
- a few coordinates that are much larger than the others, on every token (arXiv 2503.21718,
  2402.17762), so that the numbers have a high kurtosis;
- small dense noise ε whose variance decays from coordinate to coordinate;
- E‖x‖² = d_in, as `normalize_activations` makes it.

Not matched: there is no text. Features fire independently of each other and of the tokens before,
directions have no clusters or hierarchy, and the rarest fires on about one token in 1,400, where
those of a language model go down to one in a million. An SAE of such activations says nothing of
any model; what it costs to train, keep and publish is that of one which does.

What the activations are drawn from depends on d_in alone; a batch on the seed and its place too.
Shapes: B rows, N d_in, F directions.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from torch import Tensor
from torch.nn.functional import embedding_bag

from gated_plugin.activations import ActivationStream

DIRECTIONS = 4
"""Per dimension."""
FEWEST, MOST, PER_DIMENSION = 1, 48, 1 / 16
"""Directions in one activation: the paper's SAEs of Gemma-7B have 20 to 100."""
FREQUENCY_OFFSET = 1 / 200
"""Frequencies ∝ 1 / (k + F/200), k = 1 … F: the most frequent fires on a seventh of the tokens."""
SPREAD = 0.7
"""Standard deviation of log sₖ; their kurtosis is 21."""
MEAN_SHARE, SUM_SHARE, NOISE_SHARE = 0.3, 0.65, 0.05
"""Of E‖x‖²."""
MASSIVE, MASSIVE_SHARE = 3, 1 / 16
"""So many coordinates, each with this much of the energy of all others."""
NOISE_ROWS = 512
SOURCE_SEED = 2404_16014
TRAINING, HELD_OUT = "training", "held-out"


@dataclass(frozen=True)
class SyntheticSource:
    """What synthetic activations of one width are drawn from; 16 N² bytes."""

    directions_FN: Tensor
    """Of norm 1."""
    rates_F: Tensor
    """Expected number of times that each direction is in an activation; float64. It fires with the
    probability 1 − exp(−rate)."""
    typical_strength: float
    """The median of sₖ."""
    mean_N: Tensor
    offset_N: Tensor
    """μ − E[Σ sₖ dₖ]."""
    noise_N: Tensor
    """Standard deviations of ε."""

    @classmethod
    def of(cls, d_in: int, device: str = "cpu") -> SyntheticSource:
        """The source for d_in dimensions, which is the same on every machine."""
        generator = torch.Generator().manual_seed(SOURCE_SEED)
        size_N = torch.ones(d_in)
        massive = torch.randperm(d_in, generator=generator)[:MASSIVE]
        size_N[massive] = max(1.0, math.sqrt(MASSIVE_SHARE * d_in))
        directions_FN = torch.randn(DIRECTIONS * d_in, d_in, generator=generator).mul_(size_N)
        for block_N in directions_FN.split(1024):
            block_N /= block_N.norm(dim=1, keepdim=True)
        k_F = torch.arange(1, len(directions_FN) + 1, dtype=torch.float64)
        rates_F = 1 / (k_F + FREQUENCY_OFFSET * len(k_F))
        rates_F *= min(max(PER_DIMENSION * d_in, FEWEST), MOST) / rates_F.sum()
        # Of a compound Poisson sum: Σ rateₖ E[s²] = SUM_SHARE · N, E[Σ sₖ dₖ] = Σ rateₖ E[s] dₖ.
        second_moment = rates_F.sum().item() * math.exp(2 * SPREAD**2)
        typical_strength = math.sqrt(SUM_SHARE * d_in / second_moment)
        mean_strength = typical_strength * math.exp(SPREAD**2 / 2)
        mean_N = _scaled(torch.randn(d_in, generator=generator) * size_N, MEAN_SHARE)
        offset_N = mean_N - mean_strength * (rates_F.float() @ directions_FN)
        noise_N = (1 + torch.randperm(d_in, generator=generator)).rsqrt()
        return cls(
            directions_FN.to(device),
            rates_F.to(device),
            typical_strength,
            mean_N.to(device),
            offset_N.to(device),
            _scaled(noise_N, NOISE_SHARE).to(device),
        )

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """Activations [rows, d_in], float32."""
        device = self.mean_N.device
        mean_count = self.rates_F.sum()
        # Draws of a Poisson number, each of one direction, are independent Poisson draws of each.
        counts_B = torch.poisson(mean_count.float().expand(rows), generator=generator).long()
        uniform = torch.rand(int(counts_B.sum()), generator=generator, device=device)
        shares_F = (self.rates_F / mean_count).cumsum(0)
        drawn = torch.searchsorted(shares_F, uniform.double()).clamp_max_(len(shares_F) - 1)
        strengths = torch.empty(len(drawn), device=device).normal_(generator=generator)
        strengths = self.typical_strength * strengths.mul_(SPREAD).exp_()
        x_BN: Tensor = embedding_bag(
            drawn,
            self.directions_FN,
            counts_B.cumsum(0) - counts_B,
            mode="sum",
            per_sample_weights=strengths,
        )
        x_BN += self.offset_N
        for block_BN in x_BN.split(NOISE_ROWS):
            block_BN.addcmul_(torch.empty_like(block_BN).normal_(generator=generator), self.noise_N)
        return x_BN


def _scaled(values_N: Tensor, share: float) -> Tensor:
    """With Σ values² = share · N."""
    return values_N * math.sqrt(share * len(values_N)) / values_N.norm()


def batch_generator(seed: int, part: str, chunk: int, served: int, device: str) -> torch.Generator:
    """For one batch; others of any seed, part or place are independent of it.

    Args:
        part: `TRAINING` or `HELD_OUT`.
    """
    digest = hashlib.sha256(f"{part} {seed} {chunk} {served}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class SyntheticStream(ActivationStream):
    """Batches [train_batch_size_tokens, d_in] of synthetic activations, in the SAE's type.

    They have no end, and all are of chunk 0.

    Args:
        cfg: of it are used `sae.d_in`, `seed`, and the batches' size, type and device.
    """

    def __init__(self, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
        super().__init__(cfg)
        self.device = str(cfg.act_store_device)
        self.source = SyntheticSource.of(cfg.sae.d_in, self.device)

    def __next__(self) -> Tensor:
        place = (self.cfg.seed, TRAINING, self.chunk, self.served)
        rows = self.source.draw(
            self.cfg.train_batch_size_tokens, batch_generator(*place, self.device)
        )
        self.served += 1
        return rows.to(getattr(torch, self.cfg.dtype))
