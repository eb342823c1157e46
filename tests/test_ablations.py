"""Each ablation against its formula in float64, and what is refused.

Figure 8 and section 5 of arXiv 2404.16014. The gradients are those of autograd over the formula,
with every stop-gradient spelled out.
"""

from __future__ import annotations

import copy

import pytest
import torch
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAE, TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor

from gated_plugin import GatedSAE, GatedTrainingSAE, GatedTrainingSAEConfig
from gated_plugin.engine import options
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.untied import GatedUntiedSAE, GatedUntiedTrainingSAE, GatedUntiedTrainingSAEConfig

L1 = 0.7
TIED = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
UNTIED = ("W_enc", "W_mag", "W_dec", "b_dec", "b_gate", "b_mag")
GATED_TERMS = ["mse_loss", "l1_loss", "auxiliary_reconstruction_loss"]


def make_sae(d_in: int = 16, d_sae: int = 64, **fields: object) -> TrainingSAE:
    """A gated SAE, or an untied one, whose trained parameters are all away from their start."""
    torch.manual_seed(0)
    sae_class, config = get_sae_training_class(str(fields.pop("architecture", "gated")))
    sae = sae_class(config(d_in=d_in, d_sae=d_sae, **fields))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            if name != "r_mag" or parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return sae


def step(sae: TrainingSAE, x: Tensor) -> TrainStepOutput:
    return sae.training_forward_pass(TrainStepInput(x, {"l1": L1}, None, 0, False))


def formula(
    p: dict[str, Tensor], x: Tensor, *, live: bool = False, free: bool = False
) -> dict[str, Tensor]:
    """The terms of the loss, row by row of the paper's notation."""
    W_mag = p["W_mag"] if "W_mag" in p else p["W_enc"] * p["r_mag"].exp()
    centred = x - p["b_dec"]
    pi_gate = centred @ p["W_enc"] + p["b_gate"]
    f = (pi_gate > 0) * (centred @ W_mag + p["b_mag"]).clamp_min(0)
    gate = pi_gate.clamp_min(0)
    W_aux, b_aux = (p[n] if live else p[n].detach() for n in ("W_dec", "b_dec"))
    weight = W_aux.square().sum(1).sqrt() if free else 1
    return {
        "mse_loss": (x - f @ p["W_dec"] - p["b_dec"]).square().sum(1).mean(),
        "l1_loss": L1 * (gate * weight).sum(1).mean(),
        "auxiliary_reconstruction_loss": (x - gate @ W_aux - b_aux).square().sum(1).mean(),
    }


