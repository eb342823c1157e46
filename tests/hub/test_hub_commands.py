"""The commands about dictionaries, as processes against a local hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from gated_plugin.hub.local import LocalHub

REPO = "me/gated-books"
Call = Callable[..., "subprocess.CompletedProcess[str]"]
RUN = "from gated_plugin.cli import main; main()"


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Runs `gated-hub ARGUMENT…` with a token of an empty hub."""
    folder = tmp_path_factory.mktemp("world")
    with LocalHub(folder / "hub") as hub:
        environment = {
            **os.environ,
            **{"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(folder / "home")},
        }

        def call(*arguments: object) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", RUN, *map(str, arguments)]
            return subprocess.run(command, env=environment, capture_output=True, text=True)

        yield call


@pytest.fixture(scope="module")
def runs(made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with other λ and L0."""
    folder = tmp_path_factory.mktemp("runs")
    for name, l0, coefficient in (("a", 12.34, "0.75"), ("b", 30.1, "0.25")):
        shutil.copytree(made_run, folder / name)
        recipe = folder / name / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("0.75", coefficient))
        evaluation = folder / name / "evaluation.json"
        figures = json.loads(evaluation.read_text())
        evaluation.write_text(json.dumps({**figures, "l0": l0}))
    return [folder / "a", folder / "b"]


@pytest.fixture(scope="module")
def pushed(call: Call, runs: list[Path]) -> dict:
    """What `push --json` answers, with every check in its own process."""
    ended = call("push", *runs, "--repo", REPO, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    answer: dict = json.loads(ended.stdout)
    return answer


def test_push_ends_with_commit_address_and_the_line_that_loads(pushed):
    assert len(pushed["revision"]) == 40
    assert pushed["url"].endswith(f"/{REPO}")
    assert pushed["sae_ids"][0] in pushed["load"]
    assert pushed["max_abs_diff"] < 1e-12


def test_push_for_people_says_what_it_does(call, runs, pushed):
    ended = call("push", runs[0], "--repo", REPO)
    assert ended.returncode == 0
    for line in ("Folding", "Comparing with plain SAELens", "computes mlp_post", "nothing to send"):
        assert line in ended.stdout
    assert pushed["revision"] in ended.stdout


def test_list_shows_repositories_and_the_figures_of_their_saes(call, pushed):
    found = call("list", "--org", "me").stdout
    assert REPO in found and "2" in found
    assert call("list", "--filter", "no-such-name").stdout.count("\n") == 1
    shown = call("list", REPO).stdout.splitlines()
    assert shown[0].split()[:2] == ["id", "L0"]
    assert [line.split()[0] for line in shown[1:]] == sorted(pushed["sae_ids"])
    assert "0.9512" in shown[1]
    entries = json.loads(call("list", REPO, "--json").stdout)["saes"]
    assert {entry["l0"] for entry in entries} == {12.34, 30.1}


def test_show_prints_one_sae(call, pushed):
    shown = call("show", REPO, pushed["sae_ids"][1]).stdout
    assert "training.l1_coefficient" in shown and "0.25" in shown
    assert pushed["revision"] in shown
    assert json.loads(call("show", REPO, pushed["sae_ids"][1], "--json").stdout)["l0"] == 30.1


def test_pull_writes_what_verify_accepts_and_fetches_nothing_twice(call, pushed, tmp_path):
    answer = json.loads(call("pull", REPO, "--out", tmp_path / "here", "--json").stdout)
    assert answer["revision"] == pushed["revision"]
    one = call("verify", tmp_path / "here", pushed["sae_ids"][0], "--json")
    assert [each["sae_id"] for each in json.loads(one.stdout)["verified"]] == pushed["sae_ids"][:1]
    again = json.loads(call("pull", REPO, "--out", tmp_path / "here", "--json").stdout)
    assert again["bytes"] == 0


def test_verify_refuses_what_was_changed(call, pushed, tmp_path):
    call("pull", REPO, "--out", tmp_path)
    (tmp_path / pushed["sae_ids"][0] / "sparsity.safetensors").write_bytes(b"other")
    ended = call("verify", tmp_path)
    assert ended.returncode == 1
    assert "not the file that was certified" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_the_papers_rows_are_not_for_another_language_model(call, pushed):
    ended = call("verify", REPO, pushed["sae_ids"][0], "--paper", "gemma-7b", "-q")
    assert ended.returncode == 1
    assert "leave out --paper" in ended.stderr


def test_a_card_is_printed_or_written_with_its_notes_kept(call, pushed, tmp_path):
    printed = call("card", REPO).stdout
    assert ModelCard(printed).data.library_name == "saelens"
    target = tmp_path / "README.md"
    marker = next(line for line in printed.splitlines() if "gated-hub:notes" in line)
    target.write_text(printed.replace(marker, f"{marker}\n\nMine.\n"))
    assert call("card", REPO, "--out", target).returncode == 0
    assert "Mine." in target.read_text()


def test_the_card_of_a_prepared_run_is_the_one_that_was_pushed(call, pushed, runs):
    assert call("card", runs[0]).stdout == call("card", REPO).stdout


def test_an_entry_for_saelens_directory_is_printed(call, pushed):
    printed = call("card", REPO, "--saelens-entry").stdout
    assert f"repo_id: {REPO}" in printed
    assert f"path: {pushed['sae_ids'][0]}" in printed


def test_convert_says_how_exact_it_is(call, runs, pushed, tmp_path):
    ended = call("convert", runs[0] / "publication" / pushed["sae_ids"][0],
                 "--to", "jumprelu", "--out", tmp_path / "twin")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "flips beyond rounding" in ended.stdout
    assert (tmp_path / "twin" / "conversion.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list", "me/nothing"], "no repository me/nothing"),
        (["pull", REPO, "no/such/sae"], "gated-hub list"),
        (["pull", REPO, "--revision", "v9"], "--revision"),
        (["show", REPO, "no/such/sae"], "gated-hub list"),
        (["verify", "me/nothing"], "no repository me/nothing"),
        (["card", "me/nothing"], "no repository me/nothing"),
        (["push", "nowhere"], "gated-hub train"),
        (["pull", "nothing"], "owner/name"),
        (["convert", "nowhere", "--to", "gold", "--out", "x"], "jumprelu"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(call, pushed, words, says):
    ended = call(*words)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("Error: ") and ended.stderr.count("\n") == 1
    assert says in ended.stderr
