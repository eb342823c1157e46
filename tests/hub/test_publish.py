"""From a run to a dictionary on a hub, with the real client."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults import FaultyHub
from huggingface_hub import CommitOperationAdd, HfApi, close_session
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from gated_plugin.errors import GatedError
from gated_plugin.hub import client, preparation
from gated_plugin.hub.publish import publish
from gated_plugin.hub.verification import verify
from gated_plugin.loading import load
from gated_plugin.runs import Run

REPO = "alice/books"


NONE = dict.fromkeys(
    ("features", "reconstructions", "features_relative", "reconstructions_relative"), 0.0
)


@pytest.fixture
def trusting(monkeypatch):
    """Prepares in this process, and leaves out the comparison with plain SAELens: two processes
    that take seconds to start."""
    compared = {"rows": 64, "float64": NONE, "float32": NONE}
    monkeypatch.setattr(preparation, "verify_folders", lambda folders: [compared] * len(folders))
    monkeypatch.setattr(
        "gated_plugin.hub.publish.apart",
        lambda function, report, *arguments: function(report, *arguments),
    )


def api(hub: FaultyHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


def commits(hub: FaultyHub) -> int:
    """Besides the one that makes the repository."""
    return len(api(hub).list_repo_commits(REPO)) - 1


def test_a_published_sae_loads_anywhere_with_the_same_numbers(run, hub, tmp_path):
    lines: list[str] = []
    published = publish([run], REPO, report=lines.append)
    folder = run.publication / published.sae_ids[0]
    sae = SAE.load_from_disk(folder)

    assert commits(hub) == 1
    assert published.revision == api(hub).model_info(REPO).sha
    assert published.url == f"{hub.url}/{REPO}"
    assert published.max_abs_diff < 1e-5
    assert any("8 new files" in line for line in lines)

    plain = verify(sae, run.activations, REPO, published.sae_ids[0])
    assert plain.max_abs_diff < 1e-5

    card = api(hub).hf_hub_download(REPO, "README.md")
    blocks = re.findall(r"```python\n(.*?)```", Path(card).read_text(), re.S)
    output = tmp_path / "features.safetensors"
    program = "\n".join([*blocks, published.snippet, COMPUTE.format(run.activations, output)])
    subprocess.run([sys.executable, "-c", program], check=True)
    features = load_file(output)["features"]
    expected = sae.encode(load_file(run.activations)["activations"])
    assert (features - expected).abs().max() / expected.max() < 1e-5


COMPUTE = """
from safetensors.torch import load_file, save_file
assert features.shape == (8, 64) and reconstructions.shape == (8, 16)
features = sae.encode(load_file("{}")["activations"]).detach()
save_file(dict(features=features), "{}")
"""


def test_a_second_push_sends_nothing(run, hub, trusting):
    first = publish([run], REPO)
    hub.requests.clear()
    lines: list[str] = []
    second = publish([run], REPO, report=lines.append)

    assert second == replace(first, sent={})
    changing = [seen for seen in hub.requests if seen.method in ("POST", "PUT", "DELETE")]
    assert all(seen.path.split("/")[-2] == "paths-info" for seen in changing)
    assert any("nothing to send" in line for line in lines)


def test_a_changed_run_sends_what_changed_in_another_commit_on_top(run, hub, trusting):
    first = publish([run], REPO)
    save_file({"sparsity": torch.zeros(64)}, run.sae / "sparsity.safetensors")
    second = publish([run], REPO)
    assert commits(hub) == 2
    assert {Path(path).name for path in second.sent} == {
        "sparsity.safetensors",
        "certificate.json",
    }
    assert second.revision == api(hub).model_info(REPO).sha != first.revision


def test_a_second_sae_leaves_the_first_in_card_and_index(run, hub, trusting, edit):
    first = publish([run], REPO)
    edit(run.evaluation, l0=5.2)
    run.recipe.write_text(run.recipe.read_text().replace("0.75", "1.25"))
    second = publish([run], REPO)

    index = json.loads(Path(api(hub).hf_hub_download(REPO, "config.json")).read_text())
    assert {entry["id"] for entry in index["saes"]} == {first.sae_ids[0], second.sae_ids[0]}
    card = Path(api(hub).hf_hub_download(REPO, "README.md")).read_text()
    assert f"`{first.sae_ids[0]}`" in card and f"`{second.sae_ids[0]}`" in card
    assert api(hub).file_exists(REPO, f"{first.sae_ids[0]}/sae_weights.safetensors")


def test_a_file_that_a_run_no_longer_has_leaves_the_repository(run, hub, trusting):
    (run.plots / "old.png").write_bytes(b"old")
    (sae_id,) = publish([run], REPO).sae_ids
    (run.plots / "old.png").unlink()
    publish([run], REPO)
    assert not api(hub).file_exists(REPO, f"{sae_id}/plots/old.png")
    assert api(hub).file_exists(REPO, f"{sae_id}/plots/training.png")


def test_several_runs_arrive_in_one_commit(run, hub, trusting, tmp_path, edit):
    shutil.copytree(run.path, tmp_path / "runs" / "second")
    second = Run(tmp_path / "runs" / "second")
    edit(second.evaluation, l0=30.1)
    published = publish([run, second], REPO)
    assert commits(hub) == 1
    assert all(load(REPO, sae_id).cfg.d_sae == 64 for sae_id in published.sae_ids)


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(run, hub, trusting):
    planned = publish([run], REPO, dry_run=True)
    assert planned.revision is None
    assert "README.md" in planned.sent
    assert hub.storage.repo(REPO) is None
    assert publish([run], REPO).sent == planned.sent


def test_without_a_name_the_repository_is_ones_own_of_the_runs_name(run, hub, trusting):
    assert publish([run]).repo_id == "alice/mine"
    shutil.copytree(run.path, run.path.with_name("other"))
    with pytest.raises(GatedError, match="--repo"):
        publish([run, Run(run.path.with_name("other"))])
    with pytest.raises(GatedError, match="named twice"):
        publish([run, run])


@pytest.mark.parametrize("status", [None, 504])
def test_a_commit_whose_answer_is_lost_is_a_success(run, hub, trusting, status):
    hub.fail("POST", "/commit/", after_handling=True, status=status)
    published = publish([run], REPO)
    assert commits(hub) == 1
    assert published.revision == api(hub).model_info(REPO).sha


@pytest.mark.parametrize(
    ("method", "pattern", "body"),
    [
        ("GET", "^/api/models/alice/books$", b"{}"),
        ("POST", "/repos/create", b"{}"),
        ("POST", "/validate-yaml", b"<html>Bad gateway</html>"),
        ("POST", "/commit/", b"{}"),
    ],
)
def test_a_moments_failure_is_tried_again(run, hub, trusting, method, pattern, body):
    hub.fail(method, pattern, status=502, times=2, body=body)
    publish([run], REPO)
    assert commits(hub) == 1


def test_a_lasting_failure_of_the_commit_leaves_the_repository_as_it_was(run, hub, trusting):
    hub.fail("POST", "/commit/", status=503, times=100)
    with pytest.raises(GatedError, match=r"failed to commit to alice/books \(HTTP 503"):
        publish([run], REPO)
    assert commits(hub) == 0


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(run, hub, trusting):
    publish([run], REPO)
    save_file({"sparsity": torch.zeros(64)}, run.sae / "sparsity.safetensors")

    def interfere(line: str) -> None:
        if line.startswith("Plain SAELens"):
            other = CommitOperationAdd("README.md", b"mine")
            api(hub).create_commit(REPO, [other], commit_message="other")

    with pytest.raises(GatedError, match="Somebody else changed alice/books"):
        publish([run], REPO, report=interfere)
    card = api(hub).hf_hub_download(REPO, "README.md")
    assert Path(card).read_text() == "mine"


def test_a_repository_that_somebody_else_makes_meanwhile_is_not_overwritten(run, hub, trusting):
    def interfere(line: str) -> None:
        if line.startswith("Plain SAELens"):
            api(hub).create_repo(REPO)
            other = CommitOperationAdd("config.json", b"{}")
            api(hub).create_commit(REPO, [other], commit_message="other")

    with pytest.raises(GatedError, match="Somebody else made alice/books"):
        publish([run], REPO, report=interfere)
    assert commits(hub) == 1


def test_more_files_than_a_process_may_open_are_sent(run, hub, trusting):
    for number in range(60):
        (run.plots / f"{number}.png").write_bytes(b"%d" % number)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, limits[1]))
    try:
        assert len(publish([run], REPO).sent) > 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_file_that_differs_on_the_hub_is_reported(run, hub, trusting):
    wrong = {"type": "file", "path": "README.md", "oid": "0" * 40, "size": 1}
    empty = {"path": ".gitattributes", **{key: wrong[key] for key in ("type", "oid", "size")}}
    hub.fail("GET", "/tree/", status=200, body=json.dumps([empty]).encode())
    hub.fail("GET", "/tree/", status=200, body=json.dumps([wrong]).encode())
    with pytest.raises(GatedError, match=r"After the push .*README\.md.* differ"):
        publish([run], REPO)


def no_token(run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")


def unknown_token(run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_nobodystoken")


def token_that_may_not_write(run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thereaderstoken")


def offline(run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def hub_down(run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")


def not_evaluated(run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    run.evaluation.unlink()


def nan_in_weights(run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load_file(run.sae / "sae_weights.safetensors")
    weights["W_dec"][0, 0] = float("nan")
    save_file(weights, run.sae / "sae_weights.safetensors")


def cut_weights(run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.sae / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def not_the_same_in_plain_saelens(
    run: Run, hub: FaultyHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*args: object) -> None:
        raise GatedError("Plain SAELens differs.")

    monkeypatch.setattr(preparation, "verify_folders", differs)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (no_token, "hf auth login"),
        (unknown_token, "does not know your token"),
        (token_that_may_not_write, "may only read, so nothing was begun; run `hf auth login`"),
        (offline, "unset HF_HUB_OFFLINE"),
        (hub_down, "No hub answers at .*gated-hub serve"),
        (not_evaluated, "gated-hub eval"),
        (nan_in_weights, "W_dec holds NaN"),
        (cut_weights, "no sound safetensors file"),
        (not_the_same_in_plain_saelens, "Plain SAELens differs"),
    ],
)
def test_trouble_is_one_sentence_and_nothing_is_visible(
    run, hub, trusting, monkeypatch, trouble, says
):
    trouble(run, hub, monkeypatch)
    with pytest.raises(GatedError, match=says) as refusal:
        publish([run], REPO)
    assert "\n" not in str(refusal.value)
    assert os.environ.get("HF_TOKEN", "no token") not in str(refusal.value)
    assert hub.storage.repo(REPO) is None


def test_a_malformed_repository_id_is_refused_before_anything_else(run, hub):
    with pytest.raises(GatedError, match="write owner/name"):
        publish([run], "books")
    assert not hub.requests


def test_a_hub_that_never_answers_is_given_up(run, hub, trusting, monkeypatch):
    monkeypatch.setattr(client, "SILENCE_SECONDS", 0.1)
    close_session()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(GatedError, match=r"could not be reached .* \(ReadTimeout"):
            publish([run], REPO)
    close_session()


def test_private_makes_the_new_repository_private(run, hub, trusting):
    publish([run], REPO, private=True)
    assert hub.storage.repo(REPO).private


def test_private_does_not_push_to_a_public_repository(run, hub, trusting):
    api(hub).create_repo(REPO)
    with pytest.raises(GatedError, match="is public already"):
        publish([run], REPO, private=True)
    assert commits(hub) == 0


def test_a_config_of_something_else_is_not_overwritten(run, hub, trusting):
    api(hub).create_repo(REPO)
    foreign = CommitOperationAdd("config.json", b'{"model_type": "gpt2"}')
    api(hub).create_commit(REPO, [foreign], commit_message="a language model")
    with pytest.raises(GatedError, match="push to another repository"):
        publish([run], REPO)
    assert commits(hub) == 1


def test_no_log_holds_the_signature_of_an_upload(run, hub, trusting, monkeypatch):
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener()
    logging.getLogger("huggingface_hub").addHandler(listener)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.fail("PUT", "/lfs/", status=503)
    publish([run], REPO)
    logging.getLogger("huggingface_hub").removeHandler(listener)

    assert any("/lfs/" in message for message in said)
    assert not any("sig" in message for message in said)
