"""`gated-hub doctor` finds nothing wrong in a healthy installation, and each thing that can be."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from sae_lens.saes.sae import SAE
from typer.testing import CliRunner

from gated_plugin import doctor
from gated_plugin.cli.commands import app
from gated_plugin.environment import versions
from gated_plugin.plugin import SAELENS

Answers = Callable[..., None]


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Sets what the doctor's own process, which takes seconds, says."""

    def answers(stdout: str = "gated_plugin.architecture\n", stderr: str = "", rc: int = 0) -> None:
        done = subprocess.CompletedProcess([], rc, stdout, stderr)
        monkeypatch.setattr(doctor, "subprocess", SimpleNamespace(run=lambda *_, **__: done))

    answers()
    return answers


def only_problem() -> str:
    (problem,) = doctor.diagnose().problems
    return problem


def test_a_healthy_installation_has_no_problems() -> None:
    found = doctor.diagnose()
    assert found.problems == ()
    assert found.registered == "gated_plugin.architecture"
    assert found.plugins["gated"] == "gated_plugin.plugin:register"
    assert found.versions["sae_lens"] == versions()["sae_lens"]


@pytest.mark.parametrize("switch", doctor.SWITCHES)
def test_a_switch_that_is_off(
    switch: str, fresh_process: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(switch, "0")
    fresh_process("sae_lens.saes.gated_sae\n")
    assert only_problem().startswith(f"{switch}=0 switches the registration off")


def test_a_missing_package(fresh_process: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "versions", lambda: versions() | {"huggingface_hub": None})
    assert only_problem() == "huggingface_hub is not installed; run `pip install huggingface-hub`."


def test_a_missing_saelens_is_one_problem(
    fresh_process: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "versions", lambda: versions() | {"sae_lens": None})
    monkeypatch.setattr(doctor, "missing_seams", lambda: ["sae_lens.registry"])
    fresh_process("", "ModuleNotFoundError: No module named 'sae_lens'\n", 1)
    found = doctor.diagnose()
    assert found.problems == ("sae_lens is not installed; run `pip install sae-lens`.",)
    assert found.registered == "nothing (ModuleNotFoundError: No module named 'sae_lens')"


@pytest.mark.parametrize("group", ["torch.backends", "sae_lens.plugins"])
def test_missing_entry_points(
    group: str, fresh_process: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.entry_points
    monkeypatch.setattr(
        doctor, "entry_points", lambda *, group: () if group == missing else real(group=group)
    )
    missing = group
    assert "pip install --editable ." in only_problem()


def test_a_saelens_with_other_seams(
    fresh_process: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SAE, "process_sae_in")
    problem = only_problem()
    assert "lacks sae_lens.saes.sae.SAE.process_sae_in" in problem
    assert SAELENS in problem


def test_a_warning_of_a_plugin(fresh_process: Answers) -> None:
    warning = "SAELens plugin 'other' was not loaded: KeyError: 'x'."
    fresh_process(stderr=f"frozen:241: RuntimeWarning: {warning}\n  action()\n")
    assert only_problem() == warning


def test_other_classes_in_our_place(fresh_process: Answers) -> None:
    fresh_process("somebody.elses\n")
    assert only_problem().startswith("A fresh `import sae_lens` registers somebody.elses")


def test_the_command_exits_with_1_and_says_what_is_wrong(
    fresh_process: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATED_PLUGIN_AUTOLOAD", "0")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "GATED_PLUGIN_AUTOLOAD=0" in result.output


def test_the_command_answers_in_json(
    fresh_process: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = CliRunner().invoke(app, ["doctor", "--json"])
    assert healthy.exit_code == 0
    assert json.loads(healthy.output)["problems"] == []
    monkeypatch.setenv("GATED_PLUGIN_AUTOLOAD", "0")
    ill = CliRunner().invoke(app, ["doctor", "--json"])
    assert ill.exit_code == 1
    assert len(json.loads(ill.output)["problems"]) == 1