def require_equal_to_formula(
    sae: TrainingSAE,
    impl: str,
    x: Tensor,
    names: tuple[str, ...],
    terms: list[str],
    **ablated: bool,
) -> None:
    p = {n: getattr(sae, n).detach().double() for n in (UNTIED if "W_mag" in names else TIED)}
    for name in names:
        p[name].requires_grad_()
    expected = formula(p, x.double(), **ablated)
    total = sum(expected[name] for name in terms)
    gradients = torch.autograd.grad(total, [p[name] for name in names])
    with options.use(impl=impl):
        output = step(sae, x)
    assert sae.engine_choice.impl in (impl, "reference" if impl == "dense" else impl)
    assert [*output.losses] == terms
    for name in terms:
        assert output.losses[name].item() == pytest.approx(expected[name].item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(total.item(), rel=1e-5)
    ours = torch.autograd.grad(output.loss, [getattr(sae, name) for name in names])
    for name, given, gradient in zip(names, ours, gradients, strict=True):
        assert (given - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("impl", ["numba", "torch", "dense"])
@pytest.mark.parametrize(("batch", "d_in", "d_sae"), [(1, 3, 5), (57, 123, 252)])
class TestEveryGradientIsThatOfTheFormula:
    def test_live_auxiliary_decoder(self, impl, batch, d_in, d_sae):
        sae = make_sae(d_in, d_sae, auxiliary_decoder="live")
        require_equal_to_formula(sae, impl, torch.randn(batch, d_in), TIED, GATED_TERMS, live=True)

    def test_free_decoder_norm(self, impl, batch, d_in, d_sae):
        sae = make_sae(d_in, d_sae, decoder_norm="free")
        sae.W_dec.data *= torch.rand(d_sae, 1) + 0.5
        require_equal_to_formula(sae, impl, torch.randn(batch, d_in), TIED, GATED_TERMS, free=True)

    def test_both(self, impl, batch, d_in, d_sae):
        sae = make_sae(d_in, d_sae, decoder_norm="free", auxiliary_decoder="live")
        sae.W_dec.data *= torch.rand(d_sae, 1) + 0.5
        x = torch.randn(batch, d_in)
        require_equal_to_formula(sae, impl, x, TIED, GATED_TERMS, free=True, live=True)

    def test_untied(self, impl, batch, d_in, d_sae):
        sae = make_sae(d_in, d_sae, architecture="gated_untied")
        require_equal_to_formula(sae, impl, torch.randn(batch, d_in), UNTIED, GATED_TERMS)

    def test_magnitude_scale_one(self, impl, batch, d_in, d_sae):
        sae = make_sae(d_in, d_sae, magnitude_scale="one")
        require_equal_to_formula(sae, impl, torch.randn(batch, d_in), TIED[:-1], GATED_TERMS)

    def test_rescale_and_shift(self, impl, batch, d_in, d_sae):
        sae = make_sae(d_in, d_sae, trained="magnitude")
        x = torch.randn(batch, d_in)
        require_equal_to_formula(sae, impl, x, ("b_mag", "r_mag"), ["mse_loss"])


def trained_for_a_while(sae: TrainingSAE, steps: int = 6) -> dict[str, Tensor]:
    """What a trainer makes of it; returns the parameters from before."""
    before = copy.deepcopy(sae.state_dict())
    adam = torch.optim.Adam(sae.parameters(), lr=1e-2, betas=(0.0, 0.999))
    for _ in range(steps):
        adam.zero_grad()
        step(sae, torch.randn(64, sae.cfg.d_in)).loss.backward()
        adam.step()
    return before


@pytest.mark.parametrize(
    ("fields", "moved"),
    [
        ({}, set(TIED)),
        ({"magnitude_scale": "one"}, set(TIED) - {"r_mag"}),
        ({"trained": "magnitude"}, {"b_mag", "r_mag"}),
        ({"trained": "magnitude", "magnitude_scale": "one"}, {"b_mag"}),
        ({"architecture": "gated_untied"}, set(UNTIED)),
    ],
)
def test_what_is_held_still_never_moves_by_a_bit(fields, moved):
    sae = make_sae(**fields)
    before = trained_for_a_while(sae)
    after = sae.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == moved


def test_magnitude_scale_one_starts_at_one():
    assert not make_sae(magnitude_scale="one").r_mag.any()


@pytest.mark.parametrize(
    "fields", [{"auxiliary_decoder": "live"}, {"architecture": "gated_untied"}]
)
def test_decoder_rows_of_the_other_ablations_stay_at_norm_1(fields):
    sae = make_sae(**fields)
    trained_for_a_while(sae)
    assert (sae.W_dec.double().norm(dim=1) - 1).abs().max() < 1e-6


def test_a_free_decoder_leaves_norm_1_and_is_saved_with_it(tmp_path):
    sae = make_sae(decoder_norm="free")
    trained_for_a_while(sae)
    norms = sae.W_dec.norm(dim=1)
    assert (norms - 1).abs().max() > 1e-3
    x = torch.randn(40, 16)
    expected = sae(x)
    sae.save_inference_model(tmp_path)
    assert torch.equal(sae.W_dec.norm(dim=1), norms)
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is GatedSAE
    assert (loaded.W_dec.norm(dim=1) - 1).abs().max() < 1e-6
    torch.testing.assert_close(loaded(x), expected)
    sae.save_model(tmp_path / "checkpoint")  # training goes on from the norms that it has
    assert torch.equal(TrainingSAE.load_from_disk(tmp_path / "checkpoint").W_dec, sae.W_dec)


@pytest.mark.parametrize("fields", [{"magnitude_scale": "one"}, {"trained": "magnitude"}])
def test_what_is_held_still_is_so_in_copies_and_checkpoints(fields, tmp_path):
    sae = make_sae(**fields)
    sae.save_model(tmp_path)
    frozen = {name for name, p in sae.named_parameters() if not p.requires_grad}
    assert frozen
    for twin in (copy.deepcopy(sae), TrainingSAE.load_from_disk(tmp_path)):
        assert {name for name, p in twin.named_parameters() if not p.requires_grad} == frozen


class TestUntied:
    def test_it_starts_as_the_tied_one(self):
        torch.manual_seed(1)
        sae = GatedUntiedTrainingSAE(GatedUntiedTrainingSAEConfig(d_in=16, d_sae=64))
        torch.manual_seed(1)
        tied = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=16, d_sae=64))
        x = torch.randn(40, 16)
        assert torch.equal(sae.W_enc, tied.W_enc)
        torch.testing.assert_close(sae(x), tied(x))

    def test_it_loads_from_disk_and_computes_the_same(self, tmp_path):
        sae = make_sae(architecture="gated_untied")
        sae.save_inference_model(tmp_path)
        loaded = SAE.load_from_disk(tmp_path)
        assert type(loaded) is GatedUntiedSAE
        x = torch.randn(40, 16)
        assert torch.equal(loaded(x), sae(x))
        assert torch.equal(loaded.encode_sparse(x).to_dense(), sae.encode(x))
        assert torch.equal(copy.deepcopy(loaded)(x), sae(x))

    @pytest.mark.parametrize("centred", [True, False])
    def test_folding_keeps_what_it_computes(self, centred):
        fields = {"dtype": "float64", "apply_b_dec_to_input": centred}
        x = torch.randn(40, 16, dtype=torch.float64) + 2
        sae = make_sae(architecture="gated_untied", **fields)
        expected = sae(x)
        sae.W_dec.data *= 3
        sae.W_enc.data /= 3
        sae.W_mag.data /= 3
        sae.b_gate.data /= 3
        sae.b_mag.data /= 3
        sae.fold_W_dec_norm()
        torch.testing.assert_close(sae(x), expected)
        expected = sae(3 * x) / 3
        sae.fold_activation_norm_scaling_factor(3.0)
        torch.testing.assert_close(sae(x), expected)
        mean, matrix = x.mean(0), torch.randn(16, 16, dtype=torch.float64)
        back = torch.linalg.inv(matrix)
        expected = sae((x - mean) @ matrix) @ back + mean
        sae.fold_activation_whitening(mean, matrix, back)
        torch.testing.assert_close(sae(x), expected)

    def test_half_types_spare_its_biases(self):
        sae = make_sae(architecture="gated_untied", dtype="bfloat16")
        assert {sae.b_gate.dtype, sae.b_mag.dtype} == {torch.float32}
        assert sae.W_mag.dtype == torch.bfloat16
        step(sae, torch.randn(8, 16)).loss.backward()


