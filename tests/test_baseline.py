"""What the paper's Gated SAE is compared with: its baseline, and SAELens' own gated SAE."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from run_results import fingerprint
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from sae_lens.saes import gated_sae as built_in
from sae_lens.saes.sae import SAE, TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.saes.standard_sae import StandardSAE
from torch import Tensor

import gated_plugin
from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig
from gated_plugin.baseline import L1BaselineTrainingSAE, L1BaselineTrainingSAEConfig, as_gated
from gated_plugin.engine import options
from gated_plugin.recipes import Recipe
from gated_plugin.runner import train
from gated_plugin.saelens_gated import SAELensGatedTrainingSAEConfig

PARAMETERS = ("W_enc", "W_dec", "b_dec", "b_enc")
L1 = 0.7


def make_baseline(d_in: int, d_sae: int, **fields: object) -> L1BaselineTrainingSAE:
    """A baseline whose every parameter is away from its start; about a tenth fires."""
    torch.manual_seed(0)
    sae = L1BaselineTrainingSAE(L1BaselineTrainingSAEConfig(d_in=d_in, d_sae=d_sae, **fields))
    with torch.no_grad():
        for name in PARAMETERS:
            parameter = getattr(sae, name)
            parameter += 0.3 * torch.randn_like(parameter)
        sae.b_enc -= 0.4 * d_in**0.5
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return sae


def step(sae: TrainingSAE, x: Tensor) -> TrainStepOutput:
    return sae.training_forward_pass(TrainStepInput(x, {"l1": L1}, None, 0, False))


def truth(sae: L1BaselineTrainingSAE, x: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """‖x − x̂‖² + λ ‖f‖₁ and its gradients, in float64."""
    p = {n: getattr(sae, n).detach().double().requires_grad_() for n in PARAMETERS}
    seen = x.double() - p["b_dec"] * sae.cfg.apply_b_dec_to_input
    f = (seen @ p["W_enc"] + p["b_enc"]).clamp_min(0)
    error = x.double() - f @ p["W_dec"] - p["b_dec"]
    terms = error.square().sum(1).mean(), L1 * f.abs().sum(1).mean()
    gradients = torch.autograd.grad(sum(terms), list(p.values()))
    return terms, dict(zip(PARAMETERS, gradients, strict=True))


@pytest.mark.parametrize("impl", ["numba", "torch", "dense", "reference", "plain"])
@pytest.mark.parametrize(("batch", "d_in", "d_sae"), [(1, 3, 5), (57, 123, 252)])
@pytest.mark.parametrize("centred", [True, False])
def test_terms_and_every_gradient_are_the_papers(impl, batch, d_in, d_sae, centred):
    sae = make_baseline(d_in, d_sae, apply_b_dec_to_input=centred)
    x = torch.randn(batch, d_in)
    if impl == "plain":  # a listener needs every pre-activation
        sae.hook_sae_acts_pre.register_forward_hook(lambda *_: None)
    with options.use(impl="auto" if impl == "plain" else impl):
        output = step(sae, x)
    assert impl == "plain" or sae.engine_choice.impl == impl
    ours = torch.autograd.grad(output.loss, [getattr(sae, n) for n in PARAMETERS])
    terms, gradients = truth(sae, x)
    assert [*output.losses] == ["mse_loss", "l1_loss"]
    for given, term in zip(output.losses.values(), terms, strict=True):
        assert given.item() == pytest.approx(term.item(), rel=1e-5)
    for name, gradient in zip(PARAMETERS, ours, strict=True):
        assert (gradient - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name


def test_saelens_seam_for_auxiliary_terms_gives_the_penalty_alone():
    sae = make_baseline(8, 32)
    x = torch.randn(16, 8)
    output = step(sae, x)
    given = (output.feature_acts, output.hidden_pre, output.sae_out)
    seam = sae.calculate_aux_loss(TrainStepInput(x, {"l1": L1}, None, 0, False), *given)
    assert [*seam] == ["l1_loss"]
    torch.testing.assert_close(seam["l1_loss"], output.losses["l1_loss"])


def test_it_starts_as_the_gated_one_does_and_has_the_parameters_of_a_standard_sae():
    torch.manual_seed(3)
    ours = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=8, d_sae=32, encoder_init_norm=0.2))
    torch.manual_seed(3)
    cfg = L1BaselineTrainingSAEConfig(d_in=8, d_sae=32, encoder_init_norm=0.2)
    sae = L1BaselineTrainingSAE(cfg)
    assert {name for name, _ in sae.named_parameters()} == set(PARAMETERS)
    assert torch.equal(sae.W_enc, ours.W_enc)
    assert torch.equal(sae.W_dec, ours.W_dec)
    assert not sae.b_enc.any()


def test_decoder_rows_stay_at_norm_1_and_it_is_saved_as_saelens_own_standard(tmp_path):
    sae = make_baseline(16, 64)
    sae.W_dec.data *= 3  # folded at the first step
    x = torch.randn(40, 16)
    expected = sae(x).detach()
    adam = torch.optim.Adam(sae.parameters(), lr=1e-2)
    torch.testing.assert_close(step(sae, x).sae_out, expected)
    for _ in range(5):
        adam.zero_grad()
        step(sae, x).loss.backward()
        along = (sae.W_dec.grad * sae.W_dec).sum(1)
        assert along.abs().max() < 1e-5
        adam.step()
        assert (sae.W_dec.double().norm(dim=1) - 1).abs().max() < 1e-6
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is StandardSAE
    torch.testing.assert_close(loaded(x), sae(x))
    details = loaded.cfg.metadata.training_architecture_details
    assert loaded.cfg.metadata.training_architecture == "l1_baseline"
    assert details["l1_coefficient"] == 1.0


@pytest.mark.parametrize("centred", [True, False])
def test_folding_scaled_or_whitened_activations_keeps_its_features_in_their_units(centred):
    x = torch.randn(40, 16, dtype=torch.float64) + 2
    fields = {"dtype": "float64", "apply_b_dec_to_input": centred}
    scaled = make_baseline(16, 64, normalize_activations="expected_average_only_in", **fields)
    expected = scaled(3 * x) / 3
    scaled.fold_activation_norm_scaling_factor(3.0)
    torch.testing.assert_close(scaled(x), expected)
    white = make_baseline(16, 64, normalize_activations="covariance_whitening", **fields)
    mean, matrix = x.mean(0), torch.randn(16, 16, dtype=torch.float64)
    back = torch.linalg.inv(matrix)
    expected = white((x - mean) @ matrix) @ back + mean
    white.fold_activation_whitening(mean, matrix, back)
    torch.testing.assert_close(white(x), expected)


def test_half_types_spare_its_bias():
    sae = make_baseline(16, 64, dtype="bfloat16")
    assert sae.W_enc.dtype == torch.bfloat16
    assert sae.b_enc.dtype == sae.to(dtype=torch.bfloat16).b_enc.dtype == torch.float32
    step(sae, torch.randn(8, 16)).loss.backward()
    assert sae.b_enc.grad is not None


def test_a_deep_copy_is_independent():
    sae = make_baseline(16, 64)
    twin = copy.deepcopy(sae)
    x = torch.randn(5, 16)
    before = sae(x)
    twin.b_enc.data += 1
    assert torch.equal(sae(x), before)


def test_as_a_gated_sae_it_computes_the_same():
    sae = make_baseline(16, 64)
    gated = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=16, d_sae=64))
    gated.load_state_dict(as_gated(sae.state_dict()))
    x = torch.randn(40, 16)
    torch.testing.assert_close(gated.encode(x), sae.encode(x))
    torch.testing.assert_close(gated(x), sae(x))


STATEFUL = (
    "sae.architecture=l1_baseline",
    "sae.target_l0=8",
    "sae.resampling=paper",
    "sae.resample_steps=[8]",
    "sae.resample_window=1",
    "sae.rewarm_steps=10",
)


def test_a_recipe_names_it_and_a_stopped_run_ends_bit_identical(
    tiny, tmp_path, unpacked_once, one_thread, monkeypatch
):
    recipe = Recipe.load(tiny, STATEFUL)
    train(recipe, tmp_path / "whole", quiet=True)
    stop_after(monkeypatch, 11)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", quiet=True, checkpoint_every=1)
    monkeypatch.undo()
    train(recipe, tmp_path / "cut", resume=True, quiet=True)
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    before = L1BaselineTrainingSAE.training_forward_pass

    def counted(sae: L1BaselineTrainingSAE, step_input: TrainStepInput) -> TrainStepOutput:
        if step_input.n_training_steps == steps:
            raise KeyboardInterrupt
        return before(sae, step_input)

    monkeypatch.setattr(L1BaselineTrainingSAE, "training_forward_pass", counted)


def test_saelens_own_gated_trains_unchanged_under_a_name_of_its_own(tmp_path):
    saes = []
    for config in (SAELensGatedTrainingSAEConfig, built_in.GatedTrainingSAEConfig):
        torch.manual_seed(0)
        saes.append(built_in.GatedTrainingSAE(config(d_in=16, d_sae=64)))
    named = TrainingSAE.from_dict(saes[0].cfg.to_dict())
    assert type(named) is built_in.GatedTrainingSAE
    named.load_state_dict(saes[0].state_dict())
    x = torch.randn(40, 16)
    assert step(named, x).loss == step(saes[1], x).loss
    named.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.architecture() == "gated"
    assert loaded.cfg.metadata.training_architecture == "saelens_gated"
    torch.testing.assert_close(loaded(x), named(x))


def test_unregister_forgets_the_names_that_are_ours_alone():
    names = {"l1_baseline", "gated_untied", "saelens_gated"}
    try:
        gated_plugin.unregister()
        assert not names & SAE_TRAINING_CLASS_REGISTRY.keys()
    finally:
        gated_plugin.register()
    assert get_sae_training_class("l1_baseline")[0] is L1BaselineTrainingSAE
    assert names <= SAE_TRAINING_CLASS_REGISTRY.keys()


def test_a_penalty_below_0_is_refused():
    with pytest.raises(gated_plugin.errors.GatedError, match="l1_coefficient is -1"):
        L1BaselineTrainingSAEConfig(d_in=8, d_sae=16, l1_coefficient=-1)


def test_a_checkpoint_of_it_loads_in_saelens_trainer(tmp_path: Path):
    sae = make_baseline(16, 64)
    sae.save_model(tmp_path)
    again = TrainingSAE.load_from_disk(tmp_path)
    assert type(again) is L1BaselineTrainingSAE
    assert torch.equal(again.b_enc, sae.b_enc)
