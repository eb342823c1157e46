"""`make scale` at a toy shape, its commands in this process: that the whole path runs and what is
written down, never how fast."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gated_hub_process import Command
from huggingface_hub import constants, utils  # noqa: F401 # what `Surroundings` patches
from surroundings import Surroundings, gated_hub, trust

from benchmarks import scale, watch
from benchmarks.watch import Part
from gated_plugin.hub.local import LocalHub

TOY = ("--d-in", "32", "--d-sae", "64", "--batch", "16", "--steps", "120", "--eval-tokens", "1024")
PARTS = [
    *("train, killed", "train, resumed", "eval", "push", "push again, nothing to send", "card"),
    *("pull", "verify", "gated_plugin.load", "SAE.from_pretrained"),
]


class Processes:
    """Stands in for `watch.run`: a command that is to be killed is a process, others are not."""

    def __init__(self, start: Callable[..., Command]) -> None:
        self.start = start

    def __call__(
        self,
        name: str,
        command: Any,
        environment: Any,
        *,
        captured: bool = False,
        kill_when: Any = None,
    ) -> Part:
        if command[2].startswith("\nimport"):
            return Part(name, printed=json.dumps(["sae_lens", 500, 510]))
        if kill_when:
            training = self.start(*command[3:])
            training.wait_until(kill_when)
            training.kill()
            return Part(name, killed=True)
        ended = gated_hub(*command[3:])
        assert ended.code == 0, ended.stderr
        return Part(name, 1.5, {"command": 600}, printed=ended.stdout)


@pytest.fixture
def measured(
    start: Callable[..., Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the benchmark wrote."""
    trust(monkeypatch)
    monkeypatch.setattr(
        "gated_plugin.hub.checking.apart", lambda function, report, *rest: function(report, *rest)
    )
    compared = sys.modules["gated_plugin.hub.preparation"].verify_folders
    monkeypatch.setattr("gated_plugin.hub.checking.verify_folders", compared)
    monkeypatch.setattr(scale, "run", Processes(start))

    class Hub(LocalHub):
        def __enter__(self) -> Any:
            entered = super().__enter__()
            Surroundings(self.url, tmp_path, self.token).enter(monkeypatch)
            return entered

    monkeypatch.setattr(scale, "LocalHub", Hub)
    out = ("--json", str(tmp_path / "scale.json"), "--report", str(tmp_path / "scale.md"))
    scale.main([*TOY, "--dir", str(tmp_path / "big"), *out])
    found: dict[str, Any] = json.loads((tmp_path / "scale.json").read_text())
    return {**found, "report": (tmp_path / "scale.md").read_text(), "left": tmp_path / "big"}


def test_the_whole_path_runs_and_is_written_down(measured: dict[str, Any]) -> None:
    assert [part["name"] for part in measured["parts"]] == PARTS
    interruption = measured["interruption"]
    assert interruption["steps"] == 120
    assert interruption["killed_at_step"] > interruption["checkpoint"] >= 40
    assert measured["sae_id"].startswith("synthetic/width_64/l0_")
    assert measured["evaluation"]["loss_recovered"] is None
    assert 0 < measured["evaluation"]["l0"] <= 64
    report = measured["report"]
    assert report.startswith("# The whole path at 64 × 32\n")
    for name in PARTS:
        assert f"\n| {name} | " in report
    assert "120 steps of 16 rows" in report
    assert list(measured["left"].iterdir()) == []


@pytest.mark.parametrize(
    ("memory", "disk", "expected"),
    [
        (24e9, 60e9, 131072),
        (20e9, 40e9, 131072),
        (19.9e9, 60e9, 65536),
        (24e9, 19e9, 32768),
        (None, 60e9, 131072),
        (1e6, 1e6, 1024),
    ],
)
def test_the_widest_that_fits(memory: float | None, disk: float, expected: int) -> None:
    assert scale.width(memory, disk) == expected


def test_available_memory_is_that_of_this_machine() -> None:
    found = scale.available_memory()
    assert found is None or 1e8 < found < 1e14


SLEEPER = "x = bytearray(50_000_000); print('ready', flush=True); import time; time.sleep({})"


def test_a_command_is_watched_and_what_it_prints_is_kept() -> None:
    part = watch.run("sleeper", (sys.executable, "-c", SLEEPER.format(0.2)), captured=True)
    assert part.printed == "ready\n"
    assert part.seconds >= 0.2
    assert part.peak_mb.keys() == {"command"}
    assert 50 < part.peak_mb["command"] < 200


def test_a_command_is_killed_when_it_is_time() -> None:
    started = time.monotonic()
    due = lambda: time.monotonic() > started + 0.2  # noqa: E731
    part = watch.run("sleeper", (sys.executable, "-c", SLEEPER.format(60)), kill_when=due)
    assert part.killed
    assert time.monotonic() < started + 20


def test_a_command_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="broken failed"):
        watch.run("broken", (sys.executable, "-c", "raise SystemExit(3)"))
