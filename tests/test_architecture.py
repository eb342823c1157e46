"""The gated encoder beside SAELens' own, and SAELens' services on our classes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes import gated_sae as saelens
from sae_lens.saes.sae import SAEMetadata

from gated_plugin import GatedSAE, GatedSAEConfig, GatedTrainingSAE, GatedTrainingSAEConfig
from gated_plugin.errors import GatedError

PARAMETERS = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")


def make_pair(
    d_in: int = 24, d_sae: int = 96, **fields: object
) -> tuple[GatedSAE, saelens.GatedSAE]:
    """Our SAE and SAELens' own, with the same random parameters."""
    torch.manual_seed(1)
    ours = GatedSAE(GatedSAEConfig(d_in=d_in, d_sae=d_sae, **fields))
    with torch.no_grad():
        for name in PARAMETERS:
            getattr(ours, name).add_(0.3 * torch.randn_like(getattr(ours, name)))
    theirs = saelens.GatedSAE(saelens.GatedSAEConfig(d_in=d_in, d_sae=d_sae, **fields))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (24,)])
def test_features_and_reconstructions_are_those_of_saelens(shape):
    ours, theirs = make_pair()
    x = torch.randn(shape)
    torch.testing.assert_close(ours.encode(x), theirs.encode(x))
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
def test_activation_normalization_is_that_of_saelens(normalization):
    ours, theirs = make_pair(normalize_activations=normalization)
    x = 3 * torch.randn(9, 24) + 1
    torch.testing.assert_close(ours(x), theirs(x))


def test_heads_are_concatenated_and_parted_again_for_hook_z():
    fields = {
        "reshape_activations": "hook_z",
        "metadata": SAEMetadata(hook_name="blocks.0.attn.hook_z"),
    }
    ours, theirs = make_pair(**fields)
    x = torch.randn(3, 5, 4, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours(x).shape == x.shape
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(x), ours(x))
    assert again.hook_z_reshaping_mode


def test_every_hook_sees_what_it_sees_in_saelens():
    ours, theirs = make_pair()
    x = torch.randn(9, 24)
    (_, ours_cache), (_, theirs_cache) = ours.run_with_cache(x), theirs.run_with_cache(x)
    assert ours_cache.keys() == theirs_cache.keys()
    for name in theirs_cache:
        torch.testing.assert_close(ours_cache[name], theirs_cache[name], msg=name)


def test_a_hook_can_change_features_and_their_pre_activations():
    ours, theirs = make_pair()
    x = torch.randn(9, 24)
    for hook in ("hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_input"):
        pairs = [(hook, lambda value, hook: 2 * value)]
        torch.testing.assert_close(
            ours.run_with_hooks(x, fwd_hooks=pairs), theirs.run_with_hooks(x, fwd_hooks=pairs)
        )


def test_error_term_gives_the_input_back():
    ours, _ = make_pair()
    x = torch.randn(9, 24)
    ours.use_error_term = True
    torch.testing.assert_close(ours(x), x)


def test_nan_reaches_the_output_and_stays_in_its_row():
    ours, _ = make_pair()
    x = torch.randn(4, 24)
    x[1, 3] = torch.nan
    features = ours.encode(x)
    assert features[1].isnan().all()
    assert features[[0, 2, 3]].isfinite().all()


def test_a_wrong_width_is_named_with_the_hook_point():
    ours, _ = make_pair(metadata=SAEMetadata(hook_name="blocks.3.hook_mlp_out"))
    with pytest.raises(GatedError, match=r"23 dimensions.*d_in = 24.*blocks\.3\.hook_mlp_out"):
        ours.encode(torch.randn(2, 23))


@pytest.mark.parametrize("fold", ["fold_W_dec_norm", "fold_activation_norm_scaling_factor"])
def test_folding_keeps_the_function(fold):
    ours, _ = make_pair()
    x = torch.randn(9, 24)
    before = ours(x if fold == "fold_W_dec_norm" else 2.5 * x)
    if fold == "fold_W_dec_norm":
        ours.fold_W_dec_norm()
        assert (ours.W_dec.norm(dim=1) - 1).abs().max() < 1e-6
        torch.testing.assert_close(ours(x), before)
    else:
        ours.fold_activation_norm_scaling_factor(2.5)
        torch.testing.assert_close(2.5 * ours(x), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))])
@pytest.mark.parametrize("normalization", ["none", "layer_norm"])
def test_copies_compute_the_same_and_share_nothing(copied, normalization):
    ours, _ = make_pair(normalize_activations=normalization)
    other = copied(ours)
    x = torch.randn(3, 24)
    expected = ours(x)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        other.W_enc.zero_()
    assert torch.equal(ours(x), expected)


class TestHalfPrecision:
    @pytest.mark.parametrize("kind", ["built", "moved"])
    def test_gate_vectors_stay_in_float32(self, kind):
        dtype = "bfloat16" if kind == "built" else "float32"
        sae = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=8, d_sae=16, dtype=dtype))
        values = torch.rand(16)
        sae.b_gate.data = values.clone()
        sae.to(torch.bfloat16)
        assert sae.W_enc.dtype == sae.W_dec.dtype == torch.bfloat16
        assert {sae.b_gate.dtype, sae.b_mag.dtype, sae.r_mag.dtype} == {torch.float32}
        assert torch.equal(sae.b_gate.data, values)

    def test_features_and_reconstructions_have_the_saes_type(self):
        ours, _ = make_pair()
        ours.to(torch.bfloat16)
        x = torch.randn(3, 24)
        assert ours.encode(x).dtype == ours(x).dtype == torch.bfloat16

    def test_a_move_to_float64_takes_everything_along(self):
        ours, theirs = make_pair()
        ours.to(torch.float64)
        theirs.to(torch.float64)
        assert ours.b_gate.dtype == torch.float64
        x = torch.randn(9, 24, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x))


def test_what_we_save_saelens_loads_and_the_other_way_round(tmp_path):
    ours, theirs = make_pair()
    x = torch.randn(9, 24)
    ours.save_model(tmp_path / "ours")
    theirs.save_model(tmp_path / "theirs")
    loaded = SAE.load_from_disk(tmp_path / "theirs")
    assert type(loaded) is GatedSAE
    torch.testing.assert_close(loaded(x), theirs(x))
    assert len({(tmp_path / who / "cfg.json").read_text() for who in ("ours", "theirs")}) == 1


def test_training_and_inference_compute_the_same(tmp_path):
    training = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=24, d_sae=96))
    training.save_inference_model(tmp_path)
    inference = SAE.load_from_disk(tmp_path)
    x = torch.randn(5, 24)
    assert torch.equal(training.encode(x), inference.encode(x))
    assert torch.equal(training(x), inference(x))
    assert inference.cfg.metadata.training_architecture == "gated"
