"""`gated_plugin.load`: exactly what the files say, in no more memory than they have bytes."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import load_memory
import pytest
import torch
from gated_hub_process import start_fork_server
from sae_lens import SAE
from safetensors.torch import load_file, save_file

import gated_plugin
from gated_plugin import GatedSAE, GatedSAEConfig, loading
from gated_plugin.dictionaries import CFG, GATE_VECTORS, WEIGHTS, Dictionary
from gated_plugin.errors import GatedError

D_IN, D_SAE = 16, 40
SHAPES = {
    "W_enc": (D_IN, D_SAE),
    "W_dec": (D_SAE, D_IN),
    "b_dec": (D_IN,),
    "b_gate": (D_SAE,),
    "b_mag": (D_SAE,),
    "r_mag": (D_SAE,),
}
SAE_ID = "resid_post/layer_2/width_40/l0_7"


def make_sae(folder: Path, dtype: str = "float32", **settings: Any) -> Path:
    generator = torch.Generator().manual_seed(0)
    sae = GatedSAE(GatedSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype=dtype, **settings))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    sae.save_model(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_sae(tmp_path / "sae")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows at a time, the last block shorter."""
    monkeypatch.setattr("gated_plugin.tensor_files.BLOCK_BYTES", 7 * D_SAE * 4)


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(GatedError) as caught:
        gated_plugin.load(*arguments, **options)
    said = str(caught.value)
    assert said.isprintable()
    assert "; " in said
    assert said.endswith(".")
    assert len(said) < 600
    return said


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


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two SAEs with ids of several parts, as they lie in a folder that was pulled."""
    root = tmp_path / "repository"
    make_sae(root / SAE_ID)
    make_sae(root / "mlp_out" / "l0_3", "float64")
    (root / "README.md").write_text("# Two SAEs")
    return root


def test_an_sae_is_found_by_its_id(repository: Path) -> None:
    assert gated_plugin.load(repository, SAE_ID).dtype == torch.float32
    assert gated_plugin.load(str(repository), "mlp_out/l0_3/").dtype == torch.float64


def test_the_only_sae_needs_no_id(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(repository / "mlp_out")
    assert gated_plugin.load(repository).dtype == torch.float32
    assert gated_plugin.load(repository / SAE_ID).dtype == torch.float32
    monkeypatch.setenv("HOME", str(repository))
    assert gated_plugin.load("~").dtype == torch.float32
    monkeypatch.chdir(repository / SAE_ID)
    assert gated_plugin.load(".").dtype == torch.float32


@pytest.mark.parametrize("sae_id", [None, "resid_post", "resid_post/layer_2/width_40/l0_8", ""])
def test_an_unknown_id_is_answered_with_those_there_are(
    repository: Path, sae_id: str | None
) -> None:
    assert f"name one of mlp_out/l0_3, {SAE_ID}." in refusal(repository, sae_id)


def test_of_many_ids_some_are_named(repository: Path) -> None:
    for number in range(200):
        shutil.copytree(repository / SAE_ID, repository / f"many/l0_{number:03}")
    said = refusal(repository)
    assert "many/l0_000, many/l0_001" in said
    assert "and 194 more." in said


def test_a_folder_without_an_sae_says_so(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no SAE" in refusal(tmp_path)
    assert f"{tmp_path} holds no SAE" in refusal(tmp_path, "x")


@pytest.mark.parametrize("sae_id", ["../outside", "mlp_out/../../outside", "/", "linked"])
def test_an_id_does_not_lead_out_of_its_folder(repository: Path, sae_id: str) -> None:
    outside = make_sae(repository.parent / "outside")
    (repository / "linked").symlink_to(outside)
    sae_id = str(outside) if sae_id == "/" else sae_id
    assert f"{sae_id!r} leads out of {repository}; name an SAE below it." in refusal(
        repository, sae_id
    )


@pytest.mark.parametrize("sae_id", ["a\0b", "a" * 300, "\ud800", "loop/a"])
def test_an_id_that_no_folder_can_have_is_not_there(repository: Path, sae_id: str) -> None:
    (repository / "loop").symlink_to(repository / "loop")
    assert f"holds no SAE {sae_id!r}; name one of" in refusal(repository, sae_id)


def test_links_within_the_folder_are_followed(repository: Path) -> None:
    """As the Hugging Face cache has them: files that link to its blobs."""
    blobs = repository / "blobs"
    blobs.mkdir()
    for number, path in enumerate([repository / SAE_ID / CFG, repository / SAE_ID / WEIGHTS]):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    (repository / "newest").symlink_to(repository / SAE_ID)
    assert gated_plugin.load(repository, SAE_ID).dtype == torch.float32
    assert gated_plugin.load(repository, "newest").dtype == torch.float32


def test_of_a_run_folder_the_trained_sae_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: mine")
    assert f"{tmp_path} holds no trained SAE yet" in refusal(tmp_path)
    make_sae(tmp_path / "sae")
    make_sae(tmp_path / "checkpoints" / "step_10", "float64")
    assert gated_plugin.load(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("options", [{"revision": "main"}, {"token": "hf_secret"}])
def test_a_folder_takes_no_revision_and_no_token(folder: Path, options: dict[str, str]) -> None:
    said = refusal(folder, **options)
    assert "leave them out" in said
    assert "hf_secret" not in said


@pytest.mark.parametrize("name", ["no/such/folder", "a" * 300, "a\0b", "~nobody/x/y"])
def test_what_is_neither_folder_nor_repository_is_refused(name: str) -> None:
    assert "repository id" in refusal(name)


@pytest.mark.parametrize("name", [CFG, WEIGHTS])
def test_a_damaged_folder_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in refusal(folder)


@pytest.mark.skipif(not load_memory.CLEAR_REFS.exists(), reason="Linux says how much was needed")
@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_memory_peaks_at_the_bytes_of_what_is_loaded(asked: str) -> None:
    start_fork_server()
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    arguments = (there, 2048, 16384, "float32", asked)
    child = context.Process(target=load_memory.measure_in_a_child, args=arguments)
    child.start()
    there.close()
    measured = here.recv()
    child.join()
    assert measured.bytes > 130e6
    assert measured.loading < 1.2
    assert measured.encoding < 1.2
