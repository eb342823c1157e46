"""One SAE's folder: what is read from it, and each kind of damage refused by its own sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from gated_plugin import GatedSAE, GatedSAEConfig, dictionaries
from gated_plugin.dictionaries import CFG, WEIGHTS, Dictionary, read_rows
from gated_plugin.errors import GatedError

D_IN, D_SAE = 4, 6
LEGACY = {
    "architecture": "gated",
    "d_in": D_IN,
    "d_sae": D_SAE,
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "apply_b_dec_to_input": False,
    "finetuning_scaling_factor": False,
    "context_size": 128,
    "model_name": "gpt2-small",
    "hook_name": "blocks.8.hook_resid_pre",
    "hook_layer": 8,
    "hook_head_index": None,
    "prepend_bos": True,
    "dataset_path": "Skylion007/openwebtext",
    "dataset_trust_remote_code": True,
    "normalize_activations": "layer_norm",
    "dtype": "torch.float32",
    "device": "cuda",
    "sae_lens_training_version": "3.22.2",
}
"""As SAELens wrote it before its version 6."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound SAE of random weights."""
    torch.manual_seed(0)
    sae = GatedSAE(GatedSAEConfig(d_in=D_IN, d_sae=D_SAE))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    sae.save_model(tmp_path)
    return tmp_path


def describe(folder: Path, **changes: Any) -> None:
    path = folder / CFG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def respoil(folder: Path, **changes: torch.Tensor | None) -> None:
    """Writes the weights again with other tensors, or without those that are None."""
    tensors = {**load_file(folder / WEIGHTS), **changes}
    save_file(
        {name: value for name, value in tensors.items() if value is not None}, folder / WEIGHTS
    )


def refusal(attempt: Callable[[], object], file: Path) -> str:
    with pytest.raises(GatedError) as caught:
        attempt()
    said = str(caught.value)
    assert said.startswith(str(file))
    assert said.isprintable()
    assert "; " in said
    assert said.endswith(".")
    assert len(said) < 600
    return said


def test_a_sound_folder_is_described_as_saelens_describes_it(folder: Path) -> None:
    dictionary = Dictionary.open(folder)
    dictionary.require_sound()
    plain = SAE.load_from_disk(folder)
    assert dictionary.cfg.to_dict() == plain.cfg.to_dict()
    assert dictionary.cfg.metadata.hook_name == "blocks.0.hook_resid_post"
    assert dictionary.dtype == "F32"
    torch.testing.assert_close(dictionary.decoder_norms(), plain.W_dec.norm(dim=1))


def test_decoder_norms_are_those_of_all_blocks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gated_plugin.tensor_files.BLOCK_BYTES", 40)
    norms = torch.linspace(0.5, 3, D_SAE)
    respoil(folder, W_dec=load_file(folder / WEIGHTS)["W_dec"] * norms[:, None])
    torch.testing.assert_close(Dictionary.open(folder).decoder_norms(), norms)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_weight_that_is_not_finite_is_refused(folder: Path, name: str, value: str) -> None:
    tensor = load_file(folder / WEIGHTS)[name]
    tensor.view(-1)[-1] = float(value)
    respoil(folder, **{name: tensor})
    said = refusal(Dictionary.open(folder).require_sound, folder / WEIGHTS)
    assert f"{name} holds NaN or infinity" in said


@pytest.mark.parametrize("factor", [0.0, 1 - 2e-5, 1 + 2e-5, 1e30])
def test_a_decoder_row_of_another_norm_is_refused(folder: Path, factor: float) -> None:
    w_dec = load_file(folder / WEIGHTS)["W_dec"]
    w_dec[2] *= factor
    respoil(folder, W_dec=w_dec)
    said = refusal(Dictionary.open(folder).require_sound, folder / WEIGHTS)
    assert "1 of its 6 decoder rows are not of norm 1" in said


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_rounding_to_another_type_leaves_unit_norms(folder: Path, dtype: str) -> None:
    SAE.load_from_disk(folder).to(getattr(torch, dtype)).save_model(folder)
    dictionary = Dictionary.open(folder)
    dictionary.require_sound()
    assert dictionary.dtype == dictionaries.TYPES[dtype]


