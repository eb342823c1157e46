"""What an audit finds, and that a broken conversion does not pass it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_sources import (
    D_IN,
    D_SAE,
    Weights,
    random_weights,
    truth,
    write_activations,
    write_library,
    write_saelens,
)
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from gated_plugin.convert import FORMATS, convert
from gated_plugin.convert.conversion import TARGETS
from gated_plugin.convert.rounding import ROUNDOFF
from gated_plugin.errors import GatedError

X = torch.randn(256, D_IN, generator=torch.Generator().manual_seed(1)) * 2
WEIGHTS_FILES = {"dictionary_learning": "ae.safetensors"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_saelens(tmp_path / "source", random_weights())


@pytest.fixture
def x(tmp_path: Path) -> Path:
    return write_activations(tmp_path / "x.safetensors", X)


def audited(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "conversion.json").read_text())
    return record["audit"]


def test_differences_are_those_of_the_stored_parameters(source: Path, x: Path) -> None:
    out = convert(source, "bf16", source.parent / "out", activations=x).folder
    found = audited(out)
    wanted, x_hat = truth(random_weights(), X)
    sae = SAE.load_from_disk(out, dtype="float64")
    with torch.no_grad():
        features, result_x_hat = sae.encode(X.double()), sae(X.double())
    fires = wanted > 0
    flips = fires != (features > 0)
    difference = (features - wanted).abs()
    assert flips.any()
    assert found["features"] == {
        "max": pytest.approx(difference.max().item()),
        "max_without_flips": pytest.approx(difference[~flips].max().item()),
        "relative": pytest.approx((difference.max() / wanted.max()).item()),
    }
    assert found["reconstructions"] == {
        "max": pytest.approx((result_x_hat - x_hat).abs().max().item()),
        "relative": pytest.approx(((result_x_hat - x_hat).norm() / x_hat.norm()).item()),
    }
    assert found["firings"] == fires.sum()
    assert found["flips"]["count"] == flips.sum()
    assert found["flips"]["beyond_rounding"] == 0
    shares = ((fires & ~flips).sum(0) / fires.sum(0))[fires.any(0)]
    assert found["survival"] == {
        "features_that_fire": len(shares),
        "minimum": pytest.approx(shares.min().item()),
        "mean": pytest.approx(shares.mean().item()),
        "below_0.99": (shares < 0.99).sum(),
    }
    counts = load_file(out / "survival.safetensors")
    assert torch.equal(counts["fired"], fires.sum(0).int())
    assert torch.equal(counts["survived"], (fires & ~flips).sum(0).int())
    norms = sae.W_dec.norm(dim=1)
    assert found["decoder_norms"]["result"] == pytest.approx(
        [norms.min().item(), norms.max().item()]
    )


def test_a_flip_has_the_margin_of_its_decision(source: Path, x: Path) -> None:
    found = audited(convert(source, "bf16", source.parent / "out", activations=x).folder)
    w = {name: tensor.double() for name, tensor in random_weights().items()}
    pi = (X.double() - w["b_dec"]) @ w["W_enc"]
    slope = w["r_mag"].exp()
    margins = torch.minimum(slope * (pi + w["b_gate"]), slope * pi + w["b_mag"]).abs()
    margins *= w["W_dec"].norm(dim=1)
    sae = SAE.load_from_disk(source.parent / "out", dtype="float64")
    flips = (truth(random_weights(), X)[0] > 0) != (sae.encode(X.double()) > 0)
    assert found["flips"]["widest_margin"] == pytest.approx(margins[flips].max().item())
    assert 0 < found["flips"]["widest_margin_over_band"] < 1


@pytest.mark.parametrize("target", FORMATS)
def test_it_does_not_depend_on_the_size_of_the_parts(
    target: str, source: Path, x: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = convert(source, target, source.parent / "whole", activations=x)
    monkeypatch.setattr("gated_plugin.convert.matrices.NUMBERS", 7 * D_IN)
    parts = convert(source, target, source.parent / "parts", activations=x)
    assert whole.record["files"].keys() == parts.record["files"].keys()
    for name in set(whole.record["files"]) - {"conversion.json"}:
        assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()
    assert parts.record["audit"]["firings"] == whole.record["audit"]["firings"]
    assert parts.record["audit"]["flips"]["count"] == whole.record["audit"]["flips"]["count"]
    assert parts.record["audit"]["reconstructions"]["max"] == pytest.approx(
        whole.record["audit"]["reconstructions"]["max"], rel=1e-3
    )


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_bound_holds_at_every_scale_and_is_not_far_off(
    target: str, scale: float, tmp_path: Path
) -> None:
    """Large biases, small ones, rows of many sizes, and activations far from b_dec."""
    weights = random_weights(d_in=32, d_sae=256)
    for name in ("b_dec", "b_gate", "b_mag"):
        weights[name] *= scale
    source = write_saelens(tmp_path / "source", weights)
    x = X.repeat(1, 3)[:, :32] * torch.logspace(-2, 3, len(X))[:, None]
    given = write_activations(tmp_path / "x.safetensors", x)
    found = audited(convert(source, target, tmp_path / "out", activations=given).folder)
    assert found["firings"] > 0
    assert 0.02 < found["largest_over_rounding_bound"] < 1


@pytest.mark.parametrize(("opening", "b_mag"), [(2.0**-24, 0.3), (2.0**-22, 5.0)])
def test_flips_of_gates_at_their_edge_are_counted_and_called_rounding(
    opening: float, b_mag: float, tmp_path: Path
) -> None:
    """x opens the gates by so little that the rounding of W_enc exp(r_mag), or of θ, may shut one."""
    d_sae = 200
    weights = {
        "W_enc": torch.ones(1, d_sae),
        "W_dec": torch.ones(d_sae, 1),
        "b_dec": torch.zeros(1),
        "b_gate": torch.full((d_sae,), opening - 1),
        "b_mag": torch.full((d_sae,), b_mag),
        "r_mag": torch.linspace(-0.5, 0.5, d_sae),
    }
    source = write_saelens(tmp_path / "source", weights)
    given = write_activations(tmp_path / "x.safetensors", torch.ones(1, 1))
    found = audited(convert(source, "jumprelu", tmp_path / "out", activations=given).folder)
    assert found["firings"] == d_sae
    assert 2 < found["flips"]["count"] < 180
    assert found["flips"]["beyond_rounding"] == 0
    assert found["survival"]["minimum"] == 0
    assert found["survival"]["below_0.99"] == found["flips"]["count"]


def test_what_rounding_does_to_a_large_b_dec_is_allowed_for(tmp_path: Path) -> None:
    """Activations near b_dec: what is left of them is no larger than the rounding of b_dec."""
    source = write_saelens(tmp_path / "source", random_weights(b_dec=torch.full((D_IN,), 301.7)))
    found = convert(source, "bf16", tmp_path / "out").record["audit"]
    assert found["flips"]["count"] > 100
    assert found["flips"]["beyond_rounding"] == 0
    assert 0.1 < found["largest_over_rounding_bound"] < 1


def test_without_recorded_activations_it_says_that_it_drew_them(tmp_path: Path) -> None:
    weights = random_weights(b_dec=torch.full((D_IN,), 300.0))
    source = write_saelens(tmp_path / "source", weights)
    conversion = convert(source, "jumprelu", tmp_path / "out")
    found = conversion.record["audit"]
    assert found["activations"]["rows"] == 256
    assert found["activations"]["of"].startswith("random rows around b_dec with unit scale")
    assert found["firings"] > 1000
    assert found["loss_recovered"].keys() == {"not_measured"}
    assert conversion.figures["flips beyond rounding"] == 0


@pytest.mark.parametrize("write", [write_saelens, write_library])
def test_activations_beside_the_source_are_taken(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    from convert_sources import library_state

    weights = random_weights()
    source = write(
        tmp_path / "source", library_state(weights) if write is write_library else weights
    )
    write_activations(source / "activations.safetensors", X[:64])
    found = audited(convert(source, "jumprelu", tmp_path / "out").folder)
    assert found["activations"] == {"rows": 64, "of": "activations published with it"}
    assert found["firings"] == (truth(weights, X[:64])[0] > 0).sum()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"activations": X[:, :5].contiguous()}, "does not fit the SAE"),
        ({"other": X}, "x.safetensors"),
        ({"activations": torch.zeros(0, D_IN)}, "activations is empty"),
        ({"activations": torch.full((3, D_IN), torch.nan)}, "NaN"),
    ],
)
def test_activations_that_do_not_fit_are_one_sentence(
    tensors: Weights, says: str, source: Path, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(GatedError, match=says):
        convert(source, "saelens", tmp_path / "out", activations=tmp_path / "x.safetensors")
    assert not (tmp_path / "out").exists()


def scaled(name: str, by: float) -> Callable[[Weights], None]:
    def change(found: Weights) -> None:
        found[name] = found[name] * by

    return change


def shifted(name: str) -> Callable[[Weights], None]:
    def change(found: Weights) -> None:
        found[name] = found[name].roll(1, 0)

    return change


def one_number(name: str) -> Callable[[Weights], None]:
    def change(found: Weights) -> None:
        found[name].view(-1)[17] *= 1.01

    return change


@pytest.mark.parametrize(
    ("target", "damage"),
    [
        ("saelens", scaled("b_gate", 1.001)),
        ("saelens", scaled("W_dec", 1.00001)),
        ("saelens", shifted("W_dec")),
        ("saelens", one_number("W_enc")),
        ("saelens", scaled("b_dec", 1.00001)),
        ("jumprelu", scaled("threshold", 1.01)),
        ("jumprelu", scaled("threshold", 0.0)),
        ("jumprelu", shifted("b_enc")),
        ("jumprelu", scaled("W_enc", 1.000001)),
        ("dictionary_learning", shifted("r_mag")),
        ("dictionary_learning", scaled("mag_bias", 1.00001)),
        ("dictionary_learning", one_number("decoder.weight")),
        ("bf16", shifted("b_mag")),
        ("bf16", scaled("W_enc", 1.02)),
    ],
)
def test_a_broken_conversion_is_noticed_and_nothing_is_left(
    target: str,
    damage: Callable[[Weights], None],
    source: Path,
    x: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = TARGETS[target]

    def write(source: Any, norms: Tensor, folder: Path) -> None:
        good.write(source, norms, folder)
        path = folder / WEIGHTS_FILES.get(target, "sae_weights.safetensors")
        found = load_file(path)
        damage(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, path)

    monkeypatch.setitem(TARGETS, target, replace(good, write=write))
    out = source.parent / "out"
    with pytest.raises(GatedError, match=r"more than rounding|rounding explains") as refusal:
        convert(source, target, out, activations=x)
    assert "\n" not in str(refusal.value)
    assert sorted(path.name for path in source.parent.iterdir()) == ["source", "x.safetensors"]


def test_the_roundoffs_are_those_of_the_types() -> None:
    assert ROUNDOFF["F32"] == torch.finfo(torch.float32).eps / 2
    assert ROUNDOFF["BF16"] == torch.finfo(torch.bfloat16).eps / 2


def test_every_feature_of_a_wide_dictionary_is_compared(tmp_path: Path) -> None:
    weights = random_weights(d_in=4, d_sae=D_SAE)
    source = write_saelens(tmp_path / "source", weights)
    found = convert(source, "jumprelu", tmp_path / "out")
    counts = load_file(found.folder / "survival.safetensors")
    assert counts["fired"].shape == counts["survived"].shape == (D_SAE,)
