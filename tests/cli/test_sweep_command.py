"""`gated-hub sweep`: its flags, and its answers to programs and people."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gated_hub_process import Ended
from typer.testing import CliRunner

from gated_plugin.cli import science_commands
from gated_plugin.cli.science_commands import app
from gated_plugin.science import sweep as module
from gated_plugin.science.sweep import SweepResult
from gated_plugin.science.sweep_table import Row, summary

GatedHub = Callable[..., Ended]
FLAGS = ["--lambda", "0.2,0.5", "--lambda", "2", "--seeds", "1,2", "--baseline", "--out", "x"]


def row(arm: str, seed: int, value: float, needs: float) -> Row:
    figures = {"l0": 20 / value, "loss_recovered": 1 - needs * value / 10, "gamma": 0.98}
    ends = {f"{name}_{end}": None for name in (*figures, "fvu") for end in ("low", "high")}
    rest = {"fvu": None, "alive": 0.9, "n_dead": 1, "n_dense": 0, "tokens": 9, "run": "runs/a"}
    return Row(arm=arm, seed=seed, lambda_=value, training_seconds=2.0, **figures, **ends, **rest)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks of `sweep`, which answers at once."""
    asked: dict[str, Any] = {}
    values = (0.2, 0.5, 2)
    rows = tuple(
        row(arm, seed, value, needs)
        for seed in (1, 2)
        for arm, needs in (("gated", 0.1 * seed), ("baseline", 0.3))
        for value in values
    )

    def answer(recipe: object, out: Path, **given: Any) -> SweepResult:
        asked.update(given)
        return SweepResult(out, rows, summary(rows, {"gated": values, "baseline": values}))

    monkeypatch.setattr(module, "sweep", answer)
    monkeypatch.setattr(science_commands, "silenced", lambda as_json, quiet: as_json or quiet)
    return asked


def test_flags_may_be_lists_and_repeated(tiny: Path, asked: dict[str, Any]) -> None:
    CliRunner().invoke(app, ["sweep", str(tiny), *FLAGS, "--quiet"], catch_exceptions=False)
    assert (asked["lambdas"], asked["seeds"]) == ((0.2, 0.5, 2.0), (1, 2))
    assert (asked["baseline"], asked["quiet"]) == (True, True)


def test_a_program_gets_one_object_with_rows_files_and_summary(
    tiny: Path, asked: dict[str, Any]
) -> None:
    found = json.loads(CliRunner().invoke(app, ["sweep", str(tiny), *FLAGS, "--json"]).stdout)
    assert (found["table"], found["figure"]) == ("x/table.csv", "x/figure.png")
    assert [each["lambda"] for each in found["rows"]] == [0.2, 0.5, 2] * 4
    assert list(found["arms"]["gated"]["at_l0"]) == ["16", "32", "64"]
    assert set(found["l0_ratio"]["seeds"]) == {"1", "2"}


def test_people_get_a_table_and_the_ratio_with_its_interval(
    tiny: Path, asked: dict[str, Any]
) -> None:
    shown = CliRunner().invoke(app, ["sweep", str(tiny), *FLAGS]).stdout
    heading, first, *rest = shown.splitlines()
    assert heading.split() == ["arm", "seed", "λ", "L0", "loss", "recovered", "γ", "alive"]
    assert first.split() == ["gated", "1", "0.2", "100", "0.998", "0.98", "0.9"]
    (ratio,) = (line for line in rest if "L0 of gated / baseline, at equal loss rec" in line)
    assert re.search(r"recovered  0\.\d+  \(95 % over seeds: -?\d\S+ to \d\S+\)$", ratio)
    assert rest[-1].split() == ["figure", "x/figure.png"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lambda", "strong"], "--lambda 'strong' is no list of numbers; give them as --lambda"),
        (["--lambda", "1", "--seeds", "1,x"], "--seeds '1,x' is no list of numbers"),
        ([], "names no λ to sweep; give some, such as --lambda 0.5,1,2"),
    ],
)
def test_flags_that_make_no_sweep_are_one_sentence(
    flags: list[str], sentence: str, gated_hub: GatedHub, tiny: Path, tmp_path: Path
) -> None:
    ended = gated_hub("sweep", tiny, *flags, "--out", tmp_path / "x")
    assert ended.code == 1
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert sentence in line