@pytest.mark.parametrize("scaling", [torch.ones(D_SAE), None])
def test_a_description_from_before_saelens_6_is_read_as_saelens_reads_it(
    folder: Path, scaling: torch.Tensor | None
) -> None:
    (folder / CFG).write_text(json.dumps(LEGACY))
    respoil(folder, scaling_factor=scaling)
    found, theirs = Dictionary.open(folder), SAE.load_from_disk(folder, device="cpu")
    assert {**found.cfg.to_dict(), "device": "cpu"} == theirs.cfg.to_dict()
    assert not found.cfg.apply_b_dec_to_input
    assert found.cfg.normalize_activations == "layer_norm"
    assert found.cfg.metadata.hook_name == "blocks.8.hook_resid_pre"
    assert found.weights.tensors.keys() == theirs.state_dict().keys()


def test_a_scaling_factor_that_was_trained_is_refused(folder: Path) -> None:
    respoil(folder, scaling_factor=torch.linspace(0.9, 1.1, D_SAE))
    said = refusal(lambda: Dictionary.open(folder), folder / WEIGHTS)
    assert "it holds an unknown tensor 'scaling_factor'" in said


UNSOUND: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"architecture": "jumprelu"}, "of architecture 'jumprelu', not"),
    "an architecture that is no text": ({"architecture": [1]}, "of architecture [1], not"),
    "a type that is a list": ({"dtype": ["float32"]}, "dtype is ['float32'], not one of"),
    "no width": ({"d_sae": None}, "d_sae is None, not a whole number from 1"),
    "a width of text": ({"d_sae": "6"}, "d_sae is '6', not a whole number from 1"),
    "a width of a fraction": ({"d_sae": 6.0}, "d_sae is 6.0, not a whole number from 1"),
    "a width of NaN": ({"d_sae": float("nan")}, "d_sae is nan, not a whole number from 1"),
    "a width that is true": ({"d_in": True}, "d_in is True, not a whole number from 1"),
    "a width of 0": ({"d_in": 0}, "d_in is 0, not a whole number from 1"),
    "a huge width": ({"d_sae": 10**4000}, "not a whole number from 1"),
    "another width": ({"d_in": 5}, "W_enc has the shape (4, 6), but cfg.json says (5, 6)"),
    "widths turned round": ({"d_in": 6, "d_sae": 4}, "but cfg.json says"),
    "an unknown type": ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn', not one of"),
    "a type that is no text": ({"dtype": {"a": 1}}, "dtype is {'a': 1}, not one of"),
    "a type of other weights": ({"dtype": "bfloat16"}, "is F32, but cfg.json says bfloat16"),
    "a bias flag of text": ({"apply_b_dec_to_input": "false"}, "is 'false', not true or false"),
    "a bias flag of 1": ({"apply_b_dec_to_input": 1}, "is 1, not true or false"),
    "an unknown normalisation": ({"normalize_activations": "no"}, "normalize_activations must be"),
    "a normalisation of null": ({"normalize_activations": None}, "normalize_activations must be"),
    "a normalisation that needs data": (
        {"normalize_activations": "expected_average_only_in"},
        "whose statistics are in none of its files",
    ),
    "an unknown reshaping": (
        {"reshape_activations": "hook_q"},
        "'hook_q', not one of none, hook_z",
    ),
    "a reshaping that is no text": ({"reshape_activations": ["none"]}, "is ['none'], not one of"),
    "heads where there are none": (
        {"reshape_activations": "hook_z"},
        "it joins the heads of hook_z, but its hook point is 'blocks.0.hook_resid_post'",
    ),
    "metadata of text": ({"metadata": "none"}, "its metadata is no table"),
    "metadata of null": ({"metadata": None}, "its metadata is no table"),
    "a version that is none": (
        {"metadata": {"sae_lens_version": "six"}},
        "SAELens cannot read it (\"Invalid version: 'six'\")",
    ),
    "metadata that replaces a method": (
        {"metadata": {"sae_lens_version": "6.0.0", "to_dict": 1}},
        "its metadata would replace SAELens' own 'to_dict'",
    ),
    "metadata that replaces the class": (
        {"metadata": {"sae_lens_version": "6.0.0", "__class__": 1}},
        "its metadata would replace SAELens' own '__class__'",
    ),
    "metadata that names an argument": (
        {"metadata": {"sae_lens_version": "6.0.0", "self": 1}},
        "SAELens cannot read it (",
    ),
    "hostile text": ({"dtype": "\n\0\x1b[2J\ud800" + "x" * 100_000}, "dtype is '\\n\\x00\\x1b[2"),
    "a hostile normalisation": (
        {"normalize_activations": "\n\0\x1b[2J\ud800" + "x" * 100_000},
        "SAELens cannot read it ('normalize_activations must be",
    ),
}


