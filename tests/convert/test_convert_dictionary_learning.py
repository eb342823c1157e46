"""dictionary_learning's layout, read and written."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_sources import (
    D_IN,
    D_SAE,
    Weights,
    library_state,
    random_weights,
    truth,
    write_library,
    write_saelens,
)
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from gated_plugin.convert import convert
from gated_plugin.convert.matrices import Matrix
from gated_plugin.errors import GatedError

X = torch.randn(100, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(params=["whole", "in parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So small parts that there are many, or one for all."""
    if request.param == "in parts":
        monkeypatch.setattr("gated_plugin.convert.matrices.NUMBERS", 3 * D_SAE)


def reconstructions(folder: Path) -> Tensor:
    return SAE.load_from_disk(folder, dtype="float64")(X).detach()


def rows_together(weights: Weights) -> Weights:
    return {name: tensor.contiguous() for name, tensor in library_state(weights).items()}


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("state", [library_state, rows_together])
def test_a_state_dict_becomes_the_same_function(
    state: Callable[[Weights], Weights], tmp_path: Path
) -> None:
    source = write_library(tmp_path / "trainer_0", state(random_weights()))
    out = convert(source, "saelens", tmp_path / "out").folder
    features, x_hat = truth(random_weights(), X)
    sae = SAE.load_from_disk(out, dtype="float64")
    assert torch.allclose(sae.encode(X), features, atol=1e-5)
    assert torch.allclose(sae(X), x_hat, atol=1e-5)
    assert sae.cfg.metadata.model_name == "EleutherAI/pythia-160m-deduped"
    assert sae.cfg.metadata.hook_name == "blocks.8.hook_resid_post"
    assert sae.cfg.metadata.context_size == 1024


def test_the_first_layout_had_no_r_mag(tmp_path: Path) -> None:
    weights = random_weights(r_mag=torch.zeros(D_SAE))
    state = library_state(weights)
    del state["r_mag"]
    source = write_library(tmp_path / "trainer_0", state)
    out = convert(source, "saelens", tmp_path / "out").folder
    assert torch.allclose(reconstructions(out), truth(weights, X)[1], atol=1e-5)


def test_what_config_json_does_not_say_is_not_guessed(tmp_path: Path) -> None:
    source = write_library(tmp_path / "trainer_0", library_state(random_weights()))
    (source / "config.json").write_text('{"trainer": {"trainer_class": "GatedSAETrainer"}}')
    metadata = json.loads(
        (convert(source, "saelens", tmp_path / "out").folder / "cfg.json").read_text()
    )["metadata"]
    assert metadata.keys() == {"sae_lens_version", "sae_lens_training_version"}
    assert metadata["sae_lens_training_version"] is None


@pytest.mark.usefixtures("parts")
def test_there_and_back_the_weights_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    source = write_saelens(tmp_path / "source", random_weights())
    first = convert(source, "saelens", tmp_path / "first").folder
    library = convert(first, "dictionary_learning", tmp_path / "library").folder
    back = convert(library, "saelens", tmp_path / "back").folder
    assert (back / "sae_weights.safetensors").read_bytes() == (
        first / "sae_weights.safetensors"
    ).read_bytes()
    metadata = SAE.load_from_disk(back).cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("gelu-1l", "blocks.0.mlp.hook_post")
    assert metadata.context_size == 128


def test_a_free_decoder_norm_goes_there_and_back_within_rounding(tmp_path: Path) -> None:
    source = write_saelens(tmp_path / "source", random_weights())
    library = convert(source, "dictionary_learning", tmp_path / "library").folder
    back = convert(library, "saelens", tmp_path / "back").folder
    assert torch.allclose(reconstructions(back), truth(random_weights(), X)[1], atol=1e-5)


def test_the_result_is_laid_out_as_the_library_loads_it(tmp_path: Path) -> None:
    weights = random_weights()
    source = write_saelens(tmp_path / "source", weights)
    out = convert(source, "dictionary_learning", tmp_path / "out").folder
    found = load_file(out / "ae.safetensors")
    norms = weights["W_dec"].double().norm(dim=1)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "encoder.weight": (D_SAE, D_IN),
        "decoder.weight": (D_IN, D_SAE),
        "decoder_bias": (D_IN,),
        "gate_bias": (D_SAE,),
        "mag_bias": (D_SAE,),
        "r_mag": (D_SAE,),
    }
    assert torch.equal(found["encoder.weight"], (weights["W_enc"] * norms).float().T)
    assert torch.equal(found["r_mag"], weights["r_mag"])
    assert json.loads((out / "config.json").read_text()) == {
        "trainer": {
            "dict_class": "GatedAutoEncoder",
            "activation_dim": D_IN,
            "dict_size": D_SAE,
            "lm_name": "gelu-1l",
            "layer": 0,
            "submodule_name": "mlp_post_layer_0",
        },
        "buffer": {"ctx_len": 128},
    }


