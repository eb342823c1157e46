"""Each format against the paper's formula, in float64 and in the classes of its readers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_sources import (
    D_IN,
    D_SAE,
    Weights,
    contents,
    random_weights,
    truth,
    write_activations,
    write_saelens,
)
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from safetensors.torch import load_file
from torch import Tensor

import gated_plugin
from gated_plugin.convert import FORMATS, convert
from gated_plugin.convert.conversion import TARGETS
from gated_plugin.errors import GatedError

ROUNDING = 3e-7
"""Of a float32 parameter, relative, and of what some dozen of them sum to."""


@pytest.fixture
def x() -> Tensor:
    return torch.randn(200, D_IN, generator=torch.Generator().manual_seed(1)) * 2


def apart(found: Tensor, wanted: Tensor) -> float:
    return ((found.detach() - wanted).abs().max() / wanted.abs().max()).item()


def converted(
    tmp_path: Path, weights: Weights, target: str, x: Tensor | None = None, **cfg: object
) -> Path:
    given = None if x is None else write_activations(tmp_path / "x.safetensors", x)
    source = write_saelens(tmp_path / "source", weights, **cfg)
    return convert(source, target, tmp_path / "out", activations=given).folder


def test_every_format_has_a_writer() -> None:
    assert tuple(TARGETS) == FORMATS


def test_saelens_folds_free_decoder_norms(tmp_path: Path, x: Tensor) -> None:
    weights = random_weights()
    out = converted(tmp_path, weights, "saelens", x)
    sae = SAE.load_from_disk(out, dtype="float64")
    features, x_hat = truth(weights, x)
    assert (sae.W_dec.norm(dim=1) - 1).abs().max() < 1e-7
    assert apart(sae.encode(x.double()), features) < ROUNDING
    assert apart(sae(x.double()), x_hat) < ROUNDING


def test_a_decoder_of_unit_norm_is_copied_bit_for_bit(tmp_path: Path) -> None:
    weights = random_weights()
    weights["W_dec"] /= weights["W_dec"].norm(dim=1, keepdim=True)
    out = converted(tmp_path, weights, "saelens")
    found = load_file(out / "sae_weights.safetensors")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor)


def test_the_jumprelu_twin_is_the_same_function(tmp_path: Path, x: Tensor) -> None:
    weights = random_weights()
    out = converted(tmp_path, weights, "jumprelu", x)
    sae = SAE.load_from_disk(out, dtype="float64")
    features, x_hat = truth(weights, x)
    assert type(sae) is JumpReLUSAE
    assert torch.equal(sae.encode(x.double()) > 0, features > 0)
    assert apart(sae.encode(x.double()), features) < ROUNDING
    assert apart(sae(x.double()), x_hat) < ROUNDING


def test_the_parameters_of_the_twin_are_float64_rounded_once(tmp_path: Path) -> None:
    weights = random_weights()
    out = converted(tmp_path, weights, "jumprelu")
    found = load_file(out / "sae_weights.safetensors")
    w = {name: tensor.double() for name, tensor in weights.items()}
    norms = w["W_dec"].norm(dim=1)
    slope = w["r_mag"].exp() * norms
    b_enc = (w["b_mag"] * norms).float()
    assert torch.equal(found["W_enc"], (w["W_enc"] * slope).float())
    assert torch.equal(found["b_enc"], b_enc)
    theta = (b_enc.double() - slope * w["b_gate"]).clamp_min(0).float()
    assert torch.equal(found["threshold"], theta)
    assert torch.allclose(theta.double(), (norms * w["b_mag"] - slope * w["b_gate"]).clamp_min(0))


def test_where_theta_is_negative_the_relu_cuts(tmp_path: Path, x: Tensor) -> None:
    weights = random_weights(b_gate=torch.full((D_SAE,), 3.0), b_mag=torch.full((D_SAE,), -2.0))
    out = converted(tmp_path, weights, "jumprelu", x)
    assert not load_file(out / "sae_weights.safetensors")["threshold"].any()
    features = SAE.load_from_disk(out, dtype="float64").encode(x.double())
    assert 0 < (features > 0).double().mean() < 1
    assert apart(features, truth(weights, x)[0]) < ROUNDING


def test_bf16_keeps_the_gate_vectors_in_float32(tmp_path: Path, x: Tensor) -> None:
    weights = random_weights()
    out = converted(tmp_path, weights, "bf16", x)
    found = load_file(out / "sae_weights.safetensors")
    for name, tensor in found.items():
        is_gate = name in ("b_gate", "b_mag", "r_mag")
        assert tensor.dtype == (torch.float32 if is_gate else torch.bfloat16)
    norms = weights["W_dec"].double().norm(dim=1)
    assert torch.equal(found["b_gate"], (weights["b_gate"] * norms).float())
    assert torch.equal(found["r_mag"], weights["r_mag"])
    loaded = gated_plugin.load(out)
    assert (loaded.W_enc.dtype, loaded.b_mag.dtype) == (torch.bfloat16, torch.float32)
    features, _ = truth(weights, x)
    sae = SAE.load_from_disk(out, dtype="float64")
    assert ((sae.encode(x.double()) > 0) == (features > 0)).double().mean() > 0.99


def test_plain_saelens_applies_every_folder_of_its_layout(tmp_path: Path, x: Tensor) -> None:
    """In one process that has never heard of the plugin."""
    source = write_saelens(tmp_path / "source", random_weights())
    given = write_activations(tmp_path / "x.safetensors", x)
    formats = ("saelens", "jumprelu", "bf16")
    for target in formats:
        convert(source, target, tmp_path / target, activations=given)
    script = (
        "import sys; from sae_lens import SAE; from safetensors.torch import load_file, save_file\n"
        "for folder in sys.argv[2:]:\n"
        "    sae = SAE.load_from_disk(folder, dtype='float64')\n"
        "    x = load_file(sys.argv[1])['activations'].double()\n"
        "    save_file({'features': sae.encode(x).detach()}, folder + '/plain')\n"
        "assert 'gated_plugin' not in sys.modules\n"
    )
    folders = [str(tmp_path / target) for target in formats]
    subprocess.run(
        [sys.executable, "-c", script, str(given), *folders],
        env={**os.environ, "GATED_PLUGIN_AUTOLOAD": "0"},
        check=True,
        cwd=tmp_path,
    )
    wanted, _ = truth(random_weights(), x)
    for target in formats:
        features = load_file(tmp_path / target / "plain")["features"]
        assert apart(features, wanted) < ROUNDING or target == "bf16"
        assert ((features > 0) == (wanted > 0)).double().mean() > 0.99


def test_an_input_without_b_dec_stays_without(tmp_path: Path, x: Tensor) -> None:
    weights = random_weights(b_dec=torch.full((D_IN,), 50.3))
    source = write_saelens(tmp_path / "source", weights, apply_b_dec_to_input=False)
    twin = convert(source, "jumprelu", tmp_path / "out").folder
    ours = SAE.load_from_disk(source, dtype="float64")
    theirs = SAE.load_from_disk(twin, dtype="float64")
    assert apart(theirs(x.double()), ours(x.double()).detach()) < ROUNDING
    with pytest.raises(GatedError, match="does not subtract b_dec"):
        convert(source, "dictionary_learning", tmp_path / "library")
    assert not (tmp_path / "library").exists()


def test_attention_heads_are_read_as_before(tmp_path: Path) -> None:
    cfg = {"reshape_activations": "hook_z", "metadata": {"hook_name": "blocks.0.attn.hook_z"}}
    out = converted(tmp_path, random_weights(), "jumprelu", None, **cfg)
    sae = SAE.load_from_disk(out)
    assert sae(torch.randn(5, 3, 4)).shape == (5, 3, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_computed_with_as_they_are_stored(
    dtype: torch.dtype, tmp_path: Path, x: Tensor
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in random_weights().items()}
    name = str(dtype).removeprefix("torch.")
    out = converted(tmp_path, weights, "saelens", x, dtype=name)
    sae = SAE.load_from_disk(out, dtype="float64")
    assert json.loads((out / "cfg.json").read_text())["dtype"] == "float32"
    assert apart(sae(x.double()), truth(weights, x)[1]) < ROUNDING


def test_a_cfg_from_before_saelens_6(tmp_path: Path, x: Tensor) -> None:
    weights = {**random_weights(), "scaling_factor": torch.ones(D_SAE)}
    source = write_saelens(tmp_path / "source", weights)
    old = {
        "architecture": "gated",
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "torch.float32",
        "device": "cuda",
        "hook_point": "blocks.3.hook_resid_pre",
        "model_name": "gpt2-small",
        "hook_point_head_index": None,
        "activation_fn_str": "relu",
        "normalize_activations": False,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": "3.1.0",
    }
    (source / "cfg.json").write_text(json.dumps(old))
    out = convert(source, "saelens", tmp_path / "out").folder
    sae = SAE.load_from_disk(out, dtype="float64")
    assert sae.cfg.metadata.hook_name == "blocks.3.hook_resid_pre"
    assert sae.cfg.metadata.model_name == "gpt2-small"
    assert apart(sae(x.double()), truth(random_weights(), x)[1]) < ROUNDING


def test_no_path_of_this_machine_gets_into_a_result(tmp_path: Path) -> None:
    metadata = {"sae_lens_version": "6.54.12", "model_name": str(tmp_path / "model")}
    for target in FORMATS:
        source = write_saelens(tmp_path / target / "source", random_weights(), metadata=metadata)
        out = convert(source, target, tmp_path / target / "out").folder
        description = "config.json" if target == "dictionary_learning" else "cfg.json"
        assert '"model"' in (out / description).read_text()
        assert str(tmp_path).encode() not in b"".join(contents(out).values())


def zero_decoder_row(weights: Weights) -> None:
    weights["W_dec"][3] = 0


def nan_in_weights(weights: Weights) -> None:
    weights["W_enc"][2, 3] = torch.nan


def infinite_bias(weights: Weights) -> None:
    weights["b_mag"][3] = torch.inf


def wrong_shape(weights: Weights) -> None:
    weights["b_gate"] = torch.zeros(D_SAE + 1)


def missing(weights: Weights) -> None:
    del weights["r_mag"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (zero_decoder_row, "1 of 40 decoder rows in .* are zero"),
        (nan_in_weights, "W_enc holds NaN or infinity"),
        (infinite_bias, "b_mag holds NaN or infinity"),
        (wrong_shape, "b_gate has the shape"),
        (missing, "lacks 'r_mag'"),
    ],
)
@pytest.mark.parametrize("target", FORMATS)
def test_a_damaged_source_is_one_sentence_and_leaves_nothing(
    target: str, damage: object, says: str, tmp_path: Path
) -> None:
    weights = random_weights()
    damage(weights)
    source = write_saelens(tmp_path / "source", weights)
    with pytest.raises(GatedError, match=says) as refusal:
        convert(source, target, tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "statistics are in none"),
        ({"normalize_activations": "layer_norm"}, "scales its activations by 'layer_norm'"),
        ({"architecture": "jumprelu"}, "'jumprelu', not a gated one"),
    ],
)
def test_what_no_format_can_say_is_refused(cfg: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(GatedError, match=says):
        converted(tmp_path, random_weights(), "saelens", None, **cfg)


def test_an_r_mag_too_large_for_float32_is_refused_but_kept_by_the_gated_formats(
    tmp_path: Path,
) -> None:
    r_mag = torch.zeros(D_SAE)
    r_mag[5] = 95.0
    source = write_saelens(tmp_path / "source", random_weights(r_mag=r_mag))
    with pytest.raises(GatedError, match="of the result is beyond what float32 can hold"):
        convert(source, "jumprelu", tmp_path / "twin")
    assert not (tmp_path / "twin").exists()
    convert(source, "dictionary_learning", tmp_path / "library")


def test_an_r_mag_so_low_that_no_threshold_holds_the_gate_is_refused(
    tmp_path: Path, x: Tensor
) -> None:
    r_mag, b_mag = torch.zeros(D_SAE), torch.ones(D_SAE)
    r_mag[7] = -30.0
    source = write_saelens(tmp_path / "source", random_weights(r_mag=r_mag, b_mag=b_mag))
    given = write_activations(tmp_path / "x.safetensors", x)
    with pytest.raises(GatedError, match=r"feature 7, whose r_mag is -30\.0; .*saelens"):
        convert(source, "jumprelu", tmp_path / "twin", activations=given)
    assert not (tmp_path / "twin").exists()
    convert(source, "saelens", tmp_path / "gated", activations=given)


def test_features_that_never_fire_change_nothing(tmp_path: Path, x: Tensor) -> None:
    b_gate = torch.zeros(D_SAE)
    b_gate[::2] = -1e6
    out = converted(tmp_path, random_weights(b_gate=b_gate), "jumprelu", x)
    audit = json.loads((out / "conversion.json").read_text())["audit"]
    assert audit["survival"]["features_that_fire"] == D_SAE / 2
    assert audit["survival"]["minimum"] == 1