@pytest.mark.parametrize("kind", sorted(UNSOUND))
def test_a_description_that_cannot_be_is_refused(folder: Path, kind: str) -> None:
    changes, reason = UNSOUND[kind]
    describe(folder, **changes)
    assert reason in refusal(lambda: Dictionary.open(folder), folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it is no valid JSON"),
        (b"{", "it is no valid JSON"),
        (b'{"d_in": "\xff"}', "it is no valid JSON"),
        (b"[" * 100_000, "it is no valid JSON"),
        (b'{"d_in": ' + b"9" * 5000 + b"}", "it is no valid JSON"),
        (b"[]", "it is no table of settings"),
        (b'"gated"', "it is no table of settings"),
        (b" " * ((1 << 20) + 1), "it has 1,048,577 bytes, where some hundred are usual"),
        (b'{"architecture": "gated"}', "SAELens cannot read it"),
    ],
)
def test_a_file_that_is_no_description_is_refused(folder: Path, text: bytes, reason: str) -> None:
    (folder / CFG).write_bytes(text)
    assert reason in refusal(lambda: Dictionary.open(folder), folder / CFG)


@pytest.mark.parametrize("name", [CFG, WEIGHTS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refusal(lambda: Dictionary.open(folder), folder / name)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"b_gate": None}, "it lacks 'b_gate'"),
        ({"threshold": torch.ones(D_SAE)}, "it holds an unknown tensor 'threshold'"),
        (
            {"W_enc": torch.ones(D_SAE, D_IN)},
            "W_enc has the shape (6, 4), but cfg.json says (4, 6)",
        ),
        ({"b_mag": torch.ones(D_SAE, 1)}, "b_mag has the shape (6, 1), but cfg.json says (6,)"),
        ({"W_dec": torch.ones(D_SAE, D_IN).half()}, "W_dec is F16, but cfg.json says float32"),
        ({"b_gate": torch.ones(D_SAE).double()}, "b_gate is F64, but cfg.json says float32"),
        ({"r_mag": torch.ones(D_SAE).long()}, "r_mag is I64, but cfg.json says float32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    folder: Path, changes: dict[str, torch.Tensor | None], reason: str
) -> None:
    respoil(folder, **changes)
    assert reason in refusal(lambda: Dictionary.open(folder), folder / WEIGHTS)


def test_rows_of_a_sibling_file_are_the_first_ones(tmp_path: Path) -> None:
    path, x = tmp_path / "activations.safetensors", torch.randn(5, D_IN)
    save_file({"activations": x}, path)
    assert torch.equal(read_rows(path, "activations", (None, D_IN), 3), x[:3])
    assert torch.equal(read_rows(path, "activations", (5, D_IN), 64), x)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"x": torch.ones(5, 5)}, "x has the shape (5, 5), which does not fit the SAE"),
        ({"x": torch.ones(D_IN)}, "x has the shape (4,), which does not fit the SAE"),
        ({"x": torch.ones(())}, "x has the shape (), which does not fit the SAE"),
        ({"y": torch.ones(5, D_IN)}, "it lacks 'x'"),
        ({"x": torch.full((5, D_IN), torch.nan)}, "x holds NaN or infinity"),
    ],
)
def test_a_sibling_file_that_does_not_fit_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], reason: str
) -> None:
    path = tmp_path / "activations.safetensors"
    save_file(tensors, path)
    said = refusal(lambda: read_rows(path, "x", (None, D_IN), 3), path)
    assert reason in said
