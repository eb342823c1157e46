"""Gradient pursuit, against its algorithm in float64, one row and one atom at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAE
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from gated_plugin import GatedSAE, GatedSAEConfig
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.science import pursuit
from gated_plugin.science.evaluation import measure_all
from gated_plugin.science.pursuit import PursuitSAE, pursue

ROWS, D_IN, D_SAE = 12, 24, 123


def dictionary(rows: int = D_SAE, columns: int = D_IN, seed: int = 0) -> torch.Tensor:
    """Atoms of norm 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator))


def activations(rows: int = ROWS, columns: int = D_IN, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def naive(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor, l0: int) -> torch.Tensor:
    """The algorithm for one row, in float64, by dense vectors: coefficients [M]."""
    U = torch.nn.functional.normalize(W.double())
    target = x.double() - b.double()
    f, active = torch.zeros(len(U), dtype=torch.float64), set[int]()
    for _ in range(l0):
        residual = target - f @ U
        correlation = U @ residual
        candidates = [j for j in range(len(U)) if j not in active]
        active.add(max(candidates, key=lambda j: correlation[j].item()))
        d = torch.zeros_like(f)
        for j in active:
            if f[j] > 0 or correlation[j] > 0:
                d[j] = correlation[j]
        moved = d @ U
        if not moved.any():
            break
        p = (f + (residual @ moved) / (moved @ moved) * d).clamp(min=0) - f
        moved = p @ U
        f = f + min(1.0, ((residual @ moved) / (moved @ moved)).item()) * p
    return f / W.double().norm(dim=1)


def coherent() -> torch.Tensor:
    """Atoms that share a direction, so that coefficients are clipped at 0 on the way."""
    return torch.nn.functional.normalize(dictionary() + 0.15)


@pytest.mark.parametrize("l0", [1, 2, 7, 20])
@pytest.mark.parametrize("norms", ["unit", "free"])
@pytest.mark.parametrize("atoms", [dictionary, coherent])
def test_codes_are_those_of_the_algorithm_in_float64(
    l0: int, norms: str, atoms: Callable[[], torch.Tensor]
) -> None:
    W, x, b = atoms(), activations(), activations(1, seed=2)[0]
    if norms == "free":
        W = W * torch.rand(D_SAE, 1, generator=torch.Generator().manual_seed(3)).add(0.1)
    dense = pursue(x, W, b, l0=l0).to_dense()
    truth = torch.stack([naive(row, W, b, l0) for row in x])
    assert torch.equal(dense > 0, truth > 1e-6)
    assert torch.allclose(dense.double(), truth, rtol=1e-3, atol=1e-5)


def test_coefficients_that_are_clipped_at_zero_have_no_entry() -> None:
    """Else the comparison with float64 would not try the clip."""
    counts = pursue(activations(), coherent(), torch.zeros(D_IN), l0=20).offsets.diff()
    assert (counts < 20).any()


@pytest.mark.parametrize("atoms", [dictionary, coherent])
def test_the_residual_never_grows(atoms: Callable[[], torch.Tensor]) -> None:
    W, x, b = atoms(), activations(rows=200), torch.zeros(D_IN)
    residuals = [
        (x - pursue(x, W, b, l0=l0).to_dense() @ W).norm(dim=1) for l0 in (1, 2, 3, 5, 8, 13, 21)
    ]
    for before, after in pairwise(residuals):
        assert (after <= before * (1 + 1e-6)).all()


def test_orthogonal_atoms_are_recovered_exactly() -> None:
    W = torch.linalg.qr(activations(D_IN, D_IN)).Q
    f = torch.zeros(ROWS, D_IN)
    for row in range(ROWS):
        f[row, torch.randperm(D_IN, generator=torch.Generator().manual_seed(row))[:5]] = 1 + row / 9
    b = activations(1, seed=2)[0]
    for l0 in (5, 11, 500):
        codes = pursue(f @ W + b, W, b, l0=l0)
        assert torch.equal(codes.offsets.diff(), torch.full((ROWS,), 5))
        assert torch.allclose(codes.to_dense(), f, rtol=1e-5)


def test_a_sparse_combination_of_coherent_atoms_is_found() -> None:
    W, generator = dictionary(512, 128), torch.Generator().manual_seed(4)
    f = torch.zeros(64, 512)
    for row in range(64):
        f[row, torch.randperm(512, generator=generator)[:4]] = 1.0
    dense = pursue(f @ W, W, torch.zeros(128), l0=4).to_dense()
    assert ((dense > 0) == (f > 0)).all(1).float().mean() > 0.95
    assert (dense - f).abs().max(1).values.median() < 0.2


def test_a_row_of_zeros_and_one_that_no_atom_points_to_have_no_code() -> None:
    W = dictionary().abs()
    x = torch.stack([torch.zeros(D_IN), -torch.ones(D_IN), torch.ones(D_IN)])
    codes = pursue(x, W, torch.zeros(D_IN), l0=3)
    assert codes.offsets.diff().tolist()[:2] == [0, 0]
    assert codes.offsets.diff()[2] > 0


def test_an_atom_of_norm_zero_is_not_used() -> None:
    W = dictionary()
    W[5] = 0
    codes = pursue(activations(), W, torch.zeros(D_IN), l0=D_SAE)
    assert codes.values.isfinite().all()
    assert 5 not in codes.features


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    W, x, b = dictionary(), activations(), torch.zeros(D_IN)
    whole = pursue(x, W, b, l0=6)
    monkeypatch.setattr(pursuit, "FEWEST_ROWS", 5)
    monkeypatch.setattr(pursuit, "HELD_CORRELATIONS", 0)
    blocks = pursue(x.view(1, ROWS, D_IN), W, b, l0=6)
    assert blocks.shape == (1, ROWS, D_SAE)
    assert torch.equal(blocks.offsets, whole.offsets)
    assert torch.equal(blocks.features, whole.features)
    assert torch.allclose(blocks.values, whole.values, rtol=1e-5)


def test_no_rows_have_no_codes() -> None:
    codes = pursue(torch.empty(0, D_IN), dictionary(), torch.zeros(D_IN), l0=3)
    assert codes.to_dense().shape == (0, D_SAE)


def test_half_precision_is_computed_in_float32() -> None:
    W, x, b = dictionary().bfloat16(), activations().bfloat16(), torch.zeros(D_IN)
    codes = pursue(x, W, b, l0=6)
    wide = pursue(x.float(), W.float(), b, l0=6)
    assert torch.equal(codes.features, wide.features)
    assert torch.equal(codes.values, wide.values)


@pytest.mark.parametrize(
    ("x", "l0", "said"),
    [
        (activations(), 0, "l0 is 0"),
        (activations(columns=D_IN + 1), 3, f"have {D_IN + 1} dimensions"),
        (torch.full((2, D_IN), torch.nan), 3, "NaN or infinity"),
    ],
)
def test_what_cannot_be_pursued_is_refused(x: torch.Tensor, l0: int, said: str) -> None:
    with pytest.raises(GatedError, match=said):
        pursue(x, dictionary(), torch.zeros(D_IN), l0=l0)


def random_sae(
    architecture: str, d_in: int = D_IN, d_sae: int = D_SAE, **settings: Any
) -> SAE[Any]:
    made: SAE[Any]
    if architecture == "gated":
        made = GatedSAE(GatedSAEConfig(d_in=d_in, d_sae=d_sae, **settings))
    else:
        made = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, **settings))
    made.W_dec.data = dictionary(d_sae, d_in)
    made.W_enc.data = made.W_dec.data.T.contiguous()
    made.b_dec.data = activations(1, d_in, seed=2)[0]
    return made


