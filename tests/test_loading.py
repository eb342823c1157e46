"""`gated_plugin.load`: exactly what the files say, in no more memory than they have bytes."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import load_memory
import pytest
import torch
from gated_hub_process import start_fork_server
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from small_sae import D_IN, D_SAE, make_sae, refusal

import gated_plugin
from gated_plugin import GatedSAE, loading
from gated_plugin.dictionaries import CFG, GATE_VECTORS, WEIGHTS, Dictionary
from gated_plugin.tensor_files import BLOCK_BYTES

SHAPES = {
    "W_enc": (D_IN, D_SAE),
    "W_dec": (D_SAE, D_IN),
    "b_dec": (D_IN,),
    "b_gate": (D_SAE,),
    "b_mag": (D_SAE,),
    "r_mag": (D_SAE,),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_sae(tmp_path / "sae")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows at a time, the last block shorter."""
    monkeypatch.setattr("gated_plugin.tensor_files.BLOCK_BYTES", 7 * D_SAE * 4)


def activations(rows: int = 30) -> torch.Tensor:
    return torch.randn(rows, D_IN, generator=torch.Generator().manual_seed(1))


def test_every_tensor_is_the_one_in_the_file(folder: Path) -> None:
    sae, file = gated_plugin.load(folder), load_file(folder / WEIGHTS)
    assert type(sae) is GatedSAE
    assert sae.state_dict().keys() == file.keys()
    for name, tensor in sae.state_dict().items():
        assert tensor.shape == SHAPES[name]
        assert torch.equal(tensor, file[name]), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"apply_b_dec_to_input": False},
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "constant_norm_rescale"},
        {"reshape_activations": "hook_z"},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_computes_what_saelens_computes(
    tmp_path: Path, settings: dict[str, Any], dtype: str
) -> None:
    make_sae(tmp_path, dtype, **settings)
    ours, theirs = gated_plugin.load(tmp_path), SAE.load_from_disk(tmp_path)
    assert ours.cfg.to_dict() == theirs.cfg.to_dict()
    assert ours.dtype == theirs.dtype
    x = activations()
    x = x.view(30, 4, 4) if "reshape_activations" in settings else x
    features = ours.encode(x)
    assert 0 < (features > 0).float().mean() < 1
    torch.testing.assert_close(features, theirs.encode(x))
    torch.testing.assert_close(ours.decode(features), theirs.decode(features))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("asked", ["float32", torch.bfloat16, "torch.float16", "float64", None])
def test_a_type_that_is_asked_for_is_that_of_the_matrices(
    tmp_path: Path, stored: str, asked: str | torch.dtype | None
) -> None:
    make_sae(tmp_path, stored)
    sae, file = gated_plugin.load(tmp_path, dtype=asked), load_file(tmp_path / WEIGHTS)
    wanted = getattr(torch, str(asked or stored).removeprefix("torch."))
    wide = torch.promote_types(wanted, torch.float32)
    assert sae.dtype == wanted
    assert sae.cfg.dtype == str(wanted).removeprefix("torch.")
    for name, tensor in sae.state_dict().items():
        kind = wide if name in GATE_VECTORS else wanted
        assert tensor.dtype == kind
        assert torch.equal(tensor, file[name].to(kind)), name


def test_gate_vectors_keep_what_a_half_type_would_round_away(tmp_path: Path) -> None:
    make_sae(tmp_path, "bfloat16")
    exact = torch.linspace(-1, 1, D_SAE)
    weights = load_file(tmp_path / WEIGHTS)
    save_file({**weights, "b_gate": exact}, tmp_path / WEIGHTS)
    assert torch.equal(gated_plugin.load(tmp_path).b_gate, exact)
    assert torch.equal(gated_plugin.load(tmp_path, dtype="bfloat16").b_gate, exact)


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 1e5), ("float32", 1e39)])
def test_a_weight_beyond_the_type_that_is_asked_for_is_refused(
    tmp_path: Path, dtype: str, largest: float
) -> None:
    make_sae(tmp_path, "float64")
    weights = load_file(tmp_path / WEIGHTS)
    weights["W_dec"][-1, -1] = largest
    save_file(weights, tmp_path / WEIGHTS)
    said = refusal(tmp_path, dtype=dtype)
    assert f"W_dec holds values above the largest of torch.{dtype}" in said
    assert gated_plugin.load(tmp_path).W_dec[-1, -1] == largest


