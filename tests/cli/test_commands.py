"""The command line: what goes to which stream, exit codes, and how soon it answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gated_hub_process import Command, Ended

GatedHub = Callable[..., Ended]

COMMANDS = ["train", "eval", "demo", "doctor", "push", "pull", "list", "show", "verify"]
COMMANDS += ["card", "convert", "serve", "plan", "sweep", "reproduce"]

# Prints the help, then on another line what was imported and the seconds of CPU that it took.
HELP = """
import json, os, sys
from gated_plugin.cli import main
sys.argv = ["gated-hub", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "sae_lens", "huggingface_hub", "transformers", "numpy", "matplotlib"}
    print(json.dumps([sum(os.times()[:2]), sorted(heavy & sys.modules.keys())]))
"""


@pytest.fixture(scope="module")
def trained(
    gated_hub: GatedHub, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Ended]:
    """A run, and what `train --json` answered."""
    out = tmp_path_factory.mktemp("trained") / "run"
    return out, gated_hub("train", tiny, "--out", out, "--json")


def error(ended: Ended) -> str:
    """The one sentence that a command failed with."""
    assert ended.code == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_takes_under_half_a_second_and_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP, *words], capture_output=True, text=True, check=True
    )
    *shown, last = done.stdout.splitlines()
    seconds, heavy = json.loads(last)
    assert "Usage: gated-hub" in "\n".join(shown)
    assert heavy == []
    assert seconds < 0.5


def test_every_command_is_tested_for_its_help() -> None:
    from gated_plugin.cli import plan_command, reproduction_command  # noqa: F401
    from gated_plugin.cli.science_commands import app

    names = {info.name or info.callback.__name__ for info in app.registered_commands}
    assert names == set(COMMANDS)


def test_training_answers_with_one_json_object(trained: tuple[Path, Ended]) -> None:
    out, ended = trained
    assert ended.code == 0
    assert json.loads(ended.stdout) == {
        "run": str(out),
        "sae": f"{out}/sae",
        "next": f"gated-hub eval {out}",
    }
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""


def test_evaluation_answers_with_one_json_object(
    gated_hub: GatedHub, trained: tuple[Path, Ended]
) -> None:
    out, _ = trained
    ended = gated_hub("eval", out, "--json")
    assert ended.code == 0
    assert ended.stderr == ""
    assert json.loads(ended.stdout) == json.loads((out / "evaluation.json").read_text())
    figures = {"l0", "loss_recovered", "gamma", "alive", "fvu", "ce_clean", "ce_sae", "ce_zero"}
    assert figures | {"tokens_evaluated"} <= json.loads(ended.stdout).keys()


def test_quiet_commands_print_nothing(gated_hub: GatedHub, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert gated_hub("train", tiny, "--out", out, "-q") == (0, "", "")
    assert gated_hub("eval", out, "-q") == (0, "", "")


def test_people_get_figures_and_the_next_command(
    gated_hub: GatedHub, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ended = gated_hub("train", tiny, "--out", out, "--set", "sae.d_sae=32")
    assert f"gated-hub eval {out}" in ended.stdout
    assert "Training: done in 0:0" in ended.stderr
    shown = gated_hub("eval", out).stdout
    for name in ("l0", "loss_recovered", "gamma", "alive", "ce_clean", "tokens_evaluated"):
        assert f"  {name} " in shown
    assert "2,048" in shown
    assert re.search(r"  loss_recovered +\S+  \(95 %: \S+ to \S+\)", shown)
    assert "_interval" not in shown


def test_an_evaluation_takes_other_text_and_no_other_training(
    gated_hub: GatedHub, trained: tuple[Path, Ended]
) -> None:
    out, _ = trained
    found = gated_hub("eval", out, "--set", "evaluation.tokens=1024", "--json").stdout
    assert json.loads(found)["tokens_evaluated"] == 1024
    said = error(gated_hub("eval", out, "--set", "hook_name=blocks.0.hook_resid_pre"))
    assert "would change what was trained" in said


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "quikstart"], "There is no recipe 'quikstart'"),
        (["train", "TINY", "--set", "sae.l1_coeficient=1"], "nearest valid one is 'sae.l1_coef"),
        (["train", "TINY", "--set", "sae.d_in=128"], "give --set sae.d_in=256"),
        (["eval", "nowhere"], "nowhere is no run folder: it has no recipe.yaml; make one with"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(
    words: list[str], part: str, gated_hub: GatedHub, tiny: Path, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "run"] if words[0] == "train" else []
    said = error(gated_hub(*(tiny if word == "TINY" else word for word in words), *out))
    assert part in said
    assert not (tmp_path / "run").exists()


def test_corrupted_weights_are_one_sentence(
    gated_hub: GatedHub, trained: tuple[Path, Ended], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained[0], out)
    (out / "sae" / "sae_weights.safetensors").write_bytes(b"\x00" * 100)
    said = error(gated_hub("eval", out, "--json"))
    assert f"The SAE in {out}/sae cannot be loaded" in said
    assert f"`gated-hub train {out}/recipe.yaml --out {out}-again`" in said


def test_a_file_that_cannot_be_written_is_one_sentence(
    gated_hub: GatedHub, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said = error(gated_hub("train", tiny, "--out", tmp_path / "file" / "run"))
    assert "Not a directory" in said


def test_debug_shows_the_traceback(start: Callable[..., Command]) -> None:
    ended = start("--debug", "train", "quikstart").wait()
    assert ended.code == 1
    assert "Traceback" in ended.stderr
    assert "GatedError: There is no recipe 'quikstart'" in ended.stderr


def test_a_strangers_text_does_not_rule_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from gated_plugin.cli import output

    hostile = "gpt2\x1b[2J\x1b]0;title\x07"
    output.answer(output.Output.human, {"model": hostile, "tags": [hostile]})
    output.table(output.Output.human, "saes", [{"id": hostile}], {"id": "id"})
    output.text(f"# {hostile}\n")
    output.error(hostile)
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "gpt2" in said.out + said.err
