"""The loss and its gradients against the paper's formula, written here a second time in float64.

Section 3.2 of arXiv 2404.16014, with features along rows and every stop-gradient spelled out.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig
from gated_plugin.loss import auxiliary_error, gated_loss, sparsity_penalty, squared_error

PARAMETERS = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
L1 = 0.7


def paper_terms(p: dict[str, Tensor], x: Tensor, frozen: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The three terms; `frozen` holds the decoder that the auxiliary term sees."""
    W_gate = p["W_enc"].T
    W_mag = torch.exp(p["r_mag"])[:, None] * W_gate
    centred = x - p["b_dec"]
    pi_gate = centred @ W_gate.T + p["b_gate"]
    magnitudes = torch.relu(centred @ W_mag.T + p["b_mag"])
    features = (pi_gate > 0).to(x.dtype) * magnitudes
    x_hat = features @ p["W_dec"] + p["b_dec"]
    gate = torch.relu(pi_gate)
    x_hat_frozen = gate @ frozen["W_dec"] + frozen["b_dec"]
    return (
        ((x - x_hat) ** 2).sum(1).mean(),
        L1 * gate.sum(1).mean(),
        ((x - x_hat_frozen) ** 2).sum(1).mean(),
    )


def make_sae(
    d_in: int, d_sae: int, dtype: str, seed: int = 0, **fields: object
) -> GatedTrainingSAE:
    """An SAE whose every parameter is away from its start."""
    torch.manual_seed(seed)
    sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=d_in, d_sae=d_sae, dtype=dtype, **fields))
    with torch.no_grad():
        for name in PARAMETERS:
            parameter = getattr(sae, name)
            parameter += 0.3 * torch.randn_like(parameter)
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return sae


def step(sae: GatedTrainingSAE, x: Tensor):
    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x,
            coefficients={"l1": L1},
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
    )


