"""Pairs of operands x [B, N] and w [M, N] that make a low-precision product err as far as it can."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Sizes = tuple[int, int, int]

TIE = 2.0**-8
"""1 + TIE lies half way between two bfloat16 numbers."""

BELOW, ABOVE = 1 + TIE - 2.0**-23, 1 + TIE + 2.0**-23
"""Rounded down, and up, by as much as can be."""

adversaries: dict[str, Callable[[Sizes], Pair]] = {}


def adversary(make: Callable[[int, int, int], Pair]) -> Callable[[int, int, int], Pair]:
    def seeded(sizes: Sizes) -> Pair:
        torch.manual_seed(sum(sizes))
        return make(*sizes)

    adversaries[make.__name__] = seeded
    return make


def both(B: int, N: int, M: int, value: float) -> Pair:
    """The same value everywhere, but for rows of x that lack some coordinates."""
    here = torch.rand(B, N) < torch.linspace(1, 0.1, B)[:, None]
    return here * value, torch.full((M, N), value)


@adversary
def gaussian(B, N, M):
    return torch.randn(B, N), torch.randn(M, N)


@adversary
def all_rounded_down(B, N, M):
    return both(B, N, M, BELOW)


@adversary
def all_rounded_up(B, N, M):
    return both(B, N, M, ABOVE)


@adversary
def all_ties(B, N, M):
    return both(B, N, M, 1 + TIE)


@adversary
def one_operand_rounded(B, N, M):
    return both(B, N, M, BELOW)[0], torch.ones(M, N)


@adversary
def rounded_down_with_shared_signs(B, N, M):
    signs = torch.randn(N).sign()
    return BELOW * signs * 2.0 ** torch.randint(-3, 4, (B, 1)), BELOW * signs.expand(M, N)


@adversary
def rounded_alike_at_all_mantissas(B, N, M):
    def vectors(rows):
        high = torch.randint(0, 128, (rows, N)) * 2.0**-7
        off = torch.tensor([TIE - 2.0**-23, TIE, TIE + 2.0**-23])[torch.randint(0, 3, (rows, 1))]
        return (1 + high + off) * 2.0 ** torch.randint(-6, 1, (N,))

    return vectors(B), vectors(M)


@adversary
def sums_that_cancel(B, N, M):
    x, w = torch.rand(B, N) + 0.5, torch.rand(M, N) + 0.5
    half = N // 2
    x[:, half : 2 * half], w[:, half : 2 * half] = x[:, :half], -w[:, :half]
    return x, w


@adversary
def residuals_that_do_not_cancel(B, N, M):
    x, w = torch.ones(B, N), torch.ones(M, N)
    x[:, : N // 2], w[:, N // 2 :] = BELOW, -1
    return x, w


@adversary
def sparse_vectors(B, N, M):
    return tuple(torch.randn(n, N) * (torch.rand(n, N) < 0.1) for n in (B, M))


@adversary
def one_giant_coordinate(B, N, M):
    x, w = torch.randn(B, N), torch.randn(M, N)
    x[:, 0], w[:, 0] = BELOW * 1e8, BELOW * 1e3
    return x, w


@adversary
def a_giant_coordinate_in_each(B, N, M):
    x, w = torch.randn(B, N), torch.randn(M, N)
    x[:, 0] *= 1e6
    w[:, -1] *= 1e6
    return x, w


@adversary
def additions_that_round_alike(B, N, M):
    x, w = both(B, N, M, 1.0)
    x[:, 0] = w[:, 0] = 2.0**12
    w[:, 1:] -= TIE
    return x, w


@adversary
def huge_norms(B, N, M):
    return tuple(torch.nn.functional.normalize(torch.randn(n, N)) * 1e17 for n in (B, M))


@adversary
def norms_at_the_limit(B, N, M):
    return tuple(0.9e18 / N**0.5 * operand / BELOW for operand in both(B, N, M, BELOW))


@adversary
def tiny_norms(B, N, M):
    return torch.randn(B, N) * 1e-30, torch.randn(M, N) * 1e-30


@adversary
def tiny_beside_huge(B, N, M):
    return BELOW * torch.rand(B, N) * 1e-38, (torch.rand(M, N) + 1) * 1e17 / N**0.5


@adversary
def denormals(B, N, M):
    return torch.randn(B, N) * 1e-40, torch.randn(M, N)


@adversary
def products_that_underflow(B, N, M):
    return torch.full((B, N), BELOW * 2.0**-63), BELOW * (1 - torch.rand(M, N) / 2) * 2.0**-64


@adversary
def squares_that_underflow(B, N, M):
    x, w = both(B, N, M, BELOW)
    return x * 2.0**-75.4, w * 2.0**40


@adversary
def residuals_whose_squares_underflow(B, N, M):
    x, w = residuals_that_do_not_cancel(B, N, M)
    return x * 2.0**-56, w * 2.0**54


@adversary
def arbitrary_bits(B, N, M):
    def vectors(rows):
        floats = torch.randint(-(2**31), 2**31, (rows, N)).int().view(torch.float32)
        return torch.where(floats.abs() < 1e17 / N**0.5, floats, torch.ones(()))

    return vectors(B), vectors(M)