@pytest.mark.parametrize("architecture", ["gated", "standard"])
@pytest.mark.parametrize("subtracts", [True, False])
def test_an_sae_is_measured_by_its_dictionary_alone(architecture: str, subtracts: bool) -> None:
    sae = random_sae(architecture, apply_b_dec_to_input=subtracts)
    pursuing = PursuitSAE(sae, 6)
    x = activations()
    features = pursuing.encode(x)
    expected = pursue(x, sae.W_dec, sae.b_dec, l0=6).to_dense()
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(pursuing.decode(features), features @ sae.W_dec + sae.b_dec, atol=1e-5)


def test_layer_norm_is_undone_as_the_sae_does() -> None:
    sae = random_sae("standard", normalize_activations="layer_norm")
    sae.b_dec.data.zero_()
    x = 40 * activations() + 7
    pursuing = PursuitSAE(sae, 20)
    x_hat = pursuing.decode(pursuing.encode(x))
    assert ((x - x_hat).norm(dim=1) / (x - x.mean(1, keepdim=True)).norm(dim=1)).max() < 0.3


def test_an_evaluation_takes_a_pursuit_for_an_sae(tiny: Path) -> None:
    recipe = Recipe.load(tiny, ["evaluation.tokens=512"])
    sae = random_sae("gated", d_in=256, d_sae=512)
    pursuing: dict[str, Any] = {f"{l0}": PursuitSAE(sae, l0) for l0 in (2, 8)}
    few, many = (found.evaluation for found in measure_all(pursuing, recipe).values())
    assert (few.l0, many.l0) == (2, 8)
    assert few.fvu is not None
    assert many.fvu is not None
    assert many.fvu < few.fvu
    assert many.encoder_decoder_cosine is None