@pytest.mark.parametrize("name", sorted(SHAPES))
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("place", [0, -1])
def test_nan_and_infinity_are_never_loaded(folder: Path, name: str, value: str, place: int) -> None:
    weights = load_file(folder / WEIGHTS)
    weights[name].view(-1)[place] = float(value)
    save_file(weights, folder / WEIGHTS)
    assert f"{name} holds NaN or infinity" in refusal(folder)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "half", torch.int32])
def test_a_type_that_no_sae_has_is_refused(folder: Path, dtype: Any) -> None:
    assert "give one of float32, float64, bfloat16, float16." in refusal(folder, dtype=dtype)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "meta"])
def test_it_is_on_the_device_that_is_asked_for(folder: Path, device: Any) -> None:
    sae = gated_plugin.load(folder, device=device)
    assert sae.device == torch.device(device)
    assert sae.cfg.device == str(device)
    assert {parameter.device for parameter in sae.parameters()} == {torch.device(device)}


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str) -> None:
    assert f"torch has no device {device!r} here; give `cpu`." in refusal(folder, device=device)


def test_the_device_in_the_file_does_not_matter(folder: Path) -> None:
    cfg = json.loads((folder / CFG).read_text())
    (folder / CFG).write_text(json.dumps({**cfg, "device": "cuda:7"}))
    assert gated_plugin.load(folder).cfg.device == "cpu"


@pytest.mark.parametrize("call", ["encode", "encode_sparse", "forward"])
def test_the_first_call_leaves_the_encoder_where_it_was_loaded(folder: Path, call: str) -> None:
    sae = gated_plugin.load(folder)
    assert sae.W_enc.stride() == (1, D_IN)
    place = sae.W_enc.data_ptr()
    getattr(sae, call)(activations())
    assert sae.W_enc.data_ptr() == place


def test_reading_twice_gives_two_saes_that_share_nothing(folder: Path) -> None:
    dictionary = Dictionary.open(folder)
    half, whole = loading.read(dictionary, "bfloat16"), loading.read(dictionary)
    assert (half.cfg.dtype, whole.cfg.dtype, dictionary.dtype) == ("bfloat16", "float32", "F32")
    half.cfg.metadata.hook_name = "changed"
    assert whole.cfg.metadata.hook_name is None
    with torch.no_grad():
        half.b_gate.zero_()
    assert whole.b_gate.any()


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_computes_the_same(folder: Path, copied: Any, dtype: str) -> None:
    sae = gated_plugin.load(folder, dtype=dtype)
    again = copied(sae)
    assert again.cfg.to_dict() == sae.cfg.to_dict()
    assert torch.equal(again(activations()), sae(activations()))
    assert again.W_enc.data_ptr() != sae.W_enc.data_ptr()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_again_is_the_same_file(folder: Path, tmp_path: Path, dtype: str) -> None:
    sae = gated_plugin.load(folder, dtype=dtype)
    sae.save_model(tmp_path / "again")
    again = gated_plugin.load(tmp_path / "again")
    assert again.cfg.to_dict() == sae.cfg.to_dict()
    for name, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert SAE.load_from_disk(tmp_path / "again").cfg.to_dict() == sae.cfg.to_dict()
    if dtype == "float32":
        assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_it_moves_to_another_type_and_trains_like_any_module(folder: Path) -> None:
    sae = gated_plugin.load(folder).to(torch.float64)
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.float64}
    torch.testing.assert_close(
        sae(activations().double()), gated_plugin.load(folder).double()(activations().double())
    )
    sae(activations().double()).sum().backward()
    assert all(
        parameter.grad is not None for name, parameter in sae.named_parameters() if name != "b_gate"
    )


@pytest.mark.parametrize("name", [CFG, WEIGHTS])
def test_a_damaged_folder_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in refusal(folder)


@pytest.mark.skipif(not load_memory.CLEAR_REFS.exists(), reason="Linux says how much was needed")
@pytest.mark.parametrize(("d_sae", "asked"), [(16384, "float32"), (24576, "bfloat16")])
def test_memory_peaks_at_the_bytes_of_what_is_loaded(d_sae: int, asked: str) -> None:
    start_fork_server()
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    arguments = (there, 2048, d_sae, "float32", asked)
    child = context.Process(target=load_memory.measure_in_a_child, args=arguments)
    child.start()
    there.close()
    measured = here.recv()
    child.join()
    blocks = 8 * BLOCK_BYTES / measured.bytes  # on their way, or freed and kept by the allocator
    assert blocks < 0.35
    assert measured.loading < 1 + blocks
    assert measured.encoding < 1 + blocks