def test_saelens_command_line_sets_them():
    arguments = "--architecture gated --d_in 8 --d_sae 32 --decoder_norm free --trained all"
    cfg = _parse_cfg_args(arguments.split()).sae
    assert (cfg.decoder_norm, cfg.trained, cfg.auxiliary_decoder) == ("free", "all", "frozen")


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"auxiliary_decoder": "thawed"}, "'thawed'; give 'frozen' or 'live'"),
            ({"magnitude_scale": "zero"}, "'zero'; give 'learned' or 'one'"),
            ({"decoder_norm": "any"}, "'any'; give 'unit' or 'free'"),
            ({"trained": "gate"}, "'gate'; give 'all' or 'magnitude'"),
            ({"trained": "magnitude", "target_l0": 4}, "leave target_l0 out"),
            ({"trained": "magnitude", "decoder_norm": "free"}, "leave decoder_norm out"),
            (
                {"trained": "magnitude", "resampling": "paper", "resample_steps": [20_000]},
                "leave resampling out",
            ),
        ],
    )
    def test_choices_that_mean_nothing(self, fields, said):
        with pytest.raises(GatedError, match=said):
            GatedTrainingSAEConfig(d_in=8, d_sae=16, **fields)

    def test_in_a_recipe_the_file_and_the_key_are_named(self, tiny):
        with pytest.raises(GatedError, match=r"tiny\.yaml: sae\.decoder_norm is 'any'"):
            Recipe.load(tiny, ["sae.decoder_norm=any"])

    def test_the_baseline_has_none_of_them(self, tiny):
        with pytest.raises(GatedError, match=r"unknown key 'sae\.decoder_norm'"):
            Recipe.load(tiny, ["sae.architecture=l1_baseline", "sae.decoder_norm=free"])


def test_the_setting_is_in_what_is_published():
    described = make_sae(auxiliary_decoder="live").cfg.get_inference_sae_cfg_dict()
    assert described["architecture"] == "gated"
    details = described["metadata"]["training_architecture_details"]
    assert details["auxiliary_decoder"] == "live"
    assert details["decoder_norm"] == "unit"
    assert "auxiliary_decoder" not in described