def test_a_pickle_becomes_safetensors_with_its_settings(tmp_path: Path) -> None:
    source = write_library(tmp_path / "trainer_0", library_state(random_weights()), lr=5e-5)
    out = convert(source / "ae.pt", "dictionary_learning", tmp_path / "out").folder
    assert not (out / "ae.pt").exists()
    assert json.loads((out / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )


class Runs:
    """What a hostile pickle asks for."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def plain_pickle(path: Path, state: Any) -> None:
    path.write_bytes(pickle.dumps(state))


def old_torch(path: Path, state: Any) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [lambda path, s: torch.save(s, path), plain_pickle, old_torch])
def test_a_hostile_pickle_is_refused_and_runs_nothing(
    save: Callable[[Path, Any], None], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    state = {**library_state(random_weights()), "gate_bias": Runs(marker)}
    source = write_library(tmp_path / "trainer_0", {})
    save(source / "ae.pt", state)
    with pytest.raises(GatedError, match="is not read") as refusal:
        convert(source, "saelens", tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    # It would have, if somebody had opened it.
    with suppress(RuntimeError):
        torch.load(source / "ae.pt", weights_only=False)
    assert marker.exists()


def test_an_environment_that_switches_weights_only_off_does_not_reach_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    source = write_library(tmp_path / "trainer_0", {"gate_bias": Runs(marker)})
    with pytest.raises(GatedError, match="asks for more than tensors"):
        convert(source, "saelens", tmp_path / "out")
    assert not marker.exists()


def changed(**tensors: Any) -> Weights:
    state = {**library_state(random_weights()), **tensors}
    return {name: value for name, value in state.items() if value is not None}


def of_another_class(source: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(4, 3), "bias": torch.zeros(3)}, source / "ae.pt")


def backup(source: Path) -> None:
    torch.save(
        {"step": 9, "ae": library_state(random_weights()), "norm_factor": 3.0}, source / "ae.pt"
    )


def cut_short(source: Path) -> None:
    path = source / "ae.pt"
    path.write_bytes(path.read_bytes()[:-200])


def compressed(source: Path) -> None:
    with zipfile.ZipFile(source / "ae.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(source / "ae.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def long_pickle(source: Path) -> None:
    torch.save(changed(extra=list(range(300_000))), source / "ae.pt")


def larger_than_its_file(source: Path) -> None:
    huge = torch.zeros(1).expand(1 << 40, 1 << 20)
    torch.save(changed(**{"encoder.weight": huge}), source / "ae.pt")


def nested_too_deeply(source: Path) -> None:
    (source / "config.json").write_text("[" * 100_000)


def settings(text: str) -> Callable[[Path], None]:
    return lambda source: (source / "config.json").write_text(text)  # type: ignore[return-value]


def state(**tensors: Any) -> Callable[[Path], None]:
    return lambda source: torch.save(changed(**tensors), source / "ae.pt")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (of_another_class, "lacks 'decoder.weight'"),
        (backup, "backup of an unfinished training"),
        (cut_short, "is not read"),
        (compressed, "compressed"),
        (long_pickle, "its pickle has more than"),
        (larger_than_its_file, "more numbers than the file"),
        (state(mag_bias=None), "lacks 'mag_bias'"),
        (state(surprise=torch.zeros(2)), "unknown tensor 'surprise'"),
        (state(threshold=3), "'threshold' is no plain tensor"),
        (state(gate_bias=torch.zeros(D_SAE, dtype=torch.int64)), "'gate_bias' is no plain tensor"),
        (state(gate_bias=torch.zeros(D_SAE).to_sparse()), "'gate_bias' is no plain tensor"),
        (state(gate_bias=torch.zeros(D_SAE, device="meta")), "'gate_bias' is no plain tensor"),
        (state(gate_bias=torch.zeros(3)), r"gate_bias has the shape \(3,\)"),
        (state(**{"encoder.weight": torch.zeros(4)}), "encoder.weight has the shape"),
        (state(**{"encoder.weight": torch.zeros(0, 12)}), "encoder.weight has the shape"),
        (state(mag_bias=torch.full((D_SAE,), torch.nan)), "mag_bias holds NaN"),
        (state(**{"encoder.weight": torch.full((D_SAE, D_IN), torch.inf)}), "encoder.weight holds"),
        (lambda source: torch.save([1, 2], source / "ae.pt"), "no table of tensors"),
        (lambda source: (source / "config.json").unlink(), "config.json is missing"),
        (settings("{"), "no valid JSON"),
        (nested_too_deeply, "no valid JSON"),
        (settings("[1]"), "no table of settings"),
        (settings('{"trainer": 3}'), "'trainer' is no table"),
        (settings('{"trainer": {"dict_class": "AutoEncoderTopK"}}'), "class 'AutoEncoderTopK'"),
        (settings('{"trainer": {"dict_size": 41}}'), "dict_size = 41, but it has 40"),
        (settings(" " * (2 << 20)), "bytes, where some hundred are usual"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_gated_dictionary_is_one_sentence(
    damage: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    source = write_library(tmp_path / "trainer_0", library_state(random_weights()))
    damage(source)
    with pytest.raises(GatedError, match=says) as refusal:
        convert(source, "saelens", tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"gate_bias": torch.zeros(D_SAE, dtype=torch.int32)}, "gate_bias is I32"),
        ({"surprise": torch.zeros(1)}, "unknown tensor"),
        ({"r_mag": torch.full((D_SAE,), torch.nan)}, "r_mag holds NaN"),
    ],
)
def test_safetensors_of_the_library_are_checked_too(
    tensors: Weights, says: str, tmp_path: Path
) -> None:
    source = write_library(tmp_path / "trainer_0", {})
    save_file(
        {**{n: t.contiguous() for n, t in library_state(random_weights()).items()}, **tensors},
        source / "ae.safetensors",
    )
    with pytest.raises(GatedError, match=says):
        convert(source, "saelens", tmp_path / "out")


@pytest.mark.parametrize("name", ["W_dec", "W_enc"])
@pytest.mark.usefixtures("parts")
def test_a_file_that_is_cut_while_it_is_read_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_saelens(tmp_path / "source", random_weights())
    weights = source / "sae_weights.safetensors"
    part = Matrix.part

    def cut_first(self: Matrix, *chosen: slice, **named: slice) -> Tensor:
        if self.name == name:
            with weights.open("r+b") as file:
                file.truncate(600)
        return part(self, *chosen, **named)

    monkeypatch.setattr(Matrix, "part", cut_first)
    with pytest.raises(GatedError, match="became shorter"):
        convert(source, "dictionary_learning", tmp_path / "out")
