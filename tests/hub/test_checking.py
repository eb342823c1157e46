"""`verify`: what is noticed about a published SAE."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.torch import load_file, save_file

from gated_plugin.errors import GatedError
from gated_plugin.hub import certificate, checking, preparation
from gated_plugin.hub.checking import check
from gated_plugin.hub.publish import publish
from gated_plugin.hub.pull import pull
from gated_plugin.hub.verification import verify_folders
from gated_plugin.loading import load

REPO = "alice/books"


def in_this_process(function, report, *arguments):
    return function(report, *arguments)


@pytest.fixture
def published(run, hub, monkeypatch) -> str:
    """The id of an SAE in REPO; nothing is compared in other processes."""
    zeros = dict.fromkeys(
        ("features", "reconstructions", "features_relative", "reconstructions_relative"), 0.0
    )
    compared = {"rows": 64, "float64": zeros, "float32": zeros}
    for module in (preparation, checking):
        monkeypatch.setattr(module, "verify_folders", lambda folders: [compared] * len(folders))
    for name in ("publish", "checking"):
        monkeypatch.setattr(f"gated_plugin.hub.{name}.apart", in_this_process)
    return publish([run], REPO).sae_ids[0]


@pytest.fixture
def pulled(published, tmp_path) -> Path:
    """A folder with all of REPO."""
    pull(REPO, out=tmp_path / "pulled", quiet=True)
    return tmp_path / "pulled"


def test_a_repository_passes_at_its_commit(published, hub):
    (checked,) = check(REPO)
    assert checked.sae_id == published
    assert checked.revision == HfApi(endpoint=hub.url).model_info(REPO).sha
    assert checked.files == 5
    assert checked.versions["sae_lens"]


def test_a_folder_passes_as_a_whole_and_by_its_sae(published, pulled):
    assert [each.sae_id for each in check(str(pulled))] == [published]
    assert [each.sae_id for each in check(str(pulled), published)] == [published]
    assert check(str(pulled / published))[0].revision is None


def test_plain_saelens_is_asked_again(published, pulled, monkeypatch):
    monkeypatch.setattr(checking, "verify_folders", verify_folders)
    (checked,) = check(str(pulled))
    assert 0 < checked.max_abs_diff < 1e-12
    assert checked.certified_diff == 0.0


def a_changed_file(folder: Path) -> None:
    (folder / "plots" / "training.png").write_bytes(b"other")


def a_missing_file(folder: Path) -> None:
    (folder / "sparsity.safetensors").unlink()


def another_file(folder: Path) -> None:
    (folder / "more.txt").write_text("nobody knows")


def no_certificate(folder: Path) -> None:
    (folder / "certificate.json").unlink()


def a_certificate_of_another_format(folder: Path) -> None:
    (folder / "certificate.json").write_text('{"format": 99}')


def certified_but_not_of_norm_1(folder: Path) -> None:
    weights = load_file(folder / "sae_weights.safetensors")
    save_file({**weights, "W_dec": 2 * weights["W_dec"]}, folder / "sae_weights.safetensors")
    certify_again(folder)


def certified_but_not_finite(folder: Path) -> None:
    weights = load_file(folder / "sae_weights.safetensors")
    b_dec = torch.full_like(weights["b_dec"], torch.inf)
    save_file({**weights, "b_dec": b_dec}, folder / "sae_weights.safetensors")
    certify_again(folder)


def certify_again(folder: Path) -> None:
    compared = certificate.read(folder)["compared"]
    certificate.write(folder, "any", compared)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (a_changed_file, "training.png .*not the file that was certified"),
        (a_missing_file, "sparsity.safetensors .*certified and missing"),
        (another_file, "more.txt .*nobody has certified it"),
        (no_certificate, "no certificate"),
        (a_certificate_of_another_format, "no format"),
        (certified_but_not_of_norm_1, "64 of its 64 decoder rows"),
        (certified_but_not_finite, "b_dec holds NaN or infinity"),
    ],
)
def test_what_is_not_as_certified_is_one_sentence(published, pulled, damage, says):
    damage(pulled / published)
    with pytest.raises(GatedError, match=says) as refusal:
        check(str(pulled))
    assert "\n" not in str(refusal.value)


def test_a_certified_sae_loads_with_the_hash_of_its_certificate_alone(published, pulled):
    folder = pulled / published
    assert load(folder).cfg.d_sae == 64
    content = bytearray((folder / "sae_weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "sae_weights.safetensors").write_bytes(content)
    with pytest.raises(GatedError, match=r"sae_weights\.safetensors is not the file"):
        load(folder)
    (folder / "certificate.json").unlink()
    assert load(folder).cfg.d_sae == 64


def test_a_certified_sae_is_of_its_own_cfg(published, pulled, edit):
    edit(pulled / published / "cfg.json", apply_b_dec_to_input=False)
    with pytest.raises(GatedError, match=r"cfg\.json is not the file"):
        load(pulled / published)


def test_a_folder_that_is_not_there_is_not_taken_for_a_repository(hub, tmp_path):
    with pytest.raises(GatedError, match="There is no 'nowhere' in"):
        check(str(tmp_path / "nowhere"))
    assert not hub.requests


def test_a_folder_without_an_sae_is_refused(tmp_path):
    with pytest.raises(GatedError, match="holds no SAE"):
        check(str(tmp_path))


def add(hub, path: str, content: bytes) -> None:
    HfApi(endpoint=hub.url, token=hub.token).create_commit(
        REPO, [CommitOperationAdd(path, content)], commit_message="by somebody else"
    )


def test_weights_that_were_replaced_on_the_hub_are_noticed(published, hub, tmp_path):
    save_file({"b_dec": torch.zeros(3)}, tmp_path / "other.safetensors")
    other = (tmp_path / "other.safetensors").read_bytes()
    add(hub, f"{published}/sae_weights.safetensors", other)
    with pytest.raises(GatedError, match="another file than what its certificate states"):
        check(REPO)


def test_an_index_that_speaks_of_other_weights_is_noticed(published, hub):
    index = json.loads(
        Path(HfApi(endpoint=hub.url).hf_hub_download(REPO, "config.json")).read_text()
    )
    index["saes"][0]["weights"]["sha256"] = "0" * 64
    add(hub, "config.json", json.dumps(index).encode())
    with pytest.raises(GatedError, match="speaks of other weights"):
        check(REPO)