def truth(sae: GatedTrainingSAE, x: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Terms and gradients of the paper's formula in float64, the decoder frozen by detaching."""
    p = {n: getattr(sae, n).detach().double().requires_grad_() for n in PARAMETERS}
    terms = paper_terms(p, x.double(), {n: p[n].detach() for n in ("W_dec", "b_dec")})
    gradients = torch.autograd.grad(sum(terms), list(p.values()))
    return terms, dict(zip(PARAMETERS, gradients, strict=True))


@pytest.mark.parametrize(("batch", "d_in", "d_sae"), [(1, 3, 5), (32, 16, 64), (57, 123, 252)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_terms_and_every_gradient_are_the_papers(batch, d_in, d_sae, dtype, tolerance):
    sae = make_sae(d_in, d_sae, dtype)
    x = torch.randn(batch, d_in, dtype=sae.dtype)
    output = step(sae, x)
    # Taken without the hook that takes out what lies along the decoder's rows.
    ours = torch.autograd.grad(output.loss, [getattr(sae, n) for n in PARAMETERS])
    terms, gradients = truth(sae, x)

    for name, term in zip(
        ("mse_loss", "l1_loss", "auxiliary_reconstruction_loss"), terms, strict=True
    ):
        assert output.losses[name].item() == pytest.approx(term.item(), rel=tolerance)
    for name, gradient in zip(PARAMETERS, ours, strict=True):
        error = (gradient.double() - gradients[name]).norm() / gradients[name].norm()
        assert error < tolerance, name


@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_agree_with_finite_differences(name):
    sae = make_sae(6, 12, "float64")
    x = torch.randn(9, 6, dtype=torch.float64)
    output = step(sae, x)
    (gradient,) = torch.autograd.grad(output.loss, getattr(sae, name))
    here = {n: getattr(sae, n).detach().clone() for n in PARAMETERS}
    frozen = {n: here[n].clone() for n in ("W_dec", "b_dec")}
    width = 1e-6
    for index in range(here[name].numel()):
        shift = torch.zeros(here[name].shape, dtype=torch.float64)
        shift.view(-1)[index] = width
        up, down = (
            sum(paper_terms({**here, name: here[name] + sign * shift}, x, frozen)).item()
            for sign in (1, -1)
        )
        slope = (up - down) / (2 * width)
        assert gradient.reshape(-1)[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_auxiliary_term_leaves_the_decoder_exactly_alone():
    sae = make_sae(8, 32, "float32", apply_b_dec_to_input=False)
    aux = step(sae, torch.randn(16, 8)).losses["auxiliary_reconstruction_loss"]
    W_dec, b_dec = torch.autograd.grad(aux, [sae.W_dec, sae.b_dec])
    assert not W_dec.any()
    assert not b_dec.any()


def test_auxiliary_term_reaches_b_dec_only_through_the_encoder():
    sae = make_sae(8, 32, "float64")
    x = torch.randn(16, 8, dtype=torch.float64)
    aux = step(sae, x).losses["auxiliary_reconstruction_loss"]
    (b_dec,) = torch.autograd.grad(aux, sae.b_dec, retain_graph=True)
    (b_gate,) = torch.autograd.grad(aux, sae.b_gate)
    torch.testing.assert_close(b_dec, -sae.W_enc.detach() @ b_gate)


def test_main_term_leaves_the_gate_bias_exactly_alone():
    sae = make_sae(8, 32, "float32")
    main = step(sae, torch.randn(16, 8)).losses["mse_loss"]
    (b_gate,) = torch.autograd.grad(main, sae.b_gate)
    assert not b_gate.any()


@pytest.mark.parametrize("name", ["b_mag", "r_mag", "W_dec"])
def test_the_gates_own_terms_leave_the_magnitude_path_exactly_alone(name):
    sae = make_sae(8, 32, "float32")
    losses = step(sae, torch.randn(16, 8)).losses
    total = losses["l1_loss"] + losses["auxiliary_reconstruction_loss"]
    (gradient,) = torch.autograd.grad(total, getattr(sae, name))
    assert not gradient.any()


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_activations_normalised_at_run_time_are_so_for_the_gates_own_terms_too(normalization):
    raw = make_sae(8, 32, "float64", normalize_activations=normalization)
    plain = make_sae(8, 32, "float64")
    x = 5 * torch.randn(16, 8, dtype=torch.float64) + 3
    normalised = raw.run_time_activation_norm_fn_in(x)
    ours, expected = step(raw, x).losses, step(plain, normalised).losses
    for name in ("l1_loss", "auxiliary_reconstruction_loss"):
        torch.testing.assert_close(ours[name], expected[name])


def test_saelens_seam_for_auxiliary_terms_gives_the_same_terms():
    sae = make_sae(8, 32, "float32")
    x = torch.randn(16, 8)
    output = step(sae, x)
    seam = sae.calculate_aux_loss(
        TrainStepInput(x, {"l1": L1}, None, 0, False),
        output.feature_acts,
        output.hidden_pre,
        output.sae_out,
    )
    assert seam.keys() == {"l1_loss", "auxiliary_reconstruction_loss"}
    for name, value in seam.items():
        torch.testing.assert_close(value, output.losses[name])


def test_pure_functions_are_the_terms():
    sae = make_sae(8, 32, "float64")
    x = torch.randn(5, 8, dtype=torch.float64)
    x_hat = torch.randn_like(x)
    pi_gate = torch.randn(5, 32, dtype=torch.float64)
    seen = 2 * x
    terms = gated_loss(x, x_hat, seen, pi_gate, sae.W_dec, sae.b_dec, L1)
    gate = pi_gate.clamp_min(0)
    assert terms.reconstruction == squared_error(x, x_hat)
    assert terms.sparsity == sparsity_penalty(gate, L1)
    assert terms.auxiliary == auxiliary_error(seen, gate, sae.W_dec, sae.b_dec)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 9), d_in=st.integers(1, 17), d_sae=st.integers(2, 40), seed=st.integers()
)
def test_the_gates_own_support_is_that_of_the_features_or_wider(batch, d_in, d_sae, seed):
    sae = make_sae(d_in, d_sae, "float32", seed=seed % 2**31)
    x = torch.randn(batch, d_in)
    code = sae.gated_code(sae.process_sae_in(x))
    open_gates = code.shared_pre + sae.b_gate > 0
    assert not (code.features[~open_gates] != 0).any()
    assert (code.features >= 0).all()
